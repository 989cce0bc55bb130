"""PCR for few labels, not the paper's: objects of labeled images in the mix, dropped features, names for regions.

What each part is worth: docs/results_small_networks.md. `region_names.py` has the last.
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
        class_names: for the names of regions: one called "background" keeps its own.
        labeled_classmix: probability that half of the classes of a labeled image, drawn at random, are pasted with
            their labels over a mixed view (ClassMix; from labeled images as in DACS, WACV 2021).
        feature_weight: of UniMatch's loss on the weak view with dropped features; 0 leaves it out.
        region_names: what the network takes for one class in an image is named anew by the backbone as it was
            pretrained, in pseudo-labels and in predictions of the linear head (`RegionNames`).
        region_scale: the pretrained backbone sees images enlarged by this.
        region_temperature: divides its cosines.
        pcr: PCR's own arguments.
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
        """Keep the backbone as it was pretrained: the module calls this once, when it is made."""
        if self.region_names:
            background = self.class_names.index("background") if "background" in self.class_names else None
            self.names = RegionNames(
                student.backbone, self.num_classes,
                background=background, scale=self.region_scale, temperature=self.region_temperature,
            )  # fmt: skip

    def forward(self, student: nn.Module, teacher: Teacher, labeled: dict, unlabeled: dict | None) -> dict[str, Tensor]:
        """The losses of a step; the prototypes move in it."""
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
        labels, confidence = (x[:, None].expand(-1, 2, -1, -1) for x in (labels, confidence))  # for both heads alike
        return self.losses(output, labeled["mask"], labels, confidence, pasted) | losses

    def paste_classes(
        self, views: Tensor, labels: Tensor, confidence: Tensor, labeled: dict
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Cover some of the mixed views (B, 3, H, W) with half of the classes of a labeled image, and their labels.

        The last tensor (B, H, W) is True where that was done.
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
        """Logits of the linear head with the regions' names, once these are known."""
        return self.names(images, logits) if self.names is not None and self.names.is_initialized else logits

    @torch.no_grad()
    def begin(self, student: nn.Module, labeled_batches: Iterable[dict], generator: Generator) -> None:
        """After the burn-in, find the prototypes, and what the classes look like to the pretrained backbone."""
        super().begin(student, labeled_batches, generator)
        if self.names is not None and not self.names.is_initialized:
            self.names.initialize(labeled_batches)  # alike on every rank
