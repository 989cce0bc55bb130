"""Networks with decoders or encoders of segmentation_models_pytorch (an extra: `pip install 'pcr-seg[smp]'`)."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from pcr_seg.method.sampling import upsample
from pcr_seg.models.backbones import nearest_multiple, place
from pcr_seg.models.output import SegmentorOutput, parameter_groups
from pcr_seg.pixels import IMAGENET_MEAN, IMAGENET_STD

STRIDES = (2, 4, 8, 16, 32)  # of the maps that the decoders take; the first may be missing
OTHERS = {"deeplabv3": "deeplab", "deeplabv3plus": "deeplab", "dpt": "dpt"}  # decoders that this project has itself


class SMP(nn.Module):
    """A backbone of this project, with decoder and head of segmentation_models_pytorch.

    Prototypes are compared with the decoder's features. Images are resized to the nearest multiple of 32, which the
    decoders need.

    Args:
        backbone: has maps of strides 4, 8, 16, 32, and may have one of 2; `backbone(images, maps)` returns them.
        num_classes: C.
        arch: "unet", "fpn", "upernet", "segformer" ... as `segmentation_models_pytorch.create_model` takes it.
        options: further arguments of that network: decoder_channels ...
        head_lr_multiplier: learning rate of everything behind the backbone, as a multiple of the backbone's.

    Attributes:
        feature_dim: D, channels of the decoder's features.
        in_channels: channels of the images, the backbone's.
        mean: RGB in 0..1 that images are normalised by, the backbone's; and `std`.

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
        """Return the output for normalized images (B, 3, H, W); with a U-Net it has the image's resolution."""
        return self.decode(self.encode(images))

    def encode(self, images: Tensor) -> list[Tensor]:
        """Return the backbone's maps, the finest first, of normalized images (B, 3, H, W)."""
        return self.backbone(upsample(images, nearest_multiple(images.shape[-2:], STRIDES[-1])), self.strides)

    def decode(self, maps: list[Tensor]) -> SegmentorOutput:
        """Return the output for the backbone's maps, which a method may have changed."""
        height, width = (self.strides[0] * side for side in maps[0].shape[-2:])
        # The decoders also take the image, of which they use the size, and a map of stride 2: both without channels.
        sizes = [1] if len(self.strides) == len(STRIDES) else [1, 2]
        features = self.decoder([*(maps[0].new_empty(len(maps[0]), 0, height // s, width // s) for s in sizes), *maps])
        return SegmentorOutput(self.linear_head(features), features, None)

    def parameter_groups(self, lr: float) -> list[dict]:
        """Return the backbone's trained parameters with `lr`, all others with `lr` times `head_lr_multiplier`."""
        return parameter_groups(self, lr, self.head_lr_multiplier)


class SMPEncoder(nn.Module):
    """An encoder of segmentation_models_pytorch as a backbone: for those that timm lacks, such as SegFormer's "mit_b2".

    Args:
        name: the package's name of the encoder.
        weights: "imagenet" downloads pretrained weights; a path is read as a state dict; None: random weights.
        in_channels: channels of the images.
        mean: RGB means in 0..1 for normalising images; by default ImageNet's.
        std: RGB deviations, likewise.

    Attributes:
        strides: strides of all its maps.
        channels: channels of the maps that it returns by default: stride 4, last but one, and last.

    Raises:
        ValueError: the package is not installed or has no such encoder; weights cannot be found or do not fit.
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
        except Exception as error:  # unknown names, downloads and files each raise other classes
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"backbone.name={name}, backbone.weights={weights}: {reason}; give imagenet, a file of its state "
                "dict, or null"
            ) from error
        widths = dict(zip(STRIDES, self.net.out_channels[1:], strict=True))  # 0: it has no map of that stride
        self.strides = [stride for stride, width in widths.items() if width]
        self.all_channels = [widths[stride] for stride in self.strides]
        self.output_stride = self.strides[-1]
        self.channels = self.widths((4, -2, -1))

    def widths(self, maps: Sequence[int]) -> list[int]:
        """Return the channels of these maps, named by stride or place from the end."""
        return [self.all_channels[place(self.name, self.strides, which)] for which in maps]

    def forward(self, images: Tensor, maps: Sequence[int] = (4, -2, -1)) -> list[Tensor]:
        """Return maps (B, c, h, w) of normalized images (B, in_channels, H, W): by stride, or place from the end."""
        images = upsample(images, nearest_multiple(images.shape[-2:], self.output_stride))
        found = self.net(images)[-len(self.strides) :]
        return [found[place(self.name, self.strides, which)] for which in maps]


def package() -> ModuleType:
    """Import segmentation_models_pytorch; raise a ValueError if it is not installed."""
    try:
        import segmentation_models_pytorch as smp
    except ImportError as error:
        raise ValueError("segmentation_models_pytorch is not installed: pip install 'pcr-seg[smp]'") from error
    return smp


def network_on(widths: list[int], arch: str, num_classes: int, options: dict) -> nn.Module:
    """Make the package's network for maps of strides 2 to 32 with these widths, of which decoder and head are used.

    The package makes a decoder to fit an encoder. So an encoder without layers is registered for the moment, which only
    tells the widths. Raises a ValueError for an unknown `arch`, or options that it does not take.
    """
    if arch in OTHERS:
        raise ValueError(f"model.arch={arch}: is model={OTHERS[arch]} here")
    smp = package()

    class Maps(nn.Module, smp.encoders._base.EncoderMixin):
        def __init__(self, **_: object) -> None:
            super().__init__()
            self._out_channels, self._depth, self._in_channels = [3, *widths], len(widths), 3

        def set_in_channels(self, in_channels: int, pretrained: bool = True) -> None:
            """Do nothing: there are no layers to adapt."""

    smp.encoders.encoders["maps"] = {"encoder": Maps, "pretrained_settings": {}, "params": {}}
    try:
        return smp.create_model(arch, "maps", None, 3, num_classes, **options)
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"model.arch={arch}, model.options={options}: {reason}") from error
    finally:
        del smp.encoders.encoders["maps"]
