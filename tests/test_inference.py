"""`pcr_seg.inference` against naive references."""

import functools
from collections.abc import Callable

import numpy as np
import pytest
import references as ref
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pcr_seg import inference
from pcr_seg.method import PCR
from pcr_seg.models.backbones import TimmBackbone
from pcr_seg.models.deeplab import DeepLab
from pcr_seg.predictor import predict_heads

AWKWARD = [(375, 500), (500, 334), (100, 700), (50, 60), (1, 257)]


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


@pytest.mark.parametrize("size", AWKWARD)
@pytest.mark.parametrize(("window", "stride"), [(128, 86), (97, 97)])
def test_sliding_window_at_awkward_sizes(size: tuple[int, int], window: int, stride: int) -> None:
    network, images = make_network(3), random_images(1, 3, *size)
    expected = ref.sliding_window(network, images, window, stride)
    assert expected.shape == (1, 3, *size)
    assert_close(inference.sliding_window(network, images, window, stride), expected, rtol=1e-5, atol=1e-5)


def test_sliding_window_over_a_cityscapes_image() -> None:
    network, images = make_network(2), random_images(1, 3, 1024, 2048)
    expected = ref.sliding_window(network, images, 769, 513)
    assert_close(inference.sliding_window(network, images, 769, 513), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("window_batch", "calls"), [(1, [2] * 6), (4, [8, 4]), (6, [12]), (50, [12])])
