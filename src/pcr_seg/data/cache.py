"""A cache of decoded pixels on disk, which training maps into memory."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pcr_seg.data.files import DataError, Sample, image_size, member_free, read_mask, version

AUTO, FOLDER = "auto", Path("runs/cache")
SLOW = (".png", ".tif", ".tiff")
LARGE = 2**20  # with so many pixels, decoding such a file takes longer than everything that follows


def cache_folder(cache: str | None, samples: Sequence[Sample]) -> Path | None:
    """Return the folder that `data.cache` means; None means to decode each time.

    "auto" means runs/cache if the images are large PNG or TIFF files, judging by about eight of them, and the pixels of
    all would take at most half of the free space on that disk.
    """
    if cache != AUTO:
        return Path(cache) if cache else None
    pixels = [pixels_of(samples[index]) for index in range(0, len(samples), max(1, len(samples) // 8))]
    mean = sum(pixels) / max(1, len(pixels))
    there = next(folder for folder in FOLDER.absolute().parents if folder.is_dir())
    need = len(samples) * mean * 4  # RGB and the mask
    return FOLDER if mean >= LARGE and need <= shutil.disk_usage(there).free / 2 else None


def pixels_of(sample: Sample) -> int:
    """Return an image's number of pixels if its format decodes slowly; 0 for any other, or if it cannot be read."""
    if not member_free(sample.image).lower().endswith(SLOW):
        return 0
    try:
        height, width = image_size(sample.image, sample.format)
    except (DataError, OSError):
        return 0
    return height * width


def cached_mask(sample: Sample, cache: Path | None) -> np.ndarray:
    """Return a sample's mask (H, W), from the cache if there is one."""
    return memory_mapped(sample.mask, lambda: read_mask(sample), cache, sample)


def memory_mapped(path: str, read: Callable[[], np.ndarray], cache: Path | None, sample: Sample) -> np.ndarray:
    """Return what `read` makes of the file `path`, memory-mapped from a .npy file in `cache`.

    The .npy file is written at the first call. Later reads load only the rows that they use. A file that has changed,
    or is read in another way, is read again; without a cache every call reads it. Processes may share the folder, since
    a .npy file appears there only when it is complete.
    """
    if cache is None:
        return read()
    (real, size, time), label_map = version(path), sample.label_map
    way = (sample.format, None if label_map is None else label_map.tolist())
    key = hashlib.sha256(repr((real, time, size, way)).encode()).hexdigest()
    file = cache / f"{key}.npy"
    if not file.is_file():
        array = read()
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache, suffix=".part", delete=False) as part:
            np.save(part, array)
        os.replace(part.name, file)
    return np.load(file, mmap_mode="r")
