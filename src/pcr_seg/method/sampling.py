"""Between a network's resolution and the image's: upsampling, and sampling instead of it.

Axes: B images, D feature channels, H W image, h w feature map, N points.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Generator, Tensor


def upsample(x: Float[Tensor, "B C h w"], size: tuple[int, int] | torch.Size) -> Float[Tensor, "B C H W"]:
    """Bilinear with aligned corners, as everywhere in the reference code; in fp32, which confidence needs."""
    return F.interpolate(x.float(), tuple(size), mode="bilinear", align_corners=True)


def jittered_grid(
    height: int,
    width: int,
    cells: int,
    *,
    generator: Generator | None = None,
    device: torch.device | str | None = None,
) -> Int[Tensor, "N 2"]:
    """Draw one (row, column) inside each of cells x cells cells, row-major.

    Cell i begins at pixel floor(i * side / cells), so every pixel can be drawn. Where the cells divide the side this is
    the reference code's `mask_generation`; elsewhere that leaves out the last side % cells rows and columns.

    Raises:
        ValueError: the image is smaller than the number of cells.
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
    """Values of x (..., H, W) at points of (row, column) -> (..., N)."""
    return x[..., points[:, 0], points[:, 1]]


def sample_features(
    features: Float[Tensor, "B D h w"], points: Int[Tensor, "N 2"], size: tuple[int, int]
) -> Float[Tensor, "B N D"]:
    """Upsample the features to `size` (bilinear, align_corners) and pick `points`, without upsampling.

    The whole map at full resolution would be 514 MiB for each 513x513 image.
    """
    (batch, _, h, w), (rows, columns) = features.shape, points.unbind(1)
    y0, y1, v = neighbours(rows, h, size[0])
    x0, x1, u = neighbours(columns, w, size[1])
    corners = torch.stack([y0 * w + x0, y0 * w + x1, y1 * w + x0, y1 * w + x1], dim=1)
    shares = torch.stack([(1 - u) * (1 - v), u * (1 - v), (1 - u) * v, u * v], dim=1)
    of_image = h * w * torch.arange(batch, device=features.device)[:, None, None]
    # Bags of four rows of a table of pixels, which channels-last features are in memory: its backward makes one map of
    # gradients and adds whole pixels to it.
    table = features.permute(0, 2, 3, 1).flatten(0, 2)
    shares = shares.to(table.dtype).repeat(batch, 1)
    sampled = F.embedding_bag((of_image + corners).flatten(0, 1), table, mode="sum", per_sample_weights=shares)
    return sampled.float().unflatten(0, (batch, -1))


def neighbours(index: Int[Tensor, " N"], small: int, large: int) -> tuple[Tensor, Tensor, Float[Tensor, " N"]]:
    """The two low-resolution positions that a full-resolution one blends, and the share of the second.

    Along one axis of `small` positions upsampled to `large` with aligned corners. In integers: the share
    is exact to the last bit, which a float coordinate is not.
    """
    span = max(large - 1, 1)
    low = (index * (small - 1) // span).clamp(max=max(small - 2, 0))
    return low, (low + 1).clamp(max=small - 1), (index * (small - 1) - low * span) / span
