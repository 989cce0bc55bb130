"""Read and write TIFF files that are too large for memory, by windows.

GDAL (rasterio) does so, because it knows all compressions, and keeps the geographic position.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from pcr_seg.data.files import READ_BANDS, DataError, Format, scaled

GRID = 32  # a multiple of all networks' strides: a window that starts on it has the whole image's features
CACHE_MIB = 32  # GDAL's own default is a twentieth of the machine's memory
STRIP_BYTES = 2**28  # read at once at most


class Cut(NamedTuple):
    """A window start..stop along one axis, of which the part first..last is kept; start <= first < last <= stop."""

    start: int
    stop: int
    first: int
    last: int


def cuts(size: int, tile: int, margin: int) -> list[Cut]:
    """Divide an axis of `size` pixels into windows of at most `tile`, whose kept parts cover it without overlap.

    The kept part has a distance of at least `margin` (rounded up to a multiple of `GRID`) from the ends of its window,
    except at the ends of the image. Windows start at a multiple of `GRID`; all but the last are n * `GRID` + 1 long.
    With aligned corners their features then lie on the same pixels as those of the whole image.

    Raises:
        ValueError: nothing would be left between the margins, or the margin is negative.
    """
    side, margin = (tile - 1) // GRID * GRID + 1, -(-margin // GRID) * GRID
    step = side - 1 - 2 * margin
    if margin < 0 or step < GRID:
        raise ValueError(
            f"tile={tile}: choose at least {2 * max(margin, 0) + GRID + 1}, or a smaller margin (0 or more)"
        )
    end = -(-(size - side) // GRID) * GRID  # latest start of a window, so that the last one is not narrow
    found = []
    for first in range(0, size, step):
        start = max(0, min(first - margin, end))
        found.append(Cut(start, min(size, start + side), first, min(size, first + step)))
    return found


@contextmanager
def open_tiff(path: Path | str) -> Iterator:
    """Open a TIFF file as a `rasterio.DatasetReader`.

    Raises:
        ValueError: rasterio is not installed.
        OSError: the file is no TIFF, or cannot be read.
    """
    try:
        import rasterio
    except ImportError as error:
        raise ValueError("tile= needs one more package: pip install 'pcr-seg[tiles]'") from error
    warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)
    with rasterio.Env(GDAL_CACHEMAX=CACHE_MIB), rasterio.open(path, driver="GTiff") as file:
        yield file


def read_window(file, rows: Cut, columns: Cut, format: Format) -> np.ndarray:
    """Read a window as (h, w, channels) uint8, as `files.read_image` does a file, but without EXIF orientation.

    Raises:
        DataError: the file has bands or values that are not supported.
    """
    kinds, bits = [kind.name for kind in file.colorinterp], file.dtypes[0]
    colors = kinds[:3] == ["red", "green", "blue"] and bits in ("uint8", "uint16")
    if format.channels == 4:
        fits = colors and kinds[3:] == ["alpha"]
    else:
        fits = kinds == ["gray"] or (colors and file.count in (3, 4))
    if not fits:
        number = "1 band" if file.count == 1 else f"{file.count} bands"
        remedy = "RGB, by gdal_translate -expand rgb" if kinds == ["palette"] else READ_BANDS
        raise DataError(
            f"{file.name}: {number} of {bits} ({', '.join(dict.fromkeys(kinds))}), which tiles do not read as"
            f" {format.channels} channels; save it as {remedy}",
            "channels",
        )
    values = file.read(window=((rows.start, rows.stop), (columns.start, columns.stop)))
    if values.dtype == np.uint16 and file.count > 1:
        values = (values >> 8).astype(np.uint8)  # as Pillow reads 16-bit colors
    elif values.dtype != np.uint8:
        values = scaled(file.name, values, format.max_value)
    image = np.moveaxis(values, 0, 2)
    if file.count == 1:
        return np.repeat(image, format.channels, axis=2)
    if format.channels == 1:
        return np.array(Image.fromarray(np.ascontiguousarray(image[..., :3])).convert("L"))[..., None]
    return np.ascontiguousarray(image[..., : format.channels])


def read_strip(file, rows: Cut, format: Format) -> np.ndarray | None:
    """Read windows side by side as one (h, width, channels), where the file holds whole rows of pixels; else None.

    Such a file is decoded over its whole width for each window. None as well where it would take over 256 MiB.
    """
    pixels = (rows.stop - rows.start) * file.width
    if file.block_shapes[0][1] < file.width or pixels * file.count * np.dtype(file.dtypes[0]).itemsize > STRIP_BYTES:
        return None
    return read_window(file, rows, Cut(0, file.width, 0, file.width), format)


@contextmanager
def create_tiff(path: Path, like, picture: np.ndarray, block: int) -> Iterator:
    """Create a deflated TIFF with the size and geographic position of `like`, an open TIFF file.

    `picture` is an example of the windows that will be written: of their bands and type. The file has square blocks of
    side `block`; a window of exactly one block is compressed and written once.
    """
    import rasterio

    path.parent.mkdir(parents=True, exist_ok=True)
    bands = 1 if picture.ndim == 2 else picture.shape[2]
    with rasterio.open(
        path, "w", driver="GTiff", height=like.height, width=like.width, count=bands, dtype=picture.dtype, crs=like.crs,
        transform=like.transform, tiled=True, blockxsize=block, blockysize=block, compress="deflate",
        photometric="RGB" if bands == 3 else "MINISBLACK", BIGTIFF="IF_SAFER",
    ) as file:  # fmt: skip
        yield file


def kept(picture: np.ndarray, rows: Cut, columns: Cut) -> np.ndarray:
    """Cut the part to be kept out of a window's picture."""
    return picture[rows.first - rows.start : rows.last - rows.start,
                   columns.first - columns.start : columns.last - columns.start]  # fmt: skip


def write_window(file, picture: np.ndarray, rows: Cut, columns: Cut) -> None:
    """Write the kept part of a window's picture, (h, w) or (h, w, bands), to its position in the file."""
    part = kept(picture, rows, columns)
    bands = part[None] if part.ndim == 2 else np.moveaxis(part, 2, 0)
    file.write(bands, window=((rows.first, rows.last), (columns.first, columns.last)))
