"""Divide imported images into train and val: as the tool has divided them, else by a seeded draw of whole groups.

Frames of one video, or photos of one place or patient, resemble each other. If some train and others validate, scores
are too high.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from pcr_seg.data.splits import cover_classes


def divide(
    subsets: Sequence[str | None], shown: Sequence[int], groups: Sequence[str], *, val: float, seed: int
) -> tuple[list[str], str]:
    """Decide for each image whether it is in train, val or test.

    If the tool's subsets have training and validation images, they are kept. Otherwise a share of the images is drawn
    for val, by whole groups, so that train shows every class if possible, and then val does. The tool's test images
    stay in test.

    Args:
        subsets: the tool's subset of each image, or None.
        shown: the classes on each image, as bits.
        groups: the group of each image.
        val: the share of the images to draw for val, in 0..1.
        seed: of the draw.

    Returns:
        The part of each image, and a description of how they were divided.
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
    """Draw the indices of whole groups that make up this share of all images; none if there is a single group."""
    members: dict[str, list[int]] = defaultdict(list)
    for index, group in groups.items():
        members[group].append(index)
    if len(members) < 2 or not val:
        return set()
    names = sorted(members)
    order = [names[i] for i in np.random.default_rng(seed).permutation(len(names))]
    bits = {name: int(np.bitwise_or.reduce([shown[i] for i in members[name]], dtype=object)) for name in names}
    kept = {order[i] for i in cover_classes([bits[name] for name in order], len(order) - 1)}  # stay in train
    free = [name for name in order if name not in kept] or order[1:]
    first = [free[i] for i in cover_classes([bits[name] for name in free], len(free))]
    drawn: set[int] = set()
    for name in [*first, *(name for name in free if name not in first)]:
        if drawn and len(drawn) + len(members[name]) / 2 > val * len(groups):
            continue
        drawn |= set(members[name])
    return drawn
