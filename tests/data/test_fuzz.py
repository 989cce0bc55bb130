"""Damaged files through the reader: an error with the file's name, or what the file says. A few hundred of them here,
thousands with `make test-faults`."""

import io
import itertools
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pcr_seg.data.files import DataError, Format, Sample, image_size, read_image, read_mask, read_pair

SUFFIXES = ("jpg", "png", "tif", "bmp", "webp")
MODES = ("RGB", "L", "P", "RGBA", "CMYK", "1", "I;16", "LA")
COLORS = {(0, 0, 0): 0, (250, 0, 0): 1, (0, 250, 0): 2, (9, 9, 9): 255}
FORMAT = Format(num_classes=3, colors=COLORS)
LABELS = np.random.default_rng(0).choice(np.array([0, 1, 2, 255], np.uint8), (5, 6)).repeat(8, 0).repeat(8, 1)


def encoded(image: Image.Image, suffix: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()), **options)
    return stream.getvalue()


def images() -> dict[str, bytes]:
    """A small picture in every format and mode that can be written."""
    noise = np.random.default_rng(1).integers(0, 256, (10, 12, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    found = {"turned.jpg": encoded(Image.fromarray(noise), "jpg", exif=exif)}
    for suffix, mode in itertools.product(SUFFIXES, MODES):
        grey = Image.fromarray(noise[..., 0].astype(np.uint16) * 256)
        image = grey if mode == "I;16" else Image.fromarray(noise).convert(mode)
        try:
            found[f"{mode}.{suffix}"] = encoded(image, suffix)
        except OSError:  # the format has no such mode
            continue
    return found


def masks() -> dict[str, bytes]:
    """One mask of 40 x 48 as class ids, palette and colors, in formats with and without checksums."""
    palette = np.zeros((256, 3), np.uint8)
    palette[list(COLORS.values())] = list(COLORS)
    indexed = Image.fromarray(LABELS).convert("P")
    indexed.putpalette(palette.tobytes())
    kinds = {"ids": Image.fromarray(LABELS), "palette": indexed, "colors": Image.fromarray(palette[LABELS])}
    found = {f"{kind}.{suffix}": encoded(kinds[kind], suffix) for kind in kinds for suffix in ("png", "bmp", "tif")}
    return found | {"deflate.tif": encoded(kinds["ids"], "tif", compression="tiff_deflate")}


def damage(content: bytes, other: bytes, rng: random.Random) -> bytes:
    """Bits flipped, bytes overwritten, cut, grown, or with the beginning of another file."""
    data = bytearray(content)
    kind = rng.choice(("bits", "header bits", "bytes", "cut", "head", "splice", "grow", "zeros"))
    if kind in ("bits", "header bits"):
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(min(len(data), 64 if kind == "header bits" else len(data)))] ^= 1 << rng.randrange(8)
    elif kind == "bytes":
        start = rng.randrange(len(data))
        data[start : start + 8] = rng.randbytes(8)
    elif kind == "cut":
        del data[rng.randrange(len(data)) :]
    elif kind == "head":
        data[: rng.randint(1, 64)] = other[: rng.randint(1, 64)]
    elif kind == "splice":
        data[rng.randrange(len(data)) :] = other[rng.randrange(len(other)) :]
    elif kind == "grow":
        data += rng.randbytes(rng.randint(1, 100))
    else:
        start = rng.randrange(len(data))
        data[start : start + rng.randint(1, 200)] = bytes(rng.randint(1, 200))
    return bytes(data)


def outcome(read, path: Path):
    """What a reader returns, or None if it refuses the file by name in one line; anything else fails the test."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's about metadata
            return read()
    except DataError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error) and error.kind
        return None


def fuzz(folder: Path, count: int, seed: int) -> dict[str, int]:
    """Read `count` damaged files; returns how many were refused, read, and read with other labels than before."""
    rng = random.Random(seed)
    good_images, good_masks = images(), masks()
    everything = [*good_images.values(), *good_masks.values()]
    good = folder / "good.png"
    Image.new("RGB", LABELS.shape[::-1]).save(good)
    tally = {"refused": 0, "read": 0, "other labels": 0}
    for number in range(count):
        as_mask = number % 2
        name, content = rng.choice(sorted((good_masks if as_mask else good_images).items()))
        suffix = name.rpartition(".")[2] if rng.random() < 0.9 else rng.choice(SUFFIXES)  # some with a wrong one
        path = folder / f"{number}.{suffix}"
        damaged = damage(content, rng.choice(everything), rng)
        path.write_bytes(damaged)
        if as_mask:
            sample = Sample("a", good, path, None, FORMAT)
            mask = outcome(lambda sample=sample: read_mask(sample), path)
            pair = outcome(lambda sample=sample: read_pair(sample), path)
            assert (pair is None) == (mask is None or mask.shape != LABELS.shape)
            if mask is not None:
                assert mask.dtype == np.uint8 and mask.ndim == 2 and set(np.unique(mask)) <= {0, 1, 2, 255}
            if pair is not None and (pair[1] != LABELS).any():
                tally["other labels"] += 1
                # A format without checksums cannot tell; and a whole other mask is no damage.
                whole = damaged[:2] in (b"BM", b"II", b"MM") or damaged in good_masks.values()
                assert whole, f"{path} ({name}): silently wrong"
            tally["read" if pair is not None else "refused"] += 1
        else:
            for channels in (1, 3):
                image = outcome(lambda p=path, c=channels: read_image(p, Format(channels=c)), path)
                assert image is None or (image.dtype == np.uint8 and image.shape[2] == channels and image.size)
            size = outcome(lambda p=path: image_size(p), path)
            assert image is None or size == image.shape[:2]
            tally["read" if image is not None else "refused"] += 1
        path.unlink()
    return tally


def test_damaged_files_are_refused_or_read(tmp_path: Path) -> None:
    tally = fuzz(tmp_path, 600, seed=0)
    assert tally["refused"] > 200 and tally["read"] > 50


@pytest.mark.faults
@pytest.mark.parametrize("seed", range(1, 9))
def test_thousands_of_damaged_files(tmp_path: Path, seed: int, counts: dict[str, int]) -> None:
    tally = fuzz(tmp_path, 1_000, seed)
    for kind, number in tally.items():
        counts[f"files fuzzed, {kind}"] += number
