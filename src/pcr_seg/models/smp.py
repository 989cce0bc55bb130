"""Decoders and encoders of segmentation_models_pytorch (an extra: `pip install 'pcr-seg[smp]'`)."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from pcr_seg.method.sampling import upsample
from pcr_seg.models.backbones import nearest_multiple, place
from pcr_seg.models.output import SegmentorOutput, parameter_groups
from pcr_seg.pixels import IMAGENET_MEAN, IMAGENET_STD

STRIDES = (2, 4, 8, 16, 32)  # that the decoders expect; the first may be missing
OTHERS = {"deeplabv3": "deeplab", "deeplabv3plus": "deeplab", "dpt": "dpt"}  # that this project has itself


class SMP(nn.Module):
    """Backbone, and decoder and head of segmentation_models_pytorch; prototypes live among the decoder's features.

    Images are resized to the nearest multiple of 32, which the decoders want.

    Args:
        backbone: a pyramid of strides 4, 8, 16, 32 and perhaps 2; `backbone(images, maps)` returns maps by stride.
        num_classes: C.
        arch: "unet", "fpn", "upernet", "segformer" ... as `segmentation_models_pytorch.create_model` takes it.
        options: further arguments of the network there: decoder_channels ...
        head_lr_multiplier: learning rate of everything behind the backbone, as a multiple of the backbone's.

    Attributes:
        feature_dim: of the decoder's features, D.
        in_channels: of the images, as the backbone's.
        mean: RGB in 0..1 that images are normalised by, as the backbone's; and `std`.

    Raises:
        ValueError: the package is not installed, it has no such network, or the backbone lacks a stride.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        arch: str = "unet",
        options: dict | None = None,
        head_lr_multiplier: float = 1.0,
    ) -> None:
        super().__init__()
        self.arch, self.num_classes, self.options = arch, num_classes, dict(options or {})
        self.head_lr_multiplier = head_lr_multiplier
        self.in_channels, self.mean, self.std = backbone.in_channels, backbone.mean, backbone.std
        self.strides = [stride for stride in STRIDES if stride in backbone.strides]
        if self.strides not in ([*STRIDES], [*STRIDES[1:]]):
            raise ValueError(
                f"model=smp: wants maps of strides 4, 8, 16 and 32, and {backbone.name} has {backbone.strides}; choose "
                "another backbone, or backbone.output_stride=null where it was dilated"
            )
        self.backbone = backbone
        widths = [0] * (len(STRIDES) - len(self.strides)) + backbone.widths(self.strides)
        net = network_on(widths, arch, num_classes, self.options)
        self.decoder, self.linear_head = net.decoder, net.segmentation_head[0]
        self.feature_dim = self.linear_head.in_channels

    def forward(self, images: Tensor) -> SegmentorOutput:
        """(B, 3, H, W) normalized images -> SegmentorOutput at the decoder's resolution: a U-Net's is the image's."""
        return self.decode(self.encode(images))

    def encode(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalized images -> the backbone's maps, the finest first."""
        return self.backbone(upsample(images, nearest_multiple(images.shape[-2:], STRIDES[-1])), self.strides)

    def decode(self, maps: list[Tensor]) -> SegmentorOutput:
        """The backbone's maps, or what a method has made of them -> SegmentorOutput."""
        height, width = (self.strides[0] * side for side in maps[0].shape[-2:])
        # The decoders are handed the image as well, for its size alone, and a map of stride 2 without channels.
        sizes = [1] if len(self.strides) == len(STRIDES) else [1, 2]
        features = self.decoder([*(maps[0].new_empty(len(maps[0]), 0, height // s, width // s) for s in sizes), *maps])
        return SegmentorOutput(self.linear_head(features), features, None)

    def parameter_groups(self, lr: float) -> list[dict]:
        """The backbone's trained parameters at `lr`, and all others at its multiple."""
        return parameter_groups(self, lr, self.head_lr_multiplier)


class SMPEncoder(nn.Module):
    """An encoder of segmentation_models_pytorch that timm has not, such as SegFormer's "mit_b2", as a backbone.

    Args:
        name: the package's name of it.
        weights: "imagenet" downloads pretrained ones, a file of its state dict is read, null starts from random.
        in_channels: of the images.
        mean: RGB in 0..1 that images are normalised by; by default ImageNet's.
        std: likewise.

    Attributes:
        strides: of its maps, `channels` of those of stride 4, last but one, and last.

    Raises:
        ValueError: the package is not installed, has no such encoder, or weights that cannot be had or do not fit.
    """

    plain = False

    def __init__(
        self,
        name: str,
        *,
        weights: str | None = None,
        in_channels: int = 3,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.name, self.weights, self.in_channels = name, weights, in_channels
        self.mean, self.std = list(mean or IMAGENET_MEAN), list(std or IMAGENET_STD)
        try:
            there = weights if weights == "imagenet" else None
            self.net = package().encoders.get_encoder(name, in_channels, weights=there)
            if weights != there:
                self.net.load_state_dict(torch.load(Path(weights), map_location="cpu", weights_only=True))
        except Exception as error:  # of names, of the hub, of files
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"backbone.name={name}, backbone.weights={weights}: {reason}; give imagenet, a file of its state "
                "dict, or null"
            ) from error
        widths = dict(zip(STRIDES, self.net.out_channels[1:], strict=True))  # 0 for a stride that it has not
        self.strides = [stride for stride, width in widths.items() if width]
        self.all_channels = [widths[stride] for stride in self.strides]
        self.output_stride = self.strides[-1]
        self.channels = self.widths((4, -2, -1))

    def widths(self, maps: Sequence[int]) -> list[int]:
        """Channels of these maps."""
        return [self.all_channels[place(self.name, self.strides, which)] for which in maps]

    def forward(self, images: Tensor, maps: Sequence[int] = (4, -2, -1)) -> list[Tensor]:
        """(B, in_channels, H, W) normalized images -> these maps (B, c, h, w), by stride or counted from the end."""
        images = upsample(images, nearest_multiple(images.shape[-2:], self.output_stride))
        found = self.net(images)[-len(self.strides) :]
        return [found[place(self.name, self.strides, which)] for which in maps]


def package() -> ModuleType:
    """segmentation_models_pytorch; raises a ValueError where it is not installed."""
    try:
        import segmentation_models_pytorch as smp
    except ImportError as error:
        raise ValueError("segmentation_models_pytorch is not installed: pip install 'pcr-seg[smp]'") from error
    return smp


def network_on(widths: list[int], arch: str, num_classes: int, options: dict) -> nn.Module:
    """The package's network for maps of strides 2 to 32 with these widths; its encoder is but their description."""
    if arch in OTHERS:
        raise ValueError(f"model.arch={arch}: is model={OTHERS[arch]} here")
    smp = package()

    class Maps(nn.Module, smp.encoders._base.EncoderMixin):
        def __init__(self, **_: object) -> None:
            super().__init__()
            self._out_channels, self._depth, self._in_channels = [3, *widths], len(widths), 3

        def set_in_channels(self, in_channels: int, pretrained: bool = True) -> None:
            """Nothing to adapt."""

    smp.encoders.encoders["maps"] = {"encoder": Maps, "pretrained_settings": {}, "params": {}}
    try:
        return smp.create_model(arch, "maps", None, 3, num_classes, **options)
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"model.arch={arch}, model.options={options}: {reason}") from error
    finally:
        del smp.encoders.encoders["maps"]
