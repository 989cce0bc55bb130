"""From pictures' bytes to the numbers that networks take."""

import numpy as np
import torch
from torch import Tensor

MEAN = (123.675, 116.28, 103.53)  # ImageNet, RGB in 0..255
STD = (58.395, 57.12, 57.375)


def mean_and_std(channels: int) -> tuple[np.ndarray, np.ndarray]:
    """ImageNet's for RGB; their average for grey, and for a fourth channel."""
    order = {1: [3], 3: [0, 1, 2], 4: [0, 1, 2, 3]}[channels]
    return tuple(np.array([*values, sum(values) / 3], np.float32)[order] for values in (MEAN, STD))


def as_tensor(image: np.ndarray) -> Tensor:
    """(H, W, C) uint8 -> (C, H, W) uint8, channel by channel as a batch holds it."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def normalize(pixels: Tensor) -> Tensor:
    """(..., C, H, W) uint8 -> float with ImageNet's mean 0 and deviation 1, on the pixels' device."""
    images = pixels.float()
    # By numbers: a tensor of them would have to be copied to the device in each step.
    for channel, mean, std in zip(images.unbind(-3), *mean_and_std(pixels.shape[-3]), strict=True):
        channel.sub_(float(mean)).div_(float(std))
    return images


def as_floats(batch: dict) -> dict:
    """Make of the bytes that loaders give what networks take: images normalized, masks as long integers.

    Bytes are a fifth of that to send from the loaders' processes and to the device. Floats are normalized already.
    """
    result = dict(batch)
    for key, value in batch.items():
        if isinstance(value, dict):
            result[key] = as_floats(value)
        elif key in ("image", "weak", "strong") and not value.is_floating_point():
            result[key] = normalize(value)
        elif key == "mask":
            result[key] = value.long()
    return result
