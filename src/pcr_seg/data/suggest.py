"""Suggest settings for a data set by rules of thumb, from the sizes of its images and objects and the machine.

They are a start, not the best settings. On a CPU: a small head on frozen features, unless objects are too thin or small
for its grid. Otherwise: a network that is trained as a whole, with crops that show objects, batches that fit into
memory, and as many passes over the data as trainings on real data of moderate size need.
"""

from collections.abc import Iterator
from statistics import median
from typing import NamedTuple

from pcr_seg.data.files import DataError, image_size
from pcr_seg.data.held_out import FEW, NUM_FOLDS, masked
from pcr_seg.data.objects import LOSS, Objects, mean_kept, measure
from pcr_seg.data.sources import Source
from pcr_seg.data.splits import NO_TRAINING_IMAGES, in_threads, num_labeled

# For a CPU, a GPU with less than 16 GiB ("small"), and one with more ("large"): usual and largest side of a crop in
# pixels, labeled images in a batch, and fewest and most optimizer steps.
CROPS = {"cpu": 161, "small": 321, "large": 513}
LARGEST = {"cpu": 321, "small": 641, "large": 1025}
BATCHES = {"cpu": 4, "small": 8, "large": 16}
ITERATIONS = {"cpu": (600, 1_500), "small": (2_000, 40_000), "large": (2_000, 40_000)}
PASSES = 60  # passes over all training images, as far as ITERATIONS allow
RARE = 0.02  # share of the pixels below which a class is rare and gets more weight

# Seconds on one CPU core: for a megapixel of labeled crops in a step of pcr with MobileNetV2, in the burn-in and after
# it (docs/performance.md); and for a megapixel of images, to compute EfficientNet-Lite2's features of two views.
BURN_IN_STEP, STEP, FEATURES = 2.7, 6.4, 1.8
HEAD = 60  # seconds to train a head on features (docs/laptop.md)
GPU_STEP = 0.1  # least seconds of a step on any GPU, for starting its kernels


class Suggestion(NamedTuple):
    """Suggested settings."""

    overrides: dict[str, str]  # of train.py, by key
    reasons: list[str]  # for each of them
    time: str  # how long the training takes, in words


class Setting(NamedTuple):
    """One override of train.py, and the reason for it."""

    key: str
    value: str
    reason: str


def suggest(source: Source, gpu_gib: float | None = None) -> Suggestion:
    """Suggest settings from the sizes of all training images (read from headers), some masks, and the machine.

    Args:
        source: the data set.
        gpu_gib: memory of the GPU in GiB; None: train on the CPU.

    Raises:
        ValueError: there are no training images, or one cannot be read.
    """
    if not source.train:
        raise ValueError(f"{source.name}: {NO_TRAINING_IMAGES}")
    samples = [*source.train, *source.unlabeled]
    sizes = in_threads(lambda s: image_size(s.image, s.format), samples, "Sizes")
    pixels = int(median(height * width for height, width in sizes))
    objects = measure(source, pixels)
    settings, num_labels = which_labels(source)
    stride = 4 if objects is None else coarsest(objects)
    trainings = NUM_FOLDS + 1 if not source.val and len(masked(source)) < FEW else 1
    if gpu_gib is None and stride >= 8:
        settings = [*on_features(objects, stride), *settings]
        seconds = len(samples) * pixels / 1e6 * FEATURES + trainings * HEAD
    else:
        kind = "cpu" if gpu_gib is None else "small" if gpu_gib < 16 else "large"
        machine = "a CPU" if gpu_gib is None else f"a GPU of {gpu_gib:.0f} GiB"
        shorter = median(map(min, sizes))
        settings += trained(objects, stride, shorter, num_labels, len(samples), kind, machine)
        seconds = trainings * seconds_of({setting.key: setting.value for setting in settings}, kind)
    time = f"time: {round(seconds / 60) + 1} minutes, {'on one core' if gpu_gib is None else 'at least'}"
    if trainings > 1:
        time += f", for {trainings} trainings: masks are few, and without val images all but the last give the score"
    return Suggestion({s.key: s.value for s in settings}, [s.reason for s in settings], time)


def which_labels(source: Source) -> tuple[list[Setting], int]:
    """Return settings of which images to use as labeled, and about how many these are."""
    masks, unlabeled = len(masked(source)), len(source.unlabeled)
    if masks < len(source.train):
        message = f"{len(source.train) - masks} of {len(source.train)} training images have no mask; move them to"
        raise DataError(f"{source.name}: {message} FOLDER/unlabeled", "missing mask")
    if unlabeled:
        return [Setting("split", "full", f"all {masks} masks, and {unlabeled} images without")], masks
    if masks < FEW:
        alone = Setting("method", "supervised", "no images without masks, and too few masks to learn from some without")
        return [Setting("split", "full", f"all {masks} masks"), alone], masks
    why = "no images without masks: an eighth is labeled, to see what labels are worth"
    return [Setting("split", "1_8", why)], num_labeled("1_8", masks)


def coarsest(objects: list[Objects]) -> int:
    """Return the largest stride of 16, 8 and 4 at which a perfect prediction keeps enough mIoU; 0 if none does."""
    return next((stride for stride in (16, 8, 4) if mean_kept(objects, stride) >= LOSS), 0)


