"""PCR with a second linear head where it has prototypes: the control that says what prototypes are worth."""

import torch
from torch import Tensor, nn

from pcr_seg.method.pcr_crossed import PCRCrossed
from pcr_seg.method.sampling import upsample


class SecondHead(PCRCrossed):
    """PCR whose second predictor is linear in the same features and learns by gradient. Arguments as PCRCrossed's."""

    def __init__(self, num_classes: int, feature_dim: int, **options) -> None:
        super().__init__(num_classes, feature_dim, **options | {"num_prototypes": 1})
        self.bank = LinearBank(num_classes, feature_dim, self.ema_decay)

    def statistics(self) -> dict[str, Tensor]:
        """Nothing: there are no prototypes to count."""
        return {}


class LinearBank(nn.Module):
    """A linear head that is asked as a bank is; what labels and is evaluated is the average of its weights.

    Args:
        num_classes: C.
        feature_dim: D.
        decay: of the average.
    """

    def __init__(self, num_classes: int, feature_dim: int, decay: float) -> None:
        super().__init__()
        self.decay, self.momentum = decay, decay
        self.head, self.averaged = nn.Linear(feature_dim, num_classes), nn.Linear(feature_dim, num_classes)
        self.averaged.load_state_dict(self.head.state_dict())
        self.averaged.requires_grad_(False)
        self.register_buffer("is_initialized", torch.tensor(True))

    def forward(self, features: Tensor) -> Tensor:
        """(..., D) -> logits (..., C)."""
        return self.head(features)

    def dense_logits(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, D, h, w) -> logits (B, C, H, W) of `size`."""
        return upsample(self.averaged(features.movedim(1, -1)).movedim(-1, 1), size)

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> Tensor:
        """Move the average towards the head; features and labels move it by their gradients."""
        torch._foreach_lerp_(list(self.averaged.parameters()), list(self.head.parameters()), 1 - self.decay)
        return features.new_zeros(self.head.out_features, 1)
