"""IoU, Dice, precision, recall and boundary IoU from pixel counts, of one image or of many, in NumPy."""

import math
from typing import NamedTuple

import cv2
import numpy as np

from pcr_seg.data.files import IGNORE_INDEX


class ByImage(NamedTuple):
    """Pixel counts of the linear head on each of N images."""

    names: list[str]  # of the images
    counts: np.ndarray  # (N, 3, C) pixels of each class: hit, true, and predicted
    most: np.ndarray  # (C, C): for each [truth, prediction] the largest pixel count on a single image
    where: np.ndarray  # (C, C): the index of that image


def together(one: ByImage, other: ByImage) -> ByImage:
    """Join the images of two processes."""
    where = np.where(other.most > one.most, other.where + len(one.names), one.where)
    counts = np.concatenate([one.counts, other.counts])
    return ByImage([*one.names, *other.names], counts, np.maximum(one.most, other.most), where)


def measures(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Return IoU, Dice, precision and recall (..., C), in 0..1, from the counts (..., 3, C) of hit, true and predicted.

    Where a measure divides 0 by 0 it is NaN.
    """
    hit, true, predicted = np.moveaxis(counts.astype(float), -2, 0)
    with np.errstate(invalid="ignore"):
        return {
            "iou": hit / (true + predicted - hit),
            "dice": 2 * hit / (true + predicted),
            "precision": hit / predicted,
            "recall": hit / true,
        }


def boundary_counts(truth: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Count the pixels (2, C) in the intersection, and in the union, of a true and a predicted mask's boundaries.

    The boundary of a class is the part of it that is within 2 % of the image's diagonal from its border. The masks are
    (H, W); pixels that are ignored in the truth (255) belong to no class in either. Source: Cheng et al., "Boundary
    IoU", CVPR 2021. Its code erodes by 3 x 3 pixels once for each pixel of the distance, which equals one erosion by
    the larger square used here.
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
