"""Which features the bank is clustered from."""

import torch
from torch import Tensor, nn

from pcr_seg import bank_init
from pcr_seg.method import IGNORE_INDEX
from pcr_seg.models.deeplab import SegmentorOutput


class Pixels(nn.Module):
    """Features are the image's own channels."""

    num_classes, feature_dim = 4, 3

    def forward(self, images: Tensor) -> SegmentorOutput:
        return SegmentorOutput(images, images, None)


def make_batches(*masks: Tensor) -> list[dict]:
    """The color of a pixel is its class, its row and its column."""
    batches = []
    for mask in masks:
        rows, columns = torch.meshgrid(*map(torch.arange, mask.shape), indexing="ij")
        batches.append({"image": torch.stack([mask, rows, columns]).float()[None], "mask": mask[None]})
    return batches


def collected(*masks: Tensor, cells: int = 10) -> tuple[Tensor, Tensor]:
    return bank_init.labeled_features(Pixels(), make_batches(*masks), cells, torch.Generator().manual_seed(0))


def test_each_feature_carries_its_own_label_and_ignored_pixels_none() -> None:
    mask = torch.randint(3, (40, 40), generator=torch.Generator().manual_seed(1))
    mask[:, :20] = IGNORE_INDEX
    features, labels = collected(mask)
    torch.testing.assert_close(features[:, 0], labels.float(), rtol=0, atol=1e-4)
    assert set(labels.tolist()) == {0, 1, 2} and (features[:, 2] >= 19.9).all()


def test_a_scarce_class_gets_pixels_that_the_grid_missed() -> None:
    mask = torch.zeros(40, 40, dtype=torch.long)
    mask[3, 7:12] = 3
    features, labels = collected(mask, mask)
    assert (labels == 0).sum() >= 190, "the grid's 100 points of each image"
    rare = features[labels == 3]
    assert len(rare) >= 10, "all five pixels of both images"
    assert {round(column) for column in rare[:, 2].tolist()} == {7, 8, 9, 10, 11}


def test_of_many_features_a_fair_sample_is_kept(monkeypatch) -> None:
    monkeypatch.setattr(bank_init, "MOST", 150)
    early, late = torch.zeros(2, 40, 40, dtype=torch.long)
    batches = make_batches(early, late)
    batches[1]["image"][:, 1] += 1000
    features, labels = bank_init.labeled_features(Pixels(), batches, 20, torch.Generator().manual_seed(0))
    from_late = (features[:, 1] > 500).sum()
    assert len(labels) == 150 and 50 < from_late < 100, "of 400 and 400"
