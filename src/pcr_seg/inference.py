"""From a network to predictions for whole images of any size, and to their mIoU.

`predict` everywhere: normalized images (b, 3, H, W) -> logits (b, C, H, W).
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from pcr_seg.method import PrototypeBank, upsample

Predict = Callable[[Tensor], Tensor]


def predict_heads(network: torch.nn.Module, bank: PrototypeBank | None, images: Tensor) -> Tensor:
    """Full-resolution logits of the linear and, with a bank, the prototype head side by side: (B, C or 2C, H, W).

    One tensor, so that every protocol below treats the heads alike in one forward.
    """
    output, size = network(images), images.shape[-2:]
    linear = upsample(output.logits.float(), size)
    return linear if bank is None else torch.cat([linear, bank.dense_logits(output.features, size)], dim=1)


def whole_image(predict: Predict, images: Tensor) -> Tensor:
    """Predict the image as it is (the paper's protocol for VOC)."""
    return predict(images)


def sliding_window(
    predict: Predict, images: Tensor, window: int, stride: int, num_classes: int | None = None
) -> Tensor:
    """Predict overlapping windows and average their logits (the paper's protocol for Cityscapes).

    Windows start every `stride` pixels; the last row and column move back inside. An image smaller than
    the window is padded with 0, the mean color, at the bottom and right, and cut back.

    Args:
        predict: takes windows of exactly (window, window).
        images: (B, 3, H, W), any size.
        window: side of a window in pixels (Cityscapes: 769).
        stride: pixels between windows (Cityscapes: 513, two thirds of the window rounded up).
        num_classes: number of logits; taken from the first prediction by default.

    Returns:
        (B, num_classes, H, W): at each pixel the mean over the windows that cover it.
    """
    height, width = images.shape[-2:]
    images = F.pad(images, (0, max(0, window - width), 0, max(0, window - height)))
    rows, columns = (window_starts(size, window, stride) for size in images.shape[-2:])
    total = count = None
    for top in rows:
        for left in columns:
            logits = predict(images[..., top : top + window, left : left + window]).float()
            if total is None:
                total = logits.new_zeros(len(images), num_classes or logits.shape[1], *images.shape[-2:])
                count = logits.new_zeros(images.shape[-2:])
            total[..., top : top + window, left : left + window] += logits
            count[top : top + window, left : left + window] += 1
    return (total / count)[..., :height, :width]


def window_starts(size: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows along one axis of at least the window's length."""
    steps = math.ceil((size - window) / stride) + 1
    return [min(i * stride, size - window) for i in range(steps)]


def iou_per_class(confusion: Tensor) -> Tensor:
    """IoU of each class from a confusion matrix (C, C) of [truth, prediction] pixel counts.

    NaN for a class absent from truth and prediction of the whole set: the mean leaves it out. (The
    reference code counts it as 0, which equals on the full VOC and Cityscapes val sets, where every class occurs.)
    """
    confusion = confusion.double()
    hit = confusion.diagonal()
    union = confusion.sum(0) + confusion.sum(1) - hit
    return torch.where(union > 0, hit / union, torch.nan)
