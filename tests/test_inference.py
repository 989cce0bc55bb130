"""`pcr_seg.inference` against naive references."""

import numpy as np
import pytest
import references as ref
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pcr_seg import inference


def make_network(num_classes: int) -> nn.Conv2d:
    """A convolution with zero padding: what it says of a pixel depends on where its window ends."""
    network = nn.Conv2d(3, num_classes, 5, padding=2).requires_grad_(False)
    for i, parameter in enumerate(network.parameters()):
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(i))
    return network


def random_images(*shape: int) -> Tensor:
    """Seeded normal values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("num_classes", [2, 5])
@pytest.mark.parametrize(
    ("size", "window", "stride"),
    [
        ((8, 8), 8, 5),  # one window
        ((13, 17), 8, 5),  # last row fits exactly, last column moves back
        ((9, 24), 8, 8),  # no overlap along a row but for the one moved back down a column
        ((11, 13), 7, 1),  # every start there is
        ((5, 6), 8, 5),  # padded both ways
        ((5, 19), 8, 6),  # padded in height only
        ((21, 3), 9, 6),  # padded in width only
        ((1, 1), 4, 2),
    ],
)
def test_sliding_window(size: tuple[int, int], window: int, stride: int, num_classes: int) -> None:
    network, images = make_network(num_classes), random_images(2, 3, *size)
    inputs = []

    def predict(crops: Tensor) -> Tensor:
        inputs.append(crops)
        return network(crops)

    expected = ref.sliding_window(network, images, window, stride)
    logits = inference.sliding_window(predict, images, window, stride)
    assert {crops.shape[1:] for crops in inputs} == {(3, window, window)}
    assert logits.shape == (2, num_classes, *size)
    assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    assert_close(inference.sliding_window(network, images, window, stride, num_classes=num_classes), logits)


def test_sliding_window_starts_where_published() -> None:
    coordinates = torch.stack(torch.meshgrid(torch.arange(1024.0), torch.arange(2048.0), indexing="ij"))
    images = torch.cat([coordinates, torch.zeros(1, 1024, 2048)])[None]
    starts = []

    def predict(crops: Tensor) -> Tensor:
        starts.extend(map(tuple, crops[:, :2, 0, 0].tolist()))
        return crops[:, :1]

    inference.sliding_window(predict, images, 769, 513)
    assert sorted(starts) == [(row, col) for row in (0, 255) for col in (0, 513, 1026, 1279)]


def test_sliding_window_averages_by_coverage() -> None:
    def predict(crops: Tensor) -> Tensor:
        return crops[:, :1, :1, :1].expand(-1, 1, *crops.shape[2:])  # each window answers its first pixel

    images = torch.arange(6.0).expand(1, 3, 4, 6)
    logits = inference.sliding_window(predict, images, 4, 1)[0, 0, 0]  # windows start at 0, 1, 2
    assert_close(logits, torch.tensor([0, 0.5, 1, 1, 1.5, 2]))


@pytest.mark.parametrize("size", [(5, 7), (16, 16)])
def test_whole_image(size: tuple[int, int]) -> None:
    network, images = make_network(4), random_images(2, 3, *size)
    assert torch.equal(inference.whole_image(network, images), network(images))


@pytest.mark.parametrize(("num_classes", "num_present"), [(2, 2), (2, 1), (5, 5), (5, 3), (21, 7)])
def test_iou_per_class(num_classes: int, num_present: int) -> None:
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(num_present, size=(2, 4, 9, 11))
    truth[0, :2] = ref.IGNORE_INDEX
    confusion = torch.from_numpy(ref.confusion_matrix(truth, prediction, num_classes))
    ious = inference.iou_per_class(confusion)
    expected = ref.iou_per_class(truth, prediction, num_classes)
    assert_close(ious.double(), torch.from_numpy(expected), rtol=1e-6, atol=1e-6, equal_nan=True)
    assert ious.isnan().sum() == num_classes - num_present
    assert ious.nanmean().item() == pytest.approx(ref.miou(truth, prediction, num_classes), abs=1e-6)


def test_iou_is_zero_where_a_class_is_only_missed_or_only_invented() -> None:
    confusion = torch.tensor([[6, 0, 2, 0], [4, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    expected = torch.tensor([0.5, 0.0, 0.0, torch.nan])
    assert_close(inference.iou_per_class(confusion).float(), expected, equal_nan=True)
