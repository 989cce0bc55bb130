"""From a configuration to objects, from a checkpoint to a module, and a training from start to run folder."""

import json
import logging
import os
import platform
import re
import resource
import subprocess
import sys
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import lightning.pytorch as L
import numpy as np
import torch
import wandb
from hydra.utils import instantiate
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from timm.layers import convert_sync_batchnorm

from pcr_seg.checkpoints import LAST, PREVIOUS, AtomicCheckpointIO, Checkpoints, Resumed, read_checkpoint
from pcr_seg.config import CONF, build
from pcr_seg.data import splits
from pcr_seg.data.datamodule import SegmentationData
from pcr_seg.diagnosis import Diagnosis
from pcr_seg.loggers import LogPanels, ProgressBar, finish_wandb
from pcr_seg.method import jittered_grid
from pcr_seg.model_card import model_card
from pcr_seg.models.deeplab import pointwise_by_onednn
from pcr_seg.models.official import load_official
from pcr_seg.module import HEADS, SemiSupervisedSegmentation
from pcr_seg.panels import save_pictures
from pcr_seg.resume import keep_metrics, moved, refuse_strangers, resumed

# The trainer announces devices and products at each start; what it warns of still shows, but for
# what is meant to be so: a teacher in eval mode, a run folder that holds the configuration already,
# loaders that start where a resumed run stands.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
for expected in (
    r".*in eval mode at the start of training", r"Experiment logs directory", r".*LeafSpec",
    r".*your dataloader is not resumable",
):  # fmt: skip
    warnings.filterwarnings("ignore", expected)


def build_module(config: dict, class_names: list[str]) -> SemiSupervisedSegmentation:
    """Make the module that a resolved configuration describes."""
    config = OmegaConf.create(config)
    backbone = build(config.backbone, in_channels=config.dataset.get("channels", 3))
    student = build(config.model, backbone, len(class_names))
    return build(config.method, student, instantiate(config.optimizer), class_names, instantiate(config.protocol))


def load_module(checkpoint: str | Path, *, student: bool = False, protocol: DictConfig | None = None):
    """Rebuild the module of a checkpoint, in eval mode, from nothing but the file.

    Args:
        checkpoint: file of a run's `checkpoints` folder.
        student: evaluate the student instead of the teacher.
        protocol: how to predict whole images, instead of the checkpoint's way.

    Raises:
        ValueError: not a checkpoint of this project, or one that asks for code outside of it.
    """
    content = read_checkpoint(checkpoint)
    metadata = content["pcr_seg"]
    config = metadata["config"]
    refuse_strangers(f"checkpoint={checkpoint}", config)
    config["backbone"]["weights"] = None
    try:
        module = build_module(config, metadata["classes"])
        module.load_state_dict(content["state_dict"])
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"checkpoint={checkpoint}: does not fit this version of the project: {reason}") from error
    module.metadata, module.evaluate_student = metadata, student
    if protocol is not None:
        module.protocol = instantiate(protocol)
    return module.eval()


# ---------------------------------------------------------------------------------------------- fit


