"""Regions and their names: against loops, in pseudo-labels, and in what a checkpoint predicts."""

from itertools import product
from pathlib import Path

import pytest
import torch
from conftest import composed, small_config
from torch import Tensor, nn
from torch.testing import assert_close

from pcr_seg.checkpoint import load
from pcr_seg.commands.evaluate import evaluate
from pcr_seg.method import IGNORE_INDEX, Teacher, region_names
from pcr_seg.models.backbones import TimmBackbone
from pcr_seg.predictor import predict_heads
from pcr_seg.training.fit import fit


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_region_features_are_weighted_means() -> None:
    features, probabilities = randn(2, 3, 4, 5), randn(2, 6, 8, 10).softmax(dim=1)
    probabilities[1, 2] = 0
    found = region_names.region_features(features, probabilities)
    for image, c in product(range(2), range(6)):
        total, weight = torch.zeros(3), 0.0
        for row, column in product(range(8), range(10)):
            share = probabilities[image, c, row, column]
            total, weight = total + share * features[image, :, row // 2, column // 2], weight + share
        assert_close(found[image, c], total / weight if weight else total)


@pytest.mark.parametrize(("size", "small"), [((8, 10), (4, 5)), ((33, 41), (5, 7)), ((4, 6), (4, 6)), ((3, 5), (1, 2))])
def test_shrinking_is_area_interpolation(size: tuple[int, int], small: tuple[int, int]) -> None:
    x = randn(2, 3, *size)
    assert_close(region_names.shrink(x, small), torch.nn.functional.interpolate(x, small, mode="area"))


def test_enlarging_is_bilinear_to_whole_pixels() -> None:
    found = region_names.enlarge(images := randn(1, 3, 129, 97), 1.67)
    assert found.shape[-2:] == (215, 162)
    assert_close(found, torch.nn.functional.interpolate(images, (215, 162), mode="bilinear", align_corners=True))


@pytest.mark.parametrize("background", [None, 0, 2])
def test_rename_regions_shares_each_region_out(background: int | None) -> None:
    probabilities, names = randn(2, 3, 4, 5).softmax(dim=1), randn(2, 3, 3)
    found = region_names.rename_regions(probabilities, names, background, inertia=1.5)
    expected = torch.zeros_like(probabilities)
    for image, region in product(range(2), range(3)):
        votes = [names[image, region, c].exp() * (torch.e**1.5 if c == region else 1) for c in range(3)]
        for c, vote in enumerate(votes):
            share = vote / sum(votes) if region != background else float(c == region)
            expected[image, c] += probabilities[image, region] * share
    assert_close(found, expected)
    assert_close(found.sum(dim=1), torch.ones(2, 4, 5))


class Colors(nn.Module):
    """A backbone whose last map is the image itself."""

    def forward(self, images: Tensor) -> list[Tensor]:
        return [images]


def test_a_region_is_the_mean_of_what_a_class_covers_in_an_image() -> None:
    masks = [torch.zeros(4, 6, dtype=torch.long), torch.full((4, 6), 3)]
    masks[0][:, 3:] = 2
    masks[0][0] = IGNORE_INDEX
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(6), indexing="ij")
    batches = [{"image": torch.stack([mask, rows, columns]).float()[None], "mask": mask[None]} for mask in masks]
    features, labels = region_names.labeled_regions(Colors(), batches, 4, 1.0)
    assert labels.tolist() == [0, 2, 3]
    expected = torch.tensor([[0, 2, 1], [2, 2, 4], [3, 1.5, 2.5]])
    assert_close(features, torch.nn.functional.normalize(expected, dim=1))


def test_regions_take_the_names_that_pretrained_features_give_them() -> None:
    torch.manual_seed(0)
    names = region_names.RegionNames(TimmBackbone("test_resnet", output_stride=8), 5)
    names.bank.is_initialized.fill_(True)
    images, logits = randn(2, 3, 32, 32), torch.full((2, 5, 32, 32), -9.0)
    logits[:, 1, :16], logits[:, 2, 16:] = 9, 9  # two regions in each image
    with torch.no_grad():
        larger = torch.nn.functional.interpolate(images, (53, 53), mode="bilinear", align_corners=True)
        maps = names.backbone(larger)[-1]
        names.bank.prototypes.zero_()  # no other class has a look
        names.bank.prototypes[4, 0] = maps[0, :, : maps.shape[2] // 2].mean(dim=(1, 2))  # the upper half, as class 4
        named = names(images, logits).softmax(1)
    assert named[0, 4, :16].min() > 0.9 > named[0, 1, :16].max() and named.sum(1).allclose(torch.ones(()))


def test_mixed_precision_ends_behind_the_backbone() -> None:
    names = region_names.RegionNames(TimmBackbone("test_resnet", output_stride=8), 3)
    names.backbone = nn.Sequential(nn.Identity())
    names.backbone.forward = lambda images: [images[:, :, ::8, ::8].repeat(1, names.bank.prototypes.shape[2], 1, 1)]
    names.bank.prototypes = randn(*names.bank.prototypes.shape)
    names.bank.is_initialized.fill_(True)
    images, logits = randn(2, 1, 32, 40), randn(2, 3, 32, 40)
    expected = names(images, logits)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(names(images, logits), expected, rtol=0, atol=1e-6)


def test_names_are_in_pseudo_labels_in_scores_and_in_the_checkpoint(tmp_path: Path) -> None:
    summary = fit(small_config(tmp_path, "method=pcr_named", "method.burn_in_epochs=1"))
    checkpoint = tmp_path / "run/checkpoints/last.ckpt"
    predictor = load(checkpoint)
    names, network = predictor.method.names, predictor.network
    assert names.background == 0 and names.is_initialized
    assert names.bank.prototypes.any(dim=-1).all(), "every class was labeled"
    student = dict(load(checkpoint, network="student").network.backbone.named_parameters())
    pretrained = names.backbone.named_parameters()
    assert any(not torch.equal(student[name], p) for name, p in pretrained), "the student's has been trained since"

    images, valid = randn(2, 3, 32, 32), torch.ones(2, 32, 32, dtype=torch.bool)
    named = predict_heads(network, predictor.method, images)["linear"]
    assert torch.equal(Teacher(network).label(images, valid, names)[0], named.argmax(1))
    assert_close(predictor(images)["linear"], named)
    plain = predict_heads(network, None, images)["linear"]
    assert not torch.allclose(plain.log_softmax(1), named, atol=1e-3), "naming did something"
    result = evaluate(composed(f"checkpoint={checkpoint}", "device=cpu", name="eval"))
    assert result["miou"] == pytest.approx(summary["miou_last"], abs=1e-4)
