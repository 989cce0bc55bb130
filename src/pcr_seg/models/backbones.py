"""Backbones: any timm model that returns feature maps, at images of any size."""

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
}  # files, not layers
HUB = "hf-hub:"


class TimmBackbone(nn.Module):
    """A timm model as a few of its feature maps: by default stride 4 (or its finest), last but one, and last.

    The maps of a plain ViT all have the stride of its patches: those after each quarter of its blocks, with its final
    norm applied, without class token and registers. Images come in any size:

    - strided convolutions take them as they are: cells lie on pixels 0, stride, 2 * stride ...;
    - for a plain ViT they are padded with 0, the mean color, evenly to whole patches. Shown in n * stride + 1 pixels,
      the patches' centers lie on pixels 0, stride ... as well; multiples of the stride are shown as they are;
    - other networks that want multiples of something get the nearest such size, resized: padding would shift maps of
      different strides against each other.

    Args:
        name: timm's name of the model.
        output_stride: stride of the last map; 8 and 16 dilate the late stages where timm can. None: the model's own.
        weights: "timm" downloads timm's pretrained weights, "hf-hub:USER/NAME" those of a repository of the hub; a file
            is read, or the file in an installed package of this name; null starts from random.
        freeze_bn: use the BatchNorm layers' pretrained statistics and affine weights as constants, for
            batches too small to estimate them.
        freeze: what keeps its weights: names of timm's submodules and parameters; a number, the stem and so many blocks
            after it; or "all", the whole backbone, in eval mode and without gradients: student and teacher then share
            it. Early layers cost the most and change the least.
        layer_decay: each layer's learning rate, as a multiple of the next one's.
        checkpointing: keep no activations inside of blocks but compute them again in the backward pass.
        multi_grid: dilations at stride 8 of the 3x3 convolutions in the last stage's blocks (ResNets only): 4, 8, 16 in
            the paper's network. At stride 16 they are halved.
        ceil_mode: round the ResNet stem's max-pool up, as the reference network does.
        options: further arguments of timm's constructor; `out_indices` chooses a plain ViT's blocks, counted from 0.
        in_channels: of the images; pretrained weights for RGB are summed or repeated to fit (timm's rule).
        mean: RGB in 0..1 that images are normalised by; by default the weights' own, ImageNet's without weights.
        std: likewise.

    Attributes:
        channels: of the maps that it returns by default.
        strides: of all maps.
        plain: whether it is a plain ViT, all of whose maps have one stride.
        frozen: whether all of it keeps its weights.

    Raises:
        ValueError: unknown name, an option that the model has not, weights that cannot be had or do not fit, or a model
            that takes images of one size alone.
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
        # A checkpoint rebuilds the backbone from these.
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

    def train(self, mode: bool = True) -> "TimmBackbone":
        """Stay in eval mode where all of it is frozen: no statistics, no dropped paths."""
        return super().train(mode and not self.frozen)

    def place(self, which: int) -> int:
        """Index of a map that is named by its stride, or counted from the end: -1 is the last."""
        return place(self.name, self.strides, which)

    def widths(self, maps: Sequence[int]) -> list[int]:
        """Channels of these maps."""
        return [self.all_channels[self.place(which)] for which in maps]

    def forward(self, images: Tensor, maps: Sequence[int] | None = None) -> list[Tensor]:
        """(B, in_channels, H, W) normalized images -> these maps (B, c, h, w), by stride or counted from the end."""
        with torch.no_grad() if self.frozen else nullcontext():
            found = self.every_map(self.fitting(images))
        return [found[self.place(which)] for which in (self.default_maps if maps is None else maps)]

    def fitting(self, images: Tensor) -> Tensor:
        """Images in a size that the network takes."""
        height, width = images.shape[-2:]
        if self.multiple == 1:
            return images
        if self.plain:
            down, right = -height % self.multiple, -width % self.multiple
            return F.pad(images, (right // 2, right - right // 2, down // 2, down - down // 2))
        return upsample(images, nearest_multiple((height, width), self.multiple))

    def every_map(self, images: Tensor) -> list[Tensor]:
        """All maps (B, c, h, w) of images in a size that the network takes."""
        if self.blocks:
            chosen = {"indices": self.blocks, "norm": True, "intermediates_only": True}
            return self.net.forward_intermediates(images, output_fmt="NCHW", **chosen)
        found = self.net(images)
        last = getattr(self.net, "output_fmt", "NCHW") == "NHWC"
        return [x.permute(0, 3, 1, 2) for x in found] if last else found

    @torch.no_grad()
    def multiple_of_sizes(self) -> int:
        """What both sides of an image have to be multiples of: found out by showing the network small images."""
        stride, side = self.output_stride, self.net.pretrained_cfg.get("input_size", (3, 224, 224))[-1]
        device, training, reason = next(self.parameters()).device, self.net.training, None
        self.net.eval()
        # Strided convolutions see a second cell begin in the pixel after the first.
        for multiple, size, cells in (
            (1, (stride + 1, stride + 1), (2, 2)),
            *((m, (2 * m, m), (2 * m // stride, m // stride)) for m in (stride, side)),
        ):
            try:
                last = self.every_map(torch.zeros(1, self.in_channels, *size, device=device))[-1]
            except Exception as error:  # of many kinds: assertions, shapes that do not fit
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
        """Parameters of the stem, and of each block after it, as timm counts them for layer-wise decay."""
        with torch.device("meta"):  # the whole model, which timm's patterns are for
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
        """The trained parameters, by what their learning rate is multiplied with: 1 for the last layer's."""
        layers = [list(self.parameters())] if self.layer_decay == 1 else self.layers()
        scaled = [(layer, self.layer_decay ** (len(layers) - 1 - i)) for i, layer in enumerate(layers)]
        return [([p for p in layer if p.requires_grad], scale) for layer, scale in scaled]

    def kept(self) -> list[nn.Parameter]:
        """The parameters that `freeze` names; raises a ValueError for a part that the model has not."""
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
        """Turn on activation checkpointing; raises a ValueError where that changes a training or cannot be."""
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
    """Index of a network's map that is named by its stride, or counted from the end: -1 is the last."""
    if (which > 0 and which not in strides) or -which > len(strides):
        raise ValueError(
            f"model.maps: {name} has no map {which}; choose -1 ... -{len(strides)}, or strides {[*strides]}"
        )
    return list(strides).index(which) if which > 0 else which


