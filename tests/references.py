"""Naive references for `pcr_seg.method` and `pcr_seg.inference`: slow, short, meant to be obviously right."""

from collections.abc import Callable
from itertools import product

import albumentations as A
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

IGNORE_INDEX = 255


# --- prototypes ---


def cosine(feature: Tensor, prototype: Tensor) -> Tensor:
    """Cosine of two vectors: -1 for an all-zero prototype (not alive yet), 0 for an all-zero feature."""
    if not prototype.any():
        return torch.tensor(-1.0)
    if not feature.any():
        return torch.tensor(0.0)
    return (feature * prototype).sum() / (feature.norm() * prototype.norm())


def bank_logits(prototypes: Tensor, features: Tensor, temperature: float) -> Tensor:
    """(C, K, D) and (..., D) -> (..., C), one scalar at a time."""
    rows = [
        torch.stack([torch.stack([cosine(feature, p) for p in of_class]).max() for of_class in prototypes])
        for feature in features.reshape(-1, features.shape[-1])
    ]
    return torch.stack(rows).reshape(*features.shape[:-1], len(prototypes)) / temperature


def bank_update(prototypes: Tensor, features: Tensor, labels: Tensor, momentum: float) -> Tensor:
    """The prototypes after one update, assigned by the prototypes before it; ties go to the lower index."""
    updated = prototypes.clone()
    for c, k in product(range(prototypes.shape[0]), range(prototypes.shape[1])):
        members = []
        for feature, label in zip(features, labels.tolist(), strict=True):
            if label == c:
                similarities = [cosine(feature, prototype).item() for prototype in prototypes[c]]
                if similarities.index(max(similarities)) == k:
                    members.append(feature)
        if members:
            updated[c, k] = momentum * prototypes[c, k] + (1 - momentum) * torch.stack(members).mean(dim=0)
    return updated


def upsample(features: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, D, h, w) -> (B, D, H, W)."""
    return F.interpolate(features, size=size, mode="bilinear", align_corners=True)


def dense_logits(prototypes: Tensor, features: Tensor, size: tuple[int, int], temperature: float) -> Tensor:
    """The prototype head at every pixel of features upsampled to full size."""
    pixels = F.normalize(upsample(features, size), dim=1)
    cosines = torch.einsum("bdhw,ckd->bckhw", pixels, F.normalize(prototypes, dim=2))
    dead = ~prototypes.any(dim=2)
    return cosines.masked_fill(dead[None, :, :, None, None], -1.0).amax(dim=2) / temperature


# --- sampling ---


def is_jittered_grid(points: Tensor, height: int, width: int, cells: int) -> bool:
    """Whether point a * cells + b lies in cell (a, b), whose sides begin at floor(a * height / cells) and so on."""
    if points.shape != (cells * cells, 2) or points.dtype != torch.long:
        return False

    def inside(at: int, cell: int, side: int) -> bool:
        return cell * side // cells <= at < (cell + 1) * side // cells

    return all(
        inside(row, a, height) and inside(col, b, width)
        for (a, b), (row, col) in zip(product(range(cells), repeat=2), points.tolist(), strict=True)
    )


def sample_features(features: Tensor, points: Tensor, size: tuple[int, int]) -> Tensor:
    """Upsample everything, then index: (B, D, h, w), (N, 2) -> (B, N, D)."""
    full = upsample(features.double(), size)  # in single precision its own weights are off by up to 1e-5
    return torch.stack([full[:, :, row, col] for row, col in points.tolist()], dim=1).to(features.dtype)


# --- losses ---


def pixels_of(logits: Tensor, labels: Tensor) -> list[tuple[Tensor, int]]:
    """(B, C, *S), (B, *S) -> one (logits over the classes, label) per pixel."""
    rows = logits.movedim(1, -1).reshape(-1, logits.shape[1])
    return list(zip(rows, labels.flatten().tolist(), strict=True))


def pixel_cross_entropy(row: Tensor, label: int) -> Tensor:
    """Cross-entropy of one pixel."""
    return torch.logsumexp(row, dim=0) - row[label]


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the pixels that are not ignored, 0 where all are."""
    losses = [pixel_cross_entropy(row, y) for row, y in pixels_of(logits, labels) if y != IGNORE_INDEX]
    return torch.stack(losses).mean() if losses else 0 * logits.sum()


def ohem_cross_entropy(logits: Tensor, labels: Tensor, threshold: float, min_kept: int) -> Tensor:
    """Cross-entropy over the pixels whose true class gets at most max(threshold, min_kept-th smallest)."""
    pixels = pixels_of(logits, labels)
    if sum(y != IGNORE_INDEX for _, y in pixels) < min_kept:
        return cross_entropy(logits, labels)
    q = [1.0 if y == IGNORE_INDEX else row.softmax(dim=0)[y].item() for row, y in pixels]
    threshold = max(threshold, sorted(q)[min(len(q), min_kept) - 1])
    kept = [
        pixel_cross_entropy(row, y)
        for (row, y), q_i in zip(pixels, q, strict=True)
        if y != IGNORE_INDEX and q_i <= threshold
    ]
    return torch.stack(kept).mean()


def consistency_loss(logits: Tensor, pseudo_labels: Tensor, confidence: Tensor, threshold: float) -> Tensor:
    """Sum over the confident pixels that are not ignored, divided by the number of all pixels."""
    total = 0 * logits.sum()
    for (row, label), kappa in zip(pixels_of(logits, pseudo_labels), confidence.flatten(), strict=True):
        if label != IGNORE_INDEX and kappa >= threshold:
            total = total + pixel_cross_entropy(row, label)
    return total / pseudo_labels.numel()


