"""Images to validate on where a data set has none of its own: parts of its masks that nothing trains on.

Neighbours are alike (frames of a video, slices of a patient, tiles of a place), so images whose names begin alike stay
together where there are enough such groups; else runs of neighbours by name do. The draw follows from the names, the
classes that the masks show, and a seed.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import reduce
from operator import or_
from pathlib import Path

import numpy as np

from pcr_seg.data.files import DataError, Sample
from pcr_seg.data.groups import levels, members
from pcr_seg.data.sources import Source, read_list
from pcr_seg.data.splits import classes_shown, origin_of

FEW = 20  # masks, below which a fifth of them is too few to score on, and too many to do without
NUM_FOLDS, FIFTH = 4, 5
DRAWS = 32
MOST_READ = 500  # masks; of more than these, any part shows what the others show
FEW_MASKS = "{}: has no val images, and {} in train with a mask, so nothing is left to score on; add masks"


def num_folds(folds: int | str, source: Source) -> int:
    """How many trainings score a data set without val images in turns; 0: a fifth of its masks is held out instead.

    Args:
        folds: "auto", which means NUM_FOLDS below FEW masks and 0 from there on, or a number.
        source: the data set.

    Raises:
        ValueError: another word or number, or too few masks.
    """
    masks = len(masked(source))
    if folds == "auto":
        folds = 0 if masks >= FEW else max(2, min(NUM_FOLDS, masks))
    if isinstance(folds, bool) or not isinstance(folds, int) or folds < 0 or folds == 1:
        raise ValueError(f"folds={folds}: choose auto, 0 or a number from 2 on")
    if masks < max(2, folds):
        raise DataError(FEW_MASKS.format(source.name, masks), "few masks")
    return folds


def masked(source: Source) -> tuple[Sample, ...]:
    """The training images whose masks are there: a list of labeled images may leave out others."""
    return tuple(sample for sample in source.train if sample.mask and os.path.isfile(sample.mask))


def hold_out(source: Source, val: Sequence[Sample], origin: str) -> Source:
    """The data set with these of its images as `val`, and without them in `train`."""
    names = {sample.name for sample in val}
    train = tuple(sample for sample in source.train if sample.name not in names)
    return replace(source, train=train, val=tuple(val), held_out=origin)


def hold_out_list(source: Source, path: Path) -> Source:
    """As `hold_out`, the images being those of a list of names.

    Raises:
        FileNotFoundError: there is no such list, or an image of it is not there.
    """
    known = {sample.name: sample for sample in (*source.val, *source.train)}
    names = read_list(path, known.values())
    if lost := [name for name in names if name not in known]:
        raise FileNotFoundError(
            f"{path}: {lost[0]} is to be validated on, but {source.name} has no such image with a mask ({len(lost)} of"
            f" {len(names)} are missing); put it back, or correct the list"
        )
    return hold_out(source, [known[name] for name in names], origin_of(path))


def hold_out_again(source: Source, path: Path) -> Source:
    """The data set with the images as `val` that a run held out, where the set has none and these are of it."""
    if source.val or not path.is_file():
        return source
    names = {sample.name for sample in source.train}
    return hold_out_list(source, path) if names.issuperset(read_list(path, source.train)) else source


def deal(source: Source, number: int, seed: int, *, fewest: int, scored: int | None = None) -> tuple[list, str]:
    """Deal a data set's masks into parts of about the same size: tuples of samples, and in words what stays together.

    Of some draws the one counts whose parts show most classes that other parts show as well.

    Args:
        source: the data set.
        number: of parts.
        seed: of the draws.
        fewest: as few parts will do where names show so many groups.
        scored: how many of the parts are validated on, which then come first; by default all.
    """
    samples = sorted(masked(source), key=lambda sample: natural(sample.name))
    known = len(samples) <= MOST_READ
    # Files that cannot be read are named by the check before the training, with what is wrong.
    shown = classes_shown(samples, "Reading masks to hold some out", 1.0) if known else [0] * len(samples)
    share, num_classes = len(samples) / number, reduce(or_, shown).bit_count()
    for way in together([sample.name for sample in samples], number, fewest):
        groups, parts, how = way
        draws = [dealt(groups, parts, np.random.default_rng([seed, turn])) for turn in range(DRAWS if known else 1)]
        if scored:
            draws = [sorted(draw, key=lambda part: abs(len(part) - share))[:scored] for draw in draws]
        common = [classes_in_common(draw, shown) for draw in draws]
        best = draws[common.index(max(common))]
        if 2 * max(common) >= len(best) * num_classes:  # else names begin with what they show: cat_1, cat_2, dog_1 ...
            break
    return [tuple(samples[index] for index in part) for part in best], f"{how}, drawn with seed {seed}"


def natural(name: str) -> list[str | int]:
    """A key that sorts frame2 before frame10."""
    return [int(word) if word.isdecimal() else word for word in re.split(r"(\d+)", name)]


def together(names: Sequence[str], number: int, fewest: int) -> Iterator[tuple[list[list[list[int]]], int, str]]:
    """Ways to keep neighbours together, the best first: what `dealt` takes, a number of parts, and the way in words.

    First groups by the words that names begin with, the fewest words first, if there are enough of them and none is
    larger than two parts. Last, and always, runs of neighbours in the order of names, some of each group to each part.
    """
    groups = {"": list(range(len(names)))}
    for found in levels(names):
        groups = members(found)
        parts, largest = min(number, len(groups)), max(groups, key=lambda key: len(groups[key]))
        if len(groups) >= fewest and len(groups[largest]) * parts <= 2 * len(names):
            how = f"whole groups by name (as {largest})" if len(groups) < len(names) else "image by image"
            yield [list(groups.values())], parts, how
    length = -(-len(names) // (2 * number))
    runs = []
    for group in groups.values():
        some = min(length, max(1, len(group) // number))
        runs.append([group[at : at + some] for at in range(0, len(group), some)])
    yield runs, number, "neighbours by name together" if length > 1 else "image by image"


def dealt(groups: list[list[list[int]]], number: int, generator: np.random.Generator) -> list[list[int]]:
    """Deal bundles of indices, group after group and in random order within each, to the part that has least so far."""
    parts: list[list[int]] = [[] for _ in range(number)]
    for bundles in groups:
        for bundle in generator.permutation(len(bundles)):
            min(parts, key=len).extend(bundles[bundle])
    return [sorted(part) for part in parts]


def classes_in_common(parts: list[list[int]], shown: Sequence[int]) -> int:
    """How many classes a part shows that the samples outside of it show as well, summed over parts."""
    total = 0
    for part in parts:
        inside = set(part)
        own, others = (
            reduce(or_, (bits for i, bits in enumerate(shown) if (i in inside) == there), 0) for there in (True, False)
        )
        total += (own & others).bit_count()
    return total
