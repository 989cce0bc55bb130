"""The prototype bank, and the k-means that finds its first prototypes in labeled images.

Axes: B images, C classes, K prototypes per class, D feature channels, H W image, h w feature map, N points, S any
spatial axes. What runs in each step never waits for a value from the device; `initialize` and its helpers run once and
may.
"""

import functools
from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

from pcr_seg.method.losses import IGNORE_INDEX
from pcr_seg.method.sampling import at_points, jittered_grid, neighbours, sample_features, upsample

SCARCE, MOST = 100, 20_000  # a class with fewer features gets more of them; of more than MOST a sample is clustered


class PrototypeBank(nn.Module):
    """K prototypes for each class in feature space: the second, distance-based predictor.

    Prototypes are averages of features and are stored un-normalised; every comparison is a cosine. They take no
    gradient: only `initialize` and `update` change them. A prototype that is zero has no data yet, and its cosine
    counts as -1.

    Args:
        num_classes: C.
        num_prototypes: K; the paper uses 4 (VOC) and 3 (Cityscapes).
        feature_dim: D.
        temperature: divides the cosines; 0.1 in the reference code.
        momentum: share of the old prototype kept in an update, in 0..1; 0.99 in the released configurations.
    """

    prototypes: Float[Tensor, "C K D"]
    is_initialized: Bool[Tensor, ""]

    def __init__(
        self,
        num_classes: int,
        num_prototypes: int,
        feature_dim: int,
        *,
        temperature: float = 0.1,
        momentum: float = 0.99,
    ) -> None:
        super().__init__()
        self.temperature, self.momentum = temperature, momentum
        self.register_buffer("prototypes", torch.zeros(num_classes, num_prototypes, feature_dim))
        self.register_buffer("is_initialized", torch.tensor(False))

    def cosines(self, features: Float[Tensor, "*S D"]) -> Float[Tensor, "*S C K"]:
        """Return the cosine of each feature with each prototype, in fp32 also under autocast."""
        with torch.autocast(features.device.type, enabled=False):
            unit = F.normalize(features.float(), dim=-1)
            cosines = torch.einsum("...d,ckd->...ck", unit, F.normalize(self.prototypes, dim=-1))
        return cosines.masked_fill(~self._has_data(), -1.0)

    def forward(self, features: Float[Tensor, "*S D"]) -> Float[Tensor, "*S C"]:
        """Return logits: the largest cosine over a class's K prototypes, divided by the temperature."""
        return self.cosines(features).amax(dim=-1) / self.temperature

    def dense_logits(self, features: Float[Tensor, "B D h w"], size: tuple[int, int]) -> Float[Tensor, "B C H W"]:
        """Return the logits that `forward` would give of the features upsampled to `size` (bilinear, align_corners).

        The features themselves, D channels at full size, are never made. Upsampling is linear, so the dot products with
        the prototypes are upsampled instead. The norm of an upsampled feature follows from products of neighbouring
        features (`upsampled_norm`). Prototypes are taken one of each class at a time: C full-size maps, not C * K.
        """
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            dots = torch.einsum("bdhw,ckd->kbchw", features, F.normalize(self.prototypes, dim=-1))
            # The cosine of a prototype without data is -1: its dot product is far below any other, and clamped at last.
            dots = dots.masked_fill(~self._has_data().T[:, None, :, None, None], -1e30)
            largest = upsample(dots[0], size)
            for further in dots[1:]:
                largest = torch.maximum(largest, upsample(further, size))
            norm = upsampled_norm(features, size).clamp(min=1e-12)
            return (largest / norm[:, None]).clamp(min=-1.0) / self.temperature

    @torch.no_grad()
    def update(self, features: Float[Tensor, "N D"], labels: Int[Tensor, " N"]) -> Float[Tensor, "C K"]:
        """Move each prototype towards the mean of the features that chose it, and return how many chose it.

        Each feature chooses, among the prototypes of its label's class, that with the largest cosine (the first of
        equals); then all prototypes move at once. Features labeled 255 are skipped, and a prototype that none chose
        stays bit-equal. Sums and counts are added over all ranks, so every rank gets the bank that one process would
        get from the ranks' batches together. Source: reference code `update_proto`.
        """
        num_classes, num_prototypes, dim = self.prototypes.shape
        features, valid = features.float(), labels != IGNORE_INDEX
        target = labels.where(valid, 0)
        nearest = self.cosines(features)[torch.arange(len(labels), device=labels.device), target].argmax(dim=-1)
        # Skipped features go to an extra row, which is cut off: no shape then depends on their number.
        row = torch.where(valid, target * num_prototypes + nearest, num_classes * num_prototypes)
        ones = features.new_ones(len(features), 1)
        totals = features.new_zeros(num_classes * num_prototypes + 1, dim + 1)
        totals = totals.index_add(0, row, torch.cat([features, ones], dim=1))[:-1]
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(totals)
        sums, counts = totals.unflatten(0, (num_classes, num_prototypes)).split([dim, 1], dim=-1)
        moved = self.momentum * self.prototypes + (1 - self.momentum) * sums / counts.clamp(min=1)
        # A new tensor, never in place: the losses' backward may still need the old prototypes.
        self.prototypes = torch.where(counts > 0, moved, self.prototypes)
        return counts[..., 0]

    @torch.no_grad()
    def initialize(
        self, features: Float[Tensor, "N D"], labels: Int[Tensor, " N"], *, generator: Generator | None = None
    ) -> None:
        """Cluster the features of each class into its K prototypes; those of a class without features are zero."""
        num_classes, num_prototypes, _ = self.prototypes.shape
        centers = [kmeans(features[labels == c], num_prototypes, generator=generator) for c in range(num_classes)]
        self.prototypes = torch.stack(centers).to(self.prototypes)
        self.is_initialized.fill_(True)

    def _has_data(self) -> Bool[Tensor, "C K"]:
        return (self.prototypes != 0).any(dim=-1)


