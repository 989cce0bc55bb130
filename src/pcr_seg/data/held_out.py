"""Hold out a part of the masks to validate on, for data sets without val images.

Neighbours resemble each other (frames of a video, slices of a patient, tiles of a place), so they must not be both in
train and in val. Images whose names begin alike stay together, if there are enough such groups; else runs of neighbours
in the order of names do. The draw depends on the names, the classes that the masks show, and a seed alone.
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

FEW = 20  # with fewer masks a fifth is too few to score on, and too many to train without: use folds
NUM_FOLDS, FIFTH = 4, 5
DRAWS = 32  # random divisions of which the best is taken
MOST_READ = 500  # with more masks they are not read: any part of so many shows the same classes as the others
FEW_MASKS = "{}: has no val images, and {} in train with a mask, so nothing is left to score on; add masks"


def num_folds(folds: int | str, source: Source) -> int:
    """Return the number of folds for a data set without val images; 0: hold out a fifth of its masks instead.

    Args:
        folds: a number, or "auto": `NUM_FOLDS` if there are fewer than `FEW` masks, else 0.
        source: the data set.

    Raises:
        ValueError: `folds` is another word, 1 or negative, or there are too few masks.
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
    """Return the training images whose mask file exists; others may be absent if no list names them as labeled."""
    return tuple(sample for sample in source.train if sample.mask and os.path.isfile(sample.mask))


def hold_out(source: Source, val: Sequence[Sample], origin: str) -> Source:
    """Return the data set with these images moved from `train` to `val`."""
    names = {sample.name for sample in val}
    train = tuple(sample for sample in source.train if sample.name not in names)
    return replace(source, train=train, val=tuple(val), held_out=origin)


def hold_out_list(source: Source, path: Path) -> Source:
    """Return the data set with the images of a list moved from `train` to `val`.

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
    """Return the data set with a run's list of held-out images as `val`, if it has no val images but all of these."""
    if source.val or not path.is_file():
        return source
    names = {sample.name for sample in source.train}
    return hold_out_list(source, path) if names.issuperset(read_list(path, source.train)) else source


def deal(source: Source, number: int, seed: int, *, fewest: int, scored: int | None = None) -> tuple[list, str]:
    """Divide a data set's masks at random into parts of about the same size.

    Several divisions are drawn. The one is taken whose parts show most classes that the other parts show as well.

    Args:
        source: the data set.
        number: number of parts.
        seed: of the draws.
        fewest: with this number of groups in the names, or more, whole groups are dealt out, even if that makes fewer
            parts than `number`.
        scored: number of parts to return, those of the most even size; by default all.

    Returns:
        A tuple of samples for each part, and a description of what stays together.
    """
    samples = sorted(masked(source), key=lambda sample: natural(sample.name))
    known = len(samples) <= MOST_READ
    # Files that cannot be read count as showing nothing here; the check before the training names them.
    shown = classes_shown(samples, "Reading masks to hold some out", 1.0) if known else [0] * len(samples)
    share, num_classes = len(samples) / number, reduce(or_, shown).bit_count()
    for way in together([sample.name for sample in samples], number, fewest):
        groups, parts, how = way
        draws = [dealt(groups, parts, np.random.default_rng([seed, turn])) for turn in range(DRAWS if known else 1)]
        if scored:
            draws = [sorted(draw, key=lambda part: abs(len(part) - share))[:scored] for draw in draws]
        common = [classes_in_common(draw, shown) for draw in draws]
        best = draws[common.index(max(common))]
        if 2 * max(common) >= len(best) * num_classes:  # else groups are classes: cat_1, cat_2, dog_1 ...
            break
    return [tuple(samples[index] for index in part) for part in best], f"{how}, drawn with seed {seed}"


def natural(name: str) -> list[str | int]:
    """Return a sorting key by which frame2 comes before frame10."""
    return [int(word) if word.isdecimal() else word for word in re.split(r"(\d+)", name)]


def together(names: Sequence[str], number: int, fewest: int) -> Iterator[tuple[list[list[list[int]]], int, str]]:
    """Yield ways to keep neighbours together, the best first.

    First come groups by the first words of names, the fewest words first, if there are at least `fewest` groups and
    none is larger than two parts. The last way, which always exists, are runs of neighbours in the order of names, of
    which each part gets some from each group.

    Yields:
        Groups of bundles of indices, as `dealt` takes them; the number of parts; a description.
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
    """Deal bundles of indices into `number` parts: group by group, in random order, always to the smallest part."""
    parts: list[list[int]] = [[] for _ in range(number)]
    for bundles in groups:
        for bundle in generator.permutation(len(bundles)):
            min(parts, key=len).extend(bundles[bundle])
    return [sorted(part) for part in parts]


def classes_in_common(parts: list[list[int]], shown: Sequence[int]) -> int:
    """Count for each part the classes that it shows and the samples outside of it show as well; return the sum."""
    total = 0
    for part in parts:
        inside = set(part)
        own, others = (
            reduce(or_, (bits for i, bits in enumerate(shown) if (i in inside) == there), 0) for there in (True, False)
        )
        total += (own & others).bit_count()
    return total
