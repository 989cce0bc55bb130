"""PCR in which both heads of the teacher label: each for the other, or both together. Not the paper's.

The linear head leans towards the classes that are frequent among the labels. The nearest class mean knows nothing of
their frequencies, so what it says is news to the linear head, and the other way round.
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
        pseudo_labels: "crossed": each of the student's heads learns what the teacher's other head says; "average": both
            learn the mean of the teacher's heads; "linear": both learn the linear head's, as in `PCR`.
        pcr: arguments of `PCR`.

    Raises:
        ValueError: another choice.
    """

    def __init__(self, num_classes: int, feature_dim: int, *, pseudo_labels: str = "crossed", **pcr: object) -> None:
        if pseudo_labels not in CHOICES:
            raise ValueError(f"method.pseudo_labels={pseudo_labels}: choose one of {', '.join(CHOICES)}")
        super().__init__(num_classes, feature_dim, **pcr)
        self.pseudo_labels = pseudo_labels

    @torch.no_grad()
    def label(self, teacher: Teacher, images: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Pseudo-labels and confidence (B, 2, H, W), for the linear head and for the prototype head."""
        if self.pseudo_labels == "linear" or self.prototype_weight == 0:
            return super().label(teacher, images, valid)
        linear, features = teacher.logits(images, valid.shape[-2:])
        prototype = self.bank.dense_logits(features, valid.shape[-2:])
        if self.pseudo_labels == "average":
            linear = prototype = ((linear.softmax(dim=1) + prototype.softmax(dim=1)) / 2).log()
        pairs = zip(pseudo_label(prototype), pseudo_label(linear), strict=True)  # each learns the other's
        labels, confidence = (torch.stack(pair, dim=1) for pair in pairs)
        return labels.masked_fill(~valid[:, None], IGNORE_INDEX), confidence.masked_fill(~valid[:, None], 0)
