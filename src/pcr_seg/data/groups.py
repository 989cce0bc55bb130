"""Find which images belong together: frames of one video, slices of a patient, photos of one place."""

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from pcr_seg.data.files import plain
from pcr_seg.data.sources import read_lines

COLUMNS = (
    "group", "patient", "patient_id", "case", "case_id", "subject", "subject_id", "video", "video_id", "sequence",
    "seq_id", "location", "place", "site", "scene",
)  # fmt: skip
FEWEST = 4  # with fewer groups the beginnings of names are not taken as groups
WORD_ENDS = re.compile(r"[/_\-. ]+|(?<=[^/_\-. \d])(?=\d+$)")  # separators, and the place before a number at the end


def levels(names: Sequence[str]) -> Iterator[list[str]]:
    """Yield ways to group names by their first words, coarse to fine: for each way the group of each name.

    The first way takes the fewest words; each further one makes more groups. The last word of a name never belongs to
    its group, so that img_1 and img_2 are in the group img.
    """
    ends = [[end.start() for end in WORD_ENDS.finditer(name)] or [0] for name in names]
    number = 1
    for level in range(max(map(len, ends), default=0)):
        found = [name[: stops[min(level, len(stops) - 1)]] for name, stops in zip(names, ends, strict=True)]
        if len(set(found)) > number:
            number = len(set(found))
            yield found


def members(groups: Sequence[str]) -> dict[str, list[int]]:
    """Return the indices of each group's members, in order."""
    found: dict[str, list[int]] = {}
    for place, group in enumerate(groups):
        found.setdefault(group, []).append(place)
    return found


def grouped(
    names: Sequence[str], group: str | None, columns: Sequence[Mapping[str, str]] = ()
) -> tuple[list[str], str]:
    """Return the group of each image, and a description of how they were found.

    Copies that Roboflow made of one image are always in one group.

    Args:
        names: names of the images, with their folders.
        group: how to find groups:
            a column's name;
            a regular expression with a part in brackets: that part of the name is the group;
            a CSV file of names and groups;
            "auto": the first of the columns in `COLUMNS` that makes several groups, else the first words of the names,
            as few as make at least `FEWEST` groups, with two images or more on average and no more than half in one;
            None: each image is a group.
        columns: further information on each image, by column.

    Raises:
        ValueError: no image has such a column, or no name fits the expression.
        FileNotFoundError: there is no such file.
    """
    columns = columns or [{}] * len(names)
    single = [re.sub(r"\.rf\.\w+$", "", name) for name in names]
    if group is None:
        return single, "single images"
    if group != "auto":
        return named(names, single, columns, group)
    for column in COLUMNS:
        found = [next((text for key, text in some.items() if key.lower() == column), None) for some in columns]
        if all(found) and len(set(found)) > 1:
            return found, f"{column} ({len(set(found))} groups)"
    for found in levels(single):
        sizes = Counter(found)
        if len(sizes) >= FEWEST and len(found) >= 2 * len(sizes) and 2 * max(sizes.values()) <= len(found):
            return found, f"how names begin, as {found[0]} ({len(sizes)} groups)"
    return single, "single images"


def named(
    names: Sequence[str], single: Sequence[str], columns: Sequence[Mapping[str, str]], group: str
) -> tuple[list[str], str]:
    """Return the groups that a user has asked for by column, expression or file, as `grouped` does."""
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