def fit(cfg: DictConfig) -> dict:
    """Train, and leave a complete run folder behind; return what its summary.json holds."""
    started = time.time()
    goes_on = bool(cfg.resume)
    cfg, checkpoint = resumed(cfg)
    config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    output = Path(cfg.output)
    if not goes_on and (summary := finished(config)):
        return summary
    L.seed_everything(cfg.seed, verbose=False)

    source = build(cfg.dataset)
    module = build_module(config, list(source.classes))
    wanted = {name: getattr(module, name) for name in ("strong_color", "strong_views")}
    data = build(cfg.data, source, use_unlabeled=module.uses_unlabeled, **wanted)
    splits.check(source, data.split)
    if checkpoint:
        data.start = (checkpoint.epoch, checkpoint.steps)
    if module.prototype_weight > 0:
        jittered_grid(data.crop_size, data.crop_size, module.grid_cells)  # raises now what it would in a later epoch
    module.metadata = {
        "config": config,
        "classes": list(source.classes),
        "palette": [list(color) for color in source.palette],
        "dataset": source.name,
    }
    if str(cfg.init_from_checkpoint).endswith(".pth"):  # the reference code's
        load_official(module, cfg.init_from_checkpoint)
    elif cfg.init_from_checkpoint:
        weights = load_module(cfg.init_from_checkpoint).student.state_dict()
        module.student.load_state_dict(weights)
        module.teacher.load_state_dict(weights)

    if cfg.trainer.get("sync_batchnorm"):  # timm's knows its fused layers; the trainer's would drop their activations
        module.student, module.teacher = map(convert_sync_batchnorm, (module.student, module.teacher))
    trainer = make_trainer(cfg, data)
    if trainer.strategy.root_device.type == "cpu" and torch.get_num_threads() == 1:
        pointwise_by_onednn(module)
    if trainer.is_global_zero:
        open_run_folder(trainer, module, data, checkpoint)
    try:
        trainer.fit(module, data, ckpt_path=checkpoint.path if checkpoint else None, weights_only=True)
    except RuntimeError as error:
        if re.search("gloo|nccl", str(error), re.IGNORECASE):
            raise ConnectionError(f"a process of this training was lost: go on with resume={output}") from error
        raise
    if module.validated_at != trainer.global_step:  # stopped by max_steps, or between two validations
        trainer.validate(module, data, verbose=False)
    trainer.save_checkpoint(output / "checkpoints" / LAST)

    summary = summarize(trainer, module, data) | {"seconds": round(time.time() - started, 1)}
    if trainer.is_global_zero:
        module.to(trainer.strategy.root_device)  # the trainer's end has moved it to the CPU
        (output / "checkpoints/MODEL_CARD.md").write_text(model_card(summary, config), encoding="utf-8")
        save_pictures(module, source, output)
        (output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")  # last: it says that all is there
        checkpoints = [output / f"checkpoints/{name}.ckpt" for name in ("best", "last")]
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                finish_wandb(logger, summary, checkpoints if cfg.upload_checkpoints else [])
        print_summary(summary, output)
    wandb.finish()  # the next job of a sweep gets a run of its own
    if cfg.get("baseline"):
        baseline = fit(supervised_baseline(cfg, goes_on))
        if trainer.is_global_zero:
            gain = 100 * (summary["miou_last"] - baseline["miou_last"])
            print(f"{module.name} over supervised: {gain:+.1f} mIoU; both in one page: python report.py runs={output}")
    return summary


def supervised_baseline(cfg: DictConfig, goes_on: bool) -> DictConfig:
    """The same run without unlabeled images, in the run folder's `baseline/`; where it goes on, what is left of it."""
    folder = Path(cfg.output) / "baseline"
    supervised = OmegaConf.load(CONF / "method/supervised.yaml")
    del supervised["defaults"]
    begun = goes_on and (folder / "config.yaml").is_file() and not (folder / "summary.json").is_file()
    changes = {"method": supervised, "baseline": False, "resume": str(folder) if begun else None}
    return moved(OmegaConf.merge(cfg, changes), folder)


def finished(config: dict) -> dict | None:
    """The summary of this very configuration's run in its folder, if it ended there: a sweep's second start."""
    output = Path(config["output"])
    if not (output / "summary.json").is_file():
        return None
    if OmegaConf.to_container(OmegaConf.load(output / "config.yaml")) != config:
        raise ValueError(f"output={output}: holds a finished run of another configuration; choose another folder")
    print(f"{output}: finished already, see summary.json")
    return json.loads((output / "summary.json").read_text())


def make_trainer(cfg: DictConfig, data: SegmentationData) -> L.Trainer:
    """The trainer with its loggers, checkpoints, panels, diagnosis and progress."""
    callbacks = [build(cfg.checkpoints), build(cfg.watch), TrainTimer(), LogPanels(data.source)]
    if cfg.diagnosis:
        callbacks.append(Diagnosis(data))
    if cfg.trainer.enable_progress_bar:
        callbacks.append(ProgressBar())
    loggers = list(instantiate(cfg.logger).values())
    plugins = [AtomicCheckpointIO()]
    if SLURMEnvironment.detect():
        plugins.append(SLURMEnvironment(auto_requeue=False))  # it would save in the middle of a step
    return build(cfg.trainer, logger=loggers, callbacks=callbacks, plugins=plugins, sync_batchnorm=False)


def open_run_folder(
    trainer: L.Trainer, module: SemiSupervisedSegmentation, data: SegmentationData, checkpoint: Resumed | None
) -> None:
    """Write the configuration and the split as used, and tell the loggers."""
    config, split = module.metadata["config"], data.split
    output = Path(config["output"])
    output.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(config), output / "config.partial")
    os.replace(output / "config.partial", output / "config.yaml")  # all of it or nothing
    if checkpoint and checkpoint.path.name == PREVIOUS:
        (output / "checkpoints" / LAST).unlink(missing_ok=True)  # damaged: it must not become the previous one
    splits.write(split, output / "splits")
    labeled, unlabeled = f"{len(split.labeled)} labeled ({split.origin})", f"{len(split.unlabeled)} unlabeled"
    print(f"{data.source.name}: {labeled}, {unlabeled}, {len(data.source.val)} val; run folder {output}")
    for logger in trainer.loggers:
        if checkpoint and isinstance(logger, CSVLogger):
            keep_metrics(logger, checkpoint.metrics)
        logger.log_hyperparams(config)


