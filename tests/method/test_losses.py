"""Losses against loops over pixels."""

from collections.abc import Callable

import pytest
import references as ref
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from toys import IGNORED, LOGITS, Size, generator, output_and_gradient, randn, random_labels

from pcr_seg import method
from pcr_seg.method import losses


@pytest.mark.parametrize("shape", LOGITS)
def test_cross_entropy(shape: Size) -> None:
    logits, labels = 3 * randn(*shape), random_labels(shape[0], *shape[2:], num_classes=shape[1])
    expected = output_and_gradient(lambda x: ref.cross_entropy(x, labels), logits)
    assert_close(output_and_gradient(lambda x: method.cross_entropy(x, labels), logits), expected)


@pytest.mark.parametrize("shape", LOGITS)
@pytest.mark.parametrize("min_kept", [1, 7, 30, 1000])
@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_ohem_cross_entropy(shape: Size, min_kept: int, threshold: float) -> None:
    labels = random_labels(shape[0], *shape[2:], num_classes=shape[1])
    answers = nn.functional.one_hot(labels.clamp(max=shape[1] - 1), shape[1]).movedim(-1, 1)
    logits = 2 * randn(*shape) + 4 * answers  # mostly right, so that now the threshold decides, now min_kept
    options = {"threshold": threshold, "min_kept": min_kept}
    expected = output_and_gradient(lambda x: ref.ohem_cross_entropy(x, labels, **options), logits)
    actual = output_and_gradient(lambda x: method.ohem_cross_entropy(x, labels, **options), logits)
    assert_close(actual, expected)


def test_ohem_counts_valid_pixels_only_and_keeps_ties() -> None:
    logits, labels = (
        torch.tensor([2.0, 0.0])[None, :, None].repeat(1, 1, 6),
        torch.tensor([[0, 0, 0, 1, IGNORED, IGNORED]]),
    )
    easy, hard = torch.tensor([-2.0, 2.0]).exp().log1p()  # three pixels tie at probability 0.88, one has 0.12
    plain = (3 * easy + hard) / 4
    assert_close(method.ohem_cross_entropy(logits, labels, min_kept=5), plain)  # fewer valid pixels than that
    assert_close(method.ohem_cross_entropy(logits, labels, min_kept=2), plain)  # the second has twins
    assert_close(method.ohem_cross_entropy(logits, labels, min_kept=1), hard)


@pytest.mark.parametrize("shape", LOGITS)
@pytest.mark.parametrize("threshold", [0.0, 0.65, 1.1])
def test_consistency_loss(shape: Size, threshold: float) -> None:
    logits, labels = 3 * randn(*shape), random_labels(shape[0], *shape[2:], num_classes=shape[1])
    confidence = torch.rand(labels.shape, generator=generator(3))
    confidence[0, ..., :3] = threshold  # just enough
    expected = output_and_gradient(lambda x: ref.consistency_loss(x, labels, confidence, threshold), logits)
    actual = output_and_gradient(lambda x: method.consistency_loss(x, labels, confidence, threshold), logits)
    assert_close(actual, expected)


LOSSES = [
    method.cross_entropy,
    method.ohem_cross_entropy,
    lambda logits, labels: method.ohem_cross_entropy(logits, labels, min_kept=1),
    lambda logits, labels: method.consistency_loss(logits, labels, torch.ones(labels.shape), 0.5),
]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shape", LOGITS)
def test_all_ignored_is_zero_with_a_graph(loss: Callable[[Tensor, Tensor], Tensor], shape: Size) -> None:
    logits, labels = randn(*shape).requires_grad_(), torch.full((shape[0], *shape[2:]), IGNORED)
    value = loss(logits, labels)
    value.backward()
    assert torch.equal(value, torch.tensor(0.0))
    assert torch.equal(logits.grad, torch.zeros(shape))


@pytest.mark.parametrize("shape", LOGITS)
def test_balanced_weights_give_each_class_the_same_share(shape: Size) -> None:
    labels = random_labels(shape[0], *shape[2:], num_classes=shape[1])
    labels[labels == 0] = 1
    weights = losses.balance(labels, shape[1])
    shares = [weights[labels == c].sum() for c in range(shape[1]) if (labels == c).any()]
    assert_close(torch.stack(shares), torch.full((len(shares),), (labels != IGNORED).sum() / len(shares)))
    assert not weights[labels == IGNORED].any()
    logits = randn(*shape)
    by_class = [
        ref.cross_entropy(logits, labels.where(labels == c, IGNORED)) for c in range(shape[1]) if (labels == c).any()
    ]
    assert_close(method.cross_entropy(logits, labels, weights), sum(by_class) / len(by_class))
    assert_close(method.balanced_cross_entropy(logits, labels, power=1.0), sum(by_class) / len(by_class))
    assert_close(method.balanced_cross_entropy(logits, labels, power=0.0), method.cross_entropy(logits, labels))


def test_per_image_ohem_cross_entropy_keeps_as_many_of_each_image_whatever_the_batch() -> None:
    logits, labels = 3 * randn(4, 5, 20, 20), random_labels(4, 20, 20, num_classes=5)
    whole = method.per_image_ohem_cross_entropy(logits, labels, threshold=0.0, min_kept=70)
    assert_close(whole, method.ohem_cross_entropy(logits, labels, threshold=0.0, min_kept=280))
    repeated = method.per_image_ohem_cross_entropy(
        logits[:1].repeat(3, 1, 1, 1), labels[:1].repeat(3, 1, 1), threshold=0.0, min_kept=70
    )
    assert_close(repeated, method.per_image_ohem_cross_entropy(logits[:1], labels[:1], threshold=0.0, min_kept=70))


def test_the_divisor_may_leave_ignored_pixels_out() -> None:
    logits, labels = 3 * randn(2, 4, 6, 6), random_labels(2, 6, 6, num_classes=4)
    confidence = torch.rand(2, 6, 6, generator=generator(3))
    both = [method.consistency_loss(logits, labels, confidence, 0.4, divisor=divisor) for divisor in ("all", "valid")]
    assert_close(both[1] * (labels != IGNORED).float().mean(), both[0])
    nothing = torch.full_like(labels, IGNORED)
    assert method.consistency_loss(logits, nothing, confidence, 0.4, divisor="valid") == 0
