"""What a person sees of a training: the bar, and pictures of predictions for loggers and the run folder."""

import lightning.pytorch as L
import numpy as np
import torch
import wandb
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image
from torch import Tensor

from pcr_seg import visualize
from pcr_seg.data.files import Sample, read_image, read_mask
from pcr_seg.data.sources import Source
from pcr_seg.data.transforms import normalize
from pcr_seg.module import SemiSupervisedSegmentation

NUM_IMAGES = 4


class ProgressBar(RichProgressBar):
    """Rich's bar with losses and mIoU, which are fetched from the device every tenth batch only."""

    def _update_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.training or trainer.fit_loop.epoch_loop.batch_idx % 10 == 0:
            super()._update_metrics(trainer, pl_module)


class LogPanels(L.Callback):
    """Sends a few validation images and their masks to W&B and TensorBoard, where one of them logs."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def on_validation_end(self, trainer: L.Trainer, module: SemiSupervisedSegmentation) -> None:
        """Log after each validation of a training."""
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                log_wandb(logger, module, self.source, trainer.global_step)
            elif isinstance(logger, TensorBoardLogger):
                panel = np.asarray(example_panel(module, self.source))
                logger.experiment.add_image("val/images", panel, trainer.global_step, dataformats="HWC")


def log_wandb(logger: WandbLogger, module: SemiSupervisedSegmentation, source: Source, step: int) -> None:
    """Log images with truth and predictions as masks that can be toggled."""
    names = dict(enumerate(source.classes))
    images = []
    for sample in examples(source):
        masks = {"truth": read_mask(sample)}
        masks |= {head: logits.argmax(dim=0).cpu().numpy() for head, logits in predict(module, sample).items()}
        masks = {name: {"mask_data": mask, "class_labels": names} for name, mask in masks.items()}
        image = visualize.rgb(read_image(sample.image, sample.format))
        images.append(wandb.Image(image, masks=masks, caption=sample.name))
    logger.experiment.log({"val/images": images, "trainer/global_step": step})


def example_panel(module: SemiSupervisedSegmentation, source: Source) -> Image.Image:
    """Rows of image, truth, both heads, prototype assignment and confidence for a few validation images."""
    prototypes = visualize.palette(module.bank.prototypes.shape[:2].numel())
    rows = []
    for sample in examples(source):
        image, truth = read_image(sample.image, sample.format), read_mask(sample)
        logits = predict(module, sample)
        confidence = logits["linear"].softmax(dim=0).amax(dim=0).cpu().numpy()
        row = [visualize.rgb(image), visualize.colorize(truth, source.palette)]
        row += [visualize.colorize(x.argmax(dim=0).byte().cpu().numpy(), source.palette) for x in logits.values()]
        if "prototype" in logits:
            row.append(visualize.colorize(assignment(module, image), prototypes))
        rows.append([*row, visualize.heat(confidence)])
    titles = ["image", "truth", "linear head", "confidence"]
    if module.bank.is_initialized:
        titles[3:3] = ["prototype head", "nearest prototype"]
    return visualize.panel(rows, titles, legend=list(zip(source.classes, source.palette, strict=True)))


def examples(source: Source) -> tuple[Sample, ...]:
    """A few validation images, spread over the set: neighbours are often alike."""
    return source.val[:: max(1, len(source.val) // NUM_IMAGES)][:NUM_IMAGES]


@torch.inference_mode()
def predict(module: SemiSupervisedSegmentation, sample: Sample) -> dict[str, Tensor]:
    """Logits (C, H, W) of each head for one image."""
    logits = module.predict_image(normalize(read_image(sample.image, sample.format))[None].to(module.device))
    return {head: values[0] for head, values in logits.items()}


@torch.inference_mode()
def assignment(module: SemiSupervisedSegmentation, image: np.ndarray) -> np.ndarray:
    """Index c * K + k of the nearest prototype for each pixel, at the features' resolution, enlarged to (H, W)."""
    features = module.network(normalize(image)[None].to(module.device)).features[0]
    nearest = module.bank.cosines(features.permute(1, 2, 0)).flatten(2).argmax(dim=2)
    small = Image.fromarray(nearest.cpu().numpy().astype(np.int32), mode="I")
    return np.asarray(small.resize(image.shape[1::-1], Image.Resampling.NEAREST))
