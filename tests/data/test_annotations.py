"""Masks as COCO's and Labelme's files, and back again by the import."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "imports"))
from exports import bring, picture

from pcr_seg.data.annotations import annotations, coco_annotations, labelme_file, regions

CLASSES = ["background", "cat", "dog"]
SIZE = (37, 53)


def blots(seed: int, classes: int = 3, ignored: bool = False) -> np.ndarray:
    """Areas of a few pixels up to large ones, inside of each other, at the border, and touching in corners."""
    random = np.random.default_rng(seed)
    noise = random.random((SIZE[0] // 4 + 1, SIZE[1] // 4 + 1, classes)).repeat(4, axis=0).repeat(4, axis=1)
    mask = noise[: SIZE[0], : SIZE[1]].argmax(axis=2).astype(np.uint8)
    mask[random.random(SIZE) < 0.03] = random.integers(0, classes)
    mask[8:30, 10:40] = 1
    mask[12:26, 14:36] = 0
    mask[15:22, 18:30] = 2
    if ignored:
        mask[30:34, 5:20] = 255
    return mask


def write(folder: Path, format: str, masks: dict[str, np.ndarray], classes: list[str] = CLASSES) -> Path:
    with annotations(folder, format, classes) as add:
        for seed, (name, mask) in enumerate(masks.items()):
            add(name, picture(folder / "photos" / name, *mask.shape, seed), mask)
    return folder / {"coco": "annotations.json", "labelme": "labelme"}[format]


@pytest.mark.parametrize("ignored", [False, True])
def test_masks_to_coco_and_back_are_equal(tmp_path: Path, ignored: bool) -> None:
    masks = {f"day 1/{seed}.jpg": blots(seed, ignored=ignored) for seed in range(4)}
    file = write(tmp_path, "coco", masks)
    found, source, again = bring(file, tmp_path / "new", images=tmp_path / "photos")
    assert source.classes == tuple(CLASSES) and not found.left
    for name, mask in masks.items():
        assert np.array_equal(again[name.removeprefix("day 1/").removesuffix(".jpg")], mask)


@pytest.mark.parametrize("classes", [["sky", "car", "road"], ["car", "background", "road"]])
def test_a_background_that_is_none_or_not_the_first(tmp_path: Path, classes: list[str]) -> None:
    masks = {f"{seed}.jpg": blots(seed) for seed in range(2)}
    file = write(tmp_path, "coco", masks, classes)
    _, source, again = bring(file, tmp_path / "new", images=tmp_path / "photos")
    assert source.classes == tuple(classes)
    assert all(np.array_equal(again[name.removesuffix(".jpg")], mask) for name, mask in masks.items())


def test_cocos_numbers_are_those_of_pycocotools() -> None:
    coco = pytest.importorskip("pycocotools.mask")
    mask, whole = blots(3), np.zeros(SIZE, np.uint8)
    for note in coco_annotations(mask, CLASSES):
        run_lengths = coco.frPyObjects(note["segmentation"], *SIZE)
        pixels = coco.decode(run_lengths).astype(bool)
        assert coco.area(run_lengths) == note["area"] and coco.toBbox(run_lengths).tolist() == note["bbox"]
        assert (mask[pixels] == note["category_id"] - 1).all() and not whole[pixels].any()
        whole[pixels] = note["category_id"] - 1
    assert np.array_equal(whole, mask)


@pytest.mark.parametrize("seed", range(6))
def test_labelmes_outlines_are_exact_without_tolerance(tmp_path: Path, seed: int) -> None:
    mask = blots(seed, ignored=seed % 2 == 1)
    (tmp_path / "in").mkdir()
    picture(tmp_path / "in/a.png", *SIZE)
    (tmp_path / "in/a.json").write_text(json.dumps(labelme_file(mask, CLASSES, "a.png", tolerance=0)))
    _, source, again = bring(tmp_path / "in", tmp_path / "new")
    assert source.classes == tuple(CLASSES) and np.array_equal(again["a"], mask)


def test_labelmes_outlines_have_few_corners_and_stay_within_a_pixel(tmp_path: Path) -> None:
    rows, columns = np.mgrid[:80, :120]
    mask = ((rows - 40) ** 2 + (columns - 60) ** 2 < 30**2).astype(np.uint8)
    mask[(rows - 40) ** 2 + (columns - 60) ** 2 < 12**2] = 0
    mask[60:70, 100:120] = 2
    write(tmp_path, "labelme", {"x y/a.jpg": mask})
    content = json.loads((tmp_path / "labelme/x y/a.json").read_text())
    assert content["imagePath"] == "../../photos/x y/a.jpg" and content["imageData"] is None
    shapes = [(shape["label"], len(shape["points"])) for shape in content["shapes"]]
    assert [label for label, _ in shapes] == ["cat", "_background_", "dog"] and max(n for _, n in shapes) < 30
    _, _, again = bring(tmp_path / "labelme", tmp_path / "new")
    apart = (again["a"] != mask).mean()
    assert 0 < apart < 0.02 and apart < 0.25 * np.mean([mask == 1, mask == 2])


def test_regions_are_whole_and_of_one_class() -> None:
    mask, whole = blots(0), np.full(SIZE, 9, np.uint8)
    for region in regions(mask):
        window = whole[region.top : region.top + region.mask.shape[0], region.left : region.left + region.mask.shape[1]]
        assert (window[region.mask] == 9).all()
        window[region.mask] = region.label
    assert np.array_equal(whole, mask)


def test_what_is_done_is_written_after_an_interrupt(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), annotations(tmp_path, "coco", CLASSES) as add:
        add("b.jpg", tmp_path / "b.jpg", blots(0))
        raise KeyboardInterrupt
    content = json.loads((tmp_path / "annotations.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["b.jpg"] and content["annotations"]
    assert len({note["id"] for note in content["annotations"]}) == len(content["annotations"])
    assert [category["name"] for category in content["categories"]] == CLASSES
