"""Features that are kept: the same as computed anew, never answered from old ones, whole after a kill, shared."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from pcr_seg.data.features import FeatureViews, FixedView, FrozenFeatures
from pcr_seg.data.files import Sample, read_mask
from pcr_seg.models.backbones import TimmBackbone
from pcr_seg.models.mlp import MLP
from pcr_seg.pixels import as_tensor, normalize

CPU = torch.device("cpu")


def network(seed: int = 0, **options) -> MLP:
    torch.manual_seed(seed)
    return MLP(TimmBackbone("test_efficientnet", output_stride=16, freeze="all"), 3, **options).eval()


@pytest.fixture
def samples(tmp_path: Path) -> tuple[Sample, ...]:
    generator, made = np.random.default_rng(0), []
    for name, size in (("a", (65, 97)), ("b", (50, 130)), ("c", (33, 40))):
        Image.fromarray(generator.integers(0, 256, (*size, 3), np.uint8)).save(tmp_path / f"{name}.png")
        mask = np.zeros(size, np.uint8)
        mask[size[0] // 2 :, size[1] // 2 :] = 1
        mask[:8, :8] = 2
        Image.fromarray(mask).save(tmp_path / f"{name}_mask.png")
        made.append(Sample(name, str(tmp_path / f"{name}.png"), str(tmp_path / f"{name}_mask.png")))
    return tuple(made)


def kept(student: MLP, folder: Path | None, samples: tuple[Sample, ...], **options) -> FrozenFeatures:
    features = FrozenFeatures(student, folder=None if folder is None else str(folder), **options)
    features.compute(samples, CPU)
    return features


@pytest.mark.parametrize("maps", [[-2, -1], [8, -2, -1]])
@pytest.mark.parametrize("in_memory", [True, False])
def test_kept_features_give_the_logits_of_the_image(
    tmp_path: Path, samples: tuple[Sample, ...], maps: list[int], in_memory: bool
) -> None:
    student = network(maps=maps)
    features = kept(student, None if in_memory else tmp_path / "kept", samples)
    for sample in samples:
        found = student(features.whole(sample).float()[None])
        expected = student(normalize(as_tensor(np.array(Image.open(sample.image))), student)[None])
        assert_close(found.logits, expected.logits, atol=1e-3, rtol=1e-3)


def test_a_crop_is_a_part_of_the_view_with_its_labels(tmp_path: Path, samples: tuple[Sample, ...]) -> None:
    student = network(maps=[8, -2, -1])
    features = kept(student, tmp_path / "kept", samples, scales=[1.0, 2.0])
    views = FeatureViews(samples, features, read_mask, crop_size=49)
    seen = set()
    for seed in range(40):
        batch = views[0, seed]
        assert batch["image"].shape == (student.width, 7, 7) and batch["mask"].shape == (49, 49)
        for view in features.views:
            whole = features.joined([np.array(values) for values in features.maps(samples[0], view)])
            for top in range(0, whole.shape[1] - 6, 2):
                for left in range(0, whole.shape[2] - 6, 2):
                    part = whole[:, top : top + 7, left : left + 7].float()
                    if torch.allclose(part, batch["image"].float(), atol=1e-2):
                        size = ((whole.shape[2] - 1) * 8 + 1, (whole.shape[1] - 1) * 8 + 1)
                        mask = np.array(Image.open(samples[0].mask).resize(size, Image.Resampling.NEAREST))
                        mask = mask[:, ::-1] if view.mirrored else mask
                        shown = mask[top * 8 : top * 8 + 49, left * 8 : left * 8 + 49]
                        assert (shown != batch["mask"].numpy()).mean() < 0.03  # the two round otherwise
                        seen.add(view)
    assert seen == set(features.views)


def test_where_an_image_ends_its_border_is_repeated_and_ignored(samples: tuple[Sample, ...]) -> None:
    features = kept(network(), None, samples, mirror=False)
    batch = FeatureViews(samples, features, read_mask, crop_size=65)[2, 0]
    assert batch["mask"].shape == (65, 65) and bool((batch["mask"][:33, :33] != 255).all())
    assert bool((batch["mask"][33:] == 255).all() and (batch["mask"][:, 33:] == 255).all())
    assert torch.equal(batch["image"][:, 3], batch["image"][:, 2])
    unlabeled = FeatureViews((samples[2]._replace(mask=None),), features, read_mask, crop_size=65)[0, 0]
    assert torch.equal(unlabeled["valid"], batch["mask"] != 255) and torch.equal(unlabeled["weak"], batch["image"])


def test_a_wanted_class_is_shown(samples: tuple[Sample, ...]) -> None:
    features = kept(network(), None, samples)
    views = FeatureViews(samples, features, read_mask, crop_size=33)
    assert all(bool((views[0, seed, 2]["mask"] == 2).any()) for seed in range(20))


def test_labels_of_every_fourth_pixel(samples: tuple[Sample, ...]) -> None:
    features = kept(network(), None, samples)
    every, fourth = (FeatureViews(samples, features, read_mask, 33, stride)[0, 3]["mask"] for stride in (1, 4))
    assert fourth.shape == (9, 9) and torch.equal(fourth, every[::4, ::4])


def test_other_weights_sizes_and_files_are_computed_anew(tmp_path: Path, samples: tuple[Sample, ...]) -> None:
    folder, first = tmp_path / "kept", samples[0]
    before = kept(network(), folder, samples).key(first, FixedView(), 0)
    assert kept(network(), folder, samples).key(first, FixedView(), 0) == before
    for other in (network(1), network(maps=[8, -1])):
        features = FrozenFeatures(other, folder=str(folder))
        assert not features.has(first, FixedView())
    assert not FrozenFeatures(network(), folder=str(folder), scales=[2.0]).has(first, FixedView(2.0))
    grey = first._replace(format=first.format._replace(channels=1))
    assert not FrozenFeatures(network(), folder=str(folder)).has(grey, FixedView())
    os.utime(first.image, (1, 1))
    changed = FrozenFeatures(network(), folder=str(folder))
    assert not changed.has(first, FixedView()) and changed.has(samples[1], FixedView())


class Killed(FrozenFeatures):
    """Is killed at its seventh file: in the second view of the second image."""

    files = 0

    def keep(self, key: str, features: np.ndarray) -> None:
        self.files += 1
        if self.files == 7:
            raise KeyboardInterrupt
        super().keep(key, features)


def test_a_kill_loses_the_view_it_was_at(tmp_path: Path, samples: tuple[Sample, ...]) -> None:
    with pytest.raises(KeyboardInterrupt):
        Killed(network(), folder=str(tmp_path / "kept")).compute(samples, CPU)
    again = FrozenFeatures(network(), folder=str(tmp_path / "kept"))
    assert [[again.has(sample, view) for view in again.views] for sample in samples] == [[1, 1], [1, 0], [0, 0]]
    again.compute(samples, CPU)
    fresh = kept(network(), None, samples)
    for sample in samples:
        assert torch.equal(again.whole(sample), fresh.whole(sample))


def test_two_at_once_give_one_right_folder(tmp_path: Path, samples: tuple[Sample, ...]) -> None:
    folder, fresh = tmp_path / "kept", kept(network(), None, samples)
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda student: kept(student, folder, samples), [network(), network()]))
    assert not list(folder.glob("*.part"))
    for features in both:
        assert all(torch.equal(features.whole(sample), fresh.whole(sample)) for sample in samples)


def test_a_backbone_that_learns_is_refused() -> None:
    student = MLP(TimmBackbone("test_efficientnet"), 3)
    with pytest.raises(ValueError, match=r"features: needs backbone\.freeze=all and model=mlp"):
        FrozenFeatures(student)
