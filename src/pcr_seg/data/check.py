"""Examine a data set file by file: what training would refuse, what would harm it, and statistics.

Training itself checks names, headers and the masks that it uses (`splits.check`). Here every file is decoded, including
those that only a later epoch would read. A finding is an error (training fails, or its score means nothing), a warning,
or a note (training copes with it, but it is good to know). docs/data.md lists them all.
"""

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pcr_seg.data.files import (
    DARK,
    IGNORE_INDEX,
    IMAGE_SUFFIXES,
    DataError,
    Sample,
    check_sizes,
    read_header,
    read_image,
    read_mask,
)
from pcr_seg.data.held_out import FEW, FEW_MASKS, NUM_FOLDS
from pcr_seg.data.objects import LOSS, STRIDES, Objects, measure
from pcr_seg.data.sources import PARTS, Source, find_images
from pcr_seg.data.splits import (
    ALL_IGNORED,
    LONE_CLASS,
    NO_TRAINING_IMAGES,
    ONE_CLASS,
    ONE_LABELED,
    dark_images,
    in_threads,
)

LEVELS = {"error": "red", "warning": "yellow", "note": "cyan"}
SUFFIXES = {"JPEG": ".jpg .jpeg", "PNG": ".png", "BMP": ".bmp", "TIFF": ".tif .tiff", "WEBP": ".webp"}
RARE = 0.005  # share of pixels below which a class is called rare


class Finding(NamedTuple):
    """Something to know about a file."""

    level: str  # a key of LEVELS
    kind: str  # its row in docs/data.md
    file: str
    what: str
    remedy: str


class Picture(NamedTuple):
    """What was found out about one sample."""

    sample: Sample
    size: tuple[int, int] | None  # (height, width); None if the image cannot be read
    coding: str  # the image's format and mode, as "PNG RGB"
    mask_coding: str
    counts: np.ndarray | None  # (256,) pixels of each label; None if there is no readable mask
    digest: bytes | None  # of the image's pixels; None if it cannot be read
    brightest: int  # largest value of the image, 0..255
    findings: list[Finding]


def check(source: Source) -> dict[str, Any]:
    """Examine every file of a data set; return the report in plain values, as the JSON file has it."""
    parts = {
        part: in_threads(examine, getattr(source, part), f"Examining {part}") for part in PARTS if getattr(source, part)
    }
    findings = [finding for pictures in parts.values() for picture in pictures for finding in picture.findings]
    described = {part: describe(source, pictures) for part, pictures in parts.items()}
    height, width = described.get("train", {}).get("size_median") or (1, 1)
    objects = measure(source, height * width)
    findings += [*copies(parts), *nothing_to_learn(source, parts), *strangers(source), *unused_range(parts)]
    findings += [*no_val(source, parts), *lost_by_strides(source, objects or [])]
    findings.sort(key=lambda finding: (list(LEVELS).index(finding.level), finding.kind, finding.file))
    return {
        "dataset": source.name,
        "classes": list(source.classes),
        "parts": described,
        "objects": [one._asdict() for one in objects or []],
        "findings": [finding._asdict() for finding in findings],
    }


def examine(sample: Sample) -> Picture:
    """Decode one image and its mask."""
    findings: list[Finding] = []
    size = counts = digest = None
    coding, mask_coding, brightest = "", "", 0
    try:
        header = read_header(sample.image)
        coding = f"{header.format} {header.mode}{' 16 bits' if header.deep else ''}"
        image = read_image(sample.image, sample.format)
        size, brightest = image.shape[:2], int(image.max())
        digest = hashlib.blake2b(image.tobytes() + bytes(str(image.shape), "ascii")).digest()
        findings += odd_image(sample, header, size)
    except (DataError, FileNotFoundError) as error:
        findings.append(refused(error, sample.image, "missing image"))
    try:
        if sample.mask is not None:
            mask = read_mask(sample)
            header = read_header(sample.mask)
            mask_coding = f"{header.format} {header.mode}"
            counts = np.bincount(mask.ravel(), minlength=256)
            if not counts[:IGNORE_INDEX].any():
                what, remedy = "every pixel is 255, ignored", "remove image and mask, or use the image as unlabeled"
                findings.append(Finding("warning", "all ignored", sample.mask, what, remedy))
            if size:
                check_sizes(sample, size, mask.shape)
    except (DataError, FileNotFoundError) as error:
        findings.append(refused(error, sample.mask, "missing mask"))
    return Picture(sample, size, coding, mask_coding, counts, digest, brightest, findings)


def refused(error: Exception, file: str, kind: str) -> Finding:
    """Turn an error that training would raise for a file into a finding, of this kind if the file is not there."""
    return finding("error", getattr(error, "kind", kind), file, str(error))