def test_windows_are_predicted_several_at_a_time(window_batch: int, calls: list[int]) -> None:
    network, images = make_network(4), random_images(2, 3, 13, 17)
    sizes = []

    def predict(crops: Tensor) -> Tensor:
        sizes.append(len(crops))
        return network(crops)

    logits = inference.sliding_window(predict, images, 8, 5, window_batch=window_batch)
    assert sizes == calls  # 2 x 3 windows of two images
    assert_close(logits, ref.sliding_window(network, images, 8, 5), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stride", [0, -3, 9])
def test_windows_that_leave_gaps_are_refused(stride: int) -> None:
    with pytest.raises(ValueError, match=rf"protocol.stride={stride}: choose 1 to protocol.window=8"):
        inference.sliding_window(make_network(2), random_images(1, 3, 20, 20), 8, stride)


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


def test_center_pad_by_hand() -> None:
    x = torch.arange(1, 7).reshape(1, 2, 3)
    padded = torch.tensor([[0, 0, 0, 0, 0], [0, 1, 2, 3, 0], [0, 4, 5, 6, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    assert torch.equal(inference.center_pad(x, (5, 5))[0], padded)  # the odd row is the last one
    assert torch.equal(inference.center_pad(x, (3, 2))[0], torch.tensor([[1, 2], [4, 5], [0, 0]]))
    assert torch.equal(inference.center_pad(x, (1, 1))[0], torch.tensor([[2]]))
    assert torch.equal(inference.center_pad(x, (2, 3)), x)


@pytest.mark.parametrize("size", [(375, 500), (500, 334), (513, 513), (1, 2), (600, 514), (512, 700)])
def test_center_pad_is_the_crop_of_the_reference_code(size: tuple[int, int]) -> None:
    """First pad what is missing, the smaller half before; then cut from the middle, rounded down."""
    images = random_images(1, 3, *size)
    before = [max(513 - side, 0) // 2 for side in size]
    canvas = torch.zeros(1, 3, *(max(513, side) for side in size))
    canvas[..., before[0] : before[0] + size[0], before[1] : before[1] + size[1]] = images
    top, left = ((side - 513) // 2 for side in canvas.shape[-2:])
    assert torch.equal(inference.center_pad(images, (513, 513)), canvas[..., top : top + 513, left : left + 513])


@pytest.mark.parametrize("size", [(4, 4), (5, 8), (9, 9), (3, 8)])
def test_center_pad_cuts_back_what_it_padded(size: tuple[int, int]) -> None:
    x = random_images(2, 3, *size)
    assert torch.equal(inference.center_pad(inference.center_pad(x, (9, 9)), size), x)


@pytest.mark.parametrize("size", [(4, 7), (9, 9), (12, 5)])
def test_center_padded_predicts_the_square(size: tuple[int, int]) -> None:
    network, images = make_network(4), random_images(2, 3, *size)
    logits = inference.center_padded(network, images, 9)
    assert torch.equal(logits, network(inference.center_pad(images, (9, 9))))


def naive_multi_scale(predict: Callable, images: Tensor, scales: list[float], flip: bool) -> Tensor:
    """The mean of every view's logits, one by one."""
    height, width = images.shape[-2:]
    outputs = []
    for scale in scales:
        size = round(height * scale), round(width * scale)
        for mirrored in [False, True][: 1 + flip]:
            view = ref.upsample(images, size)
            view = torch.stack(list(view.unbind(-1))[::-1], dim=-1) if mirrored else view
            logits = predict(view)
            logits = torch.stack(list(logits.unbind(-1))[::-1], dim=-1) if mirrored else logits
            outputs.append(ref.upsample(logits, (height, width)))
    return torch.stack(outputs).mean(dim=0)


@pytest.mark.parametrize("size", [(16, 16), (37, 50), (50, 33), (10, 70)])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scales", [[1.0], [0.5, 0.75, 1.0, 1.25, 1.5, 1.75], [2.0, 0.3]])
@pytest.mark.parametrize("window", [None, 20])
def test_multi_scale(size: tuple[int, int], flip: bool, scales: list[float], window: int | None) -> None:
    network, images = make_network(4), random_images(2, 3, *size)
    inner, predict = inference.whole_image, network
    if window:
        inner = functools.partial(inference.sliding_window, window=window, stride=13)
        predict = functools.partial(ref.sliding_window, network, window=window, stride=13)
    logits = inference.multi_scale(network, images, scales, flip, inner)
    assert logits.shape == (2, 4, *size)
    assert_close(logits, naive_multi_scale(predict, images, scales, flip), rtol=1e-4, atol=1e-4)


def test_multi_scale_with_one_plain_scale_changes_nothing() -> None:
    network, images = make_network(4), random_images(2, 3, 13, 20)
    assert torch.equal(inference.multi_scale(network, images, [1.0], flip=False), network(images))


def test_multi_scale_of_a_mirrored_image_is_mirrored() -> None:
    network, images = make_network(4), random_images(2, 3, 13, 20)
    logits, mirrored = (inference.multi_scale(network, x) for x in (images, images.flip(-1)))
    assert_close(mirrored.flip(-1), logits, rtol=1e-4, atol=1e-5)


def test_multi_scale_takes_the_smallest_images() -> None:
    assert inference.multi_scale(make_network(2), random_images(1, 3, 1, 1), [0.25]).shape == (1, 2, 1, 1)


@pytest.fixture(scope="module")
def real() -> tuple[DeepLab, PCR]:
    """A small network in eval mode, and a method with prototypes for its features."""
    torch.manual_seed(0)
    network = DeepLab(TimmBackbone("test_resnet", output_stride=8, ceil_mode=True), 3, channels=4).eval()
    method = PCR(3, network.feature_dim, num_prototypes=2)
    method.bank.prototypes = torch.rand(method.bank.prototypes.shape)
    method.bank.is_initialized.fill_(True)
    return network.requires_grad_(False), method


def side_by_side(network: DeepLab, method: PCR, images: Tensor) -> Tensor:
    return torch.cat(list(predict_heads(network, method, images).values()), dim=1)


def naive_heads(network: DeepLab, method: PCR, images: Tensor) -> Tensor:
    """Everything at full resolution, features too."""
    output, size = network(images), images.shape[-2:]
    return torch.cat(
        [ref.upsample(output.logits, size), ref.dense_logits(method.bank.prototypes, output.features, size, 0.1)], 1
    )


@pytest.mark.parametrize("size", AWKWARD[:-1])
def test_both_heads_of_a_real_network_at_awkward_sizes(real: tuple, size: tuple[int, int]) -> None:
    images = random_images(1, 3, *size)
    predict, naive = (functools.partial(heads, *real) for heads in (side_by_side, naive_heads))
    assert_close(inference.whole_image(predict, images), naive(images), rtol=1e-4, atol=1e-4)
    windows = inference.sliding_window(predict, images, 128, 86)
    assert windows.shape == (1, 6, *size)
    assert_close(windows, ref.sliding_window(naive, images, 128, 86), rtol=1e-4, atol=1e-4)


def test_without_prototypes_there_is_one_head(real: tuple) -> None:
    images, (network, method) = random_images(1, 3, 33, 50), real
    both = predict_heads(network, method, images)
    assert list(both) == ["linear", "prototype"]
    for one in (predict_heads(network, None, images), predict_heads(network, method, images, linear=True)):
        assert list(one) == ["linear"] and torch.equal(both["linear"], one["linear"])


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


def test_disagreement_is_the_chance_that_drawn_labels_differ() -> None:
    logits = 3 * torch.randn(2, 2, 4, 5, 6, generator=torch.Generator().manual_seed(0)).double()
    first, second = logits.softmax(dim=2)
    found = inference.disagreement(*logits)
    for b, y, x in ((0, 0, 0), (1, 4, 5), (1, 2, 3)):
        pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
        assert found[b, y, x].item() == pytest.approx(
            sum((first[b, i, y, x] * second[b, j, y, x]).item() for i, j in pairs)
        )
    torch.testing.assert_close(found, inference.disagreement(*logits.flip(0)))
    sure = torch.tensor([[50.0, 0.0]])[..., None, None]
    assert inference.disagreement(sure, sure).item() == pytest.approx(0)
    assert inference.disagreement(sure, -sure).item() == pytest.approx(1)
