"""Small inputs for the tests of tensor functions, drawn from seeds."""

from collections.abc import Callable

import references as ref
import torch
from torch import Tensor

from pcr_seg.method import PrototypeBank

Size = tuple[int, ...]
IGNORED = ref.IGNORE_INDEX
BANKS = [(2, 1), (2, 4), (5, 3), (21, 4)]  # classes, prototypes per class
LOGITS = [(1, 2, 9), (2, 4, 5, 7), (3, 21, 3, 5)]
SIZES = [((5, 7), (33, 41)), ((9, 9), (33, 33)), ((1, 1), (8, 8)), ((1, 5), (8, 17)), ((6, 4), (6, 4))]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def random_labels(*shape: int, num_classes: int) -> Tensor:
    labels = torch.randint(num_classes, shape, generator=generator(0))
    return labels.masked_fill(torch.rand(shape, generator=generator(1)) < 0.2, IGNORED)


def make_bank(num_classes: int, num_prototypes: int, dim: int, **options: float) -> PrototypeBank:
    """A bank filled by hand, which the contract says is enough."""
    bank = PrototypeBank(num_classes, num_prototypes, dim, **options)
    bank.prototypes.copy_(randn(num_classes, num_prototypes, dim, seed=7))
    bank.is_initialized.fill_(True)
    return bank


def output_and_gradient(function: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and the gradient that a fixed random upstream gradient gives."""
    leaf = at.detach().clone().requires_grad_()
    output = function(leaf)
    return output.detach(), torch.autograd.grad(output, leaf, randn(*output.shape, seed=99))[0]
