"""Read exports that are masks: VOC's palettes, CVAT's "Segmentation mask 1.1", Roboflow's "Semantic Segmentation".

Source: the devkit of PASCAL VOC; github.com/cvat-ai/cvat, cvat/apps/dataset_manager/formats/mask.py; Roboflow's
`_classes.csv`.
"""

import csv
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from pcr_seg.data.files import IGNORE_INDEX, DataError, Format, Sample, read_mask
from pcr_seg.data.imports.images import SUBSETS, Images, files_of, subset_of_file
from pcr_seg.data.imports.shapes import IGNORED, Export, Record, Shape, bitmap
from pcr_seg.data.sources import VOC_CLASSES, find_images, read_lines

FOLDERS = ("SegmentationClassPNG", "SegmentationClassAug", "SegmentationClass")  # the first with masks is read
LISTS = ("class_names.txt", "classes.txt", "labels.txt")  # files of class names in the order of ids


def find_voc(place: Path) -> list[Path]:
    """Return the folders of masks, of which each lies beside the folder of its images."""
    places = [place, *(Path(top, name) for top, names, _ in os.walk(place) for name in names)]
    found = {top.parent: top for name in reversed(FOLDERS) for top in places if top.name == name and masks_in(top)}
    return sorted(found.values())


def masks_in(folder: Path) -> list[Path]:
    """Return the masks in a folder and below it."""
    return files_of(folder, ".png")


def read_voc(place: Path, folders: list[Path], images: Images) -> Export:
    """Read these folders, with the subsets of ImageSets/Segmentation; a listed image without a mask is unlabeled.

    If there is a labelmap.txt, masks have its colors. Otherwise their values count the names in a list of classes, or
    VOC's if there is no list.
    """
    described = {folder: classes_of(folder.parent) for folder in folders}
    classes = dict.fromkeys(name for names, _ in described.values() for name in names.values())

    def records() -> Iterator[Record]:
        for folder, (names, format) in described.items():
            subsets = listed(folder.parent / "ImageSets/Segmentation")
            named = {file.relative_to(folder).with_suffix("").as_posix(): file for file in masks_in(folder)}
            for name in sorted({**subsets, **named}):
                subset = subsets.get(name)
                record = images.record(name, near=folder.parent / "JPEGImages", subset=subset)
                yield with_mask(record, named[name], names, format) if name in named else record

    return Export(list(classes), records())


def classes_of(top: Path) -> tuple[dict[int, str], Format]:
    """Return the class of each value in a folder's masks, and how these are coded."""
    if (file := top / "labelmap.txt").is_file():
        rows = [line.rsplit(":", 3) for line in read_lines(file) if line.strip() and not line.startswith("#")]
        try:
            colors = {tuple(map(int, row[1].split(","))): i for i, row in enumerate(rows)}
        except (ValueError, IndexError):
            raise DataError(f"{file}: a line is not `name:r,g,b::`; correct it") from None
        return {i: row[0] for i, row in enumerate(rows)}, Format(colors=colors, masks="colors")
    found = next((top / name for name in LISTS if (top / name).is_file()), None)
    names = [line.strip() for line in read_lines(found) if line.strip()] if found else list(VOC_CLASSES)
    names = names[1:] if names[0] == IGNORED else names
    return dict(enumerate(names)), Format(num_classes=len(names))


def listed(folder: Path) -> dict[str, str | None]:
    """Return the subset of each image in a folder's lists; `trainval` and other names are no subsets."""
    found: dict[str, str | None] = {}
    for file in sorted(folder.glob("*.txt")):
        for line in read_lines(file):
            name = re.sub(r'^"(.*)"$', r"\1", line.strip())
            if name and not line.startswith("#"):
                found[name] = SUBSETS.get(file.stem.lower()) or found.get(name)
    return found


def find_roboflow(place: Path) -> list[Path]:
    """Return the `_classes.csv` of each folder with masks beside its images."""
    lists = [file for file in files_of(place, ".csv") if file.name == "_classes.csv"]
    return [file for file in lists if any(file.parent.glob("*_mask.png"))]


def read_roboflow(place: Path, files: list[Path], images: Images) -> Export:
    """Read the folders of these `_classes.csv` files."""
    described = {file: values_of(file) for file in files}
    classes = dict.fromkeys(name for names in described.values() for name in names.values())

    def records() -> Iterator[Record]:
        for file, names in described.items():
            subset = subset_of_file(file, place)
            masks = {path.name.removesuffix("_mask.png"): path for path in sorted(file.parent.glob("*_mask.png"))}
            paths = [path for path in map(Path, find_images(file.parent)[1]) if path not in masks.values()]
            for path in paths:
                record = images.record(path.relative_to(file.parent).as_posix(), near=file.parent, subset=subset)
                yield with_mask(record, masks[path.stem], names, Format()) if path.stem in masks else record
            for name in sorted(masks.keys() - {path.stem for path in paths}):
                yield Record(masks[name].name, mask=masks[name], problem="is of no image")

    return Export(list(classes), records())


def values_of(file: Path) -> dict[int, str]:
    """Read a table `Pixel Value, Class`; return the classes by value."""
    rows = list(csv.reader(read_lines(file), skipinitialspace=True))[1:]
    try:
        return {int(row[0]): row[1].strip() for row in rows if row}
    except (ValueError, IndexError):
        raise DataError(f"{file}: a line is not `Pixel Value, Class`; correct it") from None


def with_mask(record: Record, file: Path, names: Mapping[int, str], format: Format) -> Record:
    """Add to a record a shape for each value of its mask; 255 is ignored, unless a class has that value."""
    try:
        mask = read_mask(Sample(record.name, str(record.image), str(file), format=format))
    except (DataError, OSError) as error:
        return record._replace(image=None, mask=file, problem=str(error))
    names = {IGNORE_INDEX: IGNORED, **names}
    values = np.unique(mask).tolist()
    if strange := [value for value in values if value not in names]:
        return record._replace(image=None, mask=file, problem=f"{file}: values {strange} name no class")
    shapes = [Shape(names[value], "mask", bitmap(mask == value)) for value in values]
    return record._replace(shapes=shapes, size=mask.shape, checked=True, mask=file)
