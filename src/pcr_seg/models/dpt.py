"""DPT, the decoder of UniMatch V2: four maps of a plain ViT are resized to a pyramid and fused from coarse to fine.

Source: Ranftl et al., ICCV 2021; as in LiheYoung/UniMatch-V2 @70fe066, `model/semseg/dpt.py`, without BatchNorm.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from pcr_seg.method.sampling import upsample
from pcr_seg.models.backbones import nearest_multiple
from pcr_seg.models.output import SegmentorOutput, parameter_groups

SMALL = (64, (48, 96, 192, 384))
WIDTHS = {  # ViT's width: width of fusion, and widths of the four maps before it; UniMatch V2's for ViT-S, B, L, G
    384: SMALL,
    768: (128, (96, 192, 384, 768)),
    1024: (256, (256, 512, 1024, 1024)),
    1536: (384, (1536, 1536, 1536, 1536)),
}


class DPT(nn.Module):
    """Plain ViT, DPT decoder and linear head; prototypes are compared with the last convolution's features.

    Images are resized to the nearest multiple of the patch, as UniMatch V2 does in evaluation.

    Args:
        backbone: a plain ViT with at least four maps (`plain`, `strides`, `widths(maps)`).
        num_classes: C.
        channels: D, channels of fusion and features; None: 64, 128, 256, 384 for a ViT-S, B, L, G, and 64 for others.
        projections: channels of the four maps before fusion; None: the source's, for other ViTs those of a ViT-S.
        head_lr_multiplier: learning rate of everything behind the backbone, as a multiple of the backbone's.

    Attributes:
        feature_dim: D.
        in_channels: channels of the images, the backbone's.
        mean: RGB in 0..1 that images are normalised by, the backbone's; and `std`.

    Raises:
        ValueError: the backbone is no plain ViT, or has fewer than four maps.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        channels: int | None = None,
        projections: Sequence[int] | None = None,
        head_lr_multiplier: float = 1.0,
    ) -> None:
        super().__init__()
        if not backbone.plain or len(backbone.strides) < 4:
            raise ValueError(
                f"model=dpt: wants four maps of a plain ViT, and {backbone.name} has maps of strides "
                f"{backbone.strides}; choose model=deeplab, smp, mlp or linear"
            )
        width = backbone.widths((-1,))[0]
        fused, projected = WIDTHS.get(width, SMALL)
        self.channels, self.projections = channels or fused, list(projections or projected)
        self.num_classes, self.feature_dim = num_classes, self.channels
        self.head_lr_multiplier = head_lr_multiplier
        self.in_channels, self.mean, self.std = backbone.in_channels, backbone.mean, backbone.std
        self.backbone = backbone
        first, second, third, fourth = self.projections
        self.projected = nn.ModuleList(nn.Conv2d(width, each, 1) for each in self.projections)
        self.resized = nn.ModuleList(
            [
                nn.ConvTranspose2d(first, first, 4, stride=4),
                nn.ConvTranspose2d(second, second, 2, stride=2),
                nn.Identity(),
                nn.Conv2d(fourth, fourth, 3, stride=2, padding=1),
            ]
        )
        self.narrowed = nn.ModuleList(
            nn.Conv2d(each, self.channels, 3, padding=1, bias=False) for each in (first, second, third, fourth)
        )
        self.fusions = nn.ModuleList(Fusion(self.channels, alone=level == 3) for level in range(4))
        self.features = nn.Sequential(nn.Conv2d(self.channels, self.channels, 3, padding=1), nn.ReLU(inplace=True))
        self.linear_head = nn.Conv2d(self.channels, num_classes, 1)

    def forward(self, images: Tensor) -> SegmentorOutput:
        """Return the output for normalized images (B, 3, H, W), with 8 x 8 cells for each patch."""
        return self.decode(self.encode(images))

    def encode(self, images: Tensor) -> list[Tensor]:
        """Return the backbone's last four maps, all of one size, of normalized images (B, 3, H, W)."""
        size = nearest_multiple(images.shape[-2:], self.backbone.output_stride)
        return self.backbone(upsample(images, size), (-4, -3, -2, -1))

    def decode(self, maps: list[Tensor]) -> SegmentorOutput:
        """Return the output for the backbone's maps, which a method may have changed."""
        steps = zip(self.projected, self.resized, self.narrowed, maps, strict=True)
        levels = [narrow(resize(project(x))) for project, resize, narrow, x in steps]
        sizes = [level.shape[-2:] for level in levels]
        sizes.insert(0, [2 * side for side in sizes[0]])
        fused = None
        for level in (3, 2, 1, 0):
            fused = self.fusions[level](levels[level], fused, sizes[level])
        features = self.features(fused)
        return SegmentorOutput(self.linear_head(features), features, None)

    def parameter_groups(self, lr: float) -> list[dict]:
        """Return the backbone's trained parameters with `lr`, all others with `lr` times `head_lr_multiplier`."""
        return parameter_groups(self, lr, self.head_lr_multiplier)


class Fusion(nn.Module):
    """Adds a level of the pyramid to the sum of the coarser ones, and resizes it to the next finer level's size."""

    def __init__(self, channels: int, *, alone: bool) -> None:
        super().__init__()
        self.level = None if alone else Residual(channels)
        self.both = Residual(channels)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, level: Tensor, coarser: Tensor | None, size: Sequence[int]) -> Tensor:
        """Return (B, c, *size) for a level (B, c, h, w) and the coarser sum of its size; None if it is the coarsest."""
        both = level if coarser is None else coarser + self.level(level)
        return self.out(upsample(self.both(both), tuple(size)))


class Residual(nn.Module):
    """Two 3x3 convolutions with a ReLU before each, whose result is added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, c, h, w) to the same shape."""
        return x + self.second(F.relu(self.first(F.relu(x))))
