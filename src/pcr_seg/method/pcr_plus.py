"""PCR with three additions for few labels, which are not in the paper.

Objects of labeled images are pasted into the strong views (ClassMix); the weak view is learned with dropped features as
well (UniMatch); regions are named anew by the pretrained backbone (`region_names.py`). What each brought is measured in
docs/results_small_networks.md.
"""

from collections.abc import Iterable

import torch
from torch import Generator, Tensor, nn

from pcr_seg.method.losses import consistency_loss
from pcr_seg.method.mixing import class_mask, cutmix, on_grid, paste
from pcr_seg.method.pcr import PCR
from pcr_seg.method.region_names import RegionNames
from pcr_seg.method.sampling import upsample
from pcr_seg.method.teacher import Teacher, statistics_of_first
from pcr_seg.method.unimatch import drop_features


class PCRPlus(PCR):
    """PCR with three additions.

    Args:
        num_classes: C.
        feature_dim: D, channels of the student's features.
        class_names: of the C classes; the regions of one called "background" are never renamed.
        labeled_classmix: probability that half of the classes of a labeled image, drawn at random, are pasted with
            their labels over a mixed view, in 0..1 (ClassMix; from labeled images as in DACS, WACV 2021).
        feature_weight: weight of UniMatch's loss on the weak view with dropped features; 0 leaves it out.
        region_names: rename the region of each class in an image by what it looks like to the pretrained backbone, in
            pseudo-labels and in predictions of the linear head (`RegionNames`).
        region_scale: images are enlarged by this factor before the pretrained backbone sees them.
        region_temperature: divides the cosines between regions and classes.
        pcr: further arguments of `PCR`.
    """

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        class_names: list[str],
        *,
        labeled_classmix: float = 0.5,
        feature_weight: float = 0.0,
        region_names: bool = False,
        region_scale: float = 1.67,
        region_temperature: float = 0.05,
        **pcr: object,
    ) -> None:
        super().__init__(num_classes, feature_dim, **pcr)
        self.class_names, self.labeled_classmix, self.feature_weight = class_names, labeled_classmix, feature_weight
        self.region_names, self.region_scale, self.region_temperature = region_names, region_scale, region_temperature
        self.weights = {"features": feature_weight} | self.weights
        self.names: RegionNames | None = None

    def attach(self, student: nn.Module) -> None:
        """Copy the backbone while it is as pretrained: the engine calls this once, when it is made."""
        if self.region_names:
            background = self.class_names.index("background") if "background" in self.class_names else None
            self.names = RegionNames(
                student.backbone, self.num_classes,
                background=background, scale=self.region_scale, temperature=self.region_temperature,
            )  # fmt: skip

    def forward(self, student: nn.Module, teacher: Teacher, labeled: dict, unlabeled: dict | None) -> dict[str, Tensor]:
        """Return the losses by name and move the prototypes; without unlabeled images, the supervised loss alone."""
        if unlabeled is None:
            return super().forward(student, teacher, labeled, None)

        taught = teacher.label(unlabeled["weak"], unlabeled["valid"], self.names)
        mixed = cutmix(unlabeled["strong"][:, 0], *taught, self.cutmix_probability)
        strong, labels, confidence, pasted = self.paste_classes(*mixed, labeled)

        images = torch.cat([labeled["image"], strong])
        output = student(images)
        losses = {}
        if self.feature_weight > 0:
            with statistics_of_first(student, 0):
                dropped = student.decode(drop_features(student.encode(unlabeled["weak"]))).logits
            losses["features"] = consistency_loss(upsample(dropped, labels.shape[-2:]), *taught, self.threshold)
        teacher.observe(images)
        labels, confidence = (x[:, None].expand(-1, 2, -1, -1) for x in (labels, confidence))  # the same for both heads
        return self.losses(output, labeled["mask"], labels, confidence, pasted) | losses

    def paste_classes(
        self, views: Tensor, labels: Tensor, confidence: Tensor, labeled: dict
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Paste half of the classes of a labeled image over some of the mixed views (B, 3, H, W).

        Returns:
            The views, labels and confidence (1 where pasted) that result, and a mask (B, H, W), True where pasted.
        """
        covered = torch.rand(len(views), 1, 1, 1, device=views.device) < self.labeled_classmix
        covered = on_grid(covered & class_mask(labeled["mask"], self.num_classes), views.shape[-2:])
        large = on_grid(covered, labels.shape[-2:])
        return (
            paste(views, covered, labeled["image"]),
            paste(labels, large, labeled["mask"]),
            paste(confidence, large, torch.ones_like(confidence)),
            large[:, 0],
        )

    def refine(self, images: Tensor, logits: Tensor) -> Tensor:
        """Return the linear head's logits (B, C, H, W) after renaming regions; unchanged before `begin`."""
        return self.names(images, logits) if self.names is not None and self.names.is_initialized else logits

    @torch.no_grad()
    def begin(self, student: nn.Module, labeled_batches: Iterable[dict], generator: Generator) -> None:
        """Find the prototypes, and the mean feature of each class in the pretrained backbone; each once."""
        super().begin(student, labeled_batches, generator)
        if self.names is not None and not self.names.is_initialized:
            self.names.initialize(labeled_batches)  # every rank computes the same from the same images
