"""Labeled and unlabeled streams, and the images to validate on."""

import functools
import hashlib
import operator
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import lightning.pytorch as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from pcr_seg.data.features import FeatureViews, FrozenFeatures, WholeFeatures
from pcr_seg.data.files import (
    IGNORE_INDEX,
    DataError,
    Sample,
    check_sizes,
    place_of,
    read_image,
    read_mask,
    read_pair,
)
from pcr_seg.data.sources import Source
from pcr_seg.data.splits import classes_shown, make_split, split_of_run
from pcr_seg.data.transforms import geometric, photometric, recolor, reseed
from pcr_seg.pixels import IMAGENET_MEAN, as_tensor

LABELED, UNLABELED, EVERY, OTHER = range(4)  # streams with random numbers of their own


class SegmentationData(L.LightningDataModule):
    """The images of one run: which are labeled, how they are cut and batched.

    Args:
        source: images, masks and classes of the data set.
        labeled: a fraction ("1_8"), "full", a count, or a file of names.
        family: which published lists, where the data set has some: "u2pl" (the paper's) or "cps"; "drawn" draws.
        lists: folder of published lists; missing ones are downloaded into it.
        crop_size: side of the training crops in pixels.
        batch_size: labeled images in a batch on each device, and as many unlabeled ones.
        scale: range of the random scale.
        balanced_crops: for each labeled crop draw a class first, all alike, then an image and a crop that show it; for
            classes of very unequal frequency.
        pad_label: label of padding; 255 never trains, 0 repeats the reference code.
        steps_per_epoch: optimizer steps in an epoch; by default one pass over the unlabeled images, rounded.
        on_error: what a file does that cannot be read, in training or just before: "raise" stops with its name, "skip"
            takes the next image in its place, which follows from the position in the stream alone.
        max_skipped: share of a stream's images; more bad ones stop the training all the same.
        num_workers: loader processes for each stream; by default half of the machine's processors, at most 8.
        seed: of the labeled draw, the order and the views. Sample and view at each position of the training follow
            from (seed, position) alone, so neither workers nor a restart change them.
        use_unlabeled: load the unlabeled stream; a supervised training does not need it.
        strong_color: color jitter, grayscale and blur on the student's views of unlabeled images.
        strong_views: number of those views.
        other: load a second batch of unlabeled images beside each, in an order of its own.
        pad_color: RGB in 0..1 around images that are smaller than the crop; the network's mean.
        cache: folder for the training images' pixels, written on first use and memory-mapped from then on; null decodes
            each time. It pays for large PNG files, and takes 3 bytes a pixel of disk (Cityscapes: 19 GB).
        features: of a frozen backbone: train and validate on them instead of on images. `scale`, colors and `pad_label`
            then have no effect.
        split_from: folder with the lists of a run (`splits/`): its split is taken as it was, instead of `labeled`.
    """

    def __init__(
        self,
        source: Source,
        labeled: str | int,
        *,
        family: str = "u2pl",
        lists: str | None = None,
        crop_size: int = 513,
        batch_size: int = 2,
        scale: tuple[float, float] = (0.5, 2.0),
        balanced_crops: bool = False,
        pad_label: int = IGNORE_INDEX,
        steps_per_epoch: int | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        max_skipped: float = 0.05,
        num_workers: int | None = None,
        seed: int = 0,
        use_unlabeled: bool = True,
        strong_color: bool = False,
        strong_views: int = 1,
        other: bool = False,
        pad_color: Sequence[float] = IMAGENET_MEAN,
        cache: str | None = None,
        features: FrozenFeatures | None = None,
        split_from: str | Path | None = None,
    ) -> None:
        super().__init__()
        self.source = source
        if split_from is None:
            self.split = make_split(source, labeled, family=family, seed=seed, lists=Path(lists) if lists else None)
        else:
            self.split = split_of_run(source, split_from, family)
        self.crop_size, self.batch_size, self.steps_per_epoch = crop_size, batch_size, steps_per_epoch
        self.scale, self.balanced_crops, self.pad_label = tuple(scale), balanced_crops, pad_label
        self.num_workers = num_workers if num_workers is not None else min(8, (os.cpu_count() or 1) // 2)
        self.on_error, self.max_skipped = on_error, max_skipped
        self.seed, self.use_unlabeled = seed, use_unlabeled
        self.strong_color, self.strong_views, self.other = strong_color, strong_views, other
        self.pad_color = tuple(pad_color)
        self.cache, self.features = Path(cache) if cache else None, features
        if features is not None and crop_size % features.stride != 1:
            better = max(1, round((crop_size - 1) / features.stride)) * features.stride + 1
            raise ValueError(
                f"data.crop_size={crop_size}: kept features lie {features.stride} pixels apart; use {better}"
            )
        if on_error not in ("raise", "skip"):
            raise ValueError(f"data.on_error={on_error}: choose raise or skip")
        self.start = (0, 0)  # epoch and optimizer steps of it that a resumed training has behind it
        if use_unlabeled and not self.split.unlabeled:
            raise ValueError(
                f"split={labeled}: every image is labeled, so this method has none to learn from unlabeled; "
                "choose a smaller split, or method=supervised"
            )

    def setup(self, stage: str | None = None) -> None:
        """Compute the features that are trained on, each rank its share; where they are in memory, all of them."""
        if self.features is None:
            return
        rank, world = self._rank() if self.features.folder else (0, 1)
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        training = (*self.split.labeled, *(self.split.unlabeled if self.use_unlabeled else ()))
        self.features.compute(training[rank::world], device)
        self.features.compute(self.source.val[rank::world], device, whole=True)
        if self.trainer:
            self.trainer.strategy.barrier()

    def train_dataloader(self) -> dict[str, DataLoader]:
        """One loader for each stream, of equal length."""
        loaders = {"labeled": self._train_loader(self.split.labeled, LABELED)}
        if self.use_unlabeled:
            loaders["unlabeled"] = self._train_loader(self.split.unlabeled, UNLABELED)
            if self.other:
                loaders["other"] = self._train_loader(self.split.unlabeled, OTHER)
        return loaders

    def val_dataloader(self) -> DataLoader:
        """The validation images, whole, one at a time; each rank has a share without repeats."""
        rank, world = self._rank()
        if (size := len(self.source.val)) < world:
            raise ValueError(f"{self.source.name}: {size} validation images are too few for {world} devices; use fewer")
        return eval_loader(self.source.val[rank::world], self.num_workers, self.features)

    def labeled_dataloader(self) -> DataLoader:
        """Every labeled image, one to four times, through the training transform, in a fixed order.

        A last batch of one image is left out: BatchNorm could not take statistics from it.
        """
        passes = max(1, min(4, 512 // len(self.split.labeled)))
        order = [
            (index, view_seed(self.seed, EVERY, turn * len(self.split.labeled) + index))
            for turn in range(passes)
            for index in range(len(self.split.labeled))
        ]
        if len(order) > 1 and len(order) % self.batch_size == 1:
            order = order[:-1]
        return self._loader(self.views(self.split.labeled), order, drop_last=False)

    def steps_in_epoch(self, batches_per_step: int, world: int) -> int:
        """Optimizer steps of an epoch, on so many devices."""
        full_pass = len(self.split.unlabeled) or len(self.split.labeled)
        return self.steps_per_epoch or max(1, round(full_pass / (self.batch_size * batches_per_step * world)))

    def _train_loader(self, samples: Sequence[Sample], stream: int) -> DataLoader:
        rank, world = self._rank()
        batches_per_step = self.trainer.accumulate_grad_batches if self.trainer else 1
        length = self.steps_in_epoch(batches_per_step, world) * batches_per_step * self.batch_size
        showing = None
        if stream == LABELED and self.balanced_crops:
            skipped = self.max_skipped if self.on_error == "skip" else 0.0
            showing = indices_by_class(classes_shown(samples, "Reading masks for balanced crops", skipped))
        sampler = StreamSampler(len(samples), length, self.seed, stream, rank, world, showing)
        epoch, done = self.start
        sampler.resume(epoch, done * batches_per_step * self.batch_size)
        return self._loader(self.views(samples), sampler, drop_last=True)

    def views(self, samples: Sequence[Sample]) -> "Views | FeatureViews":
        """Random training views of these images, or of their features."""
        if self.features is not None:
            mask_of = functools.partial(cached_mask, cache=self.cache)
            return FeatureViews(samples, self.features, mask_of, self.crop_size, self.features.label_stride)
        return Views(
            samples,
            self.crop_size,
            self.scale,
            self.pad_label,
            self.strong_color,
            self.strong_views,
            self.cache,
            self.on_error,
            self.max_skipped,
            self.pad_color,
        )

    def _loader(self, views: Dataset, sampler: object, *, drop_last: bool) -> DataLoader:
        return DataLoader(
            views,
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)


def eval_loader(samples: Sequence[Sample], num_workers: int, features: FrozenFeatures | None = None) -> DataLoader:
    """Whole images, or their features, with their masks, one at a time, in order."""
    whole = WholeImages(samples) if features is None else WholeFeatures(samples, features)
    return DataLoader(whole, batch_size=1, num_workers=num_workers, pin_memory=torch.cuda.is_available())


def indices_by_class(shown: list[int]) -> dict[int, list[int]]:
    """Indices of the samples that show each class, from the classes in each sample as bits (`classes_shown`)."""
    everything = functools.reduce(operator.or_, shown)
    classes = [c for c in range(everything.bit_length()) if everything >> c & 1]
    return {c: [index for index, bits in enumerate(shown) if bits >> c & 1] for c in classes}


class StreamSampler(Sampler[tuple[int, ...]]):
    """An endless shuffled stream, cut into epochs: yields (index, seed of the view).

    The stream is one permutation of the data set after another; an epoch continues where the last one
    ended, whatever its length. Position p of the stream belongs to rank p mod world. With `showing` the class of a
    position is drawn first, all alike, then one of its samples: yields (index, seed of the view, class).

    Args:
        size: images in the data set.
        length: samples in an epoch on this rank.
        seed: of the run.
        stream: LABELED or UNLABELED.
        rank: of this process.
        world: number of processes.
        showing: indices of the samples that show each class.
    """

    def __init__(
        self,
        size: int,
        length: int,
        seed: int,
        stream: int,
        rank: int = 0,
        world: int = 1,
        showing: dict[int, list[int]] | None = None,
    ) -> None:
        self.size, self.length, self.seed, self.stream = size, length, seed, stream
        self.rank, self.world, self.showing, self.epoch = rank, world, showing, 0
        self.start = (0, 0)

    def resume(self, epoch: int, done: int) -> None:
        """Begin at this epoch, and behind this many of its samples on this rank; later epochs are whole."""
        self.epoch, self.start = epoch, (epoch, done)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch to iterate over (the trainer calls this)."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        first = self.epoch * self.length
        done = self.start[1] if self.epoch == self.start[0] else 0
        current, order = None, None
        for step in range(first + done, first + self.length):
            position = step * self.world + self.rank
            seed = view_seed(self.seed, self.stream, position)
            if self.showing:
                generator = np.random.default_rng([seed, 1])
                wanted = int(generator.choice(list(self.showing)))
                yield int(generator.choice(self.showing[wanted])), seed, wanted
                continue
            turn, place = divmod(position, self.size)
            if turn != current:
                current, order = (
                    turn,
                    np.random.default_rng([self.seed, self.stream, turn]).permutation(self.size),
                )
            yield int(order[place]), seed


def view_seed(seed: int, stream: int, position: int) -> int:
    """Seed of the random view at one position of a stream."""
    return int(np.random.SeedSequence([seed, stream, position]).generate_state(1)[0])


class Views(Dataset):
    """Random training views. An index is what `StreamSampler` yields.

    A sample with a mask gives `image` (C, S, S) and `mask` (S, S); one without gives `weak` (C, S, S), `strong`
    (V, C, S, S), V views in other colors, and `valid` (S, S), False on padding. Each has its `name` and the `seed`.
    Images and masks are bytes; `pixels.as_floats` makes a batch of them what networks take.
    A file that turns bad is handled as `SegmentationData` says; `skipped` marks those of all processes.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        crop_size: int,
        scale: tuple[float, float],
        pad_label: int,
        strong_color: bool = False,
        strong_views: int = 1,
        cache: Path | None = None,
        on_error: str = "raise",
        max_skipped: float = 0.05,
        pad_color: Sequence[float] = IMAGENET_MEAN,
    ) -> None:
        self.pad_color = pad_color
        self.samples, self.strong_views, self.cache = samples, strong_views, cache
        self.crop_size, self.scale, self.pad_label = crop_size, scale, pad_label
        self.photometric = photometric() if strong_color else None
        self.on_error, self.max_skipped = on_error, max_skipped
        self.skipped = torch.zeros(len(samples), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, position: tuple[int, ...]) -> dict:
        index, seed, wanted = (*position, None)[:3]
        sample, image, mask = self._read(index)
        generator = np.random.default_rng(seed)
        shown, mask = geometric(
            image, mask, self.crop_size, self.scale, self.pad_label, self.pad_color, generator=generator, wanted=wanted
        )
        weak, mask = as_tensor(shown), torch.from_numpy(mask)
        if sample.mask:
            return {"image": weak, "mask": mask, "name": sample.name, "seed": seed}
        strong = [weak] * self.strong_views
        if self.photometric:
            reseed(self.photometric, seed + 1)
            strong = [as_tensor(recolor(self.photometric, shown)) for _ in strong]
        valid = mask != IGNORE_INDEX
        return {"weak": weak, "strong": torch.stack(strong), "valid": valid, "name": sample.name, "seed": seed}

    def _read(self, index: int) -> tuple[Sample, np.ndarray, np.ndarray]:
        """The sample at `index`, or with on_error=skip the next one that can be read, with its image and mask."""
        while True:
            sample = self.samples[index]
            try:
                return sample, *self._pixels(sample)
            except (DataError, OSError) as error:
                if self.on_error == "raise":
                    raise
                self._skip(index, error)
            index = (index + 1) % len(self.samples)

    def _pixels(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        image = memory_mapped(sample.image, lambda: read_image(sample.image, sample.format), self.cache, sample)
        if not sample.mask:
            return image, np.zeros(image.shape[:2], np.uint8)
        mask = cached_mask(sample, self.cache)
        check_sizes(sample, image.shape[:2], mask.shape)
        return image, mask

    def _skip(self, index: int, error: Exception) -> None:
        known = bool(self.skipped[index])
        self.skipped[index] = True
        count, total = int(self.skipped.sum()), len(self.samples)
        if count > self.max_skipped * total or count == total:
            message = f"{error}; {count} of {total} files are bad by now, more than data.max_skipped={self.max_skipped}"
            raise DataError(f"{message} allows") from None
        if not known:
            warnings.warn(f"{error}; skipped, {count} of {total} by now", stacklevel=2)


class WholeImages(Dataset):
    """Images (C, H, W) of any size with their masks (H, W), all in bytes, and names."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict:
        sample = self.samples[index]
        image, mask = read_pair(sample)
        return {"image": as_tensor(image), "mask": torch.from_numpy(mask), "name": sample.name}


def cached_mask(sample: Sample, cache: Path | None) -> np.ndarray:
    """A sample's mask (H, W), from the cache where there is one."""
    return memory_mapped(sample.mask, lambda: read_mask(sample), cache, sample)


def memory_mapped(path: str, read: Callable[[], np.ndarray], cache: Path | None, sample: Sample) -> np.ndarray:
    """What `read` makes of the file `path`, kept as a .npy file in `cache`: later reads load only the rows they use.

    A file that was changed, or is read in another way, is read anew; without a cache it always is. Processes may share
    the folder: a .npy appears there when it is complete.
    """
    if cache is None:
        return read()
    stat, label_map = os.stat(place_of(path)[0]), sample.label_map
    way = (sample.format, None if label_map is None else label_map.tolist())
    key = hashlib.sha256(repr((os.path.realpath(path), stat.st_mtime_ns, stat.st_size, way)).encode()).hexdigest()
    file = cache / f"{key}.npy"
    if not file.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cache, suffix=".part", delete=False) as part:
            np.save(part, read())
        os.replace(part.name, file)
    return np.load(file, mmap_mode="r")
