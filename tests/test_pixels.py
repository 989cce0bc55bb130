"""Bytes to numbers, against the plain formula."""

import types

import numpy as np
import torch
from torch.testing import assert_close

from pcr_seg import pixels


def test_normalize_is_the_plain_formula() -> None:
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)[..., None].repeat(3, axis=-1)
    image[..., 1] = image[..., 1].T
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = torch.from_numpy((image / 255 - mean) / std).permute(2, 0, 1).float()
    normalized = pixels.normalize(pixels.as_tensor(image))
    assert normalized.dtype == torch.float32
    assert_close(normalized, expected, rtol=1e-5, atol=1e-5)
    assert_close(pixels.normalize(pixels.as_tensor(image[:, ::-1])), expected.flip(-1), rtol=1e-5, atol=1e-5)


def test_a_batch_of_bytes_becomes_floats() -> None:
    shown = torch.randint(256, (2, 3, 5, 4), dtype=torch.uint8)
    mask = torch.tensor([[0, 255]], dtype=torch.uint8)
    labeled = {"image": shown, "mask": mask, "name": ["a", "b"]}
    unlabeled = {"weak": shown, "strong": shown[:, None], "valid": torch.tensor([True])}
    batch = pixels.as_floats({"labeled": labeled, "unlabeled": unlabeled})
    images = torch.stack([pixels.normalize(one) for one in shown])
    assert torch.equal(batch["labeled"]["image"], images) and torch.equal(batch["unlabeled"]["weak"], images)
    assert torch.equal(batch["unlabeled"]["strong"], images[:, None])
    assert batch["labeled"]["mask"].tolist() == [[0, 255]] and batch["labeled"]["mask"].dtype == torch.long
    assert batch["labeled"]["name"] == ["a", "b"] and batch["unlabeled"]["valid"] is unlabeled["valid"]
    assert pixels.as_floats(batch["labeled"])["image"] is batch["labeled"]["image"]  # floats are normalized already
    assert labeled["image"] is shown  # whoever made the batch keeps it


def test_grey_is_normalized_as_the_average_of_the_colors() -> None:
    grey = np.full((1, 1, 1), 100, np.uint8)
    expected = (100 / 255 - sum(pixels.IMAGENET_MEAN) / 3) / (sum(pixels.IMAGENET_STD) / 3)
    assert_close(pixels.normalize(pixels.as_tensor(grey)).item(), expected)


def test_a_network_brings_its_own_mean_and_deviation() -> None:
    own = types.SimpleNamespace(mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 1.0))
    normalized = pixels.normalize(pixels.as_tensor(np.full((1, 1, 3), 255, np.uint8)), own)
    assert_close(normalized.flatten(), torch.tensor([2.0, 1.0, 0.5]))
