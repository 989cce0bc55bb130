"""Pictures of masks: colours, overlays, heat maps (numpy arrays) and the panel (one PIL image)."""

import colorsys
from collections.abc import Sequence
from math import ceil
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]

IGNORE_INDEX = 255  # the same number as in method.py, which would bring torch along
IGNORE_COLOR: Color = (224, 224, 224)
INK, PAPER, EDGE = (32, 32, 32), (255, 255, 255), (150, 150, 150)

# the font that comes with matplotlib, so that every machine draws the same picture
_FONT_FILE = str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


def palette(num_colors: int) -> list[Color]:
    """Distinct colours for classes or prototypes that bring none of their own.

    Steps of the golden ratio spread any number of hues evenly, so the first colours do not depend on how
    many follow. Hues come close again after 5, 8, 13 ... steps: there the cycles of 2 in saturation and 3 in
    value keep the colours apart, until all three fall together after 144.

    Args:
        num_colors: how many, 0 or more.

    Returns:
        `num_colors` tuples (R, G, B) of 0..255, the same at every call, none of them grey, black or white.
    """
    golden = (5**0.5 - 1) / 2
    colors = []
    for i in range(num_colors):
        hue, saturation, value = (0.58 + i * golden) % 1, (0.80, 0.55)[i % 2], (0.85, 1.0, 0.60)[i % 3]
        red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
        colors.append((round(red * 255), round(green * 255), round(blue * 255)))
    return colors


