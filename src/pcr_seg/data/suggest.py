"""Crop, batch and length of a training from a data set's sizes and the machine: rules of thumb, each one line.

They are where to start, not what is best: crops that show most of an image, batches that fit, and so many passes as
trainings of this kind need on real data of moderate size.
"""

from statistics import median
from typing import NamedTuple

from pcr_seg.data.files import image_size
from pcr_seg.data.sources import Source
from pcr_seg.data.splits import NO_TRAINING_IMAGES, in_threads, num_labeled

CROPS = {"cpu": 161, "small": 321, "large": 513}  # largest side: a CPU, a GPU below 16 GiB, a GPU from there
BATCHES = {"cpu": 4, "small": 8, "large": 16}
ITERATIONS = {"cpu": (600, 1_500), "small": (2_000, 40_000), "large": (2_000, 40_000)}
PASSES = 60  # over all training images, as far as ITERATIONS allow


class Suggestion(NamedTuple):
    """Overrides of train.py, and the reason for each."""

    overrides: dict[str, str]
    reasons: list[str]


def suggest(source: Source, gpu_gib: float | None = None) -> Suggestion:
    """Choose from the sizes of all training images (headers) and the memory of one GPU (None: train on the CPU).

    Raises:
        ValueError: there are none, or one cannot be read.
    """
    if not source.train:
        raise ValueError(f"{source.name}: {NO_TRAINING_IMAGES}")
    samples = [*source.train, *source.unlabeled]
    shorter = median(min(size) for size in in_threads(lambda s: image_size(s.image, s.format), samples, "Sizes"))
    kind = "cpu" if gpu_gib is None else "small" if gpu_gib < 16 else "large"
    machine = "a CPU" if gpu_gib is None else f"a GPU of {gpu_gib:.0f} GiB"
    crop = max(33, int((min(shorter, CROPS[kind]) - 1) // 16 * 16 + 1))
    labeled = len(source.train) if source.unlabeled else num_labeled("1_8", len(source.train))
    batch = min(BATCHES[kind], labeled)
    fewest, most = ITERATIONS[kind]
    iterations = min(max(PASSES * len(samples) // batch, fewest), most)
    steps = min(max(len(samples) // batch, 50), 100 if kind == "cpu" else 500)
    if source.unlabeled:
        split, why = "full", f"all {len(source.train)} masks, and {len(source.unlabeled)} images without"
    else:
        split, why = "1_8", "no images without masks: an eighth is labeled, to see what labels are worth"
    overrides = {
        "split": split,
        "data.crop_size": str(crop),
        "global_batch": str(batch),
        "data.steps_per_epoch": str(steps),
        "trainer.max_epochs": str(max(2, -(-iterations // steps))),
    }
    reasons = [
        why,
        f"half of the images have a shorter side up to {shorter:g}; at most {CROPS[kind]} on {machine}; 16k + 1",
        f"as fits {machine}, and at most the number of labeled images; as many unlabeled ones come with them",
        "a pass over all images, but 50 to 100 steps on a CPU, to 500 on a GPU, so that validation comes in time",
        f"{iterations} steps: {PASSES} passes, but {fewest} to {most} on {machine}",
    ]
    return Suggestion(overrides, reasons)
