"""Weak and strong views of an image.

Weak is geometric: scale, flip, pad, crop (the paper's training transform, method section of U2PL's
`augmentation.py`). Strong adds color to the weak view; the published method has none and relies on CutMix.
"""

import math
import os
import random

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # no version look-up over the network at import

import albumentations as A
import cv2
import numpy as np
import torch
from torch import Tensor

from pcr_seg.data.files import IGNORE_INDEX

MEAN = (123.675, 116.28, 103.53)  # ImageNet, RGB in 0..255
STD = (58.395, 57.12, 57.375)

cv2.setNumThreads(0)  # the loader's processes are the parallelism; OpenCV's own threads fight with them


def mean_and_std(channels: int) -> tuple[np.ndarray, np.ndarray]:
    """ImageNet's for RGB; their average for grey, and for a fourth channel."""
    order = {1: [3], 3: [0, 1, 2], 4: [0, 1, 2, 3]}[channels]
    return tuple(np.array([*values, sum(values) / 3], np.float32)[order] for values in (MEAN, STD))


def geometric(
    crop_size: int, scale: tuple[float, float] = (0.5, 2.0), pad_label: int = IGNORE_INDEX, channels: int = 3
) -> A.Compose:
    """Weak view of image and mask: random scale, horizontal flip, padding to the crop, random crop.

    Shrinking and enlarging are equally likely, each uniform in its range. Padding is the mean color, evenly
    on both sides.

    Args:
        crop_size: side of the square result in pixels.
        scale: smallest (at most 1) and largest (at least 1) factor.
        pad_label: label of padded pixels; 255 keeps them out of every loss, 0 repeats the reference code.
        channels: of the images.
    """
    mean_color = tuple(round(float(value)) for value in mean_and_std(channels)[0])
    padding = {"border_mode": cv2.BORDER_CONSTANT, "fill": mean_color, "fill_mask": pad_label}
    at_least = math.ceil(1 / scale[0])  # a smaller side would shrink to nothing
    return A.Compose(
        [
            A.PadIfNeeded(at_least, at_least, **padding),
            A.OneOf(
                [
                    A.RandomScale(scale_limit=(scale[0] - 1, 0), p=1),
                    A.RandomScale(scale_limit=(0, scale[1] - 1), p=1),
                ],
                p=1,
            ),
            A.HorizontalFlip(p=0.5),
            A.PadIfNeeded(crop_size, crop_size, **padding),
            A.RandomCrop(crop_size, crop_size),
        ]
    )


def photometric() -> A.Compose:
    """Color jitter, grayscale, blur: the strong view of UniMatch and BRPG, not of the published PCR."""
    return A.Compose(
        [
            A.ColorJitter(brightness=(0.5, 1.5), contrast=(0.5, 1.5), saturation=(0.5, 1.5), hue=(-0.25, 0.25), p=0.8),
            A.ToGray(p=0.2),
            A.GaussianBlur(blur_limit=0, sigma_limit=(0.1, 2.0), p=0.5),
        ]
    )


def recolor(transform: A.Compose, image: np.ndarray) -> np.ndarray:
    """Apply `photometric` to (H, W, C): to grey as RGB, and to the first three of four channels."""
    grey = image.shape[2] == 1
    changed = transform(image=np.repeat(image, 3, axis=2) if grey else np.ascontiguousarray(image[..., :3]))["image"]
    return changed[..., :1] if grey else np.concatenate([changed, image[..., 3:]], axis=2)


def reseed(transform: A.Compose, seed: int) -> None:
    """Make the next view follow from `seed` alone.

    One generator for all steps: albumentations' own `set_random_seed` gives each step a generator with the
    same seed, so that scale, flip and position would hang together.
    """
    transform.set_random_state(np.random.default_rng(seed), random.Random(seed))


def normalize(image: np.ndarray) -> Tensor:
    """(H, W, C) uint8 -> (C, H, W) float with ImageNet's mean 0 and deviation 1."""
    mean, std = map(torch.from_numpy, mean_and_std(image.shape[2]))
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float()
    return pixels.sub_(mean[:, None, None]).div_(std[:, None, None])


def denormalize(image: Tensor) -> np.ndarray:
    """(C, H, W) normalized -> (H, W, C) uint8: the inverse of `normalize`."""
    mean, std = mean_and_std(len(image))
    pixels = image.detach().cpu().float().permute(1, 2, 0).numpy() * std + mean
    return pixels.round().clip(0, 255).astype(np.uint8)
