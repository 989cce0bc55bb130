"""The bank and its k-means against naive references, and which features it is clustered from."""

from itertools import product

import pytest
import references as ref
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from toys import BANKS, IGNORED, SIZES, Size, generator, make_bank, output_and_gradient, randn, random_labels

from pcr_seg import method
from pcr_seg.method import PrototypeBank, prototypes
from pcr_seg.models.deeplab import SegmentorOutput


@pytest.mark.parametrize(("num_classes", "num_prototypes"), BANKS)
@pytest.mark.parametrize("leading", [(), (7,), (1, 3, 2)])
def test_bank_logits(num_classes: int, num_prototypes: int, leading: Size) -> None:
    bank, features = make_bank(num_classes, num_prototypes, 6, temperature=0.2), randn(*leading, 6)
    expected = output_and_gradient(lambda x: ref.bank_logits(bank.prototypes, x, 0.2), features)
    assert_close(output_and_gradient(bank, features), expected, rtol=1e-5, atol=1e-5)


def test_dead_prototypes_take_no_part() -> None:
    bank, features = make_bank(3, 2, 4), -torch.rand(5, 4, generator=generator(0)) - 0.1
    bank.prototypes.abs_()  # every living cosine is negative, so a dead one that counts as 0 would win
    bank.prototypes[0, 1], bank.prototypes[2] = 0, 0
    assert_close(bank(features), ref.bank_logits(bank.prototypes, features, 0.1))


