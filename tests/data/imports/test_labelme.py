"""Labelme's files: embedded images, names of Windows, renamed files, old versions; shared exports try the rest."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from exports import agree, bring, inside, layers, names, oval, picture, write_json
from PIL import Image

from pcr_seg.data.files import read_image

SIZE = (50, 80)
RING = [[10, 10], [40, 12], [44, 40], [12, 38]]


def shape(kind: str | None, label: str, points: list, **more: object) -> dict:
    known = {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}}
    return {key: value for key, value in known.items() if value is not None or key == "group_id"} | more


def document(image: str, *shapes: dict, **more: object) -> dict:
    return {"version": "5.5.0", "flags": {}, "shapes": list(shapes), "imagePath": image, "imageData": None,
            "imageHeight": 50, "imageWidth": 80, **more}  # fmt: skip


def encoded(array: np.ndarray) -> str:
    content = io.BytesIO()
    Image.fromarray(array).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


def test_embedded_images_and_files_of_old_versions(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    content = document(r"C:\photos\a.bmp", shape(None, "leaf", RING), imageData=encoded(pixels))
    del content["imageHeight"], content["imageWidth"], content["version"]
    write_json(tmp_path / "in/a.json", content)
    _, source, masks = bring(tmp_path / "in", tmp_path / "new")
    assert agree(masks["a"], layers(SIZE, (inside(RING, SIZE), 1)))
    [sample] = source.train
    assert np.array_equal(read_image(sample.image), pixels) and sample.image.endswith(".png")


def test_kinds_that_only_newer_versions_have(tmp_path: Path) -> None:
    picture(tmp_path / "in/a.png", *SIZE)
    mask = np.zeros((12, 20), np.uint8)
    mask[2:9, 3:15] = 1
    shapes = [
        shape("oriented_rectangle", "leaf", RING),
        shape("points", "seed", [[60, 10], [70, 30]]),
        shape("mask", "coat", [[70.4, 44.6], [89.4, 55.6]], mask=encoded(mask)),  # partly outside
        shape("circle", "hole", [[30, 25], [30, 31]]),
        shape("mask", "coat", [[1, 1], [20, 12]], mask="AAAA"),
        shape("cuboid", "leaf", RING),
        shape("polygon", "leaf", RING[:2]),
        shape("polygon", "__ignore__", [[0, 0], [9, 0], [9, 9], [0, 9]]),
    ]
    write_json(tmp_path / "in/a.json", document("a.png", *shapes))
    found, source, masks = bring(tmp_path / "in", tmp_path / "new", ignore=["hole"])
    coat, dots = np.zeros(SIZE, bool), np.zeros(SIZE, bool)
    coat[45:50, 70:80] = mask[:5, :10]
    for x, y in ((60, 10), (70, 30)):
        dots |= oval(x, y, 5.3, 5.3, 0, SIZE)
    corner = inside([[0, 0], [9, 0], [9, 9], [0, 9]], SIZE)
    expected = layers(
        SIZE, (inside(RING, SIZE), 2), (dots, 3), (coat, 1), (oval(30, 25, 6, 6, 0, SIZE), 255), (corner, 255)
    )
    assert source.classes == ("background", "coat", "leaf", "seed") and agree(masks["a"], expected)
    assert [left.what for left in found.left] == ["damaged mask", "cuboid", "damaged polygon"]


def test_a_file_without_shapes_says_that_nothing_is_there_and_images_without_file_nothing(tmp_path: Path) -> None:
    for seed, name in enumerate(("a", "b", "c", "ä ü")):
        picture(tmp_path / f"in/{name}.jpg", *SIZE, seed)
    picture(tmp_path / "in/a_json/label.png", *SIZE, 9)
    write_json(tmp_path / "in/a.json", document("renamed.jpg", shape("polygon", "leaf", RING)))
    write_json(tmp_path / "in/b.json", document("b.jpg"))
    write_json(tmp_path / "in/decomposed.json", document("a\u0308 u\u0308.jpg", shape("rectangle", "leaf", RING[::2])))
    (tmp_path / "in/broken.json").write_text('{"shapes": [], "imagePath": ')
    found, source, masks = bring(tmp_path / "in", tmp_path / "new")
    assert set(masks) == {"a", "b", "ä ü"} and not masks["b"].any() and names(source)["unlabeled"] == ["c"]
    assert [left.why.partition(" (")[0].rpartition("/")[2] for left in found.left] == [
        "broken.json: not readable as JSON", "1 images that no annotation names; dataset.unlabeled=FOLDER reads them",
    ]  # fmt: skip
    _, source, masks = bring(tmp_path / "in", tmp_path / "new2", rest=255)
    assert source.classes == ("leaf",) and set(np.unique(masks["a"])) == {0, 255}
    assert names(source)["unlabeled"] == ["b", "c"], "where the rest is ignored, a mask of nothing says nothing"


def test_lines_may_be_of_another_width(tmp_path: Path) -> None:
    picture(tmp_path / "in/a.jpg", *SIZE)
    write_json(tmp_path / "in/a.json", document("a.jpg", shape("line", "wire", [[5, 25], [75, 25]])))
    for number, (width, low, high) in enumerate(((None, 9, 12), (3, 2, 4))):
        _, _, masks = bring(tmp_path / "in", tmp_path / f"new{number}", lines=width)
        assert low <= masks["a"][:, 40].sum() <= high


def test_the_order_of_a_list_of_labels(tmp_path: Path) -> None:
    picture(tmp_path / "in/a.jpg", *SIZE)
    (tmp_path / "in/labels.txt").write_text("__ignore__\n_background_\nwire\r\nleaf\n")
    write_json(tmp_path / "in/a.json", document("a.jpg", shape("polygon", "leaf", RING)))
    assert bring(tmp_path / "in", tmp_path / "new")[1].classes == ("background", "wire", "leaf")
    with pytest.raises(ValueError, match="is there already; name a new folder"):
        bring(tmp_path / "in", tmp_path / "new")
