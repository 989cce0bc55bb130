"""Measure how time and memory grow with classes, prototypes, crop, batch, and the number of unlabeled images.

Slopes are those of a straight line through the logarithms: 1 means proportional.
"""

import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from itertools import groupby
from pathlib import Path

import numpy as np
from measure import Row, compare
from method import inputs, ours
from PIL import Image

from pcr_seg.data import splits
from pcr_seg.data.datamodule import SegmentationData
from pcr_seg.data.prepare import manifest
from pcr_seg.data.sources import folder

# From START, one of these is changed at a time.
START = {"images": 2, "crop": 257, "classes": 21, "prototypes": 4}
GROWTH = {
    "classes": (2, 10, 100, 1000),
    "prototypes": (1, 4, 16, 32),
    "crop": (129, 257, 513, 1025),
    "images": (1, 2, 4, 8),
}
NAMES = (10**2, 10**3, 10**4, 10**5, 10**6)


def measure(repeats: int) -> list[Row]:
    """Return rows of the prototype head's step as in `method.py`, D = 512, and of starting with many images."""
    found = []
    for axis, values in GROWTH.items():
        for value in values:
            size = START | {axis: value}
            features, labels, bank = inputs(size["images"], 512, size["crop"], size["classes"], size["prototypes"])
            step = {f"{value}": lambda f=features, y=labels, b=bank: ours(f, y, b)}
            found += compare(f"prototype head, {axis}", step, repeats)
    folders, manifests = [], []
    for number in NAMES:
        with tempfile.TemporaryDirectory() as root:
            write_pool(Path(root), number)
            folders.append(start("start with unlabeled images", number, root))
            manifest(folder(root), file := Path(root, "unlabeled.manifest"))
            manifests.append(start("start with a manifest", number, root, str(file)))
    return [row | {"ratio": None} for row in found + folders + manifests]


def write_pool(root: Path, number: int) -> None:
    """Write a folder data set of four labeled images and `number` unlabeled ones, which are links to a few files."""
    for part in ("images/train", "images/val", "labels/train", "labels/val", "unlabeled"):
        (root / part).mkdir(parents=True)
    (root / "classes.txt").write_text("0 ground 0 0 0\n1 figure 255 0 0\n")
    for kind in ("image", "val"):  # with different pixels, since training refuses copies in val
        values = np.arange(64 * 64 * 3, dtype=np.uint8) + (kind == "val")
        Image.fromarray(values.astype(np.uint8).reshape(64, 64, 3)).save(root / f"{kind}.png")
    Image.fromarray(np.arange(64 * 64, dtype=np.uint8).reshape(64, 64) % 2).save(root / "mask.png")
    for i in range(4):
        for part, kind in (("images/train", "image"), ("images/val", "val"), ("labels/train", "mask"),
                           ("labels/val", "mask")):  # fmt: skip
            (root / part / f"{i}.png").symlink_to(root / f"{kind}.png")
    pixels = (root / "image.png").read_bytes()
    for i in range(number):
        place = root / "unlabeled" / f"street_{i:07}.png"
        if i % 50_000 == 0:  # file systems allow about 65,000 links to a file
            first = place
            first.write_bytes(pixels)
        else:
            os.link(first, place)


def start(case: str, number: int, *places: str) -> Row:
    """Return a row of time and memory up to the first batch, checks included, in a process of its own."""
    output = subprocess.run([sys.executable, __file__, *places], capture_output=True, text=True, check=True).stdout
    seconds, mebibytes, worker = map(float, output.split()[-3:])
    row = {"case": case, "version": f"{number}", "milliseconds": 1000 * seconds}
    return row | {"quartiles": None, "ratio": None, "mebibytes": mebibytes, "worker_mebibytes": worker}


def first_batch(root: str, unlabeled: str | None = None) -> tuple[float, float, float]:
    """Return CPU seconds to the first batch, MiB that the names take, and MiB that a worker has for itself."""
    before, started = resident_mebibytes("self"), time.process_time()
    source = folder(root, unlabeled=unlabeled)
    data = SegmentationData(source, 4, crop_size=64, batch_size=2, num_workers=1)
    splits.check(source, data.split)
    sampler = data.train_dataloader()["unlabeled"].sampler
    next(iter(sampler))
    seconds, after = time.process_time() - started, resident_mebibytes("self")
    batches = iter(data.train_dataloader()["unlabeled"])
    for _ in range(8):
        next(batches)
    [worker] = batches._workers
    return seconds, after - before, resident_mebibytes(worker.pid, "Private_Dirty")


def resident_mebibytes(process: int | str, kind: str = "Rss") -> float:
    """Return MiB of a process: all ("Rss"), or what it shares with no other; without /proc this process's peak."""
    rollup = Path(f"/proc/{process}/smaps_rollup")
    if not rollup.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    lines = rollup.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:")) / 2**10


def slopes(found: list[Row]) -> list[tuple[str, float, float]]:
    """Return (case, slope of time, slope of memory) from the first to the last size of each case."""
    result = []
    for case, group in groupby(found, key=lambda row: row["case"]):
        first, *_, last = group
        grown = 2 * math.log(int(last["version"]) / int(first["version"]))
        grown /= 1 if case.endswith("crop") else 2  # a crop's pixels grow with the square of its side
        slope = [math.log(last[key] / max(first[key], 1e-3)) / grown for key in ("milliseconds", "mebibytes")]
        result.append((case, *slope))
    return result


def targets(found: list[Row]) -> list[tuple[str, str, str]]:
    """Return each target of the project: what it is about, the goal, and what was measured."""
    result = [
        (f"{case}: slopes of time and memory", "1", f"{time:.2f}, {memory:.2f}") for case, time, memory in slopes(found)
    ]
    for case in ("start with unlabeled images", "start with a manifest"):
        pool = [row for row in found if row["case"] == case]
        if int(pool[-1]["version"]) == 10**6:
            worker = pool[-1]["worker_mebibytes"] - pool[0]["worker_mebibytes"]
            result += [
                (f"10^6, {case}: CPU seconds", "2 s", f"{pool[-1]['milliseconds'] / 1000:.1f} s"),
                (f"10^6, {case}: memory", "300 MiB", f"{pool[-1]['mebibytes']:.0f} MiB"),
                (f"10^6, {case}: further memory of a worker", "0", f"{worker:.0f} MiB"),
            ]
    return result


if __name__ == "__main__":
    print(*first_batch(*sys.argv[1:]))
