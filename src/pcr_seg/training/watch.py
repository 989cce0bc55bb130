"""Watch the losses: stop a training whose numbers are not finite, and warn once of other trouble with a remedy."""

import logging
import math
from collections import Counter
from typing import Literal

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities import rank_zero_only

log = logging.getLogger(__name__)


class EarlyStop(EarlyStopping):
    """Lightning's; a run that it has ended and that is started again ends at once."""

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Stop before the first step if the checkpoint says so."""
        trainer.should_stop = trainer.should_stop or self.stopped_epoch > 0


class Watch(L.Callback):
    """Checks losses and gradients at each logging interval and before each save.

    A check in each step would wait for the device. A check before each save keeps numbers that are not finite out of
    checkpoints.

    Args:
        on_nonfinite: "raise" ends the training if a loss or gradient is not finite, at most an interval later. "skip"
            undoes such a step: no update, and buffers as before it. It has to check each step.
        max_skipped: steps that "skip" may undo before the training ends all the same.
        patience: number of steps in which a loss is exactly 0, or no pixel is confident, before a warning.
    """

    def __init__(
        self, on_nonfinite: Literal["raise", "skip"] = "raise", max_skipped: int = 10, patience: int = 200
    ) -> None:
        if on_nonfinite not in ("raise", "skip"):
            raise ValueError(f"watch.on_nonfinite={on_nonfinite}: choose one of raise, skip")
        self.on_nonfinite, self.max_skipped, self.patience = on_nonfinite, max_skipped, patience
        self.pending: list[tuple[int, list[str], dict]] = []  # steps to check: number, images, losses on the device
        self.images: list[str] = []  # names of the step's images
        self.skipped, self.zeros, self.warned = 0, Counter(), set()
        self.burn_in_score: float | None = None
        self.bank_is_checked = False

    def state_dict(self) -> dict:
        """Return what has been skipped, warned of and scored, to be saved."""
        return {"skipped": self.skipped, "warned": sorted(self.warned), "burn_in_score": self.burn_in_score}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore what was saved."""
        self.skipped, self.warned = state_dict["skipped"], set(state_dict["warned"])
        self.burn_in_score = state_dict["burn_in_score"]

    # ------------------------------------------------------------------------------ not finite

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: dict, batch_idx: int) -> None:
        """Note the step's images and, for "skip", copy the buffers."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self.images = []
            if self.on_nonfinite == "skip":
                self.buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        self.images += [name for stream in batch.values() for name in stream["name"]]
        if not self.bank_is_checked and not module.in_burn_in:
            self.bank_is_checked = True
            self.check_bank(module)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Measure the gradient's norm, which is the same on all ranks; with "skip" undo a step if it is not finite."""
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return  # infinite gradients are normal with fp16: its scaler skips them itself
        norm = torch.nn.utils.get_total_norm([p.grad for p in module.student.parameters() if p.grad is not None])
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # a DTensor, if weights are divided
        module.latest["gradient"] = norm
        if self.on_nonfinite == "skip" and not norm.isfinite():
            self.skipped += 1
            message = self.describe(trainer, trainer.global_step + 1, self.images, module.latest)
            if self.skipped > self.max_skipped:
                raise ValueError(f"{message}; {self.max_skipped} steps were skipped before: lower optimizer.lr")
            log.warning("skipped: %s", message)
            optimizer.zero_grad()  # without gradients the optimizer changes nothing
            for name, buffer in module.named_buffers():
                buffer.copy_(self.buffers[name])

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: dict, batch: dict, batch_idx: int
    ) -> None:
        """Keep the step's losses, and check those of a whole interval together."""
        self.pending.append((trainer.global_step, self.images, dict(module.latest)))
        if len(self.pending) >= trainer.log_every_n_steps:
            self.look(trainer, module)

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict) -> None:
        """Check the steps so far before a checkpoint is written."""
        self.look(trainer, module)

    def look(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Fetch the losses of the pending steps from the device at once, and check them.

        Raises:
            ValueError: one of them is not finite.
        """
        pending, self.pending = self.pending, []
        if not pending:
            return
        numbers = iter(torch.stack([x.float() for _, _, latest in pending for x in latest.values()]).tolist())
        for step, images, latest in pending:
            latest = {name: next(numbers) for name in latest}
            if self.on_nonfinite == "raise" and not all(map(math.isfinite, latest.values())):
                raise ValueError(
                    f"{self.describe(trainer, step, images, latest)}; no checkpoint holds it: "
                    "lower optimizer.lr, or set watch.on_nonfinite=skip"
                )
            self.zeros = Counter({name: self.zeros[name] + 1 for name, value in latest.items() if value == 0})
        self.check_zeros(module)

    def describe(self, trainer: L.Trainer, step: int, images: list[str], latest: dict) -> str:
        """Describe a step in one line: its losses and its images."""
        losses = ", ".join(f"{name} {float(value):.4g}" for name, value in latest.items())
        return f"step {step} of rank {trainer.global_rank} is not finite ({losses}); images {', '.join(images)}"

    # ------------------------------------------------------------------------------ warnings

    @rank_zero_only
    def warn(self, kind: str, message: str) -> None:
        """Log a warning, once in a run for each kind."""
        if kind not in self.warned:
            self.warned.add(kind)
            log.warning(message)

    def check_zeros(self, module: L.LightningModule) -> None:
        """Warn of losses that have been exactly 0, or of no confident pixel, for `patience` steps."""
        constant = {name for name, steps in self.zeros.items() if steps >= self.patience}
        if "confident" in constant:
            self.warn(
                "confident",
                f"no pseudo-label has reached threshold={module.method.threshold} in {self.patience} steps, so "
                "unlabeled images train nothing: lower method.threshold, or lengthen method.burn_in_epochs",
            )
        known = {"confident", "consistency"} if "confident" in constant else set()  # no confident pixel: no loss
        for name in sorted(constant - known - {"gradient"}):
            self.warn(
                name,
                f"the {name} loss has been exactly 0 for {self.patience} steps: look at the masks and at padding "
                "(255 everywhere trains nothing), or leave the loss out",
            )

    def check_bank(self, module: L.LightningModule) -> None:
        """Warn of classes for which k-means has found no prototype, since no labeled pixel shows them."""
        bank = module.predictor.bank
        if bank is None:
            return
        absent = (bank.prototypes == 0).all(dim=2).all(dim=1).tolist()
        names = [name for name, empty in zip(module.class_names, absent, strict=True) if empty]
        if names:
            self.warn(
                "absent",
                f"no labeled pixel of {', '.join(names)}: the prototype head cannot predict them before pseudo-labels "
                "do; label an image that shows them, or draw another split",
            )

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Warn if the mIoU is below the burn-in's, or if many prototypes were chosen by no feature in this epoch."""
        score = module.scores["val/miou"]
        if module.in_burn_in:
            self.burn_in_score = score
        elif self.burn_in_score is not None and score < self.burn_in_score - 0.01:
            self.warn(
                "below",
                f"mIoU {100 * score:.1f} is below the {100 * self.burn_in_score:.1f} of the supervised burn-in: raise "
                "method.threshold, lower method.consistency_weight, or lengthen method.burn_in_epochs",
            )
        bank, dead = module.predictor.bank, module.scores.get("prototypes/dead", 0)
        total = 0 if bank is None else bank.prototypes.shape[:2].numel()
        if dead > total / 4:
            self.warn(
                "dead",
                f"{dead:.0f} of {total} prototypes were the nearest to no pixel in this "
                "epoch: lower method.num_prototypes, or label more images",
            )
