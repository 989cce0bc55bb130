"""The method, in tensors: everything the paper says, and nothing that a trainer does.

Xu, Liu, Bian, Yang: "Semi-supervised Semantic Segmentation with Prototype-based Consistency
Regularization", NeurIPS 2022 (arXiv 2210.04388). "Reference code" below is the authors' evaluation
release, HeimingX/semi_seg_proto @1b98ea6; "U2PL" is the trainer it was built on,
Haochen-Wang409/U2PL @ab3d2be.

Axes: B images, C classes, K prototypes per class, D feature channels, H W image, h w feature map,
N points, S any spatial axes. Nothing here reads a value back from the device, and no shape depends
on data (k-means and the bank's initialisation, which run once, are the exceptions).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn

IGNORE_INDEX = 255


# ------------------------------------------------------------------------------------ pseudo-labels


def pseudo_label(logits: Float[Tensor, "B C *S"]) -> tuple[Int[Tensor, "B *S"], Float[Tensor, "B *S"]]:
    """Return the most probable class of each pixel and its softmax probability in (0, 1]."""
    best, pseudo_labels = logits.float().max(dim=1)
    # exp(max - logsumexp) is the largest softmax value without a second tensor of C channels.
    return pseudo_labels, (best - logits.float().logsumexp(dim=1)).exp()


def class_confidence(
    average: Float[Tensor, " C"],
    pseudo_labels: Int[Tensor, "B *S"],
    confidence: Float[Tensor, "B *S"],
    momentum: float = 0.99,
) -> Float[Tensor, " C"]:
    """Move each class's average confidence towards the mean of the pixels that were given this class.

    A class that no pixel was given keeps its value. Sums are added over all ranks first. Source: the local
    thresholds of FreeMatch (Wang et al., ICLR 2023), with one mean for each class instead of the mean probability.
    """
    known = pseudo_labels != IGNORE_INDEX
    row = torch.where(known, pseudo_labels, len(average)).flatten()
    totals = average.new_zeros(len(average) + 1, 2)
    totals = totals.index_add(0, row, torch.stack([confidence.flatten(), torch.ones_like(confidence).flatten()], dim=1))
    totals = totals[:-1]
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(totals)
    sums, counts = totals.unbind(dim=1)
    return torch.where(counts > 0, average.lerp(sums / counts.clamp(min=1), 1 - momentum), average)


def relative_confidence(
    confidence: Float[Tensor, "B *S"], pseudo_labels: Int[Tensor, "B *S"], average: Float[Tensor, " C"]
) -> Float[Tensor, "B *S"]:
    """Divide by the class's average, relative to the largest: one threshold then asks less of unsure classes."""
    known = pseudo_labels != IGNORE_INDEX
    return confidence * known / (average / average.amax())[pseudo_labels.where(known, 0)]


def entropy_gate(
    logits: Float[Tensor, "B C *S"], pseudo_labels: Int[Tensor, "B *S"], percent: float
) -> Int[Tensor, "B *S"]:
    """Ignore the pseudo-labels whose entropy lies above the given percentile of the batch's.

    Pixels that are ignored already take no part in the percentile. Source: U2PL's `drop_percent`,
    which the released configurations of the paper still carry.
    """
    probabilities = logits.float().softmax(dim=1)
    entropy = torch.special.entr(probabilities).sum(dim=1)
    known = entropy.masked_fill(pseudo_labels == IGNORE_INDEX, torch.nan)
    limit = known.flatten().nanquantile(percent / 100)
    return pseudo_labels.masked_fill(entropy > limit, IGNORE_INDEX)


# ------------------------------------------------------------------------------------------- losses


