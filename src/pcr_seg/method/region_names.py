"""Names for regions: what a network takes for one class in an image, named anew by features as they were pretrained.

Not the paper's: `pcr_named` (docs/method.md). A network trained on few labels finds objects better than it tells their
classes apart; features that were not trained on those labels do that better.
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
    """A backbone as it was pretrained, and the mean look of each class in the labeled images.

    Args:
        backbone: is copied and never trained; its last map is taken.
        num_classes: C.
        background: a class whose regions keep their name.
        scale: the backbone sees images enlarged by this.
        temperature: divides the cosines of a region with the classes.
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
        """Stay in eval mode whatever the module around it does: its statistics are the pretrained ones."""
        return super().train(False)

    @property
    def is_initialized(self) -> Tensor | bool:
        """Whether the classes' looks are known."""
        return self.bank.is_initialized

    def forward(
        self, images: Float[Tensor, "B channels H W"], logits: Float[Tensor, "B C H W"]
    ) -> Float[Tensor, "B C H W"]:
        """Logits of the images after each class's region has been shared out by its look (`rename_regions`)."""
        probabilities = logits.softmax(dim=1)
        looks = region_features(self.backbone(enlarge(images, self.scale))[-1], probabilities)
        return rename_regions(probabilities, self.bank(looks), self.background).clamp(min=1e-6).log()

    def initialize(self, batches: Iterable[dict]) -> None:
        """Learn the classes' looks from labeled images, in batches as `labeled_regions` takes them."""
        self.bank.initialize(*labeled_regions(self.backbone, batches, len(self.bank.prototypes), self.scale))


@torch.no_grad()
def labeled_regions(
    backbone: nn.Module, batches: Iterable[dict], num_classes: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Mean features (N, D), of length 1, and labels (N,) of what each class covers in each labeled image.

    Args:
        backbone: in eval mode; its last map is taken.
        batches: `image` (B, 3, H, W) and `mask` (B, H, W) as a step gets them.
        num_classes: C.
        scale: the images are enlarged by this.
    """
    found, labels = [], []
    for batch in batches:
        known = batch["mask"].where(batch["mask"] != IGNORE_INDEX, num_classes)
        masks = F.one_hot(known, num_classes + 1)[..., :num_classes].permute(0, 3, 1, 2).float()
        features = region_features(backbone(enlarge(batch["image"], scale))[-1], masks)
        image, label = masks.any(dim=(2, 3)).nonzero(as_tuple=True)
        found.append(F.normalize(features[image, label], dim=1))  # every image counts alike in a mean
        labels.append(label)
    return torch.cat(found), torch.cat(labels)


def region_features(
    features: Float[Tensor, "B D h w"], probabilities: Float[Tensor, "B C H W"]
) -> Float[Tensor, "B C D"]:
    """Mean feature of each class in each image, weighted by the class's probability; 0 where it has none."""
    weights = shrink(probabilities, features.shape[-2:])
    sums = torch.einsum("bchw,bdhw->bcd", weights, features.float())
    return sums / weights.sum(dim=(2, 3))[..., None].clamp(min=1e-6)


def enlarge(images: Float[Tensor, "B channels H W"], scale: float) -> Float[Tensor, "B channels H2 W2"]:
    """Resize by a factor in whole hundredths, in integers: exported programs cannot round the sides of an image."""
    hundredths = round(100 * scale)
    sides = tuple((side * hundredths + 50) // 100 for side in images.shape[-2:])
    return F.interpolate(images.float(), sides, mode="bilinear", align_corners=True)


def shrink(x: Float[Tensor, "B C H W"], size: tuple[int, int]) -> Float[Tensor, "B C h w"]:
    """Means over areas, `F.interpolate(x, size, mode="area")`, as two products: ONNX has no such layer of free size."""

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
    """Give each class's region in an image to the classes that its features look like: probabilities that sum to 1.

    A region is all that one class has in one image, each pixel with its probability; it is shared out by the softmax of
    its logits for every class, its own raised by `inertia`. A network trained on few labels finds objects better than
    it tells their classes apart; features that were not trained on those labels do that better.

    Args:
        probabilities: of each pixel.
        names: logits of [region, class].
        background: a class whose region keeps its name: whatever is no other class has no look of its own.
        inertia: 0 believes the features alone.
    """
    own = torch.eye(names.shape[1], device=names.device)
    shares = (names + inertia * own).softmax(dim=2)
    if background is not None:
        shares = torch.where((torch.arange(len(own), device=own.device) == background)[:, None], own, shares)
    return torch.einsum("bchw,bcd->bdhw", probabilities, shares)
