"""Weak and strong views of an image.

Weak is geometric: scale, flip, pad, crop (the paper's training transform, method section of U2PL's
`augmentation.py`). Strong adds color to the weak view; the published method has none and relies on CutMix.
"""

import os
import random
from typing import NamedTuple

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # no version look-up over the network at import

import albumentations as A
import cv2
import numpy as np
import torch
from torch import Tensor

from pcr_seg.data.sources import IGNORE_INDEX

MEAN = (123.675, 116.28, 103.53)  # ImageNet, RGB in 0..255
STD = (58.395, 57.12, 57.375)
MEAN_COLOR = tuple(round(value) for value in MEAN)

cv2.setNumThreads(0)  # the loader's processes are the parallelism; OpenCV's own threads fight with them


class View(NamedTuple):
    """A part of an image: its rows and columns, the size (height, width) they are shown at, and whether mirrored."""

    rows: slice
    columns: slice
    size: tuple[int, int]
    mirrored: bool


def random_view(
    height: int, width: int, crop_size: int, scale: tuple[float, float], generator: np.random.Generator
) -> View:
    """Draw what a square crop of the randomly scaled and mirrored image would show.

    Shrinking and enlarging are equally likely, each uniform in its range, and so is every position of the crop in the
    scaled image; its edges are rounded to whole pixels of the image itself, which therefore need not be scaled whole.

    Args:
        height: of the image.
        width: of the image.
        crop_size: side of the crop in pixels; the view is smaller where the scaled image is.
        scale: smallest (at most 1) and largest (at least 1) factor.
        generator: of the draws.
    """
    factor = generator.uniform(scale[0], 1) if generator.random() < 0.5 else generator.uniform(1, scale[1])
    parts, size = [], []
    for side in (height, width):
        scaled = max(1, int(side * factor))
        shown = min(crop_size, scaled)
        start = int(generator.integers(scaled - shown + 1)) * side // scaled
        parts.append(slice(start, start + max(1, round(shown * side / scaled))))
        size.append(shown)
    return View(*parts, tuple(size), generator.random() < 0.5)


def geometric(
    image: np.ndarray,
    mask: np.ndarray,
    crop_size: int,
    scale: tuple[float, float] = (0.5, 2.0),
    pad_label: int = IGNORE_INDEX,
    *,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Weak view of an image (H, W, 3) and its mask (H, W), square: random scale, mirror image, crop, padding.

    Padding is the mean color, evenly on both sides; its label `pad_label` is 255, which keeps it out of every loss, or
    0 as in the reference code. Only the part that is shown is resized: bilinear, the mask by nearest neighbour.
    """
    view = random_view(*image.shape[:2], crop_size, scale, generator)
    return (
        show(image, view, crop_size, cv2.INTER_LINEAR, MEAN_COLOR),
        show(mask, view, crop_size, cv2.INTER_NEAREST, pad_label),
    )


def show(pixels: np.ndarray, view: View, crop_size: int, interpolation: int, fill: int | tuple) -> np.ndarray:
    """Resize the part of `pixels` (H, W) or (H, W, 3) that a view shows, mirror it, and pad it to the crop."""
    shown = cv2.resize(pixels[view.rows, view.columns], view.size[::-1], interpolation=interpolation)
    if view.mirrored:
        shown = cv2.flip(shown, 1)
    top, left = ((crop_size - side) // 2 for side in view.size)
    bottom, right = crop_size - view.size[0] - top, crop_size - view.size[1] - left
    return cv2.copyMakeBorder(shown, top, bottom, left, right, cv2.BORDER_CONSTANT, value=fill)


def photometric() -> A.Compose:
    """Color jitter, grayscale, blur: the strong view of UniMatch and BRPG, not of the published PCR."""
    return A.Compose(
        [
            A.ColorJitter(brightness=(0.5, 1.5), contrast=(0.5, 1.5), saturation=(0.5, 1.5), hue=(-0.25, 0.25), p=0.8),
            A.ToGray(p=0.2),
            A.GaussianBlur(blur_limit=0, sigma_limit=(0.1, 2.0), p=0.5),
        ]
    )


def reseed(transform: A.Compose, seed: int) -> None:
    """Make the next view follow from `seed` alone.

    One generator for all steps: albumentations' own `set_random_seed` gives each step a generator with the
    same seed, so that they would hang together.
    """
    transform.set_random_state(np.random.default_rng(seed), random.Random(seed))


def normalize(image: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 RGB -> (3, H, W) float with ImageNet's mean 0 and deviation 1."""
    # Channel by channel from here on, as the batch will hold it: strided arithmetic takes twice as long.
    pixels = torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32, order="C"))
    return pixels.sub_(torch.tensor(MEAN)[:, None, None]).div_(torch.tensor(STD)[:, None, None])


def denormalize(image: Tensor) -> np.ndarray:
    """(3, H, W) normalized -> (H, W, 3) uint8 RGB: the inverse of `normalize`."""
    pixels = image.detach().cpu().float().permute(1, 2, 0).numpy() * STD + MEAN
    return pixels.round().clip(0, 255).astype(np.uint8)
