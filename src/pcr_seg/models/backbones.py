"""Backbones: any timm model that returns feature maps."""

from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from timm.layers import freeze_batch_norm_2d
from timm.models import adapt_input_conv
from torch import Tensor, nn

from pcr_seg.pixels import IMAGENET_MEAN, IMAGENET_STD

READING = {
    "checkpoint_path",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "cache_dir",
}  # files, not layers


class TimmBackbone(nn.Module):
    """A timm model as three feature maps: stride 4, last but one, and last.

    Args:
        name: timm's name of the model.
        output_stride: stride of the last map; 8 and 16 dilate the late stages (32 everywhere works).
        weights: "timm" downloads timm's pretrained weights, a file is read, null starts from random.
        freeze_bn: use the BatchNorm layers' pretrained statistics and affine weights as constants, for
            batches too small to estimate them.
        freeze: names of timm's submodules that keep their weights: early ones cost the most and change the least.
        multi_grid: dilations at stride 8 of the 3x3 convolutions in the last stage's blocks (ResNets only): 4, 8, 16 in
            the paper's network. At stride 16 they are halved.
        ceil_mode: round the ResNet stem's max-pool up, as the reference network does.
        options: further arguments of timm's constructor.
        in_channels: of the images; pretrained weights for RGB are summed or repeated to fit (timm's rule).
        mean: RGB in 0..1 that images are normalised by; by default the weights' own, ImageNet's without weights.
        std: likewise.

    Attributes:
        channels: of the three maps.

    Raises:
        ValueError: unknown name, or weights that cannot be had or do not fit.
    """

    def __init__(
        self,
        name: str,
        *,
        output_stride: int = 16,
        weights: str | None = None,
        freeze_bn: bool = False,
        freeze: Sequence[str] = (),
        multi_grid: list[int] | None = None,
        ceil_mode: bool = False,
        options: dict | None = None,
        in_channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        # A checkpoint rebuilds the backbone from these.
        self.name, self.output_stride, self.weights, self.freeze_bn = name, output_stride, weights, freeze_bn
        self.freeze, self.multi_grid, self.ceil_mode = list(freeze), list(multi_grid or ()), ceil_mode
        self.options = dict(options or {})
        if reading := READING & set(self.options):
            raise ValueError(f"backbone.options.{reading.pop()}: weights are chosen by backbone.weights")
        maps = {"features_only": True, "output_stride": output_stride, "in_chans": in_channels}
        self.net = create(name, weights, **maps, **self.options)
        self.in_channels = in_channels
        trained = self.net.pretrained_cfg if weights else {}
        self.mean = list(mean or trained.get("mean", IMAGENET_MEAN))
        self.std = list(std or trained.get("std", IMAGENET_STD))
        for block, at_stride_8 in zip(self.net.layer4 if multi_grid else (), self.multi_grid, strict=True):
            dilation = max(1, at_stride_8 * 8 // output_stride)
            block.conv2.dilation = block.conv2.padding = (dilation, dilation)
        if ceil_mode:
            self.net.maxpool.ceil_mode = True
        if freeze_bn:
            self.net = freeze_batch_norm_2d(self.net)
        for name in freeze:
            self.net.get_submodule(name).requires_grad_(False)
        self._levels = [self.net.feature_info.reduction().index(4), -2, -1]
        self.channels = [self.net.feature_info.channels()[level] for level in self._levels]

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, in_channels, H, W) normalized images -> [(B, c, H/4, W/4), (B, c', h, w), (B, c'', h, w)]."""
        maps = self.net(images)
        return [maps[level] for level in self._levels]


def create(name: str, weights: str | None, **options) -> nn.Module:
    """Make a timm model with weights from timm, from a file, or none.

    A file is read with weights_only; it may hold more than the feature maps need (a classifier), not less.
    """
    if not timm.is_model(name):
        raise ValueError(f"backbone.name={name}: timm has no such model; timm.list_models() names them")
    if weights == "timm":
        try:
            return timm.create_model(name, pretrained=True, **options)
        except Exception as error:  # the hub client's errors have no common base
            raise ValueError(
                f"backbone.weights=timm: the weights of {name} could not be downloaded ({type(error).__name__}); "
                "give a local file with backbone.weights=FILE, or start from random with backbone.weights=null"
            ) from error
    model = timm.create_model(name, pretrained=False, **options)
    if weights is not None:
        load_file(model, Path(weights))
    return model


def load_file(model: nn.Module, path: Path) -> None:
    """Load a file of tensors into a model; names the model lacks (a classifier's) are left out."""
    if not path.is_file():
        raise FileNotFoundError(f"backbone.weights={path}: no such file; give a .pth file, timm, or null")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
        for name, own in model.state_dict().items():
            if (
                name in state and own.ndim == 4 and own.shape[1:2] != state[name].shape[1:2] == (3,)
            ):  # first convolution
                state[name] = adapt_input_conv(own.shape[1], state[name])
    except Exception as error:  # torch's own message advises to load the file unsafely
        raise ValueError(
            f"backbone.weights={path}: not a file of named tensors ({type(error).__name__}); save a state dict there"
        ) from error
    try:
        missing, _ = model.load_state_dict(state, strict=False)
    except Exception as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(f"backbone.weights={path}: weights of another network ({reason})") from error
    if missing:
        raise ValueError(
            f"backbone.weights={path}: lacks {len(missing)} tensors of this backbone, first {missing[0]}; "
            "these are weights of another network"
        )
