"""From the bytes of images to the normalized floats that networks take."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB in 0..1
IMAGENET_STD = (0.229, 0.224, 0.225)


def exact(device: torch.device) -> torch.dtype:
    """Return the most precise float type of a device: float64, but float32 on Apple's GPUs, which have no other."""
    return torch.float32 if device.type == "mps" else torch.float64


def by_channel(values: Sequence[float], channels: int) -> np.ndarray:
    """Turn RGB means or deviations in 0..1 into (channels,) in 0..255; grey and a fourth channel get their average."""
    order = {1: [3], 3: [0, 1, 2], 4: [0, 1, 2, 3]}[channels]
    return np.array([*(255 * value for value in values), 255 * sum(values) / 3], np.float32)[order]


def mean_and_std(network: nn.Module | None, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and deviation (channels,), in 0..255, that images are normalised by: the network's, or ImageNet's."""
    mean, std = getattr(network, "mean", IMAGENET_MEAN), getattr(network, "std", IMAGENET_STD)
    return by_channel(mean, channels), by_channel(std, channels)


def as_tensor(image: np.ndarray) -> Tensor:
    """Turn an image (H, W, C) of uint8 into a contiguous tensor (C, H, W) of uint8."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def normalize(pixels: Tensor, network: nn.Module | None = None) -> Tensor:
    """Normalize uint8 pixels (..., C, H, W) to floats, by the network's `mean` and `std` (RGB, 0..1).

    Without a network, or if it has no such attributes, by ImageNet's.
    """
    images = pixels.float()
    # Channel by channel with Python numbers: a tensor of them would be copied to the device in each step.
    for channel, mean, std in zip(images.unbind(-3), *mean_and_std(network, pixels.shape[-3]), strict=True):
        channel.sub_(float(mean)).div_(float(std))
    return images


def as_floats(batch: dict, network: nn.Module | None = None) -> dict:
    """Return a loader's batch as a network takes it: images normalized to floats, masks as int64.

    Loaders give bytes, since these take a fifth of the memory on their way from the loader's processes to the device.
    Images that are floats are left at their values: they are normalized already, or are feature maps.
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
