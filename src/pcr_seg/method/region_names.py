"""Rename regions: the pretrained backbone decides which class each region of the network's prediction belongs to.

Not in the paper; `method=pcr_named` uses it (docs/method.md). A network trained on few labels finds objects better than
it tells their classes apart. Features from before that training tell them apart better.
"""

import copy
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from pcr_seg.method.losses import IGNORE_INDEX
from pcr_seg.method.prototypes import PrototypeBank


class RegionNames(nn.Module):
    """A copy of the pretrained backbone, and the mean feature ("look") of each class in the labeled images.

    Args:
        backbone: the pretrained backbone, which is copied and never trained; its last feature map is used.
        num_classes: C.
        background: id of a class whose regions keep their name, if there is one.
        scale: images are enlarged by this factor before the backbone sees them.
        temperature: divides the cosines between a region and the classes.
    """

    def __init__(
        self,
        backbone: nn.Module,
        num_classes: int,
        *,
        background: int | None = None,
        scale: float = 1.67,
        temperature: float = 0.05,
    ) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(backbone).requires_grad_(False).eval()
        self.bank = PrototypeBank(num_classes, 1, backbone.channels[-1], temperature=temperature)
        self.background, self.scale = background, scale

    def train(self, mode: bool = True) -> "RegionNames":
        """Stay in eval mode whatever the module around it does: BatchNorm keeps its pretrained statistics."""
        return super().train(False)

    @property
    def is_initialized(self) -> Tensor | bool:
        """Whether `initialize` has found the mean features of the classes."""
        return self.bank.is_initialized

    def forward(
        self, images: Float[Tensor, "B channels H W"], logits: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B C H W"]:
        """Return the logits after the region of each class has been renamed by its features (`rename_regions`)."""
        features = self.backbone(enlarge(images, self.scale))[-1]
        with torch.autocast(images.device.type, enabled=False):  # names in training are those of an evaluation
            probabilities = logits.float().softmax(dim=1)
            looks = region_features(features, probabilities)
            return rename_regions(probabilities, self.bank(looks), self.background).clamp(min=1e-6).log()

    def initialize(self, batches: Iterable[dict]) -> None:
        """Find the mean feature of each class in labeled images, in batches as `labeled_regions` takes them."""
        self.bank.initialize(*labeled_regions(self.backbone, batches, len(self.bank.prototypes), self.scale))


@torch.no_grad()
def labeled_regions(
    backbone: nn.Module, batches: Iterable[dict], num_classes: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the mean feature of each class in each labeled image that shows it.

    Args:
        backbone: in eval mode; its last feature map is used.
        batches: dictionaries of `image` (B, 3, H, W) and `mask` (B, H, W) as a step gets them.
        num_classes: C.
        scale: the images are enlarged by this factor.

    Returns:
        Features (N, D) of length 1, and their class ids (N,).
    """
    found, labels = [], []
    for batch in batches:
        known = batch["mask"].where(batch["mask"] != IGNORE_INDEX, num_classes)
        masks = F.one_hot(known, num_classes + 1)[..., :num_classes].permute(0, 3, 1, 2).float()
        features = region_features(backbone(enlarge(batch["image"], scale))[-1], masks)
        image, label = masks.any(dim=(2, 3)).nonzero(as_tuple=True)
        found.append(F.normalize(features[image, label], dim=1))  # so that every image has the same weight in a mean
        labels.append(label)
    return torch.cat(found), torch.cat(labels)


def region_features(
    features: Float[Tensor, "B D h w"], probabilities: Float[Tensor, "B C H W"]
) -> Float[Tensor, "B C D"]:
    """Return the mean feature of each class in each image, weighted by the class's probability; 0 if that is 0."""
    weights = shrink(probabilities, features.shape[-2:])
    sums = torch.einsum("bchw,bdhw->bcd", weights, features.float())
    return sums / weights.sum(dim=(2, 3))[..., None].clamp(min=1e-6)


def enlarge(images: Float[Tensor, "B channels H W"], scale: float) -> Float[Tensor, "B channels H2 W2"]:
    """Resize by `scale`, rounded to hundredths; the sides are computed in integers, since ONNX cannot round them."""
    hundredths = round(100 * scale)
    sides = tuple((side * hundredths + 50) // 100 for side in images.shape[-2:])
    return F.interpolate(images.float(), sides, mode="bilinear", align_corners=True)


def shrink(x: Float[Tensor, "B C H W"], size: tuple[int, int]) -> Float[Tensor, "B C h w"]:
    """`F.interpolate(x, size, mode="area")`, written as two matrix products: ONNX has no such layer for free sizes."""

    def areas(large: int, small: int) -> Float[Tensor, "small large"]:
        place, pixel = torch.arange(small, device=x.device)[:, None], torch.arange(large, device=x.device)
        inside = (pixel >= place * large // small) & (pixel < ((place + 1) * large + small - 1) // small)
        return inside / inside.sum(dim=1, keepdim=True)

    rows, columns = (areas(large, small) for large, small in zip(x.shape[-2:], size, strict=True))
    return torch.einsum("hH,bcHW,wW->bchw", rows, x, columns)


def rename_regions(
    probabilities: Float[Tensor, "B C H W"],
    names: Float[Tensor, "B C C"],
    background: int | None = None,
    *,
    inertia: float = 3.0,
) -> Float[Tensor, "B C H W"]:
    """Give the region of each class in an image to the classes that its features resemble.

    The region of a class is a map of that class's probability in the image. It is divided among all classes by the
    softmax of `names`, after the logit of the region's own class has been raised by `inertia`.

    Args:
        probabilities: of each class at each pixel.
        names: logits of [region, class].
        background: id of a class whose region keeps its name, because what belongs to no other class has no common
            look.
        inertia: how much a region prefers to keep its name; with 0 the features alone decide.

    Returns:
        Probabilities, which sum to 1 over the classes as before.
    """
    own = torch.eye(names.shape[1], device=names.device)
    shares = (names + inertia * own).softmax(dim=2)
    if background is not None:
        shares = torch.where((torch.arange(len(own), device=own.device) == background)[:, None], own, shares)
    return torch.einsum("bchw,bcd->bdhw", probabilities, shares)
