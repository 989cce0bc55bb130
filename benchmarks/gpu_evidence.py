"""Compare fine-tuned networks within a given time on one GPU, by several trainings at once.

    python benchmarks/gpu_evidence.py pack data=cityscapes_small file=data/packed.tar mebibytes=40
    python benchmarks/gpu_evidence.py run file=data/packed.tar seconds=540 output=gpu_evidence.csv

The first command packs a part of a Cityscapes folder: every second image of val, and as many random training images as
fit. The second command unpacks it, measures how fast the trainings of CELLS run beside each other, and trains each for
as many steps as the time allows. A training's row is appended when it ends. `steps=2` tests the command on a CPU.
"""

import os
import random
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from evidence import append, run

from pcr_seg.data.sources import cityscapes

CELLS = {  # name: labels, overrides
    "supervised": ("186", ["method=supervised"]),
    "supervised, all labels": ("full", ["method=supervised"]),
    "consistency": ("186", ["method=consistency"]),
    "pcr": ("186", ["method=pcr"]),
    "pcr_crossed": ("186", ["method=pcr_crossed"]),
}
FINE_TUNED = [
    "dataset=cityscapes", "recipe=folder", "split_family=drawn", "data.crop_size=257", "data.scale=[0.75,1.5]",
    "global_batch=16", "data.num_workers=2", "recipe.threshold=0.8", "trainer.check_val_every_n_epoch=1000",
]  # fmt: skip
MEASURED = 60  # steps by which the speed is measured


def pack(data: str, file: str, mebibytes: str = "40") -> None:
    """Write the part of a Cityscapes folder that the trainings use into a tar file."""
    source, budget = cityscapes(data), int(mebibytes) * 2**20
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for sample in (*source.val[::2], *random.Random(0).sample(source.train, len(source.train))):
            paths = [Path(sample.image), Path(sample.mask)]
            if tar.offset + sum(path.stat().st_size + 1024 for path in paths) > budget:
                break
            for path in paths:
                tar.add(path, path.relative_to(Path(data)))
    print(f"{file}: {Path(file).stat().st_size / 2**20:.1f} MiB")


def compare(file: str, output: str, seconds: str = "540", steps: str | None = None, options: str = "") -> None:
    """Train all cells at once, for as many steps as the time allows, or for `steps`."""
    started, folder = time.time(), tempfile.mkdtemp()
    with tarfile.open(file) as tar:
        tar.extractall(folder, filter="data")
    if steps is None:
        rate = min(together(folder, "", MEASURED, options))
        left = float(seconds) - (time.time() - started)
        steps = int(0.8 * left * rate)  # validation and the slower start of each process take the rest
        print(f"{rate:.1f} steps a second beside each other, {steps} for each", flush=True)
    together(folder, output, int(steps), options)


def together(folder: str, output: str, steps: int, options: str) -> list[float]:
    """Run a process for each cell, all at once; return the steps per second of each."""
    given = {"folder": folder, "output": output, "steps": steps, "options": options}
    command = [sys.executable, __file__, "cell", *(f"{key}={value}" for key, value in given.items())]
    running = [subprocess.Popen([*command, f"name={name}"], stdout=subprocess.PIPE, text=True) for name in CELLS]
    return [float(process.communicate()[0].splitlines()[-1]) for process in running]


def cell(folder: str, output: str, steps: str, name: str, options: str) -> None:
    """Train one cell, append its row if there is an output, and print its steps per second."""
    labels, overrides = CELLS[name]
    epochs = -(-int(steps) // 100) + 1
    short = ["data.steps_per_epoch=100", f"trainer.max_steps={steps}", f"trainer.max_epochs={epochs}"]
    every = [*FINE_TUNED, *overrides, *short, f"split={labels}", f"dataset.root={folder}", *options.split()]
    started = time.time()
    found = run(every, score=bool(output))
    rate = int(steps) / (time.time() - started)
    if output:
        append(Path(output), ["cityscapes_small", labels, name, 0], every, found)
    print(rate)


if __name__ == "__main__":
    torch.set_num_threads(1)
    command, *given = sys.argv[1:]
    {"pack": pack, "run": compare, "cell": cell}[command](**dict(argument.split("=", 1) for argument in given))
