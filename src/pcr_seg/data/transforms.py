"""Weak and strong views of an image.

The weak view is geometric: scale, flip, pad, crop, which is the paper's training transform (`augmentation.py` of U2PL).
The strong view changes the weak view's colors; the published PCR does not, and relies on CutMix.
"""

import os
import random
from collections.abc import Sequence
from typing import NamedTuple

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # no version look-up over the network at import

import albumentations as A
import cv2
import numpy as np

from pcr_seg.data.files import IGNORE_INDEX
from pcr_seg.pixels import IMAGENET_MEAN, by_channel

cv2.setNumThreads(0)  # the loader's processes use all cores already; threads of OpenCV would compete with them


class View(NamedTuple):
    """A part of an image, and how it is shown."""

    rows: slice
    columns: slice
    size: tuple[int, int]  # (height, width) in pixels that the part is resized to
    mirrored: bool  # left and right exchanged


def random_view(
    height: int,
    width: int,
    crop_size: int,
    scale: tuple[float, float],
    generator: np.random.Generator,
    around: Sequence[int] | None = None,
) -> View:
    """Draw which part of an image a square crop of the randomly scaled and mirrored image shows.

    The factor of the scale is uniform. If the range contains 1, shrinking and enlarging are equally likely, each
    uniform. Every position of the crop in the scaled image is equally likely. The crop's edges are rounded to whole
    pixels of the original image, so that only this part has to be scaled.

    Args:
        height: of the image, in pixels.
        width: of the image, in pixels.
        crop_size: side of the crop in pixels; the view is smaller if the scaled image is.
        scale: smallest and largest factor.
        generator: makes the random numbers.
        around: (row, column) of a pixel that has to be in the view; all positions that show it are equally likely.
    """
    low, high = scale
    if low < 1 < high:
        low, high = (low, 1) if generator.random() < 0.5 else (1, high)
    factor = generator.uniform(low, high)
    parts, size = [], []
    for axis, side in enumerate((height, width)):
        scaled = max(1, int(side * factor))
        shown = min(crop_size, scaled)
        first, last = 0, scaled - shown
        if around is not None:
            place = int(around[axis]) * scaled // side
            first, last = max(first, place - shown + 1), min(last, place)
        start = int(generator.integers(first, last + 1)) * side // scaled
        parts.append(slice(start, start + max(1, round(shown * side / scaled))))
        size.append(shown)
    return View(*parts, tuple(size), generator.random() < 0.5)


def geometric(
    image: np.ndarray,
    mask: np.ndarray,
    crop_size: int,
    scale: tuple[float, float] = (0.5, 2.0),
    pad_label: int = IGNORE_INDEX,
    pad_color: Sequence[float] = IMAGENET_MEAN,
    *,
    generator: np.random.Generator,
    wanted: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a square weak view of an image and its mask: random scale, mirroring, crop, and padding.

    Only the part that is shown is resized: the image bilinearly, the mask by nearest neighbour.

    Args:
        image: (H, W, C) uint8.
        mask: (H, W) uint8.
        crop_size: side of the view in pixels.
        scale: smallest and largest factor.
        pad_label: label of padding: 255, which no loss sees, or 0 as in the reference code.
        pad_color: RGB in 0..1 of padding, which is even on both sides.
        generator: makes the random numbers.
        wanted: a class; if it is in the mask, the view shows one of its pixels, drawn at random.

    Returns:
        The view (crop_size, crop_size, C) and its mask (crop_size, crop_size).
    """
    pixels = () if wanted is None else np.argwhere(mask == wanted)
    around = pixels[generator.integers(len(pixels))] if len(pixels) else None
    view = random_view(*image.shape[:2], crop_size, scale, generator, around)
    fill = [round(float(value)) for value in by_channel(pad_color, image.shape[2])]
    return (
        # OpenCV drops the axis of a single channel.
        show(image, view, crop_size, cv2.INTER_LINEAR, fill).reshape(crop_size, crop_size, -1),
        show(mask, view, crop_size, cv2.INTER_NEAREST, pad_label),
    )


def show(pixels: np.ndarray, view: View, crop_size: int, interpolation: int, fill: int | list) -> np.ndarray:
    """Resize the part of `pixels` (H, W) or (H, W, C) that a view shows, mirror it, and pad it to the crop."""
    shown = cv2.resize(pixels[view.rows, view.columns], view.size[::-1], interpolation=interpolation)
    if view.mirrored:
        shown = cv2.flip(shown, 1)
    top, left = ((crop_size - side) // 2 for side in view.size)
    bottom, right = crop_size - view.size[0] - top, crop_size - view.size[1] - left
    return cv2.copyMakeBorder(shown, top, bottom, left, right, cv2.BORDER_CONSTANT, value=fill)


def photometric() -> A.Compose:
    """Return the color changes of a strong view: jitter, grayscale, blur; as in UniMatch, not in the published PCR."""
    return A.Compose(
        [
            A.ColorJitter(brightness=(0.5, 1.5), contrast=(0.5, 1.5), saturation=(0.5, 1.5), hue=(-0.25, 0.25), p=0.8),
            A.ToGray(p=0.2),
            A.GaussianBlur(blur_limit=0, sigma_limit=(0.1, 2.0), p=0.5),
        ]
    )


def recolor(transform: A.Compose, image: np.ndarray) -> np.ndarray:
    """Apply `photometric` to an image (H, W, C): grey is treated as RGB, a fourth channel is left alone."""
    grey = image.shape[2] == 1
    changed = transform(image=np.repeat(image, 3, axis=2) if grey else np.ascontiguousarray(image[..., :3]))["image"]
    return changed[..., :1] if grey else np.concatenate([changed, image[..., 3:]], axis=2)


def reseed(transform: A.Compose, seed: int) -> None:
    """Seed a transform, so that the next view follows from `seed` alone.

    All of its steps share one generator. Albumentations' `set_random_seed` gives each step a generator of its own with
    the same seed, which would correlate them.
    """
    transform.set_random_state(np.random.default_rng(seed), random.Random(seed))