def cross_entropy(
    logits: Float[Tensor, "B C *S"], labels: Int[Tensor, "B *S"], weights: Float[Tensor, "B *S"] | None = None
) -> Float[Tensor, ""]:
    """Mean cross-entropy over the pixels that are not ignored; 0, with a graph, when all are.

    `weights` multiply each pixel's loss, not the divisor.
    """
    loss = F.cross_entropy(logits.float(), labels, ignore_index=IGNORE_INDEX, reduction="none")
    loss = loss if weights is None else loss * weights
    return loss.sum() / (labels != IGNORE_INDEX).sum().clamp(min=1)


def balance(labels: Int[Tensor, "B *S"], num_classes: int, power: float = 1.0) -> Float[Tensor, "B *S"]:
    """Weights of mean 1 that fall with a class's frequency to this power; 0 where ignored.

    With power 1 every class among the labels has the same share of the sum, with 0 every pixel.
    """
    known = labels != IGNORE_INDEX
    row = labels.where(known, num_classes)
    counts = torch.zeros(num_classes + 1, device=labels.device).index_add(0, row.flatten(), known.float().flatten())
    weights = counts.clamp(min=1) ** -power
    return known * weights[row] * known.sum() / (weights * counts)[:-1].sum().clamp(min=1e-12)


