"""Checkpoints: written so that a killed run goes on as if nothing had happened, and how they are read."""

import os
import shlex
import signal
import subprocess
from pathlib import Path
from typing import NamedTuple

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import TorchCheckpointIO

from pcr_seg.checkpoint import BACKBONES, LAST, read_checkpoint

PREVIOUS, BEST = "previous.ckpt", "best.ckpt"
REQUEUE = [getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name)]  # Windows has none
SIGNALS = (signal.SIGINT, signal.SIGTERM, *REQUEUE)  # the later one wins: it asks for more
EXIT_STOPPED = 75  # EX_TEMPFAIL: stopped by a signal after saving, to be resumed


def whole_run(folder: Path) -> Path:
    """The run that a fold is a part of; of any other run itself."""
    return folder.parent if (folder.parent / f"splits/{folder.name}.txt").is_file() else folder


class Checkpoints(Checkpoint):
    """Writes last.ckpt at the start of each epoch and every few steps, and best.ckpt after the best validation.

    A step is saved when the next one starts. Only then are its teacher, its rows in the log and its loops complete:
    Lightning's `ModelCheckpoint` writes before all three, and ties its state to the folder's path.

    On SIGTERM, SIGUSR1, SIGUSR2 or Ctrl-C the training saves before its next step and exits with `EXIT_STOPPED`, after
    Ctrl-C with 130 as shells do; a second Ctrl-C ends it at once. On SIGUSR1 and SIGUSR2, which SLURM sends when told
    to (`--signal=USR1@120`), the job is also queued again, by whoever listened before (submitit does) or here.

    Args:
        folder: where the files are written.
        every_n_steps: optimizer steps between two saves inside of an epoch.
        backbone: store the weights of a frozen backbone too. Without them a checkpoint is a few hundred kB, and whoever
            reads it needs `backbone.weights` again.
    """

    def __init__(self, folder: str, every_n_steps: int = 500, backbone: bool = True) -> None:
        self.folder, self.every_n_steps, self.backbone = Path(folder), every_n_steps, backbone
        self.best_score, self.saved_step = float("-inf"), 0
        self.received = 0  # the last of SIGNALS so far, counted from 1
        self.before: dict[int, object] = {}  # who listened for each signal

    def state_dict(self) -> dict:
        """The score of best.ckpt."""
        return {"best_score": self.best_score}

    def load_state_dict(self, state_dict: dict) -> None:
        """Go on comparing with it."""
        self.best_score = state_dict["best_score"]

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Listen for signals; the trainer restores its own handlers in the end."""
        self.saved_step = trainer.global_step
        self.before = {number: signal.signal(number, self.note) for number in SIGNALS}

    def note(self, number: int, frame: object) -> None:
        """Remember the signal until the step is over: its collectives and files must not be cut."""
        if number == signal.SIGINT and self.received == 1 + SIGNALS.index(number):
            raise KeyboardInterrupt
        self.received = max(self.received, 1 + SIGNALS.index(number))

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: dict, batch_idx: int) -> None:
        """Save what the steps before this one have made, when it is time."""
        step = trainer.global_step
        # The loop counts one too many when it resumes, and would number the log's rows by it.
        trainer.fit_loop.epoch_loop._batches_that_stepped = step
        if batch_idx % trainer.accumulate_grad_batches:
            return  # gradients of a half-done step are in no checkpoint
        stop = self.received
        if trainer.world_size > 1:  # all ranks or none; asking them makes each wait for its device
            stop = self.received_anywhere(trainer) if step % trainer.log_every_n_steps == 0 else 0
        if step > self.saved_step and (stop or batch_idx == 0 or step - self.saved_step >= self.every_n_steps):
            self.save(trainer, LAST)
            self.saved_step = step
        if stop:
            self.leave(trainer, SIGNALS[stop - 1])

    def received_anywhere(self, trainer: L.Trainer) -> int:
        """The last of SIGNALS that any rank has received."""
        received = torch.tensor(self.received, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(received, reduce_op="max"))

    def leave(self, trainer: L.Trainer, received: signal.Signals) -> None:
        """End this process; a job whose time is up is queued again."""
        if trainer.is_global_zero:
            command = f"python train.py resume={shlex.quote(str(whole_run(self.folder.parent)))}"
            print(f"stopped by a signal at step {trainer.global_step}, saved: {command}", flush=True)
        if received in REQUEUE:
            if callable(self.before[received]):
                self.before[received](received, None)
            elif trainer.is_global_zero and "SLURM_JOB_ID" in os.environ:
                subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True)
        # Another code than 0 in a child would have the launcher kill the first process before it has left.
        code = 130 if received == signal.SIGINT else EXIT_STOPPED
        raise SystemExit(code if trainer.is_global_zero else 0)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Keep the best."""
        if module.scores["val/miou"] > self.best_score:
            self.best_score = module.scores["val/miou"]
            self.save(trainer, BEST)

    def save(self, trainer: L.Trainer, name: str) -> None:
        """Write one of the files; every rank has to call this."""
        trainer.lightning_module.settle()
        trainer.save_checkpoint(self.folder / name)

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict) -> None:
        """Let metrics.csv travel with the checkpoint: the file itself may be ahead of it, or torn."""
        if not self.backbone and getattr(getattr(module.student, "backbone", None), "frozen", False):
            for name in [name for name in checkpoint["state_dict"] if name.startswith(BACKBONES)]:
                del checkpoint["state_dict"][name]
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger) and trainer.is_global_zero:
                logger.save()
                file = Path(logger.log_dir) / "metrics.csv"
                checkpoint["metrics"] = file.read_text() if file.is_file() else ""

    def on_load_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict) -> None:
        """Count the batches of the epoch anew where other devices need more or fewer of them for a step."""
        before = checkpoint["pcr_seg"]["config"]["trainer"]["accumulate_grad_batches"]
        if before != trainer.accumulate_grad_batches:
            for counts in checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"].values():
                if isinstance(counts, dict):
                    done = counts["completed"] // before * trainer.accumulate_grad_batches
                    counts.update(ready=done + 1, started=done, processed=done, completed=done)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Files that appear complete or not at all, also after a power cut; the last last.ckpt stays as previous.ckpt.

    Lightning's own writes into the system's temporary folder, from where a move may be a copy, and does not sync.
    """

    def save_checkpoint(self, checkpoint: dict, path: str | Path, storage_options: object = None) -> None:
        """Write beside the target, then rename."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        if path.name == LAST and path.is_file():
            os.replace(path, path.with_name(PREVIOUS))
        os.replace(partial, path)
        if os.name == "posix":  # Windows opens no folders
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)


class Resumed(NamedTuple):
    """What a run goes on from, apart from what the trainer itself loads."""

    path: Path
    epoch: int
    steps: int  # optimizer steps of that epoch
    metrics: str  # of metrics.csv


def newest_checkpoint(folder: Path) -> Resumed | None:
    """The last checkpoint of a run, or the one before where the last is damaged; None where there is none yet.

    Raises:
        ValueError: there are checkpoints, all damaged.
    """
    error = None
    for path in (folder / LAST, folder / PREVIOUS):
        if path.is_file():
            try:
                content = read_checkpoint(path, whole=True)
            except ValueError as damaged:
                error = damaged
                continue
            if error:
                print(f"warning: {error}; continuing from {PREVIOUS}")
            batches = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["completed"]
            steps = batches // content["pcr_seg"]["config"]["trainer"]["accumulate_grad_batches"]
            return Resumed(path, content["epoch"], steps, content.get("metrics", ""))
    if error:
        raise error
    return None
