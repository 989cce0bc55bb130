"""Mean teacher with CutMix: PCR without its prototypes, so the baseline that shows what prototypes add.

Source: Tarvainen and Valpola, NeurIPS 2017, for the averaged teacher; French et al., BMVC 2020, for CutMix between
unlabeled images. The loss is PCR's: confident pixels only, divided by the number of all pixels.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pcr_seg.method.losses import consistency_loss, cross_entropy, labeled_loss
from pcr_seg.method.mixing import UnlabeledViews, cutmix
from pcr_seg.method.sampling import upsample
from pcr_seg.method.teacher import Teacher


class Consistency(nn.Module):
    """The student learns the averaged teacher's confident labels on mixed images.

    Args:
        threshold: least confidence of a pseudo-label that trains, in 0..1.
        supervised_loss: loss on labeled images, of logits (B, C, H, W) and labels (B, H, W).
        auxiliary_weight: weight of the same loss on the auxiliary head's logits, if the network has one.
        consistency_weight: weight of the loss on pseudo-labels.
        cutmix_probability: probability that a batch is mixed, in 0..1.
        strong_color: strong views have color jitter, grayscale and blur.
        burn_in_epochs: epochs on labeled images alone at the start.
        ema_decay: decay of the teacher's average, in 0..1.
    """

    def __init__(
        self,
        *,
        threshold: float = 0.8,
        supervised_loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
        auxiliary_weight: float = 0.4,
        consistency_weight: float = 1.0,
        cutmix_probability: float = 0.5,
        strong_color: bool = False,
        burn_in_epochs: int = 1,
        ema_decay: float = 0.99,
    ) -> None:
        super().__init__()
        self.threshold, self.cutmix_probability, self.strong_color = threshold, cutmix_probability, strong_color
        self.supervised_loss, self.auxiliary_weight = supervised_loss, auxiliary_weight
        self.consistency_weight, self.burn_in_epochs, self.ema_decay = consistency_weight, burn_in_epochs, ema_decay
        self.views = UnlabeledViews(color=strong_color)
        self.weights = {"supervised": 1.0, "consistency": consistency_weight}
        self.figures: dict[str, Tensor] = {}

    def forward(self, student: nn.Module, teacher: Teacher, labeled: dict, unlabeled: dict | None) -> dict[str, Tensor]:
        """Return the losses of a step by name; without unlabeled images the supervised loss alone."""
        image, mask, n = labeled["image"], labeled["mask"], len(labeled["mask"])
        if unlabeled is None:
            return {"supervised": labeled_loss(self.supervised_loss, student(image), mask, self.auxiliary_weight)}

        labels, confidence = teacher.label(unlabeled["weak"], unlabeled["valid"])
        strong, labels, confidence = cutmix(unlabeled["strong"][:, 0], labels, confidence, self.cutmix_probability)
        self.figures = {"confident": (confidence >= self.threshold).float().mean()}

        images = torch.cat([image, strong])
        output = student(images)
        teacher.observe(images)
        logits = upsample(output.logits[n:], mask.shape[-2:])
        return {
            "supervised": labeled_loss(self.supervised_loss, output, mask, self.auxiliary_weight),
            "consistency": consistency_loss(logits, labels, confidence, self.threshold),
        }