def finding(level: str, kind: str, file: str, message: str) -> Finding:
    """Turn a message "FILE: what; remedy" into a finding."""
    what, _, remedy = message.removeprefix(f"{file}: ").rpartition("; ")
    return Finding(level, kind, file, what, remedy)


def odd_image(sample: Sample, header: Any, size: tuple[int, int]) -> Iterator[Finding]:
    """Find properties of an image file that make it read otherwise than it may be meant."""
    file, channels = sample.image, sample.format.channels
    if Path(sample.image).suffix.lower() not in SUFFIXES[header.format].split():
        yield Finding("note", "suffix", file, f"is a {header.format} file by its content", "rename it")
    if header.frames > 1:
        remedy = "save the images you mean one by one"
        yield Finding("warning", "frames", file, f"has {header.frames} frames, and the first is used", remedy)
    if header.deep and header.mode[0] in "IF":
        white = sample.format.max_value or 65_535
        remedy = "set dataset.max_value to the value that is white, if it is another"
        yield Finding("note", "16 bits", file, f"is scaled from 0..{white} to 8 bits", remedy)
    elif header.deep:
        what = f"is {header.mode} with 16 bits, and the upper 8 are read"
        remedy = "scale it to 8 bits yourself if it is dark, as dataset.max_value is for one channel"
        yield Finding("note", "16 bits in color", file, what, remedy)
    elif channels == 3 and header.mode != "RGB":
        remedy = "nothing to do, but dataset.channels=4 would keep four, and 1 take grey alone"
        yield Finding("note", "converted", file, f"has mode {header.mode} and is read as RGB", remedy)
    # Of other images that are turned by a quarter the sizes tell whether the mask is as well.
    undecided = header.orientation in (2, 3, 4) or (header.orientation > 4 and size[0] == size[1])
    if sample.mask is not None and undecided:
        remedy = "see in a viewer that the mask is turned as well, or remove the tag"
        yield Finding("warning", "turned", file, f"is turned by its EXIF tag ({header.orientation})", remedy)


def copies(parts: dict[str, list[Picture]]) -> Iterator[Finding]:
    """Find images with equal pixels, whatever their file names and formats."""
    seen: dict[bytes, tuple[str, str]] = {}
    for part, pictures in parts.items():
        for picture in pictures:
            file = picture.sample.image
            first_part, first = seen.setdefault(picture.digest or file.encode(), (part, file))
            if first is file:
                continue
            leak = first_part in ("train", "unlabeled") and part in ("val", "test")
            level, kind = ("error", "copy in val") if leak else ("warning", "copy")
            yield Finding(level, kind, file, f"{part} image, but a copy of {first}", "remove one of them")


def nothing_to_learn(source: Source, parts: dict[str, list[Picture]]) -> Iterator[Finding]:
    """Find reasons why nothing can be learned or scored: no images, or classes that no mask, or hardly any, shows."""
    name, num_classes = source.name, len(source.classes)
    if not source.train:
        yield finding("error", "no training images", name, f"{name}: {NO_TRAINING_IMAGES}")
    if num_classes == 1:
        yield finding("error", "only class", name, LONE_CLASS.format(name, *2 * source.classes))
        return
    totals = {part: total(pictures) for part, pictures in parts.items() if part != "unlabeled"}
    shown = {part: np.flatnonzero(counts).tolist() for part, counts in totals.items()}
    if len(set().union(*shown.values())) < 2:
        yield finding("error", "one class", name, ONE_CLASS.format(name))
        return
    for part, counts in totals.items():
        kinds = [picture for picture in parts[part] if picture.counts is not None]
        if not shown[part] and kinds:
            file = kinds[0].sample.mask
            kind = "nothing labeled" if part == "train" else "nothing to score"
            yield finding("error", kind, file, ALL_IGNORED.format(file))
            continue
        if part == "train" and len(shown[part]) == 1:
            message = ONE_LABELED.format(name, source.classes[shown[part][0]])
            yield finding("error", "one class labeled", name, message)
        yield from classes_missing(source, part, counts)


def classes_missing(source: Source, part: str, counts: np.ndarray) -> Iterator[Finding]:
    """Find classes that the masks of a part never show, or that have few pixels in train."""
    for label, name in enumerate(source.classes):
        share = counts[label] / max(counts.sum(), 1)
        if share == 0:
            what = f"class {label} ({name}) is on no {part} mask"
            remedy = "add images that show it" if part == "train" else "move some there, or its IoU is left out"
            yield Finding("warning", "class missing", f"{part} masks", what, remedy)
        elif share < RARE and part == "train":
            what, remedy = f"class {label} ({name}) has {share:.2%} of the pixels", "see docs/data.md, rare classes"
            yield Finding("note", "rare class", f"{part} masks", what, remedy)


