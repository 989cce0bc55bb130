"""The engine: one LightningModule that knows steps, epochs and ranks, and no method, data set or network.

    labeled ----------------------+
                                  v
    unlabeled --> METHOD(STUDENT, TEACHER, labeled, unlabeled) --> losses --> optimizer --> STUDENT
                                                                                               |
                                                                  TEACHER <--- average --------+

What a method computes is in its file in `method/`; how engine and method talk to each other, in `method/__init__.py`.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import lightning.pytorch as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from pcr_seg.checkpoint import BACKBONES, FORMAT, described
from pcr_seg.data.classes import distinct_colors
from pcr_seg.inference import Protocol, whole_image
from pcr_seg.method.losses import IGNORE_INDEX
from pcr_seg.method.teacher import Teacher, pseudo_label
from pcr_seg.pixels import as_floats
from pcr_seg.predictor import Predictor
from pcr_seg.processes import Divided, all_reduced, share_buffers
from pcr_seg.scores import Scores


class Segmentation(L.LightningModule):
    """A student and its teacher, trained by a method.

    The training loaders are a dictionary: `labeled` (batches of `image` and `mask`), `unlabeled` (`weak`, `strong`
    (B, V, 3, H, W), `valid`) if the method has views, and `other` if it asks for a second batch. A loader that is
    shorter than another starts again. Validation images come whole, one at a time. Images are bytes, which the engine
    normalises by the student's `mean` and `std`, or floats that are normalised already.

    What a method computes once after the burn-in (k-means) sees, on every rank, the data module's
    `labeled_dataloader()` if it has one, else the images of the `labeled` loader in order. To resume within an epoch
    bit for bit takes this project's own data module.

    Args:
        student: a network with `num_classes` and `feature_dim`, whose output has `logits` (B, C, h, w) and `features`
            (B, D, h, w), and perhaps `auxiliary` logits. It may have `parameter_groups(lr)`, for the optimizer;
            `standardize(labeled_batches)`, called before the first step; and `perturb(weak)`, which makes the strong
            views if none are loaded.
        method: what trains it, by the contract of `pcr_seg.method`.
        class_names: names of the C classes, for the IoU of each.
        lr: learning rate; it falls to 0 over the training as (1 - step / steps) ** poly_power.
        warmup: share of the steps, 0..1, in which the learning rate first rises from 0.
        optimizer: makes an optimizer from parameter groups and `lr`.
        poly_power: exponent of the fall; 0.9 in U2PL.
        logit_adjustment: corrects pseudo-labels for the classes' frequencies: see `method.teacher.Teacher`.
        teacher_bn: where the teacher's BatchNorm statistics come from: see `method.teacher.Teacher`.
        protocol: predicts a whole image: `inference.whole_image`, `sliding_window` ...
        palette: a color (R, G, B) for each class; by default distinct ones.
        name: the method's name in summaries; by default its class's.
        seed: every random number of a step follows from (seed, batch of the training, rank).
    """

    def __init__(
        self,
        student: nn.Module,
        method: nn.Module,
        class_names: Sequence[str],
        *,
        lr: float = 1e-3,
        optimizer: Callable = torch.optim.AdamW,
        warmup: float = 0.0,
        poly_power: float = 0.9,
        teacher_bn: str = "copy",
        logit_adjustment: float = 0.0,
        protocol: Protocol = whole_image,
        palette: Sequence[tuple[int, int, int]] | None = None,
        name: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if len(class_names) != student.num_classes:
            raise ValueError(f"class_names: {len(class_names)} for a network of {student.num_classes} classes")
        # Channels last is faster on CPUs and on tensor cores. The images take the layout of the weights.
        self.student = student.to(memory_format=torch.channels_last)
        self.method = method
        decay = float(getattr(method, "ema_decay", 0.0))
        self.teacher = Teacher(student, decay=decay, bn=teacher_bn, logit_adjustment=float(logit_adjustment))
        if hasattr(method, "attach"):
            method.attach(self.student)
        self.class_names, self.palette = list(class_names), palette or distinct_colors(len(class_names))
        self.lr, self.optimizer, self.warmup, self.poly_power, self.seed = lr, optimizer, warmup, poly_power, seed
        self.protocol, self.described_protocol = protocol, described(protocol)  # fails now, not at the first save
        self.name = name or type(method).__name__
        self.metadata: dict = {}  # about the run (configuration, data set ...); saved in every checkpoint

        self.latest: dict[str, Tensor] = {}  # losses and figures of the newest step
        self.divided: Divided | None = None  # the weights, if they are divided over the devices (FSDP)
        self.unsettled = False  # whether the teacher's BatchNorm statistics are older than its weights (`settle`)
        self.scores: dict[str, float] = {}  # what the newest validation logged
        self.validated_at = -1  # the step of that validation
        self.confusion = Scores(student.num_classes)
        self.register_buffer("pseudo_counts", torch.zeros(3), persistent=False)  # pixels; confident; right as well

    # ------------------------------------------------------------------------------------- training

    @property
    def uses_unlabeled(self) -> bool:
        """Whether the method learns from unlabeled images at all."""
        return self.method.views is not None

    @property
    def semi_supervised_steps(self) -> int:
        """Optimizer steps with unlabeled images so far; they are the steps that the teacher has followed."""
        return int(self.teacher.steps) if self.uses_unlabeled else 0

    @property
    def in_burn_in(self) -> bool:
        """Whether this epoch still belongs to the burn-in, which trains on labeled images alone."""
        return self.current_epoch < getattr(self.method, "burn_in_epochs", 0)

    def training_step(self, batch: dict, batch_idx: int) -> Tensor:
        """Return the weighted sum of the method's losses."""
        labeled = as_floats(batch["labeled"], self.student)
        unlabeled = None if self.in_burn_in or not self.uses_unlabeled else self.unlabeled_of(batch)
        losses = self.method(self.student, self.teacher, labeled, unlabeled)

        figures = {} if unlabeled is None else dict(getattr(self.method, "figures", {}))
        self.latest = {name: loss.detach() for name, loss in losses.items()} | figures
        # Not in the progress bar: it would wait for the device in each step.
        self.log_dict({f"train/{name}{'_loss' * (name in losses)}": value for name, value in self.latest.items()})
        return sum(self.method.weights[name] * loss for name, loss in losses.items())

    def unlabeled_of(self, batch: dict) -> dict:
        """Return the unlabeled part of a batch as the method gets it; raise a ValueError if a loader is missing."""
        found = {}
        for name in ("unlabeled", "other") if self.method.views.other else ("unlabeled",):
            if name not in batch:
                raise ValueError(f"{self.name}: needs a loader {name}; give the trainer {{labeled: ..., {name}: ...}}")
            found[name] = self.with_strong(batch, name)
        return found.pop("unlabeled") | found

    def with_strong(self, batch: dict, name: str) -> dict:
        """Return a loader's views; of features the student makes strong ones. Raise a ValueError if any is missing."""
        views, wanted = as_floats(batch[name], self.student), self.method.views.strong
        if "strong" not in views and hasattr(self.student, "perturb"):
            views["strong"] = torch.stack([self.student.perturb(views["weak"]) for _ in range(wanted)], dim=1)
        if (found := views["strong"].shape[1] if "strong" in views else 0) < wanted:
            raise ValueError(f"{self.name}: needs {wanted} strong views (V, 3, H, W); {name} has {found}")
        return views

    def configure_model(self) -> None:
        """Divide the weights of student and teacher over the devices, if the trainer's strategy is FSDP."""
        if self.device_mesh is not None and self.divided is None:
            self.divided = Divided(self, self.student, self.teacher.network, self.device_mesh["data_parallel"])

    def gather(self) -> None:
        """Gather the teacher's weights until the next step, if they are divided; every process has to call this."""
        if self.divided:
            self.divided.gather()

    def configure_optimizers(self) -> dict:
        """Return an optimizer of student and method, and the poly schedule by steps of the whole training."""
        if hasattr(self.student, "parameter_groups"):
            groups = self.student.parameter_groups(self.lr)
        else:
            groups = [{"params": [p for p in self.student.parameters() if p.requires_grad]}]
        own = [p for p in self.method.parameters() if p.requires_grad]
        optimizer = self.optimizer([*groups, {"params": own}] if own else groups, lr=self.lr)
        steps = self.trainer.estimated_stepping_batches
        rise = max(1.0, self.warmup * steps)
        poly = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / rise) * max(0.0, 1 - step / steps) ** self.poly_power
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": poly, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Tell the method how many batches make an optimizer step; measure peak memory from here."""
        self.tell("accumulate", self.trainer.accumulate_grad_batches)
        total = self.trainer.estimated_stepping_batches
        if math.isfinite(batches := self.trainer.num_training_batches):
            self.check_burn_in(-(-batches // self.trainer.accumulate_grad_batches), total)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)  # jobs of a sweep share a process

    def on_train_start(self) -> None:
        """Let teacher and student look at the labeled images first, if they need class counts or feature statistics."""
        if LabeledBatches(self).loader() is None:
            return
        if self.teacher.logit_adjustment:
            self.teacher.count((batch["mask"] for batch in LabeledBatches(self)), self.student.num_classes)
        if hasattr(self.student, "standardize") and self.global_step == 0:
            self.student.standardize(LabeledBatches(self))
            self.teacher.network.load_state_dict(self.student.state_dict())

    def check_burn_in(self, steps_per_epoch: int, total: int) -> None:
        """Raise a ValueError if the burn-in takes all of the `total` steps, so that no unlabeled image is ever used."""
        epochs = getattr(self.method, "burn_in_epochs", 0)
        if self.uses_unlabeled and 0 < total <= epochs * steps_per_epoch:
            raise ValueError(
                f"burn_in_epochs={epochs}: takes all of this training ({total} steps, {steps_per_epoch} in an epoch), "
                f"so {self.name} would see no unlabeled image; lower method.burn_in_epochs, or train longer"
            )

    def on_train_epoch_start(self) -> None:
        """Announce the epoch to the method and, after the burn-in, call its `begin`."""
        self.tell("new_epoch")
        if not self.in_burn_in:
            if self.uses_unlabeled:
                self.settle()  # so that the first pseudo-labels do not depend on when the burn-in was validated
            generator = torch.Generator(self.device).manual_seed(self.seed)
            self.tell("begin", self.student, LabeledBatches(self), generator)

    def tell(self, event: str, *details: object) -> None:
        """Call the method's function for an event, where it has one."""
        if hasattr(self.method, event):
            getattr(self.method, event)(*details)

    def on_train_batch_start(self, batch: dict, batch_idx: int) -> None:
        """Reseed, so that a step's random numbers do not depend on what ran before it."""
        batches = self.trainer.num_training_batches  # infinite if a loader has no length
        position = self.current_epoch * (int(batches) if math.isfinite(batches) else 2**20) + batch_idx
        # As a tensor it stays on the CPU; Lightning would copy a number to the device.
        self.log("train/lr", torch.tensor(self.optimizers().param_groups[0]["lr"]))
        torch.manual_seed((self.seed * 1_000_003 + position) * self.trainer.world_size + self.trainer.global_rank)
        self._step_before = self.trainer.global_step
        if self.divided:
            self.divided.start_step()

    def on_train_batch_end(self, outputs: Tensor, batch: dict, batch_idx: int) -> None:
        """Move the teacher after each optimizer step (not after each accumulated batch)."""
        if self.trainer.global_step == self._step_before:
            return
        self.unsettled = self.in_burn_in or not self.uses_unlabeled
        if self.in_burn_in:
            self.teacher.copy(self.student)
        else:
            self.teacher.follow(self.student)

    def settle(self) -> None:
        """Bring the teacher's BatchNorm statistics up to date from the labeled images (its rule "weak").

        Needed after steps on labels alone, before the teacher labels, is scored or is saved. The statistics then depend
        on weights and images only, and not on when the last validation was.
        """
        if self.unsettled and LabeledBatches(self).loader() is not None:
            self.unsettled = False
            with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
                torch.manual_seed(self.seed)
                self.teacher.refresh(batch["image"] for batch in LabeledBatches(self))

    def on_train_end(self) -> None:
        """Leave a teacher whose statistics are up to date to whoever saves or scores it next."""
        self.settle()

    # ----------------------------------------------------------------------------------- evaluation

    @property
    def predictor(self) -> Predictor:
        """The evaluated network, which is the teacher, with the method's further heads."""
        network = self.divided.whole if self.divided else self.teacher.network
        return Predictor(
            network, self.method, self.class_names, self.palette, self.protocol,
            name=self.name, metadata=self.metadata,
        )  # fmt: skip

    def on_validation_start(self) -> None:
        """Bring BatchNorm's statistics up to date, and give every rank those of rank 0."""
        self.settle()
        share_buffers(self.teacher)
        self.gather()

    def on_validation_epoch_start(self) -> None:
        """Start counting from zero. After the epoch the counts stay, so that callbacks can show them."""
        self.confusion.reset()
        self.pseudo_counts.zero_()

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        """Count the pixels of one image: each head's confusion, and which pseudo-labels would train and be right."""
        batch = as_floats(batch, self.student)
        with torch.autocast(self.device.type, enabled=False):  # scores are in fp32, whatever training computes in
            features = getattr(self.student, "width", None) == batch["image"].shape[1]  # loaded in place of images
            heads = self.predictor.scored(batch["image"], size=batch["mask"].shape[-2:] if features else None)
        truth = self.confusion.update(heads, batch["mask"], *batch.get("name", ()))
        if hasattr(self.method, "threshold"):
            labels, confidence = pseudo_label(heads["linear"])
            known, confident = truth != IGNORE_INDEX, confidence >= self.method.threshold
            right = confident & (labels == truth)
            self.pseudo_counts += torch.stack([known.sum(), (known & confident).sum(), right.sum()])

    def on_validation_epoch_end(self) -> None:
        """Log mIoU of each head over the whole set, IoU of each class, and the method's own statistics."""
        headline, details = self.confusion.by_key(self.class_names)
        if hasattr(self.method, "statistics"):
            details |= self.method.statistics()
        if hasattr(self.method, "threshold"):
            known, confident, right = all_reduced(self.pseudo_counts)
            details |= {"pseudo/coverage": confident / known, "pseudo/precision": right / confident.clamp(min=1)}
        # Every rank has the same values by now; sync_dist only keeps the trainer from warning.
        self.log_dict(headline | details, sync_dist=True)
        self.validated_at = self.trainer.global_step
        self.scores = {name: value.item() for name, value in (headline | details).items()}
        self.log("mIoU", headline["val/miou"], prog_bar=True, logger=False, sync_dist=True)

    # ---------------------------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Store how network and method were made, and the newest scores; plain values only, for `weights_only`."""
        checkpoint["pcr_seg"] = self.metadata | {
            "format": FORMAT,
            "student": described(self.student),
            "method": described(self.method),
            "protocol": self.described_protocol,
            "classes": self.class_names,
            "palette": [[int(value) for value in color] for color in self.palette],
            "name": self.name,
        }
        checkpoint["progress"] = {
            "validated_at": self.validated_at,
            "scores": self.scores,
        }

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        """Restore the newest scores; a frozen backbone that the file leaves out keeps the weights that it has."""
        if not any(name.startswith(BACKBONES) for name in checkpoint["state_dict"]):
            own = {name: value for name, value in self.state_dict().items() if name.startswith(BACKBONES)}
            checkpoint["state_dict"] |= own
        progress = checkpoint["progress"]
        self.validated_at, self.scores = progress["validated_at"], progress["scores"]


class LabeledBatches:
    """An iterable of all labeled images in order, in batches on the device and normalised as in a step."""

    def __init__(self, module: Segmentation) -> None:
        self.module = module

    def __iter__(self) -> Iterator[dict]:
        for batch in self.loader():
            on_device = {key: batch[key].to(self.module.device) for key in ("image", "mask")}
            yield as_floats(on_device, self.module.student)

    def loader(self) -> Iterable[dict] | None:
        """Return the data module's `labeled_dataloader()`, else a copy of the trainer's `labeled` in order, or None."""
        data = self.module.trainer.datamodule
        if hasattr(data, "labeled_dataloader"):
            return data.labeled_dataloader()
        used = (self.module.trainer.train_dataloader or {}).get("labeled")
        if isinstance(used, DataLoader) and used.batch_size and not isinstance(used.dataset, IterableDataset):
            return DataLoader(used.dataset, used.batch_size, collate_fn=used.collate_fn)
        return used
