"""Measure what each optimization brings: the plain way and ours on the same inputs, one optimization at a time.

`levers` returns pairs of functions without arguments that return the same values; the tests compare them at a small
size.
"""

import copy
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import plain
import torch
from measure import Row, compare
from PIL import Image
from step import make_module
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from pcr_seg import method
from pcr_seg.data.cache import memory_mapped
from pcr_seg.data.files import Sample, read_image
from pcr_seg.data.transforms import View, show
from pcr_seg.method import IGNORE_INDEX, PrototypeBank
from pcr_seg.models.deeplab import pointwise_by_onednn
from pcr_seg.pixels import as_tensor, normalize


class Lever(NamedTuple):
    """Two functions, the plain way and ours, whose results differ by at most `tolerance`."""

    plain: Callable
    ours: Callable
    tolerance: float


def measure(repeats: int) -> list[Row]:
    """Return a row for each way of each lever."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name, lever in levers(Path(folder), side=512).items():
            found += compare(name, {"plain": lever.plain, "pcr-seg": lever.ours}, repeats)
    return found


def levers(folder: Path, side: int) -> dict[str, Lever]:
    """Return all levers for crops of `side` pixels; files are written to `folder`."""
    return losses(side) | prototypes(side) | networks(side) | data(folder, side) | evaluation(side)


def losses(side: int) -> dict[str, Lever]:
    """Return the levers of pseudo-labels and losses, for 21 classes and two images."""
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(2, 21, side, side, generator=generator)
    labels = torch.randint(21, (2, side, side), generator=generator)
    confidence = torch.rand(labels.shape, generator=generator)
    ignored = labels.masked_fill(confidence < 0.1, IGNORE_INDEX)
    hard = {"threshold": 0.7, "min_kept": labels.numel() // 5}
    leaf = logits.clone().requires_grad_()

    def with_gradient(loss: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        value = loss(leaf)
        return value.detach(), torch.autograd.grad(value, leaf)[0]

    return {
        "pseudo-labels without all probabilities": Lever(
            lambda: plain.pseudo_label(logits), lambda: method.pseudo_label(logits), 1e-5
        ),
        "OHEM by k-th value, no sorting": Lever(
            lambda: with_gradient(lambda x: plain.ohem_cross_entropy(x, ignored, **hard)),
            lambda: with_gradient(lambda x: method.ohem_cross_entropy(x, ignored, **hard)),
            1e-5,
        ),
    }


def prototypes(side: int) -> dict[str, Lever]:
    """Return the levers of prototypes: 21 classes with 4 each, 512 channels, 4 x 1,024 points or every pixel."""
    generator = torch.Generator().manual_seed(0)
    bank = PrototypeBank(21, 4, 512)
    bank.prototypes.copy_(torch.rand(bank.prototypes.shape, generator=generator))
    before = bank.prototypes
    features, labels = torch.rand(4096, 512, generator=generator), torch.randint(21, (4096,), generator=generator)
    feature_map = torch.rand(1, 512, side // 4 + 1, side // 4 + 1, generator=generator)

    def update() -> Tensor:
        bank.update(features, labels)
        moved, bank.prototypes = bank.prototypes, before
        return moved

    return {
        "bank update without loops": Lever(
            lambda: plain.bank_update(before, features, labels, bank.momentum), update, 1e-5
        ),
        "prototype head at every pixel by upsampled products": Lever(
            lambda: plain.dense_logits(before, feature_map, (side, side), bank.temperature),
            lambda: bank.dense_logits(feature_map, (side, side)),
            1e-4,
        ),
    }


def networks(side: int) -> dict[str, Lever]:
    """Return the levers of networks: MobileNetV2 at a quarter of the side."""
    module = make_module("backbone=mobilenetv2", "model.dropout=0")
    last, first = module.student, copy.deepcopy(module.student).to(memory_format=torch.contiguous_format)
    for layer in (*last.modules(), *first.modules()):
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.eval()  # so that results for one batch and for two halves are the same
    labeled, unlabeled = torch.randn(2, 4, 3, side // 4, side // 4, generator=torch.Generator().manual_seed(0))

    def gradients(network: torch.nn.Module, *batches: Tensor) -> Tensor:
        network.zero_grad()
        for images in batches:
            network(images).logits.square().mean().backward(torch.tensor(len(images) / 8))
        return torch.cat([parameter.grad.flatten() for parameter in network.parameters() if parameter.grad is not None])

    both = torch.cat([labeled, unlabeled])
    pointwise = copy.deepcopy(last)
    pointwise_by_onednn(pointwise)
    teachers = [copy.deepcopy(module.teacher.network) for _ in range(2)]

    def averaged(teacher: torch.nn.Module, update: Callable) -> Tensor:
        teacher.load_state_dict(module.teacher.network.state_dict())
        update(teacher, last, 0.9)
        return torch.cat([parameter.flatten() for parameter in teacher.parameters()])

    return {
        "channels last": Lever(partial(gradients, first, both), partial(gradients, last, both), 1e-5),
        "one student forward of both streams": Lever(
            partial(gradients, last, labeled, unlabeled), partial(gradients, last, both), 1e-5
        ),
        "1x1 convolutions by oneDNN": Lever(partial(gradients, last, both), partial(gradients, pointwise, both), 1e-5),
        "teacher's average by one call for all tensors": Lever(
            partial(averaged, teachers[0], plain.ema_update), partial(averaged, teachers[1], method.ema_update), 1e-6
        ),
    }


def data(folder: Path, side: int) -> dict[str, Lever]:
    """Return the levers of data: a view of an image twice as high and four times as wide as the crop."""
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (side // 4, side // 2, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (4 * side, 2 * side))
    mask = cv2.resize(coarse[..., 0], (4 * side, 2 * side), interpolation=cv2.INTER_NEAREST)
    file, cache = folder / "image.png", folder / "cache"
    Image.fromarray(image).save(file)
    sample, quarter = Sample("picture", file), slice(0, side // 2)
    half = View(quarter, quarter, (side, side), False)  # what a scale of 2 shows at the top left

    def shown(pixels: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
        inside = (slice(0, side - 2), slice(0, side - 2))  # the last pixels are interpolated with those beyond the crop
        return torch.from_numpy(pixels[inside].astype(int)), torch.from_numpy(labels[inside].astype(int))

    return {
        "crop, then resize": Lever(
            lambda: shown(*plain.whole_image_view(image, mask, 2.0, side)),
            lambda: shown(show(image, half, side, cv2.INTER_LINEAR, 0), show(mask, half, side, cv2.INTER_NEAREST, 0)),
            0,
        ),
        "decoded pixels memory-mapped": Lever(
            lambda: torch.from_numpy(read_image(file)[half.rows, half.columns]),
            lambda: torch.from_numpy(
                memory_mapped(file, lambda: read_image(file), cache, sample)[half.rows, half.columns].copy()
            ),
            0,
        ),
        "bytes in the batch, floats on the device": Lever(
            lambda: torch.stack([plain.normalize(image[:side, :side])] * 2),
            lambda: normalize(torch.stack([as_tensor(image[:side, :side])] * 2)),
            0,
        ),
    }


def evaluation(side: int) -> dict[str, Lever]:
    """Return the lever of scoring an image of 21 classes."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 21, side, side, generator=generator)
    truth = torch.randint(21, (1, side, side), generator=generator)
    truth = truth.masked_fill(torch.rand(truth.shape, generator=generator) < 0.1, IGNORE_INDEX)

    def counted() -> Tensor:
        counts = multiclass_confusion_matrix(logits.max(dim=1).indices, truth.clamp(max=21), 22, validate_args=False)
        return counts[:-1, :-1]

    return {
        "counting with ignored pixels as a class": Lever(partial(plain.confusion_matrix, logits, truth), counted, 0)
    }


def targets(found: list[Row]) -> list[tuple[str, str, str]]:
    """Return no targets: a lever that brings nothing is removed."""
    return []
