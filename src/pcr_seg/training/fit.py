"""Train: from a configuration to a complete run folder."""

import functools
import json
import logging
import os
import re
import time
import warnings
from pathlib import Path

import lightning.pytorch as L
import torch
import wandb
from hydra.utils import get_class, instantiate
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.plugins.environments import ClusterEnvironment, LightningEnvironment, SLURMEnvironment
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from timm.layers import convert_sync_batchnorm
from torch import nn

from pcr_seg import cluster
from pcr_seg.checkpoint import LAST, constructor_parameters, described, load
from pcr_seg.config import CONF, GROUPS, build, check_launch, items, num_devices
from pcr_seg.data import splits
from pcr_seg.data.datamodule import SegmentationData
from pcr_seg.data.sources import Source
from pcr_seg.inference import whole_image
from pcr_seg.method.sampling import jittered_grid
from pcr_seg.models.deeplab import pointwise_by_onednn
from pcr_seg.models.official import load_official
from pcr_seg.module import Segmentation
from pcr_seg.pictures.panels import save_pictures
from pcr_seg.pixels import IMAGENET_MEAN
from pcr_seg.training.checkpoints import PREVIOUS, AtomicCheckpointIO, Resumed, newest_checkpoint, whole_run
from pcr_seg.training.diagnosis import Diagnosis
from pcr_seg.training.folds import over_folds, pictures_of_folds, with_val
from pcr_seg.training.fsdp import FSDP
from pcr_seg.training.loggers import LogPanels, ProgressBar, finish_wandb
from pcr_seg.training.model_card import model_card
from pcr_seg.training.resume import keep_metrics, lasting, moved, resumed
from pcr_seg.training.summary import print_summary, summarize
from pcr_seg.training.timer import TrainTimer
from pcr_seg.training.values import check_values

# The trainer's announcements of devices and products are hidden. Its warnings are shown, but for those about what is
# intended here: a teacher in eval mode, a run folder that has a configuration already, a sampler that starts where a
# resumed run stands.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
for expected in (
    r".*in eval mode at the start of training", r"Experiment logs directory", r".*LeafSpec",
    r".*your dataloader is not resumable",
):  # fmt: skip
    warnings.filterwarnings("ignore", expected)


KEYS = (*OmegaConf.load(CONF / "train.yaml"), *GROUPS)  # all top-level keys that a configuration may have


def build_module(config: dict, class_names: list[str], palette: list | None = None) -> Segmentation:
    """Make the module that a resolved configuration describes; a constructor's errors are raised as they are."""
    config = OmegaConf.create(config)
    backbone = build(config.backbone, in_channels=config.dataset.get("channels", 3))
    student = build(config.model, backbone, len(class_names))
    method = OmegaConf.to_container(config.method)
    name = method.pop("name")
    return build(
        config.module,
        student,
        build_method(OmegaConf.create(method), student, class_names),
        class_names,
        optimizer=instantiate(config.optimizer),
        protocol=instantiate(config.protocol),
        palette=palette,
        name=name,
    )


def build_method(node: DictConfig, student: nn.Module, class_names: list[str]) -> nn.Module:
    """Make the method of a node; `num_classes`, `feature_dim` and `class_names` are passed if it takes them."""
    known = {"num_classes": student.num_classes, "feature_dim": student.feature_dim, "class_names": class_names}
    parameters = constructor_parameters(get_class(node._target_))
    return build(node, **{name: value for name, value in known.items() if name in parameters})


# ---------------------------------------------------------------------------------------------- fit


