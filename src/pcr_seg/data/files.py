"""Read one image or mask file as an array, or raise one line with the file, what is wrong, and what to do.

Images become (H, W, C) uint8, upright by their EXIF orientation; masks (H, W) uint8 class ids, 255 = ignored.
docs/data.md lists every case; `DataError.kind` is its row there.
"""

import io
import os
import re
import tarfile
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin

IGNORE_INDEX = 255
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")  # nothing else is ever opened: some of Pillow's readers run programs
MASK_SUFFIXES = tuple(suffix for suffix in IMAGE_SUFFIXES if suffix not in (".jpg", ".jpeg"))
JPEG_SIGNATURE, PNG_SIGNATURE = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
EIGHT_BIT_RGB = bytes([8, 2, 0, 0, 0])  # bits, color type, and no interlace, in a PNG's header
PLAIN_CHUNKS = {b"IHDR", b"IDAT", b"IEND", b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"tIME"}  # of which Pillow heeds none
HAS_SPNG = find_spec("imagecodecs") is not None
READ_BANDS = (
    "one band (over 8 bits: with dataset.max_value), as RGB, or with a fourth band as alpha (dataset.channels=4), with"
    " gdal_translate for example"
)
DEEP = {"I;16", "I;16L", "I;16B", "I;16N", "I", "F"}  # Pillow's modes of one channel with more than 8 bits
DARK = 32  # of 255: an eighth of 16 bits; the values of 12 bits end at 16
MEMBER = re.compile(r"(.+\.tar)@(\d+)\+(\d+)/")  # SHARD.tar@OFFSET+SIZE/NAME: a file in a tar, in bytes
HEAD = 2**16  # bytes in which most images say all but their pixels
MISSING_IMAGE, MISSING_MASK = "no such image; correct the path", "no such mask; correct the path"


