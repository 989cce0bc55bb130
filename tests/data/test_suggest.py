"""Suggestions follow from images, objects and machine as docs/data.md says, and train.py takes them."""

from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED, composed
from PIL import Image

from pcr_seg.config import CONF
from pcr_seg.data.sources import Source, folder
from pcr_seg.data.suggest import Suggestion, suggest


def blocks(side: int, cell: int) -> np.ndarray:
    """A mask of squares of two classes on a ground."""
    rows, columns = np.indices((side, 2 * side)) // cell
    return np.where(rows % 2 & columns % 2, 1 + (rows // 2 + columns // 2) % 2, 0).astype(np.uint8)


def source(root: Path, masks: list[np.ndarray], num_unlabeled: int = 0, val: int = 1) -> Source:
    (root / "classes.txt").write_text("0 ground 0 0 0\n1 cat 9 0 0\n2 dog 0 9 0\n")
    places = [*(f"train/{number}" for number in range(len(masks))), *(f"val/{number}" for number in range(val))]
    for folder_name, some in (("images", [(*places,)]), ("labels", [(*places,)])):
        for name, mask in zip(some[0], [*masks, *masks[:1] * val], strict=True):
            content = mask if folder_name == "labels" else np.zeros((*mask.shape, 3), np.uint8)
            path = root / folder_name / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(path)
    for number in range(num_unlabeled):
        path = root / f"unlabeled/u{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((*masks[0].shape, 3), np.uint8)).save(path)
    return folder(root)


def config(suggestion: Suggestion):
    """What the command composes to; that of the laptop once its file is there."""
    assert len(suggestion.reasons) == len(suggestion.overrides) and all(suggestion.reasons)
    words = [f"{key}={value}" for key, value in suggestion.overrides.items()]
    if suggestion.overrides.get("experiment") == "laptop" and not (CONF / "experiment/laptop.yaml").is_file():
        return None
    return composed("dataset=folder", "dataset.root=x", *words)


@pytest.mark.parametrize(
    ("sides", "gpu_gib", "crop"),
    [([28] * 3, None, 33), ([400] * 3, 8, 321), ([100, 120, 300], 8, 113), ([600], 80, 513)],
)
def test_crops_show_most_of_an_image(tmp_path: Path, sides: list[int], gpu_gib: float | None, crop: int) -> None:
    suggestion = suggest(source(tmp_path, [blocks(side, 26) for side in sides]), gpu_gib)
    assert suggestion.overrides["data.crop_size"] == str(crop)


@pytest.mark.parametrize("gpu_gib", [None, 11.0, 24.0])
@pytest.mark.parametrize("cell", [3, 6, 40])
@pytest.mark.parametrize(("count", "num_unlabeled"), [(1, 3), (24, 0), (20, 10), (3, 0)])
def test_suggestions_compose_and_stay_in_range(tmp_path, count, num_unlabeled, gpu_gib, cell) -> None:
    suggestion = suggest(source(tmp_path, [blocks(80, cell)] * count, num_unlabeled), gpu_gib)
    found = config(suggestion)
    laptop = gpu_gib is None and cell == 40
    assert (suggestion.overrides.get("experiment") == "laptop") == laptop
    assert suggestion.overrides["split"] == ("1_8" if count == 24 else "full")
    assert (suggestion.overrides.get("method") == "supervised") == (count == 3)
    if laptop:
        return
    steps = found.data.steps_per_epoch * found.trainer.max_epochs
    fewest, most = (600, 1500) if gpu_gib is None else (2000, 40000)
    assert fewest <= steps < most + found.data.steps_per_epoch
    labeled = 3 if count == 24 else count
    assert found.global_batch == max(2, min(labeled, {None: 4, 11.0: 8, 24.0: 16}[gpu_gib]))
    assert found.split.labeled == suggestion.overrides["split"]


def test_a_crop_shows_what_half_of_the_classes_have(tmp_path: Path) -> None:
    """Long thin objects: as on a retina larger crops do better than more of them."""
    mask = np.zeros((400, 400), np.uint8)
    for column in range(50, 370, 40):
        mask[20:380, column : column + 7] = 1
    overrides = suggest(source(tmp_path, [mask] * 4, 4)).overrides
    assert (overrides["data.crop_size"], overrides["global_batch"]) == ("321", "2")
    mask[:160] = 0  # now of up to 220 pixels
    overrides = suggest(source(tmp_path, [mask] * 4, 4)).overrides
    assert (overrides["data.crop_size"], overrides["global_batch"]) == ("225", "2")
    mask[:280] = 0
    overrides = suggest(source(tmp_path, [mask] * 4, 4)).overrides
    assert (overrides["data.crop_size"], overrides["global_batch"]) == ("161", "4")


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (80, {"experiment": "laptop", "model.maps": None}),
        (22, {"experiment": "laptop", "model.maps": "[8,-2,-1]"}),
        (9, {"experiment": None, "data.scale": "[1.0,1.5]"}),
        (3, {"experiment": None, "data.scale": "[1.5,2.5]", "protocol": "multi_scale", "protocol.scales": "[2.0]"}),
    ],
)
def test_the_stride_is_one_that_keeps_the_objects(tmp_path: Path, cell: int, expected: dict) -> None:
    overrides = suggest(source(tmp_path, [blocks(160, cell)] * 2, 4)).overrides
    assert {key: overrides.get(key) for key in expected} == expected


