"""A million images without masks: a manifest lists them. It is written once, and read as an array instead of objects.

A manifest is a NumPy file of rows (path, size in bytes), sorted by name. It is memory-mapped, so processes share it.
Its first row is the folder that the paths start from: relative to the manifest's folder if one contains the other,
else absolute, or a URL.
"""

import bisect
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from pcr_seg.data.files import DataError, Format, Sample, is_url, member_free, name_of

SUFFIX = ".manifest"


class Pool(Sequence[Sample]):
    """The samples of `before`, then the images of a manifest, each of which becomes a `Sample` when it is asked for.

    Pickling keeps the file's name alone, so a worker process maps the same file and gets no copy.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: the file is no manifest.
    """

    def __init__(self, file: Path | str, format: Format = Format(), before: Sequence[Sample] = ()) -> None:  # noqa: B008
        self.file, self.format, self.before = str(file), format, tuple(before)
        if not os.path.isfile(file):
            raise FileNotFoundError(f"{file}: no such manifest; write it with prepare.py manifest")
        try:
            rows = np.asarray(np.load(file, mmap_mode="r"))
            folder = os.fsdecode(rows["path"][0])
        except (ValueError, IndexError, EOFError) as error:
            message = f"{file}: not a manifest ({error}); write it with prepare.py manifest"
            raise DataError(message, "manifest") from None
        if not is_url(folder):
            folder = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(file)), folder))
        self.folder = os.path.join(folder, "")
        self.rows, self.paths, self.sizes = rows, rows["path"][1:], rows["size"][1:]

    def __reduce__(self) -> tuple:
        return Pool, (self.file, self.format, self.before)

    def __len__(self) -> int:
        return len(self.before) + len(self.paths)

    def __getitem__(self, index: int | slice) -> Sample | tuple[Sample, ...]:
        index = range(len(self))[index]
        if isinstance(index, range):
            return tuple(self[i] for i in index)
        if index < len(self.before):
            return self.before[index]
        path = os.fsdecode(self.paths[index - len(self.before)])
        return Sample(name_of(path), self.folder + path, format=self.format)

    def after(self, samples: Sequence[Sample]) -> "Pool":
        """Return this pool with other samples before the manifest's images."""
        return Pool(self.file, self.format, samples)

    def find(self, name: str) -> Sample | None:
        """Return the manifest's image of this name, if there is one."""
        place = bisect.bisect_left(self.paths, name, key=lambda path: name_of(os.fsdecode(path)))
        found = self[len(self.before) + place] if place < len(self.paths) else None
        return found if found and found.name == name else None

    def of_sizes(self, sizes: Iterable[int]) -> tuple[Sample, ...]:
        """Return the manifest's images whose files have one of these sizes in bytes."""
        return tuple(self[len(self.before) + int(i)] for i in np.flatnonzero(np.isin(self.sizes, list(sizes))))

    def line(self) -> str:
        """Return the split list's line about the manifest: its number of images, its file and its digest."""
        digest = hashlib.sha256(self.rows.view(np.uint8)).hexdigest()
        return f"and the {len(self.paths)} images of {self.file}, sha256 {digest}"


def write_manifest(file: Path, samples: Sequence[Sample], sizes: Sequence[int]) -> None:
    """Write a manifest of `samples`, whose files have these `sizes` in bytes; the file appears when it is complete."""
    here, first = os.path.abspath(file.parent), _folder(samples[0])
    if not is_url(first):
        folder = os.path.abspath(first)
        beside = os.path.commonpath([here, folder]) in (here, folder)
        first = os.path.relpath(folder, here) if beside else folder
    paths = np.array([os.fsencode(first), *(os.fsencode(s.image[len(_folder(s)) :]) for s in samples)])
    rows = np.empty(len(paths), [("path", paths.dtype), ("size", "<i8")])
    rows["path"], rows["size"] = paths, (-1, *sizes)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    with partial.open("wb") as content:
        np.save(content, rows)
    os.replace(partial, file)


def _folder(sample: Sample) -> str:
    """Return the part of an image's path before its name; images that were listed together have the same one."""
    path = member_free(sample.image)
    return path[: path.rindex(".") - len(sample.name)]