def nearest_multiple(size: Sequence[int], multiple: int) -> tuple[int, int]:
    """Height and width rounded to multiples, at least one of each."""
    height, width = (torch.sym_max(1, (side + multiple // 2) // multiple) * multiple for side in size)
    return height, width


def parts_of(name: str) -> list[str]:
    """A parameter's name and those of the modules that it is in: a.b.c, a.b, a."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def create(name: str, weights: str | None, output_stride: int | None, options: dict) -> tuple[nn.Module, list[int]]:
    """Make timm's network of feature maps, with the blocks to take them after where it is a plain ViT.

    Weights come from timm or a hub, from a file or a package, or they are random.
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
    """Whether timm's networks of this kind take images of any size, but only if they are told so."""
    classes = [c for c in vars(sys.modules[model_entrypoint(name).__module__]).values() if isinstance(c, type)]
    return any("dynamic_img_size" in inspect.signature(c).parameters for c in classes if issubclass(c, nn.Module))


def quarters(name: str, options: dict) -> list[int]:
    """The last block of each quarter of a plain ViT, or those in `out_indices`; none for another network."""
    with torch.device("meta"):
        net = timm.create_model(name, features_only=True, **options)
    strides, depth = net.feature_info.reduction(), len(net.feature_info)
    if len(set(strides)) > 1:
        return []
    return list(options.get("out_indices", sorted({max(0, depth * part // 4 - 1) for part in (1, 2, 3, 4)})))


def dilated(name: str, weights: str | None, output_stride: int | None, options: dict) -> nn.Module:
    """A pyramid of maps with this output stride, or with its own where timm cannot dilate the network."""
    if output_stride is not None:
        try:
            return filled(name, weights, features_only=True, output_stride=output_stride, **options)
        except (TypeError, AssertionError, NotImplementedError):  # which of them differs between networks
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
        timm.create_model(name, **options)  # so that what fails below is the download
    try:
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=source, **options)
    except Exception as error:  # the hub client's errors have no common base
        raise ValueError(
            f"backbone.weights={weights}: the weights of {name} could not be downloaded ({type(error).__name__}); "
            "give a local file with backbone.weights=FILE, or start from random with backbone.weights=null"
        ) from error