# --- CutMix and EMA ---


def rectangle(mask: Tensor) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the one filled rectangle in an (H, W) mask; refuses any other shape."""
    rows, cols = mask.any(dim=1).nonzero().flatten().tolist(), mask.any(dim=0).nonzero().flatten().tolist()
    if not rows:
        return 0, 0, 0, 0
    top, left, height, width = rows[0], cols[0], rows[-1] - rows[0] + 1, cols[-1] - cols[0] + 1
    filled = torch.zeros_like(mask)
    filled[top : top + height, left : left + width] = True
    assert torch.equal(mask, filled), "not a filled rectangle"
    return top, left, height, width


def paste(x: Tensor, boxes: Tensor) -> Tensor:
    """Inside box i the content of image i + 1, pixel by pixel."""
    mixed = x.clone()
    for i, row, col in product(range(x.shape[0]), range(x.shape[-2]), range(x.shape[-1])):
        if boxes[i, 0, row, col]:
            mixed[i, ..., row, col] = x[(i + 1) % len(x), ..., row, col]
    return mixed


def ema(teacher: nn.Module, student: nn.Module, decay: float, rule: str = "copy") -> dict[str, Tensor]:
    """The teacher's state after one update; the rule is that of its float buffers."""
    old, new, parameters = teacher.state_dict(), student.state_dict(), dict(student.named_parameters())
    expected = {}
    for name in new:
        how = "average" if name in parameters else rule if new[name].is_floating_point() else "copy"
        average = decay * old[name] + (1 - decay) * new[name]
        expected[name] = {"average": average, "copy": new[name].clone(), "keep": old[name].clone()}[how]
    return expected


# --- views ---


def geometric(image, mask, crop_size, scale, pad_label, generator) -> tuple[np.ndarray, np.ndarray]:
    """The same draws, but the whole image is scaled, then cropped, mirrored and padded."""
    if scale[0] < 1 < scale[1]:
        factor = generator.uniform(scale[0], 1) if generator.random() < 0.5 else generator.uniform(1, scale[1])
    else:
        factor = generator.uniform(*scale)
    size = [max(1, int(side * factor)) for side in mask.shape]
    starts = [int(generator.integers(max(side - crop_size, 0) + 1)) for side in size]
    place = tuple(slice(start, start + crop_size) for start in starts)
    mirrored = generator.random() < 0.5
    padded = []
    for pixels, how, fill in ((image, cv2.INTER_LINEAR, (124, 116, 104)), (mask, cv2.INTER_NEAREST, pad_label)):
        crop = cv2.resize(pixels, size[::-1], interpolation=how)[place]
        crop = crop[:, ::-1] if mirrored else crop
        result = np.full((crop_size, crop_size, *pixels.shape[2:]), fill, np.uint8)
        top, left = ((crop_size - side) // 2 for side in crop.shape[:2])
        result[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
        padded.append(result)
    return tuple(padded)


def albumentations_geometric(crop_size: int) -> A.Compose:
    """Scale the whole image by 0.5 to 2, mirror, pad, crop, as a well-known library does each."""
    halves = [A.RandomScale(scale_limit=limit, p=1) for limit in ((-0.5, 0), (0, 1))]
    crop = [
        A.PadIfNeeded(crop_size, crop_size, fill=(124, 116, 104), border_mode=0),
        A.RandomCrop(crop_size, crop_size),
    ]
    return A.Compose([A.OneOf(halves, p=1), A.HorizontalFlip(p=0.5), *crop])


# --- inference ---


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Multiples of the stride, the last one moved back so that its window ends with the image."""
    return [*range(0, length - window, stride), length - window]


def sliding_window(predict: Callable[[Tensor], Tensor], images: Tensor, window: int, stride: int) -> Tensor:
    """One image and one window at a time; a small image gets zeros at the bottom and on the right."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (0, max(window - width, 0), 0, max(window - height, 0)))
    outputs = []
    for image in padded:
        total, count = torch.tensor(0.0), torch.zeros(image.shape[-2:])
        for top in window_starts(image.shape[-2], window, stride):
            for left in window_starts(image.shape[-1], window, stride):
                crop = image[:, top : top + window, left : left + window]
                right, bottom = image.shape[-1] - left - window, image.shape[-2] - top - window
                total = total + F.pad(predict(crop[None])[0], (left, right, top, bottom))
                count[top : top + window, left : left + window] += 1
        outputs.append((total / count)[:, :height, :width])
    return torch.stack(outputs)


def confusion_matrix(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """(C, C) counts [truth, prediction] of the pixels that are not ignored."""
    confusion = np.zeros((num_classes, num_classes), dtype=np.int64)
    for t, p in zip(truth.ravel(), prediction.ravel(), strict=True):
        if t != IGNORE_INDEX:
            confusion[t, p] += 1
    return confusion


def iou_per_class(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """Intersection over union from pixel sets; NaN for a class that is in neither."""
    valid, ious = truth != IGNORE_INDEX, []
    for c in range(num_classes):
        union = (((truth == c) | (prediction == c)) & valid).sum()
        ious.append(((truth == c) & (prediction == c)).sum() / union if union else np.nan)
    return np.array(ious)


def miou(truth: np.ndarray, prediction: np.ndarray, num_classes: int) -> float:
    """Mean over the classes present in the truth or in the prediction of the whole set."""
    ious = [iou for iou in iou_per_class(truth, prediction, num_classes) if not np.isnan(iou)]
    return sum(ious) / len(ious)
