"""Endless shuffled streams of random training views."""

import functools
import operator
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from pcr_seg.data.cache import cached_mask, memory_mapped
from pcr_seg.data.files import IGNORE_INDEX, DataError, Sample, check_sizes, read_image
from pcr_seg.data.transforms import geometric, photometric, recolor, reseed
from pcr_seg.pixels import IMAGENET_MEAN, as_tensor

LABELED, UNLABELED, EVERY, OTHER = range(4)  # streams; each has random numbers of its own


def indices_by_class(shown: list[int]) -> dict[int, list[int]]:
    """Return, for each class that occurs, the indices of the samples that show it, from `classes_shown`."""
    everything = functools.reduce(operator.or_, shown)
    classes = [c for c in range(everything.bit_length()) if everything >> c & 1]
    return {c: [index for index, bits in enumerate(shown) if bits >> c & 1] for c in classes}


class StreamSampler(Sampler[tuple[int, ...]]):
    """An endless shuffled stream of images, cut into epochs: yields (index, seed of the view).

    The stream is one random permutation of the images after another. An epoch goes on where the last one ended, so its
    length need not be that of the data set. Position p of the stream belongs to rank p mod world.

    With `showing` there are no permutations: for each position a class is drawn, all equally often, then one of its
    images. It yields (index, seed of the view, class).

    Args:
        size: number of images.
        length: samples in an epoch on this rank.
        seed: the run's seed.
        stream: LABELED, UNLABELED or OTHER.
        rank: number of this process.
        world: number of processes.
        showing: indices of the images that show each class.
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
        """Go on at this epoch, after `done` of its samples on this rank; later epochs are whole."""
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
    """Return the seed of the random view at a position of a stream."""
    return int(np.random.SeedSequence([seed, stream, position]).generate_state(1)[0])


class Views(Dataset):
    """Random training views; the dataset's indices are what `StreamSampler` yields.

    A sample with a mask gives `image` (C, S, S) and `mask` (S, S). One without a mask gives `weak` (C, S, S), `strong`
    (V, C, S, S), which differs in color only, and `valid` (S, S), False on padding. All have `name` and `seed`. Images
    and masks are uint8; `pixels.as_floats` turns a batch into what networks take.

    Files that cannot be read are treated as `SegmentationData` says. `skipped` marks them and is shared by the loader's
    processes. The arguments are those of `SegmentationData`.
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
        """Read the sample at `index`, or with on_error=skip the next one that can be read; with image and mask."""
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
