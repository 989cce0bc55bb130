"""Exports that are masks: VOC by lists of its own classes, CVAT's colors, Roboflow; the shared exports try the rest."""

from pathlib import Path

import numpy as np
import pytest
from exports import bring, names, picture
from PIL import Image

SIZE = (30, 40)


def voc(root: Path, listed: dict[str, list[str]], values: list[int], lists: str = "") -> dict[str, np.ndarray]:
    """Labelme's VOC export, or one like it, with palettes of no meaning."""
    written = {}
    for seed, name in enumerate([name for part in listed.values() for name in part]):
        picture(root / f"JPEGImages/{name}.jpg", *SIZE, seed)
        mask = np.random.default_rng(seed).choice(np.array(values, np.uint8), SIZE)
        image = Image.fromarray(mask)
        image.putpalette([7, 7, 7] * 256)
        (root / f"SegmentationClassPNG/{name}").parent.mkdir(parents=True, exist_ok=True)
        image.save(root / f"SegmentationClassPNG/{name}.png")
        written[name] = mask
    for part, those in listed.items():
        (root / "ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
        (root / f"ImageSets/Segmentation/{part}.txt").write_text("".join(f"{name}\r\n" for name in those))
    if lists:
        (root / "class_names.txt").write_text(lists)
    return written


def test_own_classes_and_folders_in_folders(tmp_path: Path) -> None:
    written = voc(tmp_path / "in", {"train": ["a", "x/b"], "val": ["c"]}, [0, 1, 2, 255], "_background_\nleaf\nstem\n")
    picture(tmp_path / "in/SegmentationClass/a.png", *SIZE)  # a visualisation
    picture(tmp_path / "in/JPEGImages/d.jpg", *SIZE, 9)
    found, source, masks = bring(tmp_path / "in", tmp_path / "new")
    assert source.classes == ("background", "leaf", "stem") and names(source)["unlabeled"] == ["d"]
    assert all(np.array_equal(masks[name], mask) for name, mask in written.items()) and len(masks) == 3
    assert names(source)["val"] == ["c"] and found.format == "voc"


def test_values_that_name_no_class(tmp_path: Path) -> None:
    voc(tmp_path / "in", {"train": ["a"]}, [0, 30])
    with pytest.raises(ValueError, match=r"no image has a label .*a\.png: label values \[30\] are not in 0\.\.20"):
        bring(tmp_path / "in", tmp_path / "new")


def test_cvats_colors_and_its_subsets(tmp_path: Path) -> None:
    root = tmp_path / "in"
    (root / "SegmentationClass").mkdir(parents=True)
    (root / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nnut: M8:1,0,0::\nrod:9,9,9::\n"
    )
    colors = np.array([[0, 0, 0], [1, 0, 0], [9, 9, 9]], np.uint8)
    values = np.random.default_rng(0).integers(0, 3, SIZE)
    for seed, name in enumerate(("a", "b")):
        picture(root / f"JPEGImages/{name}.png", *SIZE, seed)
        Image.fromarray(colors[values]).save(root / f"SegmentationClass/{name}.png")
        (root / "ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
        (root / f"ImageSets/Segmentation/{('Train', 'Validation')[seed]}.txt").write_text(f'"{name}"\n')
    found, source, masks = bring(root, tmp_path / "new")
    assert source.classes == ("background", "nut: M8", "rod") and found.divided == "as in the export"
    assert np.array_equal(masks["a"], values) and np.array_equal(masks["b"], values)
    colors[1] = 200
    Image.fromarray(colors[values]).save(root / "SegmentationClass/a.png")
    found, _, masks = bring(root, tmp_path / "new2")
    assert list(masks) == ["b"] and "(200, 200, 200), which no class has" in found.left[0].why


def test_roboflows_copies_stay_together_and_masks_alone_are_named(tmp_path: Path) -> None:
    root = tmp_path / "in/train"
    values = np.random.default_rng(0).choice(np.array([0, 5, 9], np.uint8), SIZE)
    for number in range(12):
        name = f"photo{chr(97 + number // 3)}_jpg.rf.{number:032x}"
        picture(root / f"{name}.jpg", *SIZE, number)
        Image.fromarray(values).save(root / f"{name}_mask.png")
    Image.fromarray(values).save(root / "alone_mask.png")
    (root / "_classes.csv").write_text('Pixel Value, Class\r\n0, background\r\n5, "leaf, dry"\r\n9, stem')
    found, source, masks = bring(tmp_path / "in", tmp_path / "new")
    assert source.classes == ("background", "leaf, dry", "stem")
    table = np.zeros(256, np.uint8)
    table[[5, 9]] = 1, 2
    assert len(masks) == 12 and all(np.array_equal(mask, table[values]) for mask in masks.values())
    assert len({sample.name.partition("_")[0] for sample in source.val}) == 1 and len(source.val) == 3
    assert [left.why for left in found.left] == ["is of no image"]
