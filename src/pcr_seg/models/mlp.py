"""A head of 1x1 convolutions on a backbone's maps. Few labels train it, and its features can be computed in advance."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from pcr_seg.method.sampling import upsample
from pcr_seg.models.output import SegmentorOutput, parameter_groups
from pcr_seg.pixels import exact

ENOUGH = 64  # images from which means and deviations of the channels are estimated


class MLP(nn.Module):
    """Backbone, one hidden layer that sees each cell of its maps alone, and a linear head.

    The maps are upsampled to the first one's size and concatenated: the raw features. These are standardised by each
    channel's mean and deviation over labeled images. Images are resized to the nearest sides of n * stride + 1 before
    the backbone sees them. Cells then lie on pixels 0, stride, 2 * stride ..., where upsampling with aligned corners
    puts them. Of networks that take only multiples of a size (ConvNeXt, Swin) they lie half a cell off at the borders.

    Every function that takes images also takes their raw features, since those of a frozen backbone are computed once
    and kept (`data/features.py`).

    Args:
        backbone: `backbone(images, maps)` returns the maps; it has `widths(maps)` and `output_stride`.
        num_classes: C.
        maps: which maps of the backbone, the finest first: by stride, or by place from the end (-1: the last).
        channels: channels of the hidden layer; None leaves it out, so that the head is linear in the raw features.
        projection: D, channels of a linear projection of the hidden layer that prototypes are compared with; None: they
            are compared with the hidden layer.
        dropout: probability in 0..1 that a channel of the hidden layer is dropped.
        channel_dropout: share of the feature channels that a strong view lacks (`perturb`), in 0..1.
        noise: noise of a strong view, in standard deviations of each channel.
        head_lr_multiplier: learning rate of everything behind the backbone, as a multiple of the backbone's.

    Attributes:
        feature_dim: D.
        width: channels of the raw features.
        in_channels: channels of the images, the backbone's.
        mean: RGB in 0..1 that images are normalised by, the backbone's; and `std`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        maps: Sequence[int] = (-2, -1),
        channels: int | None = 128,
        projection: int | None = None,
        dropout: float = 0.0,
        channel_dropout: float = 0.1,
        noise: float = 0.1,
        head_lr_multiplier: float = 1.0,
    ) -> None:
        super().__init__()
        self.maps, self.width = list(maps), sum(backbone.widths(maps))
        self.num_classes, self.channels, self.projection = num_classes, channels, projection
        self.dropout, self.channel_dropout, self.noise = dropout, channel_dropout, noise
        self.head_lr_multiplier = head_lr_multiplier
        self.in_channels, self.mean, self.std = backbone.in_channels, backbone.mean, backbone.std
        self.backbone = backbone
        self.register_buffer("feature_mean", torch.zeros(self.width, 1, 1))
        self.register_buffer("feature_std", torch.ones(self.width, 1, 1))
        self.register_buffer("standardized", torch.tensor(False))
        hidden = channels or self.width
        self.hidden = nn.Identity()
        if channels:
            self.hidden = nn.Sequential(nn.Conv2d(self.width, channels, 1), nn.ReLU(), nn.Dropout2d(dropout))
        self.linear_head = nn.Conv2d(hidden, num_classes, 1)
        self.projected = nn.Conv2d(hidden, projection, 1) if projection else nn.Identity()
        self.feature_dim = projection or hidden

    def forward(self, images: Tensor) -> SegmentorOutput:
        """Return the output, at the first map's size, for normalized images (B, 3, H, W) or their raw features."""
        return self.decode(self.encode(images))

    def raw(self, images: Tensor, size: tuple[int, int] | None = None) -> list[Tensor]:
        """Return the backbone's maps of normalized images, resized to the grid (`grid_size`) next to `size`."""
        size = grid_size(size or images.shape[-2:], self.backbone.output_stride)
        return self.backbone(upsample(images, size), self.maps)

    def join(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the raw features (B, `width`, h, w) of maps (B, c, h, w), at the first map's size."""
        size = maps[0].shape[-2:]
        return torch.cat([x if x.shape[-2:] == size else upsample(x, size) for x in maps], dim=1)

    def encode(self, images: Tensor) -> list[Tensor]:
        """Return the standardised features of normalized images, or of raw features, as a list of one map."""
        features = images if images.shape[1] == self.width else self.join(self.raw(images))
        return [(features - self.feature_mean) / self.feature_std]

    def decode(self, maps: list[Tensor]) -> SegmentorOutput:
        """Return the output for standardised features, which a method may have changed."""
        hidden = self.hidden(maps[0])
        return SegmentorOutput(self.linear_head(hidden), self.projected(hidden), None)

    def perturb(self, features: Tensor) -> Tensor:
        """Make a strong view of raw features (B, `width`, h, w): some channels at their mean, the others with noise."""
        kept = torch.rand(*features.shape[:2], 1, 1, device=features.device) >= self.channel_dropout
        noisy = torch.addcmul(features, torch.randn_like(features), self.noise * self.feature_std)
        return torch.where(kept, noisy, self.feature_mean)

    @torch.no_grad()
    def standardize(self, batches: Iterable[dict]) -> None:
        """Estimate each channel's mean and deviation from the first 64 images (`image`) of the batches, once."""
        if self.standardized:
            return
        self.eval()
        device = self.feature_mean.device
        seen, totals = 0, torch.zeros(3, self.width, dtype=exact(device), device=device)
        for batch in batches:
            images = batch["image"]
            features = (images if images.shape[1] == self.width else self.join(self.raw(images))).to(totals)
            by_channel = features.transpose(0, 1).flatten(1)
            totals[:2] += torch.stack([by_channel.sum(1), by_channel.square().sum(1)])
            totals[2] += by_channel.shape[1]
            seen += len(images)
            if seen >= ENOUGH:
                break
        total, squares, count = totals
        mean = total / count
        self.feature_mean.copy_(mean[:, None, None])
        self.feature_std.copy_((squares / count - mean**2).clamp(min=1e-8).sqrt()[:, None, None])
        self.standardized.fill_(True)
        self.train()

    def parameter_groups(self, lr: float) -> list[dict]:
        """Return the backbone's trained parameters with `lr`, all others with `lr` times `head_lr_multiplier`."""
        return parameter_groups(self, lr, self.head_lr_multiplier)


def grid_size(size: Sequence[int], stride: int) -> tuple[int, int]:
    """Return the nearest height and width of the form n * stride + 1, with n at least 1."""
    # In integers and with sym_max: while a network is exported, its sizes are symbols.
    height, width = (torch.sym_max(1, (side - 1 + stride // 2) // stride) * stride + 1 for side in size)
    return height, width
