"""Write masks as annotation files, COCO's JSON or Labelme's, to be corrected in an annotation tool.

`prepare.py import` reads both back. COCO's run lengths are exact. Labelme's polygons leave out corners smaller than a
pixel, so that a person has few points to move.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from pcr_seg.data.files import IGNORE_INDEX
from pcr_seg.data.imports.shapes import BACKGROUND, IGNORED

FORMATS = ("coco", "labelme")
TOLERANCE = 1.0  # pixels that a polygon may deviate from the mask's border


class Region(NamedTuple):
    """A connected region of one class: a mask (h, w) of bool whose upper left corner is at (top, left)."""

    label: int
    mask: np.ndarray
    top: int
    left: int


@contextmanager
def annotations(
    folder: Path, format: str, class_names: Sequence[str]
) -> Iterator[Callable[[str, Path, np.ndarray], None]]:
    """Open annotation files in `folder`; yields a function that adds the mask of one image.

    The function takes the image's path as tools know it (`day 2/photo.jpg`), its file, and class ids (H, W) of uint8
    with 255 = ignored. It may be called from any thread.

    COCO's annotations.json is written at the end, also after an interrupt. Labelme's labelme/NAME.json is written at
    once and refers to the image's file; labelme/labels.txt is for its option --labels.

    Args:
        folder: where to write.
        format: "coco" or "labelme".
        class_names: in the order of ids. A class called background is not written: it is what no shape covers.
    """
    found: list[tuple[str, tuple[int, int], list[dict]]] = []

    def add(name: str, image: Path, mask: np.ndarray) -> None:
        if format == "coco":
            found.append((name, mask.shape, coco_annotations(mask, class_names)))
        else:
            file = folder / "labelme" / Path(name).with_suffix(".json")
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, labelme_file(mask, class_names, os.path.relpath(image, file.parent)))

    if format == "labelme":
        (folder / "labelme").mkdir(parents=True, exist_ok=True)
        (folder / "labelme/labels.txt").write_text("\n".join(labelme_names(class_names)) + "\n", encoding="utf-8")
    try:
        yield add
    finally:
        if format == "coco":
            write_json(folder / "annotations.json", coco_file(sorted(found, key=lambda image: image[0]), class_names))


def write_json(file: Path, content: dict) -> None:
    """Write a JSON file."""
    file.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


def ground(class_names: Sequence[str]) -> int | None:
    """Return the id of the background class, or None."""
    return next((label for label, name in enumerate(class_names) if name.lower() in BACKGROUND), None)


def regions(mask: np.ndarray) -> Iterator[Region]:
    """Yield the connected regions of a mask (pixels that share a side), class by class."""
    for label in np.unique(mask).tolist():
        of_label = (mask == label).astype(np.uint8)
        number, numbers, boxes, _ = cv2.connectedComponentsWithStats(of_label, connectivity=4)
        for index in range(1, number):
            left, top, width, height, _ = boxes[index].tolist()
            yield Region(label, numbers[top : top + height, left : left + width] == index, top, left)


def coco_annotations(mask: np.ndarray, class_names: Sequence[str]) -> list[dict]:
    """Return the annotations of one image, one for each region, as run lengths down the columns; without ids.

    Category ids count `class_names` from 1. Source: cocodataset.org, "Data format".
    """
    found = []
    for label, pixels, top, left in regions(mask):
        if label == ground(class_names):
            continue
        columns, rows = np.nonzero(pixels.T)
        flat = (columns + left) * mask.shape[0] + rows + top
        breaks = np.flatnonzero(np.diff(flat) > 1)
        edges = np.stack([flat[np.r_[0, breaks + 1]], flat[np.r_[breaks, len(flat) - 1]] + 1], axis=1).ravel()
        counts = np.diff(np.r_[0, edges, mask.size]).tolist()
        height, width = pixels.shape
        found.append(
            {
                "category_id": label + 1,
                "segmentation": {"size": list(mask.shape), "counts": counts},
                "area": len(flat),
                "bbox": [left, top, width, height],
                "iscrowd": 0,
            }
        )
    return found


def coco_file(images: Sequence[tuple[str, tuple[int, int], list[dict]]], class_names: Sequence[str]) -> dict:
    """Return the content of COCO's JSON, from each image's path, size (H, W) and annotations."""
    names = dict(enumerate(class_names, 1))
    if any(note["category_id"] == IGNORE_INDEX + 1 for *_, notes in images for note in notes):
        names[IGNORE_INDEX + 1] = IGNORED
    described = [
        {"id": number, "file_name": name, "width": size[1], "height": size[0]}
        for number, (name, size, _) in enumerate(images, 1)
    ]
    notes = [(number, note) for number, (*_, found) in enumerate(images, 1) for note in found]
    return {
        "images": described,
        "annotations": [{"id": i, "image_id": number, **note} for i, (number, note) in enumerate(notes, 1)],
        "categories": [{"id": key, "name": name, "supercategory": ""} for key, name in names.items()],
    }


def labelme_names(class_names: Sequence[str]) -> list[str]:
    """Return Labelme's names: first that of ignored pixels, then the classes'; a background is "_background_"."""
    return [IGNORED, *("_background_" if i == ground(class_names) else name for i, name in enumerate(class_names))]


def labelme_file(mask: np.ndarray, class_names: Sequence[str], image: str, tolerance: float = TOLERANCE) -> dict:
    """Return the content of Labelme's JSON for one image: outlines of regions, large ones first, others on top.

    Background is drawn, as `_background_`, only where it is enclosed: it does not touch the image's border.
    """
    ignored, *names = labelme_names(class_names)
    names = {**dict(enumerate(names)), IGNORE_INDEX: ignored}
    background = ground(class_names)
    drawn = [one for one in regions(mask) if one.label != background or not touches_border(one, mask.shape)]
    found = [(names[region.label], *outline(region, tolerance)) for region in drawn]
    found.sort(key=lambda shape: -shape[2])
    shapes = [
        {"label": name, "points": points, "group_id": None, "description": "", "shape_type": "polygon", "flags": {}}
        for name, points, _ in found
    ]
    height, width = mask.shape
    return {
        "version": "5.0.0", "flags": {}, "shapes": shapes, "imagePath": image.replace(os.sep, "/"), "imageData": None,
        "imageHeight": height, "imageWidth": width,
    }  # fmt: skip


def touches_border(region: Region, size: tuple[int, int]) -> bool:
    """Whether a region reaches the border of its image."""
    height, width = region.mask.shape
    return min(region.top, region.left) == 0 or region.top + height == size[0] or region.left + width == size[1]


def outline(region: Region, tolerance: float) -> tuple[list[list[float]], float]:
    """Return the corners (x, y) of a region's outer border, without its holes, and the area inside.

    The border runs a quarter of a pixel inside of the region's edge, so that it encloses exactly the region's pixel
    centers.
    """
    doubled = np.pad(region.mask.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1), 1)
    [border], _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    simple = cv2.approxPolyDP(border, 2 * tolerance, closed=True) if tolerance else border
    points = (simple if len(simple) > 2 else border)[:, 0]
    return ((points - 0.5) / 2 + [region.left, region.top]).tolist(), cv2.contourArea(border)
