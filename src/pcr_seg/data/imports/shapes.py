"""What every tool's annotations are read as: images with shapes, and how a shape becomes pixels.

A shape is drawn into a window of its image, so that a thousand small ones cost no more than their own pixels.
Coordinates are x to the right and y down; (0, 0) is the corner of the first pixel, not its center.
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
IGNORED = "__ignore__"  # Labelme's name of what is no class; as a label it means 255 in every format
DAMAGE = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError, OSError, zlib.error, binascii.Error)
THIN = ("line", "linestrip", "polyline", "point", "points")  # have an area where a width is given alone
MOST = 1e6  # pixels that a corner may lie away from an image; beyond, drawing would not end


class Window(NamedTuple):
    """A mask (h, w) bool whose first pixel lies at (top, left) of its image."""

    mask: np.ndarray
    top: int = 0
    left: int = 0


Draw = Callable[[Size], Window]  # given the image's size, the pixels of a shape, none of them outside


class Shape(NamedTuple):
    """One annotation.

    label: its class; None where it has none.
    kind: what the tool calls it, for the list of what is left out.
    draw: its pixels; None where it has no area, as a point, or is damaged.
    beneath: it only says where something is (a box alone): ignored where no other shape lies.
    """

    label: str | None
    kind: str
    draw: Draw | None = None
    beneath: bool = False


class Record(NamedTuple):
    """One image of an export.

    name: as the tool calls it, with its folders.
    image: its file, or its content where the export embeds it; None where there is none.
    shapes: in drawing order, later ones on top.
    size: that the coordinates are meant for; None for the image's own, upright.
    subset: "train", "val" or "test" where the tool says so.
    checked: that it was looked at, so that no shapes mean that nothing is there.
    columns: what else is known of it, as text: a patient, a place.
    mask: the file that the shapes were read from, which is no image.
    problem: why it cannot be used.
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
    """What a reader makes of an export: classes in the tool's order, where it lists them, and the images."""

    classes: Sequence[str]
    records: Iterable[Record]


def shape(label: object, kind: str, drawers: Mapping[str, Callable[[Any], Draw | None]], item: Any) -> Shape:
    """Make a shape of what a tool wrote, by the function for its kind; without pixels where that is not possible."""
    text, draw, sound = " ".join(str(label).split()) if label is not None else "", None, kind not in drawers
    try:
        draw = drawers[kind](item) if kind in drawers else None
        sound = sound or kind in THIN or draw is not None
    except DAMAGE:
        pass
    return Shape(text or None, kind if sound else f"damaged {kind}", draw)


def coco_masks() -> ModuleType:
    """The functions of pycocotools on polygons and run lengths."""
    try:
        from pycocotools import mask
    except ImportError:
        raise ValueError("shapes are drawn by pycocotools, which is missing: pip install 'pcr-seg[imports]'") from None
    return mask


def clipped(mask: np.ndarray, top: int, left: int, size: Size) -> Window:
    """The part of a mask that lies in an image of this size."""
    y, x = max(top, 0), max(left, 0)
    inside = mask[y - top : max(size[0] - top, y - top), x - left : max(size[1] - left, x - left)]
    return Window(inside, y, x)


def bitmap(mask: np.ndarray, top: int = 0, left: int = 0) -> Draw:
    """A mask (h, w) bool at its place."""
    return lambda size: clipped(mask, top, left, size)


def run_lengths(counts: Sequence[int], rows: int, columns: int) -> np.ndarray:
    """A mask (rows, columns) bool given by run lengths along its rows, the first of them not of the mask.

    Raises:
        ValueError: they do not fill it.
    """
    if sum(counts) != rows * columns or min(counts, default=0) < 0:
        raise ValueError("run lengths that do not fill the mask")
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(rows, columns)


def corners(points: Any) -> np.ndarray:
    """Points as (N, 2) floats.

    Raises:
        ValueError: they are no pairs of finite numbers.
    """
    found = np.asarray(points, np.float64).reshape(-1, 2)
    if not np.isfinite(found).all():
        raise ValueError("coordinates that are no numbers")
    return found.clip(-MOST, MOST)


def polygons(rings: Iterable[Any], holes: Iterable[Any] = ()) -> Draw | None:
    """All that lies in any of the rings, and in none of the holes; None where no ring has three corners."""
    outer, inner = ([ring for ring in map(corners, some) if len(ring) >= 3] for some in (rings, holes))
    return (lambda size: fill(outer, inner, size)) if outer else None


def polygon(points: Any) -> Draw | None:
    """What lies in one ring."""
    return polygons([points])


def fill(rings: list[np.ndarray], holes: list[np.ndarray], size: Size) -> Window:
    """Draw rings as COCO does: a pixel belongs to one in which its center lies, by the even-odd rule."""
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
    """The ring of a box between two opposite corners."""
    return corners([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


def ellipse(x: float, y: float, radius_x: float, radius_y: float) -> np.ndarray:
    """The ring of an ellipse about (x, y)."""
    angles = np.linspace(0, 2 * np.pi, 180, endpoint=False)
    return corners(np.stack([x + radius_x * np.cos(angles), y + radius_y * np.sin(angles)], axis=1))


def turned(ring: np.ndarray, degrees: float, x: float, y: float) -> np.ndarray:
    """A ring turned clockwise about (x, y)."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return (ring - [x, y]) @ np.array([[cos, sin], [-sin, cos]]) + [x, y]


def line(points: Any, width: float | None) -> Draw | None:
    """An open line of this width in pixels; None without a width."""
    found = corners(points)
    return (lambda size: stroke(found, width, size)) if width and len(found) > 1 else None


def dots(points: Any, width: float | None) -> Draw | None:
    """A disc of this diameter in pixels about each point; None without a width."""
    found = corners(points)
    return (lambda size: stroke(found, width, size, dots=True)) if width and len(found) else None


def stroke(points: np.ndarray, width: float, size: Size, dots: bool = False) -> Window:
    """Draw a line, or dots, in pixels of a window that holds them."""
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
    """A mask (h, w) bool from a PNG, which may be zipped and in base64: opaque where it has alpha, else not 0.

    Raises:
        ValueError: it is none.
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
    """Why a file cannot be used, without its name where it stands beside it."""
    return str(error) if isinstance(error, DataError) else " ".join(str(error).split()) or type(error).__name__
