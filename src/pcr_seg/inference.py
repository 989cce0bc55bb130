"""From a network to predictions for whole images of any size, and to their IoU.

`predict` everywhere: normalized images (b, 3, H, W) -> logits (b, C, H, W). A protocol is a function of `predict` and
images (B, 3, H, W) that returns logits (B, C, H, W), those of several heads side by side; conf/protocol names them.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pcr_seg.method.sampling import upsample
from pcr_seg.pixels import exact

Predict = Callable[[Tensor], Tensor]
Protocol = Callable[[Predict, Tensor], Tensor]


def whole_image(predict: Predict, images: Tensor) -> Tensor:
    """Predict the image as it is (the paper's protocol for VOC)."""
    return predict(images)


def sliding_window(
    predict: Predict,
    images: Tensor,
    window: int,
    stride: int,
    num_classes: int | None = None,
    window_batch: int | None = None,
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
        window_batch: windows predicted at a time, by default 4, on a CPU 1, whose caches hold no more; changes time and
            memory, not the result.

    Returns:
        (B, num_classes, H, W): at each pixel the mean over the windows that cover it.

    Raises:
        ValueError: a stride that leaves pixels between the windows.
    """
    if not 0 < stride <= window:
        raise ValueError(f"protocol.stride={stride}: choose 1 to protocol.window={window}, so that windows touch")
    height, width = images.shape[-2:]
    images = F.pad(images, (0, max(0, window - width), 0, max(0, window - height)))
    rows, columns = (window_starts(size, window, stride) for size in images.shape[-2:])
    places = [(slice(top, top + window), slice(left, left + window)) for top in rows for left in columns]
    window_batch = window_batch or (1 if images.device.type == "cpu" else 4)
    total = count = None
    for i in range(0, len(places), window_batch):
        some = places[i : i + window_batch]
        logits = predict(torch.cat([images[..., y, x] for y, x in some])).float()
        if total is None:
            total = logits.new_zeros(len(images), num_classes or logits.shape[1], *images.shape[-2:])
            count = logits.new_zeros(images.shape[-2:])
        for (y, x), window_logits in zip(some, logits.split(len(images)), strict=True):
            total[..., y, x] += window_logits
            count[y, x] += 1
    return (total / count)[..., :height, :width]


def window_starts(size: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows along one axis of at least the window's length."""
    steps = math.ceil((size - window) / stride) + 1
    return [min(i * stride, size - window) for i in range(steps)]


def multi_scale(
    predict: Predict,
    images: Tensor,
    scales: Sequence[float] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
    flip: bool = True,
    inner: Protocol = whole_image,
) -> Tensor:
    """Average the logits of resized and of horizontally mirrored images, all brought back to the image's size.

    Logits and not probabilities, as `--scales` of U2PL's and the paper's `eval.py` averages; both are released with
    scale 1 alone, and neither mirrors.

    Args:
        predict: as everywhere.
        images: (B, 3, H, W), any size.
        scales: factors of height and width, rounded to whole pixels, bilinear with aligned corners.
        flip: predict the mirrored image as well and mirror its logits back.
        inner: how each of these images is predicted; one that answers in the size it is given.

    Returns:
        (B, C, H, W): the mean over scales and mirrors.
    """
    total, size = 0.0, images.shape[-2:]
    for scale in scales:
        scaled = upsample(images, tuple(max(1, round(side * scale)) for side in size))
        logits = inner(predict, scaled)
        if flip:
            logits = (logits + inner(predict, scaled.flip(-1)).flip(-1)) / 2
        total = total + upsample(logits, size)
    return total / len(scales)


def center_padded(predict: Predict, images: Tensor, size: int) -> Tensor:
    """Predict the center of the image, padded to a square: what U2PL and its descendants report while they train.

    The logits are those of the square, (B, C, size, size). They are scored against `center_pad(mask, (size, size))`,
    where the padding is class 0, VOC's background, and counts: 29 % of the pixels of a 375 x 500 image, and easy ones.
    `center_pad(logits, (H, W))` is the prediction for the image itself. Source: U2PL, `Crop` in `augmentation.py`.
    """
    return predict(center_pad(images, (size, size)))


def center_pad(x: Tensor, size: Sequence[int]) -> Tensor:
    """Pad with 0 or cut the last two axes to `size`, evenly on both sides, an odd pixel at the bottom or right.

    So padding is the mean color in a normalized image, and class 0 in a mask. Cutting back to the original size
    undoes padding exactly.
    """
    height, width = (new - old for new, old in zip(size, x.shape[-2:], strict=True))
    if not (height or width):
        return x
    top, left = int(height / 2), int(width / 2)  # towards zero, so that padding and cutting mirror each other
    return F.pad(x, (left, width - left, top, height - top))


def disagreement(logits: Tensor, other: Tensor) -> Tensor:
    """How far two heads, logits (B, C, H, W), are from giving the same label: (B, H, W) in 0..1.

    The probability that two labels, one drawn from each head's probabilities, differ: 1 - sum_c p_c q_c (query by
    committee, Seung et al. 1992, with a committee of two). 0 where both are certain of one class, 1 where they are
    certain of two; high as well where both are unsure. Distances (total variation, Jensen-Shannon) would be low there,
    but mostly measure that cosines give softer probabilities than a linear head: docs/predict.md.
    """
    return 1 - (logits.softmax(dim=1) * other.softmax(dim=1)).sum(dim=1)


def iou_per_class(confusion: Tensor) -> Tensor:
    """IoU of each class from a confusion matrix (C, C) of [truth, prediction] pixel counts.

    NaN for a class absent from truth and prediction of the whole set: the mean leaves it out. (The
    reference code counts it as 0, which equals on the full VOC and Cityscapes val sets, where every class occurs.)
    """
    confusion = confusion.to(exact(confusion.device))
    hit = confusion.diagonal()
    union = confusion.sum(0) + confusion.sum(1) - hit
    return torch.where(union > 0, hit / union, torch.nan)
