"""FixMatch for segmentation: the network labels weak views for itself, and learns them on strong ones.

Source: Sohn et al., NeurIPS 2020; for segmentation as the baseline of UniMatch (Yang et al., CVPR 2023, code
LiheYoung/UniMatch @7292bac). What differs from that code is listed in docs/method.md.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pcr_seg.method.losses import IGNORE_INDEX, consistency_loss, cross_entropy, labeled_loss
from pcr_seg.method.mixing import UnlabeledViews, on_grid, paste, small_boxes
from pcr_seg.method.sampling import upsample
from pcr_seg.method.teacher import Teacher, pseudo_label


class FixMatch(nn.Module):
    """The network learns its own confident labels of weak views on strong views: other colors, and mixed by CutMix.

    Small boxes of another unlabeled batch are pasted into the strong views. As in the source, labels inside of the
    boxes come from the network in eval mode, labels outside of them from its forward in training mode.

    Args:
        threshold: least confidence of a pseudo-label that trains, in 0..1; 0.95 in the source, 0 on Cityscapes.
        supervised_loss: loss on labeled images, of logits (B, C, H, W) and labels (B, H, W).
        auxiliary_weight: weight of the same loss on the auxiliary head's logits, if the network has one.
        consistency_weight: weight of the loss on pseudo-labels.
        cutmix_probability: probability that a strong view is mixed, in 0..1.
        burn_in_epochs: epochs on labeled images alone at the start; none in the source.
    """

    ema_decay = 0.0  # the teacher is the network itself

    def __init__(
        self,
        *,
        threshold: float = 0.95,
        supervised_loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
        auxiliary_weight: float = 0.4,
        consistency_weight: float = 1.0,
        cutmix_probability: float = 0.5,
        burn_in_epochs: int = 0,
    ) -> None:
        super().__init__()
        self.threshold, self.cutmix_probability, self.burn_in_epochs = threshold, cutmix_probability, burn_in_epochs
        self.supervised_loss, self.auxiliary_weight = supervised_loss, auxiliary_weight
        self.consistency_weight = consistency_weight
        self.views = UnlabeledViews(color=True, other=True)
        self.weights = {"supervised": 1.0, "consistency": consistency_weight}
        self.figures: dict[str, Tensor] = {}

    def forward(self, student: nn.Module, teacher: Teacher, labeled: dict, unlabeled: dict | None) -> dict[str, Tensor]:
        """Return the losses of a step by name; without unlabeled images the supervised loss alone."""
        image, mask, n = labeled["image"], labeled["mask"], len(labeled["mask"])
        if unlabeled is None:
            return {"supervised": labeled_loss(self.supervised_loss, student(image), mask, self.auxiliary_weight)}

        # What is pasted into the boxes comes from another batch; the network labels it in eval mode.
        weak, strong, valid, other = (unlabeled[key] for key in ("weak", "strong", "valid", "other"))
        taught = teacher.label(other["weak"], other["valid"])
        boxes = small_boxes(len(weak), *weak.shape[-2:], probability=self.cutmix_probability, device=weak.device)
        strong = paste(strong[:, 0], boxes, other["strong"][:, 0])

        # One forward of labeled images and weak views, whose logits are the pseudo-labels; another of the strong views.
        output = student(torch.cat([image, weak]))
        strong_logits = upsample(student(strong).logits, mask.shape[-2:])
        teacher.observe(torch.cat([image, strong]))
        labels, confidence = pseudo_label(teacher.adjusted(upsample(output.logits[n:].detach(), mask.shape[-2:])))
        labels = labels.masked_fill(~valid, IGNORE_INDEX)

        boxes = on_grid(boxes, labels.shape[-2:])
        labels, confidence = (paste(x, boxes, inside) for x, inside in zip((labels, confidence), taught, strict=True))
        self.figures = {"confident": ((confidence >= self.threshold) & (labels != IGNORE_INDEX)).float().mean()}
        return {
            "supervised": labeled_loss(self.supervised_loss, output, mask, self.auxiliary_weight),
            "consistency": consistency_loss(strong_logits, labels, confidence, self.threshold, divisor="valid"),
        }
