"""Read COCO's JSON, which many tools export: polygons, run lengths of both kinds, crowds.

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
    """Return the JSON files in a folder that list images and annotations, without those of COCO's other tasks."""

    def lists(file: Path) -> bool:
        text = ends(file)
        keys = sum(f'"{key}"' in text for key in ("images", "annotations", "categories"))
        return text.startswith("{") and keys > 1 and '"_via_img_metadata"' not in text

    found = [file for file in files_of(place, ".json") if lists(file)]
    return [file for file in found if not file.name.startswith(OTHER_TASKS)] or found


def read(place: Path, files: list[Path], images: Images) -> Export:
    """Read these files. Categories are told apart by name; their ids may differ from file to file."""
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
    """Return the names of a file's categories by id, in the order of ids.

    Roboflow's first category is left out. It is no class but the supercategory of the others, and nothing is drawn with
    it.
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
    """Yield the images of one file with their annotations, in the file's order."""
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
    """Read one annotation; if it has no outline, its box is ignored (255) where no other shape lies."""
    outline, label = note.get("segmentation"), names.get(note.get("category_id"))
    if isinstance(outline, dict):
        return shape(label, "mask", {"mask": lambda outline: mask(outline, size)}, outline)
    if outline and any(part != [] for part in outline):
        parts = polygon if not isinstance(outline[0], list) else polygons
        return shape(label, "polygon", {"polygon": parts}, outline)
    if note.get("bbox"):
        return shape(label, "box alone", {"box alone": whole_box}, note["bbox"])._replace(beneath=True)
    return Shape(label, "annotation without outline")


def whole_box(sides: list[float]) -> Draw | None:
    """Draw a box given by its upper left corner, width and height."""
    x, y, width, height = sides
    return polygon(box(x, y, x + width, y + height))


def mask(outline: dict, size: tuple[int, int] | None) -> Draw:
    """Draw a mask given by run lengths down its columns, as a list of numbers or as COCO's text.

    Raises:
        ValueError: the run lengths do not fill their size, or that is not the image's.
    """
    height, width = map(int, outline["size"])
    if size and (height, width) != size:
        raise ValueError("a mask of another size")
    counts = outline["counts"]
    return bitmap(run_lengths(counts if isinstance(counts, list) else unpacked(counts), width, height).T)


def unpacked(text: str) -> list[int]:
    """Decode the run lengths in COCO's text. pycocotools can do so as well, but does not check that they fill the mask.

    Each character has 5 bits of a number, the lowest first, and a bit that says whether another follows. The last
    character's highest bit is the number's sign. From the fourth number on, a number is the difference to the one two
    before it. Source: cocodataset/cocoapi, common/maskApi.c, rleFrString.
    """
    counts, number, shift = [], 0, 0
    for character in text:
        bits = ord(character) - 48
        number, shift = number | (bits & 31) << shift, shift + 5
        if not bits & 32:
            number -= (bits & 16 and 1) << shift
            counts.append(number + (counts[-2] if len(counts) > 2 else 0))
            number, shift = 0, 0
    return counts
