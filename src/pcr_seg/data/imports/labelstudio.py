"""Read Label Studio's JSON and JSON-MIN: brushes, polygons, rotated rectangles, ellipses, in percent of the image.

Source: labelstud.io, "Label Studio JSON format" and the tags' pages. Brushes are compressed by
github.com/thi-ng/umbrella, packages/rle-pack.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pcr_seg.data.files import IMAGE_SUFFIXES, DataError
from pcr_seg.data.imports.images import Images, ends, files_of, path_parts, read_json
from pcr_seg.data.imports.shapes import (
    Draw,
    Export,
    Record,
    Shape,
    bitmap,
    box,
    corners,
    dots,
    ellipse,
    png_mask,
    polygon,
    shape,
    turned,
)

KINDS = ("brush", "polygon", "rectangle", "ellipse", "keypoint", "bitmask", "vector")
OPAQUE = 128  # a brush's pixel counts from this alpha on, since its rim is soft


def find(place: Path) -> list[Path]:
    """Return the JSON files in a folder that list tasks."""

    def lists_tasks(file: Path) -> bool:
        text = ends(file)
        full = '"data"' in text and ('"annotations"' in text or '"completions"' in text)
        return text.startswith("[") and (full or any(f'{kind}labels"' in text for kind in KINDS))

    return [file for file in files_of(place, ".json") if lists_tasks(file)]


def read(place: Path, files: list[Path], images: Images, lines: float | None) -> Export:
    """Read these files. The classes are those that occur."""

    def records() -> Iterator[Record]:
        for file in files:
            tasks = read_json(file)
            if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
                raise DataError(f"{file}: is no list of tasks, as Label Studio exports it; export it again")
            yield from (read_task(task, images, file, lines) for task in tasks)

    return Export([], records())


def read_task(task: dict, images: Images, file: Path, lines: float | None) -> Record:
    """Read one task: its annotation that is marked as ground truth, else the newest one that was not cancelled."""
    data = task.get("data", task)
    finished = [note for note in annotations(task) if not note.get("was_cancelled")]
    newest = max(finished, key=age, default={"result": []})
    results = [result for result in newest["result"] if isinstance(result, dict)]
    shapes, size = list(read_results(results, lines)), None
    for result in results:
        if result.get("original_width") and result.get("original_height"):
            size = (int(result["original_height"]), int(result["original_width"]))
    texts = [text for text in (*data.values(), task.get("file_upload")) if is_image(text)]
    columns = {key: str(value) for key, value in data.items() if isinstance(value, str | int) and value not in texts}
    return images.record(
        *(texts or [f"task {task.get('id')}"]), near=file.parent, shapes=shapes, size=size, checked=bool(finished),
        columns=columns,
    )  # fmt: skip


def annotations(task: dict) -> list[dict]:
    """Return the annotations of a task; for JSON-MIN, which has results only, one annotation with all of them."""
    if "data" in task:
        return task.get("annotations") or task.get("completions") or []
    lists = [value for value in task.values() if isinstance(value, list)]
    return [{"result": [{"value": value, **value} for values in lists for value in values if isinstance(value, dict)]}]


def age(note: dict) -> tuple[bool, str, str, int]:
    """Return a sorting key: ground truth last, then by the time of change and creation."""
    changed, made = str(note.get("updated_at") or ""), str(note.get("created_at") or "")
    return bool(note.get("ground_truth")), changed or made, made, note.get("id") or 0


def is_image(text: object) -> bool:
    """Whether a value of a task is the path or URL of an image."""
    parts = path_parts(text) if isinstance(text, str) else []
    return bool(parts) and parts[-1].lower().endswith(IMAGE_SUFFIXES)


def read_results(results: list[dict], lines: float | None) -> Iterator[Shape]:
    """Yield the shapes of an annotation in its order; relations, choices and texts are passed over.

    In projects with separate tools for shapes and labels, a shape and its label are two results with the same id.
    """
    labels = {result.get("id"): label for result in results if (label := label_of(result.get("value", {})))}
    drawn = set()
    for result in results:
        value, key = result.get("value", {}), result.get("id")
        if not isinstance(value, dict) or (kind := kind_of(value)) is None or (key is not None and key in drawn):
            continue
        drawn.add(key)
        item = {**value, "size": (result.get("original_height"), result.get("original_width")), "lines": lines}
        yield shape(label_of(value) or labels.get(key), kind, DRAWERS, item)


def label_of(value: dict) -> str | None:
    """Return the class that a result names, the first one of several, or None."""
    named = [value[key] for key in value if key == "labels" or key.removesuffix("labels") in KINDS]
    return next((str(names[0]) for names in named if names), None)


def kind_of(value: dict) -> str | None:
    """Return the kind of shape that a result draws, or None."""
    marks = {
        "rle": "brush", "imageDataURL": "bitmask", "points": "polygon", "vertices": "vector", "radiusX": "ellipse",
        "height": "rectangle", "x": "point",
    }  # fmt: skip
    return next((kind for mark, kind in marks.items() if mark in value), None)


def scaled(points: object, size: tuple[int, int]) -> np.ndarray:
    """Convert points from percent of an image's sides to pixels."""
    return corners(points) * [size[1] / 100, size[0] / 100]


