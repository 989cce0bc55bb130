"""Measure what the prototype head adds to a training step: as in the released code, and as in this project.

That is sampling, logits, loss, backward to the features, and the prototypes' update, with the paper's shapes.
"""

from itertools import product

import torch
from measure import Row, compare
from plain import prototype_step
from torch import Tensor

from pcr_seg.method import IGNORE_INDEX, PrototypeBank, cross_entropy, jittered_grid, sample_features

CELLS = 32
THREADS = (1, 2)
SHAPES = ((513, 21, 4, 4), (769, 19, 3, 1))  # crop, classes, prototypes of each, images


def measure(repeats: int) -> list[Row]:
    """Return rows for both of the paper's data sets, with one thread and with two."""
    found, before = [], torch.get_num_threads()
    for threads, (crop, num_classes, num_prototypes, images) in product(THREADS, SHAPES):
        torch.set_num_threads(threads)
        features, labels, bank = inputs(images, 512, crop, num_classes, num_prototypes)
        case = f"{images} x {crop} x {crop}, C={num_classes}, K={num_prototypes}, {threads} thread(s)"
        first = features.detach().contiguous().requires_grad_()  # the layout with which the released code is fastest
        versions = {
            "released": lambda f=first, y=labels, b=bank: released(f, y, b),
            "pcr-seg": lambda f=features, y=labels, b=bank: ours(f, y, b),
            "pcr-seg, channels first": lambda f=first, y=labels, b=bank: ours(f, y, b),
        }
        found += compare(case, versions, repeats)
    torch.set_num_threads(before)
    return found


def inputs(
    images: int, dim: int, crop: int, num_classes: int, num_prototypes: int
) -> tuple[Tensor, Tensor, PrototypeBank]:
    """Return features at a quarter of the crop, labels of the crop, and a filled bank; random, but always the same."""
    generator, small = torch.Generator().manual_seed(0), (crop - 1) // 4 + 1
    features = torch.rand(images, dim, small, small, generator=generator)
    features = features.to(memory_format=torch.channels_last).requires_grad_()  # as the network returns them
    labels = torch.randint(num_classes, (images, crop, crop), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.05] = IGNORE_INDEX
    bank = PrototypeBank(num_classes, num_prototypes, dim)
    bank.prototypes.copy_(torch.rand(bank.prototypes.shape, generator=generator))
    return features, labels, bank


def points_of(labels: Tensor) -> Tensor:
    """Return the grid points that both versions use."""
    return jittered_grid(*labels.shape[-2:], CELLS, generator=torch.Generator().manual_seed(0))


def released(features: Tensor, labels: Tensor, bank: PrototypeBank) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss, gradient of the features, and new prototypes, computed as in the released code."""
    return prototype_step(features, labels, points_of(labels), bank.prototypes, bank.temperature, bank.momentum)


def ours(features: Tensor, labels: Tensor, bank: PrototypeBank) -> tuple[Tensor, Tensor, Tensor]:
    """Return the same, computed as in this project; the bank is put back, so that all calls start alike."""
    before, points = bank.prototypes, points_of(labels)
    sampled = sample_features(features, points, labels.shape[-2:])
    wanted = labels[..., points[:, 0], points[:, 1]]
    loss = cross_entropy(bank(sampled).transpose(1, 2), wanted)
    [gradient] = torch.autograd.grad(loss, features)
    bank.update(sampled.detach().flatten(0, 1), wanted.flatten())
    moved, bank.prototypes = bank.prototypes, before
    return loss.detach(), gradient, moved


def targets(found: list[Row]) -> list[tuple[str, str, str]]:
    """Return each target of the project: what it is about, the goal, and what was measured."""
    pairs = list(zip(found[::3], found[1::3], product(THREADS, SHAPES), strict=True))
    result = []
    for threads in THREADS:
        faster = min(1 / new["ratio"] for _, new, (own, _) in pairs if own == threads)
        result.append(
            (f"prototype head: faster than the released code's way, {threads} thread(s)", "20 x", f"{faster:.0f} x")
        )
    extra = max(new["mebibytes"] / gradient_mebibytes(*shape) for _, new, (_, shape) in pairs)
    return [*result, ("prototype head: extra memory over the features' own gradient", "1.4", f"{extra:.2f}")]


def gradient_mebibytes(crop: int, num_classes: int, num_prototypes: int, images: int) -> float:
    """Return the MiB of the features' gradient, 512 channels at a quarter of the crop."""
    return 4 * 512 * images * ((crop - 1) // 4 + 1) ** 2 / 2**20
