"""PCR with a second linear head in place of the prototypes: a control that shows what the prototypes are worth."""

from collections.abc import Iterable

import torch
from torch import Generator, Tensor, nn

from pcr_seg.method.losses import cross_entropy, labeled_loss
from pcr_seg.method.pcr_crossed import PCRCrossed
from pcr_seg.method.sampling import at_points, jittered_grid, sample_features, upsample
from pcr_seg.method.teacher import Teacher


class SecondHead(PCRCrossed):
    """PCR whose second predictor is a linear layer on the same features, trained by gradient.

    It learns labels from the first step on: as prototypes start from the labeled features, it should know the classes
    when the first unlabeled images come. Arguments are those of `PCRCrossed`. `prototype_momentum` is the decay of the
    head's average; others about prototypes have no effect.
    """

    def __init__(self, num_classes: int, feature_dim: int, **options) -> None:
        super().__init__(num_classes, feature_dim, **options | {"num_prototypes": 1})
        self.bank = LinearBank(num_classes, feature_dim, self.prototype_momentum)

    def forward(self, student: nn.Module, teacher: Teacher, labeled: dict, unlabeled: dict | None) -> dict[str, Tensor]:
        """Return the losses by name; without unlabeled images those of both heads on labels."""
        if unlabeled is not None:
            return super().forward(student, teacher, labeled, unlabeled)
        output, mask = student(labeled["image"]), labeled["mask"]
        supervised = labeled_loss(self.supervised_loss, output, mask, self.auxiliary_weight)
        points = jittered_grid(*mask.shape[-2:], self.grid_cells, device=mask.device)
        scores = self.bank(sample_features(output.features, points, mask.shape[-2:])).transpose(1, 2)
        return {"supervised": supervised, "prototype": cross_entropy(scores, at_points(mask, points))}

    @torch.no_grad()
    def begin(self, student: nn.Module, labeled_batches: Iterable[dict], generator: Generator) -> None:
        """Start the head's average from the head, once."""
        if not self.bank.is_initialized:
            self.bank.averaged.load_state_dict(self.bank.head.state_dict())
            self.bank.is_initialized.fill_(True)

    def statistics(self) -> dict[str, Tensor]:
        """Return nothing: there are no prototypes to count."""
        return {}


class LinearBank(nn.Module):
    """A linear head with the interface of `PrototypeBank`.

    `forward` uses the trained weights; `dense_logits`, for pseudo-labels and evaluation, their moving average.

    Args:
        num_classes: C.
        feature_dim: D.
        momentum: share of the average kept in an update, in 0..1.
    """

    def __init__(self, num_classes: int, feature_dim: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.head, self.averaged = nn.Linear(feature_dim, num_classes), nn.Linear(feature_dim, num_classes)
        self.averaged.requires_grad_(False)
        self.register_buffer("is_initialized", torch.tensor(False))

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (..., C) of features (..., D)."""
        return self.head(features)

    def dense_logits(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Return logits (B, C, H, W) of features (B, D, h, w), upsampled to `size` (H, W)."""
        return upsample(self.averaged(features.movedim(1, -1)).movedim(-1, 1), size)

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> Tensor:
        """Move the average towards the head, which features and labels have moved by their gradients; count nothing."""
        torch._foreach_lerp_(list(self.averaged.parameters()), list(self.head.parameters()), 1 - self.momentum)
        return features.new_zeros(self.head.out_features, 1)