def rectangle(item: dict) -> Draw | None:
    """Draw a rectangle, rotated about its upper left corner; in pixels, since one percent differs between the sides."""
    x, y, width, height = (float(item[key]) for key in ("x", "y", "width", "height"))
    ring = scaled(box(x, y, x + width, y + height), item["size"])
    return polygon(turned(ring, float(item.get("rotation") or 0), *ring[0]))


def oval(item: dict) -> Draw | None:
    """Draw an ellipse, rotated about its center."""
    [(x, y), radii] = scaled([[item["x"], item["y"]], [item["radiusX"], item["radiusY"]]], item["size"])
    return polygon(turned(ellipse(x, y, *radii), float(item.get("rotation") or 0), x, y))


def vector(item: dict) -> Draw | None:
    """Draw a closed path, with straight lines in place of curves; None if it is open."""
    points = [[vertex["x"], vertex["y"]] for vertex in item["vertices"]]
    return polygon(scaled(points, item["size"])) if item.get("closed") else None


def brush(item: dict) -> Draw:
    """Draw a brush: where the alpha of a picture with four channels is opaque."""
    height, width = map(int, item["size"])
    alpha = unpacked(bytes(item["rle"]))[3::4]
    return bitmap(alpha[: height * width].reshape(height, width) >= OPAQUE)


def unpacked(content: bytes) -> np.ndarray:
    """Decode bytes of rle-pack to values (N,) uint8.

    The head has 32 bits with the number of values, 5 with the bits of a value less one, and four times 4 with the bits
    of a length less one. Runs follow. Each has a bit that says whether one value is repeated, two bits that choose one
    of the four lengths' bits, the run's length less one, and then one value or as many as its length says.
    """
    bits = bin(int.from_bytes(b"\1" + content, "big"))[3:]
    place = 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        return int(bits[place - count : place], 2)

    total, word = take(32), take(5) + 1
    lengths = [take(4) + 1 for _ in range(4)]
    if total > 1 << 32 or word != 8:
        raise ValueError("no picture of bytes")
    values, done = [], 0
    while done < total:
        repeated, length = take(1), take(lengths[take(2)]) + 1
        if repeated:
            values.append(np.full(length, take(word), np.uint8))
        else:
            values.append(np.array([take(word) for _ in range(length)], np.uint8))
        done += length
    return np.concatenate(values)[:total]


DRAWERS = {
    "brush": brush,
    "bitmask": lambda item: bitmap(png_mask(item["imageDataURL"].partition("base64,")[2])),
    "polygon": lambda item: polygon(scaled(item["points"], item["size"])),
    "vector": vector,
    "rectangle": rectangle,
    "ellipse": oval,
    "point": lambda item: dots(scaled([[item["x"], item["y"]]], item["size"]), item["lines"]),
}
