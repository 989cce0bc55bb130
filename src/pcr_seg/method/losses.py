"""The losses that methods share: pure functions of logits, labels and confidence.

Axes: B images, C classes, H W image, S any spatial axes. Nothing here reads a value back from the device, and no shape
depends on data.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from pcr_seg.method.sampling import upsample

IGNORE_INDEX = 255


def cross_entropy(
    logits: Float[Tensor, "B C *S"], labels: Int[Tensor, "B *S"], weights: Float[Tensor, "B *S"] | None = None
) -> Float[Tensor, ""]:
    """Mean cross-entropy over the pixels that are not ignored; 0, with a graph, when all are.

    `weights` multiply each pixel's loss, not the divisor.
    """
    loss = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE_INDEX, reduction="none")
    loss = loss if weights is None else loss * weights
    return loss.sum() / (labels != IGNORE_INDEX).sum().clamp(min=1)


def balance(labels: Int[Tensor, "B *S"], num_classes: int, power: float | int = 1.0) -> Float[Tensor, "B *S"]:
    """Weights of mean 1 that fall with a class's frequency to this power; 0 where ignored.

    With power 1 every class among the labels has the same share of the sum, with 0 every pixel.
    """
    known = labels != IGNORE_INDEX
    row = labels.where(known, num_classes)
    counts = torch.zeros(num_classes + 1, device=labels.device).index_add(0, row.flatten(), known.float().flatten())
    weights = counts.clamp(min=1) ** -power
    return known * weights[row] * known.sum() / (weights * counts)[:-1].sum().clamp(min=1e-12)


def balanced_cross_entropy(
    logits: Float[Tensor, "B C *S"], labels: Int[Tensor, "B *S"], *, power: float | int = 0.5
) -> Float[Tensor, ""]:
    """Cross-entropy in which a class weighs by its frequency among the batch's labels to minus `power` (`balance`).

    For rare and small classes, which a short training otherwise leaves out.
    """
    return cross_entropy(logits, labels, balance(labels, logits.shape[1], power))


def ohem_cross_entropy(
    logits: Float[Tensor, "B C *S"],
    labels: Int[Tensor, "B *S"],
    *,
    threshold: float = 0.7,
    min_kept: int = 100_000,
) -> Float[Tensor, ""]:
    """Cross-entropy over hard pixels: true-class probability up to `threshold`, at least `min_kept`.

    With fewer than `min_kept` labeled pixels all of them count. The selection is per process and takes
    no gradient. Source: U2PL `OhemCrossEntropy2dTensor`; thresholds from the released configurations.
    """
    loss = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE_INDEX, reduction="none").flatten()
    valid = (labels != IGNORE_INDEX).flatten()
    true_probability = torch.where(valid, (-loss.detach()).exp(), 1.0)
    kth = true_probability.kthvalue(max(1, min(valid.numel(), min_kept))).values
    limit = torch.where(valid.sum() < min_kept, torch.inf, kth.clamp(min=threshold))
    kept = valid & (true_probability <= limit)
    return (loss * kept).sum() / kept.sum().clamp(min=1)


def per_image_ohem_cross_entropy(
    logits: Float[Tensor, "B C H W"],
    labels: Int[Tensor, "B H W"],
    *,
    threshold: float = 0.7,
    min_kept: int = 50_000,
) -> Float[Tensor, ""]:
    """`ohem_cross_entropy` with `min_kept` for each image, so that a batch's size does not change it.

    The released configurations' 100,000 are for the 2 images of a device. Which pixels are hard is still chosen among
    the images of one device's batch.
    """
    return ohem_cross_entropy(logits, labels, threshold=threshold, min_kept=min_kept * len(labels))


def labeled_loss(
    loss: Callable[[Tensor, Tensor], Tensor],
    output: Any,
    labels: Int[Tensor, "B H W"],
    auxiliary_weight: float | int = 0.4,
) -> Float[Tensor, ""]:
    """`loss` of the linear head, plus a share of it for the auxiliary head where the network has one.

    Args:
        loss: of logits (B, C, H, W) and labels (B, H, W): `cross_entropy`, `ohem_cross_entropy` ...
        output: of the network; its first B images are the labeled ones.
        labels: class ids, 255 where nothing is known.
        auxiliary_weight: 0.4 in U2PL, which has the head on Cityscapes alone.
    """
    many, size = len(labels), labels.shape[-2:]
    total = loss(upsample(output.logits[:many], size), labels)
    auxiliary = getattr(output, "auxiliary", None)
    if auxiliary is not None:
        total = total + auxiliary_weight * loss(upsample(auxiliary[:many], size), labels)
    return total


def consistency_loss(
    logits: Float[Tensor, "B C *S"],
    pseudo_labels: Int[Tensor, "B *S"],
    confidence: Float[Tensor, "B *S"],
    threshold: float | int,
    *,
    divisor: Literal["all", "valid"] = "all",
) -> Float[Tensor, ""]:
    """Cross-entropy to the confident pseudo-labels.

    The sum over pixels with confidence >= threshold and label != 255 is divided by the number of all pixels (A3), or of
    those that are not 255, so its weight grows with the teacher's confidence.
    """
    loss = F.cross_entropy(logits.float(), pseudo_labels, ignore_index=IGNORE_INDEX, reduction="none")
    confident = (confidence >= threshold) & (pseudo_labels != IGNORE_INDEX)
    valid = (pseudo_labels != IGNORE_INDEX).sum().clamp(min=1)
    return (loss * confident).sum() / (pseudo_labels.numel() if divisor == "all" else valid)
