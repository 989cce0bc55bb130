"""How large and how thick the objects of each class are, and what a network's stride costs them.

Objects are connected components. A network predicts on a grid of every 4th, 8th or 16th pixel, which is enlarged to the
image: what is thinner than a cell is lost, however well it is trained.
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
MOST, MOST_PIXELS = 200, 20_000_000  # masks that are measured, spread evenly, and pixels of them together
SMALLEST = 32  # side of an image in pixels below which nothing is measured: a grid would have two cells
LOSS = 0.8  # of the IoU; what keeps less is called too thin or small for a stride
SPECK = 4  # pixels; smaller components are borders drawn by hand


class Objects(NamedTuple):
    """The objects of one class.

    count: components of SPECK pixels or more in the masks that were measured.
    share: of the labeled pixels.
    size: longer side of the bounding box in pixels; half of the class's pixels are in smaller ones.
    thickness: in pixels, likewise; exact for stripes, two thirds of a disc's diameter.
    kept: IoU with itself after a stride, by stride; None where no mask shows the class.
    """

    count: int
    share: float
    size: float
    thickness: float
    kept: dict[int, float | None]


class Measured(NamedTuple):
    """What one mask shows: (class, area, size, thickness) of its components, and (C, C) pixels for each stride."""

    components: list[tuple[int, float, float, float]]
    pixels: dict[int, np.ndarray]


def measure(source: Source, pixels: int) -> list[Objects] | None:
    """The objects of each class in a sample of the training masks; None where there is nothing to measure.

    Masks that cannot be read are left out: `check` names them.

    Args:
        source: the data set.
        pixels: of one of its images, about.
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
    """Area, size and thickness of the components of (H, W) bool, specks apart.

    A stripe of width w lies on average w / 4 from its edge: the thickness is four times that mean distance.
    """
    rows, columns = (np.flatnonzero(where.any(axis=axis)) for axis in (1, 0))
    # With one pixel around them, where the image goes on.
    where = where[max(0, rows[0] - 1) : rows[-1] + 2, max(0, columns[0] - 1) : columns[-1] + 2].astype(np.uint8)
    number, labels, boxes, _ = cv2.connectedComponentsWithStats(where, connectivity=8)
    areas, sizes = boxes[:, cv2.CC_STAT_AREA], boxes[:, [cv2.CC_STAT_WIDTH, cv2.CC_STAT_HEIGHT]].max(axis=1)
    # To the center of the next pixel outside, half a pixel behind the edge; of a full mask there is none.
    distance = np.minimum(cv2.distanceTransform(where, cv2.DIST_L2, cv2.DIST_MASK_5), max(where.shape)) - 0.5
    means = np.bincount(labels.ravel(), distance.ravel(), number) / np.maximum(areas, 1)
    return [(float(areas[i]), float(sizes[i]), float(4 * means[i])) for i in range(1, number) if areas[i] >= SPECK]


def after(mask: np.ndarray, stride: int) -> np.ndarray:
    """A mask (H, W) as a perfect network of this stride would predict it.

    Each class's share of a cell is its logit there; logits are enlarged bilinearly, and the largest counts.
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
    """Pixels (C, C) of [truth, found], ignored ones apart."""
    known = truth < num_classes
    pairs = truth[known].astype(int) * num_classes + found[known]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def by_class(measured: Sequence[Measured], num_classes: int) -> list[Objects]:
    """The objects of each class, over all masks."""
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
    """The mIoU that a perfect mask keeps after a stride, over the classes that occur."""
    return float(np.mean([one.kept[stride] for one in objects if one.kept[stride] is not None]))


def iou(pixels: np.ndarray) -> list[float | None]:
    """IoU of each class from (C, C) pixels; None of one that does not occur."""
    hits, either = pixels.diagonal(), pixels.sum(axis=0) + pixels.sum(axis=1) - pixels.diagonal()
    return [round(float(hit / total), 4) if total else None for hit, total in zip(hits, either, strict=True)]


def weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    """The value at which half of the weight is reached; 0 of none."""
    if not len(values):
        return 0.0
    order = np.argsort(values)
    return float(values[order][np.searchsorted(np.cumsum(weights[order]), weights.sum() / 2)])
