"""Features of a frozen backbone, computed once for each image and kept, so that training only runs the head.

An image is kept in a few fixed views: at some scales, each as it is and mirrored. Maps are stored at their own
resolution, in half precision. A file's name is a digest of all that it depends on: the backbone's weights and layers,
the image file's path, size and time, how that is read, and the view. So features that are out of date are never used,
and runs and processes can share a folder; a file appears there only when it is complete.
"""

import functools
import hashlib
import itertools
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import Dataset

from pcr_seg.data.files import IGNORE_INDEX, DataError, Sample, read_image, read_mask, version
from pcr_seg.pixels import as_tensor, normalize

HALF = torch.finfo(torch.float16).max
OPEN = 20_000  # files that stay mapped; Linux lets a process map 65,530


class FixedView(NamedTuple):
    """One of the views in which an image is kept."""

    scale: float = 1.0  # factor of its sides
    mirrored: bool = False


class FrozenFeatures:
    """Computes, keeps and reads the raw features of images.

    Args:
        network: has a frozen `backbone`, `raw(images, size)`, which returns its maps, and `join(maps)`, which returns
            features at the finest map's size (`MLP`).
        folder: where to keep them; None keeps them in memory, for this process alone.
        scales: factors of the images' sides, one view each. Masks are resized to the view.
        mirror: keep the mirrored images as well.
        label_stride: n: train on the labels of every n-th pixel in each direction. If n divides the backbone's stride,
            an upsampling with aligned corners has values at exactly these pixels.

    Raises:
        ValueError: the backbone is not frozen, or the network cannot train on features.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        folder: str | None = None,
        scales: Sequence[float] = (1.0,),
        mirror: bool = True,
        label_stride: int = 1,
    ) -> None:
        if not (hasattr(network, "raw") and getattr(network.backbone, "frozen", False)):
            raise ValueError(
                "features: needs backbone.freeze=all and model=mlp or linear; features=none trains on images"
            )
        self.network, self.folder = network, Path(folder) if folder else None
        self.scales, self.mirror, self.label_stride = list(scales), mirror, label_stride
        self.views = [FixedView(scale, mirrored) for scale in scales for mirrored in ((False, True)[: 1 + mirror])]
        self.stride = network.backbone.output_stride
        self.kept: dict[str, np.ndarray] = {}  # maps by key, without a folder
        self.images: dict[str, str] = {}  # the first part of the keys of each image, computed once in a process
        self.origin = digest(network.backbone, network.maps)

    # ------------------------------------------------------------------------------------ computing

    def compute(
        self, samples: Sequence[Sample], device: torch.device, *, whole: bool = False, skip: bool = False
    ) -> list[Exception]:
        """Compute the views of these images that are not kept yet: all, or with `whole` only the image as it is.

        With `skip`, images that cannot be read are left out, and their errors returned.
        """
        views = [FixedView()] if whole else self.views
        missing = [sample for sample in samples if not all(self.has(sample, view) for view in views)]
        if not missing:
            return []
        self.network.backbone.to(device)
        errors: list[Exception] = []
        for sample in track(missing, f"Features of {len(missing)} images", transient=True):
            try:
                self.of_image(sample, views, device)
            except (DataError, OSError) as error:
                if not skip:
                    raise
                errors.append(error)
        return errors

    @torch.inference_mode()
    def of_image(self, sample: Sample, views: Sequence[FixedView], device: torch.device) -> None:
        """Compute and keep the views of one image."""
        image = normalize(as_tensor(read_image(sample.image, sample.format))[None].to(device), self.network)
        for view in views:
            if not self.has(sample, view):
                shown = image.flip(-1) if view.mirrored else image
                size = [max(1, round(side * view.scale)) for side in image.shape[-2:]]
                maps = self.network.raw(shown.contiguous(memory_format=torch.channels_last), size)
                for place, features in enumerate(merged(maps)):
                    half = features[0].clamp(-HALF, HALF).permute(1, 2, 0).half().cpu().numpy()
                    self.keep(self.key(sample, view, place), half)
                self.keep(self.key(sample, view, "maps"), np.array(place + 1))  # written last, when all maps are there

    def has(self, sample: Sample, view: FixedView) -> bool:
        """Whether a view of an image is kept."""
        key = self.key(sample, view, "maps")
        return key in self.kept if self.folder is None else (self.folder / f"{key}.npy").is_file()

    def key(self, sample: Sample, view: FixedView, part: int | str) -> str:
        """Return the name of a map: a digest of all that it depends on, and the view and part."""
        if sample.image not in self.images:
            read = (*version(sample.image), sample.format[:2])
            self.images[sample.image] = hashlib.sha256(repr((self.origin, read)).encode()).hexdigest()
        return f"{self.images[sample.image]}_{view.scale:g}{'m' * view.mirrored}_{part}"

    def keep(self, key: str, features: np.ndarray) -> None:
        """Keep a map (h, w, c) in memory, or write it to a file that appears when it is complete."""
        if self.folder is None:
            self.kept[key] = features
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.folder, suffix=".part", delete=False) as part:
            np.save(part, features)
        os.replace(part.name, self.folder / f"{key}.npy")

    # -------------------------------------------------------------------------------------- reading

    def maps(self, sample: Sample, view: FixedView) -> list[np.ndarray]:
        """Return the kept maps (h, w, c) of a view, the finest first; files are memory-mapped."""
        return [
            self.read(self.key(sample, view, place)) for place in range(int(self.read(self.key(sample, view, "maps"))))
        ]

    def read(self, key: str) -> np.ndarray:
        """Return what `keep` has kept under this name."""
        return self.kept[key] if self.folder is None else opened(self.folder / f"{key}.npy")

    def crop(self, maps: Sequence[np.ndarray], first: Sequence[int], cells: int) -> Tensor:
        """Return raw features (D, h, w) of a square part of a view's maps.

        The part has `cells` x `cells` cells of the last map, beginning at cell `first` (row, column). Beyond the end of
        the view its border is repeated.
        """
        parts = []
        for values in maps:
            finer = (values.shape[0] - 1) // (maps[-1].shape[0] - 1)  # cells of stride s lie on pixels 0, s, 2 s ...
            side = (cells - 1) * finer + 1
            rows, columns = (slice(start * finer, start * finer + side) for start in first)
            part = values[rows, columns]
            missing = [(0, side - part.shape[0]), (0, side - part.shape[1]), (0, 0)]
            parts.append(np.pad(part, missing, mode="edge") if part.shape[:2] != (side, side) else np.array(part))
        return self.joined(parts)

    def whole(self, sample: Sample) -> Tensor:
        """Return the raw features (D, h, w) of a whole image as it is."""
        return self.joined([np.array(values) for values in self.maps(sample, FixedView())])

    def joined(self, parts: Sequence[np.ndarray]) -> Tensor:
        """Return the raw features (D, h, w) of maps (h, w, c)."""
        maps = [torch.from_numpy(part).permute(2, 0, 1)[None] for part in parts]
        return self.network.join(maps)[0]


class FeatureViews(Dataset):
    """Random crops of kept features, for use in place of `Views`: with features (D, h, w) instead of images.

    A crop is a part of one of an image's fixed views, from cell to cell of the backbone's last map. Its mask is 255
    beyond the end of the view. There are no `strong` views: the network makes them from the weak ones (`perturb`), on
    the device.

    Args:
        samples: images of the stream.
        features: their features, computed already.
        read_mask: returns a sample's mask (H, W).
        crop_size: side of a crop in pixels of the view, n * stride + 1.
        label_stride: n: every n-th pixel in each direction has a label.
    """

    def __init__(
        self,
        samples: tuple[Sample, ...],
        features: FrozenFeatures,
        read_mask: Callable[[Sample], np.ndarray],
        crop_size: int,
        label_stride: int = 1,
    ) -> None:
        self.samples, self.features, self.read_mask = samples, features, read_mask
        self.crop_size, self.label_stride = crop_size, label_stride

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, position: tuple[int, ...]) -> dict:
        index, seed, wanted = (*position, None)[:3]
        sample, stride = self.samples[index], self.features.stride
        generator = np.random.default_rng(seed)
        view = self.features.views[generator.integers(len(self.features.views))]
        cells = (self.crop_size - 1) // stride + 1
        maps = self.features.maps(sample, view)
        grid = maps[-1].shape[:2]
        size = [(side - 1) * stride + 1 for side in grid]

        mask = np.zeros(size, np.uint8)
        if sample.mask:
            mask = cv2.resize(self.read_mask(sample), size[::-1], interpolation=cv2.INTER_NEAREST)
            mask = mask[:, ::-1] if view.mirrored else mask
        pixels = () if wanted is None else np.flatnonzero(mask == wanted)
        around = divmod(pixels[generator.integers(len(pixels))], size[1]) if len(pixels) else (None, None)
        first = [first_cell(*axis, cells, stride, generator) for axis in zip(grid, around, strict=True)]
        top, left = (cell * stride for cell in first)
        shown = np.full((self.crop_size, self.crop_size), IGNORE_INDEX, np.uint8)
        part = mask[top : top + self.crop_size, left : left + self.crop_size]
        shown[: part.shape[0], : part.shape[1]] = part

        weak, mask = (
            self.features.crop(maps, first, cells),
            torch.from_numpy(shown[:: self.label_stride, :: self.label_stride]),
        )
        if sample.mask:
            return {"image": weak, "mask": mask, "name": sample.name, "seed": seed}
        return {"weak": weak, "valid": mask != IGNORE_INDEX, "name": sample.name, "seed": seed}


def first_cell(side: int, pixel: int | None, cells: int, stride: int, generator: np.random.Generator) -> int:
    """Draw the first cell of a crop of `cells` cells along a side of a map, which shows `pixel` if that is given."""
    first, last = 0, max(0, side - cells)
    if pixel is not None:
        first, last = max(first, math.ceil(pixel / stride) - cells + 1), min(last, pixel // stride)
    return int(generator.integers(first, last + 1))


class WholeFeatures(Dataset):
    """Kept features (D, h, w) of whole images, with masks (H, W) and names, for use in place of `WholeImages`."""

    def __init__(self, samples: tuple[Sample, ...], features: FrozenFeatures) -> None:
        self.samples, self.features = samples, features

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict:
        sample = self.samples[index]
        mask = torch.from_numpy(read_mask(sample))
        return {"image": self.features.whole(sample), "mask": mask, "name": sample.name}


@functools.lru_cache(maxsize=OPEN)
def opened(file: Path) -> np.ndarray:
    """Return the content of a kept file, memory-mapped once in a process: what has this name never changes."""
    return np.load(file, mmap_mode="r")


def merged(maps: Sequence[Tensor]) -> list[Tensor]:
    """Concatenate neighbouring maps (1, c, h, w) of the same size into one."""
    groups = itertools.groupby(maps, key=lambda features: features.shape[-2:])
    return [torch.cat(list(group), dim=1) for _, group in groups]


def digest(backbone: nn.Module, maps: Sequence[int]) -> str:
    """Return a name for these maps of a backbone; it changes with its weights, its layers and its normalisation."""
    name = hashlib.sha256(repr((str(backbone), list(maps), list(backbone.mean), list(backbone.std))).encode())
    for key, tensor in backbone.state_dict().items():
        name.update(key.encode() + tensor.detach().cpu().contiguous().view(-1).numpy().tobytes())
    return name.hexdigest()
