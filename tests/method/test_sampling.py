"""Grid and sampling against upsampling everything."""

from collections import Counter
from collections.abc import Callable
from itertools import product

import pytest
import references as ref
import torch
from torch import Tensor
from torch.testing import assert_close
from toys import SIZES, Size, generator, output_and_gradient, randn

from pcr_seg import method


@pytest.mark.parametrize("size", [(8, 8, 4), (33, 33, 4), (33, 47, 8), (13, 9, 3), (5, 5, 5), (513, 513, 32)])
def test_jittered_grid_has_one_point_per_cell(size: Size) -> None:
    assert ref.is_jittered_grid(method.jittered_grid(*size), *size)


def test_jittered_grid_is_uniform_and_independent_per_cell() -> None:
    """Also where cells do not divide the sides: 7 rows are cells of 3 and 4, 5 columns of 2 and 3."""
    stream = generator(0)
    grids = torch.stack([method.jittered_grid(7, 5, 2, generator=stream) for _ in range(600)])
    offsets = grids - torch.tensor([[0, 0], [0, 2], [3, 0], [3, 2]])
    sizes = [(3, 2), (3, 3), (4, 2), (4, 3)]
    for cell, (rows, columns) in enumerate(sizes):
        counts = Counter(map(tuple, offsets[:, cell].tolist()))
        expected = 600 / (rows * columns)
        assert counts.keys() == set(product(range(rows), range(columns))), "every pixel is drawn"
        assert all(abs(count - expected) < 5 * expected**0.5 for count in counts.values())
    assert len(offsets[:, :2, 0].unique(dim=0)) == 9  # neighbours do not share their row offset


@pytest.mark.parametrize(("small", "size"), [*SIZES, ((1, 3), (1, 9)), ((95, 125), (375, 500))])
def test_sample_features(small: Size, size: Size) -> None:
    corners = torch.tensor([[0, 0], [0, size[1] - 1], [size[0] - 1, 0], [size[0] - 1, size[1] - 1]])
    inside = (torch.rand(30, 2, generator=generator(1)) * torch.tensor(size)).long()
    points, features = torch.cat([corners, inside]), randn(2, 3, *small)
    expected = output_and_gradient(lambda x: ref.sample_features(x, points, size), features)
    actual = output_and_gradient(lambda x: method.sample_features(x, points, size), features)
    assert_close(actual, expected, rtol=1e-6, atol=1e-6)


DRAWS = [
    lambda g: method.jittered_grid(64, 64, 8, generator=g),
    lambda g: method.cutmix_boxes(4, 65, 65, generator=g),
    lambda g: method.kmeans(randn(100, 8), 5, restarts=1, iterations=1, generator=g),
]


@pytest.mark.parametrize("draw", DRAWS)
def test_the_generator_alone_decides(draw: Callable[[torch.Generator], Tensor]) -> None:
    state = torch.get_rng_state()
    first, again, other = draw(generator(1)), draw(generator(1)), draw(generator(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())
