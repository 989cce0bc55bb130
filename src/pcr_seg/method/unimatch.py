"""UniMatch: FixMatch with two strong views and a view with dropped features.

Source: Yang et al., CVPR 2023. What differs from its code is listed in docs/method.md.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcr_seg.method.losses import consistency_loss, cross_entropy, labeled_loss
from pcr_seg.method.mixing import UnlabeledViews, cutmix
from pcr_seg.method.sampling import upsample
from pcr_seg.method.teacher import Teacher


class UniMatch(nn.Module):
    """The network's own labels of weak views train two strong views, and the weak view with half of its features.

    The published losses weigh labels 1/2, the strong views 1/4 together and the features 1/4; their common factor is
    left to the learning rate. The student needs `encode(images)` -> maps and `decode(maps)` -> output.

    Args:
        threshold: least confidence of a pseudo-label that trains, in 0..1.
        supervised_loss: labeled loss of logits (B, C, H, W) and labels (B, H, W).
        auxiliary_weight: of the same loss on the auxiliary head's logits, where the network has one.
        consistency_weight: of the loss of both strong views together.
        feature_weight: of the loss of the view with dropped features.
        cutmix_probability: of each strong view of a batch being mixed.
        burn_in_epochs: epochs on labels alone before; none in the published method.
    """

    ema_decay = 0.0  # the teacher is the network itself

    def __init__(
        self,
        *,
        threshold: float = 0.95,
        supervised_loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
        auxiliary_weight: float = 0.4,
        consistency_weight: float = 0.5,
        feature_weight: float = 0.5,
        cutmix_probability: float = 0.5,
        burn_in_epochs: int = 0,
    ) -> None:
        super().__init__()
        self.threshold, self.cutmix_probability, self.burn_in_epochs = threshold, cutmix_probability, burn_in_epochs
        self.supervised_loss, self.auxiliary_weight = supervised_loss, auxiliary_weight
        self.consistency_weight, self.feature_weight = consistency_weight, feature_weight
        self.views = UnlabeledViews(strong=2, color=True)
        self.weights = {"supervised": 1.0, "consistency": consistency_weight, "features": feature_weight}
        self.figures: dict[str, Tensor] = {}

    def forward(self, student: nn.Module, teacher: Teacher, labeled: dict, unlabeled: dict | None) -> dict[str, Tensor]:
        """The losses of a step."""
        image, mask, n = labeled["image"], labeled["mask"], len(labeled["mask"])
        if unlabeled is None:
            return {"supervised": labeled_loss(self.supervised_loss, student(image), mask, self.auxiliary_weight)}

        # Each strong view is mixed with boxes of its own.
        weak, size = unlabeled["weak"], mask.shape[-2:]
        taught = teacher.label(weak, unlabeled["valid"])
        mixed = [cutmix(view, *taught, self.cutmix_probability) for view in unlabeled["strong"].unbind(1)]
        strong, labels, confidence = (torch.cat(parts) for parts in zip(*mixed, strict=True))
        self.figures = {"confident": (confidence >= self.threshold).float().mean()}

        images = torch.cat([image, strong])
        output = student(images)
        logits = upsample(output.logits, size)
        dropped = upsample(student.decode(drop_features(student.encode(weak))).logits, size)
        teacher.observe(images)
        return {
            "supervised": labeled_loss(self.supervised_loss, output, mask, self.auxiliary_weight, logits=logits[:n]),
            "consistency": consistency_loss(logits[n:], labels, confidence, self.threshold),
            "features": consistency_loss(dropped, *taught, self.threshold),
        }


def drop_features(maps: list[Tensor]) -> list[Tensor]:
    """Half of the first and the last map's channels set to zero, at random for each image (feature perturbation).

    Those between reach no logits but an auxiliary head's.
    """
    first, *between, last = maps
    return [F.dropout2d(first, 0.5), *between, F.dropout2d(last, 0.5)]