def upsampled_norm(features: Float[Tensor, "B D h w"], size: tuple[int, int]) -> Float[Tensor, "B H W"]:
    """Return the norm of each feature of the map upsampled to `size` (bilinear, align_corners), exactly.

    Upsampling blends neighbours a and b into (1 - u) a + u b, whose square is (1 - u)^2 aa + u^2 bb + 2 u (1 - u) ab.
    So products of neighbours in the small map suffice: blended along x they give the square of each blend, and its
    product with the blend in the row below; those blended along y in the same way give the squares at full size.
    """
    _, _, h, w = features.shape
    y0, y1, v = neighbours(torch.arange(size[0], device=features.device), h, size[0])
    x0, x1, u = neighbours(torch.arange(size[1], device=features.device), w, size[1])

    # Positions at the far edge have no neighbour; the zeros padded there only get weight 0.
    own = channel_dots(features, features)
    beside = F.pad(channel_dots(features[..., :-1], features[..., 1:]), (0, 1))
    below = F.pad(channel_dots(features[..., :-1, :], features[..., 1:, :]), (0, 0, 0, 1))
    falling = channel_dots(features[..., :-1, :-1], features[..., 1:, 1:])
    rising = channel_dots(features[..., 1:, :-1], features[..., :-1, 1:])
    crossed = F.pad(falling + rising, (0, 1, 0, 1))

    left, right, both = (1 - u) ** 2, u**2, u * (1 - u)
    in_row = left * own[..., x0] + right * own[..., x1] + 2 * both * beside[..., x0]
    with_next = left * below[..., x0] + right * below[..., x1] + both * crossed[..., x0]
    v = v[:, None]
    square = (1 - v) ** 2 * in_row[:, y0] + v**2 * in_row[:, y1] + 2 * v * (1 - v) * with_next[:, y0]
    return square.clamp(min=0).sqrt()


