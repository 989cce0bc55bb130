"""Decide which training images are labeled, by lists or seeded draws, and check all files before a run."""

import hashlib
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich import get_console
from rich.progress import track

from pcr_seg.data.files import (
    DARK,
    IGNORE_INDEX,
    DataError,
    Sample,
    check_sizes,
    image_size,
    nearly_black,
    num_bytes,
    read_bytes,
    read_header,
    read_image,
    read_mask,
    read_pair,
)
from pcr_seg.data.pool import Pool
from pcr_seg.data.published import ROUNDED_DOWN, fetch
from pcr_seg.data.sources import Source, list_line, read_lines, read_list

# How many unlabeled images are checked before a training, at equal distances (`prepare.py check` reads all of them):
MOST_DARK = 50  # decoded, if the labeled ones are nearly black
MOST_OF_POOL = 100  # of a manifest, whose images were all read when it was written: headers
MOST_HEADERS = 5_000  # otherwise: headers
FAMILIES = ("u2pl", "cps", "unimatch_v2", "drawn")
ONE_CLASS = (
    "{}: no mask shows a second class, and 255 is ignored; write 0/255 masks as 0/1, or give the classes the colors"
    " 0 0 0 and 255 255 255 and train with dataset.masks=colors"
)
LONE_CLASS = (
    "{}: {} is its only class, so there is nothing to tell apart; give the background a class of its own in classes.txt"
    " (0 background 0 0 0, 1 {} 255 255 255), and train on 0/255 masks with dataset.masks=colors"
)
ONE_LABELED = "{}: the labeled masks show {} alone; label images that show other classes as well"
ALL_IGNORED = "{}: every pixel is 255, ignored, as in all masks beside it; correct them, or add masks that show classes"
NO_TRAINING_IMAGES = "no training images; put images and masks where it has those (images/train and labels/train)"
DARK_IMAGES = (
    "{}: 16 bits, and like all images of 16 bits it uses less than an eighth of their range, so they are read as nearly"
    " black; {}"
)
DARK_GREY = "train with dataset.max_value at what is white: 4095 for 12 bits, 1023 for 10, 65535 if they are meant so"
DARK_COLORS = "scale colors to 8 bits, or train with dataset.max_value=65535 if they are meant so"


@dataclass(frozen=True)
class Split:
    """Which images are labeled, and which are unlabeled."""

    labeled: tuple[Sample, ...]
    unlabeled: Sequence[Sample]  # without masks, even if these exist
    origin: str  # where the split comes from, in one line
    family: str = "drawn"  # "u2pl", "cps", "unimatch_v2" (published lists), "own" (the user's list) or "drawn"
    complete: bool = True  # False: the data set may have images that are in neither part


