"""A network together with all that prediction needs: `load` returns it, and every command and picture uses it.

Needs only torch, Pillow and the libraries that the network itself needs.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from pcr_seg.data.files import Format, read_image
from pcr_seg.inference import Protocol, center_pad
from pcr_seg.method.prototypes import PrototypeBank
from pcr_seg.method.sampling import upsample
from pcr_seg.pixels import as_tensor, normalize


def predict_heads(
    network: nn.Module,
    method: nn.Module | None,
    images: Tensor,
    *,
    linear: bool = False,
    size: tuple[int, int] | torch.Size | None = None,
) -> dict[str, Tensor]:
    """Return full-resolution logits (B, C, H, W) by head: "linear", and those that the method adds (`heads`).

    With `linear` the linear head's alone. If `images` are feature maps, `size` has to be the images' (H, W).
    """
    output, size = network(images), size or images.shape[-2:]
    heads = {"linear": upsample(output.logits, size)}
    if hasattr(method, "refine"):
        heads["linear"] = method.refine(images, heads["linear"])
    if not linear and hasattr(method, "heads"):
        heads |= method.heads(output.features, size)
    return heads


class Prediction(NamedTuple):
    """The prediction for one image, at the image's size."""

    labels: np.ndarray  # (H, W) uint8 class ids of the linear head
    confidence: np.ndarray  # (H, W) probability of these labels, in (0, 1]
    heads: dict[str, np.ndarray]  # probabilities (C, H, W) by head: "linear", and with PCR "prototype"


class Predictor(nn.Module):
    """A network that predicts images of any size, with the names and colors of its classes.

    Args:
        network: the network to predict with, in eval mode.
        method: the method that trained it, which may add heads, by the contract of `pcr_seg.method`.
        class_names: names of the C classes.
        palette: a color (R, G, B) for each class, 0..255.
        protocol: predicts a whole image: `whole_image`, `sliding_window` ...
        name: the method's name.
        metadata: `config` and `dataset` of the run, if the checkpoint has them.
    """

    def __init__(
        self,
        network: nn.Module,
        method: nn.Module | None,
        class_names: Sequence[str],
        palette: Sequence[tuple[int, int, int]],
        protocol: Protocol,
        *,
        name: str = "",
        metadata: dict | None = None,
    ) -> None:
        super().__init__()
        self.network, self.method = network, method
        self.class_names, self.palette = list(class_names), [tuple(color) for color in palette]
        self.protocol, self.name, self.metadata = protocol, name, metadata or {}

    @property
    def device(self) -> torch.device:
        """The device of the network's weights."""
        return next(self.network.parameters()).device

    @property
    def bank(self) -> PrototypeBank | None:
        """The method's prototypes; None if it has none, or has not found them yet."""
        bank = getattr(self.method, "bank", None)
        return bank if hasattr(bank, "prototypes") and bank.is_initialized else None

    @property
    def channels(self) -> int:
        """Channels of the images that the network takes: 1, 3 or 4."""
        return getattr(self.network, "in_channels", 3)

    def forward(self, images: Tensor, *, linear: bool = False) -> dict[str, Tensor]:
        """Return logits (B, C, H, W) by head of normalized images (B, channels, H, W); with `linear` of one head."""
        return {head: center_pad(x, images.shape[-2:]) for head, x in self.scored(images, linear=linear).items()}

    def scored(
        self, images: Tensor, *, linear: bool = False, size: tuple[int, int] | torch.Size | None = None
    ) -> dict[str, Tensor]:
        """Like `forward`, but for the pixels that are scored: `center_padded` scores those of a padded square.

        If `images` are feature maps, `size` has to be the images' (H, W), and the protocol `whole_image`.
        """
        names: list[str] = []

        def predict(images: Tensor) -> Tensor:
            # All heads in one tensor, so that a protocol needs one forward for them.
            heads = predict_heads(self.network, self.method, images, linear=linear, size=size)
            names[:] = heads
            return torch.cat(list(heads.values()), dim=1) if len(heads) > 1 else heads["linear"]

        return dict(zip(names, self.protocol(predict, images).chunk(len(names), dim=1), strict=True))

    @torch.inference_mode()
    def predict(self, image: str | os.PathLike | Image.Image | np.ndarray) -> Prediction:
        """Predict one image: its labels, their confidence and each head's probabilities.

        Args:
            image: a file, a PIL image, or an array (H, W, channels) or (H, W) of uint8.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is no image, or the array has another shape or type.
        """
        pixels = normalize(as_tensor(open_image(image, self.image_format))[None].to(self.device), self.network)
        heads = {head: logits[0].softmax(dim=0) for head, logits in self(pixels).items()}
        confidence, labels = heads["linear"].max(dim=0)
        arrays = {head: probabilities.cpu().numpy() for head, probabilities in heads.items()}
        return Prediction(labels.byte().cpu().numpy(), confidence.cpu().numpy(), arrays)

    @property
    def image_format(self) -> Format:
        """How to read image files: as in training, by the run's configuration."""
        dataset = self.metadata.get("config", {}).get("dataset", {})
        return Format(dataset.get("channels", self.channels), dataset.get("max_value"))


def open_image(image: str | os.PathLike | Image.Image | np.ndarray, format: Format) -> np.ndarray:
    """Return a file, a PIL image or an array as (H, W, channels) uint8; raise a ValueError if that cannot be."""
    if isinstance(image, str | os.PathLike):
        return read_image(image, format)
    if isinstance(image, Image.Image):
        image = np.asarray(ImageOps.exif_transpose(image).convert({1: "L", 3: "RGB", 4: "RGBA"}[format.channels]))
    image = image[..., None] if image.ndim == 2 else image
    if image.dtype != np.uint8 or image.ndim != 3:
        raise ValueError(f"image: an array {image.shape} of {image.dtype}; give (H, W, {format.channels}) of uint8")
    if image.shape[2] == 1 < format.channels:
        image = image.repeat(format.channels, axis=2)
    if image.shape[2] != format.channels:
        raise ValueError(f"image: {image.shape[2]} channels; the network takes {format.channels}")
    return image