def balanced_cross_entropy(
    logits: Float[Tensor, "B C *S"], labels: Int[Tensor, "B *S"], *, power: float = 0.5
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


def consistency_loss(
    logits: Float[Tensor, "B C *S"],
    pseudo_labels: Int[Tensor, "B *S"],
    confidence: Float[Tensor, "B *S"],
    threshold: float,
    *,
    normalizer: Literal["all", "confident", "u2pl"] = "all",
) -> Float[Tensor, ""]:
    """Cross-entropy to the confident pseudo-labels.

    The sum over pixels with confidence >= threshold and label != 255 is divided by the number of "all"
    pixels (the form whose weight grows with the teacher's confidence), of the "confident" ones, or, as
    in U2PL, by confident**2 / all, which weighs few confident pixels more.
    """
    loss = F.cross_entropy(logits.float(), pseudo_labels, ignore_index=IGNORE_INDEX, reduction="none")
    confident = (confidence >= threshold) & (pseudo_labels != IGNORE_INDEX)
    count = confident.sum().clamp(min=1)
    everything = pseudo_labels.numel()
    divisor = {"all": everything, "confident": count, "u2pl": count**2 / everything}[normalizer]
    return (loss * confident).sum() / divisor


# ------------------------------------------------------------------------------- CutMix and ClassMix


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


# ------------------------------------------------------------------------- resolutions and sampling


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
    """Draw one (row, column) inside each of cells x cells cells of height // cells by width // cells.

    Row-major. What the cells leave over at the bottom and right is never drawn: at 513 pixels and 32
    cells row 512 is not (as in the reference code's `mask_generation`).

    Raises:
        ValueError: the image is smaller than the number of cells.
    """
    if min(height, width) < cells:
        raise ValueError(f"grid_cells={cells} exceeds the crop of {height}x{width} pixels: lower method.grid_cells")
    jitter = torch.rand(2, cells, cells, generator=generator, device=device)
    cell = torch.arange(cells, device=device)
    rows = cell[:, None] * (height // cells) + (jitter[0] * (height // cells)).long()
    columns = cell[None, :] * (width // cells) + (jitter[1] * (width // cells)).long()
    return torch.stack([rows, columns], dim=-1).flatten(0, 1)


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
    corners = torch.stack([y0 * w + x0, y0 * w + x1, y1 * w + x0, y1 * w + x1])
    of_image = h * w * torch.arange(batch, device=features.device)[:, None, None]
    # One look-up of all corners in a table of pixels, which channels-last features are in memory: its backward makes
    # one map of gradients and adds whole pixels to it.
    table = features.permute(0, 2, 3, 1).flatten(0, 2)
    a, b, c, d = F.embedding(of_image + corners, table).float().unbind(1)
    u, v = u[:, None], v[:, None]
    return torch.lerp(torch.lerp(a, b, u), torch.lerp(c, d, u), v)


def neighbours(index: Int[Tensor, " N"], small: int, large: int) -> tuple[Tensor, Tensor, Float[Tensor, " N"]]:
    """The two low-resolution positions that a full-resolution one blends, and the share of the second.

    Along one axis of `small` positions upsampled to `large` with aligned corners. In integers: the share
    is exact to the last bit, which a float coordinate is not.
    """
    span = max(large - 1, 1)
    low = (index * (small - 1) // span).clamp(max=max(small - 2, 0))
    return low, (low + 1).clamp(max=small - 1), (index * (small - 1) - low * span) / span


# --------------------------------------------------------------------------------- the prototype bank


class PrototypeBank(nn.Module):
    """K prototypes for each class in feature space: the second, distance-based predictor.

    Prototypes are stored as they are averaged, un-normalised; every comparison is a cosine. They take
    no gradient and move only through `initialize` and `update`. A prototype that is zero has seen no
    data yet: it takes no part in the maximum (its cosine counts as -1).

    Args:
        num_classes: C.
        num_prototypes: K; the paper uses 4 (VOC) and 3 (Cityscapes).
        feature_dim: D.
        temperature: divides the cosines; 0.1 in the reference code.
        momentum: share of the old prototype kept in an update; 0.99 in the released configurations.
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
        """Cosine of each feature with each prototype, in fp32 whatever the surrounding precision."""
        with torch.autocast(features.device.type, enabled=False):
            unit = F.normalize(features.float(), dim=-1)
            cosines = torch.einsum("...d,ckd->...ck", unit, F.normalize(self.prototypes, dim=-1))
        return cosines.masked_fill(~self._alive(), -1.0)

    def forward(self, features: Float[Tensor, "*S D"]) -> Float[Tensor, "*S C"]:
        """Logits: the largest cosine over a class's K prototypes, divided by the temperature."""
        return self.cosines(features).amax(dim=-1) / self.temperature

    def dense_logits(self, features: Float[Tensor, "B D h w"], size: tuple[int, int]) -> Float[Tensor, "B C H W"]:
        """Logits of the features upsampled to `size` (bilinear, align_corners), without the D channels there.

        Upsampling is linear, so the dot products with the prototypes can be upsampled instead; the norm
        of an upsampled feature is not, but follows exactly from the products of neighbouring features.
        One prototype of each class at a time: C maps of full size are held, not C * K.
        """
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            dots = torch.einsum("bdhw,ckd->kbchw", features, F.normalize(self.prototypes, dim=-1))
            # A dead prototype's cosine is -1: far below any other, then clamped.
            dots = dots.masked_fill(~self._alive().T[:, None, :, None, None], -1e30)
            largest = upsample(dots[0], size)
            for further in dots[1:]:
                largest = torch.maximum(largest, upsample(further, size))
            norm = upsampled_norm(features, size).clamp(min=1e-12)
            return (largest / norm[:, None]).clamp(min=-1.0) / self.temperature

    @torch.no_grad()
    def update(self, features: Float[Tensor, "N D"], labels: Int[Tensor, " N"]) -> Float[Tensor, "C K"]:
        """Move each prototype towards the mean of the features that chose it; return how many did.

        A feature chooses the prototype of its own label's class with the largest cosine (the first of
        equals), before any of them moves. Labels of 255 are skipped; a prototype that nobody chose stays
        bit-equal. Sums and counts are added over all ranks first, so every rank computes the same bank
        and it equals that of one process with the union batch. Source: reference code `update_proto`.
        """
        num_classes, num_prototypes, dim = self.prototypes.shape
        features, valid = features.float(), labels != IGNORE_INDEX
        target = labels.where(valid, 0)
        nearest = self.cosines(features)[torch.arange(len(labels), device=labels.device), target].argmax(dim=-1)
        # Skipped features land in one row too many: their number changes no shape.
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
        """Cluster the features of each class into its K prototypes; a class without any stays zero."""
        num_classes, num_prototypes, _ = self.prototypes.shape
        centers = [kmeans(features[labels == c], num_prototypes, generator=generator) for c in range(num_classes)]
        self.prototypes = torch.stack(centers).to(self.prototypes)
        self.is_initialized.fill_(True)

    def _alive(self) -> Bool[Tensor, "C K"]:
        return (self.prototypes != 0).any(dim=-1)


def upsampled_norm(features: Float[Tensor, "B D h w"], size: tuple[int, int]) -> Float[Tensor, "B H W"]:
    """Norm of each feature of the map upsampled to `size` (bilinear, align_corners), exactly.

    The square of a blend (1 - u) a + u b is (1 - u)^2 aa + u^2 bb + 2 u (1 - u) ab. So the squares of the blends
    along x, and their products with the row below, follow from products of neighbours in the small map;
    blending those along y the same way gives the squares at full size.
    """
    _, _, h, w = features.shape
    y0, y1, v = neighbours(torch.arange(size[0], device=features.device), h, size[0])
    x0, x1, u = neighbours(torch.arange(size[1], device=features.device), w, size[1])

    # What has no neighbour at the far edge is only ever blended with weight 0.
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
    """Dot product of two maps at each position; 32 channels at a time, whose products stay in the cache."""
    return sum((part * other).sum(1) for part, other in zip(a.split(32, dim=1), b.split(32, dim=1), strict=True))


@torch.no_grad()
def kmeans(
    points: Float[Tensor, "N D"],
    k: int,
    *,
    restarts: int = 10,
    iterations: int = 100,
    generator: Generator | None = None,
) -> Float[Tensor, "k D"]:
    """Cluster by cosine (k-means++, best of `restarts`) and return the mean of each cluster's raw points.

    Raw means match the scale of the bank's later updates, which average raw features. A cluster that
    stays empty, or is short of distinct points, gets a copy of another center plus noise of a
    thousandth of its length; without any point all centers are zero.
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
    """k-means++ seeds: each next one drawn in proportion to its squared distance from the nearest so far."""
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


# ------------------------------------------------------------------------------------------- teacher


def ema_decay_at(step: int, decay: float) -> float:
    """Decay of the average at a semi-supervised step counted from 0: min(1 - 1 / (step + 1), decay) (U2PL)."""
    return min(1 - 1 / (step + 1), decay)


@torch.no_grad()
def ema_update(
    teacher: nn.Module,
    student: nn.Module,
    decay: float,
    *,
    float_buffers: Literal["copy", "average", "keep"] = "copy",
) -> None:
    """Move the teacher's parameters to decay * teacher + (1 - decay) * student.

    Float buffers (BatchNorm's statistics) are copied by default: averaging them on top of BatchNorm's
    own average lags so far behind that short trainings evaluate wrongly. Integer buffers are always
    copied: an average would truncate and drift.
    """
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - decay)
    for ours, theirs in zip(teacher.buffers(), student.buffers(), strict=True):
        if not ours.is_floating_point() or float_buffers == "copy":
            ours.copy_(theirs)
        elif float_buffers == "average":
            ours.lerp_(theirs, 1 - decay)


@contextmanager
def batchnorm_follows(network: nn.Module) -> Iterator[None]:
    """Within, BatchNorm in eval mode also moves its running statistics towards those of what passes.

    By its own momentum, as in training mode, but what it returns is normalised by the statistics as they were: labels
    and statistics come from one forward, and each layer sees its inputs as it will in evaluation. The statistics are
    this process's own.
    """

    def follow(norm: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        values = inputs[0].detach().float()
        variance, mean = torch.var_mean(values, dim=(0, *range(2, values.ndim)))
        for running, now in ((norm.running_mean, mean), (norm.running_var, variance)):
            running.lerp_(now.to(running), norm.momentum)

    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    hooks = [norm.register_forward_hook(follow) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
