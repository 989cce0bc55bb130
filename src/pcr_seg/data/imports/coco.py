"""COCO's JSON, of COCO itself, CVAT, Label Studio, Roboflow and whoever writes it: polygons, both run lengths, crowds.

Source: cocodataset.org, "Data format"; pycocotools.
"""

from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from pcr_seg.data.files import DataError
from pcr_seg.data.imports.images import Images, ends, files_of, read_json, subset_of_file
from pcr_seg.data.imports.shapes import (
    Draw,
    Export,
    Record,
    Shape,
    bitmap,
    box,
    polygon,
    polygons,
    run_lengths,
    shape,
)

OTHER_TASKS = ("captions_", "person_keypoints_", "panoptic_", "image_info_")


def find(place: Path) -> list[Path]:
    """The JSON files of a folder that list images and annotations; not those of COCO's other tasks."""

    def lists(file: Path) -> bool:
        text = ends(file)
        keys = sum(f'"{key}"' in text for key in ("images", "annotations", "categories"))
        return text.startswith("{") and keys > 1 and '"_via_img_metadata"' not in text

    found = [file for file in files_of(place, ".json") if lists(file)]
    return [file for file in found if not file.name.startswith(OTHER_TASKS)] or found


def read(place: Path, files: list[Path], images: Images) -> Export:
    """Read them; a class is its name, whatever its number in each file."""
    documents = {file: read_json(file) for file in files}
    for file, document in documents.items():
        if not isinstance(document, dict) or not isinstance(document.get("images"), list):
            raise DataError(f"{file}: lists no images, as COCO's JSON does; export it again")
        if any("segments_info" in note for note in document.get("annotations", [])[:1]):
            raise DataError(f"{file}: is COCO's panoptic format, which is not read; export instances")
    names = {file: class_names(document) for file, document in documents.items()}
    classes = list(dict.fromkeys(chain.from_iterable(found.values() for found in names.values())))
    records = (
        record
        for file, document in documents.items()
        for record in read_document(document, names[file], images, file, subset_of_file(file, place))
    )
    return Export(classes, records)


def class_names(document: dict) -> dict[Any, str]:
    """The names of a file's categories by their numbers, in that order.

    Roboflow's first category is no class: nothing is drawn with it, and the others have it above them.
    """
    categories = {category["id"]: category for category in document.get("categories", [])}
    used = {note.get("category_id") for note in document.get("annotations", [])}
    above = {category.get("supercategory") for category in categories.values()} - {None, "", "none"}

    def is_class(category: dict) -> bool:
        top = category.get("supercategory") in (None, "", "none") and category.get("name") in above
        return not top or category["id"] in used

    kept = {key: categories[key] for key in sorted(categories, key=lambda key: (isinstance(key, str), key))}
    return {key: str(category["name"]) for key, category in kept.items() if is_class(category)}


def read_document(
    document: dict, names: dict[Any, str], images: Images, file: Path, subset: str | None
) -> Iterator[Record]:
    """The images of one file with their annotations, in the file's order."""
    notes: dict[Any, list[dict]] = defaultdict(list)
    for note in document.get("annotations", []):
        notes[note.get("image_id")].append(note)
    for image in document["images"]:
        size = (int(image["height"]), int(image["width"])) if image.get("height") and image.get("width") else None
        known = {key: str(value) for key, value in image.items() if isinstance(value, str | int)}
        texts = [str(image[key]) for key in ("file_name", "path", "coco_url") if image.get(key)]
        shapes = [read_note(note, names, size) for note in notes.pop(image.get("id"), [])]
        yield images.record(*texts, near=file.parent, shapes=shapes, size=size, subset=subset, columns=known)
    if lost := sum(map(len, notes.values())):
        yield Record(file.name, problem=f"{lost} annotations of images that the file does not list")


def read_note(note: dict, names: dict[Any, str], size: tuple[int, int] | None) -> Shape:
    """One annotation; where it has no outline, its box says where to look."""
    outline, label = note.get("segmentation"), names.get(note.get("category_id"))
    if isinstance(outline, dict):
        return shape(label, "mask", {"mask": lambda outline: mask(outline, size)}, outline)
    if outline:
        parts = polygon if not isinstance(outline[0], list) else polygons
        return shape(label, "polygon", {"polygon": parts}, outline)
    if note.get("bbox"):
        return shape(label, "box alone", {"box alone": whole_box}, note["bbox"])._replace(beneath=True)
    return Shape(label, "annotation without outline")


def whole_box(sides: list[float]) -> Draw | None:
    """A box given by its upper left corner, width and height."""
    x, y, width, height = sides
    return polygon(box(x, y, x + width, y + height))


def mask(outline: dict, size: tuple[int, int] | None) -> Draw:
    """A mask given by run lengths down its columns, as a list of numbers or as COCO's text.

    Raises:
        ValueError: they do not fill the size that they name, or it is not the image's.
    """
    height, width = map(int, outline["size"])
    if size and (height, width) != size:
        raise ValueError("a mask of another size")
    counts = outline["counts"]
    return bitmap(run_lengths(counts if isinstance(counts, list) else unpacked(counts), width, height).T)


def unpacked(text: str) -> list[int]:
    """The run lengths in COCO's text. pycocotools reads it too, but not whether they fill the mask.

    Each is a number of 5 bits a sign, from the lowest, the sign in the last one; from the fourth on less the one before
    the last. Source: cocodataset/cocoapi, common/maskApi.c, rleFrString.
    """
    counts, number, shift = [], 0, 0
    for sign in text:
        bits = ord(sign) - 48
        number, shift = number | (bits & 31) << shift, shift + 5
        if not bits & 32:
            number -= (bits & 16 and 1) << shift
            counts.append(number + (counts[-2] if len(counts) > 2 else 0))
            number, shift = 0, 0
    return counts