def num_labeled(labeled: str | int, num_train: int) -> int:
    """Return how many images a split labels: ceil(num_train / 8) for "1_8", all for "full", 92 for "92".

    Raises:
        ValueError: another spelling, or a count outside of 1..num_train.
    """
    fraction = re.fullmatch(r"(\d+)_([1-9]\d*)", str(labeled))
    if fraction:
        count = -(-int(fraction[1]) * num_train // int(fraction[2]))
        count = ROUNDED_DOWN.get(num_train, {}).get(count, count)
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
    """Choose the labeled images: by a file of names, a published list, or at random.

    If a published list cannot be downloaded, this is an error; only counts without a published list are drawn. A draw
    depends on (source, count, seed) alone, and shows every class of the training masks if so few images can. All other
    images are unlabeled, unless a list `unlabeled.txt` beside that of the labeled images names them.

    Args:
        source: the data set.
        labeled: a fraction ("1_8"), a count, "full", or the path of a text file of names; names that are held out to
            validate on do not count.
        family: "u2pl" (the paper's lists), "cps" (UniMatch's), "unimatch_v2" (ADE20K and COCO), or "drawn" (none).
        seed: of a draw.
        lists: folder of published lists, which are downloaded into it (`published.fetch`). It may also have the user's
            own, as `<labeled>/labeled.txt`.

    Raises:
        FileNotFoundError: the list, or a mask that the draw reads, is missing.
        ValueError: the count is impossible; a list does not fit the data set or cannot be downloaded.
    """
    if family not in FAMILIES:
        raise ValueError(f"split_family={family}: choose u2pl (the paper's), cps (UniMatch's), unimatch_v2 or drawn")
    if not source.train:
        raise ValueError(f"{source.name}: {NO_TRAINING_IMAGES}")
    if isinstance(source.unlabeled, Pool):
        split = make_split(replace(source, unlabeled=()), labeled, family=family, seed=seed, lists=lists)
        return replace(split, unlabeled=source.unlabeled.after(split.unlabeled))
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


def split_of_run(source: Source, folder: Path | str, family: str = "u2pl") -> Split:
    """Read the split of a run, in its order; images that the data set has got since are in neither part.

    Args:
        source: the data set.
        folder: the folder into which `write` has written `labeled.txt` and `unlabeled.txt`.
        family: the run's `split_family`, which is the split's if the run used a published list.

    Raises:
        FileNotFoundError: a list, or an image of a list, is missing.
        ValueError: a list has a name twice, or the manifest of unlabeled images is not the run's.
    """
    pool = _pool_of_run(source, folder)
    source = replace(source, unlabeled=()) if pool else source
    everything, parts = (*source.train, *source.unlabeled), []
    for part, samples in (("labeled", source.train), ("unlabeled", everything)):
        path = Path(folder, f"{part}.txt")
        names, known = read_list(path, everything), {sample.name for sample in samples}
        if lost := [name for name in names if name not in known]:
            extent = f"{len(lost)} such images" if len(lost) > 1 else "the only one"
            kind = "training image with a mask" if part == "labeled" else "training image"
            raise FileNotFoundError(
                f"{path}: {lost[0]} is {part} in this run, but no {kind} of {source.name} any more ({extent}); put it"
                " back, or start a new run"
            )
        parts.append(_find(names, samples, path))
    origin = origin_of(Path(folder, "labeled.txt"))
    kinds = {"published list ": family, "list ": "own"}
    used = next((name for start, name in kinds.items() if origin.startswith(start)), "drawn")
    unlabeled = _unmasked(parts[1])
    return Split(parts[0], pool.after(unlabeled) if pool else unlabeled, origin, used, complete=False)


def _pool_of_run(source: Source, folder: Path | str) -> Pool | None:
    """Return the manifest that the run's list of unlabeled images names, if it names one.

    Raises a ValueError if the data set has another one now, or none.
    """
    path = Path(folder, "unlabeled.txt")
    lines = read_lines(path) if path.is_file() else []
    said = next((line[2:] for line in lines if re.match(r"# and the .* sha256 \w{64}$", line)), None)
    pool = source.unlabeled if isinstance(source.unlabeled, Pool) else None
    if said and (pool is None or said[-64:] != pool.line()[-64:]):
        place = pool.file if pool else source.name
        raise ValueError(f"{place}: is not what the run has, {said}; put that back, or start a new run")
    return pool if said else None


def _unmasked(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    return tuple(sample if sample.mask is None else sample._replace(mask=None, label_map=None) for sample in samples)


def _from_list(source: Source, path: Path, origin: str, family: str, count: int | None = None) -> Split:
    everything = (*source.train, *source.unlabeled)
    held_out = {sample.name for sample in source.val} if source.held_out else set()

    def listed(path: Path) -> list[str]:
        return [name for name in read_list(path, (*everything, *source.val)) if name not in held_out]

    labeled = _find(listed(path), source.train, path)
    if count not in (None, len(labeled)):
        raise ValueError(f"{path}: {len(labeled)} names instead of {count}; correct it, or set split={path}")
    beside = path.with_name(path.name.replace("labeled", "unlabeled"))
    if beside != path and beside.is_file():
        return Split(labeled, _unmasked(_find(listed(beside), everything, beside)), origin, family)
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
    """Call a function on each sample in several threads; for many samples, with a progress bar. Keeps the order."""
    quiet = len(samples) <= 200 or not get_console().is_terminal  # the bar would write blank lines into a log
    size = max(1, min(256, len(samples) // 64))  # samples at a time: handing over one costs more than reading its file
    parts = [samples[start : start + size] for start in range(0, len(samples), size)]
    with ThreadPoolExecutor(8) as pool:
        results = pool.map(lambda part: [function(sample) for sample in part], parts)
        done = track(results, description, total=len(parts), transient=True, disable=quiet)
        return [result for part in done for result in part]


def tolerant(
    function: Callable[[Sample], Any], samples: Sequence[Sample], description: str, max_skipped: float
) -> list[Any]:
    """Call a function as `in_threads` does, but return None for files that cannot be read.

    Raises:
        DataError: more than the share `max_skipped` (0..1) of the files, or all, cannot be read. With a share of 0 the
            first error of `function` is raised.
    """

    def attempt(sample: Sample) -> Any:
        try:
            return function(sample)
        except (DataError, OSError) as error:
            if not max_skipped:
                raise
            return error

    found = in_threads(attempt, samples, description)
    refuse_many([result for result in found if isinstance(result, Exception)], len(samples), max_skipped)
    return [None if isinstance(result, Exception) else result for result in found]


def refuse_many(bad: Sequence[Exception], total: int, max_skipped: float) -> None:
    """Raise a DataError if more than the share `max_skipped` (0..1) of the files, or all, cannot be read."""
    if bad and (len(bad) > max_skipped * total or len(bad) == total):
        message = f"{bad[0]}; {len(bad)} of {total} files are bad, more than data.max_skipped={max_skipped} allows"
        raise DataError(message)


def classes_shown(samples: Sequence[Sample], description: str, max_skipped: float = 0.0) -> list[int]:
    """Return the classes in each sample's mask as an integer: bit c is set if class c occurs.

    Masks that cannot be read are 0, as far as `max_skipped` allows (`tolerant`).
    """
    shown = tolerant(lambda sample: _shown(read_mask(sample)), samples, description, max_skipped)
    return [bits or 0 for bits in shown]


def _shown(mask: np.ndarray) -> int:
    """Return the labels in a mask as an integer: bit c is set if label c (other than 255) occurs."""
    counts = np.bincount(mask.ravel(), minlength=256)[:IGNORE_INDEX]
    return sum(1 << value for value in np.flatnonzero(counts).tolist())


def _missing(classes: Sequence[str], shown: Sequence[int]) -> list[str]:
    return [name for bit, name in enumerate(classes) if not any(values >> bit & 1 for values in shown)]


def _draw(source: Source, train: list[Sample], count: int, seed: int) -> set[int]:
    """Draw the indices of `count` samples: a few that together show every class, then random ones."""
    shown = classes_shown(train, "Reading masks for the draw")
    order = np.random.default_rng(seed).permutation(len(train)).tolist()
    cover = [order[position] for position in cover_classes([shown[index] for index in order], count)]
    chosen = cover + [index for index in order if index not in cover][: count - len(cover)]
    nowhere = _missing(source.classes, shown)
    lost = [name for name in _missing(source.classes, [shown[i] for i in chosen]) if name not in nowhere]
    if lost:
        message = f"{source.name}: no label for {', '.join(lost)} in {count} images; ask for more labels"
        warnings.warn(message, stacklevel=3)
    return set(chosen)


def cover_classes(shown: list[int], count: int) -> list[int]:
    """Find at most `count` positions in `shown` (classes as bits) that together show every class, or most of them.

    This is a beam search. A state is a set of images; it is extended by each image that shows the rarest class that is
    still missing, since every cover has one of these. The 16 states with most classes are kept. Few images suffice, so
    most of a draw stays random.
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


def check(source: Source, split: Split, subset: str = "val", max_skipped: float = 0.0) -> None:
    """Check all images and masks that a run will use; return nothing if they are all right.

    Labeled, unlabeled and `subset` images have to be disjoint by content. Labeled and unlabeled ones together have to
    be all training images of `source`. `subset` must not be empty, unless it is val and comes from train. Masks need
    the size of their image and values in 0..C-1 or 255, and have to show something that can be learned and scored.
    Labeled images are decoded; of the others headers are read, and if they are very many, not of all.

    Args:
        source: the data set.
        split: the run's split.
        subset: the part that is scored, "val" or "test".
        max_skipped: share (0..1) of the labeled, and of the unlabeled, files that may be unreadable; training skips
            these.

    Raises:
        FileNotFoundError: an image or a mask is missing.
        ValueError: anything else is wrong.
    """
    if subset not in ("val", "test"):
        raise ValueError(f"subset {subset!r}: choose val or test")
    held_out = getattr(source, subset)
    if isinstance(split.unlabeled, Pool):
        pool, split = split.unlabeled, replace(split, unlabeled=split.unlabeled.before)
        check(replace(source, unlabeled=()), split, subset, max_skipped)
        some = pool[len(pool.before) :: max(1, len(pool) // MOST_OF_POOL)]
        tolerant(lambda s: image_size(s.image, s.format), some, "Checking unlabeled images", max_skipped)
        _check_overlap(pool.of_sizes(num_bytes(sample.image) for sample in held_out), held_out, subset)
        return
    for title, samples in (("labeled", split.labeled), (subset, held_out)):
        if not samples and not (title == "val" and source.held_out):
            raise ValueError(f"{source.name}: the list of {title} images is empty; add images with masks")
    if len(source.classes) == 1:
        raise DataError(LONE_CLASS.format(source.name, *2 * source.classes), "only class")
    _check_complete(source, split)
    found = tolerant(_look, split.labeled, "Checking labeled images", max_skipped)
    shown = [look.shown for look in found if look]
    shown_held_out = check_samples(held_out)
    some = split.unlabeled[:: max(1, len(split.unlabeled) // MOST_HEADERS)]
    sizes = tolerant(lambda s: image_size(s.image, s.format), some, "Checking unlabeled images", max_skipped)
    bad = {sample.image for sample, size in zip(some, sizes, strict=True) if size is None}
    bad |= {sample.image for sample, look in zip(split.labeled, found, strict=True) if look is None}
    there = [s for s in (*split.labeled, *split.unlabeled) if s.image not in bad]
    _check_overlap(there, held_out, subset)
    missing = _missing(source.classes, shown)
    if len(_missing(source.classes, shown + shown_held_out)) >= len(source.classes) - 1:
        raise DataError(ONE_CLASS.format(source.name), "one class")
    if len(missing) == len(source.classes):
        raise DataError(ALL_IGNORED.format(split.labeled[0].mask), "nothing labeled")
    if len(missing) == len(source.classes) - 1:
        [alone] = set(source.classes) - set(missing)
        raise DataError(ONE_LABELED.format(source.name, alone), "one class labeled")
    _check_dark([(sample, look.brightest) for sample, look in zip(split.labeled, found, strict=True) if look], some)


class Look(NamedTuple):
    """What a labeled sample shows."""

    shown: int  # classes as bits
    brightest: int  # largest value of the image, 0..255


def _look(sample: Sample) -> Look:
    image, mask = read_pair(sample)
    return Look(_shown(mask), int(image.max()))


def _check_dark(labeled: Sequence[tuple[Sample, int]], unlabeled: Sequence[Sample]) -> None:
    """Refuse 16-bit images that are all read as nearly black, unless `dataset.max_value` shows that this is meant."""

    def bright(sample: Sample) -> bool:
        return read_header(sample.image).deep and int(read_image(sample.image, sample.format).max()) >= DARK

    dark = [sample for sample, brightest in labeled if nearly_black(sample.image, brightest, sample.format)]
    if not dark or any(brightest >= DARK and read_header(sample.image).deep for sample, brightest in labeled):
        return
    step = max(1, len(unlabeled) // MOST_DARK)
    if not any(tolerant(bright, unlabeled[::step], "Checking 16-bit images", 1.0) if unlabeled else ()):
        raise DataError(dark_images(dark[0]), "dark")


def dark_images(sample: Sample) -> str:
    """Return the error message for a data set whose 16-bit images, such as this one, are all read as nearly black."""
    colors = read_header(sample.image).mode[0] not in "IF"
    return DARK_IMAGES.format(sample.image, DARK_COLORS if colors else DARK_GREY)


def check_samples(samples: Sequence[Sample]) -> list[int]:
    """Check images (headers only) and masks as `check` does; return the classes in each mask as bits.

    Raises:
        DataError: an image or mask is wrong, or every pixel of every mask is ignored, so that nothing can be scored.
    """
    shown = in_threads(_check_mask, samples, "Checking masks")
    if samples and not any(shown):
        raise DataError(ALL_IGNORED.format(samples[0].mask), "nothing to score")
    return shown


def _check_mask(sample: Sample) -> int:
    mask = read_mask(sample)
    check_sizes(sample, image_size(sample.image, sample.format), mask.shape)
    return _shown(mask)


def _check_complete(source: Source, split: Split) -> None:
    known = {sample.name for sample in (*source.train, *source.unlabeled)}
    used = Counter(sample.name for sample in (*split.labeled, *split.unlabeled))
    if twice := [name for name, times in used.items() if times > 1]:
        raise ValueError(f"{twice[0]}: twice in the split ({split.origin}); keep it labeled or unlabeled")
    if odd := sorted(known ^ set(used) if split.complete else set(used) - known):
        where = "in no part of the split" if odd[0] in known else f"not a training image of {source.name}"
        extent = f"{len(odd)} such images" if len(odd) > 1 else "the only one"
        raise ValueError(f"{odd[0]}: {where} ({split.origin}; {extent}); correct labeled.txt and unlabeled.txt")


def _check_overlap(train: Sequence[Sample], held_out: Sequence[Sample], subset: str) -> None:
    def size(sample: Sample) -> int:
        return num_bytes(sample.image)

    def digest(sample: Sample) -> bytes:
        return hashlib.sha256(read_bytes(sample.image)).digest()

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
    """Write `labeled.txt` and `unlabeled.txt` into a folder: a comment with the origin, then a name on each line.

    Images of a manifest are not listed: one line names the manifest.
    """
    pool = split.unlabeled if isinstance(split.unlabeled, Pool) else None
    write_list(Path(folder, "labeled.txt"), split.origin, split.labeled)
    write_list(Path(folder, "unlabeled.txt"), split.origin, pool.before if pool else split.unlabeled)
    if pool:
        with Path(folder, "unlabeled.txt").open("a", encoding="utf-8") as file:
            file.write(f"# {pool.line()}\n")


def write_list(path: Path, origin: str, samples: Sequence[Sample]) -> None:
    """Write a list: a comment with the origin, then a name on each line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([f"# {origin}", *map(list_line, samples)]) + "\n", encoding="utf-8")


def origin_of(path: Path) -> str:
    """Return where the names of a list come from: its first line, if that is a comment, else the file itself."""
    first = next(iter(read_lines(path)), "")
    return first.removeprefix("#").strip() if first.startswith("#") else f"list {path}"
