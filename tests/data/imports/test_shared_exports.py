"""Small exports as tools write them, with the right masks and a checker; kept beside the repository."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SHARED
from exports import read

from pcr_seg.data.imports.importing import FORMATS, import_export
from pcr_seg.data.splits import check_samples

FOLDER = SHARED / "imports"
EXPORTS = {
    "coco_polygons": "coco", "coco_rle": "coco", "coco_rle_compressed": "coco", "cvat_images": "cvat",
    "cvat_segmentation_mask": "voc", "labelme_masks": "labelme", "labelme_shapes": "labelme",
    "labelstudio_brush": "labelstudio", "labelstudio_polygons": "labelstudio", "roboflow_coco": "coco",
    "roboflow_masks": "roboflow", "voc_palette": "voc", "yolo_seg": "yolo",
}  # fmt: skip
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="needs ../shared/imports")


def test_all_of_them_are_tried() -> None:
    assert {place.name for place in FOLDER.iterdir() if place.is_dir()} == EXPORTS.keys()
    assert set(EXPORTS.values()) <= set(FORMATS)


@pytest.mark.parametrize("name", EXPORTS)
def test_masks_classes_and_subsets_are_right(name: str, tmp_path: Path) -> None:
    found = import_export(FOLDER / name / "input", tmp_path / "new")
    assert found.format == EXPORTS[name]
    command = [sys.executable, str(FOLDER / "check.py"), str(tmp_path / "new"), str(FOLDER / name / "expected")]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0 and "PASS" in result.stdout.splitlines()[-1], result.stdout + result.stderr
    source = read(tmp_path / "new")
    check_samples(source.train)

    expected = (FOLDER / name / "expected/images.csv").read_text().splitlines()[1:]
    assert sum(found.parts.values()) == len(expected), "no mask is taken for a picture, and no picture is lost"
