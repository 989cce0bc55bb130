"""The images of an export become masks, staged in a folder until all classes are known; what is left out is told."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from pcr_seg.data.files import IGNORE_INDEX, DataError, image_size, read_header
from pcr_seg.data.imports.shapes import DAMAGE, IGNORED, Export, Record, Shape, Size, Window, problem_of
from pcr_seg.data.prepare import track

TURNS = {  # of EXIF orientations that lie on their side, to upright
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


class Left(NamedTuple):
    """Something that is not in the data set as it is in the export: an image, or a shape of one."""

    image: str
    what: str
    label: str
    why: str


class Item(NamedTuple):
    """An image that is taken: its file, and its staged mask, if it has one, with the classes on it as bits."""

    record: Record
    image: Path
    mask: Path | None = None
    shown: int = 0


class Staged(NamedTuple):
    """What is taken of an export.

    numbers: of the labels in staged masks, from 1; 0 where nothing is drawn, 255 where it is ignored.
    uncovered: staged masks with pixels where nothing is drawn.
    not_images: files that masks were read from.
    """

    labeled: list[Item]
    unlabeled: list[Item]
    numbers: dict[str, int]
    uncovered: list[Path]
    not_images: set[Path]


def stage(
    export: Export, folder: Path, ignore: Collection[str], rest: str | int, empty: str, smaller: bool
) -> tuple[Staged, list[Left]]:
    """Draw the masks of all images into a folder."""
    staged, left, seen = Staged([], [], {}, [], set()), [], set()
    ignored = {IGNORED, *ignore}
    (folder / "masks").mkdir()

    def number(label: str) -> int:
        if label in ignored:
            return IGNORE_INDEX
        if label not in staged.numbers and len(staged.numbers) == IGNORE_INDEX - 1:
            raise ValueError(f"{label}: one class too many; {IGNORE_INDEX - 1} are possible")
        return staged.numbers.setdefault(label, len(staged.numbers) + 1)

    for index, record in enumerate(track(export.records, "Drawing masks")):
        if record.mask:
            staged.not_images.add(record.mask)
        if record.problem or record.image is None:
            left.append(Left(record.name, "image", "", record.problem))
            continue
        try:
            image = record.image
            if isinstance(image, bytes):
                image = embedded(image, folder / f"image_{index}")
            size, turn = drawing_size(image, record.size)
        except (DataError, OSError) as error:
            left.append(Left(record.name, "image", "", problem_of(error)))
            continue
        if image in seen:
            if record.shapes:
                left.append(Left(record.name, "image", "", "stands in the export a second time"))
            continue
        seen.add(image)
        mask, lost = paint(record, size, number, smaller)
        left += lost
        told = record.checked or empty == "background"
        if mask.any() or (rest == "background" and told and not lost):
            mask = mask if turn is None else np.array(Image.fromarray(mask).transpose(turn))
            file = folder / "masks" / f"{index}.png"
            Image.fromarray(mask).save(file, compress_level=1)
            if not mask.all():
                staged.uncovered.append(file)
            staged.labeled.append(Item(record._replace(shapes=()), image, file, bits(mask)))
        else:
            staged.unlabeled.append(Item(record._replace(shapes=()), image))
            if lost:
                left.append(Left(record.name, "image", "", "none of its shapes could be drawn; it becomes unlabeled"))
    return staged, left


def bits(mask: np.ndarray) -> int:
    """The values in a mask, 0 and 255 apart, as the bits of an integer."""
    shown = np.flatnonzero(np.bincount(mask.ravel(), minlength=256)[1:IGNORE_INDEX])
    return sum(1 << value for value in shown.tolist())


def embedded(content: bytes, target: Path) -> Path:
    """Write an image that an export holds inside a file of annotations."""
    kinds = {b"\xff\xd8\xff": ".jpg", b"\x89PN": ".png", b"RIF": ".webp", b"II*": ".tif", b"MM\0": ".tif"}
    file = target.with_suffix(kinds.get(content[:3], ".bmp"))
    file.write_bytes(content)
    return file


def drawing_size(image: Path, declared: Size | None) -> tuple[Size, Image.Transpose | None]:
    """The size (H, W) to draw at, and how the mask is turned then, so that it fits the upright image.

    Tools that ignore an image's EXIF tag give coordinates, and a size, of the image as it is stored.

    Raises:
        DataError: the image is not readable, or of another size than the annotations.
    """
    upright = image_size(image)
    if declared in (None, upright):
        return upright, None
    turn = TURNS.get(read_header(image).orientation)
    if turn is None or declared != upright[::-1]:
        sizes = " and ".join(f"{width} x {height}" for height, width in (upright, declared))
        raise DataError(
            f"{image}: image and annotations differ in size ({sizes}); put back the image that was annotated"
        )
    return declared, turn


def paint(record: Record, size: Size, number: Callable[[str], int], smaller: bool) -> tuple[np.ndarray, list[Left]]:
    """The mask of a record at this size, 0 where nothing is drawn, and what of it is left out."""
    left, drawn = [], []
    for one in record.shapes:
        window, why = pixels(one, size)
        if why:
            left.append(Left(record.name, one.kind, one.label or "", why))
        if window is not None:
            drawn.append((one, window))
    drawn.sort(key=lambda pair: (not pair[0].beneath, -pair[1].mask.sum() if smaller else 0))
    canvas = np.zeros(size, np.uint8)
    for one, (mask, top, start) in drawn:
        region = canvas[top : top + mask.shape[0], start : start + mask.shape[1]]
        region[mask] = IGNORE_INDEX if one.beneath else number(one.label)
    return canvas, left


def pixels(one: Shape, size: Size) -> tuple[Window | None, str]:
    """The pixels of a shape, None where it is left out, and why it is, or what becomes of it."""
    if one.draw is None:
        return None, "cannot be read" if one.kind.startswith("damaged") else "has no area"
    if one.label is None and not one.beneath:
        return None, "has no class"
    try:
        window = one.draw(size)
    except DAMAGE as error:
        if "pcr-seg[imports]" in str(error):
            raise
        return None, "cannot be drawn"
    if not window.mask.any():
        return None, "covers no pixel: outside of the image, or too thin"
    return window, "has no outline: ignored (255) where no other shape lies" if one.beneath else ""
