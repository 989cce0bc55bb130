"""Convert an annotation tool's export into a data set: draw shapes, divide images, and list what is left out.

The new folder has the layout that `sources.folder` reads. It appears only when it is complete.
"""

import os
import shutil
import tarfile
import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pcr_seg.data.files import IGNORE_INDEX, DataError
from pcr_seg.data.imports import coco, cvat, labelme, labelstudio, masks, supervisely, via, yolo
from pcr_seg.data.imports.drawing import Item, Left, stage
from pcr_seg.data.imports.images import Images
from pcr_seg.data.imports.layout import write, write_table
from pcr_seg.data.imports.shapes import IGNORED, Export, Record

FORMATS = ("coco", "labelme", "cvat", "labelstudio", "yolo", "supervisely", "via", "voc", "roboflow")
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz")


class Imported(NamedTuple):
    """The result of an import."""

    format: str  # of the export
    parts: dict[str, int]  # number of images of each part
    classes: list[str]
    divided: str  # how images were divided, in words
    left: list[Left]  # what was left out


def import_export(
    place: Path,
    root: Path,
    *,
    format: str | None = None,
    images: Path | None = None,
    rest: str | int = "background",
    empty: str = "unlabeled",
    overlap: str = "later",
    lines: float | None = None,
    ignore: str | Collection[str] = (IGNORED,),
    attribute: str | None = None,
    own_split: bool = True,
    group: str | None = "auto",
    val: float = 0.2,
    seed: int = 0,
    links: bool = False,
) -> Imported:
    """Convert an export into a data set.

    Writes images/{train,val,test}, labels/{train,val,test}, unlabeled/ and classes.txt; images.csv with name, part,
    group and file of each image; and left_out.csv.

    Args:
        place: the export: a folder, an annotation file, or an archive.
        root: the new folder.
        format: one of `FORMATS`; None: recognize it.
        images: a folder of images that are not in the export.
        rest: what pixels without a shape are: "background" or 255 (ignored). A background class is only added if there
            are such pixels.
        empty: what images without shapes are, unless the tool says that they were checked: "unlabeled" or "background".
        overlap: which of two overlapping shapes is on top: the "later" or the "smaller" one.
        lines: width in pixels of lines, and diameter of points; None: as the tool draws them, or not at all.
        ignore: labels whose shapes are ignored (255).
        attribute: the attribute of VIA's regions that names their class.
        own_split: keep the tool's train, val and test.
        group: which images stay together when they are divided: see `groups.grouped`.
        val: the share of the labeled images to draw for val, 0 to below 1.
        seed: of that draw.
        links: make symbolic links to the images instead of copies.

    Raises:
        FileNotFoundError: there is no such export.
        ValueError: the new folder exists already; a setting has no such value; the format is not recognized; the export
            is damaged; or no image has a label.
    """
    check_settings(format, rest, empty, overlap, lines, val)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ValueError(f"dataset.root={root}: is there already; name a new folder")
    for some, key in ((place, "from"), (images, "images")):
        if some and not some.exists():
            raise FileNotFoundError(f"{key}={some}: no such file or folder; correct the path")
    root.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        staging = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}.")))
        whole = place.is_dir() or place.suffix.lower() in ARCHIVES
        if place.is_file() and whole:
            place, links = unpack(place, staging / "archive"), False
        own = [place] if place.is_dir() else [] if images else [place.parent]
        found = Images([*own, *([images] if images else [])])
        with damage(place):
            name, export = open_export(place, found, format, lines, attribute)
            ignored = {IGNORED, *([ignore] if isinstance(ignore, str) else ignore)}
            staged, left = stage(export, staging, ignored, rest, empty, overlap == "smaller")
        taken = [*staged.labeled, *staged.unlabeled]
        if whole or images:
            staged.unlabeled.extend(further(found, taken, staged.not_images, left))
        if not staged.labeled:
            why = f"; the first that is left out: {left[0].image}, {left[0].why}" if left else ""
            raise ValueError(f"from={place}: no image has a label that could be read{why}")
        new = staging / "new"
        parts, classes, divided = write(new, staged, export.classes, ignored, rest, own_split, group, val, seed, links)
        write_table(new / "left_out.csv", Left._fields, left)
        if root.exists():
            root.rmdir()
        os.replace(new, root)
    return Imported(name, parts, classes, divided, left)


