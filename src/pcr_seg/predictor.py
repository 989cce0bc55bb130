"""A network with all that it takes to predict images: what a checkpoint becomes, and what pictures are made of.

Torch, Pillow and the network's own libraries are enough for it.
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
    """Full-resolution logits (B, C, H, W) of the "linear" head, and of those that a method has beside it (`heads`).

    With `linear` of the first alone. Features in place of images need the images' `size`.
    """
    output, size = network(images), size or images.shape[-2:]
    heads = {"linear": upsample(output.logits, size)}
    if hasattr(method, "refine"):
        heads["linear"] = method.refine(images, heads["linear"])
    if not linear and hasattr(method, "heads"):
        heads |= method.heads(output.features, size)
    return heads


class Prediction(NamedTuple):
    """What a checkpoint says of one image, at its size."""

    labels: np.ndarray  # (H, W) uint8 class ids of the linear head
    confidence: np.ndarray  # (H, W) of these labels, in (0, 1]
    heads: dict[str, np.ndarray]  # probabilities (C, H, W) of each head: "linear", and of PCR "prototype"


class Predictor(nn.Module):
    """A network with what it takes to predict images of any size, and to name and color what it finds.

    Args:
        network: the evaluated one, in eval mode.
        method: its further heads, by the contract of `pcr_seg.method`.
        class_names: of the C classes.
        palette: a color (R, G, B) for each class.
        protocol: predicts a whole image: `whole_image`, `sliding_window` ...
        name: of the method.
        metadata: what else its checkpoint says: `config` and `dataset` of the run.
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
        """Where its weights are."""
        return next(self.network.parameters()).device

    @property
    def bank(self) -> PrototypeBank | None:
        """The prototypes, where the method has some and they are known."""
        bank = getattr(self.method, "bank", None)
        return bank if hasattr(bank, "prototypes") and bank.is_initialized else None

    @property
    def channels(self) -> int:
        """Channels of the images that the network takes."""
        return getattr(self.network, "in_channels", 3)

    def forward(self, images: Tensor, *, linear: bool = False) -> dict[str, Tensor]:
        """Normalized images (B, channels, H, W) of any size -> logits (B, C, H, W) of each head, or of the linear."""
        return {head: center_pad(x, images.shape[-2:]) for head, x in self.scored(images, linear=linear).items()}

    def scored(
        self, images: Tensor, *, linear: bool = False, size: tuple[int, int] | torch.Size | None = None
    ) -> dict[str, Tensor]:
        """The same for the pixels that are scored: a padded square's where the protocol is `center_padded`.

        Features in place of images need the images' `size`, and the protocol `whole_image`.
        """
        names: list[str] = []

        def predict(images: Tensor) -> Tensor:
            # One tensor, so that every protocol treats the heads alike in one forward.
            heads = predict_heads(self.network, self.method, images, linear=linear, size=size)
            names[:] = heads
            return torch.cat(list(heads.values()), dim=1) if len(heads) > 1 else heads["linear"]

        return dict(zip(names, self.protocol(predict, images).chunk(len(names), dim=1), strict=True))

    @torch.inference_mode()
    def predict(self, image: str | os.PathLike | Image.Image | np.ndarray) -> Prediction:
        """Labels, confidence and each head's probabilities of one image.

        Args:
            image: a file, a PIL image, or an array (H, W, channels) or (H, W) of bytes.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a file that is no image, or an array of another form.
        """
        pixels = normalize(as_tensor(open_image(image, self.image_format))[None].to(self.device), self.network)
        heads = {head: logits[0].softmax(dim=0) for head, logits in self(pixels).items()}
        confidence, labels = heads["linear"].max(dim=0)
        arrays = {head: probabilities.cpu().numpy() for head, probabilities in heads.items()}
        return Prediction(labels.byte().cpu().numpy(), confidence.cpu().numpy(), arrays)

    @property
    def image_format(self) -> Format:
        """How image files are read: as those that it was trained on."""
        dataset = self.metadata.get("config", {}).get("dataset", {})
        return Format(dataset.get("channels", self.channels), dataset.get("max_value"))


def open_image(image: str | os.PathLike | Image.Image | np.ndarray, format: Format) -> np.ndarray:
    """A file, a PIL image or an array as (H, W, channels) uint8."""
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
