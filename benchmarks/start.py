"""Measure starting times: CPU seconds of whole processes, compared with those of unavoidable imports.

Each measurement starts a new process. Ratios are to the first row of a case.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from measure import Row, rows
from PIL import Image

ROOT = Path(__file__).parents[1]
FORWARD = """
import torch, timm
network = timm.create_model("mobilenetv2_100", features_only=True).eval()
with torch.inference_mode():
    network(torch.rand(1, 3, 240, 320))
"""
TRAIN = (
    "train.py", "backbone=mobilenetv2", "model=deeplab_small", "backbone.weights=null", "trainer.max_epochs=1",
    "data.steps_per_epoch=1", "logger=none",
)  # fmt: skip


def measure(repeats: int) -> list[Row]:
    """Return rows of each command, and of what it is compared with."""
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder, "image.png")
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)).save(image)
        run = Path(folder, "run")
        spent((*TRAIN, f"hydra.run.dir={run}", f"dataset.root={folder}/set"))
        checkpoint = f"checkpoint={run}/checkpoints/last.ckpt"
        cases = {
            "--help": {
                "import hydra": ("-c", "import hydra"),
                **{name: (f"{name}.py", "--help") for name in ("predict", "train", "report", "prepare")},
            },
            "predict one image of 240 x 320": {
                "import torch and timm, one forward": ("-c", FORWARD),
                "predict": ("predict.py", checkpoint, f"images={image}", f"output={folder}/out"),
            },
            "everything that a training imports": {
                "import torch, timm and lightning": ("-c", "import torch, timm, lightning.pytorch"),
                "train": ("-c", "import pcr_seg.training.fit"),
            },
        }
        found = []
        for case, commands in cases.items():
            seconds = {name: [] for name in commands}
            for turn in range(repeats + 1):
                for name, command in commands.items():
                    taken = spent(command)
                    if turn > 0:  # the first one reads the files from the disk
                        seconds[name].append(taken)
            found += rows(case, seconds)
    return found


def spent(command: tuple[str, ...]) -> float:
    """Return the CPU seconds of a Python process and its children."""
    before = os.times()
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def targets(found: list[Row]) -> list[tuple[str, str, str]]:
    """Return each target of the project: what it is about, the goal, and what was measured."""
    ratio = {row["version"]: f"{row['ratio']:.2f}" for row in found if row["case"] != "--help"}
    slowest = max(row["milliseconds"] for row in found if row["case"] == "--help") / 1000
    return [
        ("--help of a command, CPU seconds", "1 s", f"{slowest:.1f} s"),
        ("predicting one image over imports and forward", "1.3", ratio["predict"]),
        (
            "a training's imports over torch, timm and lightning",
            "1.5",
            ratio["train"],
        ),
    ]
