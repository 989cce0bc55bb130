"""1x1 heads on a backbone's maps: sizes, alignment, features in place of images, strong views, a frozen backbone."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from pcr_seg.method.teacher import Teacher
from pcr_seg.models.backbones import TimmBackbone
from pcr_seg.models.mlp import MLP, grid_size

FROZEN = {"output_stride": 16, "freeze": "all"}


def network(**options) -> MLP:
    torch.manual_seed(0)
    return MLP(TimmBackbone("test_efficientnet", **FROZEN), 3, **options).eval()


def images(*size: int) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("maps", "side"), [([-2, -1], 5), ([8, -2, -1], 9), ([4, -1], 17)])
def test_maps_meet_at_the_finest_one(maps: list[int], side: int) -> None:
    output = network(maps=maps, projection=6)(images(65, 65))
    assert output.logits.shape == (2, 3, side, side) and output.features.shape == (2, 6, side, side)


def test_coarser_maps_are_upsampled_with_aligned_corners() -> None:
    student = network(maps=[8, -1])
    fine, coarse = student.raw(images(65, 81))
    expected = torch.cat([fine, F.interpolate(coarse, fine.shape[-2:], mode="bilinear", align_corners=True)], dim=1)
    assert_close(student.join([fine, coarse]), expected)


@pytest.mark.parametrize(("size", "shown"), [((65, 65), (65, 65)), ((70, 100), (65, 97)), ((9, 30), (17, 33))])
def test_images_are_shown_in_the_next_size_whose_cells_lie_on_pixels(size: tuple, shown: tuple) -> None:
    assert grid_size(size, 16) == shown


def test_features_in_place_of_images_give_the_same() -> None:
    student = network()
    student.standardize([{"image": images(65, 65)}])
    features = student.join(student.raw(images(65, 97)))
    for ours, theirs in zip(student(features)[:2], student(images(65, 97))[:2], strict=True):
        assert_close(ours, theirs)


def test_features_are_standardised_by_the_images_shown_once() -> None:
    student = network()
    student.standardize([{"image": images(65, 65)}])
    standard = student.encode(images(65, 65))[0].transpose(0, 1).flatten(1)
    assert_close(standard.mean(1), torch.zeros(student.width), atol=1e-3, rtol=0)
    assert_close(standard.std(1), torch.ones(student.width), atol=2e-2, rtol=0)
    before = student.feature_mean.clone()
    student.standardize([{"image": images(33, 33)}])
    assert torch.equal(student.feature_mean, before)


def test_a_strong_view_lacks_channels_and_has_noise() -> None:
    student = network(channel_dropout=0.5, noise=0.1)
    student.standardize([{"image": images(65, 65)}])
    features = student.join(student.raw(images(65, 65)))
    torch.manual_seed(0)
    strong = student.perturb(features)
    missing = (strong == student.feature_mean).flatten(2).all(dim=2)
    assert 0.4 < missing.float().mean() < 0.6 and not torch.equal(missing[0], missing[1])
    noise = ((strong - features) / student.feature_std).movedim(1, 2)[~missing[:, None].expand(-1, 5, -1)]
    assert 0.08 < noise.std() < 0.12
    assert torch.equal(network(channel_dropout=0.0, noise=0.0).perturb(features), features)


def test_linear_has_no_hidden_layer() -> None:
    student = network(channels=None)
    assert student.feature_dim == student.width
    features = student.encode(images(65, 65))[0]
    assert_close(student(images(65, 65)).logits, F.conv2d(features, *student.linear_head.parameters()))


def test_a_frozen_backbone_neither_learns_nor_counts_and_is_shared() -> None:
    student = network(head_lr_multiplier=3)
    teacher, before = Teacher(student, decay=0.5), copy.deepcopy(student.backbone.state_dict())
    assert teacher.network.backbone is student.backbone and teacher.network.hidden is not student.hidden
    (group,) = student.parameter_groups(0.1)
    assert group["lr"] == pytest.approx(0.3)
    student.train()(images(65, 65)).logits.sum().backward()
    torch.optim.SGD(group["params"], lr=1.0).step()
    teacher.follow(student)
    teacher.follow(student)
    for key, value in student.backbone.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert all(parameter.grad is None for parameter in student.backbone.parameters())


def test_a_map_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"model\.maps: test_efficientnet has no map 5; choose"):
        network(maps=[5, -1])
