"""CutMix and ClassMix: areas, places, and the same boxes on every grid."""

from collections import Counter
from itertools import product

import numpy as np
import pytest
import references as ref
import torch
from torch.testing import assert_close
from toys import IGNORED, Size, generator, randn, random_labels

from pcr_seg import method


@pytest.mark.parametrize("size", [(33, 33), (32, 64), (65, 47), (20, 7)])
def test_cutmix_boxes_cover_half_the_image(size: Size) -> None:
    boxes = method.cutmix_boxes(16, *size, generator=generator(0))
    assert (boxes.shape, boxes.dtype) == ((16, 1, *size), torch.bool)
    for _, _, height, width in map(ref.rectangle, boxes[:, 0]):
        assert size[1] // 2 + 1 <= width <= size[1] - 1
        assert abs(height - size[0] * size[1] / 2 / width) <= 0.5


def test_cutmix_boxes_are_uniform_in_width_and_position() -> None:
    counts = Counter(map(ref.rectangle, method.cutmix_boxes(2000, 8, 7, generator=generator(0))[:, 0]))
    shapes = [(7, 4), (6, 5), (5, 6)]
    assert counts.keys() == {(y, x, h, w) for h, w in shapes for y, x in product(range(9 - h), range(8 - w))}
    assert all(30 < count < 140 for count in counts.values())  # five sigma around 2000 / 3 / (8 or 9)


@pytest.mark.parametrize("size", [*product([1, 2, 3], repeat=2)])
def test_cutmix_boxes_of_tiny_images_stay_in_bounds(size: Size) -> None:
    boxes = method.cutmix_boxes(8, *size, generator=generator(0))
    assert (boxes.shape, boxes.dtype) == ((8, 1, *size), torch.bool)
    assert all(map(ref.rectangle, boxes[:, 0]))


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("channels", [(), (3,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.long])
def test_paste(batch: int, channels: Size, dtype: torch.dtype) -> None:
    x = (100 * randn(batch, *channels, 9, 7)).to(dtype)
    before, boxes = x.clone(), method.cutmix_boxes(batch, 9, 7, generator=generator(0))
    assert_close(method.paste(x, boxes), ref.paste(before, boxes), rtol=0, atol=0)
    assert torch.equal(x, before)


@pytest.mark.parametrize("seed", range(5))
def test_class_mask_draws_half_of_the_classes_shown(seed: int) -> None:
    labels = torch.stack([random_labels(6, 7, num_classes=5), torch.full((6, 7), IGNORED), torch.full((6, 7), 3)])
    drawn = method.class_mask(labels, 5, generator=generator(seed))[:, 0]
    for mask, image in zip(drawn, labels, strict=True):
        shown = set(image.unique().tolist()) - {IGNORED}
        inside, outside = set(image[mask].tolist()), set(image[~mask].tolist()) - {IGNORED}
        assert inside | outside == shown and not inside & outside and len(inside) == -(-len(shown) // 2)


def test_class_mask_draws_every_class_alike() -> None:
    labels = torch.tensor([0, 1, 2, 4]).view(1, 2, 2).expand(4000, 2, 2)
    shares = method.class_mask(labels, 6, generator=generator(0))[:, 0].float().mean(0)
    assert_close(shares, torch.full((2, 2), 0.5), atol=0.03, rtol=0)


def naive_small_box(side: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of one box, drawn again until it fits."""
    area = rng.uniform(0.02, 0.4) * side * side
    while True:
        ratio = rng.uniform(0.3, 1 / 0.3)
        height, width = int((area * ratio) ** 0.5), int((area / ratio) ** 0.5)
        top, left = rng.integers(side), rng.integers(side)
        if top + height <= side and left + width <= side:
            return top, left, height, width


def test_small_boxes_are_those_that_are_drawn_until_they_fit() -> None:
    boxes = method.small_boxes(4000, 40, 40, probability=1.0, generator=generator(0))[:, 0]
    rows, columns = boxes.any(2), boxes.any(1)
    assert torch.equal(boxes, rows[:, :, None] & columns[:, None, :]), "rectangles"
    found = [rows.int().argmax(1), columns.int().argmax(1), rows.sum(1), columns.sum(1)]
    rng = np.random.default_rng(0)
    expected = torch.tensor([naive_small_box(40, rng) for _ in range(4000)]).T
    for one, other in zip(found, expected, strict=True):
        assert abs(one.float().mean() - other.float().mean()) < 0.5
        assert abs(one.float().std() - other.float().std()) < 0.5
    share = boxes.float().mean(dim=(1, 2))
    assert 0.01 < share.min() < 0.03 and 0.37 < share.max() <= 0.4


@pytest.mark.parametrize("probability", [0.0, 0.3])
def test_small_boxes_are_drawn_for_each_image_or_not(probability: float) -> None:
    boxes = method.small_boxes(3000, 20, 33, probability=probability, generator=generator(1))
    assert boxes.shape == (3000, 1, 20, 33)
    assert boxes.any(dim=(1, 2, 3)).float().mean().item() == pytest.approx(probability, abs=0.03)
