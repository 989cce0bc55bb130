"""The usual way of doing what this project does, for comparison.

Each function does with plain operations what published training code does, in the same order and as a competent author
would write it. Docstrings name the code. Nothing here uses `pcr_seg`.
"""

from collections.abc import Callable

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

IGNORE_INDEX = 255
MEAN, STD = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])


# --- the method ---


def prototype_step(
    features: Tensor, labels: Tensor, points: Tensor, prototypes: Tensor, temperature: float, momentum: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss, gradient of the features, and moved prototypes, as PCR's released code computes them.

    Features (B, D, h, w) are upsampled to the size of the labels (B, H, W), picked at points (N, 2) and normalised.
    Logits and update are computed class by class. It is fastest with channels-first features.
    """
    upsampled = F.interpolate(features, labels.shape[-2:], mode="bilinear", align_corners=True)
    rows, columns = points.unbind(1)
    picked, labels = upsampled[:, :, rows, columns].transpose(1, 2).flatten(0, 1), labels[:, rows, columns].flatten()
    unit = F.normalize(picked, dim=1)
    similarities = [unit @ F.normalize(of_class, dim=1).T for of_class in prototypes]
    logits = torch.stack([of_class.max(dim=1).values for of_class in similarities], dim=1) / temperature
    loss = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX)
    [gradient] = torch.autograd.grad(loss, features)
    return loss.detach(), gradient, bank_update(prototypes, picked.detach(), labels, momentum)


def bank_update(prototypes: Tensor, features: Tensor, labels: Tensor, momentum: float) -> Tensor:
    """Move prototypes (C, K, D) one by one towards the mean of the features (N, D) of their class nearest to them.

    As `update_proto` does in PCR's released code.
    """
    moved, unit = prototypes.clone(), F.normalize(features, dim=1)
    for c, of_class in enumerate(prototypes):
        members = labels == c
        if not members.any():
            continue
        nearest = (unit[members] @ F.normalize(of_class, dim=1).T).argmax(dim=1)
        for k in range(len(of_class)):
            if (nearest == k).any():
                moved[c, k] = momentum * of_class[k] + (1 - momentum) * features[members][nearest == k].mean(dim=0)
    return moved


def dense_logits(prototypes: Tensor, features: Tensor, size: tuple[int, int], temperature: float) -> Tensor:
    """Return the prototype head's logits at every pixel, from upsampled and normalised features."""
    unit = F.normalize(F.interpolate(features, size, mode="bilinear", align_corners=True), dim=1)
    cosines = torch.einsum("bdhw,ckd->bckhw", unit, F.normalize(prototypes, dim=2))
    return cosines.max(dim=2).values / temperature


def pseudo_label(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the best class and its probability, from the probabilities of all classes (UniMatch)."""
    confidence, labels = logits.softmax(dim=1).max(dim=1)
    return labels, confidence


def ohem_cross_entropy(logits: Tensor, labels: Tensor, threshold: float, min_kept: int) -> Tensor:
    """Cross-entropy of hard pixels, found by sorting the probabilities of the true class (U2PL)."""
    probability = logits.softmax(dim=1).gather(1, labels.masked_fill(labels == IGNORE_INDEX, 0)[:, None])[:, 0]
    probability = probability.detach().masked_fill(labels == IGNORE_INDEX, 1.0)
    limit = max(threshold, probability.flatten().sort().values[min_kept - 1].item())
    kept = labels.masked_fill(probability > limit, IGNORE_INDEX)
    return F.cross_entropy(logits, kept, ignore_index=IGNORE_INDEX)


def ema_update(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """Average tensor by tensor (U2PL)."""
    with torch.no_grad():
        for ours, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
            ours.mul_(decay).add_((1 - decay) * theirs)
        for ours, theirs in zip(teacher.buffers(), student.buffers(), strict=True):
            ours.copy_(theirs)


def unimatch_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, batch: dict, boxes: list[Tensor], threshold: float
) -> dict[str, float]:
    """Do one step of UniMatch in its own order; return losses and the confident share as numbers.

    Args:
        network: has `encode(images)`, which returns maps, and `decode(maps)`, which returns an output with logits.
        optimizer: the network's.
        batch: `labeled` (image, mask), `unlabeled` and `other` (weak, strong with two views, valid).
        boxes: for each strong view (B, H, W) bool, True where it shows the other batch.
        threshold: least confidence of a pseudo-label that trains, in 0..1.
    """

    def logits_of(maps: list[Tensor]) -> Tensor:
        return F.interpolate(network.decode(maps).logits, size, mode="bilinear", align_corners=True)

    image, mask = batch["labeled"]["image"], batch["labeled"]["mask"]
    weak, valid, other = batch["unlabeled"]["weak"], batch["unlabeled"]["valid"], batch["other"]
    size, strong = mask.shape[-2:], [view.clone() for view in batch["unlabeled"]["strong"].unbind(1)]
    network.eval()
    with torch.no_grad():
        taught = logits_of(network.encode(other["weak"]))
        taught_confidence, taught_labels = taught.softmax(dim=1).max(dim=1)[0], taught.argmax(dim=1)
    for view, box, inside in zip(strong, boxes, other["strong"].unbind(1), strict=True):
        where = box[:, None].expand(view.shape)
        view[where] = inside[where]

    network.train()
    maps = network.encode(torch.cat([image, weak]))
    dropped = [nn.functional.dropout2d(x, 0.5) for x in maps]
    clean, perturbed = logits_of([torch.cat(pair) for pair in zip(maps, dropped, strict=True)]).chunk(2)
    of_labeled, of_weak = clean.split([len(image), len(weak)])
    of_strong = logits_of(network.encode(torch.cat(strong))).chunk(2)
    of_weak = of_weak.detach()
    confidence, labels = of_weak.softmax(dim=1).max(dim=1)[0], of_weak.argmax(dim=1)
    ignored = torch.where(valid, 0, IGNORE_INDEX)

    def unlabeled_loss(logits: Tensor, labels: Tensor, confidence: Tensor, ignored: Tensor) -> Tensor:
        loss = F.cross_entropy(logits, labels, reduction="none")
        loss = loss * ((confidence >= threshold) & (ignored != IGNORE_INDEX))
        return loss.sum() / (ignored != IGNORE_INDEX).sum().item()

    losses = {"supervised": F.cross_entropy(of_labeled, mask, ignore_index=IGNORE_INDEX), "strong": 0.0}
    for logits, box in zip(of_strong, boxes, strict=True):
        mixed = [confidence.clone(), labels.clone(), ignored.clone()]
        insides = (taught_confidence, taught_labels, torch.where(other["valid"], 0, IGNORE_INDEX))
        for values, inside in zip(mixed, insides, strict=True):
            values[box] = inside[box]
        losses["strong"] += unlabeled_loss(logits, mixed[1], mixed[0], mixed[2])
    losses["features"] = unlabeled_loss(perturbed[len(image) :], labels, confidence, ignored)
    loss = (losses["supervised"] + 0.25 * losses["strong"] + 0.5 * losses["features"]) / 2
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    confident = ((confidence >= threshold) & (ignored != IGNORE_INDEX)).sum().item()
    found = {"loss": loss.item(), **{name: value.item() for name, value in losses.items()}}
    return found | {"confident": confident / (ignored != IGNORE_INDEX).sum().item()}


# --- data ---


def training_view(image: Image.Image, mask: Image.Image, crop_size: int, generator: np.random.Generator) -> tuple:
    """Resize the whole image, mirror, pad, crop, convert (U2PL, ST++, UniMatch)."""
    factor = generator.uniform(0.5, 1) if generator.random() < 0.5 else generator.uniform(1, 2)
    size = tuple(int(side * factor) for side in image.size)
    image, mask = image.resize(size, Image.Resampling.BILINEAR), mask.resize(size, Image.Resampling.NEAREST)
    if generator.random() < 0.5:
        image, mask = (part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for part in (image, mask))
    image, mask = np.asarray(image), np.asarray(mask)
    missing = [max(crop_size - side, 0) for side in mask.shape]
    around = [(side // 2, side - side // 2) for side in missing]
    image, mask = np.pad(image, [*around, (0, 0)], mode="edge"), np.pad(mask, around, constant_values=IGNORE_INDEX)
    top, left = (int(generator.integers(side - crop_size + 1)) for side in mask.shape)
    place = (slice(top, top + crop_size), slice(left, left + crop_size))
    pixels = torch.from_numpy(image[place].transpose(2, 0, 1).copy()).float()
    pixels = (pixels - MEAN[:, None, None]) / STD[:, None, None]
    return pixels, torch.from_numpy(mask[place].copy()).long()


def whole_image_view(image: np.ndarray, mask: np.ndarray, factor: float, crop_size: int) -> np.ndarray:
    """Resize the whole image and its mask, then cut the crop at the top left."""
    image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_LINEAR)
    mask = cv2.resize(mask, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
    return image[:crop_size, :crop_size], mask[:crop_size, :crop_size]


def normalize(image: np.ndarray) -> Tensor:
    """Normalize an image (H, W, 3) of uint8 to (3, H, W) of floats, in the image's memory layout."""
    pixels = torch.from_numpy(image).permute(2, 0, 1).float()
    return pixels.sub_(MEAN[:, None, None]).div_(STD[:, None, None])


# --- evaluation ---


def sliding_window(predict: Callable[[Tensor], Tensor], image: Tensor, window: int, stride: int) -> Tensor:
    """Predict one window of the image (1, 3, H, W) at a time, and average logits where windows overlap (UniMatch)."""
    height, width = image.shape[-2:]
    total, count = None, torch.zeros(height, width)
    for row in [*range(0, height - window, stride), height - window]:
        for column in [*range(0, width - window, stride), width - window]:
            place = (..., slice(row, row + window), slice(column, column + window))
            logits = predict(image[place])
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], height, width)
            total[place] += logits
            count[place] += 1
    return total / count


def confusion_matrix(logits: Tensor, truth: Tensor) -> Tensor:
    """Count pixels by [truth, prediction] (C, C), after dropping ignored pixels, as is usual."""
    predicted, num_classes = logits.argmax(dim=1), logits.shape[1]
    known = truth != IGNORE_INDEX
    pairs = truth[known] * num_classes + predicted[known]
    return torch.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
