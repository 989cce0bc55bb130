"""Decoded pixels, kept in files that training maps into memory."""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pcr_seg.data.files import Sample, place_of, read_mask


def cached_mask(sample: Sample, cache: Path | None) -> np.ndarray:
    """A sample's mask (H, W), from the cache where there is one."""
    return memory_mapped(sample.mask, lambda: read_mask(sample), cache, sample)


def memory_mapped(path: str, read: Callable[[], np.ndarray], cache: Path | None, sample: Sample) -> np.ndarray:
    """What `read` makes of the file `path`, kept as a .npy file in `cache`: later reads load only the rows they use.

    A file that was changed, or is read in another way, is read anew; without a cache it always is. Processes may share
    the folder: a .npy appears there when it is complete.
    """
    if cache is None:
        return read()
    stat, label_map = os.stat(place_of(path)[0]), sample.label_map
    way = (sample.format, None if label_map is None else label_map.tolist())
    key = hashlib.sha256(repr((os.path.realpath(path), stat.st_mtime_ns, stat.st_size, way)).encode()).hexdigest()
    file = cache / f"{key}.npy"
    if not file.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache, suffix=".part", delete=False) as part:
            np.save(part, read())
        os.replace(part.name, file)
    return np.load(file, mmap_mode="r")
