"""Seconds of training without validation, and the speed that follows."""

import time

import lightning.pytorch as L
from lightning.pytorch.loggers import CSVLogger

from pcr_seg.data.datamodule import SegmentationData
from pcr_seg.module import Segmentation


def images_per_second(trainer: L.Trainer, data: SegmentationData, module: Segmentation) -> float:
    """Images through the student in training, per second of training without validation."""
    streams = 1 + module.method.views.strong if module.uses_unlabeled else 1
    images = trainer.global_step * trainer.accumulate_grad_batches * data.batch_size * streams * trainer.world_size
    return images / max(callback(trainer, TrainTimer).seconds, 1e-9)


def callback(trainer: L.Trainer, kind: type) -> L.Callback:
    """The trainer's only callback of this kind."""
    [found] = [callback for callback in trainer.callbacks if isinstance(callback, kind)]
    return found


class TrainTimer(L.Callback):
    """Seconds spent in training epochs without their validation."""

    def __init__(self) -> None:
        self.seconds, self.started = 0.0, None

    def state_dict(self) -> dict:
        """Seconds so far, for a run that goes on."""
        running = 0.0 if self.started is None else time.perf_counter() - self.started
        return {"seconds": self.seconds + running}

    def load_state_dict(self, state_dict: dict) -> None:
        """Count on."""
        self.seconds = state_dict["seconds"]

    def on_train_epoch_start(self, trainer: L.Trainer, module: Segmentation) -> None:
        """Start."""
        self.started = time.perf_counter()

    def on_train_start(self, trainer: L.Trainer, module: Segmentation) -> None:
        """Start within an epoch where a run goes on there."""
        self.on_train_epoch_start(trainer, module)

    def on_validation_start(self, trainer: L.Trainer, module: Segmentation) -> None:
        """Pause at a validation inside of an epoch."""
        self.pause()

    def on_train_epoch_end(self, trainer: L.Trainer, module: Segmentation) -> None:
        """Stop, unless a validation has, and log the speed so far."""
        self.pause()
        speed = {"train/images_per_second": images_per_second(trainer, trainer.datamodule, module)}
        for logger in trainer.loggers:
            if not isinstance(logger, CSVLogger):  # metrics.csv is the same for the same run, however fast
                logger.log_metrics(speed, trainer.global_step)

    def pause(self) -> None:
        """Add what has passed since the start."""
        if self.started is not None:
            self.seconds, self.started = self.seconds + time.perf_counter() - self.started, None