class DataError(ValueError):
    """A file that cannot be used, as `FILE: what is wrong; what to do`."""

    def __init__(self, message: str, kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind


class Format(NamedTuple):
    """How the files of a data set are coded.

    channels: of the images: 1 (grey), 3 (RGB) or 4 (the file's own four, such as RGB and infrared).
    max_value: what becomes 255 where a channel has more than 8 bits; None: 65535, and floats are refused.
    num_classes: masks hold 0..num_classes-1 and 255.
    colors: (R, G, B) -> class id, for masks that are coded in colors; empty where there are none.
    masks: "ids" looks only masks of three and more channels up in `colors`, "colors" all of them.
    """

    channels: int = 3
    max_value: int | None = None
    num_classes: int = IGNORE_INDEX
    colors: dict[tuple[int, int, int], int] = {}  # noqa: RUF012  never changed
    masks: str = "ids"


class Sample(NamedTuple):
    """One image. `mask` is None if there is none; `label_map` (256,) uint8 is applied to the mask as it is in the file.

    Files are text, not paths: a data set may hold a million of them.
    """

    name: str
    image: str
    mask: str | None = None
    label_map: np.ndarray | None = None
    format: Format = Format()


def place_of(path: Path | str) -> tuple[str, int, int]:
    """Return an image's file, its offset there and its number of bytes; 0 and -1 unless it lies in a tar."""
    member = MEMBER.match(str(path))
    return (member[1], int(member[2]), int(member[3])) if member else (str(path), 0, -1)


def is_url(path: Path | str) -> bool:
    """Return whether a path is a URL, which fsspec reads, and no file of this machine."""
    return "://" in str(path)


def alone_on_disk(path: Path | str) -> bool:
    """Return whether an image is a file of its own on this machine, neither in a tar nor at a URL."""
    return not is_url(path) and not MEMBER.match(str(path))


# fsspec's file systems. A loader's worker inherits its parent's and makes others; to collect those of the parent there
# would close connections under it, and the parent would wait for an answer forever.
KEPT: set[Any] = set()


@contextmanager
def reaching(url: str) -> Iterator[tuple[Any, str]]:
    """Provide fsspec's file system for a URL, and the URL's path in it; credentials come from the environment.

    Raises:
        FileNotFoundError: there is nothing at the URL.
        DataError: the store or its package has raised something else. Both are one line with the remedy.
    """
    from fsspec.core import url_to_fs  # a tenth of a second

    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # its gRPC hangs in a loader's worker
    try:
        system, place = url_to_fs(url)
        KEPT.add(system)
        yield system, place
    except (DataError, tarfile.TarError):
        raise
    except FileNotFoundError as error:
        reason = f" ({' '.join(str(error.__cause__).split())})" if error.__cause__ else ""
        raise FileNotFoundError(f"{url}: nothing is there{reason}; correct the URL") from None
    except ImportError as error:
        message = f"{url}: {error}; pip install 'pcr-seg[remote]' brings what reads s3:// and gs://"
        raise DataError(message, "protocol") from None
    except Exception as error:  # each store has errors of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        remedy = "see to the connection and the credentials, or write the manifest again if the file has changed"
        raise DataError(f"{url}: cannot be read ({reason}); {remedy}", "not reached") from None


@contextmanager
def opened(file: str) -> Iterator[Any]:
    """Open a file to read parts of it; at a URL, what lies between the parts is not fetched."""
    if not is_url(file):
        with open(file, "rb") as content:
            yield content
        return
    with reaching(file) as (system, place), system.open(place, block_size=HEAD, cache_type="readahead") as content:
        yield content


def read_bytes(path: Path | str, most: int = -1) -> bytes:
    """Return an image's content, from its file or its place in a tar, or `most` bytes of it; one request at a URL.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: the URL cannot be read, or the tar is not the one that was listed.
    """
    file, offset, size = place_of(path)
    header = tarfile.BLOCKSIZE if size >= 0 else 0  # which stands right before the file in a tar
    length = most if size < 0 else size if most < 0 else min(size, most)
    start, stop = offset - header, offset + length if length >= 0 else None
    if is_url(file):
        with reaching(file) as (system, place):
            content = system.cat_file(place, start=start or None, end=stop)
    else:
        with open(file, "rb") as whole:
            whole.seek(start)
            content = whole.read(header + length)
    if not header:
        return content
    with suppress(tarfile.TarError):
        told = tarfile.TarInfo.frombuf(content[:header], tarfile.ENCODING, "surrogateescape")
        if told.size == size and len(content) == header + length:
            return content[header:]
    message = "is not as it was listed: the tar has changed, or its server gives no parts of files"
    raise DataError(f"{path}: {message}; write the manifest again, or copy the tar", "tar changed")


def num_bytes(path: Path | str) -> int:
    """Return the bytes of an image's file, or of its place in a tar."""
    file, _, size = place_of(path)
    if size < 0 and is_url(file):
        with reaching(file) as (system, place):
            return system.size(place)
    return os.stat(file).st_size if size < 0 else size


def version(path: Path | str) -> tuple[str, int, int]:
    """Return what changes if an image's file does: real path, bytes, time in nanoseconds; for a URL, its text alone."""
    if is_url(path):
        return str(path), 0, 0
    stat = os.stat(place_of(path)[0])
    return os.path.realpath(path), stat.st_size, stat.st_mtime_ns


def member_free(path: str) -> str:
    """Return an image's path as if its tar were a folder."""
    return MEMBER.sub(lambda member: member[1].removesuffix(".tar") + "/", path, count=1) if ".tar@" in path else path


def name_of(path: str) -> str:
    """Return an image's name, from its path in a data set."""
    path = member_free(path)
    return path[: path.rindex(".")].replace(os.sep, "/")


def plain(name: str) -> str:
    """Return a name as names are compared: in one case, with accents written one way."""
    return unicodedata.normalize("NFC", name).casefold()


@contextmanager
def _reading(path: Path | str, missing: str) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: {missing}") from None
    except Image.DecompressionBombError:
        limit = 2 * Image.MAX_IMAGE_PIXELS // 10**6  # from the half of it on, Pillow warns
        message = f"{path}: over {limit} million pixels, or a file made to look so; cut it into tiles, or remove it"
        raise DataError(message, "too many pixels") from None
    except Exception as error:  # Pillow's readers meet damage with nearly every exception there is
        if Path(path).is_file() and not Path(path).stat().st_size:
            raise DataError(f"{path}: not readable as an image (it is empty); replace or remove it", "empty") from None
        if odd := _odd_bands(_tiff_tags(path)):
            raise _of_bands(path, odd) from None
        # Pillow speaks of its memory, not of the file: <_io.BytesIO object at 0x7f...>
        reason = "unknown format" if isinstance(error, Image.UnidentifiedImageError) else " ".join(str(error).split())
        message = f"{path}: not readable as an image ({reason or type(error).__name__}); replace or remove it"
        raise DataError(message, "unreadable") from None


def _orientation(image: Image.Image) -> int:
    # Pillow decodes a whole PNG in search of a late EXIF chunk; one before the pixels is in `info` already.
    return 1 if image.format == "PNG" and "exif" not in image.info else image.getexif().get(0x0112, 1)


def _verify(content: bytes) -> set[bytes]:
    """Return the names of a PNG's chunks; none of another file.

    Raises where checksums do not fit: Pillow skips those of the pixels, and labels would change unnoticed.
    """
    if not content.startswith(PNG_SIGNATURE):
        return set()
    names, position, name = set(), len(PNG_SIGNATURE), b""
    while name != b"IEND":
        length = int.from_bytes(content[position : position + 4], "big")
        name, stop = content[position + 4 : position + 8], position + 8 + length
        if stop + 4 > len(content):
            raise OSError("file is truncated")
        if zlib.crc32(content[position + 4 : stop]) != int.from_bytes(content[stop : stop + 4], "big"):
            raise OSError("wrong checksum: the file was damaged")
        position = stop + 4
        names.add(name)
    return names


def _plain_png(content: bytes, chunks: set[bytes]) -> np.ndarray | None:
    """Return the pixels of a PNG of 8-bit RGB without color profile or transparency, by libspng if it is installed.

    Pillow takes almost twice as long for them, and reads all others.
    """
    height, width = (int.from_bytes(content[start : start + 4], "big") for start in (20, 16))
    if not HAS_SPNG or content[24:29] != EIGHT_BIT_RGB or not chunks <= PLAIN_CHUNKS or not chunks:
        return None
    if height * width > Image.MAX_IMAGE_PIXELS:
        return None  # Pillow refuses files that are made to look so large
    import imagecodecs

    return imagecodecs.spng_decode(content)


def _tiff_tags(path: Path | str) -> dict[int, Any]:
    """Return the tags of a TIFF's first page, even if Pillow has no mode for it; none of other or damaged files."""
    try:
        with open(path, "rb") as file:
            head = file.read(8)
            if head[:4] in (b"II+\0", b"MM\0+"):  # of more than 4 GiB
                head += file.read(8)
            tags = TiffImagePlugin.ImageFileDirectory_v2(head)
            file.seek(tags.next)
            tags.load(file)
            return {int(tag): value for tag, value in tags.items()}
    except Exception:  # Pillow's readers meet damage with nearly every exception there is
        return {}


def _odd_bands(tags: Mapping[int, Any], image: Image.Image | None = None) -> str:
    """Return what a TIFF holds, as `5 bands of 8 bits`, if Pillow reads only a part of it (`image`), or nothing."""
    if not tags:
        return ""
    samples, bits, planar = int(tags.get(277, 1)), max(tags.get(258, (1,))), tags.get(284, 1) == 2
    odd_planes = planar and bits > 8
    if image is not None:  # of several bands, Pillow may read the first alone; a fourth without a meaning it leaves out
        bands = len(image.getbands())
        known = bands == samples or (bands == 3 and samples == 4)
        odd = not known or (odd_planes and samples > 1)
    else:
        odd = samples > 1 or odd_planes
    number = "1 band" if samples == 1 else f"{samples} bands"
    kind = " (float)" if 3 in tags.get(339, ()) else ""
    return f"{number} of {bits} bits{kind}{' one after another' if planar else ''}" if odd else ""


def _of_bands(path: Path | str, odd: str) -> DataError:
    message = f"{path}: has {odd}, which are not read; save it as {READ_BANDS}"
    return DataError(message, "bands")


def _open(path: Path | str, content: bytes | None = None) -> Image.Image:
    """Open a file, or its content, unless Pillow would leave some of its bands out unnoticed."""
    if content is None and not alone_on_disk(path):
        content = read_bytes(path, HEAD)
        if content.startswith((JPEG_SIGNATURE, PNG_SIGNATURE)):
            with suppress(Exception):  # what comes before the pixels may be longer
                return Image.open(io.BytesIO(content), formats=FORMATS)
        content = read_bytes(path) if len(content) == HEAD else content
    image = Image.open(str(path) if content is None else io.BytesIO(content), formats=FORMATS)
    if image.format == "TIFF" and (odd := _odd_bands(image.tag_v2, image)):
        image.close()
        raise _of_bands(path, odd)
    return image


def _decode(path: Path | str, content: bytes) -> Image.Image:
    """Return the decoded image, upright; `format` and `n_frames` are the file's."""
    image = _open(path, content)
    upright = _orientation(image) == 1
    image.load()
    if upright:
        return image
    turned = ImageOps.exif_transpose(image)
    turned.format, turned.n_frames = image.format, getattr(image, "n_frames", 1)
    return turned


def read_image(path: Path | str, format: Format = Format()) -> np.ndarray:  # noqa: B008  immutable
    """Read an image as (H, W, C) uint8, upright by its EXIF orientation, with `format.channels` channels.

    Grey, palette, RGBA and CMYK images become RGB; 16 bits are scaled to 8. With 4 channels the file's are taken
    as they are.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it cannot be decoded, or into so many channels.
    """
    with _reading(path, MISSING_IMAGE):
        content = read_bytes(path)
        chunks = _verify(content)
        pixels = _plain_png(content, chunks) if format.channels == 3 else None
        if pixels is not None:
            return pixels
        image = _decode(path, content)
        deep = np.array(image) if image.mode in DEEP else None
        if deep is None and format.channels < 4:
            if image.mode == "P":  # by way of RGBA, as Pillow warns about palettes with transparency
                image = image.convert("RGBA")
            pixels = np.array(image.convert("RGB" if format.channels == 3 else "L"))
            return pixels if format.channels == 3 else pixels[..., None]
    _check_bands(path, image, format)
    if deep is None:
        return np.array(image)
    return np.repeat(scaled(path, deep, format.max_value)[..., None], format.channels, axis=2)


def _check_bands(path: Path | str, image: Image.Image, format: Format) -> None:
    if format.channels == 4 and len(image.getbands()) != 4:
        raise DataError(
            f"{path}: image is {image.mode} ({len(image.getbands())} channels), but dataset.channels=4; save it with"
            " four channels, or train with dataset.channels=3",
            "channels",
        )


def scaled(path: Path | str, values: np.ndarray, max_value: int | None) -> np.ndarray:
    """Scale one channel of more than 8 bits to uint8."""
    if max_value is None and values.dtype.kind == "f":
        raise DataError(
            f"{path}: image has floating-point values, and nothing says which is white; save it with 8 bits, or train"
            " with dataset.max_value at that value",
            "float",
        )
    top = max_value or 65_535
    if not (values.min() >= 0 and values.max() <= top):  # so that NaN fails
        raise DataError(
            f"{path}: values {values.min()}..{values.max()} are not in 0..{top}; repair the file, or train with"
            " dataset.max_value at the largest value of the data set",
            "range",
        )
    return np.rint(values * np.float32(255 / top)).astype(np.uint8)


def image_size(path: Path | str, format: Format = Format()) -> tuple[int, int]:  # noqa: B008  immutable
    """Return (H, W) as `read_image` gives them, from the header where possible; raises like `read_image`."""
    with _reading(path, MISSING_IMAGE), _open(path) as image:
        upright = _orientation(image) < 5  # 5..8 lie on their side, which `size` knows for some formats only
    _check_bands(path, image, format)
    return image.size[::-1] if upright else read_image(path, format).shape[:2]


class Header(NamedTuple):
    """A file's header: `orientation` as in EXIF (1 = upright); `deep` means more than 8 bits a channel."""

    format: str
    mode: str
    frames: int
    orientation: int
    deep: bool


def read_header(path: Path | str) -> Header:
    """Read a file's header without its pixels; raises like `read_image`."""
    with _reading(path, MISSING_IMAGE), _open(path) as image:
        deep = image.mode in DEEP or ";16" in str(image.tile)
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # a camera's preview is no animation
        format = "JPEG" if image.format == "MPO" else image.format
        return Header(format, image.mode, frames, _orientation(image), deep)


def nearly_black(path: Path | str, brightest: int, format: Format) -> bool:
    """Return whether an image of more than 8 bits was read as nearly black because it has no `max_value`.

    Args:
        path: of the image; its header is read if need be.
        brightest: largest value of what `read_image` returned, 0..255.
        format: that it was read in.
    """
    return brightest < DARK and format.max_value is None and read_header(path).deep


def read_mask(sample: Sample) -> np.ndarray:
    """Read a mask as (H, W) uint8 class ids, 255 = ignored.

    One channel holds class ids (of a palette image the indices), three and more hold colors of `format.colors`.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: the sample has no mask, the file cannot be decoded, or holds no class ids.
    """
    path, format = sample.mask, sample.format
    if path is None:
        message = f"{sample.image}: labeled, but it has no mask; add one, or use it as unlabeled"
        raise DataError(message, "missing mask")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: {_missing_mask(sample)}")
    with _reading(path, MISSING_MASK):
        content = read_bytes(path)
        _verify(content)
        image = _decode(path, content)
        frames, coded = getattr(image, "n_frames", 1), format.masks == "colors" or len(image.getbands()) > 2
        colors = np.array(image.convert("RGB")) if coded and image.mode not in DEEP else None
        values = np.array(image)
    if image.format in ("JPEG", "MPO") or image.info.get("compression") == "jpeg":  # the latter in a TIFF
        raise DataError(f"{path}: mask is a JPEG, which changes labels; export it again as PNG", "JPEG mask")
    if frames > 1:
        raise DataError(f"{path}: mask has {frames} frames or pages; save the right one alone", "mask frames")
    if colors is not None:
        mask = _ids_of_colors(path, image, colors, format.colors)
    elif image.mode in ("L", "LA", "P", "1") or (image.mode in DEEP and image.mode != "F"):
        mask = values[..., 0] if image.mode == "LA" else values
        if mask.min() < 0 or mask.max() > IGNORE_INDEX:
            message = f"{path}: mask holds values {mask.min()}..{mask.max()}; class ids are 0..254, and 255 is ignored"
            raise DataError(f"{message}: write these", "mask bits")
        mask = mask.astype(np.uint8)
        if image.mode == "P":
            _check_palette(path, image, mask, format.colors)
    else:
        message = f"{path}: mask is {image.mode}, not class ids; save them as a PNG of one 8-bit channel"
        raise DataError(message, "mask mode")
    mask = mask if sample.label_map is None else sample.label_map[mask]
    shown = np.flatnonzero(np.bincount(mask.ravel(), minlength=256)[:IGNORE_INDEX])
    if wrong := [int(value) for value in shown if value >= format.num_classes]:
        raise DataError(
            f"{path}: label values {wrong} are not in 0..{format.num_classes - 1} or 255 (ignored); correct"
            " the mask, or add the classes to the data set",
            "label values",
        )
    return mask


def _missing_mask(sample: Sample) -> str:
    """Return what is missing and, if a file beside it may be meant, what to do with that file."""
    mask, image = Path(sample.mask), Path(sample.image)
    near = sorted(file.name for file in _files(mask.parent) if _means(file.stem, mask.stem))
    if near:
        others = {file.stem for file in _files(image.parent) if file.suffix.lower() in IMAGE_SUFFIXES} - {image.stem}
        near = [name for name in near if Path(name).stem not in others]
    near.sort(key=lambda name: Path(name).suffix.lower() not in MASK_SUFFIXES)
    if not near:
        return f"no mask for {image}; add it, or use the image as unlabeled"
    suffix = Path(near[0]).suffix
    found = f"no mask for {image}, but {near[0]} is there"
    if suffix.lower() in MASK_SUFFIXES:
        if plain(Path(near[0]).stem) == plain(mask.stem) and Path(near[0]).stem.lower() != mask.stem.lower():
            found += " (accents are written in another way)"
        return f"{found}; rename it to {mask.stem}{suffix} if it is this image's mask: masks are called as images are"
    return f"{found}, which is not read as a mask; save it as {mask.stem}.png ({', '.join(MASK_SUFFIXES)} are read)"


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.glob("*") if file.is_file())


