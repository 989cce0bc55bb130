"""Read CVAT's XML ("CVAT for images 1.1"): polygons, boxes, ellipses and masks, drawn in the order of z_order.

Source: docs.cvat.ai, "XML annotation format"; github.com/cvat-ai/cvat, cvat/apps/dataset_manager/formats/cvat.py.
"""

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from pcr_seg.data.files import DataError
from pcr_seg.data.imports.images import SUBSETS, Images, ends, files_of
from pcr_seg.data.imports.shapes import (
    Draw,
    Export,
    Record,
    bitmap,
    box,
    dots,
    ellipse,
    line,
    polygon,
    run_lengths,
    shape,
    turned,
)


def find(place: Path) -> list[Path]:
    """Return the XML files in a folder whose root element is `annotations`."""
    return [file for file in files_of(place, ".xml") if "<annotations>" in ends(file)]


def read(place: Path, files: list[Path], images: Images, lines: float | None) -> Export:
    """Read these files. Labels that are skeletons, or parts of one, are no classes."""
    roots = {file: root(file) for file in files}
    labels = [label for top in roots.values() for label in top.iterfind("meta//label")]
    whole = [label for label in labels if not label.findtext("parent") and label.findtext("type") != "skeleton"]
    classes = dict.fromkeys(name for label in whole if (name := label.findtext("name")))
    records = (read_image(image, images, file, lines) for file, top in roots.items() for image in top.iterfind("image"))
    return Export(list(classes), records)


def root(file: Path) -> Element:
    """Return the root element of a file.

    Raises:
        DataError: the file is damaged, or is CVAT's format for videos.
    """
    try:
        top = ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataError(f"{file}: not readable as XML ({error}); export it again") from None
    if top.find("track") is not None:
        raise DataError(f'{file}: is of "CVAT for video"; export the task as "CVAT for images 1.1"')
    return top


def read_image(image: Element, images: Images, file: Path, lines: float | None) -> Record:
    """Read one image with its shapes, those of a higher z_order on top.

    An export of a project has the images in a folder for each subset.
    """
    name, subset = image.get("name", ""), image.get("subset", "")
    size = (int(image.get("height")), int(image.get("width"))) if image.get("height") and image.get("width") else None
    ordered = sorted(image, key=lambda item: int(float(item.get("z_order") or 0)))
    drawers = {
        "polygon": lambda item: polygon(points(item)), "box": rectangle, "ellipse": oval, "mask": mask,
        "polyline": lambda item: line(points(item), lines), "points": lambda item: dots(points(item), lines),
    }  # fmt: skip
    shapes = [shape(item.get("label"), item.tag, drawers, item) for item in ordered if item.get("label") is not None]
    texts = [f"{subset}/{name}", name] if subset else [name]
    return images.record(
        *texts, near=file.parent / "images", shapes=shapes, size=size, subset=SUBSETS.get(subset.lower())
    )


def points(item: Element) -> list[list[float]]:
    """Return the corners (x, y) of a polygon or line."""
    return [[float(value) for value in pair.split(",")] for pair in item.get("points", "").split(";")]


def numbers(item: Element, keys: str) -> Iterator[float]:
    """Return the values of some attributes, whose names are separated by spaces."""
    return (float(item.get(key)) for key in keys.split())


def rectangle(item: Element) -> Draw | None:
    """Draw a box, rotated about its center."""
    ring = box(*numbers(item, "xtl ytl xbr ybr"))
    return polygon(turned(ring, float(item.get("rotation") or 0), *ring.mean(axis=0)))


def oval(item: Element) -> Draw | None:
    """Draw an ellipse, rotated about its center."""
    x, y, *radii = numbers(item, "cx cy rx ry")
    return polygon(turned(ellipse(x, y, *radii), float(item.get("rotation") or 0), x, y))


def mask(item: Element) -> Draw:
    """Draw a mask given by run lengths along the rows of a box; the first run is outside of the mask."""
    left, top, width, height = map(int, numbers(item, "left top width height"))
    return bitmap(run_lengths([int(text) for text in item.get("rle", "").split(",")], height, width), top, left)