@contextmanager
def damage(place: Path) -> Iterator[None]:
    """Turn an unexpected error of a reader into a DataError: the export does not have the structure of its format."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"from={place}: not built as its tool builds it ({reason}); export it again") from error


def by_reason(left: Sequence[Left]) -> dict[tuple[str, str], list[Left]]:
    """Group what is left out by kind and reason."""
    found: dict[tuple[str, str], list[Left]] = defaultdict(list)
    for one in left:
        found[one.what, one.why].append(one)
    return found


def check_settings(
    format: str | None, rest: str | int, empty: str, overlap: str, lines: float | None, val: float
) -> None:
    """Raise a ValueError for the first setting that has no such value."""
    choices = {
        "format": (format, (None, *FORMATS)),
        "rest": (rest, ("background", IGNORE_INDEX)),
        "empty": (empty, ("unlabeled", "background")),
        "overlap": (overlap, ("later", "smaller")),
    }
    for key, (value, allowed) in choices.items():
        if value not in allowed:
            raise ValueError(f"{key}={value}: choose {', '.join(str(one) for one in allowed if one is not None)}")
    if lines is not None and not lines > 0:
        raise ValueError(f"lines={lines}: is no width in pixels; give one above 0, or null")
    if not 0 <= val < 1:
        raise ValueError(f"val={val}: is no share of the images; give 0 to below 1")


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a zip or tar file into `folder`, and return that.

    Raises:
        DataError: it is damaged, or no archive.
    """
    safe = {} if archive.suffix.lower() == ".zip" or not hasattr(tarfile, "data_filter") else {"filter": "data"}
    try:
        shutil.unpack_archive(archive, folder, **safe)
    except (shutil.ReadError, tarfile.TarError, ValueError, EOFError, RuntimeError) as error:
        raise DataError(f"{archive}: damaged, or no archive ({error}); download it again, or unpack it") from None
    return folder


def open_export(
    place: Path, images: Images, format: str | None, lines: float | None, attribute: str | None
) -> tuple[str, Export]:
    """Return the name of an export's format, and its content.

    Raises:
        ValueError: no format is recognized, or several are.
    """
    readers = {
        "coco": (coco.find, coco.read),
        "labelme": (labelme.find, partial(labelme.read, lines=lines)),
        "cvat": (cvat.find, partial(cvat.read, lines=lines)),
        "labelstudio": (labelstudio.find, partial(labelstudio.read, lines=lines)),
        "yolo": (yolo.find, yolo.read),
        "supervisely": (supervisely.find, partial(supervisely.read, lines=lines)),
        "via": (via.find, partial(via.read, lines=lines, attribute=attribute)),
        "voc": (masks.find_voc, masks.read_voc),
        "roboflow": (masks.find_roboflow, masks.read_roboflow),
    }
    found = {name: files for name in ([format] if format else FORMATS) if (files := readers[name][0](place))}
    if not found:
        wanted = f"no annotations of format={format}" if format else "no annotations of a known format"
        raise ValueError(f"from={place}: {wanted}; these are read: {', '.join(FORMATS)}")
    if len(found) > 1:
        listed = ", ".join(f"format={name} ({files[0]})" for name, files in found.items())
        raise ValueError(f"from={place}: several formats; choose {listed}")
    [(name, files)] = found.items()
    return name, readers[name][1](place, files, images)


def further(images: Images, taken: Sequence[Item], not_images: set[Path], left: list[Left]) -> list[Item]:
    """Return the images that no annotation names, in folders with images that annotations name.

    For other folders `left` gets the number of their images. Folders with the same names, such as masks or overlays,
    are passed over.
    """
    used = {item.image for item in taken}
    named = {entry.image for entry in left}
    free = [file for file in images.files if file not in used and file not in not_images]
    free = [file for file in free if images.relative(file).as_posix() not in named]
    folders = {file.parent for file in used}
    for other in sorted({file.parent for file in free} - folders):
        stems = {file.stem for file in free if file.parent == other}
        if stems - {file.stem for file in used}:
            why = f"{len(stems)} images that no annotation names; dataset.unlabeled=FOLDER reads them"
            left.append(Left(str(other), "folder", "", why))
    names = {file: images.relative(file).as_posix() for file in free if file.parent in folders}
    return [Item(Record(name, file), file) for file, name in names.items()]
