"""What all networks of this project have in common, so that methods and engine need not know which one they use."""

from typing import NamedTuple

from torch import Tensor, nn


class SegmentorOutput(NamedTuple):
    """What a network returns.

    logits: (B, C, h, w) of the linear head, at the decoder's resolution.
    features: (B, D, h, w), which the prototypes are compared with.
    auxiliary: logits (B, C, h', w') of an auxiliary head, or None.
    """

    logits: Tensor
    features: Tensor
    auxiliary: Tensor | None


def parameter_groups(network: nn.Module, lr: float, head_lr_multiplier: float) -> list[dict]:
    """Return the optimizer's groups: trained parameters of `network.backbone` with `lr`, others with its multiple.

    A backbone with `layer_scales()` gives the factor of `lr` for each of its layers. Groups without parameters are left
    out.
    """
    backbone = network.backbone
    known = set(map(id, backbone.parameters()))
    scaled = backbone.layer_scales() if hasattr(backbone, "layer_scales") else [(list(backbone.parameters()), 1.0)]
    scaled.append(([p for p in network.parameters() if id(p) not in known], head_lr_multiplier))
    groups = [{"params": [p for p in layer if p.requires_grad], "lr": lr * scale} for layer, scale in scaled]
    return [group for group in groups if group["params"]]
