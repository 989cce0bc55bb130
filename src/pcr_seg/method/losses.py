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
    """Return the mean cross-entropy over the pixels that are not ignored (255).

    Where all are ignored it is 0, and backward still works. `weights` multiply each pixel's loss; the divisor stays the
    number of pixels.
    """
    loss = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE_INDEX, reduction="none")
    loss = loss if weights is None else loss * weights
    return loss.sum() / (labels != IGNORE_INDEX).sum().clamp(min=1)


def balance(labels: Int[Tensor, "B *S"], num_classes: int, power: float | int = 1.0) -> Float[Tensor, "B *S"]:
    """Return a weight for each pixel: the frequency of its class among the labels to minus `power`.

    Weights are scaled to a mean of 1 over the labeled pixels and are 0 on ignored ones. With power 1 every class has
    the same share of the sum, with power 0 every pixel has.
    """
    known = labels != IGNORE_INDEX
    row = labels.where(known, num_classes)
    counts = torch.zeros(num_classes + 1, device=labels.device).index_add(0, row.flatten(), known.float().flatten())
    weights = counts.clamp(min=1) ** -power
    return known * weights[row] * known.sum() / (weights * counts)[:-1].sum().clamp(min=1e-12)


def balanced_cross_entropy(
    logits: Float[Tensor, "B C *S"], labels: Int[Tensor, "B *S"], *, power: float | int = 0.5
) -> Float[Tensor, ""]:
    """Cross-entropy whose pixels are weighted by `balance`: the rarer a class in the batch, the more its pixels count.

    For rare and small classes, which a short training otherwise does not learn.
    """
    return cross_entropy(logits, labels, balance(labels, logits.shape[1], power))


def ohem_cross_entropy(
    logits: Float[Tensor, "B C *S"],
    labels: Int[Tensor, "B *S"],
    *,
    threshold: float = 0.7,
    min_kept: int = 100_000,
) -> Float[Tensor, ""]:
    """Cross-entropy over the hard pixels (online hard example mining): the mean over those alone.

    Hard are the pixels whose true class has at most the probability `threshold`, and always the `min_kept` hardest.
    With fewer than `min_kept` labeled pixels all of them count. Each process chooses among its own pixels. Source: U2PL
    `OhemCrossEntropy2dTensor`; both numbers are those of the released configurations.
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
    """`ohem_cross_entropy` whose `min_kept` is a number for each image, so that it does not depend on the batch size.

    The released configurations keep 100,000 pixels of the 2 images on a device, so 50,000 of each. The hardest are
    still chosen from all images of one device's batch together.
    """
    return ohem_cross_entropy(logits, labels, threshold=threshold, min_kept=min_kept * len(labels))


def labeled_loss(
    loss: Callable[[Tensor, Tensor], Tensor],
    output: Any,
    labels: Int[Tensor, "B H W"],
    auxiliary_weight: float | int = 0.4,
) -> Float[Tensor, ""]:
    """Return `loss` of the linear head's logits, plus `auxiliary_weight` times that of the auxiliary head's, if any.

    Args:
        loss: takes logits (B, C, H, W) and labels (B, H, W): `cross_entropy`, `ohem_cross_entropy` ...
        output: the network's output; its first B images are the labeled ones.
        labels: class ids, 255 where nothing is known.
        auxiliary_weight: 0.4 in U2PL, which has an auxiliary head on Cityscapes only.
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

    The losses of pixels with confidence >= threshold and label != 255 are added up, then divided by the number of all
    pixels (`divisor="all"`, open point A3 in docs/method.md) or of those with a label other than 255 ("valid"). So the
    loss counts more as more pixels are confident.
    """
    loss = F.cross_entropy(logits.float(), pseudo_labels, ignore_index=IGNORE_INDEX, reduction="none")
    confident = (confidence >= threshold) & (pseudo_labels != IGNORE_INDEX)
    valid = (pseudo_labels != IGNORE_INDEX).sum().clamp(min=1)
    return (loss * confident).sum() / (pseudo_labels.numel() if divisor == "all" else valid)
