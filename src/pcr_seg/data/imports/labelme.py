"""Labelme's JSON, one file for each image: every kind of shape, masks, holes by `_background_`, embedded images.

Source: github.com/wkentaro/labelme, `_label_file.py` for what it writes and `_utils/_shape.py` for what it draws.
"""

import base64
import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pcr_seg.data.files import DataError
from pcr_seg.data.imports.images import Images, ends, files_of, read_json, walk
from pcr_seg.data.imports.shapes import (
    IGNORED,
    Draw,
    Export,
    Record,
    bitmap,
    box,
    corners,
    dots,
    ellipse,
    line,
    png_mask,
    polygon,
    problem_of,
    shape,
)
from pcr_seg.data.sources import read_lines

WIDTH = 10  # pixels of a line, and of a point's disc, in Labelme's own export


def find(place: Path) -> list[Path]:
    """The JSON files of a folder that hold shapes of an image."""

    def has_shapes(file: Path) -> bool:
        text = ends(file)
        return '"shapes"' in text and ('"imagePath"' in text or '"imageHeight"' in text)

    return [file for file in files_of(place, ".json") if has_shapes(file)]


def read(place: Path, files: list[Path], images: Images, lines: float | None) -> Export:
    """Read them; the classes are those of a labels.txt, if there is one, and those that occur."""
    lists = sorted(file for file in walk(place) if file.endswith("/labels.txt")) if place.is_dir() else []
    classes = [name for file in lists[:1] for text in read_lines(file) if (name := text.strip()) and name != IGNORED]
    return Export(classes, (read_file(file, images, lines or WIDTH) for file in files))


def read_file(file: Path, images: Images, width: float) -> Record:
    """The image of one file. Its size in the file says nothing: Labelme takes that of the image."""
    try:
        document = read_json(file)
        shapes = list(read_shapes(document["shapes"], width))
        content = base64.b64decode(document.get("imageData") or "") or None
    except (DataError, LookupError, TypeError, AttributeError, ValueError) as error:
        return Record(file.name, problem=problem_of(error) if isinstance(error, DataError) else f"{file}: damaged")
    texts = [document["imagePath"]] if document.get("imagePath") else []
    return images.record(*texts, file.stem, near=file.parent, embedded=content, shapes=shapes, checked=True)


def read_shapes(shapes: list[dict], width: float) -> Iterator:
    """The shapes of a file, in its order; lines and points are as wide as told."""
    drawers = {
        "polygon": polygon, "oriented_rectangle": polygon, "rotation": polygon, "rectangle": rectangle,
        "circle": circle, "line": partial(line, width=width), "linestrip": partial(line, width=width),
        "point": partial(dots, width=width), "points": partial(dots, width=width),
    }  # fmt: skip
    for item in shapes:
        kind = item.get("shape_type") or "polygon"
        if kind == "mask":
            yield shape(item.get("label"), kind, {"mask": mask}, item)
        else:
            yield shape(item.get("label"), kind, drawers, item.get("points"))


def rectangle(points: list) -> Draw | None:
    """What lies between two opposite corners, or all of them."""
    found = corners(points)
    return polygon(box(*found.min(axis=0), *found.max(axis=0)))


def circle(points: list) -> Draw | None:
    """A disc given by its center and a point of its rim."""
    (x, y), rim = corners(points)
    radius = math.dist((x, y), rim)
    return polygon(ellipse(x, y, radius, radius))


def mask(item: dict) -> Draw | None:
    """A mask of 0 and 1 whose first pixel lies at the first corner of its box."""
    left, top = corners(item["points"])[0].round().astype(int).tolist()
    found = png_mask(item["mask"])
    return bitmap(found, top, left) if found.any() else None
