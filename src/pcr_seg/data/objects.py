"""Measure the size and thickness of each class's objects, and how much of them a network's stride can show.

Objects are connected components. A network predicts on a grid with a cell for every 4th, 8th or 16th pixel, which is
enlarged to the image. So objects thinner than a cell are lost, however well the network is trained.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np

from pcr_seg.data.files import IGNORE_INDEX, DataError, Sample, read_mask
from pcr_seg.data.sources import Source
from pcr_seg.data.splits import in_threads

STRIDES = (4, 8, 16)
MOST, MOST_PIXELS = 200, 20_000_000  # so many masks are measured at most, at equal distances; and so many pixels
SMALLEST = 32  # images with a shorter side are not measured, since a grid would have two cells (pixels)
LOSS = 0.8  # objects that keep a smaller IoU are called too thin or small for a stride
SPECK = 4  # smaller components (in pixels) do not count: they are left over from borders drawn by hand


class Objects(NamedTuple):
    """The objects of one class.

    count: number of components of SPECK pixels or more in the masks that were measured.
    share: share of the labeled pixels, 0..1.
    size: longer side of the bounding box in pixels: the median, weighted by the objects' pixels.
    thickness: in pixels, a median as well; exact for stripes, two thirds of the diameter for a disc.
    kept: by stride, the IoU in 0..1 of a perfect prediction at that stride; None if no mask shows the class.
    """

    count: int
    share: float
    size: float
    thickness: float
    kept: dict[int, float | None]


class Measured(NamedTuple):
    """Measurements of one mask."""

    components: list[tuple[int, float, float, float]]  # class, area, size and thickness of each object
    pixels: dict[int, np.ndarray]  # by stride, a confusion matrix (C, C) of [truth, perfect prediction]


def measure(source: Source, pixels: int) -> list[Objects] | None:
    """Measure the objects of each class in some of the training masks; return None if none can be measured.

    Masks that cannot be read are left out; `check` names them.

    Args:
        source: the data set.
        pixels: typical number of pixels of an image.
    """
    masked = [sample for sample in source.train if sample.mask]
    most = min(MOST, max(10, MOST_PIXELS // pixels))
    some = masked[:: -(-len(masked) // most) or 1]
    measured = in_threads(partial(look, num_classes=len(source.classes)), some, "Measuring objects")
    found = [one for one in measured if one is not None]
    return by_class(found, len(source.classes)) if found else None


def look(sample: Sample, num_classes: int) -> Measured | None:
    """Measure one mask; None if it is tiny, shows nothing or cannot be read."""
    try:
        mask = read_mask(sample)
    except (DataError, OSError):
        return None
    if min(mask.shape) < SMALLEST or (mask == IGNORE_INDEX).all():
        return None
    components = [(label, *one) for label in np.unique(mask[mask < num_classes]) for one in connected(mask == label)]
    return Measured(components, {stride: confusion(mask, after(mask, stride), num_classes) for stride in STRIDES})


def connected(where: np.ndarray) -> list[tuple[float, float, float]]:
    """Return area, size and thickness, in pixels, of the components of a mask (H, W) of bool, without specks.

    The pixels of a stripe of width w lie w / 4 from its edge on average, so thickness is four times the mean distance.
    """
    rows, columns = (np.flatnonzero(where.any(axis=axis)) for axis in (1, 0))
    # The bounding box of all, with a margin of one pixel unless the image ends there.
    where = where[max(0, rows[0] - 1) : rows[-1] + 2, max(0, columns[0] - 1) : columns[-1] + 2].astype(np.uint8)
    number, labels, boxes, _ = cv2.connectedComponentsWithStats(where, connectivity=8)
    areas, sizes = boxes[:, cv2.CC_STAT_AREA], boxes[:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]].max(axis=1)
    # OpenCV's distance is to the center of the next pixel outside, which is half a pixel beyond the edge. A full mask
    # has no pixel outside, so the distance is limited.
    distance = np.minimum(cv2.distanceTransform(where, cv2.DIST_L2, cv2.DIST_MASK_5), max(where.shape)) - 0.5
    means = np.bincount(labels.ravel(), distance.ravel(), number) / np.maximum(areas, 1)
    return [(float(areas[i]), float(sizes[i]), float(4 * means[i])) for i in range(1, number) if areas[i] >= SPECK]


def after(mask: np.ndarray, stride: int) -> np.ndarray:
    """Return a mask (H, W) as a perfect network of this stride would predict it.

    A class's share of a cell is taken as its logit. Logits are enlarged bilinearly, and the largest one wins.
    """
    height, width = mask.shape
    grid = max(1, round(width / stride)), max(1, round(height / stride))
    best, found = np.full(mask.shape, -1, np.float32), np.zeros(mask.shape, np.uint8)
    for label in np.unique(mask[mask != IGNORE_INDEX]):
        shares = cv2.resize((mask == label).astype(np.float32), grid, interpolation=cv2.INTER_AREA)
        logits = cv2.resize(shares, (width, height), interpolation=cv2.INTER_LINEAR)
        found[logits > best] = label
        best = np.maximum(best, logits)
    return found


def confusion(truth: np.ndarray, found: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the confusion matrix (C, C) of [truth, found] pixel counts, without ignored pixels."""
    known = truth < num_classes
    pairs = truth[known].astype(int) * num_classes + found[known]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def by_class(measured: Sequence[Measured], num_classes: int) -> list[Objects]:
    """Summarize the objects of each class over all masks."""
    totals = {stride: sum(one.pixels[stride] for one in measured) for stride in STRIDES}
    kept = {stride: iou(total) for stride, total in totals.items()}
    share = totals[STRIDES[0]].sum(axis=1) / max(totals[STRIDES[0]].sum(), 1)
    components = np.array([one for each in measured for one in each.components]).reshape(-1, 4)
    found = []
    for label in range(num_classes):
        _, areas, sizes, thickness = components[components[:, 0] == label].T
        medians = [round(weighted_median(values, areas), 1) for values in (sizes, thickness)]
        kept_of_class = {stride: kept[stride][label] for stride in STRIDES}
        found.append(Objects(len(areas), round(float(share[label]), 6), *medians, kept_of_class))
    return found


def mean_kept(objects: Sequence[Objects], stride: int) -> float:
    """Return the mIoU, in 0..1, of a perfect prediction at a stride, over the classes that occur."""
    return float(np.mean([one.kept[stride] for one in objects if one.kept[stride] is not None]))


def iou(pixels: np.ndarray) -> list[float | None]:
    """Return the IoU of each class from a confusion matrix (C, C); None for a class that does not occur."""
    hits, either = pixels.diagonal(), pixels.sum(axis=0) + pixels.sum(axis=1) - pixels.diagonal()
    return [round(float(hit / total), 4) if total else None for hit, total in zip(hits, either, strict=True)]


def weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    """Return the value at which half of the total weight is reached; 0 if there are no values."""
    if not len(values):
        return 0.0
    order = np.argsort(values)
    return float(values[order][np.searchsorted(np.cumsum(weights[order]), weights.sum() / 2)])
