"""The data module: labeled and unlabeled streams of training crops, and the images to validate on."""

import functools
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import lightning.pytorch as L
import torch
from torch.utils.data import DataLoader, Dataset

from pcr_seg.data.cache import cache_folder, cached_mask
from pcr_seg.data.features import FeatureViews, FrozenFeatures
from pcr_seg.data.files import IGNORE_INDEX, Sample, read_mask
from pcr_seg.data.sources import Source
from pcr_seg.data.splits import classes_shown, make_split, refuse_many, split_of_run, tolerant
from pcr_seg.data.streams import (
    EVERY,
    LABELED,
    OTHER,
    UNLABELED,
    StreamSampler,
    Views,
    indices_by_class,
    view_seed,
)
from pcr_seg.data.whole import eval_loader
from pcr_seg.pixels import IMAGENET_MEAN


class SegmentationData(L.LightningDataModule):
    """The images of one run: which are labeled, and how they are cropped and batched.

    Args:
        source: images, masks and classes of the data set.
        labeled: which images are labeled: a fraction ("1_8"), "full", a count, or a file of names.
        family: whose published lists to use, if there are any for the data set: "u2pl" (the paper's), "cps" or
            "unimatch_v2"; "drawn": none.
        lists: folder of published lists; missing ones are downloaded into it.
        crop_size: side of the training crops in pixels.
        batch_size: labeled images in a batch on each device, and as many unlabeled ones.
        scale: smallest and largest factor of the random scale.
        balanced_crops: draw a class for each labeled crop, all classes equally often, then an image and a crop that
            show it; for classes of very unequal frequency.
        pad_label: label of padding; 255 never trains, 0 does as in the reference code.
        steps_per_epoch: optimizer steps in an epoch; by default one pass over the unlabeled images, rounded.
        on_error: what to do about a file that cannot be read, in training or in the check before: "raise" stops and
            names it, "skip" takes the next image instead, always the same one.
        max_skipped: share of a stream's images, 0..1, that may be skipped before the training stops.
        num_workers: loader processes for each stream; by default half of the machine's processors, at most 8.
        seed: of the draw of labeled images, the order and the views. Image and view at each position of the training
            follow from (seed, position) alone, so neither workers nor a restart change them.
        use_unlabeled: load the unlabeled stream; a supervised training does not need it.
        strong_color: color jitter, grayscale and blur on the strong views of unlabeled images.
        strong_views: number of strong views of each image.
        other: load a second stream of unlabeled images, in an order of its own.
        pad_color: RGB in 0..1 of padding around images that are smaller than the crop; the network's mean.
        cache: folder for decoded pixels of training images, written on first use and memory-mapped from then on. It
            takes 3 bytes of disk a pixel (Cityscapes: 19 GB). None: decode each time. "auto": see `cache_folder`.
        features: features of a frozen backbone, to train and validate on instead of images. `scale`, colors and
            `pad_label` then have no effect.
        split_from: a run's folder `splits`, whose split is used instead of `labeled`.

    Raises:
        ValueError: a value is not allowed, or does not fit the data set or the features.
        FileNotFoundError: a list, or an image of a list, is missing.
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
        self.cache = cache_folder(cache, (use_unlabeled and self.split.unlabeled) or self.split.labeled)
        self.features = features
        if features is not None and crop_size % features.stride != 1:
            better = max(1, round((crop_size - 1) / features.stride)) * features.stride + 1
            raise ValueError(
                f"data.crop_size={crop_size}: kept features lie {features.stride} pixels apart; use {better}"
            )
        if features is not None and (crop_size - 1) % features.label_stride:
            raise ValueError(f"features.label_stride={features.label_stride}: does not divide {crop_size - 1}; use 4")
        if on_error not in ("raise", "skip"):
            raise ValueError(f"data.on_error={on_error}: choose raise or skip")
        self.left_out: set[str] = set()  # images without features, with on_error=skip
        self.start = (0, 0)  # where a resumed training goes on: epoch, and optimizer steps done in it
        if use_unlabeled and not self.split.unlabeled:
            raise ValueError(
                f"split={labeled}: every image is labeled, so this method has none to learn from unlabeled; "
                "choose a smaller split, or method=supervised"
            )

    def setup(self, stage: str | None = None) -> None:
        """Compute the features to train on: each rank its share if they are kept in a folder, else all of them."""
        if self.features is None:
            return
        rank, world = self._rank() if self.features.folder else (0, 1)
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        training = (*self.split.labeled, *(self.split.unlabeled if self.use_unlabeled else ()))
        skip = self.on_error == "skip"
        bad = self.features.compute(training[rank::world], device, skip=skip)
        refuse_many(bad, len(training), self.max_skipped)
        if bad:
            warnings.warn(f"{bad[0]}; skipped, {len(bad)} of {len(training)}", stacklevel=2)
        self.features.compute(self.source.val[rank::world], device, whole=True)
        if self.trainer:
            self.trainer.strategy.barrier()
        if skip:
            masks = tolerant(lambda s: s.mask is None or len(read_mask(s)), training, "Masks", self.max_skipped)
            there = [self.features.has(sample, self.features.views[-1]) for sample in training]
            self.left_out = {s.image for s, *good in zip(training, masks, there, strict=True) if not all(good)}

    def train_dataloader(self) -> dict[str, DataLoader]:
        """Return a loader for each stream, all of equal length."""
        loaders = {"labeled": self._train_loader(self.readable(self.split.labeled), LABELED)}
        if self.use_unlabeled:
            unlabeled = self.readable(self.split.unlabeled)
            loaders["unlabeled"] = self._train_loader(unlabeled, UNLABELED)
            if self.other:
                loaders["other"] = self._train_loader(unlabeled, OTHER)
        return loaders

    def readable(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Leave out images whose features could not be computed."""
        return [sample for sample in samples if sample.image not in self.left_out] if self.left_out else samples

    def val_dataloader(self) -> DataLoader:
        """Return a loader of whole validation images, one at a time; each rank has its share, without repeats."""
        rank, world = self._rank()
        if (size := len(self.source.val)) < world:
            raise ValueError(f"{self.source.name}: {size} validation images are too few for {world} devices; use fewer")
        return eval_loader(self.source.val[rank::world], self.num_workers, self.features)

    def labeled_dataloader(self) -> DataLoader:
        """Return a loader of training crops of every labeled image, one to four of each, in a fixed order.

        A last batch of one image is left out, since BatchNorm cannot take statistics from it.
        """
        labeled = self.readable(self.split.labeled)
        passes = max(1, min(4, 512 // len(labeled)))
        order = [
            (index, view_seed(self.seed, EVERY, turn * len(labeled) + index))
            for turn in range(passes)
            for index in range(len(labeled))
        ]
        if len(order) > 1 and len(order) % self.batch_size == 1:
            order = order[:-1]
        return self._loader(self.views(labeled), order, drop_last=False)

    def steps_in_epoch(self, batches_per_step: int, world: int) -> int:
        """Return the optimizer steps of an epoch on `world` devices with `batches_per_step` accumulated batches."""
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

    def views(self, samples: Sequence[Sample]) -> Views | FeatureViews:
        """Return a dataset of random training views of these images, or of their features."""
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
