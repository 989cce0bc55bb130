"""From the network's resolution to the image's: upsampling of maps, and of features at chosen points alone.

Axes: B images, D feature channels, H W image, h w feature map, N points.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor


def upsample(x: Float[Tensor, "B C h w"], size: tuple[int, int] | torch.Size) -> Float[Tensor, "B C H W"]:
    """Resize to `size`, bilinear with aligned corners as in the reference code; in fp32, for accurate confidences."""
    return F.interpolate(x.float(), tuple(size), mode="bilinear", align_corners=True)


def jittered_grid(
    height: int,
    width: int,
    cells: int,
    *,
    generator: Generator | None = None,
    device: torch.device | str | None = None,
) -> Int[Tensor, "N 2"]:
    """Divide an image into cells x cells cells and draw one (row, column) inside of each; N = cells^2, row-major.

    Cell i begins at pixel floor(i * side / cells), so every pixel can be drawn. If the side is a multiple of `cells`,
    this equals the reference code's `mask_generation`; else that one never draws the last side % cells rows and
    columns.

    Raises:
        ValueError: a side of the image has fewer pixels than there are cells along it.
    """
    if min(height, width) < cells:
        raise ValueError(f"grid_cells={cells} exceeds the crop of {height}x{width} pixels: lower method.grid_cells")
    jitter = torch.rand(2, cells, cells, generator=generator, device=device)
    cell = torch.arange(cells, device=device)
    (first_row, rows), (first_column, columns) = (
        (cell * side // cells, (cell + 1) * side // cells - cell * side // cells) for side in (height, width)
    )
    row = first_row[:, None] + (jitter[0] * rows[:, None]).long()
    column = first_column[None, :] + (jitter[1] * columns[None, :]).long()
    return torch.stack([row, column], dim=-1).flatten(0, 1)


def at_points(x: Tensor, points: Int[Tensor, "N 2"]) -> Tensor:
    """Return the values (..., N) of x (..., H, W) at points (row, column)."""
    return x[..., points[:, 0], points[:, 1]]


def sample_features(
    features: Float[Tensor, "B D h w"], points: Int[Tensor, "N 2"], size: tuple[int, int]
) -> Float[Tensor, "B N D"]:
    """Return what upsampling the features to `size` (bilinear, align_corners) would give at `points` (row, column).

    Only these points are computed: a whole map of 512 channels would be 514 MiB for each 513x513 image.
    """
    (batch, _, h, w), (rows, columns) = features.shape, points.unbind(1)
    y0, y1, v = neighbours(rows, h, size[0])
    x0, x1, u = neighbours(columns, w, size[1])
    corners = torch.stack([y0 * w + x0, y0 * w + x1, y1 * w + x0, y1 * w + x1], dim=1)
    shares = torch.stack([(1 - u) * (1 - v), u * (1 - v), (1 - u) * v, u * v], dim=1)
    of_image = h * w * torch.arange(batch, device=features.device)[:, None, None]
    # The weighted sum of four rows of a table (pixels, channels), which channels-last features are in memory already.
    # embedding_bag's backward adds whole rows to one map of gradients.
    table = features.permute(0, 2, 3, 1).flatten(0, 2)
    shares = shares.to(table.dtype).repeat(batch, 1)
    sampled = F.embedding_bag((of_image + corners).flatten(0, 1), table, mode="sum", per_sample_weights=shares)
    return sampled.float().unflatten(0, (batch, -1))


def neighbours(index: Int[Tensor, " N"], small: int, large: int) -> tuple[Tensor, Tensor, Float[Tensor, " N"]]:
    """Return the two low-resolution positions that each full-resolution `index` blends, and the share of the second.

    This is one axis of a bilinear upsampling from `small` to `large` positions with aligned corners. It is computed in
    integers, so that the share is exact to the last bit; a float coordinate is not.
    """
    span = max(large - 1, 1)
    low = (index * (small - 1) // span).clamp(max=max(small - 2, 0))
    return low, (low + 1).clamp(max=small - 1), (index * (small - 1) - low * span) / span
