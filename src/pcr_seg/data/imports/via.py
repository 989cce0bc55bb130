"""Read VGG Image Annotator's JSON (a project, or annotations alone) and CSV, of versions 1 and 2.

Source: robots.ox.ac.uk/~vgg/software/via; gitlab.com/vgg/via, via-2.x.y/CodeDoc.md.
"""

import csv
import json
import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

from pcr_seg.data.files import DataError
from pcr_seg.data.imports.images import Images, ends, files_of, read_json, subset_of_file
from pcr_seg.data.imports.shapes import (
    Draw,
    Export,
    Record,
    Shape,
    box,
    dots,
    ellipse,
    line,
    polygon,
    shape,
    turned,
)
from pcr_seg.data.sources import read_lines

COMMON = (
    "class",
    "class_name",
    "classes",
    "label",
    "labels",
    "category",
    "object",
    "object_class",
    "type",
    "name",
    "object_name",
)
ALONE = "object"  # the class of regions if none has any attribute


class Region(NamedTuple):
    """A region as VIA writes it."""

    shape: dict  # name of the shape, and coordinates
    attributes: dict  # by name


class Image(NamedTuple):
    """An image as VIA writes it."""

    name: str
    num_bytes: int  # of its file; -1 if it came from a URL
    regions: list[Region]
    attributes: dict  # by name


def find(place: Path) -> list[Path]:
    """Return the JSON and CSV files with regions; of each folder the projects, else annotations, else CSV files."""
    found: dict[tuple[Path, int], list[Path]] = defaultdict(list)
    for file in [*files_of(place, ".json"), *files_of(place, ".csv")]:
        text = ends(file)
        if file.suffix.lower() == ".csv":
            if "region_shape_attributes" in text.partition("\n")[0]:
                found[file.parent, 2].append(file)
        elif '"_via_img_metadata"' in text:
            found[file.parent, 0].append(file)
        elif '"file_attributes"' in text and '"regions"' in text:
            found[file.parent, 1].append(file)
    best = {folder: min(kind for top, kind in found if top == folder) for folder, _ in found}
    return [file for folder, kind in sorted(best.items()) for file in found[folder, kind]]


def read(place: Path, files: list[Path], images: Images, lines: float | None, attribute: str | None) -> Export:
    """Read these files.

    Args:
        place: the export.
        files: its files, as `find` returns them.
        images: its images.
        lines: width of lines and points in pixels; None leaves them out.
        attribute: the attribute of regions that names their class; None: the only one, else one with a name in
            `COMMON`, else the only one that is a text in all regions.

    Raises:
        ValueError: no region has the attribute, or it is not clear which one to use.
    """
    documents = {file: read_table(file) if file.suffix.lower() == ".csv" else read_project(file) for file in files}
    regions = [region for found, _ in documents.values() for image in found for region in image.regions]
    named = class_attribute(regions, attribute, files[0])
    options = {key: name for _, options in documents.values() for key, name in options.get(named, {}).items()}
    drawers = drawers_of(lines)

    def draw(region: Region) -> Shape:
        label = label_of(region.attributes.get(named), options) if named else ALONE
        return shape(label, str(region.shape.get("name")), drawers, region.shape)

    records = (
        record_of(image, [draw(region) for region in image.regions], images, file, subset_of_file(file, place))
        for file, (found, _) in documents.items()
        for image in found
    )
    return Export([], records)


def record_of(image: Image, shapes: list[Shape], images: Images, file: Path, subset: str | None) -> Record:
    """Return the record of an image; of several files with its name, that with its size in bytes is taken."""
    columns = {name: str(value) for name, value in image.attributes.items() if isinstance(value, str | int)}
    return images.record(
        image.name, near=file.parent, num_bytes=image.num_bytes, shapes=shapes, subset=subset, columns=columns
    )


def read_project(file: Path) -> tuple[list[Image], dict[str, dict[str, str]]]:
    """Read the images of a JSON file, and the descriptions of the options of each region attribute."""
    document = read_json(file)
    try:
        listed = document.get("_via_img_metadata", document)
        images = [read_image(item) for item in listed.values()]
        attributes = document.get("_via_attributes", {}).get("region", {})
        options = {name: item.get("options") for name, item in attributes.items()}
    except (LookupError, TypeError, AttributeError, ValueError):
        raise DataError(f"{file}: holds no images with regions, as VIA's JSON does; export it again") from None
    return images, {name: found for name, found in options.items() if isinstance(found, dict)}


