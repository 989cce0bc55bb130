"""Datasets and a loader of whole images with their masks, for evaluation."""

from collections.abc import Sequence

import torch
from torch.utils.data import DataLoader, Dataset

from pcr_seg.data.features import FrozenFeatures, WholeFeatures
from pcr_seg.data.files import Sample, read_pair
from pcr_seg.pixels import as_tensor


def eval_loader(samples: Sequence[Sample], num_workers: int, features: FrozenFeatures | None = None) -> DataLoader:
    """Return a loader of whole images, or of their features, with masks: one at a time, in order."""
    whole = WholeImages(samples) if features is None else WholeFeatures(samples, features)
    return DataLoader(whole, batch_size=1, num_workers=num_workers, pin_memory=torch.cuda.is_available())


class WholeImages(Dataset):
    """Images (C, H, W) of any size with their masks (H, W), both uint8, and names."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict:
        sample = self.samples[index]
        image, mask = read_pair(sample)
        return {"image": as_tensor(image), "mask": torch.from_numpy(mask), "name": sample.name}