def channel_dots(a: Float[Tensor, "B D h w"], b: Float[Tensor, "B D h w"]) -> Float[Tensor, "B h w"]:
    """Return the dot product of two maps at each position; 32 channels at a time, whose products fit in the cache."""
    return sum((part * other).sum(1) for part, other in zip(a.split(32, dim=1), b.split(32, dim=1), strict=True))


# ------------------------------------------------------------------------- the features that the bank is clustered from


def labeled_features(
    student: nn.Module, batches: Iterable[dict], grid_cells: int, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Return features (N, D) and labels (N,) of pixels of the labeled images, to be clustered.

    From every labeled image they are taken at the points of a jittered grid. A class with fewer than 100 of them also
    gets up to 100 random pixels of each image that shows it. Of more than 20,000 of a class a random sample is kept.

    Args:
        student: in eval mode.
        batches: dictionaries of `image` (B, 3, H, W) and `mask` (B, H, W) as a step gets them. They may be passed over
            twice and have to be the same then.
        grid_cells: cells of the grid along each side, as in `jittered_grid`.
        generator: makes the random numbers, on the student's device.
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
    """Return, for each class, the student's features at the points that `choose` picks from each mask (H, W).

    Each feature gets a random key, as one more channel; of more than `MOST` those with the smallest keys are kept.
    """
    device = generator.device
    kept = [torch.empty(0, student.feature_dim + 1, device=device)] * student.num_classes
    for batch in batches:
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
    """Draw up to `most` positions (row, column) at which `where` (H, W) is True."""
    pixels = where.nonzero()
    return pixels[torch.randperm(len(pixels), generator=generator, device=pixels.device)[:most]]


@torch.no_grad()
def kmeans(
    points: Float[Tensor, "N D"],
    k: int,
    *,
    restarts: int = 10,
    iterations: int = 100,
    generator: Generator | None = None,
) -> Float[Tensor, "k D"]:
    """Cluster by cosine (k-means++, best of `restarts`) and return the mean of each cluster's un-normalised points.

    Un-normalised means have the scale of the bank's later updates. A cluster that gets no point, as when fewer than k
    points differ, becomes a copy of the largest cluster's center plus noise of a thousandth of its length. Without any
    point all centers are zero.
    """
    if len(points) == 0:
        return points.new_zeros(k, points.shape[1])
    points = points.float()
    unit = F.normalize(points, dim=-1)
    runs = [_lloyd(unit, _plus_plus(unit, k, generator), iterations) for _ in range(restarts)]
    _, assignment = max(runs, key=lambda run: run[0])
    counts = torch.bincount(assignment, minlength=k)[:, None]
    centers = points.new_zeros(k, points.shape[1]).index_add(0, assignment, points) / counts.clamp(min=1)
    largest = centers[counts.argmax()]
    noise = torch.randn(centers.shape, generator=generator, device=points.device)
    spare = largest + 1e-3 * largest.norm() * F.normalize(noise, dim=-1)
    return torch.where(counts > 0, centers, spare)


def _plus_plus(unit: Tensor, k: int, generator: Generator | None) -> Tensor:
    """Return k-means++ seeds: each is drawn in proportion to its squared distance from the nearest one so far."""
    centers = unit[torch.randint(len(unit), (1,), generator=generator, device=unit.device)]
    for _ in range(k - 1):
        distance = (2 - 2 * (unit @ centers.T).amax(dim=1)).clamp(min=1e-12)
        centers = torch.cat([centers, unit[torch.multinomial(distance, 1, generator=generator)]])
    return centers


def _lloyd(unit: Tensor, centers: Tensor, iterations: int) -> tuple[float, Tensor]:
    """Alternate assignment and means until nothing changes; return the mean cosine and the assignment."""
    for _ in range(iterations):
        assignment = (unit @ centers.T).argmax(dim=1)
        sums = torch.zeros_like(centers).index_add(0, assignment, unit)
        moved = torch.where(sums.any(dim=1, keepdim=True), F.normalize(sums, dim=-1), centers)
        if torch.equal(moved, centers):
            break
        centers = moved
    cosine, assignment = (unit @ centers.T).max(dim=1)
    return cosine.mean().item(), assignment
