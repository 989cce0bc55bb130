"""DeepLabv3+ as the paper uses it: prototypes are compared with the concatenation of its decoder's two branches.

Source: reference code `core/models/decoder.py` (dec_deeplabv3_plus, rep_clf on), equal to U2PL's.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcr_seg.models.output import SegmentorOutput, parameter_groups


class DeepLab(nn.Module):
    """Backbone, ASPP decoder and linear head.

    Args:
        backbone: returns three maps: stride 4 (or the finest), last but one, last; has their `channels`.
        num_classes: C.
        channels: width of every decoder layer; features have D = 2 * channels (paper: 256, so 512).
        rates: dilations of ASPP's three branches: 12, 24, 36 at output stride 8; half of them at 16.
        dropout: probability in 0..1 that a channel is dropped, after each 3x3 stage of decoder and head.
        pooled_norm: BatchNorm in ASPP's image-pooling branch. That layer sees one value per channel and image; with few
            images in a batch its running statistics are too poor for evaluation, so turn it off.
        auxiliary: add a head on the last but one backbone map (paper: Cityscapes only).
        head_lr_multiplier: learning rate of everything behind the backbone, as a multiple of the backbone's.

    Attributes:
        feature_dim: D.
        in_channels: channels of the images, the backbone's.
        mean: RGB in 0..1 that images are normalised by, the backbone's; and `std`.

    Raises:
        ValueError: the backbone is a plain ViT, which has no fine map.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        channels: int = 256,
        rates: Sequence[int] = (12, 24, 36),
        dropout: float = 0.1,
        pooled_norm: bool = True,
        auxiliary: bool = False,
        head_lr_multiplier: float = 1.0,
    ) -> None:
        super().__init__()
        if getattr(backbone, "plain", False):
            raise ValueError(
                f"model=deeplab: {backbone.name} has maps of stride {backbone.output_stride} alone, and this decoder "
                "wants one of stride 4; choose model=dpt, mlp or linear"
            )
        low, middle, high = backbone.channels
        self.num_classes, self.channels, self.feature_dim = num_classes, channels, 2 * channels
        self.rates, self.dropout, self.pooled_norm = list(rates), dropout, pooled_norm
        self.auxiliary, self.head_lr_multiplier = auxiliary, head_lr_multiplier
        self.in_channels, self.mean, self.std = backbone.in_channels, backbone.mean, backbone.std
        self.backbone = backbone
        self.aspp = ASPP(high, channels, rates, pooled_norm)
        self.head = conv_stage((2 + len(rates)) * channels, channels, 3, bias=False, dropout=dropout)
        self.low_conv = conv_stage(low, channels, 1)
        self.linear_head = nn.Sequential(
            conv_stage(2 * channels, channels, 3, dropout=dropout),
            conv_stage(channels, channels, 3, dropout=dropout),
            nn.Conv2d(channels, num_classes, 1),
        )
        self.auxiliary_head = None
        if auxiliary:
            self.auxiliary_head = nn.Sequential(
                conv_stage(middle, channels, 3, dropout=dropout), nn.Conv2d(channels, num_classes, 1)
            )

    def forward(self, images: Tensor) -> SegmentorOutput:
        """Return the output for normalized images (B, 3, H, W): a SegmentorOutput with h about H/4."""
        return self.decode(self.encode(images))

    def encode(self, images: Tensor) -> list[Tensor]:
        """Return the backbone's three maps of normalized images (B, 3, H, W)."""
        return self.backbone(images)

    def decode(self, maps: list[Tensor]) -> SegmentorOutput:
        """Return the output for the backbone's maps, which a method may have changed."""
        low, middle, high = maps
        high = F.interpolate(self.head(self.aspp(high)), low.shape[-2:], mode="bilinear", align_corners=True)
        features = torch.cat([self.low_conv(low), high], dim=1)
        auxiliary = self.auxiliary_head(middle) if self.auxiliary_head is not None else None
        return SegmentorOutput(self.linear_head(features), features, auxiliary)

    def parameter_groups(self, lr: float) -> list[dict]:
        """Return the backbone's trained parameters with `lr`, all others with `lr` times `head_lr_multiplier`."""
        return parameter_groups(self, lr, self.head_lr_multiplier)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: an image-pooling, a 1x1 and dilated 3x3 branches, concatenated in this order."""

    def __init__(self, in_channels: int, channels: int, rates: Sequence[int], pooled_norm: bool) -> None:
        super().__init__()
        self.pooled = conv_stage(in_channels, channels, 1, bias=not pooled_norm, norm=pooled_norm)
        self.branches = nn.ModuleList([conv_stage(in_channels, channels, 1, bias=False)])
        self.branches.extend(conv_stage(in_channels, channels, 3, bias=False, dilation=rate) for rate in rates)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, h, w) to (B, (2 + len(rates)) * channels, h, w)."""
        pooled = self.pooled(x.mean(dim=(2, 3), keepdim=True)).expand(-1, -1, *x.shape[-2:])
        return torch.cat([pooled, *(branch(x) for branch in self.branches)], dim=1)


def conv_stage(
    in_channels: int,
    channels: int,
    kernel: int,
    *,
    bias: bool = True,
    norm: bool = True,
    dilation: int = 1,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Return a convolution that keeps the size, then BatchNorm, ReLU and dropout of channels, where asked for."""
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2 * dilation, dilation=dilation, bias=bias)
    ]
    layers += [nn.BatchNorm2d(channels)] if norm else []
    layers += [nn.ReLU(inplace=True)]
    layers += [nn.Dropout2d(dropout)] if dropout else []
    return nn.Sequential(*layers)


def pointwise_by_onednn(network: nn.Module) -> None:
    """Make torch use oneDNN for 1x1 convolutions also on a single CPU thread, which halves their time.

    On one thread torch 2.14 computes them as plain matrix products for batches under 16, unless they are dilated. For a
    1x1 kernel a dilation changes nothing else, so each gets one.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == layer.stride == (1, 1):
            layer.dilation = (2, 2)
