"""What the prototype bank is clustered from, once, when the burn-in is over."""

import functools
from collections.abc import Callable, Iterable

import torch
from torch import Generator, Tensor, nn

from pcr_seg.method import IGNORE_INDEX, at_points, jittered_grid, sample_features
from pcr_seg.pixels import as_floats

SCARCE, MOST = 100, 20_000  # features of a class


def labeled_features(
    student: nn.Module, batches: Iterable[dict], grid_cells: int, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Features (N, D) and labels (N,) of labeled pixels.

    Grid points of every labeled image; a class with fewer than 100 of them gets up to 100 random pixels of each
    image that shows it. Of more than 20,000 of a class a uniform random sample is kept.

    Args:
        student: in eval mode.
        batches: `image` (B, 3, H, W) and `mask` (B, H, W) as loaders give them; the same at each pass.
        grid_cells: as in `jittered_grid`.
        generator: of the draws; its device is the student's.
    """
    grid = functools.partial(jittered_grid, cells=grid_cells, generator=generator, device=generator.device)
    by_class = collect(student, batches, lambda labels: grid(*labels.shape), generator)
    scarce = [c for c, features in enumerate(by_class) if len(features) < SCARCE]
    if scarce:
        more = collect(
            student,
            batches,
            lambda labels: torch.cat([random_pixels(labels == c, SCARCE, generator) for c in scarce]),
            generator,
        )
        by_class = [torch.cat([features, more[c]]) for c, features in enumerate(by_class)]
    labels = [torch.full((len(features),), c, device=generator.device) for c, features in enumerate(by_class)]
    return torch.cat(by_class), torch.cat(labels)


def collect(
    student: nn.Module, batches: Iterable[dict], choose: Callable[[Tensor], Tensor], generator: Generator
) -> list[Tensor]:
    """The student's features at the points that `choose` picks from each mask (H, W), for each class.

    Kept of too many are those with the smallest random keys, which travel as one more channel.
    """
    device = generator.device
    kept = [torch.empty(0, student.feature_dim + 1, device=device)] * student.num_classes
    for batch in batches:
        batch = as_floats({key: batch[key].to(device) for key in ("image", "mask")})
        maps = student(batch["image"]).features
        for features, labels in zip(maps, batch["mask"], strict=True):
            points = choose(labels)
            sampled, found = sample_features(features[None], points, labels.shape)[0], at_points(labels, points)
            keys = torch.rand(len(points), 1, generator=generator, device=device)
            keyed = torch.cat([sampled, keys], dim=1)
            for c in set(found.tolist()) - {IGNORE_INDEX}:
                kept[c] = torch.cat([kept[c], keyed[found == c]])
                kept[c] = kept[c][kept[c][:, -1].argsort()[:MOST]]
    return [keyed[:, :-1] for keyed in kept]


def random_pixels(where: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Up to `most` random (row, column) at which `where` (H, W) is True."""
    pixels = where.nonzero()
    return pixels[torch.randperm(len(pixels), generator=generator, device=pixels.device)[:most]]