def on_features(objects: list[Objects], stride: int) -> Iterator[Setting]:
    """Yield the settings of a head on frozen features."""
    why = f"a CPU: frozen features and a small head; at stride {stride} a perfect mask keeps"
    yield Setting("experiment", "laptop", f"{why} {mean_kept(objects, stride):.0%} of the mIoU")
    if stride == 8:
        why = f"the map of stride 8 as well: at 16 a perfect mask would keep {mean_kept(objects, 16):.0%}"
        yield Setting("model.maps", "[8,-2,-1]", why)


def trained(
    objects: list[Objects] | None,
    stride: int,
    shorter: float,
    num_labels: int,
    num_images: int,
    kind: str,
    machine: str,
) -> Iterator[Setting]:
    """Yield the settings of a network that is trained as a whole: crops, batch, length, scale, grid and balance.

    Args:
        objects: of each class, or None if they could not be measured.
        stride: the largest stride that they allow (`coarsest`).
        shorter: typical shorter side of the images in pixels.
        num_labels: number of labeled images.
        num_images: number of training images, labeled or not.
        kind: the machine's key in `CROPS`.
        machine: the machine in words.
    """
    enlarged = 1 if stride else 2
    need = enlarged * (object_size(objects) if objects else 0)
    usual = on_grid(min(enlarged * shorter, CROPS[kind]))
    crop = min(max(usual, on_grid(need + 15)), on_grid(enlarged * shorter), LARGEST[kind])
    if crop > usual:
        why = f"half of the classes have objects of up to {need / enlarged:g} pixels, and a crop should show one"
    else:
        why = f"half of the images have a shorter side up to {shorter:g}; at most {CROPS[kind]} on {machine}"
    yield Setting("data.crop_size", str(crop), f"{why}; 16k + 1")
    batch = max(2, min(BATCHES[kind], num_labels, BATCHES[kind] * CROPS[kind] ** 2 // crop**2))
    why = f"2 or more, up to the labeled images and the pixels of {BATCHES[kind]} crops of {CROPS[kind]}, for {machine}"
    yield Setting("global_batch", str(batch), f"{why}; as many unlabeled ones come with them")
    fewest, most = ITERATIONS[kind]
    iterations = min(max(PASSES * num_images // batch, fewest), most)
    steps = min(max(num_images // batch, 50), 100 if kind == "cpu" else 500)
    why = "a pass over all images, but 50 to 100 steps on a CPU, to 500 on a GPU, so that validation comes in time"
    yield Setting("data.steps_per_epoch", str(steps), why)
    why = f"{iterations} steps: {PASSES} passes, but {fewest} to {most} on {machine}"
    yield Setting("trainer.max_epochs", str(max(2, -(-iterations // steps))), why)
    if objects:
        yield from for_objects(objects, stride, kind)


def for_objects(objects: list[Objects], stride: int, kind: str) -> Iterator[Setting]:
    """Yield settings of scale, grid and class balance, if the objects ask for other than the usual ones."""
    if stride == 0:
        why = f"enlarged: at its own size a perfect mask keeps {mean_kept(objects, 4):.0%} of the mIoU at stride 4"
        yield Setting("data.scale", "[1.5,2.5]", why)
        yield Setting("protocol", "multi_scale", "likewise when it predicts")
        yield Setting("protocol.scales", "[2.0]", "twice the size")
        yield Setting("protocol.flip", "false", "once")
    elif stride == 4:
        why = f"never shrunk: at half of its size a perfect mask keeps {mean_kept(objects, 8):.0%} of the mIoU"
        yield Setting("data.scale", "[1.0,1.5]", why)
    if stride < 16 and kind != "cpu":
        why = f"a finer grid before the decoder: at 16 a perfect mask keeps {mean_kept(objects, 16):.0%}"
        yield Setting("backbone.output_stride", "8", f"{why}; takes three times as long")
    rarest = min(one.share for one in objects if one.share)
    if rarest < RARE:
        key, name = "recipe.supervised_loss._target_", "pcr_seg.method.losses.balanced_cross_entropy"
        yield Setting(key, name, f"the rarest class has {rarest:.1%} of the pixels: rare ones weigh more")


def object_size(objects: list[Objects]) -> float:
    """Return the median over classes of the objects' size in pixels, without the most frequent class (background)."""
    sizes = sorted((one.share, one.size) for one in objects if one.count)[:-1]
    return median([size for _, size in sizes]) if sizes else 0.0


def on_grid(side: float) -> int:
    """Return the largest side of the form 16k + 1 that is not larger than this one, but at least 33."""
    return max(33, int((side - 1) // 16 * 16 + 1))


def seconds_of(settings: dict[str, str], kind: str) -> float:
    """Return the seconds that a training takes on one CPU core, or at least takes on a GPU."""
    steps = int(settings["data.steps_per_epoch"]) * int(settings["trainer.max_epochs"])
    if kind != "cpu":
        return steps * GPU_STEP * (3 if "backbone.output_stride" in settings else 1)
    megapixels = int(settings["global_batch"]) * int(settings["data.crop_size"]) ** 2 / 1e6
    return steps * megapixels * (BURN_IN_STEP + 2 * STEP) / 3  # the burn-in takes a third
