"""PCR with a second linear head in place of the prototypes: a control that shows what the prototypes are worth."""

import torch
from torch import Tensor, nn

from pcr_seg.method.pcr_crossed import PCRCrossed
from pcr_seg.method.sampling import upsample


class SecondHead(PCRCrossed):
    """PCR whose second predictor is a linear layer on the same features, trained by gradient.

    Arguments are those of `PCRCrossed`; those about prototypes have no effect.
    """

    def __init__(self, num_classes: int, feature_dim: int, **options) -> None:
        super().__init__(num_classes, feature_dim, **options | {"num_prototypes": 1})
        self.bank = LinearBank(num_classes, feature_dim, self.ema_decay)

    def statistics(self) -> dict[str, Tensor]:
        """Return nothing: there are no prototypes to count."""
        return {}


class LinearBank(nn.Module):
    """A linear head with the interface of `PrototypeBank`.

    `forward` uses the trained weights; `dense_logits`, for pseudo-labels and evaluation, their moving average.

    Args:
        num_classes: C.
        feature_dim: D.
        decay: decay of the moving average, in 0..1.
    """

    def __init__(self, num_classes: int, feature_dim: int, decay: float) -> None:
        super().__init__()
        self.decay, self.momentum = decay, decay
        self.head, self.averaged = nn.Linear(feature_dim, num_classes), nn.Linear(feature_dim, num_classes)
        self.averaged.load_state_dict(self.head.state_dict())
        self.averaged.requires_grad_(False)
        self.register_buffer("is_initialized", torch.tensor(True))

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (..., C) of features (..., D)."""
        return self.head(features)

    def dense_logits(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Return logits (B, C, H, W) of features (B, D, h, w), upsampled to `size` (H, W)."""
        return upsample(self.averaged(features.movedim(1, -1)).movedim(-1, 1), size)

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> Tensor:
        """Move the average towards the head, which features and labels have moved by their gradients; count nothing."""
        torch._foreach_lerp_(list(self.averaged.parameters()), list(self.head.parameters()), 1 - self.decay)
        return features.new_zeros(self.head.out_features, 1)