def fit(cfg: DictConfig) -> dict:
    """Train as a configuration says, write a complete run folder, and return the content of its summary.json.

    A run that is finished in that folder is not repeated, and one that was stopped goes on.

    Args:
        cfg: as Hydra composes it from conf/train.yaml and the command line.

    Raises:
        ValueError: a key or value cannot be right, or does not fit the data, the hardware or the run folder. Raised
            before training starts.
        FileNotFoundError: images, weights or a run folder are missing.
        ConnectionError: another process of the training was lost.
    """
    started = time.time()
    named, trust = cfg.resume not in (None, "auto"), cfg.trust
    cfg, checkpoint = resumed(cfg)
    config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    output = Path(cfg.output)
    check_values(config, KEYS)
    check_launch(config["trainer"])
    check_numbers(cfg)
    cluster.meet_anew()
    if not named:
        check_per_device(cfg)
    if summary := finished(config, named):
        if cfg.get("baseline"):
            fit_baseline(cfg, summary, named)
        return summary
    if not named:
        checkpoint = interrupted(config)
    source, folds = with_val(
        build(cfg.dataset), output, checkpoint is not None, val=cfg.val, folds=cfg.folds, seed=cfg.seed
    )
    scores = fit_folds(cfg, config, source, folds, named) if folds else {}
    L.seed_everything(cfg.seed, verbose=False)

    module = build_module(config, list(source.classes), list(source.palette))
    mean = getattr(module.student, "mean", IMAGENET_MEAN)
    split_from = output / "splits" if checkpoint else None  # the split as it was: the data set may have grown since
    features = build(cfg.features, module.student) if cfg.features else None
    if features and described(module.protocol)["_target_"] != described(whole_image)["_target_"]:
        raise ValueError("protocol: kept features are scored whole; use protocol=whole, or features=none")
    if features and getattr(module.method, "region_names", False):
        raise ValueError("method.region_names=true: looks at images, which kept features replace; use features=none")
    data = build(cfg.data, source, **streams(module.method), pad_color=mean, features=features, split_from=split_from)
    splits.check(source, data.split, max_skipped=data.max_skipped if data.on_error == "skip" else 0.0)
    if checkpoint:
        data.start = (checkpoint.epoch, checkpoint.steps)
    if getattr(module.method, "prototype_weight", 0) > 0:
        side = -(-data.crop_size // (features.label_stride if features else 1))
        jittered_grid(side, side, module.method.grid_cells)  # fails now, not in the first step
    module.metadata = {"config": config, "dataset": source.name}
    start = None if checkpoint else cfg.init_from_checkpoint  # a run that goes on takes its own checkpoint's weights
    if str(start).endswith(".pth"):  # a file of the reference code
        load_official(module, start)
    elif start:
        weights = load(start, trust=trust or (), network="student").network.state_dict()
        try:
            module.student.load_state_dict(weights)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            remedy = "choose its backbone, model and number of classes"
            raise ValueError(f"init_from_checkpoint={start}: does not fit this network ({reason}); {remedy}") from error
        module.teacher.network.load_state_dict(weights)

    # timm's function, since the trainer's would lose the activations that timm fuses into BatchNorm layers.
    if cfg.trainer.get("sync_batchnorm"):
        module.student = convert_sync_batchnorm(module.student)
        module.teacher.network = convert_sync_batchnorm(module.teacher.network)
    if cfg.get("compile"):  # the method's forward, with the networks in it; crops always have the same size
        module.method.compile(mode=None if cfg.compile is True else cfg.compile, dynamic=False)
    trainer = make_trainer(cfg, module, data, checkpoint)
    check_length(trainer, module, data)
    check_batch(cfg, module, data)
    if trainer.strategy.root_device.type == "cpu" and torch.get_num_threads() == 1:
        pointwise_by_onednn(module)
    try:
        trainer.fit(module, data, ckpt_path=checkpoint.path if checkpoint else None, weights_only=True)
    except RuntimeError as error:
        if "finished reduction in the prior iteration" in str(error):
            remedy = "set trainer.strategy=ddp_find_unused_parameters_true"
            raise ValueError(f"trainer.strategy=ddp: the network does not use all of its weights; {remedy}") from error
        if re.search("gloo|nccl", str(error), re.IGNORECASE):
            again = f"go on with resume={whole_run(output)}"
            raise ConnectionError(f"a process of this training was lost: {again}") from error
        raise
    if source.val and module.validated_at != trainer.global_step:  # it ended without a validation of its last step
        trainer.validate(module, data, verbose=False)
    elif source.val and not module.confusion.counts():  # it went on behind the last one; checkpoints hold scores alone
        loggers, trainer.loggers = trainer.loggers, []  # which have these scores
        trainer.validate(module, data, verbose=False)
        trainer.loggers = loggers
    trainer.save_checkpoint(output / "checkpoints" / LAST)

    module.gather()
    summary = summarize(trainer, module, data) | scores | {"seconds": round(time.time() - started, 1)}
    by_image = module.confusion.by_image()
    if trainer.is_global_zero:
        module.to(trainer.strategy.root_device)  # the trainer has moved it to the CPU in the end
        (output / "checkpoints/MODEL_CARD.md").write_text(model_card(summary, config), encoding="utf-8")
        if folds:
            pictures_of_folds([output / path.stem for path in folds], output)
        else:
            save_pictures(module.predictor, module.confusion.counts(), by_image, source, output)
        (output / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")  # last: now the run is complete
        checkpoints = [file for name in ("best", "last") if (file := output / f"checkpoints/{name}.ckpt").is_file()]
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                finish_wandb(logger, summary, checkpoints if cfg.upload_checkpoints else [])
    wandb.finish()  # so that the next job of a sweep gets its own W&B run; it also prints W&B's report before ours
    if trainer.is_global_zero:
        print_summary(summary, output)
    if cfg.get("baseline"):
        fit_baseline(cfg, summary, named)
    return summary


def check_length(trainer: L.Trainer, module: Segmentation, data: SegmentationData) -> None:
    """Raise a ValueError if the burn-in takes the whole training, before a run folder is made."""
    steps = data.steps_in_epoch(trainer.accumulate_grad_batches, trainer.world_size)
    ends = [trainer.max_steps] if trainer.max_steps >= 0 else []
    ends += [trainer.max_epochs * steps] if trainer.max_epochs is not None and trainer.max_epochs >= 0 else []
    if ends:
        module.check_burn_in(steps, min(ends))


def check_batch(cfg: DictConfig, module: Segmentation, data: SegmentationData) -> None:
    """Raise a ValueError if a device's batch is one image but CutMix, or a pooled BatchNorm, needs at least two."""
    if data.batch_size > 1:
        return
    pooled = cfg.model.get("pooled_norm") and "BatchNorm of one pooled value has no deviation (model.pooled_norm=true)"
    mixes = module.uses_unlabeled and not module.method.views.other and getattr(module.method, "cutmix_probability", 1)
    mixing = mixes and "CutMix has no second image to mix in"
    if reason := mixing or pooled:
        raise ValueError(
            f"data.batch_size=1: {reason}; set most_per_device=2 or more, and a global_batch of at least two a device"
        )


def streams(method: nn.Module) -> dict:
    """Return the data module's arguments that say which unlabeled images a method needs."""
    if method.views is None:
        return {"use_unlabeled": False}
    return {"strong_views": method.views.strong, "strong_color": method.views.color, "other": method.views.other}


def fit_part(cfg: DictConfig, name: str, named: bool, **changes: object) -> dict:
    """Train a part of a run (a fold, or the baseline) in a folder inside of the run's; return its summary.

    A finished part is not repeated, and one that was stopped goes on.

    Args:
        cfg: the whole run's configuration.
        name: the part's folder.
        named: whether the run was resumed by name (`resume=FOLDER`). It may have been moved then, so a part that was
            begun goes on by its own config.yaml.
        changes: values of the part that differ from the run's.
    """
    folder = Path(cfg.output) / name
    if named and (folder / "summary.json").is_file():
        return json.loads((folder / "summary.json").read_text())
    begun = named and newest_checkpoint(folder / "checkpoints")
    run = cfg.copy()
    run.update({**changes, "resume": str(folder) if begun else "auto"})
    return fit(moved(run, folder))


def fit_baseline(cfg: DictConfig, summary: dict, named: bool) -> None:
    """Train on the labels alone, in the run's folder `baseline`, and print what the unlabeled images add."""
    if cfg.method.name == "supervised":  # as in a sweep over methods
        return
    alone = OmegaConf.load(CONF / "method/supervised.yaml")
    baseline = fit_part(cfg, "baseline", named, baseline=False, method=alone)
    gain = 100 * (summary["miou_last"] - baseline["miou_last"])
    rank_zero_only(print)(
        f"{summary['method']} over supervised: {gain:+.1f} mIoU; both in one page: python report.py runs={cfg.output}"
    )


def fit_folds(cfg: DictConfig, config: dict, source: Source, folds: list[Path], named: bool) -> dict:
    """Train once for each fold, in RUN/fold_1 ..., without its masks and scored on them; return the mean scores."""
    rank_zero_only(write_config)(config)  # so that resume=RUN works from here on
    rank_zero_only(print)(
        f"{source.name}: no val images, so {len(folds)} trainings, each without another part of the masks, give the"
        " score, and a last one takes all (folds=0: hold a fifth out instead)"
    )
    return over_folds([fit_part(cfg, path.stem, named, val=str(path), folds=0, baseline=False) for path in folds])


def finished(config: dict, named: bool) -> dict | None:
    """Return the summary if this configuration's run is finished in its folder, as when a sweep is started again.

    `named` says that the run was resumed by name, so that the configuration is its own.

    Raises:
        ValueError: the folder has a finished run of another configuration.
    """
    output = Path(config["output"])
    if not (output / "summary.json").is_file():
        return None
    if not named:
        check_same(config, "a finished run")
    rank_zero_only(print)(f"{output}: finished already, see summary.json")
    return json.loads((output / "summary.json").read_text())


def interrupted(config: dict) -> Resumed | None:
    """Return the newest checkpoint if this configuration's run was stopped in its folder; else None.

    Raises:
        ValueError: the folder has an unfinished run of another configuration.
    """
    output = Path(config["output"])
    if not (output / "config.yaml").is_file():
        return None
    checkpoint = newest_checkpoint(output / "checkpoints")
    if checkpoint:
        check_same(config, f"an unfinished run (resume={output} goes on with it)")
        rank_zero_only(print)(f"{output}: going on after epoch {checkpoint.epoch}")
    return checkpoint


def check_same(config: dict, what: str) -> None:
    """Raise a ValueError if the run in a configuration's folder had another configuration."""
    output = Path(config["output"])
    before, now = (moved(OmegaConf.create(each), output) for each in (OmegaConf.load(output / "config.yaml"), config))
    for each in (before, now):
        each.val = each.val and Path(each.val).name  # a fold's list is in the run folder, which may have been moved
    before, now = (
        {key: value for key, value in items(lasting(OmegaConf.to_container(each))) if not isinstance(value, dict)}
        for each in (before, now)
    )
    if other := [key for key in before | now if before.get(key, ...) != now.get(key, ...)]:
        first = f"{other[0]} was {before.get(other[0], 'not there')}"
        raise ValueError(f"output={output}: holds {what} of another configuration ({first}); choose another folder")


def make_trainer(
    cfg: DictConfig, module: Segmentation, data: SegmentationData, checkpoint: Resumed | None = None
) -> L.Trainer:
    """Make the trainer with its loggers and callbacks; one of these writes into the run folder when training starts.

    Raises:
        ValueError: a key of `trainer` asks for callbacks, loggers or plugins.
    """
    for key in {"callbacks", "logger", "plugins"} & set(cfg.trainer):
        raise ValueError(f"trainer.{key}: is made here; early_stopping.patience and logger=... choose among them")
    opens = LambdaCallback(setup=functools.partial(open_run_folder, data=data, checkpoint=checkpoint))
    callbacks = [opens, build(cfg.checkpoints), build(cfg.watch), TrainTimer(), LogPanels(data.source)]
    if cfg.early_stopping.patience is not None and data.source.val:
        callbacks.append(build(cfg.early_stopping))
    if cfg.diagnosis:
        callbacks.append(Diagnosis(data))
    if cfg.trainer.enable_progress_bar:
        callbacks.append(ProgressBar())
    loggers = list(instantiate(cfg.logger).values())
    plugins = [AtomicCheckpointIO(), *environment()]
    validated = {} if data.source.val else {"limit_val_batches": 0}  # no val images: the run after the folds
    return build(
        cfg.trainer, logger=loggers, callbacks=callbacks, plugins=plugins, sync_batchnorm=False,
        **strategy(cfg.trainer, module), **validated,
    )  # fmt: skip


def strategy(trainer: DictConfig, module: Segmentation) -> dict:
    """Return the trainer's `strategy` where its own of that name would not do; else {}."""
    name, processes = trainer.get("strategy", "auto"), num_processes(trainer)
    if name == "fsdp":  # the trainer's is FSDP1
        return {"strategy": FSDP(processes)}
    # A method's own weights rest during the burn-in, and a projection wherever there are no prototypes.
    resting = [*module.method.parameters()] or getattr(module.student, "projection", None)
    if name in ("ddp", "auto") and processes > 1 and resting:
        return {"strategy": "ddp_find_unused_parameters_true"}
    return {}


def num_processes(trainer: DictConfig) -> int:
    """Return how many processes the trainer's hardware means, one for each device."""
    return trainer.num_nodes * num_devices(trainer.accelerator, trainer.devices)


def check_numbers(cfg: DictConfig) -> None:
    """Raise a ValueError for numbers of images that contradict each other, a precision, or a choice beside fsdp."""
    precision, divided = str(cfg.trainer.get("precision")), cfg.trainer.get("strategy") == "fsdp"
    if re.fullmatch(r"16-true|bf16-true|64|64-true|transformer-engine.*", precision):
        raise ValueError(
            f"trainer.precision={precision}: weights, prototypes and scores are fp32 here, since a teacher moves by"
            " hundredths; set 32-true, or bf16-mixed, which is faster on a GPU"
        )
    batch, batches, processes = cfg.data.batch_size, cfg.trainer.accumulate_grad_batches, num_processes(cfg.trainer)
    if (total := batch * batches * processes) != cfg.global_batch:
        raise ValueError(
            f"trainer.accumulate_grad_batches={batches}: data.batch_size={batch} on {processes} devices makes {total}"
            f" images a step, and global_batch is {cfg.global_batch}; set global_batch={total} instead"
        )
    if divided and precision in ("16", "16-mixed"):
        raise ValueError(f"trainer.precision={precision}: not with divided weights (fsdp); set bf16-mixed or 32-true")
    if divided and cfg.diagnosis:
        raise ValueError(
            "diagnosis=true: predicts in one process alone, which divided weights (fsdp) cannot; leave it out"
        )


def check_per_device(cfg: DictConfig) -> None:
    """Raise a ValueError if `per_device` and `global_batch` are both given and contradict each other."""
    processes = num_processes(cfg.trainer)
    if cfg.per_device and cfg.global_batch != cfg.per_device * processes:
        raise ValueError(
            f"global_batch={cfg.global_batch}: {processes} devices with per_device={cfg.per_device} make"
            f" {cfg.per_device * processes}; give one of the two"
        )


def environment() -> list[ClusterEnvironment]:
    """Return the plugin by which the trainer finds its rank, if it would choose a wrong one itself; else nothing."""
    found = cluster.launched()
    if found and found.by == "srun":
        os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(found.devices))  # the trainer requires it
        return [SLURMEnvironment(auto_requeue=False)]  # the trainer's own requeueing saves in the middle of a step
    if not found and "SLURM_NTASKS" in os.environ:  # in a SLURM job, but not started by srun
        return [LightningEnvironment()]
    return []


def open_run_folder(
    trainer: L.Trainer, module: Segmentation, stage: str, data: SegmentationData, checkpoint: Resumed | None
) -> None:
    """Write configuration and split as used into the run folder, after all ranks have read the checkpoint there.

    Raises:
        ValueError: not all ranks have found the same checkpoint.
    """
    if stage != "fit":
        return
    position = (checkpoint.epoch, checkpoint.steps) if checkpoint else None
    same = position == trainer.strategy.broadcast(position)
    if not trainer.strategy.reduce_boolean_decision(same):
        raise ValueError(
            f"output={module.metadata['config']['output']}: not every process sees the same checkpoint there; the run"
            " folder has to lie on a disk that all nodes share"
        )
    if not trainer.is_global_zero:
        return
    config, split = module.metadata["config"], data.split
    output = Path(config["output"])
    write_config(config)
    if checkpoint and checkpoint.path.name == PREVIOUS:
        (output / "checkpoints" / LAST).unlink(missing_ok=True)  # it is damaged, and must not become previous.ckpt
    splits.write(split, output / "splits")
    val = f"{len(data.source.val)} val" if data.source.val else "no val"
    if data.source.held_out:
        val += f" ({data.source.held_out})"
        if data.source.val:
            splits.write_list(output / "splits/val.txt", data.source.held_out, data.source.val)
    labeled, unlabeled = f"{len(split.labeled)} labeled ({split.origin})", f"{len(split.unlabeled)} unlabeled"
    burn_in = getattr(module.method, "burn_in_epochs", 0)
    alone = f"burn-in {burn_in} of {trainer.max_epochs} epochs" if module.uses_unlabeled else "labels alone"
    kept = f"decoded pixels kept in {data.cache}; " if data.cache and not data.features else ""
    print(f"{data.source.name}: {labeled}, {unlabeled}, {val}; {alone}; {kept}run folder {output}")
    for logger in trainer.loggers:
        if checkpoint and isinstance(logger, CSVLogger):
            keep_metrics(logger, checkpoint.metrics)
        logger.log_hyperparams(config)


def write_config(config: dict) -> None:
    """Write config.yaml into the configuration's run folder, completely or not at all."""
    output = Path(config["output"])
    output.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(config), output / "config.partial")
    os.replace(output / "config.partial", output / "config.yaml")
