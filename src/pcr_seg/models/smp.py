"""Networks of segmentation_models_pytorch (an extra: `pip install 'pcr-seg[smp]'`)."""

from torch import Tensor, nn

from pcr_seg.models.output import SegmentorOutput


class SMP(nn.Module):
    """A network of segmentation_models_pytorch; prototypes live among its decoder's features.

    Args:
        arch: of the network, "unet", "fpn", "upernet" ... as `segmentation_models_pytorch.create_model` takes it.
        num_classes: C.
        encoder_name: of its encoder.
        encoder_weights: pretrained ones that it downloads, or None.
        in_channels: of the images.
        options: further arguments of the network.

    Raises:
        ValueError: the package is not installed.
    """

    def __init__(
        self,
        arch: str,
        num_classes: int,
        *,
        encoder_name: str = "resnet34",
        encoder_weights: str | None = "imagenet",
        in_channels: int = 3,
        options: dict | None = None,
    ) -> None:
        super().__init__()
        try:
            import segmentation_models_pytorch as smp
        except ImportError as error:
            raise ValueError("networks of segmentation_models_pytorch need it: pip install 'pcr-seg[smp]'") from error
        self.arch, self.num_classes, self.encoder_name = arch, num_classes, encoder_name
        self.encoder_weights, self.in_channels, self.options = encoder_weights, in_channels, dict(options or {})
        self.net = smp.create_model(arch, encoder_name, encoder_weights, in_channels, num_classes, **self.options)
        self.feature_dim = self.net.segmentation_head[0].in_channels

    def forward(self, images: Tensor) -> SegmentorOutput:
        """(B, 3, H, W) normalized images -> SegmentorOutput; some of the networks want sides that 32 divides."""
        features = self.net.decoder(self.net.encoder(images))
        return SegmentorOutput(self.net.segmentation_head(features), features, None)