def read_image(item: dict) -> Image:
    """Read one image of a JSON file; its regions are a dictionary in version 1, a list in version 2."""
    regions = item.get("regions") or []
    found = list(regions.values()) if isinstance(regions, dict) else regions
    read = [Region(region["shape_attributes"], region.get("region_attributes") or {}) for region in found]
    return Image(item["filename"], int(item.get("size") or -1), read, item.get("file_attributes") or {})


def read_table(file: Path) -> tuple[list[Image], dict]:
    """Read the images of a CSV file, which has a line for each region, and a line for an image without regions."""
    images: dict[tuple[str, str], Image] = {}
    try:
        for row in csv.DictReader(read_lines(file), skipinitialspace=True):
            values = {str(key).lstrip("#"): value for key, value in row.items()}
            name, size = values["filename"], values["file_size"] or "-1"
            image = images.setdefault(
                (name, size), Image(name, int(size), [], json.loads(values["file_attributes"] or "{}"))
            )
            if found := json.loads(values["region_shape_attributes"] or "{}"):
                image.regions.append(Region(found, json.loads(values["region_attributes"] or "{}")))
    except (LookupError, TypeError, ValueError) as error:
        raise DataError(f"{file}: not readable as VIA's CSV ({error}); export it again") from None
    return list(images.values()), {}


def class_attribute(regions: list[Region], wanted: str | None, file: Path) -> str | None:
    """Return the attribute that names classes (`read`); None if regions have no attributes.

    Raises:
        ValueError: no region has the wanted attribute, or it is not clear which one to use.
    """
    found = Counter(name for region in regions for name in region.attributes)
    if wanted is not None and wanted not in found:
        raise ValueError(f"attribute={wanted}: no region of {file} has it; choose one of {', '.join(found)}")
    if wanted is not None or len(found) < 2:
        return wanted or next(iter(found), None)
    likely = [name for common in COMMON for name in found if name.lower() == common]
    texts = [
        {key for key, value in region.attributes.items() if isinstance(value, str) and value} for region in regions
    ]
    always = set.intersection(*texts)
    if not likely and len(always) == 1:
        return always.pop()
    if not likely:
        raise ValueError(f"{file}: regions have the attributes {', '.join(found)}; set attribute= to the classes'")
    return likely[0]


def label_of(value: object, options: dict[str, str]) -> str | None:
    """Return the class that an attribute's value means: a text, the only ticked option, or a number's description."""
    if isinstance(value, dict):
        ticked = [name for name, on in value.items() if on]
        value = ticked[0] if len(ticked) == 1 else None
    if value is None:
        return None
    text = str(value)
    return options.get(text) or text if text.isdigit() else text


def drawers_of(lines: float | None) -> dict:
    """Return the drawer for each kind of region; lines and points are drawn only if `lines` gives their width."""

    def path(item: dict) -> list[tuple[float, float]]:
        return list(zip(item["all_points_x"], item["all_points_y"], strict=True))

    def rectangle(item: dict) -> Draw | None:
        x, y, width, height = (float(item[key]) for key in ("x", "y", "width", "height"))
        return polygon(box(x, y, x + width, y + height))

    def circle(item: dict) -> Draw | None:
        return polygon(ellipse(float(item["cx"]), float(item["cy"]), float(item["r"]), float(item["r"])))

    def oval(item: dict) -> Draw | None:
        x, y, radius_x, radius_y = (float(item[key]) for key in ("cx", "cy", "rx", "ry"))
        ring = ellipse(x, y, radius_x, radius_y)
        return polygon(turned(ring, math.degrees(float(item.get("theta") or 0)), x, y))  # radians

    return {
        "polygon": lambda item: polygon(path(item)), "rect": rectangle, "circle": circle, "ellipse": oval,
        "polyline": lambda item: line(path(item), lines), "point": lambda item: dots([item["cx"], item["cy"]], lines),
    }  # fmt: skip
