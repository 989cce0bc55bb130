"""Labeled and unlabeled streams, and the images to validate on."""

import os
from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from pcr_seg.data.sources import IGNORE_INDEX, Sample, Source, read_image, read_mask
from pcr_seg.data.splits import make_split
from pcr_seg.data.transforms import geometric, normalize, photometric, reseed

LABELED, UNLABELED, BANK = range(3)  # streams with random numbers of their own


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
        pad_label: label of padding; 255 never trains, 0 repeats the reference code.
        steps_per_epoch: optimizer steps in an epoch; by default one pass over the unlabeled images, rounded.
        num_workers: loader processes for each stream; by default half of the machine's processors, at most 8.
        seed: of the labeled draw, the order and the views. Sample and view at each position of the training follow
            from (seed, position) alone, so neither workers nor a restart change them.
        use_unlabeled: load the unlabeled stream; a supervised training does not need it.
        strong_color: color jitter, grayscale and blur on the student's views of unlabeled images.
        strong_views: number of those views.
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
        pad_label: int = IGNORE_INDEX,
        steps_per_epoch: int | None = None,
        num_workers: int | None = None,
        seed: int = 0,
        use_unlabeled: bool = True,
        strong_color: bool = False,
        strong_views: int = 1,
    ) -> None:
        super().__init__()
        self.source = source
        self.split = make_split(source, labeled, family=family, seed=seed, lists=Path(lists) if lists else None)
        self.crop_size, self.batch_size, self.steps_per_epoch = crop_size, batch_size, steps_per_epoch
        self.scale, self.pad_label = tuple(scale), pad_label
        self.num_workers = num_workers if num_workers is not None else min(8, (os.cpu_count() or 1) // 2)
        self.seed, self.use_unlabeled = seed, use_unlabeled
        self.strong_color, self.strong_views = strong_color, strong_views
        self.start = (0, 0)  # epoch and optimizer steps of it that a resumed training has behind it
        if use_unlabeled and not self.split.unlabeled:
            raise ValueError(
                f"split={labeled}: every image is labeled, so this method has none to learn from unlabeled; "
                "choose a smaller split, or method=supervised"
            )

    def train_dataloader(self) -> dict[str, DataLoader]:
        """One loader for each stream, of equal length."""
        loaders = {"labeled": self._train_loader(self.split.labeled, LABELED)}
        if self.use_unlabeled:
            loaders["unlabeled"] = self._train_loader(self.split.unlabeled, UNLABELED)
        return loaders

    def val_dataloader(self) -> DataLoader:
        """The validation images, whole, one at a time; each rank has a share without repeats."""
        rank, world = self._rank()
        if (size := len(self.source.val)) < world:
            raise ValueError(f"{self.source.name}: {size} validation images are too few for {world} devices; use fewer")
        return eval_loader(self.source.val[rank::world], self.num_workers)

    def bank_dataloader(self) -> DataLoader:
        """Every labeled image, one to four times, through the training transform, in a fixed order."""
        passes = max(1, min(4, 512 // len(self.split.labeled)))
        order = [
            (index, view_seed(self.seed, BANK, turn * len(self.split.labeled) + index))
            for turn in range(passes)
            for index in range(len(self.split.labeled))
        ]
        return self._loader(self._views(self.split.labeled), order, drop_last=False)

    def _train_loader(self, samples: tuple[Sample, ...], stream: int) -> DataLoader:
        rank, world = self._rank()
        full_pass = len(self.split.unlabeled) or len(self.split.labeled)
        batches_per_step = self.trainer.accumulate_grad_batches if self.trainer else 1
        steps = self.steps_per_epoch or max(1, round(full_pass / (self.batch_size * batches_per_step * world)))
        length = steps * batches_per_step * self.batch_size
        sampler = StreamSampler(len(samples), length, self.seed, stream, rank, world)
        epoch, done = self.start
        sampler.resume(epoch, done * batches_per_step * self.batch_size)
        return self._loader(self._views(samples), sampler, drop_last=True)

    def _views(self, samples: tuple[Sample, ...]) -> "Views":
        return Views(samples, self.crop_size, self.scale, self.pad_label, self.strong_color, self.strong_views)

    def _loader(self, views: "Views", sampler: object, *, drop_last: bool) -> DataLoader:
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


def eval_loader(samples: tuple[Sample, ...], num_workers: int) -> DataLoader:
    """Whole images with their masks, one at a time, in order."""
    return DataLoader(WholeImages(samples), batch_size=1, num_workers=num_workers, pin_memory=torch.cuda.is_available())


class StreamSampler(Sampler[tuple[int, int]]):
    """An endless shuffled stream, cut into epochs: yields (index, seed of the view).

    The stream is one permutation of the data set after another; an epoch continues where the last one
    ended, whatever its length. Position p of the stream belongs to rank p mod world.

    Args:
        size: images in the data set.
        length: samples in an epoch on this rank.
        seed: of the run.
        stream: LABELED or UNLABELED.
        rank: of this process.
        world: number of processes.
    """

    def __init__(self, size: int, length: int, seed: int, stream: int, rank: int = 0, world: int = 1) -> None:
        self.size, self.length, self.seed, self.stream = size, length, seed, stream
        self.rank, self.world, self.epoch = rank, world, 0
        self.start = (0, 0)

    def resume(self, epoch: int, done: int) -> None:
        """Begin at this epoch, and behind this many of its samples on this rank; later epochs are whole."""
        self.epoch, self.start = epoch, (epoch, done)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch to iterate over (the trainer calls this)."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        first = self.epoch * self.length
        done = self.start[1] if self.epoch == self.start[0] else 0
        current, order = None, None
        for step in range(first + done, first + self.length):
            position = step * self.world + self.rank
            turn, place = divmod(position, self.size)
            if turn != current:
                current, order = (
                    turn,
                    np.random.default_rng([self.seed, self.stream, turn]).permutation(self.size),
                )
            yield int(order[place]), view_seed(self.seed, self.stream, position)


def view_seed(seed: int, stream: int, position: int) -> int:
    """Seed of the random view at one position of a stream."""
    return int(np.random.SeedSequence([seed, stream, position]).generate_state(1)[0])


class Views(Dataset):
    """Random training views. An index is (index, seed of the view), as `StreamSampler` yields them.

    A sample with a mask gives `image` (3, S, S) and `mask` (S, S); one without gives `weak` (3, S, S), `strong`
    (V, 3, S, S), V views in other colors, and `valid` (S, S), False on padding; each gives its `name`.
    """

    def __init__(
        self,
        samples: tuple[Sample, ...],
        crop_size: int,
        scale: tuple[float, float],
        pad_label: int,
        strong_color: bool = False,
        strong_views: int = 1,
    ) -> None:
        self.samples, self.strong_views = samples, strong_views
        self.geometric = geometric(crop_size, scale, pad_label)
        self.photometric = photometric() if strong_color else None

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index_and_seed: tuple[int, int]) -> dict:
        index, seed = index_and_seed
        sample = self.samples[index]
        image = read_image(sample.image)
        mask = read_mask(sample) if sample.mask else np.zeros(image.shape[:2], np.uint8)
        reseed(self.geometric, seed)
        view = self.geometric(image=image, mask=mask)
        weak, mask = normalize(view["image"]), torch.from_numpy(view["mask"]).long()
        if sample.mask:
            return {"image": weak, "mask": mask, "name": sample.name}
        strong = [weak] * self.strong_views
        if self.photometric:
            reseed(self.photometric, seed + 1)
            strong = [normalize(self.photometric(image=view["image"])["image"]) for _ in strong]
        return {"weak": weak, "strong": torch.stack(strong), "valid": mask != IGNORE_INDEX, "name": sample.name}


class WholeImages(Dataset):
    """Images (3, H, W) of any size with their masks (H, W) and names."""

    def __init__(self, samples: tuple[Sample, ...]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict:
        sample = self.samples[index]
        mask = torch.from_numpy(read_mask(sample)).long()
        return {"image": normalize(read_image(sample.image)), "mask": mask, "name": sample.name}
