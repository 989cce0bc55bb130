"""Backbones: any timm model that returns feature maps, for images of any size."""

import inspect
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Literal

import timm
import torch
import torch.nn.functional as F
from timm.layers import freeze_batch_norm_2d
from timm.models import group_parameters, model_entrypoint
from torch import Tensor, nn

from pcr_seg.method.sampling import upsample
from pcr_seg.models.weights import load_file, renamed
from pcr_seg.pixels import IMAGENET_MEAN, IMAGENET_STD

READING = {
    "checkpoint_path",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "cache_dir",
}  # timm's arguments that read weights instead of making layers
HUB = "hf-hub:"


class TimmBackbone(nn.Module):
    """A timm model that returns some of its feature maps: by default stride 4 (or the finest), last but one, and last.

    The maps of a plain ViT all have the stride of its patches. They are taken after each quarter of its blocks, with
    its final norm applied, and without class token and registers. Images may have any size:

    - Networks of strided convolutions take them as they are. Cells of a map then lie on pixels 0, stride, 2 * stride
      ...
    - For a plain ViT they are padded with 0, the mean color, evenly on both sides to whole patches. With sides of
      n * stride + 1 pixels the patches' centers lie on pixels 0, stride, 2 * stride ... as well.
    - For other networks that take only multiples of some size they are resized to the nearest one. Padding would shift
      maps of different strides against each other.

    Args:
        name: timm's name of the model.
        output_stride: stride of the last map; 8 and 16 dilate the late stages, if timm can. None: the model's own.
        weights: "timm" downloads timm's pretrained weights, "hf-hub:USER/NAME" those of a repository on the hub. A path
            is read as a file, the name of an installed package as the weights file in it. None: random weights.
        freeze_bn: use the BatchNorm layers' pretrained statistics and affine weights as constants, for batches that are
            too small to estimate them.
        freeze: what keeps its weights. A list: these of timm's submodules and parameters, by name. A number: the stem
            and so many blocks after it; 0: nothing. "all": the whole backbone, which then stays in eval mode, gets no
            gradients, and is shared by student and teacher. Early layers cost the most and change the least.
        layer_decay: factor from each layer's learning rate to that of the layer before, in 0..1.
        checkpointing: keep no activations inside of blocks, but compute them again in the backward pass.
        multi_grid: dilations of the 3x3 convolutions in the last stage's blocks at output stride 8, halved at 16
            (ResNets only); 4, 8, 16 in the paper's network.
        ceil_mode: round the size after the ResNet stem's max-pool up, as the reference network does.
        options: further arguments of timm's constructor; `out_indices` chooses a plain ViT's blocks, counted from 0.
        in_channels: channels of the images; timm sums or repeats pretrained weights for RGB to fit.
        mean: RGB means in 0..1 for normalising images; by default the weights' own, ImageNet's without weights.
        std: RGB deviations, likewise.

    Attributes:
        channels: channels of the maps that it returns by default.
        strides: strides of all its maps.
        plain: whether it is a plain ViT, whose maps all have the same stride.
        frozen: whether all of it keeps its weights.

    Raises:
        ValueError: timm has no such model; the model lacks an option; weights cannot be found or do not fit; or the
            model takes images of a single size.
    """

    def __init__(
        self,
        name: str,
        *,
        output_stride: int | None = None,
        weights: str | None = None,
        freeze_bn: bool = False,
        freeze: Literal["all"] | int | Sequence[str] = (),
        layer_decay: float = 1.0,
        checkpointing: bool = False,
        multi_grid: list[int] | None = None,
        ceil_mode: bool = False,
        options: dict | None = None,
        in_channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        # A checkpoint rebuilds the backbone from attributes that have the arguments' names.
        self.name, self.weights, self.freeze_bn = name, weights, freeze_bn
        self.frozen = freeze == "all"
        self.freeze = freeze if self.frozen or isinstance(freeze, int) else list(freeze)
        self.layer_decay, self.checkpointing = layer_decay, checkpointing
        self.multi_grid, self.ceil_mode = list(multi_grid or ()), ceil_mode
        self.options = dict(options or {})
        if reading := READING & set(self.options):
            raise ValueError(f"backbone.options.{reading.pop()}: weights are chosen by backbone.weights")
        self.net, self.blocks = create(name, weights, output_stride, {"in_chans": in_channels, **self.options})
        reductions = self.net.feature_info
        maps = [reductions[block] for block in self.blocks] if self.blocks else reductions.get_dicts()
        self.strides, self.all_channels = ([each[key] for each in maps] for key in ("reduction", "num_chs"))
        self.output_stride, self.plain = self.strides[-1], len(set(self.strides)) == 1
        self.in_channels = in_channels
        trained = self.net.pretrained_cfg if weights else {}
        self.mean = list(mean or trained.get("mean", IMAGENET_MEAN))
        self.std = list(std or trained.get("std", IMAGENET_STD))
        for block, at_stride_8 in zip(self.net.layer4 if multi_grid else (), self.multi_grid, strict=True):
            dilation = max(1, at_stride_8 * 8 // self.output_stride)
            block.conv2.dilation = block.conv2.padding = (dilation, dilation)
        if ceil_mode:
            self.net.maxpool.ceil_mode = True
        if freeze_bn:
            self.net = freeze_batch_norm_2d(self.net)
        for parameter in self.kept():
            parameter.requires_grad_(False)
        if checkpointing:
            self.compute_again()
        self.default_maps = [next((s for s in sorted(self.strides) if s >= 4), -1), -2, -1]
        self.channels = self.widths(self.default_maps)
        self.multiple = self.multiple_of_sizes()
        self.train()  # puts a frozen one into eval mode

    def train(self, mode: bool = True) -> "TimmBackbone":
        """Stay in eval mode if all of it is frozen: BatchNorm's statistics stay, and nothing is dropped."""
        return super().train(mode and not self.frozen)

    def place(self, which: int) -> int:
        """Return the index of a map that is named by its stride, or by its place from the end (-1: the last)."""
        return place(self.name, self.strides, which)

    def widths(self, maps: Sequence[int]) -> list[int]:
        """Return the channels of these maps, named as in `place`."""
        return [self.all_channels[self.place(which)] for which in maps]

    def forward(self, images: Tensor, maps: Sequence[int] | None = None) -> list[Tensor]:
        """Return maps (B, c, h, w) of normalized images (B, in_channels, H, W); `maps` names them as `place` does."""
        with torch.no_grad() if self.frozen else nullcontext():
            found = self.every_map(self.fitting(images))
        return [found[self.place(which)] for which in (self.default_maps if maps is None else maps)]

    def fitting(self, images: Tensor) -> Tensor:
        """Pad or resize images to a size that the network takes."""
        height, width = images.shape[-2:]
        if self.multiple == 1:
            return images
        if self.plain:
            down, right = -height % self.multiple, -width % self.multiple
            return F.pad(images, (right // 2, right - right // 2, down // 2, down - down // 2))
        return upsample(images, nearest_multiple((height, width), self.multiple))

    def every_map(self, images: Tensor) -> list[Tensor]:
        """Return all maps (B, c, h, w) of images that have a size that the network takes."""
        if self.blocks:
            chosen = {"indices": self.blocks, "norm": True, "intermediates_only": True}
            return self.net.forward_intermediates(images, output_fmt="NCHW", **chosen)
        found = self.net(images)
        last = getattr(self.net, "output_fmt", "NCHW") == "NHWC"
        return [x.permute(0, 3, 1, 2) for x in found] if last else found

    @torch.no_grad()
    def multiple_of_sizes(self) -> int:
        """Find out, by showing the network small images, what both sides of an image have to be multiples of."""
        stride, side = self.output_stride, self.net.pretrained_cfg.get("input_size", (3, 224, 224))[-1]
        device, training, reason = next(self.parameters()).device, self.net.training, None
        self.net.eval()
        # Images of stride + 1 pixels tell strided convolutions apart: their second cell begins at the last pixel.
        for multiple, size, cells in (
            (1, (stride + 1, stride + 1), (2, 2)),
            *((m, (2 * m, m), (2 * m // stride, m // stride)) for m in (stride, side)),
        ):
            try:
                last = self.every_map(torch.zeros(1, self.in_channels, *size, device=device))[-1]
            except Exception as error:  # networks refuse a size by assertions, or fail at shapes that do not fit
                reason = error
                continue
            if last.shape[-2:] == cells:
                self.net.train(training)
                return multiple
        raise ValueError(
            f"backbone.name={self.name}: takes images of one size alone, {side} x {side}, and training and prediction "
            f"need several; choose another network ({str(reason).splitlines()[0] if reason else 'odd maps'})"
        )

    def layers(self) -> list[list[nn.Parameter]]:
        """Return the parameters of the stem, then of each block after it, as timm groups them for layer-wise decay."""
        with torch.device("meta"):  # timm's patterns are for the names of the whole model
            whole = timm.create_model(self.name, **{k: v for k, v in self.options.items() if k != "out_indices"})
        if not hasattr(whole, "group_matcher"):
            raise ValueError(
                f"backbone.layer_decay, backbone.freeze: timm names no layers of {self.name}; set them to 1 and to the "
                "names of its parts"
            )
        groups = group_parameters(whole, whole.group_matcher(coarse=False))
        parameters = dict(self.net.named_parameters())
        named = ([renamed(name, parameters) for name in groups[layer]] for layer in sorted(groups))
        layers = [[parameters[name] for name in names if name in parameters] for names in named]
        return [layer for layer in layers if layer]

    def layer_scales(self) -> list[tuple[list[nn.Parameter], float]]:
        """Return the trained parameters of each layer, with the factor of its learning rate: 1 for the last layer."""
        layers = [list(self.parameters())] if self.layer_decay == 1 else self.layers()
        scaled = [(layer, self.layer_decay ** (len(layers) - 1 - i)) for i, layer in enumerate(layers)]
        return [([p for p in layer if p.requires_grad], scale) for layer, scale in scaled]

    def kept(self) -> list[nn.Parameter]:
        """Return the parameters that `freeze` means; raise a ValueError for a part that the model does not have."""
        if isinstance(self.freeze, int):
            layers = self.layers() if self.freeze else [[], []]
            if not 0 <= self.freeze < len(layers):
                raise ValueError(f"backbone.freeze={self.freeze}: {self.name} has {len(layers) - 1} blocks; or all")
            return [parameter for layer in layers[: self.freeze + 1] for parameter in layer]
        named = list(self.net.named_parameters())
        known = {part for name, _ in [*named, *self.net.named_buffers()] for part in parts_of(name)}
        if unknown := [] if self.frozen else [part for part in self.freeze if part not in known]:
            first = ", ".join(sorted({name.partition(".")[0] for name in known}))
            raise ValueError(f"backbone.freeze={unknown[0]}: {self.name} has no such part; it has {first} ...")
        return [parameter for name, parameter in named if self.frozen or {*self.freeze} & {*parts_of(name)}]

    def compute_again(self) -> None:
        """Turn on activation checkpointing; raise a ValueError if it would change the training, or timm has none."""
        if any(isinstance(norm, nn.modules.batchnorm._BatchNorm) for norm in self.net.modules()) and not self.frozen:
            raise ValueError(
                "backbone.checkpointing=true: BatchNorm's statistics would move twice, in the forward and again in the "
                "backward pass; set backbone.freeze_bn=true, or choose a network without BatchNorm"
            )
        try:
            self.net.set_grad_checkpointing(True)
        except (AttributeError, AssertionError) as error:
            raise ValueError(f"backbone.checkpointing=true: timm's {self.name} has none; set it to false") from error


def place(name: str, strides: Sequence[int], which: int) -> int:
    """Return the index of a network's map that is named by its stride, or by its place from the end (-1: the last).

    Raises:
        ValueError: the network has no such map.
    """
    if (which > 0 and which not in strides) or -which > len(strides):
        raise ValueError(
            f"model.maps: {name} has no map {which}; choose -1 ... -{len(strides)}, or strides {[*strides]}"
        )
    return list(strides).index(which) if which > 0 else which


def nearest_multiple(size: Sequence[int], multiple: int) -> tuple[int, int]:
    """Round height and width to multiples of `multiple`, at least to one of it."""
    height, width = (torch.sym_max(1, (side + multiple // 2) // multiple) * multiple for side in size)
    return height, width


def parts_of(name: str) -> list[str]:
    """Return a parameter's name and the names of the modules that contain it: a, a.b, a.b.c."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def create(name: str, weights: str | None, output_stride: int | None, options: dict) -> tuple[nn.Module, list[int]]:
    """Make timm's network that returns feature maps; for a plain ViT return the blocks to take them after, else [].

    The arguments are those of `TimmBackbone`, which names the errors as well.
    """
    if not timm.is_model(name):
        raise ValueError(f"backbone.name={name}: timm has no such model; timm.list_models() names them")
    options = dict.fromkeys(["dynamic_img_size"] if takes_sizes(name) else [], True) | options
    try:
        if takes_sizes(name) and (blocks := quarters(name, options)):
            options.pop("out_indices", None)
            net = filled(name, weights, num_classes=0, **options)
            found = net, net.prune_intermediate_layers(blocks, prune_norm=False, prune_head=True)
        else:
            found = dilated(name, weights, output_stride, options), []
    except (TypeError, AssertionError, RuntimeError, NotImplementedError) as error:
        reason = (str(error).splitlines() or ["it has no feature maps"])[0]
        raise ValueError(f"backbone.name={name}: timm cannot make it with {options} ({reason})") from error
    net, blocks = found
    own = (net.feature_info[blocks[-1]] if blocks else net.feature_info.get_dicts()[-1])["reduction"]
    if output_stride not in (None, own):
        raise ValueError(
            f"backbone.output_stride={output_stride}: timm cannot dilate {name}, whose last map has stride {own}; set "
            "backbone.output_stride=null"
        )
    return found


def takes_sizes(name: str) -> bool:
    """Whether timm's networks of this kind have the option `dynamic_img_size`, without which they take one size."""
    classes = [c for c in vars(sys.modules[model_entrypoint(name).__module__]).values() if isinstance(c, type)]
    return any("dynamic_img_size" in inspect.signature(c).parameters for c in classes if issubclass(c, nn.Module))


def quarters(name: str, options: dict) -> list[int]:
    """Return the last block of each quarter of a plain ViT, or those in `out_indices`; [] for any other network."""
    with torch.device("meta"):
        net = timm.create_model(name, features_only=True, **options)
    strides, depth = net.feature_info.reduction(), len(net.feature_info)
    if len(set(strides)) > 1:
        return []
    return list(options.get("out_indices", sorted({max(0, depth * part // 4 - 1) for part in (1, 2, 3, 4)})))


def dilated(name: str, weights: str | None, output_stride: int | None, options: dict) -> nn.Module:
    """Make a network that returns maps with this output stride, or with its own if timm cannot dilate it."""
    if output_stride is not None:
        try:
            return filled(name, weights, features_only=True, output_stride=output_stride, **options)
        except (TypeError, AssertionError, NotImplementedError):  # timm's networks differ in which they raise
            pass
    return filled(name, weights, features_only=True, **options)


def filled(name: str, weights: str | None, **options) -> nn.Module:
    """Make a timm model and fill it with weights: timm's, a hub's, a file's or a package's; None leaves it random."""
    if weights != "timm" and not str(weights).startswith(HUB):
        model = timm.create_model(name, pretrained=False, **options)
        if weights is not None:
            load_file(model, name, weights)
        return model
    source = {} if weights == "timm" else {"hf_hub_id": weights.removeprefix(HUB), "source": "hf-hub"}
    with torch.device("meta"):
        timm.create_model(name, **options)  # fails here if the options are wrong, so below only the download can
    try:
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=source, **options)
    except Exception as error:  # the hub client's errors have no common base
        raise ValueError(
            f"backbone.weights={weights}: the weights of {name} could not be downloaded ({type(error).__name__}); "
            "give a local file with backbone.weights=FILE, or start from random with backbone.weights=null"
        ) from error
