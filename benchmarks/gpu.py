"""Measure time and memory of training steps of the paper's recipes on a GPU, for each method.

Steps are the Trainer's, with hooks, losses, prototypes, teacher and logging. They run one after another without waiting
for the GPU, and the batch is on the GPU already.
"""

import time
from itertools import pairwise

import lightning.pytorch as L
import torch
from measure import Row, rows
from step import make_batch, make_module, train

from pcr_seg.module import Segmentation

CASES = (  # recipe, crop, labeled images on the GPU (and as many unlabeled ones)
    ("cityscapes", 769, 2),
    ("voc", 513, 2),
    ("voc", 513, 8),
)
VERSIONS = (  # method, precision, torch.compile's mode
    ("supervised", "bf16-mixed", None),
    ("consistency", "bf16-mixed", None),
    ("pcr", "bf16-mixed", None),
    ("unimatch", "bf16-mixed", None),
    ("pcr", "32-true", None),
    ("pcr", "bf16-mixed", "default"),
    ("pcr", "bf16-mixed", "reduce-overhead"),
)
ROUND = 10  # steps between two looks at the clock


def measure(repeats: int) -> list[Row]:
    """Return rows of each method, compared with a supervised step on the same labels."""
    found = []
    for dataset, crop, images in CASES:
        seconds, peaks = {}, {}
        for method, precision, mode in VERSIONS:
            version = ", ".join(filter(None, (method, precision, mode and f"compile={mode}")))
            module = make_module(f"method={method}", dataset=dataset)
            if mode:
                module.method.compile(mode=mode, dynamic=False)
            seconds[version], peaks[version] = steps(module, images, crop, repeats, precision)
        found += rows(f"{dataset}, resnet101, {images} + {images} x {crop} x {crop}", seconds, peaks)
    return found


def steps(module: Segmentation, images: int, crop: int, repeats: int, precision: str) -> tuple[list[float], float]:
    """Return the seconds of a step in each round, and the peak memory in MiB, with networks and optimizer."""
    clock, batch = Clock(repeats), make_batch(images, crop, 2, "cuda")
    train(module, batch, clock, accelerator="gpu", devices=1, precision=precision)
    return clock.seconds, torch.cuda.max_memory_allocated() / 2**20


class Clock(L.Callback):
    """Times rounds of steps, of which the first one is for warming up."""

    def __init__(self, repeats: int) -> None:
        self.total, self.passed = ROUND * (repeats + 1) + 1, []

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: dict, batch_idx: int) -> None:
        """Note the time after each round, when the GPU is done."""
        if batch_idx % ROUND == 0:
            torch.cuda.synchronize()
            self.passed.append(time.perf_counter())

    @property
    def seconds(self) -> list[float]:
        """Seconds of a step in each round but the first."""
        return [(end - start) / ROUND for start, end in pairwise(self.passed)][1:]


def targets(found: list[Row]) -> list[tuple[str, str, str]]:
    """Return each target of the project: what it is about, the goal, and what was measured."""
    milliseconds = {(row["case"], row["version"]): row["milliseconds"] for row in found}
    cases = {case for case, _ in milliseconds}
    extra = max(milliseconds[c, "pcr, bf16-mixed"] / milliseconds[c, "consistency, bf16-mixed"] - 1 for c in cases)
    return [("prototypes over the same step without them, on a GPU", "3 %", f"{100 * extra:.1f} %")]
