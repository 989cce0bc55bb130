"""Read Supervisely's project folder: meta.json, and for each data set `img`, and `ann` with a JSON file per image.

Source: developer.supervisely.com, "Supervisely annotation JSON format".
"""

import math
from functools import partial
from pathlib import Path

import numpy as np

from pcr_seg.data.files import DataError
from pcr_seg.data.imports.images import SUBSETS, Images, files_of, read_json, subset_of
from pcr_seg.data.imports.shapes import (
    Draw,
    Export,
    Record,
    Size,
    Window,
    bitmap,
    box,
    corners,
    dots,
    line,
    png_mask,
    polygon,
    polygons,
    problem_of,
    shape,
    turned,
)

OPAQUE = 128  # a pixel of an alpha mask counts from this alpha on


def find(place: Path) -> list[Path]:
    """Return the annotation files of a project's data sets, nested ones included."""
    return [file for file in files_of(place, ".json") if file.parent.name == "ann"] if place.is_dir() else []


def read(place: Path, files: list[Path], images: Images, lines: float | None) -> Export:
    """Read these files. The classes are those in meta.json."""
    documents = [read_json(file) for file in files_of(place, ".json") if file.name == "meta.json"]
    found = [item for document in documents if isinstance(document, dict) for item in document.get("classes", [])]
    classes = dict.fromkeys(str(item["title"]) for item in found if isinstance(item, dict) and "title" in item)
    return Export(list(classes), (read_file(file, place, images, lines) for file in files))


def read_file(file: Path, place: Path, images: Images, lines: float | None) -> Record:
    """Read the image of one file; its objects are in drawing order."""
    try:
        document = read_json(file)
        size = document.get("size") or {}
        size = (int(size["height"]), int(size["width"])) if size else None
        objects = [(item.get("classTitle"), kind_of(item), item) for item in document.get("objects", [])]
        tags = {str(tag["name"]): tag.get("value") for tag in document.get("tags", [])}
    except (DataError, LookupError, TypeError, AttributeError, ValueError) as error:
        return Record(file.name, problem=problem_of(error) if isinstance(error, DataError) else f"{file}: damaged")
    drawers = drawers_of(lines)
    folders = [part for part in file.relative_to(place).parts[:-1] if part not in ("ann", "datasets")]
    return images.record(
        file.name.removesuffix(".json"),
        near=file.parents[1] / "img",
        shapes=[shape(label, kind, drawers, item) for label, kind, item in objects],
        size=size,
        subset=next((SUBSETS[name.lower()] for name in tags if name.lower() in SUBSETS), None) or subset_of(folders),
        columns={name: str(value) for name, value in tags.items() if value is not None},
    )


def kind_of(item: dict) -> str:
    """Return the kind of an object; old exports do not have `geometryType`."""
    return item.get("geometryType") or ("bitmap" if item.get("bitmap") else "polygon")


def drawers_of(lines: float | None) -> dict:
    """Return the drawer for each kind of object; lines and points are drawn only if `lines` gives their width."""
    return {
        "polygon": lambda item: polygons([item["points"]["exterior"]], item["points"].get("interior") or []),
        "multipolygon": parts,
        "rectangle": rectangle,
        "oriented_bbox": turned_box,
        "bitmap": lambda item: mask(item["bitmap"]),
        "alpha_mask": lambda item: mask(item.get("alpha_mask") or item["bitmap"], OPAQUE),
        "line": lambda item: line(item["points"]["exterior"], lines),
        "point": lambda item: dots(item["points"]["exterior"], lines),
    }


def parts(item: dict) -> Draw | None:
    """Draw several polygons, each with its holes."""
    found = [polygons([part["exterior"]], part.get("interior") or []) for part in item["parts"]]
    draws = [draw for draw in found if draw]
    return partial(union, draws) if draws else None


def union(draws: list[Draw], size: Size) -> Window:
    """Draw all pixels of several shapes."""
    whole = np.zeros(size, bool)
    for draw in draws:
        mask, top, left = draw(size)
        whole[top : top + mask.shape[0], left : left + mask.shape[1]] |= mask
    return Window(whole)


def rectangle(item: dict) -> Draw | None:
    """Draw a box given by two opposite pixels, which both belong to it."""
    found = corners(item["points"]["exterior"])
    return polygon(box(*found.min(axis=0), *(found.max(axis=0) + 1)))


def turned_box(item: dict) -> Draw | None:
    """Draw a box rotated about its center, by an angle in radians."""
    found = corners(item["points"]["exterior"] if isinstance(item["points"], dict) else item["points"])
    ring = box(*found.min(axis=0), *found.max(axis=0))
    return polygon(turned(ring, math.degrees(float(item.get("angle") or 0)), *ring.mean(axis=0)))


def mask(item: dict, threshold: int = 1) -> Draw:
    """Draw a mask from a PNG, compressed and in base64, whose upper left pixel is at `origin` (x, y)."""
    left, top = corners(item["origin"])[0].astype(int).tolist()
    return bitmap(png_mask(item["data"], threshold), top, left)
