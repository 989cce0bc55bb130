"""Which imported images train and which validate: as the tool divided them, else whole groups drawn with a seed.

Frames of one video, photos of one place or patient are alike: where some train and others validate, scores are too
high.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from pcr_seg.data.splits import cover_classes


def divide(
    subsets: Sequence[str | None], shown: Sequence[int], groups: Sequence[str], *, val: float, seed: int
) -> tuple[list[str], str]:
    """The part of each image, train, val or test, and where it comes from, in words.

    The tool's subsets count where some train and some validate; of training images alone a share is drawn for val, by
    whole groups. Each class stays in train if it can, then in val. What is test for the tool stays test.

    Args:
        subsets: of the tool, or None.
        shown: the classes on each, as bits.
        groups: to which each belongs.
        val: the share of the images that are drawn for val, in 0..1.
        seed: of the draw.
    """
    known = Counter(subsets)
    if known["train"] + known[None] and known["val"]:
        return [subset or "train" for subset in subsets], "as in the export"
    alone = known["train"] + known[None] == 0
    rest = [index for index, subset in enumerate(subsets) if alone or subset != "test"]
    drawn = draw({index: groups[index] for index in rest}, shown, val, seed)
    parts = [("val" if i in drawn else "train") if i in set(rest) else "test" for i in range(len(subsets))]
    return parts, f"{len(drawn)} of {len(rest)} drawn for val with seed {seed}"


def draw(groups: Mapping[int, str], shown: Sequence[int], val: float, seed: int) -> set[int]:
    """Indices of whole groups that make up this share of all, none where there is one group."""
    members: dict[str, list[int]] = defaultdict(list)
    for index, group in groups.items():
        members[group].append(index)
    if len(members) < 2 or not val:
        return set()
    names = sorted(members)
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    bits = {name: int(np.bitwise_or.reduce([shown[i] for i in members[name]], dtype=object)) for name in names}
    kept = {order[i] for i in cover_classes([bits[name] for name in order], len(order) - 1)}  # for train
    free = [name for name in order if name not in kept] or order[1:]
    first = [free[i] for i in cover_classes([bits[name] for name in free], len(free))]
    drawn: set[int] = set()
    for name in [*first, *(name for name in free if name not in first)]:
        if drawn and len(drawn) + len(members[name]) / 2 > val * len(groups):
            continue
        drawn |= set(members[name])
    return drawn
