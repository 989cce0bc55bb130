"""What every network of this project gives and says, so that method and engine need not know which one it is."""

from typing import NamedTuple

from torch import Tensor, nn


class SegmentorOutput(NamedTuple):
    """What a network returns, all at the decoder's resolution.

    logits (B, C, h, w) of the linear head; features (B, D, h, w) that the prototypes live among; auxiliary
    logits (B, C, h', w') or None.
    """

    logits: Tensor
    features: Tensor
    auxiliary: Tensor | None


def parameter_groups(network: nn.Module, lr: float, head_lr_multiplier: float) -> list[dict]:
    """Trained parameters of the network's `backbone` at `lr`, all others at its multiple; no group without any."""
    known = set(map(id, network.backbone.parameters()))
    trained = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) in known], "lr": lr},
        {"params": [p for p in trained if id(p) not in known], "lr": lr * head_lr_multiplier},
    ]
    return [group for group in groups if group["params"]]
