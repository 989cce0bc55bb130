"""Write an export's images and masks as a data set for `sources.folder`: number classes, name and divide images."""

import csv
import re
import shutil
from collections.abc import Collection, Sequence
from itertools import takewhile
from pathlib import Path

import numpy as np
from PIL import Image

from pcr_seg.data.classes import distinct_colors
from pcr_seg.data.files import IGNORE_INDEX, IMAGE_SUFFIXES, plain
from pcr_seg.data.groups import grouped
from pcr_seg.data.imports.dividing import divide
from pcr_seg.data.imports.drawing import Item, Staged
from pcr_seg.data.imports.images import subset_of
from pcr_seg.data.imports.shapes import BACKGROUND
from pcr_seg.data.prepare import track
from pcr_seg.data.sources import class_table

# Folders that are left out of images' names, since they say nothing about them.
DULL = {"images", "image", "img", "imgs", "jpegimages", "default", "data", "upload", "datasets", "obj_train_data"}


def write(
    root: Path, staged: Staged, declared: Sequence[str], ignored: Collection[str], rest: str | int, own_split: bool,
    group: str | None, val: float, seed: int, links: bool,
) -> tuple[dict[str, int], list[str], str]:  # fmt: skip
    """Write the data set into `root`; return the number of images of each part, the classes, and how it was divided.

    `root` lies in a temporary folder, which also holds images that were embedded in the export. `declared` are the
    classes that the export lists, `ignored` those that are drawn as 255; the other arguments are those of
    `import_export`.
    """
    classes, table = final_classes(declared, staged, rest, ignored)
    items = [*staged.labeled, *staged.unlabeled]
    names, labeled = unique_names(items), staged.labeled
    records = [item.record for item in labeled]
    groups, what = grouped(names[: len(labeled)], group, [record.columns for record in records])
    subsets = [record.subset if own_split else None for record in records]
    parts, divided = divide(subsets, [item.shown for item in labeled], groups, val=val, seed=seed)
    divided = divided if divided.startswith("as") else f"{divided}, by {what}"
    parts += ["unlabeled"] * len(staged.unlabeled)
    for item, name, part in track(list(zip(items, names, parts, strict=True)), "Writing the data set"):
        place = root / "unlabeled" if part == "unlabeled" else root / "images" / part
        put(item.image, place / f"{name}{item.image.suffix}", links and root.parent not in item.image.parents)
        if item.mask:
            target = root / "labels" / part / f"{name}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(table[np.array(Image.open(item.mask))]).save(target)
    colors = distinct_colors(len(classes))
    if classes[0] in BACKGROUND:
        colors = [(0, 0, 0), *colors[:-1]]
    (root / "classes.txt").write_text(class_table(classes, colors), encoding="utf-8")
    groups += [""] * len(staged.unlabeled)
    rows = [(*row, item.record.name) for *row, item in zip(names, parts, groups, items, strict=True)]
    write_table(root / "images.csv", ("name", "part", "group", "file"), rows)
    return {part: parts.count(part) for part in ("train", "val", "test", "unlabeled")}, classes, divided


def final_classes(
    declared: Sequence[str], staged: Staged, rest: str | int, ignored: Collection[str]
) -> tuple[list[str], np.ndarray]:
    """Return the classes in the order of their ids, and a table (256,) uint8 from a drawn mask's values to ids.

    Classes that the export lists keep their order; others follow by name. A background is class 0, unless the export
    lists it elsewhere.

    Raises:
        ValueError: nothing but background is drawn, or there are too many classes.
    """
    clean = {name: " ".join(name.replace("#", "_").split()) for name in (*declared, *staged.numbers)}
    clean = {name: "background" if text in BACKGROUND else text for name, text in clean.items()}
    order = dict.fromkeys(clean[name] for name in declared if name not in ignored)
    order |= dict.fromkeys(sorted({clean[name] for name in staged.numbers} - order.keys(), key=plain))
    classes = list(order)
    needed = rest == "background" and staged.uncovered
    if "background" in classes and not any(clean[name] == "background" for name in declared):
        classes.remove("background")
        classes.insert(0, "background")
    ground = next((name for name in classes if name.lower() == "background"), None)
    if needed and ground is None:
        classes.insert(0, ground := "background")
    if not {clean[name] for name in staged.numbers} - {ground}:
        raise ValueError("no shape of a class could be drawn; left are images without any, or boxes without outlines")
    if len(classes) > IGNORE_INDEX:
        raise ValueError(f"{len(classes)} classes; {IGNORE_INDEX} are possible")
    table = np.full(256, IGNORE_INDEX, np.uint8)
    for name, value in staged.numbers.items():
        table[value] = classes.index(clean[name])
    if needed:
        table[0] = classes.index(ground)
    return classes, table


def unique_names(items: Sequence[Item]) -> list[str]:
    """Name the images' files: as in the export, without folders that all share or that are in `DULL`; each differs."""
    folders, stems = [], []
    for item in items:
        *above, last = item.record.name.split("/")
        folders.append([part for part in above if part.lower() not in DULL and not subset_of([part]) and part != ".."])
        stem, dot, suffix = last.rpartition(".")
        stems.append(stem if dot and f".{suffix}".lower() in IMAGE_SUFFIXES else last)
    shared = sum(1 for _ in takewhile(lambda parts: len(set(parts)) == 1, zip(*folders, strict=False)))
    names, used = [], set()
    for above, stem in zip(folders, stems, strict=True):
        parts = [re.sub(r"[\s:*?\"<>|]+", " ", part).strip().lstrip("#.") or "_" for part in (*above[shared:], stem)]
        name, number = "/".join(parts), 1
        while plain(name if number == 1 else f"{name}_{number}") in used:
            number += 1
        names.append(name if number == 1 else f"{name}_{number}")
        used.add(plain(names[-1]))
    return names


def put(image: Path, target: Path, links: bool) -> None:
    """Copy an image to `target`, or make a symbolic link to it there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if links:
        target.symlink_to(image.resolve())
    else:
        shutil.copyfile(image, target)


def write_table(file: Path, header: Sequence[str], rows: Sequence[tuple]) -> None:
    """Write a CSV file."""
    with file.open("w", newline="", encoding="utf-8") as content:
        table = csv.writer(content)
        table.writerow(header)
        table.writerows(rows)