def _means(stem: str, wanted: str) -> bool:
    """Return whether a file called `stem` may be meant as `wanted`: with other letters, or a word behind it."""
    stem, wanted = plain(stem), plain(wanted)
    return stem.startswith(wanted) and re.fullmatch(r"([\W_]\D*)?", stem[len(wanted) :]) is not None


def _ids_of_colors(path: Path, image: Image.Image, rgb: np.ndarray, colors: dict) -> np.ndarray:
    """Return the class ids (H, W) of colors (H, W, 3); a color that no class has exactly is an error."""
    if not colors:
        raise DataError(
            f"{path}: mask is {image.mode} ({len(image.getbands())} channels), but the classes have no colors of their"
            " own; save class ids as a PNG of one 8-bit channel, or give each class another R G B in a classes.txt",
            "no colors",
        )
    keys = np.array(sorted((r << 16 | g << 8 | b, label) for (r, g, b), label in colors.items()))
    packed = rgb.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    place = np.searchsorted(keys[:-1, 0], packed)  # of a color beyond the last: the last
    unknown = keys[place, 0] != packed
    if unknown.any():
        raise DataError(
            f"{path}: mask has the color {tuple(rgb[unknown][0].tolist())}, which no class has; add it to classes.txt"
            " (as id 255 to ignore it), or save the mask without smoothing",
            "mask colors",
        )
    return keys[place, 1].astype(np.uint8)


