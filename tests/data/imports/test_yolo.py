"""YOLO's text files, with the spellings of data.yaml that tools use."""

from pathlib import Path

import numpy as np
import pytest
from exports import agree, bring, inside, layers, names, picture

SIZE = (40, 60)
RING = [[6, 6], [50, 8], [45, 34], [10, 30]]
EXPECTED = layers(SIZE, (inside(RING, SIZE), 1))


def line(label: int, ring: list = RING, size: tuple[int, int] = SIZE) -> str:
    return f"{label} " + " ".join(f"{x / size[1]:.6f} {y / size[0]:.6f}" for x, y in ring)


def put(root: Path, image: str, labels: str | None, text: str = "", seed: int = 0) -> None:
    picture(root / image, *SIZE, seed)
    if labels:
        (root / labels).parent.mkdir(parents=True, exist_ok=True)
        (root / labels).write_text(text, newline="")


@pytest.mark.parametrize(
    "yaml",
    [
        "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['cup', 'plate']\n",  # Roboflow
        "path: .\ntrain: train.txt\nval: valid.txt\nnames:\n  0: cup\n  1: plate\n",  # CVAT
        "path: /elsewhere/x/data\ntrain: [train/images]\nval: valid/images\nnames: {0: cup, 1: plate}\n",
    ],
)
def test_where_images_lie(tmp_path: Path, yaml: str) -> None:
    root = tmp_path / "in"
    for seed, part in enumerate(("train", "valid")):
        put(root, f"{part}/images/a b.jpg", f"{part}/labels/a b.txt", line(0) + "\r\n", seed)
        (root / f"{part}.txt").write_text(f"data/{part}/images/a b.jpg\n")
    (root / "data.yaml").write_text("\ufeff" + yaml, encoding="utf-8")
    found, source, masks = bring(root, tmp_path / "new")
    assert source.classes == ("background", "cup", "plate") and found.divided == "as in the export"
    assert len(masks) == 2 and all(agree(mask, EXPECTED) for mask in masks.values())
    assert names(source)["train"] == ["a b"] and names(source)["val"] == ["a b_2"]


def test_text_files_beside_the_images_below_a_folder_called_images(tmp_path: Path) -> None:
    put(tmp_path / "images/project", "a.jpg", "a.txt", line(0))
    (tmp_path / "images/project/data.yaml").write_text("train: .\nnames: [cup]\n")
    _, _, masks = bring(tmp_path / "images/project", tmp_path / "new")
    assert agree(masks["a"], EXPECTED)


def test_lines_that_are_no_polygons(tmp_path: Path) -> None:
    text = "\n".join(
        [line(0), "1 0.5 0.5 0.2 0.2", "1 0.1 0.1 0.2", "", "one 0.1 0.2 0.3 0.4 0.5 0.6", line(7), "1 nan 0 0 1 1 1"]
    )
    put(tmp_path / "in", "images/a.jpg", "labels/a.txt", text)
    put(tmp_path / "in", "images/empty.jpg", "labels/empty.txt", "\n", 1)
    put(tmp_path / "in", "images/none.jpg", None, seed=2)
    (tmp_path / "in/classes.txt").write_text("cup\nplate\n")  # Label Studio
    found, source, masks = bring(tmp_path / "in", tmp_path / "new")
    box = np.zeros(SIZE, bool)
    box[16:24, 24:36] = True
    assert agree(masks["a"], layers(SIZE, (box, 255), (inside(RING, SIZE), 1))) and not masks["empty"].any()
    assert [left.what for left in found.left] == [
        "box alone", "damaged polygon", "damaged line", "polygon", "damaged polygon",
    ]  # fmt: skip
    assert names(source)["unlabeled"] == ["none"] and found.format == "yolo"


def test_val_that_is_train_again_is_drawn(tmp_path: Path) -> None:
    for number in range(5):
        put(tmp_path / "in", f"images/{number}.jpg", f"labels/{number}.txt", line(number % 2), number)
    (tmp_path / "in/data.yaml").write_text("train: images\nval: images\nnames: [cup, plate]\n")
    found, source, _ = bring(tmp_path / "in", tmp_path / "new")
    assert len(source.train) == 4 and len(source.val) == 1 and not found.left
    assert found.divided == "1 of 5 drawn for val with seed 0, by single images"


def test_a_file_without_classes(tmp_path: Path) -> None:
    put(tmp_path / "in", "images/a.jpg", "labels/a.txt", line(0))
    (tmp_path / "in/data.yaml").write_text("train: images\nnames: 5\n")
    with pytest.raises(ValueError, match=r"data\.yaml: lists no classes under `names`"):
        bring(tmp_path / "in", tmp_path / "new")
