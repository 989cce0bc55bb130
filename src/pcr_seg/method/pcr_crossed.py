"""PCR with pseudo-labels of both of the teacher's heads: each teaches the other, or their mean teaches both.

Not in the paper. The idea: the linear head prefers classes that are frequent among the labels, and the prototype head,
which asks for the nearest prototype, does not know frequencies. So each can correct the other's mistakes.
"""

import torch
from torch import Tensor

from pcr_seg.method.losses import IGNORE_INDEX
from pcr_seg.method.pcr import PCR
from pcr_seg.method.teacher import Teacher, pseudo_label

CHOICES = ("linear", "average", "crossed")


class PCRCrossed(PCR):
    """PCR with pseudo-labels of both heads.

    Args:
        num_classes: C.
        feature_dim: D, channels of the student's features.
        pseudo_labels: "crossed": each of the student's heads learns what the teacher's other head predicts; "average":
            both learn the mean of the teacher's heads; "linear": both learn the teacher's linear head, as in `PCR`.
        pcr: further arguments of `PCR`.

    Raises:
        ValueError: `pseudo_labels` is none of these.
    """

    def __init__(self, num_classes: int, feature_dim: int, *, pseudo_labels: str = "crossed", **pcr: object) -> None:
        if pseudo_labels not in CHOICES:
            raise ValueError(f"method.pseudo_labels={pseudo_labels}: choose one of {', '.join(CHOICES)}")
        super().__init__(num_classes, feature_dim, **pcr)
        self.pseudo_labels = pseudo_labels

    @torch.no_grad()
    def label(self, teacher: Teacher, images: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Return pseudo-labels and confidence (B, 2, H, W): for the linear head, then for the prototype head."""
        if self.pseudo_labels == "linear" or self.prototype_weight == 0:
            return super().label(teacher, images, valid)
        linear, features = teacher.logits(images, valid.shape[-2:])
        prototype = self.bank.dense_logits(features, valid.shape[-2:])
        if self.pseudo_labels == "average":
            linear = prototype = ((linear.softmax(dim=1) + prototype.softmax(dim=1)) / 2).log()
        pairs = zip(pseudo_label(prototype), pseudo_label(linear), strict=True)  # each learns the other's
        labels, confidence = (torch.stack(pair, dim=1) for pair in pairs)
        return labels.masked_fill(~valid[:, None], IGNORE_INDEX), confidence.masked_fill(~valid[:, None], 0)
