"""Why a method gains or fails: measured during training, with masks of unlabeled images that training never uses."""

import math

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from pcr_seg.data.datamodule import SegmentationData
from pcr_seg.data.whole import WholeImages
from pcr_seg.method.losses import IGNORE_INDEX
from pcr_seg.method.sampling import at_points, jittered_grid, sample_features, upsample
from pcr_seg.method.teacher import pseudo_label
from pcr_seg.module import Segmentation
from pcr_seg.pixels import as_floats
from pcr_seg.predictor import predict_heads

NUM_IMAGES, GRID_CELLS = 64, 32
FIGURES = ("coverage", "precision", "agreement")


class Diagnosis(L.Callback):
    """Logs how good the pseudo-labels are in training, and how compact the features of each class are.

    At every logged step the teacher labels the weak views of the step once more. They are compared with the images'
    masks, where the data set has these: `diagnosis/coverage` (share of pixels that are confident),
    `diagnosis/precision` (share of these that are right) and `diagnosis/agreement` (share of pixels on which both heads
    agree), all in 0..1. At every validation `diagnosis/within_class` and `diagnosis/between_class` are the
    `class_distances` of up to 64 validation images.

    Args:
        data: the training's data module.
    """

    def __init__(self, data: SegmentationData) -> None:
        known = [sample for sample in data.source.train if sample.mask]
        self.places = {sample.name: place for place, sample in enumerate(known)}
        self.views = data.views(tuple(known))
        val = data.source.val
        self.val = WholeImages(val[:: max(1, len(val) // NUM_IMAGES)][:NUM_IMAGES])

    @torch.no_grad()
    def on_train_batch_start(self, trainer: L.Trainer, module: Segmentation, batch: dict, batch_idx: int) -> None:
        """Compare the pseudo-labels that this step will use with the masks."""
        if "unlabeled" not in batch or module.in_burn_in or (trainer.global_step + 1) % trainer.log_every_n_steps:
            return
        names, seeds = batch["unlabeled"]["name"], batch["unlabeled"]["seed"].tolist()
        views = [
            self.views[self.places[name], seed] for name, seed in zip(names, seeds, strict=True) if name in self.places
        ]
        # Without any image the figures are NaN: a key that is not logged would keep the previous step's value.
        figures = self.compare(module, views) if views else {}
        module.log_dict({f"diagnosis/{name}": figures.get(name, math.nan) for name in FIGURES})

    def compare(self, module: Segmentation, views: list[dict]) -> dict[str, Tensor]:
        """Return the figures for views with masks; no "agreement" while there are no prototypes."""
        views = {key: torch.stack([view[key] for view in views]).to(module.device) for key in ("image", "mask")}
        views = as_floats(views, module.student)
        heads, truth = predict_heads(module.teacher.network, module.method, views["image"]), views["mask"]
        labels, confidence = pseudo_label(heads["linear"])
        known = truth != IGNORE_INDEX
        confident = known & (confidence >= getattr(module.method, "threshold", 0.0))
        right = confident & (labels == truth)
        figures = {"coverage": confident.sum() / known.sum(), "precision": right.sum() / confident.sum()}
        if len(heads) == 2:
            linear, other = (logits.max(dim=1).indices for logits in heads.values())
            figures["agreement"] = (linear == other).float().mean()
        return figures

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: L.Trainer, module: Segmentation) -> None:
        """Log the class distances of the teacher's features of some validation images."""
        features, labels = [], []
        for sample in self.val:
            sample = as_floats(sample, module.student)
            image, mask = sample["image"].to(module.device), sample["mask"].to(module.device)
            cells = min(GRID_CELLS, *mask.shape)
            generator = torch.Generator().manual_seed(0)
            points = jittered_grid(*mask.shape, cells, generator=generator).to(module.device)
            features.append(sample_features(features_as_evaluated(module, image), points, mask.shape)[0])
            labels.append(at_points(mask, points))
        within, between = class_distances(torch.cat(features), torch.cat(labels), len(module.class_names))
        module.log_dict({"diagnosis/within_class": within, "diagnosis/between_class": between})


def features_as_evaluated(module: Segmentation, image: Tensor) -> Tensor:
    """Return the teacher's features (1, D, h, w) of an image (3, H, W), resized to the protocol's first scale."""
    scale = getattr(module.protocol, "keywords", {}).get("scales", [1.0])[0]
    size = tuple(max(1, round(side * scale)) for side in image.shape[-2:])
    return module.teacher.network(upsample(image[None], size)).features


def class_distances(
    features: Float[Tensor, "N D"], labels: Int[Tensor, " N"], num_classes: int
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the mean cosine distance of features to their class's mean direction, and between these directions.

    Distances are 1 - cosine, in 0..2. Every class among the labels has the same weight; features labeled 255 are left
    out. The method should make the first small and the second large (paper, introduction: compact features).
    """
    known = labels != IGNORE_INDEX
    unit, labels = F.normalize(features[known].float(), dim=1), labels[known]
    sums = unit.new_zeros(num_classes, unit.shape[1]).index_add(0, labels, unit)
    counts = torch.bincount(labels, minlength=num_classes)
    present = counts > 0
    means = F.normalize(sums, dim=1)
    distance = unit.new_zeros(num_classes).index_add(0, labels, 1 - (unit * means[labels]).sum(dim=1))
    within = (distance / counts.clamp(min=1))[present].mean()
    cosines = means[present] @ means[present].T
    pairs = max(len(cosines) * (len(cosines) - 1), 1)
    return within, (1 - cosines).sum() / pairs
