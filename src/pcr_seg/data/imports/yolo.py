"""Read YOLO's polygons, as Ultralytics, CVAT, Label Studio and Roboflow write them: a text file for each image.

Source: docs.ultralytics.com, "Instance segmentation datasets"; ultralytics/data/utils.py for paths and sides.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pcr_seg.data.files import DataError, image_size
from pcr_seg.data.imports.images import SUBSETS, Images, ends, files_of, path_parts, walk
from pcr_seg.data.imports.shapes import Draw, Export, Record, Shape, Size, box, corners, polygon, problem_of, shape
from pcr_seg.data.sources import find_images, read_lines

LISTS = ("classes.txt", "obj.names", "labels.txt")  # files of class names, used if there is no YAML file


def find(place: Path) -> list[Path]:
    """Return the YAML files in a folder that name classes; else lists of classes that lie beside a folder `labels`."""
    found = [file for suffix in (".yaml", ".yml") for file in files_of(place, suffix) if "names:" in ends(file)]
    if found or place.is_file():
        return found
    lists = [Path(file) for file in walk(place) if file.rpartition("/")[2] in LISTS]
    return [file for file in lists if files_of(file.parent / "labels", ".txt")]


def read(place: Path, files: list[Path], images: Images) -> Export:
    """Read the data sets that these files describe.

    Raises:
        DataError: a file does not list classes, or leads to no images.
    """
    described = [(file, *described_by(file)) for file in files]
    classes = dict.fromkeys(name for _, names, _ in described for name in names.values())
    records = (record for file, names, parts in described for record in read_parts(file, names, parts, images))
    return Export(list(classes), records)


def described_by(file: Path) -> tuple[dict[int, str], dict[str | None, list[Path]]]:
    """Return the class names by number, and the images of each subset."""
    if file.suffix == ".txt" or file.name in LISTS:
        return dict(enumerate(read_lines(file))), {None: [Path(image) for image in find_images(file.parent)[1]]}
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
        names = content["names"]
        names = names if isinstance(names, dict) else dict(enumerate(names))
        names = {int(key): str(name) for key, name in names.items()}
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise DataError(f"{file}: lists no classes under `names` ({problem_of(error)}); correct it") from None
    parts = {subset: content[key] for key, subset in SUBSETS.items() if content.get(key)}
    found = {subset: images_of(file, content.get("path"), entries) for subset, entries in parts.items()}
    if not any(found.values()):
        found = {None: [Path(image) for image in find_images(file.parent)[1]]}
    return names, found


def images_of(file: Path, root: object, entries: Any) -> list[Path]:
    """Return the images of a subset, whose entries are folders or lists; relative paths are tried in several places."""
    found = []
    for entry in entries if isinstance(entries, list) else [entries]:
        parts = path_parts(entry)
        tails = [Path(*parts), Path(*[part for part in parts if part != ".."])]
        roots = [file.parent / str(root), file.parent] if root else [file.parent]
        places = [start / tail for start in roots for tail in tails] + [Path(str(entry))]
        place = next((place for place in places if place.exists()), None)
        if place is not None and place.suffix == ".txt":
            found += [place.parent.joinpath(*path_parts(line)) for line in read_lines(place) if line.strip()]
        elif place is not None:
            found += map(Path, find_images(place)[1])
    return found


def read_parts(
    file: Path, names: dict[int, str], parts: dict[str | None, list[Path]], images: Images
) -> Iterator[Record]:
    """Yield each image once, with the shapes in its text file; an empty text file means that nothing is there."""
    done = set()
    for subset, paths in parts.items():
        for path in paths:
            record = images.record(str(path), near=Path(), subset=subset)
            if record.image in done and record.image is not None:
                continue
            done.add(record.image)
            labels = label_file(record.image) if isinstance(record.image, Path) else None
            if labels is None:
                yield record
                continue
            try:
                size, lines = image_size(record.image), read_lines(labels)
            except (DataError, OSError) as error:
                yield record._replace(image=None, problem=problem_of(error))
                continue
            shapes = [read_line(line.split(), names, size) for line in lines if line.strip()]
            yield record._replace(shapes=shapes, checked=True)


def label_file(image: Path) -> Path | None:
    """Return an image's text file, or None: in the folder `labels` in place of `images`, else beside the image."""
    parts = image.parent.parts
    for place in reversed(range(len(parts))):
        if parts[place] == "images":
            file = Path(*parts[:place], "labels", *parts[place + 1 :], f"{image.stem}.txt")
            if file.is_file():
                return file
    file = image.with_suffix(".txt")
    return file if file.is_file() else None


def read_line(words: list[str], names: dict[int, str], size: Size) -> Shape:
    """Read one line: a class, and a polygon in shares of the image's sides; four numbers are a box without outline."""
    scale = np.array([size[1], size[0]])
    try:
        label, numbers = names.get(int(float(words[0]))), [float(word) for word in words[1:]]
    except ValueError:
        return Shape(None, "damaged line")

    def ring(numbers: list[float]) -> Draw | None:
        return polygon(corners(numbers) * scale)

    def whole_box(numbers: list[float]) -> Draw | None:
        x, y, width, height = numbers[:4]
        return ring(box(x - width / 2, y - height / 2, x + width / 2, y + height / 2))

    if len(numbers) in (4, 5):
        return shape(label, "box alone", {"box alone": whole_box}, numbers)._replace(beneath=True)
    return shape(label, "polygon", {"polygon": ring}, numbers)
