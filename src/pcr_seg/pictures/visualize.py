"""Pictures of masks: colors, overlays, heat maps (numpy arrays) and the panel (one PIL image)."""

from collections.abc import Sequence
from math import ceil
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

Color = tuple[int, int, int]

IGNORE_INDEX = 255  # as in method/losses.py, whose import would bring torch along
IGNORE_COLOR: Color = (224, 224, 224)
INK, PAPER, EDGE = (32, 32, 32), (255, 255, 255), (150, 150, 150)


def colorize(mask: np.ndarray, palette: Sequence[Color]) -> np.ndarray:
    """Paint class ids; ignored pixels become light grey.

    Args:
        mask: (H, W) integers: 0..len(palette)-1, or 255 for ignored pixels, even if the palette has a color 255.
        palette: one (R, G, B) of 0..255 for each class.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: the mask holds an id without a color.
    """
    strange = mask[((mask < 0) | (mask >= len(palette))) & (mask != IGNORE_INDEX)]
    if strange.size:
        raise ValueError(f"the mask holds the id {strange[0]}, but the palette has {len(palette)} colors")
    table = np.full((max(len(palette), IGNORE_INDEX + 1), 3), IGNORE_COLOR, dtype=np.uint8)
    table[: len(palette)] = palette
    table[IGNORE_INDEX] = IGNORE_COLOR
    return table[mask]


def rgb(image: np.ndarray) -> np.ndarray:
    """Return an image (H, W, C) of uint8 as (H, W, 3): grey is repeated, a fourth channel is dropped."""
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image[..., :3]


def overlay(
    image: np.ndarray,
    mask: np.ndarray,
    palette: Sequence[Color],
    alpha: float = 0.5,
    background: int | None = None,
) -> np.ndarray:
    """Lay a painted mask (H, W) over its image (H, W, 3) of uint8, with opacity `alpha` in 0..1.

    Ignored pixels, and those of the class `background`, show the image alone.
    """
    mixed = np.rint((1 - alpha) * image + alpha * colorize(mask, palette)).astype(np.uint8)
    bare = (mask == IGNORE_INDEX) | (mask == (IGNORE_INDEX if background is None else background))
    return np.where(bare[..., None], image, mixed)


def errors(image: np.ndarray, truth: np.ndarray, predicted: np.ndarray, palette: Sequence[Color]) -> np.ndarray:
    """Paint wrong pixels in the color of the predicted class over a pale grey image; (H, W, 3) uint8."""
    pale = np.repeat(image.mean(axis=2, keepdims=True) / 2 + 96, 3, axis=2).astype(np.uint8)
    wrong = (truth != predicted) & (truth != IGNORE_INDEX)
    return np.where(wrong[..., None], colorize(predicted, palette), pale)


def heat(values: np.ndarray) -> np.ndarray:
    """Paint (H, W) numbers in 0..1 with viridis, from dark blue to yellow; NaN is the grey of ignored pixels."""
    values = np.asarray(values, dtype=np.float32)
    levels = (255 * np.nan_to_num(np.clip(values, 0, 1))).round().astype(np.uint8)
    colors = cv2.cvtColor(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
    return np.where(np.isnan(values)[..., None], np.uint8(IGNORE_COLOR), colors)


def panel(
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str],
    legend: Sequence[tuple[str, Color]] | None = None,
    cell: int = 256,
) -> Image.Image:
    """Set pictures in a table: one row per sample, one titled column per kind of picture, the legend below.

    Args:
        rows: for each sample its pictures, (H, W, 3) uint8, as many as titles; sizes may differ.
        titles: title of each column.
        legend: (name, (R, G, B)) for each class, in the order to show.
        cell: the longer side of every picture in the figure, in pixels. Small pictures are enlarged without
            smoothing, so that one pixel stays one square.
    """
    import matplotlib  # for its font, so that the picture is the same on every machine

    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), max(11, cell // 15))
    pictures = [[fit(picture, cell) for picture in row] for row in rows]
    widths = [max(picture.width for picture in column) for column in zip(*pictures, strict=True)]
    heads = [write(title, font, width) for title, width in zip(titles, widths, strict=True)]
    parts = [[grid([heads, *pictures], gap=cell // 32)]]
    if legend:
        parts.append([key(legend, font, parts[0][0].width)])
    return ImageOps.expand(grid(parts, gap=cell // 16), border=cell // 16, fill=PAPER)


def fit(picture: np.ndarray, side: int) -> Image.Image:
    """Scale a picture so that its longer side becomes `side`."""
    image = Image.fromarray(picture)
    method = Image.Resampling.NEAREST if max(image.size) <= side else Image.Resampling.LANCZOS
    return ImageOps.contain(image, (side, side), method)


def write(text: str, font: ImageFont.FreeTypeFont, width: int) -> Image.Image:
    """Write a title on one line, or one word on each line if it is wider than its column."""
    words = text.split() if font.getlength(text) > width else [text]
    line = sum(font.getmetrics())
    figure = Image.new("RGB", (ceil(max(font.getlength(word) for word in words)) or 1, line * len(words)), PAPER)
    for i, word in enumerate(words):
        ImageDraw.Draw(figure).text((figure.width / 2, i * line), word, fill=INK, font=font, anchor="ma")
    return figure


def key(legend: Sequence[tuple[str, Color]], font: ImageFont.FreeTypeFont, width: int) -> Image.Image:
    """Draw a square of color and a name for each class, in as many columns as fit into `width` pixels."""
    swatch, line = 2 * font.size, round(1.4 * sum(font.getmetrics()))
    column = ceil(max(font.getlength(name) for name, _ in legend)) + swatch + font.size
    columns = max(1, width // column)
    figure = Image.new("RGB", (max(width, column), line * ceil(len(legend) / columns)), PAPER)
    draw = ImageDraw.Draw(figure)
    for i, (name, color) in enumerate(legend):
        x, middle = i % columns * column, i // columns * line + line // 2
        box = (x, middle - font.size // 2, x + round(0.75 * swatch), middle + font.size // 2)
        draw.rectangle(box, fill=tuple(color), outline=EDGE)  # the edge keeps white and light grey visible
        draw.text((x + swatch, middle), name, fill=INK, font=font, anchor="lm")
    return figure


def grid(rows: Sequence[Sequence[Image.Image]], gap: int) -> Image.Image:
    """Set images in rows and columns, each centered in its cell."""
    widths = [max(image.width for image in column) for column in zip(*rows, strict=True)]
    heights = [max(image.height for image in row) for row in rows]
    size = (sum(widths) + gap * (len(widths) - 1), sum(heights) + gap * (len(heights) - 1))
    figure = Image.new("RGB", size, PAPER)
    for i, row in enumerate(rows):
        for k, image in enumerate(row):
            x, y = sum(widths[:k]) + gap * k, sum(heights[:i]) + gap * i
            figure.paste(image, (x + (widths[k] - image.width) // 2, y + (heights[i] - image.height) // 2))
    return figure
