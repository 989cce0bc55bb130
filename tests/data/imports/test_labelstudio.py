"""Label Studio's tasks: percents, turned shapes, brushes in its own code, several annotations, uploads' names."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from exports import agree, bring, inside, layers, names, oval, picture, write_json
from PIL import Image

from pcr_seg.data.imports.labelstudio import unpacked

SIZE = (60, 100)


def pack(values: np.ndarray, lengths: tuple[int, ...] = (3, 4, 8, 16)) -> list[int]:
    """rle-pack, written from its description: runs of three and more, and literal stretches between them."""
    bits = [f"{len(values):032b}", f"{7:05b}", *(f"{length - 1:04b}" for length in lengths)]
    runs = [[values[0], 1]]
    for value in values[1:]:
        if value == runs[-1][0]:
            runs[-1][1] += 1
        else:
            runs.append([value, 1])

    def put(flag: int, numbers: list[int], count: int) -> None:
        kind = next(kind for kind, length in enumerate(lengths) if count <= 1 << length)
        bits.extend([str(flag), f"{kind:02b}", f"{count - 1:0{lengths[kind]}b}", *(f"{n:08b}" for n in numbers)])

    literal: list[int] = []
    for value, count in [*runs, (0, 0)]:
        if 0 < count < 3:
            literal += [value] * count
            continue
        while literal:
            put(0, literal[:200], len(literal[:200]))
            literal = literal[200:]
        while count:
            put(1, [value], min(count, 60_000))
            count -= min(count, 60_000)
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]


def result(kind: str, label: str | list | None, key: str = "", size: tuple[int, int] = SIZE, **value: object) -> dict:
    labels = label if isinstance(label, list) else [label]
    return {
        "original_width": size[1], "original_height": size[0], "image_rotation": 0, "id": key or f"{kind}{label}",
        "from_name": "x", "to_name": "image", "type": f"{kind}labels", "origin": "manual",
        "value": value | ({f"{kind}labels": labels} if label else {}),
    }  # fmt: skip


def percent(points: list, size: tuple[int, int] = SIZE) -> list:
    return [[100 * x / size[1], 100 * y / size[0]] for x, y in points]


def task(number: int, image: str, *annotations: dict, **data: object) -> dict:
    return {"id": number, "annotations": list(annotations), "drafts": [], "predictions": [],
            "data": {"image": image, **data}, "meta": {}}  # fmt: skip


def annotation(*results: dict, at: str = "2031-01-01T00:00:00Z", **more: object) -> dict:
    return {"id": 1, "was_cancelled": False, "ground_truth": False, "created_at": at, "result": list(results), **more}


RING = [[10, 10], [60, 8], [70, 45], [20, 50]]
ROOF = result("polygon", "roof", points=percent(RING), closed=True)
ROOF_MASK = layers(SIZE, (inside(RING, SIZE), 1))


@pytest.mark.parametrize("seed", range(5))
def test_the_brushes_code(seed: int) -> None:
    random = np.random.default_rng(seed)
    values = np.repeat(random.integers(0, 256, 60), random.integers(1, [4, 900, 2, 70_000, 30][seed], 60)).astype(
        np.uint8
    )
    assert np.array_equal(unpacked(bytes(pack(values.tolist()))), values)


def test_brushes_count_where_they_are_opaque(tmp_path: Path) -> None:
    alpha = np.zeros(SIZE, np.uint8)
    alpha[10:40, 20:70] = 255
    alpha[10:40, 20] = 60  # the rim of a brush is soft
    alpha[20:25, 30:50] = 0  # the eraser
    pixels = np.stack([alpha, alpha, alpha, alpha], axis=-1)
    pixels[..., 0] = 77
    brush = result("brush", "sky", format="rle", rle=pack(pixels.ravel().tolist()))
    content = io.BytesIO()
    Image.fromarray(np.stack([alpha] * 4, axis=-1)).save(content, "PNG")
    data = "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
    pictured = result("bitmask", "sky", imageDataURL=data)
    picture(tmp_path / "in/a.png", *SIZE)
    picture(tmp_path / "in/b.png", *SIZE, 1)
    tasks = [task(1, "/data/upload/1/aabbccdd-a.png", annotation(brush)), task(2, "b.png", annotation(pictured))]
    write_json(tmp_path / "in/export.json", tasks)
    _, _, masks = bring(tmp_path / "in", tmp_path / "new")
    assert np.array_equal(masks["a"], alpha >= 128) and np.array_equal(masks["b"], alpha > 0)


def test_shapes_in_percent_turned_about_their_own_points(tmp_path: Path) -> None:
    box = result("rectangle", "door", x=40, y=50, width=30, height=20, rotation=30)
    ellipse = result("ellipse", ["tree", "bush"], x=75, y=60, radiusX=15, radiusY=12, rotation=40)
    point = result("keypoint", "roof", x=3, y=3, width=1)
    choice = {"value": {"choices": ["good"]}, "id": "c", "from_name": "c", "to_name": "image", "type": "choices"}
    relation = {"from_id": "a", "to_id": "b", "type": "relation", "direction": "right"}
    place = picture(tmp_path / "in/x/house one.jpg", *SIZE).parents[1]
    notes = annotation(choice, ROOF, box, ellipse, point, relation)
    write_json(place / "p.json", [task(1, "/data/upload/3/1a2b3c4d-house_one.jpg", notes)])
    found, source, masks = bring(place, tmp_path / "new")
    x, y, angle = 40, 30, np.radians(30)  # its upper left corner in pixels, 30 x 12 large
    along, down = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    corners = [[x, y], [x, y] + 30 * along, [x, y] + 30 * along + 12 * down, [x, y] + 12 * down]
    expected = layers(
        SIZE, (inside(RING, SIZE), 2), (inside([list(corner) for corner in corners], SIZE), 1),
        (oval(75, 36, 15, 7.2, 40, SIZE), 3),
    )  # fmt: skip
    assert source.classes == ("background", "door", "roof", "tree") and agree(masks["house one"], expected)
    assert [left[1:] for left in found.left] == [("point", "roof", "has no area")]


def test_which_annotation_counts(tmp_path: Path) -> None:
    other = result("polygon", "roof", points=percent([[0, 0], [99, 0], [99, 59]]), closed=True)
    old, new = annotation(other), annotation(ROOF, at="2031-02-02T00:00:00Z")
    skipped = annotation(other, at="2032-01-01T00:00:00Z", was_cancelled=True)
    checked = annotation(ROOF, ground_truth=True)
    tasks = [
        task(1, "new.png", old, skipped, new), task(2, "checked.png", checked, annotation(other, at="2033-01-01")),
        task(3, "skipped.png", skipped), task(4, "unopened.png"), task(5, "nothing.png", annotation()),
    ]  # fmt: skip
    for number, item in enumerate(tasks):
        picture(tmp_path / "in" / item["data"]["image"], *SIZE, number)
    write_json(tmp_path / "in/p.json", tasks)
    _, source, masks = bring(tmp_path / "in", tmp_path / "new")
    assert agree(masks["new"], ROOF_MASK) and agree(masks["checked"], ROOF_MASK) and not masks["nothing"].any()
    assert names(source)["unlabeled"] == ["skipped", "unopened"]
    _, source, masks = bring(tmp_path / "in", tmp_path / "new2", empty="background")
    assert not source.unlabeled and not masks["skipped"].any()


def test_shapes_whose_label_is_a_result_of_its_own(tmp_path: Path) -> None:
    bare = {**result("polygon", None, key="r", points=percent(RING)), "type": "polygon"}
    label = {**bare, "type": "labels", "value": {**bare["value"], "labels": ["roof"]}}
    nameless = {**bare, "id": "s"}
    picture(tmp_path / "in/a.png", *SIZE)
    write_json(tmp_path / "in/p.json", [task(1, "a.png", annotation(bare, label, nameless))])
    found, _, masks = bring(tmp_path / "in", tmp_path / "new")
    assert agree(masks["a"], ROOF_MASK) and [left.why for left in found.left] == ["has no class"]


def test_json_min_paths_of_stores_and_columns_to_divide_by(tmp_path: Path) -> None:
    short = {**ROOF["value"], "original_width": 100, "original_height": 60}
    paths = ["/data/local-files/?d=shelf%201/0.png", "s3://bucket/shelf 2/1.png", "https://x.y/2.png?token=a/b.png",
             r"C:\photos\3.png", "4.png", "5.png"]  # fmt: skip
    tasks = [{"id": i, "image": path, "tag": [short], "patient": f"p{i // 2}", "annotator": 1}
             for i, path in enumerate(paths)]  # fmt: skip
    for number in range(6):
        picture(tmp_path / f"in/media/{number}.png", *SIZE, number)
    write_json(tmp_path / "in/min.json", tasks)
    found, source, masks = bring(tmp_path / "in", tmp_path / "new")
    assert len(masks) == 6 and all(agree(mask, ROOF_MASK) for mask in masks.values())
    assert "by patient (3 groups)" in found.divided and len(source.val) == 2
    first, second = (int(sample.name) for sample in source.val)
    assert first // 2 == second // 2


def test_damage(tmp_path: Path) -> None:
    short = result("brush", "roof", format="rle", rle=pack([0] * 40)[:-2])
    large = result("polygon", "roof", "bad", points=[["a", 2], [3, 4], [5, 6]])
    picture(tmp_path / "in/a.png", *SIZE)
    write_json(tmp_path / "in/p.json", [task(1, "a.png", annotation(short, large, ROOF))])
    found, _, masks = bring(tmp_path / "in", tmp_path / "new")
    assert [left.what for left in found.left] == ["damaged brush", "damaged polygon"] and agree(masks["a"], ROOF_MASK)
    write_json(tmp_path / "in/p.json", [task(1, "a.png", annotation(ROOF)), "x"])
    with pytest.raises(ValueError, match="is no list of tasks"):
        bring(tmp_path / "in", tmp_path / "new2")
