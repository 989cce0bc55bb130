"""Compare training steps with UniMatch's published one, on the same network, crop and batch.

Ours are the Trainer's steps with hooks and logging. UniMatch's is its algorithm without a framework (`plain.py`). Its
way of loading images is the usual one in `loader.py`.
"""

import copy

import torch
from measure import Row, rows
from plain import unimatch_step
from step import make_batch, make_module, run

from pcr_seg.method.mixing import small_boxes
from pcr_seg.module import Segmentation

# backbone, crop, labeled images (and as many unlabeled ones)
CASES = (("mobilenetv2", 161, 4), ("mobilenetv2", 321, 2))
METHODS = ("unimatch", "pcr", "consistency")


def measure(repeats: int) -> list[Row]:
    """Return rows of UniMatch's step and of a method's, for each method and size."""
    found = []
    for backbone, crop, images in CASES:
        batch = make_batch(images, crop, strong_views=2)
        for name in METHODS:
            module = make_module(f"backbone={backbone}", "backbone.output_stride=16", f"method={name}")
            clock = run(module, batch, repeats, {"published": Published(module, batch)})
            seconds = {"UniMatch, as published": clock.others["published"], name: clock.steps}
            found += rows(f"{backbone}, {images} + {images} x {crop} x {crop}", seconds)
    return found


class Published:
    """UniMatch's published step, on a copy of a module's student."""

    def __init__(self, module: Segmentation, batch: dict) -> None:
        self.network, self.batch = copy.deepcopy(module.student), batch
        self.optimizer = torch.optim.AdamW(self.network.parameters())

    def __call__(self, module: Segmentation, batch: dict) -> None:
        """Run one step on its own batch; the arguments, which a `Clock` passes, are not used."""
        weak = self.batch["unlabeled"]["weak"]
        boxes = [small_boxes(len(weak), *weak.shape[-2:], probability=0.5, device=weak.device) for _ in range(2)]
        unimatch_step(self.network, self.optimizer, self.batch, [box[:, 0] for box in boxes], threshold=0.95)


def targets(found: list[Row]) -> list[tuple[str, str, str]]:
    """Return each target of the project: what it is about, the goal, and what was measured."""
    ours = {row["version"]: row["ratio"] for row in found if row["version"] in METHODS}
    worst = {name: max(row["ratio"] for row in found if row["version"] == name) for name in ours}
    return [(f"a step of {name} over UniMatch's published one", "1.0", f"{ratio:.2f}") for name, ratio in worst.items()]
