"""Scores of images and of the set, beside torchmetrics and naive references."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import (
    multiclass_f1_score,
    multiclass_jaccard_index,
    multiclass_precision,
    multiclass_recall,
)

from pcr_seg.commands.evaluate import best_threshold
from pcr_seg.measures import boundary_counts, measures, together
from pcr_seg.scores import Scores, never_predicted

CLASSES = 4


def made(number: int = 5, seed: int = 0) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Logits (1, C, 12, 15) and masks with ignored pixels; the last class is on the last image alone."""
    torch.manual_seed(seed)
    masks = [torch.randint(CLASSES - (i < number - 1), (1, 12, 15)) for i in range(number)]
    for mask in masks:
        mask[0, :2] = 255
    return [torch.randn(1, CLASSES, 12, 15) for _ in masks], masks


def counted(logits: list[torch.Tensor], masks: list[torch.Tensor], names: str = "abcdefg") -> Scores:
    scores = Scores(CLASSES)
    for image, mask, name in zip(logits, masks, names, strict=False):
        scores.update({"linear": image}, mask, name)
    return scores


def test_measures_of_images_are_those_of_torchmetrics() -> None:
    logits, masks = made()
    found = counted(logits, masks).by_image()
    assert found.names == list("abcde")
    for i, (image, mask) in enumerate(zip(logits, masks, strict=True)):
        labels, known = image.argmax(dim=1), mask != 255
        own = measures(found.counts[i])
        for name, function in {
            "iou": multiclass_jaccard_index, "dice": multiclass_f1_score, "precision": multiclass_precision,
            "recall": multiclass_recall,
        }.items():  # fmt: skip
            wanted = function(labels[known], mask[known], num_classes=CLASSES, average="none").numpy()
            assert np.nan_to_num(own[name]) == pytest.approx(wanted, abs=1e-6), name
    assert np.isnan(measures(np.zeros((3, 2)))["recall"]).all()


def test_each_confusion_names_the_image_that_shows_most_of_it() -> None:
    logits, masks = made()
    naive = np.zeros((len(masks), CLASSES, CLASSES), int)
    for i, (image, mask) in enumerate(zip(logits, masks, strict=True)):
        for truth, label in zip(mask.flatten().tolist(), image.argmax(dim=1).flatten().tolist(), strict=True):
            if truth != 255:
                naive[i, truth, label] += 1
    found = counted(logits, masks).by_image()
    assert (found.most == naive.max(axis=0)).all()
    assert (found.where == naive.argmax(axis=0)).all()
    parts = [counted(logits[:2], masks[:2]), counted(logits[2:], masks[2:], "cde")]
    joined = together(*(part.by_image() for part in parts))
    assert joined.names == found.names and all((a == b).all() for a, b in zip(joined[1:], found[1:], strict=True))
    empty = Scores(CLASSES)
    assert empty.by_image() is None


def naive_boundary(mask: np.ndarray, distance: int) -> np.ndarray:
    """Pixels of a mask with a pixel outside of it, or of the image, in the square around."""
    padded = np.pad(mask, distance)
    edge = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        edge[y, x] = not padded[y : y + 2 * distance + 1, x : x + 2 * distance + 1].all()
    return edge


@pytest.mark.parametrize("size", [(12, 15), (90, 120)])
def test_boundaries_are_those_of_the_definition(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    truth, predicted = (np.kron(rng.integers(0, 3, (3, 3)), np.ones((size[0] // 3, size[1] // 3), int)) for _ in "ab")
    truth[: size[0] // 4, : size[1] // 4] = 255
    counts = boundary_counts(truth, predicted, 4)
    distance = max(1, round(0.02 * np.hypot(*size)))
    for label in range(3):
        edges = [naive_boundary(mask == label, distance) for mask in (truth, np.where(truth == 255, 255, predicted))]
        assert counts[:, label].tolist() == [(edges[0] & edges[1]).sum(), (edges[0] | edges[1]).sum()]
    assert counts[:, 3].tolist() == [0, 0]
    same = boundary_counts(truth, truth, 4)
    assert (same[0] == same[1]).all() and distance == {12: 1, 90: 3}[size[0]]


def test_a_class_that_is_never_predicted_is_named() -> None:
    counts = torch.tensor([[5, 1, 0, 0], [2, 3, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
    assert never_predicted(counts, ["a", "b", "c", "d"]) == ["c"], "d does not occur at all"


def test_the_best_threshold_has_the_largest_dice() -> None:
    precision, recall = torch.tensor([0.2, 0.5, 0.9, 1.0]), torch.tensor([1.0, 0.8, 0.3, 0.0])
    best = best_threshold(precision, recall, torch.tensor([0.0, 0.5, 1.0]))
    assert best["threshold"] == 0.5 and best["dice"] == best["dice_at_half"] == pytest.approx(0.8 / 1.3)
    assert best["curve"] == [[0.0, 0.2, 1.0], [0.5, 0.5, 0.8], [1.0, 0.9, 0.3]]