def no_val(source: Source, parts: dict[str, list[Picture]]) -> Iterator[Finding]:
    """Find out how a data set without val images would be scored."""
    if source.val or not source.train:
        return
    masks = sum(picture.counts is not None for picture in parts["train"])
    if masks < 2:
        yield finding("error", "few masks", source.name, FEW_MASKS.format(source.name, masks))
        return
    way = f"{NUM_FOLDS} folds score it" if masks < FEW else "a training holds a fifth of the masks out"
    remedy = "nothing to do, but images that are unlike those of train, in images/val, would score it better"
    yield Finding("note", "no val", source.name, f"has no val images, so {way}", remedy)


def lost_by_strides(source: Source, objects: Sequence[Objects]) -> Iterator[Finding]:
    """Find classes whose objects are too thin or small for the grid that a network predicts on."""
    for name, one in zip(source.classes, objects, strict=False):
        if any(kept is not None and kept < LOSS for kept in one.kept.values()):
            kept = ", ".join(f"{kept:.0%} at stride {stride}" for stride, kept in one.kept.items())
            what = f"class {name} ({one.thickness:g} pixels thick): of its IoU a perfect mask keeps {kept}"
            remedy = "see docs/data.md, small and thin objects"
            yield Finding("note", "thin objects", "train masks", what, remedy)


def strangers(source: Source) -> Iterator[Finding]:
    """Find files in a `folder` data set that nothing reads."""
    for part in ("train", "val", "test"):
        for sample in getattr(source, part)[:1]:
            folder = Path(os.path.splitext(sample.image)[0].removesuffix(sample.name))
            root, masks = folder.parents[1], folder.parents[1] / "labels" / part
            if folder.name != part or folder.parent.name != "images" or not masks.is_dir():
                continue
            yield from no_images(folder)
            used = {sample.mask for sample in getattr(source, part)}
            for file in find_images(masks)[1]:
                if file not in used:
                    remedy = "name it as its image, or remove it"
                    yield Finding("warning", "mask alone", file, "belongs to no image", remedy)
            if part == "train":
                yield from no_images(root / "unlabeled")
                yield from folders_unread(root)


def no_images(folder: Path) -> Iterator[Finding]:
    """Find files in a folder of images that are not read as such."""
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.suffix.lower() not in IMAGE_SUFFIXES and not file.name.startswith("."):
            remedy = f"save it as one of {' '.join(IMAGE_SUFFIXES)}, or remove it"
            yield Finding("warning", "not read", str(file), "is not read as an image", remedy)


def folders_unread(root: Path) -> Iterator[Finding]:
    """Find folders of images beside those that a `folder` data set reads."""
    for above, known in ((root, {"images", "labels", "unlabeled"}), (root / "images", set(PARTS) - {"unlabeled"})):
        for folder in sorted(above.iterdir()):
            if folder.is_dir() and folder.name not in known and find_images(folder)[1]:
                remedy = "call it images/train, images/val, images/test or unlabeled, or name it in dataset.unlabeled"
                yield Finding("warning", "folder not read", str(folder), "holds images that are not read", remedy)


def unused_range(parts: dict[str, list[Picture]]) -> Iterator[Finding]:
    """Find 16-bit images that use so little of their range that they are read as nearly black."""
    deep = {
        part: [picture for picture in pictures if picture.digest and "16 bits" in picture.coding]
        for part, pictures in parts.items()
    }
    trained = [*deep["train"], *deep.get("unlabeled", ())] if deep.get("train") else []
    everything = [picture for pictures in deep.values() for picture in pictures]
    for level, pictures in (("error", trained), ("warning", everything)):
        if pictures and all(p.brightest < DARK and p.sample.format.max_value is None for p in pictures):
            sample = pictures[0].sample
            yield finding(level, "dark", sample.image, dark_images(sample))
            return


def total(pictures: Sequence[Picture]) -> np.ndarray:
    """Add up the pixels of each label in the masks, (255,): without the ignored ones."""
    return sum((picture.counts[:IGNORE_INDEX] for picture in pictures if picture.counts is not None), np.zeros(255))