def _check_palette(path: Path, image: Image.Image, mask: np.ndarray, colors: dict) -> None:
    """Refuse a mask whose palette paints its indices in the colors of other classes.

    Colors of no class, and those that several indices have, say nothing; one class's color among others of no class
    may be chance.
    """
    palette = np.array(image.getpalette()).reshape(-1, 3)
    used = [index for index in np.unique(mask).tolist() if index < len(palette)]
    painted = {index: tuple(palette[index].tolist()) for index in used}
    times = Counter(painted.values())
    named = {index: colors[color] for index, color in painted.items() if color in colors and times[color] == 1}
    wrong = [index for index, label in named.items() if index != label]
    black = set(painted.values()) == {(0, 0, 0)}  # as unused entries are, so it says nothing
    if wrong and not black and (len(named) > 1 or len(used) == 1):
        raise DataError(
            f"{path}: mask's palette gives index {wrong[0]} the color of class {named[wrong[0]]}; if the colors are"
            " right, dataset.masks=colors reads them, if the indices are, remove the palette",
            "palette",
        )


def read_pair(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Read a labeled image with its mask; raises like `read_image` and `read_mask`, and if their sizes differ."""
    image, mask = read_image(sample.image, sample.format), read_mask(sample)
    check_sizes(sample, image.shape[:2], mask.shape)
    return image, mask


def check_sizes(sample: Sample, image: tuple[int, int], mask: tuple[int, int]) -> None:
    """Raise DataError if an image, upright, and its mask differ in (H, W)."""
    if image == mask:
        return
    (height, width), kind, remedy = image, "size", "resize the mask with nearest neighbour"
    if mask == image[::-1]:
        with Image.open(sample.image) as header:
            if _orientation(header) >= 5:
                kind, remedy = "rotation", "turn the mask as the tag turns the image"
    raise DataError(
        f"{sample.mask}: mask is {mask[1]}x{mask[0]}, but {sample.image} is {width}x{height} (upright by its EXIF"
        f" tag); {remedy}",
        kind,
    )
