"""Masks drawn from a small instances file of COCO's form."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pcr_seg.data.coco import draw_masks

pytest.importorskip("pycocotools", reason="needs the imports extra")


def box(left: int, top: int, right: int, bottom: int) -> list[list[int]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


def annotation(category: int, segmentation: object, area: float, *, crowd: bool = False, image: int = 1) -> dict:
    return {
        "image_id": image, "category_id": category, "segmentation": segmentation, "area": area, "iscrowd": int(crowd),
    }  # fmt: skip


def write(path: Path) -> Path:
    """A person (1) with a cup (47) in front, two parts of a toothbrush (90), a crowd of dogs (18) around all."""
    everywhere = {"size": [20, 30], "counts": [0, 300, 300]}  # by columns: the left half
    content = {
        "images": [
            {"id": 1, "file_name": "000000000001.jpg", "height": 20, "width": 30},
            {"id": 2, "file_name": "000000000002.jpg", "height": 4, "width": 5},
        ],
        "annotations": [
            annotation(47, box(6, 6, 9, 9), 9),
            annotation(1, box(4, 4, 12, 16), 96),
            annotation(90, box(20, 2, 24, 6) + box(26, 10, 28, 14), 24),
            annotation(18, everywhere, 300, crowd=True),
        ],
    }
    path.write_text(json.dumps(content))
    return path


def test_small_instances_lie_on_large_ones_and_crowds_below(tmp_path: Path) -> None:
    draw_masks(write(tmp_path / "instances_train2017.json"), tmp_path / "masks")
    expected = np.zeros((20, 30), np.uint8)
    expected[:, :15] = 255
    expected[4:16, 4:12] = 1
    expected[6:9, 6:9] = 42  # category 47
    expected[2:6, 20:24] = expected[10:14, 26:28] = 80
    assert np.array_equal(np.array(Image.open(tmp_path / "masks/000000000001.png")), expected)
    assert not np.array(Image.open(tmp_path / "masks/000000000002.png")).any()


def test_masks_that_are_there_stay(tmp_path: Path) -> None:
    file = write(tmp_path / "instances_train2017.json")
    draw_masks(file, tmp_path / "masks")
    (tmp_path / "masks/000000000001.png").write_bytes(b"mine")
    draw_masks(file, tmp_path / "masks")
    assert (tmp_path / "masks/000000000001.png").read_bytes() == b"mine"


@pytest.mark.parametrize("content", ["[]", "{", '{"annotations": []}'])
def test_another_file_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ValueError, match=r"a\.json: not COCO's instances") as caught:
        draw_masks(tmp_path / "a.json", tmp_path)
    assert "\n" not in str(caught.value)