def test_small_objects_are_enlarged_where_they_are_predicted_too(tmp_path: Path) -> None:
    found = config(suggest(source(tmp_path, [blocks(160, 3)] * 2, 4)))
    assert (
        list(found.protocol.scales) == [2.0] and found.protocol.flip is False and list(found.data.scale) == [1.5, 2.5]
    )


def test_a_gpu_gets_a_finer_grid_and_rare_classes_more_weight(tmp_path: Path) -> None:
    mask = blocks(160, 22)
    suggestion = suggest(source(tmp_path, [mask] * 2, 4), gpu_gib=80)
    assert suggestion.overrides["backbone.output_stride"] == "8"
    assert "recipe.supervised_loss._target_" not in suggestion.overrides
    mask[mask == 2] = 0
    mask[22:44, 22:44] = 2
    found = config(suggest(source(tmp_path, [mask] * 2, 4), gpu_gib=80))
    assert found.method.supervised_loss._target_.endswith("balanced_cross_entropy")


@pytest.mark.parametrize(("val", "trainings"), [(1, 1), (0, 5)])
def test_the_time_counts_the_folds(tmp_path: Path, val: int, trainings: int) -> None:
    time = suggest(source(tmp_path, [blocks(64, 4)] * 6, 2, val)).time
    once = suggest(source(tmp_path, [blocks(64, 4)] * 6, 2, 1)).time
    assert ("for 5 trainings" in time) == (trainings == 5)
    assert int(time.split()[1]) == pytest.approx(trainings * int(once.split()[1]), abs=5)


def test_images_without_masks_among_those_with_some_are_named(tmp_path: Path) -> None:
    found = source(tmp_path, [blocks(64, 4)] * 6)
    (tmp_path / "labels/train/2.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 6 training images have no mask; move them to FOLDER/unlabeled"):
        suggest(found)


def test_real_sets_get_the_grid_that_they_need() -> None:
    if not SHARED.is_dir():
        pytest.skip("the real data sets are not on this machine")
    found = {name: suggest(folder(SHARED / "data" / name)).overrides for name in ("camvid", "wbc", "voc_animals")}
    assert {name: overrides["experiment"] for name, overrides in found.items()} == dict.fromkeys(found, "laptop")
    assert {name for name, overrides in found.items() if "model.maps" in overrides} == {"camvid"}
