"""The method in time: one LightningModule that knows steps, epochs and ranks.

    labeled image, mask ---------------------------------------------+
                                                                     |
    unlabeled --geometric--+--> weak ---> TEACHER --> linear logits --> pseudo-labels, confidence
                           |              (EMA, eval, no grad)              |
                           +--photometric--> strong --CutMix (same boxes)---+--> mixed pseudo-labels
                                               |                            |
          [labeled ; strong] --> STUDENT --> features --+--> linear head ------> supervised loss  (labels)
                                     ^                  |                  +---> consistency loss (confident ones)
                                     |                  +--> jittered grid --> prototype head --> prototype loss (both)
                                     |                                             |  cos(feature, nearest of K)/T
                teacher <-- EMA -----+                  prototypes <-- momentum ---+  (per class, nearest prototype)

The tensors' mathematics stand in `method.py`; deviations from the paper and open points in docs/method.md.
"""

import copy
import functools
import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Literal, NamedTuple, get_args, get_origin, get_type_hints

import lightning.pytorch as L
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torchmetrics.classification import MulticlassConfusionMatrix

from pcr_seg.bank_init import labeled_features
from pcr_seg.inference import center_pad, iou_per_class, predict_heads
from pcr_seg.method import (
    IGNORE_INDEX,
    PrototypeBank,
    at_points,
    batchnorm_follows,
    class_confidence,
    class_mask,
    consistency_loss,
    cross_entropy,
    cutmix_boxes,
    ema_decay_at,
    ema_update,
    entropy_gate,
    jittered_grid,
    paste,
    pseudo_label,
    relative_confidence,
    sample_features,
    upsample,
)
from pcr_seg.pixels import as_floats
from pcr_seg.region_names import RegionNames

HEADS = {"linear": "", "prototype": "_prototype"}  # and how their keys in the log end


class PseudoLabeled(NamedTuple):
    """Unlabeled images as the student sees them, and what the teacher says of them, mixed alike."""

    images: Tensor  # (B, V, 3, H, W), mixed (V * B, 3, H, W)
    labels: Tensor  # (B, H, W), 255 where nothing is known
    confidence: Tensor  # (B, H, W) in (0, 1]


