"""Measure the seconds of training without validation, and the speed in images per second."""

import time

import lightning.pytorch as L
from lightning.pytorch.loggers import CSVLogger

from pcr_seg.data.datamodule import SegmentationData
from pcr_seg.module import Segmentation


def images_per_second(trainer: L.Trainer, data: SegmentationData, module: Segmentation) -> float:
    """Return how many images (labeled ones and strong views) the student has trained on per second."""
    streams = 1 + module.method.views.strong if module.uses_unlabeled else 1
    images = trainer.global_step * trainer.accumulate_grad_batches * data.batch_size * streams * trainer.world_size
    return images / max(callback(trainer, TrainTimer).seconds, 1e-9)


def callback(trainer: L.Trainer, kind: type) -> L.Callback:
    """Return the trainer's only callback of this class."""
    [found] = [callback for callback in trainer.callbacks if isinstance(callback, kind)]
    return found


class TrainTimer(L.Callback):
    """Seconds spent in training epochs without their validation."""

    def __init__(self) -> None:
        self.seconds, self.started = 0.0, None

    def state_dict(self) -> dict:
        """Return the seconds so far, to be saved."""
        running = 0.0 if self.started is None else time.perf_counter() - self.started
        return {"seconds": self.seconds + running}

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore the seconds of a run that goes on."""
        self.seconds = state_dict["seconds"]

    def on_train_epoch_start(self, trainer: L.Trainer, module: Segmentation) -> None:
        """Start the clock."""
        self.started = time.perf_counter()

    def on_train_start(self, trainer: L.Trainer, module: Segmentation) -> None:
        """Start the clock for a run that goes on inside of an epoch."""
        self.on_train_epoch_start(trainer, module)

    def on_validation_start(self, trainer: L.Trainer, module: Segmentation) -> None:
        """Pause the clock during a validation."""
        self.pause()

    def on_train_epoch_end(self, trainer: L.Trainer, module: Segmentation) -> None:
        """Pause the clock, if no validation has, and log the speed so far."""
        self.pause()
        speed = {"train/images_per_second": images_per_second(trainer, trainer.datamodule, module)}
        for logger in trainer.loggers:
            if not isinstance(logger, CSVLogger):  # metrics.csv has to be the same for the same run
                logger.log_metrics(speed, trainer.global_step)

    def pause(self) -> None:
        """Add the seconds since the start, and stop the clock."""
        if self.started is not None:
            self.seconds, self.started = self.seconds + time.perf_counter() - self.started, None
