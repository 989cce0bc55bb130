"""Write checkpoints so that a killed run can go on as if nothing had happened, and find the one to go on from."""

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
SIGNALS = (signal.SIGINT, signal.SIGTERM, *REQUEUE)  # of several that arrive, the one further back counts
EXIT_STOPPED = 75  # exit code of a run that a signal has stopped after saving; EX_TEMPFAIL: may be resumed


def whole_run(folder: Path) -> Path:
    """Return the folder of the run that a fold's folder is a part of; of any other run the folder itself."""
    return folder.parent if (folder.parent / f"splits/{folder.name}.txt").is_file() else folder


class Checkpoints(Checkpoint):
    """Writes last.ckpt at the start of each epoch and every few steps, and best.ckpt after the best validation.

    A step is saved when the next one starts, because only then its teacher, its rows in the log and Lightning's loop
    counters are complete. Lightning's `ModelCheckpoint` writes before all three are, and its state depends on the
    folder's path.

    On SIGTERM, SIGUSR1, SIGUSR2 or Ctrl-C the training saves before its next step and exits: with 130 after Ctrl-C, as
    shells do, else with `EXIT_STOPPED`. A second Ctrl-C ends it at once. On SIGUSR1 and SIGUSR2, which SLURM sends on
    request (`--signal=USR1@120`), the job is queued again: by the handler that was there before (submitit's), else by
    this class.

    Args:
        folder: the folder to write into.
        every_n_steps: optimizer steps between two saves inside of an epoch.
        backbone: also save the weights of a frozen backbone. Without them a checkpoint is a few hundred kB, but reading
            it needs the source of the weights, `backbone.weights`, again.
    """

    def __init__(self, folder: str, every_n_steps: int = 500, backbone: bool = True) -> None:
        self.folder, self.every_n_steps, self.backbone = Path(folder), every_n_steps, backbone
        self.best_score, self.saved_step = float("-inf"), 0
        self.received = 0  # the furthest of SIGNALS that has arrived, counted from 1; 0: none
        self.before: dict[int, object] = {}  # the previous handler of each signal

    def state_dict(self) -> dict:
        """Return the score of best.ckpt, to be saved."""
        return {"best_score": self.best_score}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore the score of best.ckpt, to compare further validations with."""
        self.best_score = state_dict["best_score"]

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Listen for signals; the trainer restores its own handlers in the end."""
        self.saved_step = trainer.global_step
        self.before = {number: signal.signal(number, self.note) for number in SIGNALS}

    def note(self, number: int, frame: object) -> None:
        """Remember a signal until the step is over, so that no communication or file is cut short."""
        if number == signal.SIGINT and self.received == 1 + SIGNALS.index(number):
            raise KeyboardInterrupt
        self.received = max(self.received, 1 + SIGNALS.index(number))

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: dict, batch_idx: int) -> None:
        """Save the state after the previous step, if it is time to; stop, if a signal has arrived."""
        step = trainer.global_step
        # After a resume Lightning's counter is one too high, and the log's rows would get wrong steps from it.
        trainer.fit_loop.epoch_loop._batches_that_stepped = step
        if batch_idx % trainer.accumulate_grad_batches:
            return  # a checkpoint does not have the gradients of a half-done step
        stop = self.received
        if trainer.world_size > 1:  # all ranks have to stop; asking them makes each wait, so it is done now and then
            stop = self.received_anywhere(trainer) if step % trainer.log_every_n_steps == 0 else 0
        if step > self.saved_step and (stop or batch_idx == 0 or step - self.saved_step >= self.every_n_steps):
            self.save(trainer, LAST)
            self.saved_step = step
        if stop:
            self.leave(trainer, SIGNALS[stop - 1])

    def received_anywhere(self, trainer: L.Trainer) -> int:
        """Return the furthest of SIGNALS that any rank has received, counted from 1."""
        received = torch.tensor(self.received, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(received, reduce_op="max"))

    def leave(self, trainer: L.Trainer, received: signal.Signals) -> None:
        """End this process, after queueing its SLURM job again if the signal asks for it."""
        if trainer.is_global_zero:
            command = f"python train.py resume={shlex.quote(str(whole_run(self.folder.parent)))}"
            print(f"stopped by a signal at step {trainer.global_step}, saved: {command}", flush=True)
        if received in REQUEUE:
            if callable(self.before[received]):
                self.before[received](received, None)
            elif trainer.is_global_zero and "SLURM_JOB_ID" in os.environ:
                subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True)
        # If a child exited with another code than 0, the launcher would kill the first process before it is done.
        code = 130 if received == signal.SIGINT else EXIT_STOPPED
        raise SystemExit(code if trainer.is_global_zero else 0)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Write best.ckpt if the validation was the best so far."""
        if module.scores["val/miou"] > self.best_score:
            self.best_score = module.scores["val/miou"]
            self.save(trainer, BEST)

    def save(self, trainer: L.Trainer, name: str) -> None:
        """Write one of the files; every rank has to call this."""
        trainer.lightning_module.settle()
        trainer.save_checkpoint(self.folder / name)

    def on_save_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict) -> None:
        """Store metrics.csv in the checkpoint, since the file may have later rows or half a row when a run is killed.

        Leaves out a frozen backbone's weights if they are not wanted.
        """
        if not self.backbone and getattr(getattr(module.student, "backbone", None), "frozen", False):
            for name in [name for name in checkpoint["state_dict"] if name.startswith(BACKBONES)]:
                del checkpoint["state_dict"][name]
        for logger in trainer.loggers:
            if isinstance(logger, CSVLogger) and trainer.is_global_zero:
                logger.save()
                file = Path(logger.log_dir) / "metrics.csv"
                checkpoint["metrics"] = file.read_text() if file.is_file() else ""

    def on_load_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict) -> None:
        """Convert the epoch's batch counts if the run goes on with other devices, and so other batches per step."""
        before = checkpoint["pcr_seg"]["config"]["trainer"]["accumulate_grad_batches"]
        if before != trainer.accumulate_grad_batches:
            for counts in checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"].values():
                if isinstance(counts, dict):
                    done = counts["completed"] // before * trainer.accumulate_grad_batches
                    counts.update(ready=done + 1, started=done, processed=done, completed=done)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes files that are complete or not there at all, also after a power cut; keeps last.ckpt as previous.ckpt.

    Lightning's own writes to the system's temporary folder, from where moving a file may mean copying it, and does not
    sync the file to disk.
    """

    def save_checkpoint(self, checkpoint: dict, path: str | Path, storage_options: object = None) -> None:
        """Write a file beside the target, sync it, and rename it to the target."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        if path.name == LAST and path.is_file():
            keep(path, path.with_name(PREVIOUS))
        os.replace(partial, path)
        if os.name == "posix":  # Windows cannot sync a folder
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)


def keep(file: Path, name: Path) -> None:
    """Give a file a second name; where the file system has no hard links, the file loses its first one."""
    link = name.with_suffix(".link")
    link.unlink(missing_ok=True)
    try:
        os.link(file, link)
    except OSError:
        os.replace(file, name)
        return
    os.replace(link, name)
    link.unlink(missing_ok=True)  # POSIX leaves it where the file had both names already


class Resumed(NamedTuple):
    """Where a run goes on."""

    path: Path  # of the checkpoint, which the trainer loads
    epoch: int
    steps: int  # optimizer steps done in that epoch
    metrics: str  # content of metrics.csv


def newest_checkpoint(folder: Path) -> Resumed | None:
    """Return a run's last.ckpt, or previous.ckpt if that is damaged; None if there is neither yet.

    Args:
        folder: the run's `checkpoints` folder.

    Raises:
        ValueError: all checkpoints there are damaged.
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
