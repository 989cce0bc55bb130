"""A million images without masks: a manifest, written and checked once, and read as one array and not as objects.

A manifest is a NumPy file of rows (path, size in bytes), sorted by name and memory-mapped, so that processes share it.
Its first row is the folder of the paths, relative to the manifest's own where the images lie below that, or a URL.
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
    """The images of a manifest, each made a `Sample` when it is asked for, behind those of `before`.

    A worker process gets the file's name, and no copy.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is no manifest.
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
        """The same images behind others."""
        return Pool(self.file, self.format, samples)

    def find(self, name: str) -> Sample | None:
        """The manifest's image of this name, if there is one."""
        place = bisect.bisect_left(self.paths, name, key=lambda path: name_of(os.fsdecode(path)))
        found = self[len(self.before) + place] if place < len(self.paths) else None
        return found if found and found.name == name else None

    def of_sizes(self, sizes: Iterable[int]) -> tuple[Sample, ...]:
        """The manifest's images whose files have one of these sizes in bytes."""
        return tuple(self[len(self.before) + int(i)] for i in np.flatnonzero(np.isin(self.sizes, list(sizes))))

    def line(self) -> str:
        """What a split list says of the manifest: its number of images, place and digest."""
        digest = hashlib.sha256(self.rows.view(np.uint8)).hexdigest()
        return f"and the {len(self.paths)} images of {self.file}, sha256 {digest}"


def write_manifest(file: Path, samples: Sequence[Sample], sizes: Sequence[int]) -> None:
    """Write the manifest of images, whose files have these sizes in bytes; it appears when it is complete."""
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
    """What stands before the name in an image's path: of all that were listed together the same."""
    path = member_free(sample.image)
    return path[: path.rindex(".") - len(sample.name)]
