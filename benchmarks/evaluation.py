"""Measure what evaluation costs beyond the network's forward, for whole images and sliding windows."""

from functools import partial

import plain
import torch
from measure import Row, compare, peak_mebibytes
from step import CLASSES, make_module
from torch import Tensor

from pcr_seg.inference import Protocol, sliding_window, whole_image
from pcr_seg.module import Segmentation
from pcr_seg.predictor import predict_heads

SIZE, WINDOW, STRIDE = (1024, 2048), 769, 513


def measure(repeats: int) -> list[Row]:
    """Return rows of the network alone, and of prediction and scoring with one head and with both."""
    module = make_module("backbone=mobilenetv2").eval()
    images, mask = torch.randn(1, 3, *SIZE), torch.randint(len(CLASSES), (1, *SIZE))
    network, predicted = module.teacher.network, partial(predict, module, images)
    windows = partial(sliding_window, window=WINDOW, stride=STRIDE)
    found = []
    with torch.inference_mode():
        versions = {
            "network alone": lambda: network(images),
            "prediction": lambda: predicted(whole_image, linear=True),
            "prediction, both heads": lambda: predicted(whole_image),
            "validation, both heads": lambda: score(module, whole_image, images, mask),
        }
        found += compare(f"whole image, {SIZE[0]} x {SIZE[1]}", versions, repeats)
        versions = {
            "network alone, same windows": lambda: windows(partial(passes_alone, network), images),
            "window by window": lambda: plain.sliding_window(partial(logits, network), images, WINDOW, STRIDE),
            "prediction": lambda: predicted(windows, linear=True),
            "prediction, both heads": lambda: predicted(windows),
            "validation, both heads": lambda: score(module, windows, images, mask),
        }
        found += compare(f"windows of {WINDOW} every {STRIDE}, {SIZE[0]} x {SIZE[1]}", versions, repeats)
        small, small_mask = images[..., :256, :512], mask[..., :256, :512]
        peaks = {f"{n} images": peak_mebibytes(lambda n=n: many(module, small, small_mask, n)) for n in (2, 8)}
        first = next(iter(peaks.values()))
        found += [
            {"case": "memory of a validation, 256 x 512", "version": name, "milliseconds": None, "quartiles": None,
             "ratio": peak / first, "mebibytes": peak} for name, peak in peaks.items()
        ]  # fmt: skip
    return found


def passes_alone(network: torch.nn.Module, crops: Tensor) -> Tensor:
    """Run the network, and return something small instead of logits, so that nothing else costs time."""
    network(crops)
    return crops[:, :1]


def logits(network: torch.nn.Module, crops: Tensor) -> Tensor:
    """Return the linear head's logits at full size."""
    return predict_heads(network, None, crops)["linear"]


def predict(module: Segmentation, images: Tensor, protocol: Protocol, *, linear: bool = False) -> dict[str, Tensor]:
    """Return the logits of both heads, or with `linear` of the linear one alone."""
    module.protocol = protocol
    return module.predictor.scored(images, linear=linear)


def score(module: Segmentation, protocol: Protocol, images: Tensor, mask: Tensor) -> None:
    """Do what a validation does with an image."""
    module.protocol = protocol
    module.validation_step({"image": images, "mask": mask}, 0)


def many(module: Segmentation, images: Tensor, mask: Tensor, count: int) -> None:
    """Validate an image `count` times."""
    for _ in range(count):
        score(module, whole_image, images, mask)


def targets(found: list[Row]) -> list[tuple[str, str, str]]:
    """Return each target of the project: what it is about, the goal, and what was measured."""
    window = {row["version"]: row["ratio"] for row in found if row["case"].startswith("windows")}
    return [
        ("sliding window over the network on the same windows", "1.1", f"{window['prediction']:.2f}"),
        ("memory of 8 validated images over that of 2", "1.0", f"{found[-1]['ratio']:.2f}"),
    ]