def colorize(mask: np.ndarray, palette: Sequence[Color]) -> np.ndarray:
    """Paints class ids.

    Args:
        mask: (H, W) integers, each 0..len(palette)-1, or 255 for "ignore" (also with a longer palette).
        palette: one (R, G, B) of 0..255 for each class.

    Returns:
        (H, W, 3) uint8; ignored pixels are light grey.

    Raises:
        ValueError: the mask is not (H, W), not of integers, or holds an id without a colour.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or not np.issubdtype(mask.dtype, np.integer):
        raise ValueError(f"a mask must be (H, W) integers, got {mask.dtype} of shape {mask.shape}")
    strange = mask[((mask < 0) | (mask >= len(palette))) & (mask != IGNORE_INDEX)]
    if strange.size:
        raise ValueError(f"the mask holds the id {strange[0]}, but the palette has {len(palette)} colours")
    table = np.full((max(len(palette), IGNORE_INDEX + 1), 3), IGNORE_COLOR, dtype=np.uint8)
    table[: len(palette)] = np.asarray(palette, dtype=np.uint8).reshape(-1, 3)
    table[IGNORE_INDEX] = IGNORE_COLOR
    return table[mask]


def overlay(image: np.ndarray, mask: np.ndarray, palette: Sequence[Color], alpha: float = 0.5) -> np.ndarray:
    """Lays a painted mask over its image.

    Args:
        image: (H, W, 3) uint8.
        mask: (H, W) integers as for `colorize`. Ignored pixels keep the image: nothing is claimed there.
        palette: one (R, G, B) of 0..255 for each class.
        alpha: share of the mask's colour, 0 (image only) to 1 (mask only).

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: image and mask differ in size, the image is not uint8 RGB, or alpha is outside 0..1.
    """
    image, mask = _rgb(image), np.asarray(mask)
    if image.shape[:2] != mask.shape:
        raise ValueError(f"the image is {image.shape[:2]} (H, W), its mask {mask.shape}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be within 0..1, got {alpha}")
    mixed = np.rint((1 - alpha) * image + alpha * colorize(mask, palette)).astype(np.uint8)
    return np.where((mask == IGNORE_INDEX)[..., None], image, mixed)


def heat(values: np.ndarray) -> np.ndarray:
    """Paints a map of numbers with viridis, whose lightness rises evenly: dark blue 0, yellow 1.

    Args:
        values: (H, W) numbers in 0..1; what lies outside by rounding is clipped.

    Returns:
        (H, W, 3) uint8; NaN (no value there) is the light grey of ignored pixels.

    Raises:
        ValueError: the values are not (H, W).
    """
    # float first: a colour map reads integers as rows of its table
    values = np.asarray(values, dtype=np.float32)
    if values.ndim != 2:
        raise ValueError(f"a heat map needs values of shape (H, W), got {values.shape}")
    colors = matplotlib.colormaps["viridis"](np.clip(values, 0, 1), bytes=True)[..., :3]
    colors[np.isnan(values)] = IGNORE_COLOR
    return colors


def panel(
    rows: Sequence[Sequence[np.ndarray]],
    titles: Sequence[str],
    legend: Sequence[tuple[str, Color]] | None = None,
    cell: int = 256,
) -> Image.Image:
    """Sets pictures in a table: one row per sample, one titled column per kind of picture, the legend below.

    Args:
        rows: for each sample its pictures, (H, W, 3) uint8, as many as titles; sizes may differ.
        titles: head of each column; a long one is broken into lines.
        legend: (name, (R, G, B)) for each class, in the order to show.
        cell: the longer side of every picture in the figure, in pixels. Small pictures are enlarged without
            smoothing, so that one pixel stays one square.

    Returns:
        An RGB image on white.

    Raises:
        ValueError: no rows, a row that does not match the titles, or a picture that is not uint8 RGB.
    """
    for number, row in enumerate(rows):
        if len(row) != len(titles):
            raise ValueError(f"row {number} of the panel has {len(row)} pictures for {len(titles)} titles")
    if not rows or not titles:
        raise ValueError("a panel needs at least one row and one column")
    font = ImageFont.truetype(_FONT_FILE, max(11, cell // 15))
    table = _table([[_fit(picture, cell) for picture in row] for row in rows], titles, font, gap=cell // 32)
    if not legend:
        return _stack([table], margin=cell // 16)
    return _stack([table, _legend(legend, table.width, font)], margin=cell // 16)


def _rgb(picture: np.ndarray) -> np.ndarray:
    picture = np.asarray(picture)
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise ValueError(f"a picture must be (H, W, 3) uint8, got {picture.dtype} of shape {picture.shape}")
    return picture


def _fit(picture: np.ndarray, side: int) -> Image.Image:
    """(H, W, 3) uint8 -> the picture with its longer side set to `side`."""
    image = Image.fromarray(_rgb(picture))
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS)


def _table(rows: list[list[Image.Image]], titles: Sequence[str], font: ImageFont.FreeTypeFont, gap: int) -> Image.Image:
    """Titles over columns of pictures, each picture centred in its cell."""
    # a narrow column still holds the longest word of its title
    words = [max((ceil(font.getlength(word)) for word in title.split()), default=0) for title in titles]
    widths = [max(word, *(row[i].width for row in rows)) for i, word in enumerate(words)]
    heights = [max(picture.height for picture in row) for row in rows]
    heads = [_wrap(title, font, width) for title, width in zip(titles, widths, strict=True)]
    top = sum(font.getmetrics()) * max(map(len, heads)) + gap
    size = (sum(widths) + gap * (len(widths) - 1), top + sum(heights) + gap * (len(heights) - 1))
    figure = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(figure)
    for i, width in enumerate(widths):
        left, y = sum(widths[:i]) + gap * i, top
        for number, text in enumerate(reversed(heads[i])):
            spot = (left + width / 2, top - gap - number * sum(font.getmetrics()))
            draw.text(spot, text, fill=INK, font=font, anchor="md")
        for row, height in zip(rows, heights, strict=True):
            figure.paste(row[i], (left + (width - row[i].width) // 2, y + (height - row[i].height) // 2))
            y += height + gap
    return figure


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Breaks a title at its spaces into lines no wider than the column."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _legend(legend: Sequence[tuple[str, Color]], width: int, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Squares of colour with their names, in columns of one width, as many as fit."""
    swatch, line = 2 * font.size, round(1.4 * sum(font.getmetrics()))
    column = ceil(max(font.getlength(name) for name, _ in legend)) + swatch + font.size
    columns = max(1, width // column)
    figure = Image.new("RGB", (max(width, column), line * ceil(len(legend) / columns)), PAPER)
    draw = ImageDraw.Draw(figure)
    for i, (name, color) in enumerate(legend):
        x, middle = i % columns * column, i // columns * line + line // 2
        box = (x, middle - font.size // 2, x + round(0.75 * swatch), middle + font.size // 2)
        # the edge keeps white and light grey visible
        draw.rectangle(box, fill=tuple(color), outline=EDGE)
        draw.text((x + swatch, middle), name, fill=INK, font=font, anchor="lm")
    return figure


def _stack(parts: list[Image.Image], margin: int) -> Image.Image:
    """Images one under another, centred, with a margin around each."""
    width = max(part.width for part in parts) + 2 * margin
    figure = Image.new("RGB", (width, sum(part.height + margin for part in parts) + margin), PAPER)
    y = margin
    for part in parts:
        figure.paste(part, ((width - part.width) // 2, y))
        y += part.height + margin
    return figure
