"""What the readers of all tools return: images with shapes; and the functions that draw shapes as pixels.

A shape is drawn into a window of its image, so that many small shapes cost no more than their own pixels. Coordinates
are x to the right and y down, in pixels; (0, 0) is the corner of the first pixel, not its center.
"""

import base64
import binascii
import io
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from pcr_seg.data.files import DataError

Size = tuple[int, int]  # (H, W)
BACKGROUND = ("background", "_background_", "__background__")
IGNORED = "__ignore__"  # Labelme's name for "no class"; in every format this label means 255
DAMAGE = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, OSError, zlib.error, binascii.Error)
THIN = ("line", "linestrip", "polyline", "point", "points")  # shapes that have an area only if a width is given
MOST = 1e6  # coordinates are clipped to so many pixels; drawing larger ones would take forever


class Window(NamedTuple):
    """A mask (h, w) of bool whose upper left pixel is at (top, left) of its image."""

    mask: np.ndarray
    top: int = 0
    left: int = 0


Draw = Callable[[Size], Window]  # takes the image's size, returns the pixels of a shape inside of the image


class Shape(NamedTuple):
    """One annotation.

    label: its class, or None.
    kind: the tool's name for this kind of shape, for the list of what is left out.
    draw: draws its pixels; None if it has no area, like a point, or is damaged.
    beneath: the shape only says where something is, like a box without outline: its pixels are ignored (255) where no
        other shape lies.
    """

    label: str | None
    kind: str
    draw: Draw | None = None
    beneath: bool = False


class Record(NamedTuple):
    """One image of an export.

    name: the tool's name for it, with folders.
    image: its file, or its content if it is embedded in the export; None if there is neither.
    shapes: in drawing order, later ones on top.
    size: (H, W) that coordinates refer to; None: the upright image's own.
    subset: the tool's subset: "train", "val", "test" or None.
    checked: whether a person has looked at it. Then no shapes mean that there is nothing to be seen.
    columns: further information by name, as text: a patient, a place.
    mask: the mask file that the shapes were read from.
    problem: why it cannot be used, or "".
    """

    name: str
    image: Path | bytes | None = None
    shapes: Sequence[Shape] = ()
    size: Size | None = None
    subset: str | None = None
    checked: bool = False
    columns: Mapping[str, str] = {}
    mask: Path | None = None
    problem: str = ""


class Export(NamedTuple):
    """The content of an export."""

    classes: Sequence[str]  # in the tool's order, if it lists them; else empty
    records: Iterable[Record]  # the images


def shape(label: object, kind: str, drawers: Mapping[str, Callable[[Any], Draw | None]], item: Any) -> Shape:
    """Make a shape of a tool's annotation, by the drawer for its kind; without pixels if it is damaged or unknown."""
    text, draw, sound = " ".join(str(label).split()) if label is not None else "", None, kind not in drawers
    try:
        draw = drawers[kind](item) if kind in drawers else None
        sound = sound or kind in THIN or draw is not None
    except DAMAGE:
        pass
    return Shape(text or None, kind if sound else f"damaged {kind}", draw)


def coco_masks() -> ModuleType:
    """Import pycocotools' functions for polygons and run lengths; raise a ValueError if it is not installed."""
    try:
        from pycocotools import mask
    except ImportError:
        raise ValueError("shapes are drawn by pycocotools, which is missing: pip install 'pcr-seg[imports]'") from None
    return mask


def clipped(mask: np.ndarray, top: int, left: int, size: Size) -> Window:
    """Cut off the parts of a mask at (top, left) that lie outside of an image of this size."""
    y, x = max(top, 0), max(left, 0)
    inside = mask[y - top : max(size[0] - top, y - top), x - left : max(size[1] - left, x - left)]
    return Window(inside, y, x)


def bitmap(mask: np.ndarray, top: int = 0, left: int = 0) -> Draw:
    """Draw a mask (h, w) of bool whose upper left pixel is at (top, left)."""
    return lambda size: clipped(mask, top, left, size)


def run_lengths(counts: Sequence[int], rows: int, columns: int) -> np.ndarray:
    """Decode run lengths along the rows to a mask (rows, columns) of bool; the first run is outside of the mask.

    Raises:
        ValueError: the run lengths do not fill the mask.
    """
    if sum(counts) != rows * columns or min(counts, default=0) < 0:
        raise ValueError("run lengths that do not fill the mask")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(rows, columns)


def corners(points: Any) -> np.ndarray:
    """Return points as floats (N, 2), clipped to +-`MOST`.

    Raises:
        ValueError: they are no pairs of finite numbers.
    """
    found = np.asarray(points, np.float64).reshape(-1, 2)
    if not np.isfinite(found).all():
        raise ValueError("coordinates that are no numbers")
    return found.clip(-MOST, MOST)


