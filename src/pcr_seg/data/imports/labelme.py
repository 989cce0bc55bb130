"""Read Labelme's JSON, one file for each image: all kinds of shapes, masks, holes (`_background_`), embedded images.

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

WIDTH = 10  # width in pixels of lines, and diameter of points, in Labelme's own export


def find(place: Path) -> list[Path]:
    """Return the JSON files in a folder that have the shapes of an image."""

    def has_shapes(file: Path) -> bool:
        text = ends(file)
        return '"shapes"' in text and ('"imagePath"' in text or '"imageHeight"' in text)

    return [file for file in files_of(place, ".json") if has_shapes(file)]


def read(place: Path, files: list[Path], images: Images, lines: float | None) -> Export:
    """Read these files. The classes are those in a labels.txt, if there is one, and then those that occur."""
    lists = sorted(file for file in walk(place) if file.endswith("/labels.txt")) if place.is_dir() else []
    classes = [name for file in lists[:1] for text in read_lines(file) if (name := text.strip()) and name != IGNORED]
    return Export(classes, (read_file(file, images, lines or WIDTH) for file in files))


def read_file(file: Path, images: Images, width: float) -> Record:
    """Read the image of one file. The size in the file is not used, since Labelme takes the image's as well."""
    try:
        document = read_json(file)
        shapes = list(read_shapes(document["shapes"], width))
        content = base64.b64decode(document.get("imageData") or "") or None
    except (DataError, LookupError, TypeError, AttributeError, ValueError) as error:
        return Record(file.name, problem=problem_of(error) if isinstance(error, DataError) else f"{file}: damaged")
    texts = [document["imagePath"]] if document.get("imagePath") else []
    return images.record(*texts, file.stem, near=file.parent, embedded=content, shapes=shapes, checked=True)


def read_shapes(shapes: list[dict], width: float) -> Iterator:
    """Yield the shapes of a file in its order; lines and points have this width in pixels."""
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
    """Draw a rectangle given by two opposite corners, or by all four."""
    found = corners(points)
    return polygon(box(*found.min(axis=0), *found.max(axis=0)))


def circle(points: list) -> Draw | None:
    """Draw a disc given by its center and a point on its rim."""
    (x, y), rim = corners(points)
    radius = math.dist((x, y), rim)
    return polygon(ellipse(x, y, radius, radius))


def mask(item: dict) -> Draw | None:
    """Draw a mask of 0 and 1 whose upper left pixel is at the first corner of its box."""
    left, top = corners(item["points"])[0].round().astype(int).tolist()
    found = png_mask(item["mask"])
    return bitmap(found, top, left) if found.any() else None
