"""Views of unlabeled images, and how they are mixed: CutMix and ClassMix."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from pcr_seg.method.losses import IGNORE_INDEX


class UnlabeledViews(NamedTuple):
    """What a method needs of the unlabeled stream beside the weak view, for whoever loads it.

    strong: number of strong views of each image.
    color: color jitter, grayscale and blur on them (A10: the published PCR has none).
    other: a second batch of unlabeled images with the same views in `unlabeled["other"]`, drawn independently.
    """

    strong: int = 1
    color: bool = False
    other: bool = False


def cutmix(
    views: Float[Tensor, "B D h w"],
    labels: Int[Tensor, "B *K H W"],
    confidence: Float[Tensor, "B *K H W"],
    probability: float,
) -> tuple[Float[Tensor, "B D h w"], Int[Tensor, "B *K H W"], Float[Tensor, "B *K H W"]]:
    """Mix views, pseudo-labels and confidence with the same boxes: the whole batch with this probability, or nothing.

    A box shows the batch's next image. Boxes are drawn on the views' grid and enlarged for the labels: a view may be an
    image or a feature map.
    """
    boxes = cutmix_boxes(len(views), *views.shape[-2:], device=views.device)
    boxes = boxes & (torch.rand((), device=views.device) < probability)
    large = on_grid(boxes, labels.shape[-2:])
    return paste(views, boxes), paste(labels, large), paste(confidence, large)


def cutmix_boxes(
    batch: int,
    height: int,
    width: int,
    *,
    generator: Generator | None = None,
    device: torch.device | str | None = None,
) -> Bool[Tensor, "B 1 H W"]:
    """One rectangle per image, True inside, of half the image's area.

    Width uniform in floor(W/2)+1 .. W-1, height round(HW / 2 / width), position uniform. Source: U2PL
    `generate_unsup_data` and its `cutmix` masks.
    """
    u = torch.rand(3, batch, generator=generator, device=device)
    narrowest = min(width // 2 + 1, width)
    box_width = narrowest + (u[0] * max(width - narrowest, 1)).long()
    box_height = (height * width / 2 / box_width).round().long().clamp(1, height)
    left = (u[1] * (width - box_width + 1)).long()[:, None]
    top = (u[2] * (height - box_height + 1)).long()[:, None]
    rows = torch.arange(height, device=device)
    columns = torch.arange(width, device=device)
    in_rows = (rows >= top) & (rows < top + box_height[:, None])
    in_columns = (columns >= left) & (columns < left + box_width[:, None])
    return (in_rows[:, :, None] & in_columns[:, None, :])[:, None]


def small_boxes(
    batch: int,
    height: int,
    width: int,
    *,
    probability: float = 0.5,
    generator: Generator | None = None,
    device: torch.device | str | None = None,
) -> Bool[Tensor, "B 1 H W"]:
    """For each image, with this probability, one rectangle of 2 to 40 % of its area, True inside.

    Area uniform; sides in a ratio uniform in 0.3..1/0.3, position uniform, drawn again until the rectangle lies inside
    (of 64 draws the first that does; the last is moved inside). Source: UniMatch's `obtain_cutmix_box`.
    """
    lot = torch.rand(5, batch, 64, generator=generator, device=device)
    area = (0.02 + 0.38 * lot[0, :, :1]) * height * width
    ratio = 0.3 + (1 / 0.3 - 0.3) * lot[1]
    box_height, box_width = ((area * r).sqrt().long() for r in (ratio, 1 / ratio))
    top, left = (lot[2] * height).long(), (lot[3] * width).long()
    inside = (top + box_height <= height) & (left + box_width <= width)
    inside[:, -1] = True
    first = inside.float().argmax(dim=1, keepdim=True)
    box_height, box_width = box_height.clamp(max=height), box_width.clamp(max=width)
    top, left = torch.minimum(top, height - box_height), torch.minimum(left, width - box_width)
    top, left, box_height, box_width = (x.gather(1, first) for x in (top, left, box_height, box_width))
    rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
    in_rows = (rows >= top) & (rows < top + box_height)
    in_columns = (columns >= left) & (columns < left + box_width)
    drawn = lot[4, :, :1, None] < probability
    return (in_rows[:, :, None] & in_columns[:, None, :] & drawn)[:, None]


def on_grid(boxes: Bool[Tensor, "B 1 h w"], size: tuple[int, int] | torch.Size) -> Bool[Tensor, "B 1 H W"]:
    """The same boxes on another grid, of `size`: each of its cells takes the value at its place."""
    if boxes.shape[-2:] == tuple(size):
        return boxes
    return F.interpolate(boxes.float(), tuple(size), mode="nearest") > 0


def paste(x: Tensor, boxes: Bool[Tensor, "B 1 H W"], inside: Tensor | None = None) -> Tensor:
    """Fill each box of image i, x (B, ..., H, W), with the same place of image i of `inside` (by default x's next)."""
    boxes = boxes[:, 0].view(len(x), *[1] * (x.ndim - 3), *boxes.shape[-2:])
    return torch.where(boxes, x.roll(-1, dims=0) if inside is None else inside, x)


def class_mask(
    labels: Int[Tensor, "B H W"], num_classes: int, *, generator: Generator | None = None
) -> Bool[Tensor, "B 1 H W"]:
    """True on half of the classes that each image shows, rounded up, drawn at random; False on ignored pixels.

    Source: ClassMix (Olsson et al., WACV 2021), which cuts the other image's predicted classes out like this.
    """
    row = labels.where(labels != IGNORE_INDEX, num_classes).flatten(1)
    shown = torch.zeros(len(labels), num_classes + 1, device=labels.device).scatter_(1, row, 1.0)
    shown[:, -1] = 0  # ignored pixels are no class
    lots = shown * torch.rand(shown.shape, generator=generator, device=labels.device).clamp(min=1e-6)
    place = lots.argsort(dim=1, descending=True).argsort(dim=1)
    drawn = place < (shown.sum(dim=1, keepdim=True) + 1) // 2
    return drawn.gather(1, row).view(labels.shape)[:, None]