class SemiSupervisedSegmentation(L.LightningModule):
    """Student, EMA teacher and prototype bank, trained with the three losses.

    Args:
        student: a network with `backbone`, `num_classes`, `feature_dim`, returning logits, features, auxiliary logits.
        optimizer: makes an optimizer from parameter groups; its `lr` is the backbone's.
        class_names: for the per-class IoU.
        protocol: predicts a whole image from `predict`: `inference.whole_image` or `sliding_window`.
        name: of the method, for summaries.
        head_lr_multiplier: learning rate of everything behind the backbone, as a multiple of the backbone's.
        poly_power: the learning rate falls with (1 - step / steps) ** poly_power.
        supervised_loss: labeled loss of logits (B, C, H, W) and labels (B, H, W).
        auxiliary_weight: of the same loss on the auxiliary head's logits, where the network has one.
        consistency_weight: of the loss between the student and the teacher's pseudo-labels; 0 leaves it out.
        prototype_weight: of the prototype head's loss; 0 leaves the bank out.
        prototype_on_labeled: the prototype head also learns the labels (A1).
        prototype_on_unlabeled: the prototype head learns the pseudo-labels.
        num_prototypes: K for each class.
        temperature: divides the cosines.
        prototype_momentum: share of the old prototype kept in an update; 1 freezes the bank.
        grid_cells: the prototype head sees one pixel in each of grid_cells x grid_cells cells.
        burn_in_epochs: supervised epochs before prototypes exist and unlabeled images are used.
        bank_init: "kmeans" clusters the labeled images' features; "random" draws them (A7).
        bank_labels: pseudo-labels that move the bank: the two heads' mean ("ensemble") or the teacher's (A5).
        bank_features: features that move it: the "student"'s in training mode or the "teacher"'s (A6).
        threshold: least confidence of a pseudo-label that trains.
        class_thresholds: the threshold falls for a class in proportion to the teacher's average confidence in it.
        gate: which pseudo-labels train: those above the "threshold", those of low "entropy", or "both" (A2).
        drop_percent: share of pixels kept by the entropy gate at the start, in percent; it rises to 100.
        normalizer: what the consistency loss is divided by (A3; `method.consistency_loss`).
        prototype_gate: the threshold also gates the prototype loss on pseudo-labels (A4).
        cutmix_probability: of a batch being mixed (A9).
        labeled_classmix: probability that half of the classes of a labeled image, drawn at random, are pasted with
            their labels over a view of an unlabeled one (ClassMix; from labeled images as in DACS, WACV 2021).
        strong_color: the student's views of unlabeled images have color jitter, grayscale and blur (A10).
        strong_views: how many such views of each image, with CutMix boxes of their own (UniMatch: 2).
        feature_dropout_weight: of a further consistency loss, on the weak view with half of the backbone's channels
            dropped (UniMatch); 0 leaves it out.
        ema_decay: of the teacher, reached by the ramp min(1 - 1/(n+1), ema_decay).
        copy_teacher_first_epoch: the teacher equals the student during the whole first semi-supervised epoch, as
            in U2PL's code (A11).
        teacher_bn: the teacher's BatchNorm statistics: "copy" the student's, "average" them, "forward" the student's
            batch through the teacher in training mode without gradient, as U2PL does, or the "weak" views (A12): what
            the images themselves look like, which balanced or mixed crops do not show.
        region_names: what the network takes for one class in an image is named anew by features of the backbone as it
            was pretrained, in pseudo-labels and in predictions of the linear head (`RegionNames`).
        region_scale: the pretrained backbone sees images enlarged by this.
        region_temperature: divides its cosines.
        seed: every random number of a step follows from (seed, batch of the training, rank).
    """

    def __init__(
        self,
        student: nn.Module,
        optimizer: functools.partial,
        class_names: list[str],
        protocol: Callable,
        *,
        name: str = "pcr",
        head_lr_multiplier: float = 1.0,
        poly_power: float = 0.9,
        supervised_loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
        auxiliary_weight: float = 0.4,
        consistency_weight: float = 1.0,
        prototype_weight: float = 1.0,
        prototype_on_labeled: bool = True,
        prototype_on_unlabeled: bool = True,
        num_prototypes: int = 4,
        temperature: float = 0.1,
        prototype_momentum: float = 0.99,
        grid_cells: int = 32,
        burn_in_epochs: int = 1,
        bank_init: Literal["kmeans", "random"] = "kmeans",
        bank_labels: Literal["ensemble", "teacher"] = "ensemble",
        bank_features: Literal["student", "teacher"] = "student",
        threshold: float = 0.8,
        class_thresholds: bool = False,
        gate: Literal["threshold", "entropy", "both"] = "threshold",
        drop_percent: float = 80.0,
        normalizer: Literal["all", "confident", "u2pl"] = "all",
        prototype_gate: bool = True,
        cutmix_probability: float = 0.5,
        labeled_classmix: float = 0.0,
        strong_color: bool = False,
        strong_views: int = 1,
        feature_dropout_weight: float = 0.0,
        ema_decay: float = 0.99,
        copy_teacher_first_epoch: bool = False,
        teacher_bn: Literal["copy", "average", "forward", "weak"] = "copy",
        region_names: bool = False,
        region_scale: float = 1.67,
        region_temperature: float = 0.05,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_choices(type(self).__init__, locals())
        # Channels last: a third faster on CPUs, and what tensor cores want. The images follow the weights' layout.
        self.student = student.to(memory_format=torch.channels_last)
        self.teacher = copy.deepcopy(student).requires_grad_(False).eval()
        self.bank = PrototypeBank(
            student.num_classes,
            num_prototypes,
            student.feature_dim,
            temperature=temperature,
            momentum=prototype_momentum,
        )
        self.region_names = None
        if region_names:
            background = class_names.index("background") if "background" in class_names else None
            self.region_names = RegionNames(
                student.backbone,
                student.num_classes,
                background=background,
                scale=region_scale,
                temperature=region_temperature,
            )
        self.register_buffer("class_confidence", torch.ones(student.num_classes))
        self.register_buffer("assigned", torch.zeros(student.num_classes, num_prototypes), persistent=False)

        self.name, self.class_names, self.seed = name, class_names, seed
        self.optimizer, self.head_lr_multiplier, self.poly_power = optimizer, head_lr_multiplier, poly_power
        self.supervised_loss, self.auxiliary_weight = supervised_loss, auxiliary_weight
        self.consistency_weight, self.prototype_weight = consistency_weight, prototype_weight
        self.prototype_on_labeled, self.prototype_on_unlabeled = prototype_on_labeled, prototype_on_unlabeled
        self.prototype_momentum = prototype_momentum
        self.grid_cells, self.burn_in_epochs = grid_cells, burn_in_epochs
        self.bank_init, self.bank_labels, self.bank_features = bank_init, bank_labels, bank_features
        self.threshold, self.class_thresholds = threshold, class_thresholds
        self.gate, self.drop_percent = gate, drop_percent
        self.normalizer, self.prototype_gate = normalizer, prototype_gate
        self.cutmix_probability, self.labeled_classmix = cutmix_probability, labeled_classmix
        self.feature_dropout_weight = feature_dropout_weight
        self.strong_color, self.strong_views = strong_color, strong_views
        self.ema_decay, self.copy_teacher_first_epoch = ema_decay, copy_teacher_first_epoch
        self.teacher_bn = teacher_bn
        self.protocol = protocol
        self.evaluate_student = False
        self.validated_at = -1  # step of the newest validation
        self.scores: dict[str, float] = {}  # and what it logged
        self.latest: dict[str, Tensor] = {}  # losses of the newest step, and its share of confident pixels
        self.metadata: dict = {}  # travels with every checkpoint: what it takes to rebuild this module

        # Ignored pixels are counted as one class more and left out at the end: dropping them first takes longer.
        matrices = {head: MulticlassConfusionMatrix(student.num_classes + 1, validate_args=False) for head in HEADS}
        self.confusion = nn.ModuleDict(matrices)
        self.register_buffer("pseudo_counts", torch.zeros(3), persistent=False)  # pixels, confident, and right

    # ------------------------------------------------------------------------------------- training

    @property
    def uses_unlabeled(self) -> bool:
        """Whether the method learns from unlabeled images at all."""
        return self.consistency_weight > 0 or self.prototype_weight > 0

    @property
    def in_burn_in(self) -> bool:
        """Whether this epoch is supervised only."""
        return self.current_epoch < self.burn_in_epochs

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        """One step: supervised alone while burning in (or for ever), semi-supervised afterwards."""
        batch = as_floats(batch)
        if self.in_burn_in or not self.uses_unlabeled:
            return self.supervised_step(batch["labeled"])
        return self.semi_supervised_step(batch["labeled"], batch["unlabeled"])

    def supervised_step(self, labeled: dict) -> Tensor:
        """Loss of the labeled images alone."""
        output = self.student(labeled["image"])
        loss = self.labeled_loss(upsample(output.logits, labeled["mask"].shape[-2:]), output.auxiliary, labeled["mask"])
        self.refresh_teacher_statistics(labeled["image"])
        self.log_losses(supervised=loss)
        return loss

    def semi_supervised_step(self, labeled: dict, unlabeled: dict) -> Tensor:
        """The method: pseudo-labels, one student forward of both streams, three losses, the bank's update."""
        mask, num_labeled, size = labeled["mask"], len(labeled["mask"]), labeled["mask"].shape[-2:]
        taught = self.teach(unlabeled)
        mixed = self.mix(taught, labeled)
        images = torch.cat([labeled["image"], mixed.images])
        output = self.student(images)
        logits = upsample(output.logits, size)

        supervised = self.labeled_loss(logits[:num_labeled], output.auxiliary, mask)
        consistency = self.agreement(logits[num_labeled:], mixed.labels, mixed.confidence)
        loss = supervised + self.consistency_weight * consistency
        self.log_losses(supervised=supervised, consistency=consistency)

        if self.feature_dropout_weight > 0:
            dropped = upsample(self.student(unlabeled["weak"], drop_features=True).logits, size)
            loss = loss + self.feature_dropout_weight * self.agreement(dropped, taught.labels, taught.confidence)

        teacher_features = self.refresh_teacher_statistics(images)
        if self.prototype_weight > 0:
            points = jittered_grid(*size, self.grid_cells, device=self.device)
            features = sample_features(output.features, points, size)
            prototype_logits = self.bank(features)
            prototype = self.prototype_loss(prototype_logits, mask, mixed, points)
            loss = loss + self.prototype_weight * prototype
            self.log_losses(prototype=prototype)
            if self.bank_features == "teacher":
                features = sample_features(teacher_features, points, size)
            self.update_bank(features, at_points(logits, points), prototype_logits, mask, mixed, points)

        self.latest["confident"] = (mixed.confidence >= self.threshold).float().mean()
        self.log("train/confident", self.latest["confident"])
        return loss

    @torch.no_grad()
    def teach(self, unlabeled: dict) -> PseudoLabeled:
        """The teacher labels the weak views; padding stays unknown."""
        with batchnorm_follows(self.teacher) if self.teacher_bn == "weak" else nullcontext():
            logits = predict_heads(self.teacher, None, unlabeled["weak"], self.region_names)
        labels, confidence = pseudo_label(logits)
        labels = labels.masked_fill(~unlabeled["valid"], IGNORE_INDEX)
        confidence = confidence.masked_fill(~unlabeled["valid"], 0)
        if self.class_thresholds:
            average = self.class_confidence
            self.class_confidence = class_confidence(average, labels, confidence)
            confidence = relative_confidence(confidence, labels, average)
        if self.gate != "threshold":
            progress = self.current_epoch / max(self.trainer.max_epochs, 1)
            labels = entropy_gate(logits, labels, 100 - (100 - self.drop_percent) * (1 - progress))
        return PseudoLabeled(unlabeled["strong"], labels, confidence)

    def agreement(self, logits: Tensor, labels: Tensor, confidence: Tensor, threshold: float | None = None) -> Tensor:
        """The consistency loss of any logits to confident pseudo-labels, with this run's gate and divisor."""
        # Where the entropy gate alone decides, it has ignored the others already.
        usual = 0.0 if self.gate == "entropy" else self.threshold
        threshold = usual if threshold is None else threshold
        return consistency_loss(logits, labels, confidence, threshold, normalizer=self.normalizer)

    def mix(self, unlabeled: PseudoLabeled, labeled: dict) -> PseudoLabeled:
        """CutMix images, pseudo-labels and confidence with the same boxes, or the whole batch not at all.

        The strong views (B, V, 3, H, W) become one batch of V * B, each view with boxes of its own. A box shows the
        batch's next image. With `labeled_classmix` classes of a labeled image then cover some of the mixed ones.
        """
        views = []
        for images in unlabeled.images.unbind(1):
            boxes = cutmix_boxes(len(images), *images.shape[-2:], device=self.device)
            boxes = boxes & (torch.rand((), device=self.device) < self.cutmix_probability)
            mixed = [paste(x, boxes) for x in (images, unlabeled.labels, unlabeled.confidence)]
            if self.labeled_classmix > 0:
                covered = torch.rand(len(images), 1, 1, 1, device=self.device) < self.labeled_classmix
                covered = covered & class_mask(labeled["mask"], len(self.class_names))
                truth = labeled["image"], labeled["mask"], torch.ones_like(unlabeled.confidence)
                mixed = [paste(x, covered, y) for x, y in zip(mixed, truth, strict=True)]
            views.append(mixed)
        return PseudoLabeled(*(torch.cat(parts) for parts in zip(*views, strict=True)))

    def labeled_loss(self, logits: Tensor, auxiliary: Tensor | None, mask: Tensor) -> Tensor:
        """The supervised loss of the linear head, plus the auxiliary head's where there is one."""
        loss = self.supervised_loss(logits, mask)
        if auxiliary is not None:
            loss = loss + self.auxiliary_weight * self.supervised_loss(
                upsample(auxiliary[: len(mask)], mask.shape[-2:]), mask
            )
        return loss

    def prototype_loss(self, prototype_logits: Tensor, mask: Tensor, mixed: PseudoLabeled, points: Tensor) -> Tensor:
        """Cross-entropy of the prototype head at the points, to labels and to confident pseudo-labels."""
        on_labeled, on_unlabeled = prototype_logits.transpose(1, 2).split([len(mask), len(mixed.labels)])
        loss = prototype_logits.new_zeros(())
        if self.prototype_on_labeled:
            loss = loss + cross_entropy(on_labeled, at_points(mask, points))
        if self.prototype_on_unlabeled:
            labels, confidence = at_points(mixed.labels, points), at_points(mixed.confidence, points)
            threshold = None if self.prototype_gate else 0.0
            loss = loss + self.agreement(on_unlabeled, labels, confidence, threshold)
        return loss

    @torch.no_grad()
    def update_bank(
        self,
        features: Tensor,
        linear_logits: Tensor,
        prototype_logits: Tensor,
        mask: Tensor,
        mixed: PseudoLabeled,
        points: Tensor,
    ) -> None:
        """Move the prototypes by both streams in one update: labels, and pseudo-labels above the threshold."""
        labels, confidence = at_points(mixed.labels, points), at_points(mixed.confidence, points)
        if self.bank_labels == "ensemble":
            linear = linear_logits[len(mask) :].float().softmax(dim=1)
            both = (linear + prototype_logits[len(mask) :].softmax(dim=2).transpose(1, 2)) / 2
            confidence, ensemble = both.max(dim=1)
            labels = ensemble.where(labels != IGNORE_INDEX, IGNORE_INDEX)
        labels = labels.where(confidence >= self.threshold, IGNORE_INDEX)
        labels = torch.cat([at_points(mask, points), labels])
        self.assigned += self.bank.update(features.detach().flatten(0, 1), labels.flatten())

    @torch.no_grad()
    def refresh_teacher_statistics(self, images: Tensor) -> Tensor | None:
        """Where settings ask for it, BatchNorm's statistics (A12), and the teacher's features of the batch (A6)."""
        features = None
        if not self.in_burn_in and (self.teacher_bn == "forward" or self.bank_features == "teacher"):
            features = self.teacher.train(self.teacher_bn == "forward")(images).features
        self.teacher.eval()
        return features

    def log_losses(self, **losses: Tensor) -> None:
        """Log each loss as `train/<name>_loss`. Not for the bar: the trainer would read those back in each step."""
        losses = {name: loss.detach() for name, loss in losses.items()}
        self.latest |= losses
        self.log_dict({f"train/{name}_loss": loss for name, loss in losses.items()})

    # ----------------------------------------------------------------------- teacher, bank, schedule

    def on_fit_start(self) -> None:
        """Let several accumulated batches move the bank as far as one of all would; count memory from here."""
        self.bank.momentum = self.prototype_momentum ** (1 / self.trainer.accumulate_grad_batches)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)  # a sweep's jobs share the process

    def on_train_epoch_start(self) -> None:
        """Give the banks their prototypes when the burn-in is over."""
        self.assigned.zero_()
        if self.prototype_weight > 0 and not self.in_burn_in and not self.bank.is_initialized:
            self.initialize_bank()
        if self.region_names and not self.in_burn_in and not self.region_names.is_initialized:
            self.region_names.initialize(self.trainer.datamodule.bank_dataloader())  # alike on every rank

    def on_train_batch_start(self, batch: dict, batch_idx: int) -> None:
        """Reseed, so that a step's random numbers do not depend on what ran before it."""
        position = self.current_epoch * self.trainer.num_training_batches + batch_idx
        # A tensor stays on the CPU; a number would be copied to the device.
        self.log("train/lr", torch.tensor(self.optimizers().param_groups[0]["lr"]))
        torch.manual_seed((self.seed * 1_000_003 + position) * self.trainer.world_size + self.trainer.global_rank)
        self._step_before = self.trainer.global_step

    def on_train_batch_end(self, outputs: Tensor, batch: dict, batch_idx: int) -> None:
        """Move the teacher after each optimizer step (not after each accumulated batch)."""
        if self.trainer.global_step == self._step_before:
            return
        float_buffers = {"copy": "copy", "average": "average", "forward": "keep", "weak": "keep"}[self.teacher_bn]
        if self.in_burn_in:
            float_buffers = "copy"  # nothing else could keep the statistics beside the copied weights
        ema_update(self.teacher, self.student, self.teacher_decay(), float_buffers=float_buffers)

    def teacher_decay(self) -> float:
        """EMA decay after this step; 0, a copy of the student, until semi-supervised training begins."""
        epoch, batches = self.current_epoch, self.trainer.num_training_batches
        if self.in_burn_in or (self.copy_teacher_first_epoch and epoch == self.burn_in_epochs):
            return 0.0
        steps_per_epoch = -(-batches // self.trainer.accumulate_grad_batches)
        return ema_decay_at(self.trainer.global_step - 1 - self.burn_in_epochs * steps_per_epoch, self.ema_decay)

    @torch.no_grad()
    def initialize_bank(self) -> None:
        """Cluster the labeled images' features into prototypes; every rank receives rank 0's."""
        generator = torch.Generator(self.device).manual_seed(self.seed)
        if self.bank_init == "random":
            self.bank.prototypes = torch.randn(self.bank.prototypes.shape, generator=generator, device=self.device)
            self.bank.is_initialized.fill_(True)
        elif self.trainer.is_global_zero:
            self.student.eval()
            batches = self.trainer.datamodule.bank_dataloader()
            features, labels = labeled_features(self.student, batches, self.grid_cells, generator)
            self.bank.initialize(features, labels, generator=generator)
            self.student.train()
        if dist.is_available() and dist.is_initialized():
            dist.broadcast(self.bank.prototypes, src=0)
            self.bank.is_initialized.fill_(True)

    def configure_optimizers(self) -> dict:
        """Two parameter groups, and the poly schedule in steps over the whole training."""
        trained = {name: p for name, p in self.student.named_parameters() if p.requires_grad}
        heads = [p for name, p in trained.items() if not name.startswith("backbone.")]
        backbone = [p for name, p in trained.items() if name.startswith("backbone.")]
        lr = self.optimizer.keywords["lr"]
        optimizer = self.optimizer(
            [
                {"params": backbone},
                {"params": heads, "lr": lr * self.head_lr_multiplier},
            ]
        )
        steps = self.trainer.estimated_stepping_batches
        poly = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / steps) ** self.poly_power)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": poly, "interval": "step"}}

    # ----------------------------------------------------------------------------------- evaluation

    @property
    def network(self) -> nn.Module:
        """The network that is evaluated: the teacher, unless the student was asked for."""
        return self.student if self.evaluate_student else self.teacher

    def predict_image(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) of any size -> logits (B, C, H, W) of the "linear" and, once it exists, the "prototype" head."""
        return {head: center_pad(x, images.shape[-2:]) for head, x in self.predict_scored(images).items()}

    def predict_scored(self, images: Tensor) -> dict[str, Tensor]:
        """The same for the pixels that are scored: a padded square's where the protocol is `center_padded`."""
        bank, region_names = initialized(self.bank), initialized(self.region_names)
        predict = functools.partial(predict_heads, self.network, bank, region_names=region_names)
        logits = self.protocol(predict, images).split(self.student.num_classes, dim=1)
        return dict(zip(HEADS, logits, strict=False))

    @property
    def prototype_usage(self) -> Tensor:
        """(C, K): share of each class's features that chose each of its prototypes in this epoch."""
        return self.assigned / self.assigned.sum(dim=1, keepdim=True).clamp(min=1)

    def on_validation_start(self) -> None:
        """While labels alone train, take the "weak" statistics (A12) from the labeled images as they are."""
        labels_alone = self.in_burn_in or not self.uses_unlabeled
        if self.teacher_bn == "weak" and labels_alone and self.trainer.state.fn == "fit":
            batches = self.trainer.datamodule.bank_dataloader()
            update_bn((as_floats(batch)["image"].to(self.device) for batch in batches), self.teacher)

    def on_validation_epoch_start(self) -> None:
        """Count from zero; afterwards the counts stay for whoever wants to show them."""
        for matrix in self.confusion.values():
            matrix.reset()
        self.pseudo_counts.zero_()

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        """Count the pixels of one image: both heads' hits, and the pseudo-labels that would train."""
        batch = as_floats(batch)
        with torch.autocast(self.device.type, enabled=False):  # scores are fp32's, whatever training computes in
            logits = self.predict_scored(batch["image"])
        truth = center_pad(batch["mask"], logits["linear"].shape[-2:])
        for head, head_logits in logits.items():
            predicted = head_logits.max(dim=1).indices  # argmax takes several times longer over channels
            self.confusion[head].update(predicted, truth.clamp(max=self.student.num_classes))
        labels, confidence = pseudo_label(logits["linear"])
        known, confident = truth != IGNORE_INDEX, confidence >= self.threshold
        right = confident & (labels == truth)
        self.pseudo_counts += torch.stack([known.sum(), (known & confident).sum(), right.sum()])

    def on_validation_epoch_end(self) -> None:
        """Log mIoU of both heads over the whole set, IoU of each class, and the state of bank and pseudo-labels."""
        headline, details = {}, {}
        for head, counts in self.confusion_counts().items():
            iou = iou_per_class(counts)
            headline[f"val/miou{HEADS[head]}"] = iou.nanmean()
            names = [f"val/iou{HEADS[head]}/{name}" for name in self.class_names]
            details |= dict(zip(names, iou, strict=True))
        if self.bank.is_initialized:
            share = self.prototype_usage
            entropy = torch.special.entr(share).sum(dim=1).mean() / math.log(max(share.shape[1], 2))
            details |= {"prototypes/usage_entropy": entropy, "prototypes/dead": (share == 0).float().sum()}
        counts = self.pseudo_counts
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(counts)
        details |= {"pseudo/coverage": counts[1] / counts[0], "pseudo/precision": counts[2] / counts[1].clamp(min=1)}
        # Every rank holds the same values by now; sync_dist only tells the trainer so.
        self.log_dict(headline | details, sync_dist=True)
        self.validated_at = self.trainer.global_step
        self.scores = {name: value.item() for name, value in (headline | details).items()}
        self.log("mIoU", headline["val/miou"], prog_bar=True, logger=False, sync_dist=True)

    def confusion_counts(self) -> dict[str, Tensor]:
        """Pixels (C, C) of [truth, prediction] in the newest validation, over all ranks, for each head there was."""
        counted = {head: matrix.compute() for head, matrix in self.confusion.items() if matrix.update_called}
        return {head: counts[:-1, :-1] for head, counts in counted.items()}  # the last class collects ignored pixels

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Store the metadata and what is no weight; plain values only, so that checkpoints load with weights_only."""
        checkpoint["pcr_seg"] = self.metadata
        checkpoint["progress"] = {
            "assigned": self.assigned, "validated_at": self.validated_at, "scores": self.scores,
        }  # fmt: skip

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Go on from there."""
        progress = checkpoint["progress"]
        self.assigned.copy_(progress["assigned"])
        self.validated_at, self.scores = progress["validated_at"], progress["scores"]


def initialized(part: PrototypeBank | RegionNames | None) -> PrototypeBank | RegionNames | None:
    """The part once it has seen labeled images, None before."""
    return part if part is not None and part.is_initialized else None


def check_choices(function: Callable, values: dict) -> None:
    """Raise a ValueError for a value that its parameter's Literal does not name."""
    for name, hint in get_type_hints(function).items():
        if get_origin(hint) is Literal and values[name] not in get_args(hint):
            raise ValueError(f"method.{name}={values[name]}: choose one of {', '.join(get_args(hint))}")
