"""IoU, Dice, precision, recall and boundary IoU from counts of pixels, of single images or of all, in NumPy."""

import math
from typing import NamedTuple

import cv2
import numpy as np

from pcr_seg.data.files import IGNORE_INDEX


class ByImage(NamedTuple):
    """What the linear head does on each image."""

    names: list[str]  # of N images
    counts: np.ndarray  # (N, 3, C) pixels of each class: hit, true, and predicted
    most: np.ndarray  # (C, C) of [truth, prediction], the most pixels on one image
    where: np.ndarray  # (C, C) and the number of that image


def together(one: ByImage, other: ByImage) -> ByImage:
    """The images of two processes."""
    where = np.where(other.most > one.most, other.where + len(one.names), one.where)
    counts = np.concatenate([one.counts, other.counts])
    return ByImage([*one.names, *other.names], counts, np.maximum(one.most, other.most), where)


def measures(counts: np.ndarray) -> dict[str, np.ndarray]:
    """IoU, Dice, precision and recall (..., C) from pixels (..., 3, C) hit, true and predicted; NaN of 0 / 0."""
    hit, true, predicted = np.moveaxis(counts.astype(float), -2, 0)
    with np.errstate(invalid="ignore"):
        return {
            "iou": hit / (true + predicted - hit),
            "dice": 2 * hit / (true + predicted),
            "precision": hit / predicted,
            "recall": hit / true,
        }


def boundary_counts(truth: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Pixels (2, C) in the intersection and the union of the boundaries of a true and a predicted mask (H, W).

    A boundary is what lies within a class and within 2 % of the image's diagonal from its border. Ignored pixels (255)
    belong to no class in either mask. Source: Cheng et al., "Boundary IoU", CVPR 2021, and its code, whose erosions by
    3 x 3 pixels, as many as that distance has, are one by a larger square here.
    """
    predicted = np.where(truth == IGNORE_INDEX, IGNORE_INDEX, predicted)
    distance = max(1, round(0.02 * math.hypot(*truth.shape)))
    square = np.ones((2 * distance + 1, 2 * distance + 1), np.uint8)
    counts = np.zeros((2, num_classes), np.int64)
    for label in np.union1d(np.unique(truth), np.unique(predicted)).tolist():
        if label >= num_classes:
            continue
        edges = []
        for mask in (truth == label, predicted == label):
            inner = cv2.erode(mask.astype(np.uint8), square, borderType=cv2.BORDER_CONSTANT, borderValue=0)
            edges.append(mask & (inner == 0))
        counts[:, label] = (edges[0] & edges[1]).sum(), (edges[0] | edges[1]).sum()
    return counts
