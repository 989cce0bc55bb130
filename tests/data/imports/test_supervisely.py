"""Supervisely's projects, written as its documentation describes them."""

import base64
import io
import json
import zlib
from pathlib import Path

import numpy as np
from exports import agree, bring, inside, layers, names, picture, write_json
from PIL import Image

SIZE = (60, 90)
CLASSES = [
    {"title": "car", "shape": "polygon", "color": "#FF0000", "geometry_config": {}},
    {"title": "wheel", "shape": "bitmap", "color": "#00FF00", "geometry_config": {}},
    {"title": "road", "shape": "any", "color": "#0000FF", "geometry_config": {}},
]
CAR = [[10, 10], [50, 12], [48, 45], [12, 40]]
HOLE = [[20, 18], [35, 18], [35, 30], [20, 30]]
BLOB = np.zeros((20, 26), bool)
BLOB[3:17, 2:24] = True
BLOB[8:12, 8:16] = False


def packed(mask: np.ndarray, mode: str = "palette") -> str:
    """A mask as Supervisely writes it, in the ways that it and its older versions do."""
    content = io.BytesIO()
    if mode == "palette":
        image = Image.fromarray(mask.astype(np.uint8))
        image.putpalette([0, 0, 0, 255, 255, 255])
        image.save(content, "PNG", transparency=0, optimize=0)
    elif mode == "rgba":
        Image.fromarray(np.stack([np.full(mask.shape, 255), *[mask * 0] * 2, mask * 255], -1).astype(np.uint8)).save(
            content, "PNG"
        )
    else:
        Image.fromarray(mask.astype(np.uint8) * 255).save(content, "PNG")
    return base64.b64encode(zlib.compress(content.getvalue())).decode()


def item(kind: str, label: str, **more: object) -> dict:
    return {"id": 1, "classId": 2, "geometryType": kind, "classTitle": label, "tags": [], **more}


def points(exterior: list, interior: list | None = None) -> dict:
    return {"points": {"exterior": exterior, "interior": interior or []}}


def annotation(*objects: dict, tags: list | None = None, size: tuple[int, int] = SIZE) -> dict:
    return {
        "description": "", "tags": tags or [], "size": {"height": size[0], "width": size[1]}, "objects": list(objects),
    }  # fmt: skip


def project(root: Path, notes: dict[str, dict]) -> Path:
    write_json(root / "meta.json", {"classes": CLASSES, "tags": [], "projectType": "images"})
    for seed, (name, note) in enumerate(notes.items()):
        dataset, _, file = name.rpartition("/")
        turned = note.pop("orientation", 1)
        height, width = note["size"]["height"], note["size"]["width"]
        picture(root / dataset / "img" / file, *((width, height) if turned > 4 else (height, width)), seed, turned)
        write_json(root / dataset / "ann" / f"{file}.json", note)
    return root


def test_every_shape_with_holes_and_order(tmp_path: Path) -> None:
    blob = {"bitmap": {"data": packed(BLOB), "origin": [40, 20]}}
    notes = annotation(
        item("rectangle", "road", **points([[80, 55], [5, 5]])),  # corners the other way round
        item("polygon", "car", **points(CAR, [HOLE])),
        item("bitmap", "wheel", **blob),
        item("line", "road", **points([[0, 0], [50, 50]])),
        item("point", "road", **points([[3, 3]])),
        item("graph", "road", nodes={"a": {"loc": [4, 4]}}),
    )
    place = project(tmp_path / "in", {"ds0/a.png": notes, "ds0/b.png": annotation(item("bitmap", "wheel", **blob))})
    found, source, masks = bring(place, tmp_path / "new")
    assert source.classes == ("background", "car", "wheel", "road")
    whole = np.zeros(SIZE, bool)
    whole[20:40, 40:66] = BLOB
    car = inside(CAR, SIZE) & ~inside(HOLE, SIZE)
    road = inside([[5, 5], [81, 5], [81, 56], [5, 56]], SIZE)
    assert agree(masks["a"], layers(SIZE, (road, 3), (car, 1), (whole, 2)))
    assert np.array_equal(masks["b"], layers(SIZE, (whole, 2)))
    assert [(left.what, left.why) for left in found.left] == [
        (kind, "has no area") for kind in ("line", "point", "graph")
    ]


def test_lines_and_points_are_as_wide_as_told(tmp_path: Path) -> None:
    note = annotation(item("line", "road", **points([[10, 20], [80, 20]])), item("point", "car", **points([[45, 45]])))
    found, _, masks = bring(project(tmp_path / "in", {"ds/a.png": note}), tmp_path / "new", lines=6)
    assert not found.left and set(np.unique(masks["a"])) == {0, 1, 3}
    assert 5 <= (masks["a"][:, 40] == 3).sum() <= 7 and 24 <= (masks["a"] == 1).sum() <= 45


