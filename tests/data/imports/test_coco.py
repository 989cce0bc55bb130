"""COCO's JSON in the spellings of several tools; the shared exports try the rest."""

import json
from pathlib import Path

import numpy as np
import pytest
from exports import agree, bring, inside, layers, names, picture, write_json

from pcr_seg.data.imports.coco import unpacked
from pcr_seg.data.imports.shapes import run_lengths

SIZE = (50, 80)
RING = [[10, 10], [40, 12], [44, 40], [12, 38]]
BOX = [[30, 20], [70, 20], [70, 45], [30, 45]]
CATEGORIES = [{"id": 7, "name": "cat", "supercategory": "animal"}, {"id": 3, "name": "dog", "supercategory": "animal"}]


def flat(ring: list) -> list[float]:
    return [float(value) for point in ring for value in point]


def note(category: int, segmentation: object, image: int = 1, **more: object) -> dict:
    return {"id": 1, "image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": 0, **more}


def document(images: list[str], *notes: dict, categories: list = CATEGORIES, size: tuple[int, int] = SIZE) -> dict:
    described = [{"id": i, "file_name": name, "height": size[0], "width": size[1]} for i, name in enumerate(images, 1)]
    return {"images": described, "annotations": list(notes), "categories": categories}


def test_polygons_as_tools_spell_them(tmp_path: Path) -> None:
    for seed, name in enumerate(("a.jpg", "b.jpg")):
        picture(tmp_path / "in" / name, *SIZE, seed)
    content = document(
        [r"data\images\a.jpg", "b.jpg"], note(7, [flat(RING), [1.0, 1.0, 2.0, 2.0]]), note(3, flat(BOX)),
        note(9, [flat(RING)]), note(3, [[5.0, 5.0, 9.0, 9.0]], 2), note(3, [flat(RING)], 5), note(3, None, 2),
        note(3, [[200.0, 5.0, 230.0, 5.0, 230.0, 30.0]], 2), note(3, [], 2, bbox=[60, 30, 10, 10]),
    )  # fmt: skip
    (tmp_path / "in/result.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(content).replace("\n", "\r\n").encode())
    found, source, masks = bring(tmp_path / "in", tmp_path / "new")
    assert source.classes == ("background", "dog", "cat"), "in the order of the categories' numbers"
    assert agree(masks["a"], layers(SIZE, (inside(RING, SIZE), 2), (inside(BOX, SIZE), 1)))
    box = np.zeros(SIZE, bool)
    box[30:40, 60:70] = True
    assert np.array_equal(masks["b"], layers(SIZE, (box, 255)))
    assert [(left.what, left.why.partition(":")[0]) for left in found.left] == [
        ("polygon", "has no class"), ("damaged polygon", "cannot be read"),
        ("annotation without outline", "has no area"), ("polygon", "covers no pixel"),
        ("box alone", "has no outline"), ("image", "1 annotations of images that the file does not list"),
    ]  # fmt: skip


def test_the_smaller_on_top_and_a_box_beneath(tmp_path: Path) -> None:
    picture(tmp_path / "in/a.jpg", *SIZE)
    big = [[5, 5], [75, 5], [75, 48], [5, 48]]
    whole = note(3, [flat(RING)]), note(7, [flat(big)]), note(7, [[]], bbox=[0, 0, 80, 50])
    write_json(tmp_path / "in/a.json", document(["a.jpg"], *whole))
    _, source, masks = bring(tmp_path / "in", tmp_path / "new")
    expected = layers(SIZE, (np.ones(SIZE, bool), 255), (inside(big, SIZE), 1))
    assert source.classes == ("dog", "cat"), "nothing is left for a background"
    assert agree(masks["a"], expected)
    _, _, masks = bring(tmp_path / "in", tmp_path / "new2", overlap="smaller")
    assert agree(masks["a"], layers(SIZE, (expected == 255, 255), (expected == 1, 1), (inside(RING, SIZE), 0)))


def test_run_lengths_of_another_size_are_damage(tmp_path: Path) -> None:
    picture(tmp_path / "in/a.jpg", *SIZE)
    bad = [{"size": [80, 50], "counts": [100, 3900]}, {"size": [50, 80], "counts": [100, 10]},
           {"size": [50, 80], "counts": "Q5"}, {"size": [50, 80]}]  # fmt: skip
    good = note(7, {"size": [50, 80], "counts": [50, 100, 3850]})
    write_json(tmp_path / "in/a.json", document(["a.jpg"], *(note(7, one) for one in bad), good))
    found, _, masks = bring(tmp_path / "in", tmp_path / "new")
    expected = np.zeros(SIZE, np.uint8)
    expected[:, 1:3] = 2
    assert np.array_equal(masks["a"], expected) and [left.what for left in found.left] == ["damaged mask"] * 4


def test_images_turned_by_exif_in_either_way_of_counting(tmp_path: Path) -> None:
    for name, orientation in (("raw", 6), ("upright", 8)):
        picture(tmp_path / "in" / f"{name}.jpg", 50, 80, orientation, orientation)
    content = document(["raw.jpg", "upright.jpg"], note(7, [flat(RING)]), note(7, [flat(RING)], 2))
    content["images"][1].update(height=80, width=50)
    write_json(tmp_path / "in/a.json", content)
    _, _, masks = bring(tmp_path / "in", tmp_path / "new")
    assert agree(masks["raw"], np.rot90(layers(SIZE, (inside(RING, SIZE), 2)), -1))
    assert agree(masks["upright"], layers((80, 50), (inside(RING, (80, 50)), 2)))


def test_subsets_by_file_and_by_folder_and_other_tasks_files(tmp_path: Path) -> None:
    for part in ("train", "val"):
        picture(tmp_path / f"in/images/{part}/a.jpg", *SIZE, len(part))
        content = document(["a.jpg"], note(7, [flat(RING)]))
        write_json(tmp_path / f"in/annotations/instances_{part}.json", content)
        write_json(tmp_path / f"in/annotations/captions_{part}.json", content | {"annotations": [{"caption": "x"}]})
    found, source, _ = bring(tmp_path / "in", tmp_path / "new")
    assert found.divided == "as in the export" and not found.left
    assert names(source)["train"] == ["a"] and names(source)["val"] == ["a_2"]
    again, source, _ = bring(tmp_path / "in", tmp_path / "new2", own_split=False)
    assert again.divided.startswith("1 of 2 drawn for val with seed 0")


def test_what_is_not_read(tmp_path: Path) -> None:
    content = document(["a.jpg"], {"image_id": 1, "segments_info": [], "file_name": "a.png"})
    write_json(tmp_path / "in/panoptic_val.json", content)
    with pytest.raises(ValueError, match="is COCO's panoptic format, which is not read; export instances"):
        bring(tmp_path / "in", tmp_path / "new")
    picture(tmp_path / "boxes/a.jpg", *SIZE)
    write_json(tmp_path / "boxes/a.json", document(["a.jpg"], note(7, [], bbox=[1, 1, 20, 20])))
    with pytest.raises(ValueError, match="no shape of a class could be drawn"):
        bring(tmp_path / "boxes", tmp_path / "new")


@pytest.mark.parametrize("seed", range(4))
def test_run_lengths_in_cocos_text(seed: int) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    random = np.random.default_rng(seed)
    mask = random.random((37, 90)) < [0.5, 0.02, 0.98, 0][seed]
    text = coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
    assert np.array_equal(run_lengths(unpacked(text), 90, 37).T, mask)
