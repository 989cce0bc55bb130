"""What can be seen while a training runs: the progress bar, and pictures and diagrams in W&B and TensorBoard."""

import math
import time
from datetime import timedelta
from pathlib import Path

import lightning.pytorch as L
import numpy as np
import wandb
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from pcr_seg.data.files import IGNORE_INDEX, read_image, read_mask
from pcr_seg.data.sources import Source
from pcr_seg.inference import iou_per_class
from pcr_seg.module import Segmentation
from pcr_seg.pictures import visualize
from pcr_seg.pictures.panels import example_panel, examples, gallery, look


class ProgressBar(RichProgressBar):
    """Rich's progress bar with losses, mIoU and the time that the whole training will still take.

    Losses are fetched from the device at every tenth batch. The time is estimated from the pace since the start, or
    since the end of the burn-in, whose steps are faster.
    """

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start to measure the pace at the first epoch, and again at the first with unlabeled images."""
        burn_in = getattr(getattr(pl_module, "method", None), "burn_in_epochs", 0)
        if not hasattr(self, "began") or trainer.current_epoch == burn_in:
            self.began = (time.monotonic(), trainer.global_step)
        super().on_train_epoch_start(trainer, pl_module)

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict:
        """Return the trainer's metrics, the newest losses by short names, and as `all` the time left (h:mm:ss)."""
        logged = {key: value for key, value in trainer.callback_metrics.items() if key.endswith("_loss")}
        losses = {key.removeprefix("train/").removesuffix("_loss"): value.item() for key, value in logged.items()}
        began, step = getattr(self, "began", (0.0, trainer.global_step))
        left = {}
        if trainer.training and trainer.global_step > step:
            pace = (time.monotonic() - began) / (trainer.global_step - step)
            left["all"] = (
                f"{timedelta(seconds=round(pace * (trainer.estimated_stepping_batches - trainer.global_step)))} left"
            )
        return left | super().get_metrics(trainer, pl_module) | losses

    def _update_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.training or trainer.fit_loop.epoch_loop.batch_idx % 10 == 0:
            super()._update_metrics(trainer, pl_module)


class LogPanels(L.Callback):
    """Sends pictures and diagrams of each validation to W&B and TensorBoard, whichever is used as logger."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def on_validation_end(self, trainer: L.Trainer, module: Segmentation) -> None:
        """Log pictures and diagrams of this validation."""
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    validation_to_wandb(logger, module, self.source, trainer.global_step)
                elif isinstance(logger, TensorBoardLogger):
                    validation_to_tensorboard(logger, module, self.source, trainer.global_step)

    def on_train_end(self, trainer: L.Trainer, module: Segmentation) -> None:
        """Log the prototypes' gallery. Only at the end, since it needs a forward of many images."""
        loggers = [x for x in trainer.loggers if isinstance(x, WandbLogger | TensorBoardLogger)]
        if loggers:
            module.gather()
        if not (trainer.is_global_zero and loggers):
            return
        step, named = trainer.global_step, {}
        for view in gallery(module.predictor, self.source):
            named[f"{self.source.classes[view.label]} {view.number}"] = view
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                captions = {name: f"{name}: {view.usage:.0%}, cosine {view.cosine:.2f}" for name, view in named.items()}
                images = [wandb.Image(view.crops, caption=captions[name]) for name, view in named.items()]
                logger.experiment.log({"prototypes/gallery": images, "trainer/global_step": step})
            else:
                for name, view in named.items():
                    picture = np.asarray(view.crops)
                    logger.experiment.add_image(f"prototypes/gallery/{name}", picture, step, dataformats="HWC")


def validation_to_wandb(logger: WandbLogger, module: Segmentation, source: Source, step: int) -> None:
    """Log images with masks to toggle, the IoU of each class, confusion matrices and the usage of prototypes."""
    predictor, threshold = module.predictor, getattr(module.method, "threshold", 0.0)
    names, images = dict(enumerate(source.classes)), []
    for sample in examples(source):
        image = read_image(sample.image, sample.format)
        [found] = look(predictor, [image], nearest=False)
        masks = {"truth": read_mask(sample)} | found.labels
        sure = found.confidence["linear"] >= threshold
        masks["pseudo_labels"] = np.where(sure, found.labels["linear"], IGNORE_INDEX).astype(np.uint8)
        masks = {name: {"mask_data": mask, "class_labels": names} for name, mask in masks.items()}
        images.append(wandb.Image(visualize.rgb(image), masks=masks, caption=sample.name))
    content = {"val/images": images, "trainer/global_step": step}

    counts = module.confusion.counts()
    iou = {head: iou_per_class(matrix).tolist() for head, matrix in counts.items()}
    # Classes that do not occur have no IoU.
    iou = {head: [None if math.isnan(x) else x for x in values] for head, values in iou.items()}
    table = wandb.Table(["class", *iou], [list(row) for row in zip(source.classes, *iou.values(), strict=True)])
    content["val/iou_table"] = table
    for head, matrix in counts.items():
        content[f"val/iou_bars_{head}"] = wandb.plot.bar(table, "class", head, title=f"IoU, {head} head")
        cells = [
            [truth, found, matrix[i, j].item()]
            for i, truth in enumerate(source.classes)
            for j, found in enumerate(source.classes)
        ]
        columns = ["Actual", "Predicted", "nPredictions"]  # names that W&B's chart requires
        content[f"val/confusion_{head}"] = wandb.plot_table(
            "wandb/confusion_matrix/v1",
            wandb.Table(columns, cells),
            fields=dict(zip(columns, columns, strict=True)),
            string_fields={"title": f"pixels, {head} head"},
        )
    if predictor.bank is not None:
        usage = [
            [f"{source.classes[label]} {number}", share]
            for label, shares in enumerate(module.method.usage.tolist())
            for number, share in enumerate(shares)
        ]
        bars = wandb.plot.bar(wandb.Table(["prototype", "share"], usage), "prototype", "share", title="prototype usage")
        content["prototypes/usage"] = bars
    logger.experiment.log(content)


def validation_to_tensorboard(logger: TensorBoardLogger, module: Segmentation, source: Source, step: int) -> None:
    """Log the panel and each head's confusion matrix, bright where a large share of the row's class is."""
    pictures = {"val/images": np.asarray(example_panel(module.predictor, source))}
    for head, matrix in module.confusion.counts().items():
        share = matrix / matrix.sum(dim=1, keepdim=True)
        pictures[f"val/confusion_{head}"] = np.asarray(visualize.fit(visualize.heat(share.cpu().numpy()), 512))
    for key, picture in pictures.items():
        logger.experiment.add_image(key, picture, step, dataformats="HWC")


def finish_wandb(logger: WandbLogger, summary: dict, checkpoints: list[Path]) -> None:
    """Add the run's summary, and checkpoints as versions of one artifact with the aliases "best" and "last".

    `num_labeled` and `miou_last` are logged as well, because W&B draws lines from the history and not from summaries.
    """
    logger.experiment.log({name: summary[name] for name in ("num_labeled", "miou_last")})
    logger.experiment.summary.update(summary)
    for path in checkpoints:
        artifact = wandb.Artifact(f"checkpoint-{logger.experiment.id}", "model", metadata=summary)
        artifact.add_file(str(path))
        logger.experiment.log_artifact(artifact, aliases=[path.stem])