def test_masks_of_older_versions_and_several_parts(tmp_path: Path) -> None:
    parts = [{"exterior": CAR, "interior": [HOLE]}, {"exterior": [[60, 40], [85, 40], [85, 58]], "interior": []}]
    for number, mode in enumerate(("palette", "rgba", "grey")):
        bitmap = item("bitmap", "wheel", bitmap={"data": packed(BLOB, mode), "origin": [-3, 50]})  # partly outside
        note = annotation(item("multipolygon", "car", parts=parts), bitmap)
        _, _, masks = bring(project(tmp_path / mode, {"ds/a.png": note}), tmp_path / f"new{number}")
        whole = np.zeros(SIZE, bool)
        whole[50:60, :23] = BLOB[:10, 3:]
        car = (inside(CAR, SIZE) & ~inside(HOLE, SIZE)) | inside(parts[1]["exterior"], SIZE)
        assert agree(masks["a"], layers(SIZE, (car, 1), (whole, 2)))


def test_turned_boxes_and_images(tmp_path: Path) -> None:
    turned = item("oriented_bbox", "road", points=[[20, 20], [60, 40]], angle=np.pi / 6)
    notes = {"ds/a.png": annotation(turned), "ds/b.jpg": annotation(turned) | {"orientation": 6}}
    stored = annotation(item("polygon", "car", **points(CAR)), size=(60, 90))
    _, _, masks = bring(project(tmp_path / "in", notes), tmp_path / "new")
    angle, ring = np.pi / 6, []
    for x, y in ([-20, -10], [20, -10], [20, 10], [-20, 10]):
        ring.append([40 + x * np.cos(angle) - y * np.sin(angle), 30 + x * np.sin(angle) + y * np.cos(angle)])
    expected = layers(SIZE, (inside(ring, SIZE), 3))
    assert agree(masks["a"], expected) and agree(masks["b"], expected), "b's size is that of the upright image"
    place = project(tmp_path / "stored", {"ds/c.jpg": stored})
    picture(place / "ds/img/c.jpg", 60, 90, orientation=8)  # as stored, so the mask has to be turned
    _, _, masks = bring(place, tmp_path / "new2")
    assert agree(masks["c"], np.rot90(layers(SIZE, (inside(CAR, SIZE), 1))))


def test_data_sets_are_subsets_or_places(tmp_path: Path) -> None:
    note = annotation(item("polygon", "car", **points(CAR)))
    place = project(tmp_path / "in", {f"{part}/{i}.jpg": dict(note) for part in ("train", "val") for i in range(2)})
    picture(place / "train/img/more.jpg", 30, 30, 9)
    picture(place / "train/masks_human/0.png", 30, 30, 10)
    write_json(place / "val/ann/5.jpg.json", annotation())
    picture(place / "val/img/5.jpg", *SIZE, 11)
    found, source, _ = bring(place, tmp_path / "new")
    assert names(source) == {"train": ["0", "1"], "val": ["0_2", "1_2"], "test": [], "unlabeled": ["5", "more"]}
    assert found.divided == "as in the export" and not found.left
    tagged = {f"ds {i % 5}/{i}.jpg": annotation(*note["objects"], tags=[{"name": "place", "value": "xyz"[i % 3]}])
              for i in range(10)}  # fmt: skip
    found, source, _ = bring(project(tmp_path / "places", tagged), tmp_path / "new2")
    assert "by place (3 groups)" in found.divided
    nested = {f"ds/datasets/in {i}/{i}.jpg": dict(note) for i in range(3)}
    _, source, _ = bring(project(tmp_path / "nested", nested), tmp_path / "new3")
    assert {name for part in names(source).values() for name in part} == {"in 0/0", "in 1/1", "in 2/2"}


def test_damage_is_named_and_the_rest_is_taken(tmp_path: Path) -> None:
    good = item("polygon", "car", **points(CAR))
    notes = {
        "ds/a.jpg": annotation(good, item("bitmap", "wheel", bitmap={"data": "AAAA", "origin": [0, 0]})),
        "ds/b.jpg": annotation(good), "ds/c.jpg": annotation(good, size=(61, 90)),
    }  # fmt: skip
    place = project(tmp_path / "in", notes)
    (place / "ds/ann/b.jpg.json").write_text('{"objects": [')
    picture(place / "ds/img/c.jpg", 60, 90, 3)
    (place / "ds/img/d.jpg").write_bytes(b"")
    write_json(place / "ds/ann/d.jpg.json", annotation(good))
    write_json(place / "ds/ann/lost.jpg.json", annotation(good))
    found, _, masks = bring(place, tmp_path / "new")
    assert list(masks) == ["a"] and agree(masks["a"], layers(SIZE, (inside(CAR, SIZE), 1)))
    left = {(one.image.rpartition("/")[2], one.what): one.why for one in found.left}
    assert left.keys() == {("a.jpg", "damaged bitmap"), *((f"{name}.jpg", "image") for name in ("c", "d", "lost")),
                           ("b.jpg.json", "image")}  # fmt: skip
    assert "differ in size (90 x 60 and 90 x 61)" in left["c.jpg", "image"] and "empty" in left["d.jpg", "image"]
    assert (
        "not readable as JSON" in left["b.jpg.json", "image"] and "no image of this name" in left["lost.jpg", "image"]
    )
    rows = (tmp_path / "new/left_out.csv").read_text().splitlines()
    assert len(rows) == 1 + len(found.left) and json.dumps(rows[0]) == '"image,what,label,why"'