def describe(source: Source, pictures: Sequence[Picture]) -> dict[str, Any]:
    """Return the statistics of one part of the data set."""
    sizes = sorted((picture.size for picture in pictures if picture.size), key=lambda size: size[0] * size[1])
    counts = total(pictures)[: len(source.classes)]
    shows = [
        sum(bool(picture.counts[label]) for picture in pictures if picture.counts is not None)
        for label in range(len(source.classes))
    ]
    return {
        "images": len(pictures),
        "masks": sum(picture.counts is not None for picture in pictures),
        "size_smallest": list(sizes[0]) if sizes else None,
        "size_median": list(sizes[len(sizes) // 2]) if sizes else None,
        "size_largest": list(sizes[-1]) if sizes else None,
        "image_files": dict(Counter(picture.coding for picture in pictures if picture.coding)),
        "mask_files": dict(Counter(picture.mask_coding for picture in pictures if picture.mask_coding)),
        "class_share": [round(float(count / max(counts.sum(), 1)), 6) for count in counts],
        "class_images": shows,
    }


# ------------------------------------------------------------------------------------------- report


def grouped(findings: Iterable[dict]) -> dict[tuple[str, str], list[dict]]:
    """Group findings by (level, kind)."""
    groups = defaultdict(list)
    for finding in findings:
        groups[finding["level"], finding["kind"]].append(finding)
    return dict(groups)


def tables(report: dict[str, Any]) -> dict[str, list[list[str]]]:
    """Return the report's tables by title: rows of text, the first with the columns' names.

    Findings of the same kind share a row.
    """
    parts = report["parts"]

    def size(part: dict, which: str) -> str:
        height_width = part[f"size_{which}"]
        return "x".join(map(str, reversed(height_width))) if height_width else "-"

    def files(counts: dict[str, int]) -> str:
        return ", ".join(f"{count} {coding}" for coding, count in counts.items())

    images = [["", "images", "masks", "smallest", "median", "largest", "image files", "mask files"]]
    for name, part in parts.items():
        sizes = [size(part, which) for which in ("smallest", "median", "largest")]
        codings = [files(part["image_files"]), files(part["mask_files"])]
        images.append([name, str(part["images"]), str(part["masks"]), *sizes, *codings])
    masked = {name: part for name, part in parts.items() if part["masks"]}
    classes = [["class", *(f"{name} {column}" for name in masked for column in ("pixels", "images"))]]
    for label, name in enumerate(report["classes"]):
        cells = [(f"{p['class_share'][label]:.2%}", str(p["class_images"][label])) for p in masked.values()]
        classes.append([f"{label} {name}", *(cell for pair in cells for cell in pair)])
    objects = [["class", "objects", "size", "thickness", *(f"kept at stride {stride}" for stride in STRIDES)]]
    for name, one in zip(report["classes"], report["objects"], strict=False):
        kept = ["-" if share is None else f"{share:.0%}" for share in one["kept"].values()]
        objects.append([name, str(one["count"]), f"{one['size']:g}", f"{one['thickness']:g}", *kept])
    found = [["level", "case", "files", "first", "what to do"]]
    for (level, kind), group in grouped(report["findings"]).items():
        first = group[0]
        found.append([level, kind, str(len(group)), f"{first['file']}: {first['what']}", first["remedy"]])
    return {"Images": images, "Classes": classes, "Objects": objects, "Findings": found}


def show(report: dict[str, Any], console: Console) -> None:
    """Print the report's tables."""
    for title, (head, *rows) in tables(report).items():
        if not rows:
            console.print(f"{title}: none")
            continue
        table = Table(*head, title=title)
        for row in rows:
            table.add_row(*map(escape, row), style=LEVELS.get(row[0]))
        console.print(table)


def write(report: dict[str, Any], output: Path) -> list[Path]:
    """Write the report as `output`.json (all of it) and `output`.md (up to twenty files of each kind); return both."""
    lines = [f"# {report['dataset']}", ""]
    for title, (head, *rows) in tables(report).items():
        lines += [f"## {title}", ""]
        if title == "Findings" or not rows:
            continue
        lines += [" | ".join(["", *row, ""]).strip() for row in (head, ["---"] * len(head), *rows)] + [""]
    for (level, kind), group in grouped(report["findings"]).items():
        lines += [f"### {level}: {kind} ({len(group)})", "", f"What to do: {group[0]['remedy']}.", ""]
        lines += [f"- `{finding['file']}`: {finding['what']}" for finding in group[:20]]
        lines += [f"- and {len(group) - 20} more, in the JSON file"] * (len(group) > 20) + [""]
    if not report["findings"]:
        lines += ["None.", ""]
    output.parent.mkdir(parents=True, exist_ok=True)
    files = [Path(f"{output}.md"), Path(f"{output}.json")]
    for file, text in zip(files, ("\n".join(lines), json.dumps(report, indent=2) + "\n"), strict=True):
        file.write_text(text, encoding="utf-8")
    return files


def num_errors(report: dict[str, Any]) -> int:
    """Count the findings of level "error"."""
    return sum(finding["level"] == "error" for finding in report["findings"])
