"""Draw the masks of an export's images into a temporary folder, until all classes are known; list what is left out."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from pcr_seg.data.files import IGNORE_INDEX, DataError, image_size, read_header
from pcr_seg.data.imports.shapes import DAMAGE, Export, Record, Shape, Size, Window, problem_of
from pcr_seg.data.prepare import track

TURNS = {  # EXIF orientation of an image that lies on its side: how to turn it upright
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


class Left(NamedTuple):
    """Something in the export that is left out of the data set, or changed: an image, or a shape of one."""

    image: str  # its name
    what: str  # "image", "folder" or the kind of shape
    label: str  # the shape's class, or ""
    why: str


class Item(NamedTuple):
    """An image for the data set."""

    record: Record
    image: Path  # its file
    mask: Path | None = None  # its mask in the temporary folder; None: unlabeled
    shown: int = 0  # the values in the mask, as bits


class Staged(NamedTuple):
    """The images of an export for the data set, with masks in a temporary folder.

    numbers: the value of each label in these masks, from 1; 0 is where nothing is drawn, 255 what is ignored.
    uncovered: masks with pixels where nothing is drawn.
    not_images: files that masks were read from, which must not be taken for images.
    """

    labeled: list[Item]
    unlabeled: list[Item]
    numbers: dict[str, int]
    uncovered: list[Path]
    not_images: set[Path]


def stage(
    export: Export, folder: Path, ignore: Collection[str], rest: str | int, empty: str, smaller: bool
) -> tuple[Staged, list[Left]]:
    """Draw the masks of all images of an export into `folder`/masks.

    Args:
        export: the export.
        folder: a temporary folder.
        ignore: labels whose shapes are ignored (255).
        rest: what pixels without a shape are: "background" or 255.
        empty: what images without shapes are, unless the tool says that they were checked: "unlabeled" or "background".
        smaller: draw smaller shapes on top of larger ones, instead of later ones on top of earlier ones.

    Returns:
        The images for the data set, and what is left out.

    Raises:
        ValueError: there are more than 254 classes, or pycocotools is missing.
    """
    staged, left, seen = Staged([], [], {}, [], set()), [], set()
    (folder / "masks").mkdir()

    def number(label: str) -> int:
        if label in ignore:
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
    """Return the values in a mask, other than 0 and 255, as an integer: bit v - 1 is set if value v occurs."""
    shown = np.flatnonzero(np.bincount(mask.ravel(), minlength=256)[1:IGNORE_INDEX])
    return sum(1 << value for value in shown.tolist())


def embedded(content: bytes, target: Path) -> Path:
    """Write an image that was embedded in an annotation file to `target`, with the suffix of its format."""
    kinds = {b"\xff\xd8\xff": ".jpg", b"\x89PN": ".png", b"RIF": ".webp", b"II*": ".tif", b"MM\0": ".tif"}
    file = target.with_suffix(kinds.get(content[:3], ".bmp"))
    file.write_bytes(content)
    return file


def drawing_size(image: Path, declared: Size | None) -> tuple[Size, Image.Transpose | None]:
    """Return the size (H, W) to draw a mask at, and how to turn it then to fit the upright image.

    Tools that ignore an image's EXIF orientation write size and coordinates of the image as it is stored.

    Raises:
        DataError: the image cannot be read, or has another size than its annotations.
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
    """Draw the mask of a record, 0 where nothing is drawn; return it, and which shapes are left out."""
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
    """Return the pixels of a shape, or None if it is left out; and the reason why it is left out, or ignored."""
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
