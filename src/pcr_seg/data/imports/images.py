"""Find the files of an export: images by the names in annotations, and annotation files by their content."""

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from pcr_seg.data.files import IMAGE_SUFFIXES, DataError, plain
from pcr_seg.data.imports.shapes import Record
from pcr_seg.data.sources import find_images

SUBSETS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
ENDS = 1 << 16  # bytes that are read at both ends of a file to recognize its format


class Images:
    """All images in the folders of an export, to be found by the names that annotations use.

    Args:
        places: folders to search, with their sub-folders.
    """

    def __init__(self, places: Iterable[Path]) -> None:
        self.places = list(places)
        self.real = {os.path.realpath(file): Path(file) for place in self.places for file in find_images(place)[1]}
        self.files = list(self.real.values())
        self.named: dict[str, list[Path]] = defaultdict(list)
        for file in self.files:
            for key in {plain(file.name), plain(file.stem), loose(file.name)}:
                self.named[key].append(file)

    def find(
        self, *texts: str, near: Path | None = None, num_bytes: int | None = None, subset: str | None = None
    ) -> Path:
        """Return the image file that the first of these paths means for which there is one.

        A path may come from another computer, a URL or a server. The file that agrees with most of its last parts is
        taken. Among equals, it is the one of size `num_bytes`, in the folder `near`, or in a folder named as `subset`.

        Raises:
            LookupError: there is no such file, or several fit equally well.
        """
        for text in texts:
            parts = path_parts(text)
            if not parts:
                continue
            for beside in (near / text, near.joinpath(*parts)) if near else ():
                if beside.is_file() and beside.suffix.lower() in IMAGE_SUFFIXES:
                    return self.real.get(os.path.realpath(beside), Path(os.path.normpath(beside)))
            if found := self.candidates(parts[-1]):
                return self.best(found, parts, near, num_bytes, subset)
        raise LookupError("no image of this name in the export; images=FOLDER says where images lie")

    def candidates(self, name: str) -> list[Path]:
        """Return the files of this name; else of this name decoded from a URL, without an upload's hash or spelling."""
        unhashed = re.sub(r"^[0-9a-f]{8}-", "", unquote(name))
        for key in (plain(name), plain(unquote(name)), plain(unhashed), loose(unquote(name)), loose(unhashed)):
            if found := self.named.get(key):
                return found
        return []

    def best(
        self, found: list[Path], parts: list[str], near: Path | None, num_bytes: int | None, subset: str | None
    ) -> Path:
        """Return the best fitting one of some files, by the rules of `find`."""

        def rank(file: Path) -> tuple[int, bool, bool, bool]:
            wanted, there = [plain(part) for part in reversed(parts[:-1])], list(map(plain, reversed(file.parts[:-1])))
            same = next((i for i, pair in enumerate(zip(wanted, there, strict=False)) if pair[0] != pair[1]), None)
            agree = min(len(wanted), len(there)) if same is None else same
            within = near is not None and file.is_relative_to(near)
            same_subset = subset is not None and subset_of(self.relative(file).parts[:-1]) == subset
            return agree, num_bytes == file.stat().st_size, within, same_subset

        ranked = sorted(found, key=rank, reverse=True)
        if len(ranked) > 1 and rank(ranked[0]) == rank(ranked[1]):
            raise LookupError(f"{len(ranked)} images are called so, and nothing says which is meant")
        return ranked[0]

    def record(
        self,
        *texts: str,
        near: Path | None = None,
        num_bytes: int | None = None,
        embedded: bytes | None = None,
        **known: Any,
    ) -> Record:
        """Return a record of the image with one of these names (`find`), and with what else is known of it.

        If no file is found, `embedded`, the content of an image in the annotations, takes its place.
        """
        name = "/".join(path_parts(texts[0])) if texts else "an image without a name"
        try:
            file = self.find(*texts, near=near, num_bytes=num_bytes, subset=known.get("subset"))
        except LookupError as error:
            return Record(name or "an embedded image", embedded, problem="" if embedded else str(error), **known)
        known["subset"] = known.get("subset") or subset_of(self.relative(file).parts[:-1])
        return Record(self.relative(file).as_posix(), file, **known)

    def relative(self, file: Path) -> Path:
        """Return a file's path relative to the folder that it was found in."""
        above = [place for place in self.places if file.is_relative_to(place)]
        return file.relative_to(above[0]) if above else Path(file.name)


def loose(name: str) -> str:
    """Return a file's name as servers spell uploads: spaces become _, other special characters are removed."""
    return re.sub(r"[^\w.-]", "", plain(name).strip().replace(" ", "_"))


def path_parts(text: str) -> list[str]:
    """Return the parts of a path of any operating system, or of a URL; [] for an embedded image."""
    text = str(text)
    if text.startswith("data:"):
        return []
    if "?d=" in text:  # Label Studio's local files
        text = unquote(text.partition("?d=")[2])
    elif "://" in text:
        text = unquote(re.sub(r"[?#].*$", "", text.partition("://")[2]))
    elif text.startswith("/data/"):  # Label Studio's uploads
        text = unquote(text)
    return [part for part in re.split(r"[\\/]+", text.strip()) if part not in ("", ".")]


def subset_of(words: Iterable[str]) -> str | None:
    """Return the subset (train, val, test) after which one of some folders is named, the last one; or None."""
    found = [SUBSETS[name] for word in words if (name := re.sub(r"_?\d+$", "", word.lower())) in SUBSETS]
    return found[-1] if found else None


def subset_of_file(file: Path, place: Path) -> str | None:
    """Return the subset after which an annotation file, or a folder above it below `place`, is named; or None."""
    folders = file.relative_to(place).parts[:-1] if file.is_relative_to(place) else ()
    return subset_of(re.split(r"[\W_]+", re.sub(r"(?<=[a-z])\d+", "", file.stem.lower()))) or subset_of(folders)


def files_of(place: Path, suffix: str) -> list[Path]:
    """Return the files with this suffix in a folder and below it, sorted, without hidden ones; or the file `place`."""
    if place.is_file():
        return [place] if place.suffix.lower() == suffix else []
    return sorted(Path(file) for file in walk(place) if file.lower().endswith(suffix))


def walk(place: Path) -> Iterator[str]:
    """Yield the files in a folder and below it, without hidden ones and those that macOS adds to archives."""
    for top, folders, files in os.walk(place, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        yield from (os.path.join(top, name) for name in files if not name.startswith("."))


def ends(file: Path) -> str:
    """Return the text at both ends of a file, by which its format can be recognized."""
    with file.open("rb") as content:
        start = content.read(ENDS)
        content.seek(max(len(start), file.stat().st_size - ENDS))
        return (start + b"\n" + content.read()).replace(b"\0", b"").decode("utf-8", "replace").lstrip("\ufeff \r\n\t")


def read_json(file: Path) -> Any:
    """Return the content of a JSON file, which may have a byte-order mark.

    Raises:
        DataError: it is no JSON.
    """
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        reason = f"line {error.lineno}" if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise DataError(f"{file}: not readable as JSON ({reason}); export it again") from None
