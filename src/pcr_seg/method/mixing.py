"""Views of unlabeled images, and how they are mixed: CutMix and ClassMix."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from pcr_seg.method.losses import IGNORE_INDEX


class UnlabeledViews(NamedTuple):
    """What a method needs of the unlabeled images beside the weak view. The data module reads it.

    strong: number of strong views of each image.
    color: whether strong views get color jitter, grayscale and blur (the published PCR has none: A10).
    other: whether a second batch of unlabeled images, drawn independently, comes as `unlabeled["other"]`.
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
    """Mix views, pseudo-labels and confidence with the same boxes; with 1 - `probability` the batch stays as it is.

    Each image gets one box (`cutmix_boxes`), filled from the batch's next image. A view is an image or a feature map:
    boxes are drawn at the views' size and enlarged to that of the labels.
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
    """Draw a rectangle of half of the image's area for each image; the mask is True inside.

    Its width is uniform in floor(W/2)+1 .. W-1, its height round(HW / 2 / width), its position uniform. Source: the
    masks for `cutmix` in U2PL's `generate_unsup_data`.
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
    """Draw a rectangle of 2 to 40 % of the image's area for each image, with `probability`; the mask is True inside.

    The area is uniform. Ratio of the sides (uniform in 0.3..1/0.3) and position (uniform) are drawn until the rectangle
    lies inside of the image. Here 64 draws are made at once and the first that fits is taken; if none does, the last is
    moved inside. Source: UniMatch's `obtain_cutmix_box`.
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
    """Resize boxes to `size` (H, W) by nearest neighbour."""
    if boxes.shape[-2:] == tuple(size):
        return boxes
    return F.interpolate(boxes.float(), tuple(size), mode="nearest") > 0


def paste(x: Tensor, boxes: Bool[Tensor, "B 1 H W"], inside: Tensor | None = None) -> Tensor:
    """Replace x (B, ..., H, W) inside of the boxes by `inside`, of the same shape; by default by x's next image."""
    boxes = boxes[:, 0].view(len(x), *[1] * (x.ndim - 3), *boxes.shape[-2:])
    return torch.where(boxes, x.roll(-1, dims=0) if inside is None else inside, x)


def class_mask(
    labels: Int[Tensor, "B H W"], num_classes: int, *, generator: Generator | None = None
) -> Bool[Tensor, "B 1 H W"]:
    """Draw half of the classes of each image (rounded up) and return a mask that is True on their pixels.

    Ignored pixels (255) are False. Source: ClassMix (Olsson et al., WACV 2021), which chooses so among predicted
    classes.
    """
    row = labels.where(labels != IGNORE_INDEX, num_classes).flatten(1)
    shown = torch.zeros(len(labels), num_classes + 1, device=labels.device).scatter_(1, row, 1.0)
    shown[:, -1] = 0  # ignored pixels are no class
    lots = shown * torch.rand(shown.shape, generator=generator, device=labels.device).clamp(min=1e-6)
    place = lots.argsort(dim=1, descending=True).argsort(dim=1)
    drawn = place < (shown.sum(dim=1, keepdim=True) + 1) // 2
    return drawn.gather(1, row).view(labels.shape)[:, None]
