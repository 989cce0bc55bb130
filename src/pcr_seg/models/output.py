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
    """Trained parameters of the network's `backbone` at `lr`, all others at its multiple; no group without any.

    A backbone that offers `layer_scales()` says what its layers' rates are multiplied with.
    """
    backbone = network.backbone
    known = set(map(id, backbone.parameters()))
    scaled = backbone.layer_scales() if hasattr(backbone, "layer_scales") else [(list(backbone.parameters()), 1.0)]
    scaled.append(([p for p in network.parameters() if id(p) not in known], head_lr_multiplier))
    groups = [{"params": [p for p in layer if p.requires_grad], "lr": lr * scale} for layer, scale in scaled]
    return [group for group in groups if group["params"]]