def summarize(trainer: L.Trainer, module: SemiSupervisedSegmentation, data: SegmentationData) -> dict:
    """What a finished run reached, with what, and at which cost."""
    metrics, config = module.scores, module.metadata["config"]
    return {
        "dataset": data.source.name,
        "split": str(config["split"]["labeled"]),
        "split_family": data.split.family,
        "method": module.name,
        "backbone": config["backbone"]["name"],
        "seed": config["seed"],
        "num_labeled": len(data.split.labeled),
        "num_unlabeled": len(data.split.unlabeled),
        "iterations": trainer.global_step,
        "miou_last": metrics["val/miou"],
        "miou_best": callback(trainer, Checkpoints).best_score,
        "miou_prototype_last": metrics.get("val/miou_prototype"),
        **iou_of_heads(metrics, module.class_names),
        "images_per_second": round(images_per_second(trainer, data, module), 2),
        "peak_memory_mib": round(peak_memory_mib(trainer.strategy.root_device)),
        "versions": versions("pcr-seg", "torch", "lightning", "timm", "albumentations"),
        "git_commit": git_commit(),
    }


def images_per_second(trainer: L.Trainer, data: SegmentationData, module: SemiSupervisedSegmentation) -> float:
    """Images through the student in training, per second of training without validation."""
    streams = 1 + module.strong_views if module.uses_unlabeled else 1
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

    def on_train_epoch_start(self, trainer: L.Trainer, module: SemiSupervisedSegmentation) -> None:
        """Start."""
        self.started = time.perf_counter()

    def on_train_start(self, trainer: L.Trainer, module: SemiSupervisedSegmentation) -> None:
        """Start within an epoch where a run goes on there."""
        self.on_train_epoch_start(trainer, module)

    def on_validation_start(self, trainer: L.Trainer, module: SemiSupervisedSegmentation) -> None:
        """Pause at a validation inside of an epoch."""
        self.pause()

    def on_train_epoch_end(self, trainer: L.Trainer, module: SemiSupervisedSegmentation) -> None:
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


def peak_memory_mib(device: torch.device) -> float:
    """Most memory held at once: on the GPU that was used, otherwise by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def versions(*packages: str) -> dict[str, str | None]:
    """Python's version and those of packages; None for one that is not installed, as this one in a mere checkout."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def git_commit() -> str | None:
    """Commit of this code, with "-dirty" when files differ from it; None outside a checkout."""
    checkout = [f"--git-dir={CONF.parent / '.git'}", f"--work-tree={CONF.parent}"]  # a wheel's may lie in another one
    command = ["git", *checkout, "describe", "--always", "--dirty", "--abbrev=40", "--match="]
    result = subprocess.run(command, capture_output=True, text=True)
    return result.stdout.strip() or None if result.returncode == 0 else None


def iou_of_heads(metrics: dict[str, float], classes: list[str]) -> dict[str, dict[str, float | None] | None]:
    """IoU of each class by head; None for a class that does not occur (JSON has no NaN), or a head without a bank."""
    heads = {}
    for suffix in HEADS.values():
        found = {name: metrics.get(f"val/iou{suffix}/{name}") for name in classes}
        found = {name: None if value is None or np.isnan(value) else value for name, value in found.items()}
        heads[f"iou{suffix}"] = found if f"val/miou{suffix}" in metrics else None
    return heads


def print_summary(summary: dict, output: Path) -> None:
    """Show the result as a table, and what to type next."""
    console = Console()
    title = f"{summary['method']} on {summary['dataset']}, {summary['num_labeled']} labels, last epoch"
    console.print(score_table(title, summary, summary["miou_last"], summary["miou_prototype_last"]))
    console.print(f"best epoch (chosen on val) {percent(summary['miou_best'])} · {summary['seconds']:.0f} s")
    for line in (
        f"run folder: {output} (pictures in panel.png)",
        f"python report.py runs={output}",
        f"python eval.py checkpoint={output}/checkpoints/last.ckpt",
        f"python predict.py checkpoint={output}/checkpoints/last.ckpt images=FOLDER output=predictions",
    ):
        console.print(line, soft_wrap=True, highlight=False)


def score_table(title: str, scores: dict, miou: float, miou_prototype: float | None) -> Table:
    """IoU of each class and the means, a column for each head that there is (`scores` as of `iou_of_heads`)."""
    columns = {"linear head": (scores["iou"], miou)}
    if scores["iou_prototype"]:
        columns["prototype head"] = (scores["iou_prototype"], miou_prototype)
    table = Table("IoU", *columns, title=title)
    for name in scores["iou"]:
        table.add_row(escape(name), *(percent(iou[name]) for iou, _ in columns.values()))
    table.add_section()
    table.add_row("mIoU", *(percent(mean) for _, mean in columns.values()), style="bold")
    return table


def percent(value: float | None) -> str:
    """A fraction as percent with one decimal."""
    return "-" if value is None else f"{100 * value:.1f}"
