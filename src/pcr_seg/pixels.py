"""From pictures' bytes to the numbers that networks take."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB in 0..1
IMAGENET_STD = (0.229, 0.224, 0.225)


def exact(device: torch.device) -> torch.dtype:
    """The most precise floats of a device: Apple's GPUs have no doubles."""
    return torch.float32 if device.type == "mps" else torch.float64


def by_channel(values: Sequence[float], channels: int) -> np.ndarray:
    """RGB's means or deviations in 0..1 as (channels,) in 0..255; grey and a fourth channel have their average."""
    order = {1: [3], 3: [0, 1, 2], 4: [0, 1, 2, 3]}[channels]
    return np.array([*(255 * value for value in values), 255 * sum(values) / 3], np.float32)[order]


def mean_and_std(network: nn.Module | None, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """What images (channels,) in 0..255 are normalised by: the network's `mean` and `std`, or ImageNet's."""
    mean, std = getattr(network, "mean", IMAGENET_MEAN), getattr(network, "std", IMAGENET_STD)
    return by_channel(mean, channels), by_channel(std, channels)


def as_tensor(image: np.ndarray) -> Tensor:
    """(H, W, C) uint8 -> (C, H, W) uint8, channel by channel as a batch holds it."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def normalize(pixels: Tensor, network: nn.Module | None = None) -> Tensor:
    """(..., C, H, W) uint8 -> floats with the mean and deviation that the network's weights were trained with.

    They are its `mean` and `std`, RGB in 0..1; ImageNet's where it has none, or without one.
    """
    images = pixels.float()
    # By numbers: a tensor of them would have to be copied to the device in each step.
    for channel, mean, std in zip(images.unbind(-3), *mean_and_std(network, pixels.shape[-3]), strict=True):
        channel.sub_(float(mean)).div_(float(std))
    return images


def as_floats(batch: dict, network: nn.Module | None = None) -> dict:
    """Make of the bytes that loaders give what a network takes: images normalized, masks as long integers.

    Bytes are a fifth of that to send from the loaders' processes and to the device. Floats are normalized already, or
    features in half precision.
    """
    result = dict(batch)
    for key, value in batch.items():
        if isinstance(value, dict):
            result[key] = as_floats(value, network)
        elif key in ("image", "weak", "strong"):
            result[key] = value.float() if value.is_floating_point() else normalize(value, network)
        elif key == "mask":
            result[key] = value.long()
    return result