@pytest.mark.parametrize(("num_classes", "num_prototypes"), BANKS)
@pytest.mark.parametrize(("small", "size"), SIZES)
def test_dense_logits(num_classes: int, num_prototypes: int, small: Size, size: Size) -> None:
    bank, features = make_bank(num_classes, num_prototypes, 8), randn(2, 8, *small).relu()
    bank.prototypes[0, -1], features[0, :, 0, 0] = 0, 0
    logits = bank.dense_logits(features, size)
    assert_close(logits, ref.dense_logits(bank.prototypes, features, size, 0.1), rtol=0, atol=1e-4)
    assert_close(logits, bank(ref.upsample(features, size).movedim(1, -1)).movedim(-1, 1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_bank_computes_in_single_precision(dtype: torch.dtype, autocast: bool) -> None:
    bank, labels = make_bank(3, 2, 8), random_labels(12, num_classes=3)
    features, dense = randn(12, 8).to(dtype), randn(1, 8, 3, 4).relu().to(dtype)
    before = bank.prototypes.clone()
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        logits, dense_logits = bank(features), bank.dense_logits(dense, (9, 10))
        bank.update(features, labels)
    assert logits.dtype == dense_logits.dtype == bank.prototypes.dtype == torch.float32
    assert_close(logits, ref.bank_logits(before, features.float(), 0.1), rtol=1e-5, atol=1e-5)
    assert_close(dense_logits, ref.dense_logits(before, dense.float(), (9, 10), 0.1), rtol=0, atol=1e-4)
    assert_close(bank.prototypes, ref.bank_update(before, features.float(), labels, 0.99), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("num_classes", "num_prototypes"), BANKS)
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99])
def test_update(num_classes: int, num_prototypes: int, momentum: float) -> None:
    bank = make_bank(num_classes, num_prototypes, 6, momentum=momentum)
    bank.prototypes[0, 0] = 0
    before = bank.prototypes.clone()
    features, labels = 10 * randn(40, 6), random_labels(40, num_classes=num_classes)
    labels[labels == num_classes - 1] = IGNORED  # one class has no pixel at all
    bank.update(features, labels)
    expected = ref.bank_update(before, features, labels, momentum)
    untouched = (expected == before).all(dim=2)
    assert not untouched.all()
    assert_close(bank.prototypes, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(bank.prototypes[untouched], before[untouched])


@pytest.mark.parametrize("num_points", [0, 5])
def test_update_without_labels_changes_nothing(num_points: int) -> None:
    bank = make_bank(3, 2, 4)
    before = bank.prototypes.clone()
    bank.update(randn(num_points, 4), torch.full((num_points,), IGNORED))
    assert torch.equal(bank.prototypes, before)


def test_update_moves_one_of_two_equal_prototypes() -> None:
    bank = make_bank(2, 2, 3, momentum=0.5)
    bank.prototypes[0] = torch.tensor([1.0, 0.0, 0.0])
    bank.update(torch.tensor([[2.0, 0.0, 0.0], [4.0, 2.0, 0.0]]), torch.zeros(2, dtype=torch.long))
    rows = sorted(bank.prototypes[0].tolist())
    assert rows == [[1, 0, 0], [2, 0.5, 0]]


def test_update_before_backward_is_safe_and_leaves_no_graph() -> None:
    bank, features = make_bank(3, 2, 4, momentum=0.5), randn(8, 4).requires_grad_()
    losses = [(bank(features) * (features @ bank.prototypes[0].T).sum()).sum() for _ in range(2)]
    losses[0].backward()
    expected, features.grad = features.grad, None
    bank.update(features, torch.arange(8) % 3)
    losses[1].backward()
    assert torch.equal(features.grad, expected)
    assert not bank.prototypes.requires_grad
    assert not list(bank.parameters())


def test_bank_state_survives_a_round_trip() -> None:
    bank, other = make_bank(3, 2, 4), PrototypeBank(3, 2, 4)
    bank.update(randn(8, 4), torch.arange(8) % 3)
    state, was_initialized = bank.state_dict(), other.is_initialized.item()
    assert {name: (value.dtype, tuple(value.shape)) for name, value in state.items()} == {
        "prototypes": (torch.float32, (3, 2, 4)),
        "is_initialized": (torch.bool, ()),
    }
    other.load_state_dict(state)
    assert (was_initialized, other.is_initialized.item()) == (False, True)
    assert torch.equal(other.prototypes, bank.prototypes)


def worst_match(centers: Tensor, points: Tensor) -> float:
    """The largest distance from a row of either to the nearest row of the other."""
    distances = (centers[:, None] - points[None]).norm(dim=-1)
    return max(distances.amin(dim=0).max().item(), distances.amin(dim=1).max().item())


@pytest.mark.parametrize(("k", "seed"), [*product([1, 2, 4, 6], range(3))])
def test_kmeans_centers_are_raw_means_of_directions(k: int, seed: int) -> None:
    magnitudes = torch.logspace(-1, 1.5, 20)  # so far apart that only the cosine finds the groups
    groups = (torch.eye(8)[:k, None] + 0.05 * randn(k, 20, 8, seed=seed)) * magnitudes[:, None]
    points = groups.reshape(-1, 8)[torch.randperm(20 * k, generator=generator(seed))]
    assert worst_match(method.kmeans(points, k, generator=generator(seed)), groups.mean(dim=1)) < 1e-4


@pytest.mark.parametrize("copies", [1, 5])
@pytest.mark.parametrize(("num_distinct", "k"), [(1, 1), (1, 4), (2, 3), (3, 8)])
def test_kmeans_of_few_distinct_points_copies_them(num_distinct: int, k: int, copies: int) -> None:
    distinct = torch.eye(5)[:num_distinct] * 4 + randn(num_distinct, 5)
    centers = method.kmeans(distinct.repeat(copies, 1), k, generator=generator(0))
    assert centers.shape == (k, 5)
    assert worst_match(centers, distinct) < 0.1


def test_kmeans_of_one_direction_is_never_nan_or_zero() -> None:
    points = torch.arange(6.0)[:, None].expand(6, 3)  # the origin among them
    centers = method.kmeans(points, 3, generator=generator(0))
    assert centers.isfinite().all()
    assert centers.any(dim=1).all()


def test_kmeans_without_points_returns_zeros() -> None:
    assert torch.equal(method.kmeans(torch.zeros(0, 5), 3), torch.zeros(3, 5))


# ------------------------------------------------------------------------- what the bank is clustered from


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
    return method.labeled_features(Pixels(), make_batches(*masks), cells, torch.Generator().manual_seed(0))


def test_each_feature_carries_its_own_label_and_ignored_pixels_none() -> None:
    mask = torch.randint(3, (40, 40), generator=torch.Generator().manual_seed(1))
    mask[:, :20] = IGNORED
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
    monkeypatch.setattr(prototypes, "MOST", 150)
    early, late = torch.zeros(2, 40, 40, dtype=torch.long)
    batches = make_batches(early, late)
    batches[1]["image"][:, 1] += 1000
    features, labels = method.labeled_features(Pixels(), batches, 20, torch.Generator().manual_seed(0))
    from_late = (features[:, 1] > 500).sum()
    assert len(labels) == 150 and 50 < from_late < 100, "of 400 and 400"
