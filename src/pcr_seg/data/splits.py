"""Which training images are labeled: published lists, seeded draws, and the check before a run."""

import hashlib
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich import get_console
from rich.progress import track

from pcr_seg.data.files import IGNORE_INDEX, DataError, Sample, check_sizes, image_size, read_mask, read_pair
from pcr_seg.data.published import fetch
from pcr_seg.data.sources import Source, read_list

MOST_HEADERS = 5_000  # of unlabeled images are looked into before a training; `prepare.py check` reads all of them
FAMILIES = ("u2pl", "cps", "drawn")
ONE_CLASS = (
    "{}: no mask shows a second class, and 255 is ignored; write 0/255 masks as 0/1, or give the classes the colors"
    " 0 0 0 and 255 255 255 and set dataset.masks=colors"
)


@dataclass(frozen=True)
class Split:
    """Labeled samples, unlabeled samples (mask None, always), and where they come from in one line.

    `family` names what results may be compared with: "u2pl" or "cps" (published lists), "own" (a list of the
    user's), or "drawn".
    """

    labeled: tuple[Sample, ...]
    unlabeled: tuple[Sample, ...]
    origin: str
    family: str = "drawn"


def num_labeled(labeled: str | int, num_train: int) -> int:
    """Return the count: "1_8" -> ceil(num_train / 8), as published splits do; "full" -> all; "92" -> 92.

    Raises:
        ValueError: another spelling, or a count outside 1..num_train.
    """
    fraction = re.fullmatch(r"(\d+)_([1-9]\d*)", str(labeled))
    if fraction:
        count = -(-int(fraction[1]) * num_train // int(fraction[2]))
    elif re.fullmatch(r"full|-?\d+", str(labeled)):
        count = num_train if labeled == "full" else int(labeled)
    else:
        raise ValueError(f"split {labeled!r}: write a fraction (1_8), a count (92), full, or LIST.txt")
    if not 1 <= count <= num_train:
        raise ValueError(f"split {labeled!r}: {count} of {num_train} images; ask for 1 to {num_train}")
    return count


def make_split(
    source: Source, labeled: str | Path | int, *, family: str = "u2pl", seed: int = 0, lists: Path | None = None
) -> Split:
    """Choose the labeled images: LIST.txt, a published list, `lists/<labeled>/labeled.txt`, all, or a draw.

    A published list that cannot be had is never replaced by a draw; counts that were not published are drawn.
    The draw depends on (source, count, seed) alone and shows every class of the training masks if so few
    images can. All others are unlabeled, unless `unlabeled.txt` beside the list says which.

    Args:
        source: the data set.
        labeled: a fraction ("1_8"), a count, "full", or a file of names.
        family: "u2pl" (the paper's lists), "cps" (UniMatch's), or "drawn".
        seed: of a draw.
        lists: folder of published lists, which are downloaded into it (`published.fetch`), and of own ones.

    Raises:
        FileNotFoundError: the list, or a mask that the draw reads, is missing.
        ValueError: an impossible count, a list that does not fit the data set or cannot be had.
    """
    if family not in FAMILIES:
        raise ValueError(f"split_family={family}: choose u2pl (the paper's), cps (UniMatch's) or drawn")
    if not source.train:
        raise ValueError(f"{source.name}: no training images; correct dataset.root")
    if str(labeled).endswith(".txt"):
        return _from_list(source, Path(labeled), f"list {labeled}", "own")
    count = num_labeled(labeled, len(source.train))
    if family != "drawn":
        if path := fetch(source.name, family, count, lists):
            return _from_list(source, path, f"published list {path}", family, count)
        if lists and (path := Path(lists) / str(labeled) / "labeled.txt").is_file():
            return _from_list(source, path, f"list {path}", "own", count)
    train = sorted(source.train, key=lambda sample: sample.name)
    if count == len(train):
        return Split(tuple(train), source.unlabeled, f"all {count} training images")
    chosen = _draw(source, train, count, seed)
    rest = [sample for index, sample in enumerate(train) if index not in chosen]
    drawn = tuple(train[index] for index in sorted(chosen))
    return Split(drawn, _unmasked([*rest, *source.unlabeled]), f"drawn with seed {seed}")


def _unmasked(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    return tuple(sample if sample.mask is None else sample._replace(mask=None, label_map=None) for sample in samples)


def _from_list(source: Source, path: Path, origin: str, family: str, count: int | None = None) -> Split:
    labeled = _find(read_list(path), source.train, path)
    if count not in (None, len(labeled)):
        raise ValueError(f"{path}: {len(labeled)} names instead of {count}; correct it, or set split={path}")
    everything = (*source.train, *source.unlabeled)
    beside = path.with_name(path.name.replace("labeled", "unlabeled"))
    if beside != path and beside.is_file():
        return Split(labeled, _unmasked(_find(read_list(beside), everything, beside)), origin, family)
    names = {sample.name for sample in labeled}
    return Split(labeled, _unmasked([sample for sample in everything if sample.name not in names]), origin, family)


def _find(names: list[str], samples: Sequence[Sample], path: Path) -> tuple[Sample, ...]:
    known = {sample.name: sample for sample in samples}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"{path}: {len(unknown)} of {len(names)} names are not images for training, first {unknown[0]}"
            f" (the data set has names like {samples[0].name}); correct the list or complete the data set"
        )
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise ValueError(f"{path}: {twice[0]} stands there more than once; keep one")
    return tuple(known[name] for name in names)


def in_threads(function: Callable[[Sample], Any], samples: Sequence[Sample], description: str) -> list[Any]:
    """Call a function on each sample, several at a time, with a progress bar where there are many."""
    quiet = len(samples) <= 200 or not get_console().is_terminal  # a log would get blank lines from it
    with ThreadPoolExecutor(8) as pool:
        results = pool.map(function, samples)
        return list(track(results, description, total=len(samples), transient=True, disable=quiet))


def classes_shown(samples: Sequence[Sample], description: str) -> list[int]:
    """The classes in each sample's mask, as the bits of an integer."""
    return in_threads(lambda sample: _shown(read_mask(sample)), samples, description)


def _shown(mask: np.ndarray) -> int:
    """The values in a mask, 255 apart, as the bits of an integer."""
    counts = np.bincount(mask.ravel(), minlength=256)[:IGNORE_INDEX]
    return sum(1 << value for value in np.flatnonzero(counts).tolist())


def _missing(classes: Sequence[str], shown: Sequence[int]) -> list[str]:
    return [name for bit, name in enumerate(classes) if not any(values >> bit & 1 for values in shown)]


def _draw(source: Source, train: list[Sample], count: int, seed: int) -> set[int]:
    """Indices of `count` samples: a few that show every class, then random ones."""
    shown = classes_shown(train, "Reading masks for the draw")
    order = np.random.default_rng(seed).permutation(len(train)).tolist()
    cover = [order[position] for position in _cover([shown[index] for index in order], count)]
    chosen = cover + [index for index in order if index not in cover][: count - len(cover)]
    nowhere = _missing(source.classes, shown)
    lost = [name for name in _missing(source.classes, [shown[i] for i in chosen]) if name not in nowhere]
    if lost:
        message = f"{source.name}: no label for {', '.join(lost)} in {count} images; ask for more labels"
        warnings.warn(message, stacklevel=3)
    return set(chosen)


def _cover(shown: list[int], count: int) -> list[int]:
    """Positions of at most `count` entries that together show every class, if such are found.

    Beam search: a state is extended by each image of its rarest missing class (every cover holds one), and
    the 16 states with most classes go on. So few images are forced that most of the draw stays random.
    """
    first = {values: position for position, values in reversed(list(enumerate(shown)))}
    times = Counter(bit for values in shown for bit in range(values.bit_length()) if values >> bit & 1)
    rarest = sorted(times, key=lambda bit: (times[bit], bit))
    states: dict[int, list[int]] = {0: []}
    for _ in range(count):
        extended: dict[int, list[int]] = {}
        for covered, positions in states.items():
            target = next((bit for bit in rarest if not covered >> bit & 1), None)
            if target is None:
                return positions
            for values, position in first.items():
                if values >> target & 1:
                    extended.setdefault(covered | values, [*positions, position])
        states = dict(sorted(extended.items(), key=lambda item: -item[0].bit_count())[:16])
    return next(iter(states.values()))


def check(source: Source, split: Split, subset: str = "val") -> None:
    """Look into everything a run is about to use; silent when all is well.

    Labeled, unlabeled and `subset` images must be disjoint (by content, whatever their names), the first two
    together all of `source`. Masks must have their image's size and values in 0..C-1 or 255. Labeled images
    are decoded, of the others the headers are read; of very many unlabeled images some, spread evenly.

    Raises:
        FileNotFoundError: an image or a mask is missing.
        ValueError: anything else. Both are one line with the file and the remedy.
    """
    if subset not in ("val", "test"):
        raise ValueError(f"subset {subset!r}: choose val or test")
    held_out = getattr(source, subset)
    for title, samples in (("labeled", split.labeled), (subset, held_out)):
        if not samples:
            raise ValueError(f"{source.name}: the list of {title} images is empty; add images with masks")
    _check_complete(source, split)
    shown = in_threads(lambda sample: _shown(read_pair(sample)[1]), split.labeled, "Checking labeled images")
    shown += check_samples(held_out)
    some = split.unlabeled[:: max(1, len(split.unlabeled) // MOST_HEADERS)]
    in_threads(lambda sample: image_size(sample.image, sample.format), some, "Checking unlabeled images")
    _check_overlap([*split.labeled, *split.unlabeled], held_out, subset)
    if len(_missing(source.classes, shown)) >= max(1, len(source.classes) - 1):
        raise DataError(ONE_CLASS.format(source.name), "one class")


def check_samples(samples: Sequence[Sample]) -> list[int]:
    """Check images (header only) with their masks as `check` does; returns the classes in each as bits."""
    return in_threads(_check_mask, samples, "Checking masks")


def _check_mask(sample: Sample) -> int:
    mask = read_mask(sample)
    check_sizes(sample, image_size(sample.image, sample.format), mask.shape)
    return _shown(mask)


def _check_complete(source: Source, split: Split) -> None:
    known = {sample.name for sample in (*source.train, *source.unlabeled)}
    used = Counter(sample.name for sample in (*split.labeled, *split.unlabeled))
    if twice := [name for name, times in used.items() if times > 1]:
        raise ValueError(f"{twice[0]}: twice in the split ({split.origin}); keep it labeled or unlabeled")
    if odd := sorted(known ^ set(used)):
        where = "in no part of the split" if odd[0] in known else f"not a training image of {source.name}"
        extent = f"{len(odd)} such images" if len(odd) > 1 else "the only one"
        raise ValueError(f"{odd[0]}: {where} ({split.origin}; {extent}); correct labeled.txt and unlabeled.txt")


def _check_overlap(train: Sequence[Sample], held_out: Sequence[Sample], subset: str) -> None:
    def size(sample: Sample) -> int:
        return os.stat(sample.image).st_size

    def digest(sample: Sample) -> bytes:
        return hashlib.sha256(Path(sample.image).read_bytes()).digest()

    for key in (size, digest):  # equal files have equal sizes, so few have to be read
        left, right = (in_threads(key, samples, "Comparing files") for samples in (train, held_out))
        shared = set(left) & set(right)
        train = [sample for sample, value in zip(train, left, strict=True) if value in shared]
        held_out = [sample for sample, value in zip(held_out, right, strict=True) if value in shared]
    if train:
        twin = next(sample for sample in held_out if digest(sample) == digest(train[0]))
        message = f"{twin.image}: {subset} image, but a copy of {train[0].image}; remove one of them"
        raise DataError(message, "copy in val")


def write(split: Split, folder: Path) -> None:
    """Write `labeled.txt` and `unlabeled.txt`: a comment line with the origin, then one name per line."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, samples in (("labeled", split.labeled), ("unlabeled", split.unlabeled)):
        lines = [f"# {split.origin}", *(sample.name for sample in samples)]
        Path(folder, f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
