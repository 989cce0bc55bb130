"""Which imported images train and which validate: as the tool divided them, else whole groups drawn with a seed.

Frames of one video, photos of one place or patient are alike: where some train and others validate, scores are too
high.
"""

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from pcr_seg.data.imports.images import plain
from pcr_seg.data.sources import read_lines
from pcr_seg.data.splits import cover_classes

COLUMNS = (
    "group", "patient", "patient_id", "case", "case_id", "subject", "subject_id", "video", "video_id", "sequence",
    "seq_id", "location", "place", "site", "scene",
)  # fmt: skip
FEWEST = 4  # groups that names must make to be taken as such


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


def grouped(names: Sequence[str], columns: Sequence[Mapping[str, str]], group: str | None) -> tuple[list[str], str]:
    """The group of each image, and what makes it, in words.

    Args:
        names: of the images, with their folders.
        columns: what else the export says of each.
        group: a column; a regular expression with a part in brackets, which is looked for in the name; a CSV file of
            names and groups; "auto": the first that makes some groups of a known column, the folder, the name up to its
            last number; None: each image is one. Copies that Roboflow made of one image are always together.

    Raises:
        ValueError: no image has such a column, or fits the expression.
        FileNotFoundError: no such file.
    """
    single = [re.sub(r"\.rf\.\w+$", "", name) for name in names]
    if group is None:
        return single, "single images"
    if group != "auto":
        return chosen(names, single, columns, group)
    for column in COLUMNS:
        found = [next((text for key, text in some.items() if key.lower() == column), None) for some in columns]
        if all(found) and len(set(found)) > 1:
            return found, f"{column} ({len(set(found))} groups)"
    numbered = [re.match(r"(.+?)[-_. ]*\d+$", name) for name in single]
    guesses = {
        "folder": [name.rpartition("/")[0] for name in single],
        "name up to its last number": [m[1] if m else name for m, name in zip(numbered, single, strict=True)],
    }
    for what, found in guesses.items():
        sizes = Counter(found)
        if len(sizes) >= FEWEST and len(found) >= 2 * len(sizes) and 2 * max(sizes.values()) <= len(found):
            return found, f"{what} ({len(sizes)} groups)"
    return single, "single images"


def chosen(
    names: Sequence[str], single: Sequence[str], columns: Sequence[Mapping[str, str]], group: str
) -> tuple[list[str], str]:
    """The groups that a user asks for, see `grouped`."""
    look: Callable[[int], str | None]
    if group.endswith(".csv"):
        if not Path(group).is_file():
            raise FileNotFoundError(f"group={group}: no such file; give one with two columns, names and groups")
        rows = [row for row in csv.reader(read_lines(group)) if len(row) > 1]
        table = {plain(row[0].strip()): row[1].strip() for row in rows}
        table |= {key.rpartition(".")[0]: value for key, value in table.items() if "." in key}

        def look(i: int) -> str | None:
            return table.get(plain(names[i])) or table.get(plain(names[i].rpartition("/")[2]))
    elif "(" in group:
        try:
            pattern = re.compile(group)
        except re.error as error:
            raise ValueError(f"group={group}: is no regular expression ({error}); correct it") from None

        def look(i: int) -> str | None:
            match = pattern.search(names[i])
            return (match[1] if pattern.groups else match[0]) if match else None
    else:

        def look(i: int) -> str | None:
            return columns[i].get(group)

    found = [look(i) for i in range(len(names))]
    if not any(found):
        known = ", ".join(sorted({key for some in columns for key in some}))
        raise ValueError(
            f"group={group}: says nothing of any image, as {names[0]}; give a CSV file, an expression as '(.+)_', or"
            f" {f'a column ({known})' if known else 'null'}"
        )
    return [text or name for text, name in zip(found, single, strict=True)], f"{group} ({len(set(found))} groups)"
