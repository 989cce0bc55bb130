"""Measure loading: from files to batches, and how long a training waits for them.

The usual pipeline, which ours is compared with, resizes the whole image before it crops. Pictures are generated with
the format, the size and about the bytes of the published sets'.
"""

import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import cv2
import lightning.pytorch as L
import numpy as np
from measure import Row, rows, timed
from PIL import Image
from plain import training_view
from step import CLASSES, make_module
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pcr_seg.data.datamodule import SegmentationData
from pcr_seg.data.files import Sample
from pcr_seg.data.sources import Source
from pcr_seg.data.streams import Views

# name, height, width, image suffix, options to save it, crop, files, images in a round
KINDS = (
    ("1024 x 2048 PNG", 1024, 2048, ".png", {}, 769, 8, 16),
    ("375 x 500 JPEG", 375, 500, ".jpg", {"quality": 92}, 513, 16, 64),
)
WORKERS = (0, 1, 2)


def measure(repeats: int) -> list[Row]:
    """Return rows of the usual pipeline, ours, and ours with a cache, for an image on one core; then of the waiting."""
    found = []
    with tempfile.TemporaryDirectory() as root:
        for name, height, width, suffix, options, crop, files, count in KINDS:
            samples = write_pictures(Path(root, name), files, height, width, suffix, options)
            views = (samples, crop, (0.5, 2.0), 255)
            versions = {
                "usual": UsualViews(samples, crop),
                "pcr-seg": Views(*views),
                "pcr-seg, data.cache": Views(*views, cache=Path(root, "cache")),
            }
            for workers in WORKERS:
                loaders = {key: make_loader(dataset, count, workers) for key, dataset in versions.items()}
                cores = max(1, workers)
                seconds = {key: [] for key in loaders}
                for turn in range(repeats + 1):
                    for key, loader in loaders.items():
                        taken = timed(lambda loader=loader: list(loader))
                        if turn > 0:  # the first one starts workers and fills caches
                            seconds[key].append(cores * taken / count)
                found += rows(f"{name}, {workers} workers, one image on one core", seconds)
        found.append(waiting(write_pictures(Path(root, "wait"), 16, *KINDS[1][1:5]), steps=2 * repeats + 2))
    return found


def write_pictures(root: Path, files: int, height: int, width: int, suffix: str, options: dict) -> tuple[Sample, ...]:
    """Write pictures of soft shapes with a little noise, and masks of large patches."""
    root.mkdir()
    generator, samples = np.random.default_rng(0), []
    for i in range(files):
        picture = np.full((height, width, 3), 110, np.float32)
        for size in (8, 32, 128):
            coarse = generator.normal(0, 25, (height // size + 1, width // size + 1, 3)).astype(np.float32)
            picture += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
        picture += generator.normal(0, 0.5 if suffix == ".png" else 6, picture.shape)
        coarse = generator.integers(0, len(CLASSES), (height // 32 + 1, width // 32 + 1), dtype=np.uint8)
        mask = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)
        sample = Sample(f"{i}", root / f"{i}{suffix}", root / f"{i}_mask.png")
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(sample.image, **options)
        Image.fromarray(mask).save(sample.mask)
        samples.append(sample)
    return tuple(samples)


def make_loader(dataset: Dataset, count: int, workers: int) -> DataLoader:
    """Return a loader of `count` images in batches of four, each image in another view."""
    order = list(zip(islice(cycle(range(len(dataset))), count), range(count), strict=True))
    return DataLoader(dataset, batch_size=4, sampler=order, num_workers=workers, persistent_workers=workers > 0)


class UsualViews(Dataset):
    """Labeled training views as published training code makes them."""

    def __init__(self, samples: tuple[Sample, ...], crop_size: int) -> None:
        self.samples, self.crop_size = samples, crop_size

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index_and_seed: tuple[int, int]) -> tuple[Tensor, Tensor]:
        index, seed = index_and_seed
        image, mask = Image.open(self.samples[index].image).convert("RGB"), Image.open(self.samples[index].mask)
        return training_view(image, mask, self.crop_size, np.random.default_rng(seed))


def waiting(samples: tuple[Sample, ...], steps: int) -> Row:
    """Measure how long a training of MobileNetV2, with 2 + 2 crops of 321 x 321, waits for its batches.

    The row's ratio is the seconds of waiting over the seconds of the steps.
    """
    palette = tuple((c, c, c) for c in range(len(CLASSES)))
    source = Source("pictures", tuple(CLASSES), palette, samples, (), (), ())
    data = SegmentationData(source, len(samples) // 2, crop_size=321, batch_size=2, steps_per_epoch=steps, seed=0)
    clock = WaitClock()
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(
        accelerator="cpu", logger=False, max_epochs=1, limit_val_batches=0, use_distributed_sampler=False,
        callbacks=[clock], **quiet,
    )  # fmt: skip
    trainer.fit(make_module("backbone=mobilenetv2"), datamodule=data)
    waited, worked = clock.waited[1:], clock.worked[2:]  # each step and the wait before it, without the first
    [_, row] = rows(f"training, mobilenetv2, 321 x 321, {data.num_workers} workers a stream",
                    {"step": worked, "waiting for data": waited})  # fmt: skip
    return row | {"ratio": sum(waited) / sum(worked)}


class WaitClock(L.Callback):
    """Measures the seconds of a trainer's steps, and those between them."""

    def __init__(self) -> None:
        self.waited, self.worked, self.moment = [], [], None

    def on_train_batch_start(self, *_: object) -> None:
        """End the waiting: the batch is there."""
        now = time.perf_counter()
        if self.moment is not None:
            self.waited.append(now - self.moment)
        self.moment = now

    def on_train_batch_end(self, *_: object) -> None:
        """End the step, and begin to wait."""
        now = time.perf_counter()
        self.worked.append(now - self.moment)
        self.moment = now


def targets(found: list[Row]) -> list[tuple[str, str, str]]:
    """Return each target of the project: what it is about, the goal, and what was measured."""
    result = []
    for (name, *_), goal in zip(KINDS, ("4 x", "1.5 x"), strict=True):
        for version in ("pcr-seg", "pcr-seg, data.cache"):
            ratios = [row["ratio"] for row in found if row["case"].startswith(name) and row["version"] == version]
            result.append(
                (f"{name}: {version}, faster per core than usual", goal, f"{min(1 / r for r in ratios):.1f} x")
            )
    return [*result, ("training waits for data, of its step", "10 %", f"{100 * found[-1]['ratio']:.1f} %")]