def polygons(rings: Iterable[Any], holes: Iterable[Any] = ()) -> Draw | None:
    """Draw what lies in any of the rings and in none of the holes; None if no ring has three corners."""
    outer, inner = ([ring for ring in map(corners, some) if len(ring) >= 3] for some in (rings, holes))
    return (lambda size: fill(outer, inner, size)) if outer else None


def polygon(points: Any) -> Draw | None:
    """Draw what lies inside of a ring; None if it has less than three corners."""
    return polygons([points])


def fill(rings: list[np.ndarray], holes: list[np.ndarray], size: Size) -> Window:
    """Fill rings as COCO does: a pixel is inside if its center is, by the even-odd rule; holes are cut out."""
    points, (rows, columns) = np.concatenate(rings), size
    left, top = np.floor(points.min(axis=0)).astype(int).clip(0, [columns, rows]).tolist()
    right, bottom = np.ceil(points.max(axis=0)).astype(int).clip(0, [columns, rows]).tolist()
    height, width = bottom - top, right - left
    found = np.zeros((max(height, 0), max(width, 0)), bool)
    if not found.size:
        return Window(found, top, left)
    coco = coco_masks()
    for some, value in ((rings, True), (holes, False)):
        for ring in some:
            [run_lengths] = coco.frPyObjects([(ring - [left, top]).ravel().tolist()], height, width)
            found[coco.decode(run_lengths).astype(bool)] = value
    return Window(found, top, left)


def box(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    """Return the corners of a box given by two opposite ones."""
    return corners([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


def ellipse(x: float, y: float, radius_x: float, radius_y: float) -> np.ndarray:
    """Return 180 points on an ellipse about (x, y)."""
    angles = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    return corners(np.stack([x + radius_x * np.cos(angles), y + radius_y * np.sin(angles)], axis=1))


def turned(ring: np.ndarray, degrees: float, x: float, y: float) -> np.ndarray:
    """Rotate a ring clockwise about (x, y)."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return (ring - [x, y]) @ np.array([[cos, sin], [-sin, cos]]) + [x, y]


def line(points: Any, width: float | None) -> Draw | None:
    """Draw an open line of this width in pixels; None without a width."""
    found = corners(points)
    return (lambda size: stroke(found, width, size)) if width and len(found) > 1 else None


def dots(points: Any, width: float | None) -> Draw | None:
    """Draw a disc of this diameter in pixels about each point; None without a width."""
    found = corners(points)
    return (lambda size: stroke(found, width, size, dots=True)) if width and len(found) else None


def stroke(points: np.ndarray, width: float, size: Size, dots: bool = False) -> Window:
    """Draw a line through the points, or with `dots` a disc at each, into a window that contains them."""
    left, top = np.floor(points.min(axis=0) - width).astype(int).clip(-1, None).tolist()
    right, bottom = np.minimum(np.ceil(points.max(axis=0) + width).astype(int), [size[1], size[0]]).tolist()
    if right <= left or bottom <= top:
        return Window(np.zeros((0, 0), bool), max(top, 0), max(left, 0))
    canvas = Image.new("L", (right - left, bottom - top))
    draw, inside = ImageDraw.Draw(canvas), points - [left, top]
    if dots:
        for x, y in inside:
            draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=1)
    else:
        draw.line([tuple(point) for point in inside.tolist()], fill=1, width=max(1, round(width)), joint="curve")
    return clipped(np.array(canvas, bool), top, left, size)


def png_mask(content: bytes | str, threshold: int = 1) -> np.ndarray:
    """Read a mask (h, w) of bool from a PNG, which may be compressed by zlib and in base64.

    A pixel belongs to the mask if its alpha is at least `threshold`; in a PNG without alpha, if its value is.

    Raises:
        ValueError: it is no PNG.
    """
    content = base64.b64decode(content) if isinstance(content, str) else content
    content = content if content.startswith(b"\x89PNG") else zlib.decompress(content)
    try:
        image = Image.open(io.BytesIO(content), formats=["PNG"])
        image.load()
    except (OSError, Image.DecompressionBombError, SyntaxError) as error:
        raise ValueError("not a PNG") from error
    if image.mode in ("LA", "RGBA", "PA") or (image.mode == "P" and "transparency" in image.info):
        return np.array(image.convert("RGBA"))[..., 3] >= threshold
    values = np.array(image)
    return (values if values.ndim == 2 else values.max(axis=2)) >= threshold


def problem_of(error: Exception) -> str:
    """Return in one line why a file cannot be used."""
    return str(error) if isinstance(error, DataError) else " ".join(str(error).split()) or type(error).__name__
