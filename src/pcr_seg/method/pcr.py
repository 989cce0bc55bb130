"""PCR, the paper's section 3: two predictors that must agree, one of them a set of prototypes.

Xu, Liu, Bian, Yang: "Semi-supervised Semantic Segmentation with Prototype-based Consistency Regularization", NeurIPS
2022 (arXiv 2210.04388). After a burn-in on labels alone, each step does this:

1. The teacher, an average of the student, labels the weak view of each unlabeled image; the student sees the strong
   view, mixed by CutMix together with these labels and their confidence.
2. Two predictors share the student's features: the linear head, and the prototype head, whose logit of a class is the
   cosine to the nearest of the class's K prototypes, divided by a temperature.
3. Both learn the labels, by cross-entropy, and the pseudo-labels whose confidence reaches the threshold: the sum of
   their cross-entropies, divided by the number of all pixels (A3). The prototype head's loss of a pixel is small only
   if its feature is close to some prototype of its class. So each class becomes compact around a few points, not one.
4. The prototypes start as k-means centers of the labeled images' features. Then each moves towards the features of its
   class that are nearest to it; the class is the label or, on unlabeled images, what the mean of both heads is sure of.

"A1" ... mark what the paper leaves open (docs/method.md); "reference code" is HeimingX/semi_seg_proto @1b98ea6.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Generator, Tensor, nn

from pcr_seg.method.losses import IGNORE_INDEX, consistency_loss, cross_entropy, labeled_loss
from pcr_seg.method.mixing import UnlabeledViews, cutmix
from pcr_seg.method.prototypes import PrototypeBank, labeled_features
from pcr_seg.method.sampling import at_points, jittered_grid, sample_features, upsample
from pcr_seg.method.teacher import Teacher

CHOICES = {"prototype_on": ("both", "labels", "pseudo-labels"), "bank_labels": ("ensemble", "teacher", "none")}


class PCR(nn.Module):
    """Prototype-based consistency regularization.

    The caller (`pcr_seg.module`, or a plain loop) makes the `Teacher` with `ema_decay` and moves it after each step;
    passes no unlabeled images for `burn_in_epochs` and then calls `begin`; and sums the losses by `weights`.

    Args:
        num_classes: C.
        feature_dim: D, channels of the student's features.
        num_prototypes: K, prototypes of each class; the paper uses 4 (VOC) and 3 (Cityscapes).
        temperature: divides the cosines; 0.1 in the reference code.
        prototype_momentum: share of the old prototype kept in an update, in 0..1; 1 freezes the bank.
        grid_cells: the prototype head learns from one pixel in each of grid_cells x grid_cells cells of an image.
        threshold: least confidence of a pseudo-label that trains, in 0..1 (A2).
        supervised_loss: loss on labeled images, of logits (B, C, H, W) and labels (B, H, W).
        auxiliary_weight: weight of the same loss on the auxiliary head's logits, if the network has one.
        consistency_weight: weight of the linear head's loss on pseudo-labels.
        prototype_weight: weight of the prototype head's loss; 0 leaves the prototypes out.
        prototype_on: what the prototype head learns: "labels", "pseudo-labels", or "both" (A1).
        prototype_gate: the prototype head too learns only pseudo-labels that reach the threshold (A4).
        bank_labels: pseudo-labels that move prototypes: the heads' mean ("ensemble"), the "teacher"'s, or "none" (A5).
        cutmix_probability: probability that a batch is mixed, in 0..1 (A9).
        strong_color: strong views have color jitter, grayscale and blur (A10).
        burn_in_epochs: epochs on labeled images alone at the start.
        ema_decay: decay of the teacher's average, in 0..1.
    """

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        *,
        num_prototypes: int = 4,
        temperature: float = 0.1,
        prototype_momentum: float = 0.99,
        grid_cells: int = 32,
        threshold: float = 0.8,
        supervised_loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
        auxiliary_weight: float = 0.4,
        consistency_weight: float = 1.0,
        prototype_weight: float = 1.0,
        prototype_on: str = "both",
        prototype_gate: bool = True,
        bank_labels: str = "ensemble",
        cutmix_probability: float = 0.5,
        strong_color: bool = False,
        burn_in_epochs: int = 1,
        ema_decay: float = 0.99,
    ) -> None:
        super().__init__()
        for name, value in (("prototype_on", prototype_on), ("bank_labels", bank_labels)):
            if value not in CHOICES[name]:
                raise ValueError(f"method.{name}={value}: choose one of {', '.join(CHOICES[name])}")
        self.num_classes, self.feature_dim, self.num_prototypes = num_classes, feature_dim, num_prototypes
        self.temperature, self.prototype_momentum, self.grid_cells = temperature, prototype_momentum, grid_cells
        self.threshold, self.cutmix_probability, self.strong_color = threshold, cutmix_probability, strong_color
        self.supervised_loss, self.auxiliary_weight = supervised_loss, auxiliary_weight
        self.consistency_weight, self.prototype_weight = consistency_weight, prototype_weight
        self.prototype_on, self.prototype_gate, self.bank_labels = prototype_on, prototype_gate, bank_labels
        self.burn_in_epochs, self.ema_decay = burn_in_epochs, ema_decay

        self.views = UnlabeledViews(color=strong_color)
        self.weights = {"supervised": 1.0, "consistency": consistency_weight, "prototype": prototype_weight}
        self.figures: dict[str, Tensor] = {}
        self._begun = False
        self.bank = PrototypeBank(
            num_classes, num_prototypes, feature_dim, temperature=temperature, momentum=prototype_momentum
        )
        self.register_buffer("assigned", torch.zeros(num_classes, num_prototypes))  # features that chose it this epoch

    def forward(self, student: nn.Module, teacher: Teacher, labeled: dict, unlabeled: dict | None) -> dict[str, Tensor]:
        """Return the losses by name and move the prototypes; without unlabeled images, the supervised loss alone."""
        if unlabeled is None:
            output = student(labeled["image"])
            loss = labeled_loss(self.supervised_loss, output, labeled["mask"], self.auxiliary_weight)
            return {"supervised": loss}

        # The teacher labels the weak views (padding: 255). CutMix mixes strong views, labels and confidence alike.
        labels, confidence = self.label(teacher, unlabeled["weak"], unlabeled["valid"])
        strong, labels, confidence = cutmix(unlabeled["strong"][:, 0], labels, confidence, self.cutmix_probability)

        images = torch.cat([labeled["image"], strong])
        output = student(images)
        teacher.observe(images)  # for its BatchNorm statistics, by one of the rules of A12
        return self.losses(output, labeled["mask"], labels, confidence)

    def label(self, teacher: Teacher, images: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Return pseudo-labels and confidence (B, 2, H, W): for the linear and the prototype head, here the same."""
        return tuple(x[:, None].expand(-1, 2, -1, -1) for x in teacher.label(images, valid))

    def losses(
        self, output: Any, mask: Tensor, labels: Tensor, confidence: Tensor, given: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the losses, by name, of the student's output for B labeled images followed by B mixed ones.

        `mask` (B, H, W) labels the former; `labels` and `confidence` (B, 2, H, W) the latter, for the linear and the
        prototype head. `given` (B, H, W) is True where a mixed image shows labeled pixels, whose labels are no guess.
        """
        # The linear head learns labels and confident pseudo-labels.
        n, size = len(mask), mask.shape[-2:]
        supervised = labeled_loss(self.supervised_loss, output, mask, self.auxiliary_weight)
        logits = upsample(output.logits[n:], size)  # cut first: a part's gradient has the size of the whole
        consistency = consistency_loss(logits, labels[:, 0], confidence[:, 0], self.threshold)
        losses = {"supervised": supervised, "consistency": consistency}
        of_teacher = confidence[:, 0] if given is None else confidence[:, 0].masked_fill(given, 0)
        self.figures = {"confident": (of_teacher >= self.threshold).float().mean()}
        if self.prototype_weight == 0:
            return losses
        self.check_begun()

        # The prototype head learns the same at one pixel of each cell, N of them: cos(feature, nearest of K) / T.
        points = jittered_grid(*size, self.grid_cells, device=mask.device)
        mask, labels, confidence = (at_points(x, points) for x in (mask, labels[:, 1], confidence[:, 1]))
        features = sample_features(output.features, points, size)  # (B + B, N, D)
        scores = self.bank(features).transpose(1, 2)  # (B + B, C, N)
        prototype = scores.new_zeros(())
        if self.prototype_on != "pseudo-labels":
            prototype = prototype + cross_entropy(scores[:n], mask)
        if self.prototype_on != "labels":
            threshold = self.threshold if self.prototype_gate else 0.0
            prototype = prototype + consistency_loss(scores[n:], labels, confidence, threshold)

        # Prototypes move towards the student's features (A6), by labels and pseudo-labels in one update.
        with torch.no_grad():
            if self.bank_labels == "ensemble":
                both = (at_points(logits, points).softmax(dim=1) + scores[n:].softmax(dim=1)) / 2
                sure, ensemble = both.max(dim=1)
                pseudo = labels != IGNORE_INDEX
                pseudo = pseudo if given is None else pseudo & ~at_points(given, points)
                labels, confidence = ensemble.where(pseudo, labels), sure.where(pseudo, confidence)
            moves = (confidence >= self.threshold) & (self.bank_labels != "none")
            labels = labels.where(moves, IGNORE_INDEX)
            self.assigned += self.bank.update(features.flatten(0, 1), torch.cat([mask, labels]).flatten())
        return losses | {"prototype": prototype}

    @torch.no_grad()
    def begin(self, student: nn.Module, labeled_batches: Iterable[dict], generator: Generator) -> None:
        """Cluster the labeled images' features into prototypes (A7), once; every rank takes rank 0's."""
        if self.prototype_weight == 0 or self.bank.is_initialized:
            return
        distributed = dist.is_available() and dist.is_initialized()
        student.eval()  # every rank runs the network: where its weights are divided, each needs the others
        features, labels = labeled_features(student, labeled_batches, self.grid_cells, generator)
        student.train()
        if not distributed or dist.get_rank() == 0:
            self.bank.initialize(features, labels, generator=generator)
        if distributed:
            dist.broadcast(self.bank.prototypes, src=0)
            self.bank.is_initialized.fill_(True)

    def check_begun(self) -> None:
        """Raise a RuntimeError while there are no prototypes: all their cosines would be -1."""
        self._begun = self._begun or bool(self.bank.is_initialized)  # waits for the device at most once
        if not self._begun:
            raise RuntimeError("PCR has no prototypes yet: call begin(student, labeled_batches, generator) first")

    def accumulate(self, batches: int) -> None:
        """Take momentum^(1 / batches) from now on, because the prototypes move so many times in an optimizer step."""
        self.bank.momentum = self.prototype_momentum ** (1 / batches)

    def heads(self, features: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        """Return the prototype head's logits (B, C, *size) of features (B, D, h, w), once there are prototypes."""
        return {"prototype": self.bank.dense_logits(features, size)} if self.bank.is_initialized else {}

    def new_epoch(self) -> None:
        """Count the use of prototypes from zero."""
        self.assigned.zero_()

    @property
    def usage(self) -> Tensor:
        """(C, K): share of each class's features that chose each of its prototypes in this epoch."""
        return self.assigned / self.assigned.sum(dim=1, keepdim=True).clamp(min=1)

    def statistics(self) -> dict[str, Tensor]:
        """Return how evenly classes use their prototypes (entropy, 0..1), and how many prototypes no feature chose."""
        if not self.bank.is_initialized:
            return {}
        entropy = torch.special.entr(self.usage).sum(dim=1).mean() / math.log(max(self.num_prototypes, 2))
        return {"prototypes/usage_entropy": entropy, "prototypes/dead": (self.usage == 0).float().sum()}
