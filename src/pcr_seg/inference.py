"""Prediction of whole images of any size, and IoU.

Throughout, `predict` takes normalized images (b, 3, H, W) and returns logits (b, C, H, W). A protocol is a function of
`predict` and images (B, 3, H, W) that returns logits (B, C, H, W). For several heads the logits are concatenated along
C. The protocols to choose from are in conf/protocol.
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
    """Predict the image as it is: the paper's protocol for VOC."""
    return predict(images)


def sliding_window(
    predict: Predict,
    images: Tensor,
    window: int,
    stride: int,
    num_classes: int | None = None,
    window_batch: int | None = None,
) -> Tensor:
    """Predict overlapping windows and average their logits: the paper's protocol for Cityscapes.

    Windows start every `stride` pixels; those of the last row and column move back inside. An image smaller than the
    window is padded at the bottom and right with 0, the mean color, and the logits are cut back.

    Args:
        predict: sees windows of exactly (window, window) pixels.
        images: (B, 3, H, W), any size.
        window: side of a window in pixels (Cityscapes: 769).
        stride: pixels between windows (Cityscapes: 513, two thirds of the window rounded up).
        num_classes: C; by default taken from the first prediction.
        window_batch: windows predicted at a time: by default 4, on a CPU 1. It changes time and memory, not the result.

    Returns:
        (B, num_classes, H, W): at each pixel the mean over the windows that cover it.

    Raises:
        ValueError: the stride is larger than the window, which would leave out pixels, or below 1.
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
    """Return the first pixel of each window along an axis of `size` pixels, which has to be at least `window`."""
    steps = math.ceil((size - window) / stride) + 1
    return [min(i * stride, size - window) for i in range(steps)]


def multi_scale(
    predict: Predict,
    images: Tensor,
    scales: Sequence[float] = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
    flip: bool = True,
    inner: Protocol = whole_image,
) -> Tensor:
    """Predict the image at several scales, mirrored as well, and average the logits at the image's size.

    Logits are averaged, not probabilities, as `--scales` does in the `eval.py` of U2PL and of the paper. Both are
    released with scale 1 alone, and neither mirrors.

    Args:
        predict: as in the module's docstring.
        images: (B, 3, H, W), any size.
        scales: factors of height and width; images are resized bilinearly with aligned corners.
        flip: predict each image mirrored horizontally as well.
        inner: the protocol that predicts each of these images; it has to keep the size.

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
    """Predict the image padded or cut to a square around its center, as U2PL and its descendants validate in training.

    The logits are those of the square, (B, C, size, size). They are scored against `center_pad(mask, (size, size))`.
    Its padding is class 0, VOC's background, and counts as pixels that are easy to get right: 29 % of the square for an
    image of 375 x 500. `center_pad(logits, (H, W))` gives the prediction for the image itself. Source: U2PL, `Crop` in
    `augmentation.py`.
    """
    return predict(center_pad(images, (size, size)))


def center_pad(x: Tensor, size: Sequence[int]) -> Tensor:
    """Pad with 0, or cut, the last two axes to `size`: evenly on both sides, an odd pixel at the bottom or right.

    In a normalized image 0 is the mean color, in a mask class 0. Cutting back to the original size undoes padding
    exactly.
    """
    height, width = (new - old for new, old in zip(size, x.shape[-2:], strict=True))
    if not (height or width):
        return x
    top, left = int(height / 2), int(width / 2)  # towards zero, so that padding and cutting mirror each other
    return F.pad(x, (left, width - left, top, height - top))


def disagreement(logits: Tensor, other: Tensor) -> Tensor:
    """Return how likely two heads with logits (B, C, H, W) are to give different labels: (B, H, W) in 0..1.

    It is 1 - sum_c p_c q_c: the probability that two labels differ, one drawn from each head's probabilities (query by
    committee, Seung et al. 1992, with a committee of two). It is 0 where both heads are certain of the same class, 1
    where they are certain of different ones, and also high where both are unsure. Distances between the probabilities
    (total variation, Jensen-Shannon) mostly measure that cosines give softer probabilities than a linear head:
    docs/predict.md.
    """
    return 1 - (logits.softmax(dim=1) * other.softmax(dim=1)).sum(dim=1)


def iou_per_class(confusion: Tensor) -> Tensor:
    """Return the IoU of each class (C,), in 0..1, from a confusion matrix (C, C) of [truth, prediction] pixel counts.

    A class that is neither in the truth nor in the prediction of the whole set is NaN, and a mean leaves it out. The
    reference code counts it as 0; on the full VOC and Cityscapes val sets every class occurs, and both agree.
    """
    confusion = confusion.to(exact(confusion.device))
    hit = confusion.diagonal()
    union = confusion.sum(0) + confusion.sum(1) - hit
    return torch.where(union > 0, hit / union, torch.nan)
