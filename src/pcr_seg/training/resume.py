"""Resume a run: read its configuration, apply what may change, and refuse configurations that name foreign code."""

import csv
import io
import os
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.loggers import CSVLogger
from omegaconf import DictConfig, OmegaConf

from pcr_seg.checkpoint import TRUSTED, TRUSTED_DATA, refuse_strangers
from pcr_seg.config import accumulation, device_batch
from pcr_seg.moved import LAST_READER
from pcr_seg.training.checkpoints import Resumed, newest_checkpoint

# The only names that a run folder's configuration may call when the run goes on: the folder may be a stranger's.
TRUSTED_RUN = TRUSTED + (
    r"|torch\.optim\.[A-Z]\w*|lightning\.pytorch\.(Trainer|callbacks\.EarlyStopping|loggers\.\w+Logger)"
    r"|pcr_seg\.(module\.Segmentation|data\.datamodule\.SegmentationData|training\.(checkpoints\.Checkpoints|watch\.(Watch|EarlyStop)))"
    rf"|{TRUSTED_DATA}"
)
PLACES = ("data.num_workers", "data.cache", "dataset.root", "dataset.unlabeled")  # depend on the machine
HARDWARE = ("accelerator", "devices", "num_nodes", "strategy", "precision", "sync_batchnorm", "enable_progress_bar")
CHANGING = {  # keys that may change when a run goes on, and those that follow from them
    "resume", "trust", "logger", "data.lists", *PLACES, *(f"trainer.{key}" for key in HARDWARE),
    "most_per_device", "data.batch_size", "trainer.accumulate_grad_batches",
}  # fmt: skip


def resumed(cfg: DictConfig) -> tuple[DictConfig, Resumed | None]:
    """Return the configuration to run and the checkpoint to go on from.

    Without `resume=FOLDER` these are `cfg` and None. With it the folder's config.yaml is used; only `hardware`, its
    keys, `most_per_device` and the keys in PLACES are taken from the command line. A run that was stopped before its
    first checkpoint starts again: its checkpoint is None.

    Raises:
        FileNotFoundError: `resume` is no run folder.
        ValueError: its checkpoints are damaged; its configuration names foreign code; or the command line changes a key
            that may not change.
    """
    if cfg.resume in (None, "auto"):
        return cfg, None
    folder = Path(cfg.resume)
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"resume={folder}: holds no config.yaml; give a run folder, or start the run anew")
    run = OmegaConf.load(folder / "config.yaml")
    plain = OmegaConf.to_container(run)
    if "${" in str(plain):  # a run writes resolved values; a reference could make any name out of harmless parts
        raise ValueError(f"resume={folder}: its config.yaml holds references, which a run does not write; refused")
    if "module" not in run:
        raise ValueError(f"resume={folder}: was started by an older version; the last commit for it is {LAST_READER}")
    refuse_strangers(f"resume={folder}", plain.values(), cfg.get("trust"), TRUSTED_RUN)
    moved(run, folder)  # the run folder may have been moved since
    if HydraConfig.initialized():
        change(run, cfg, HydraConfig.get().overrides.task)
    checkpoint = newest_checkpoint(folder / "checkpoints")
    if checkpoint is None and not any(folder.glob("fold_*")):
        print(f"resume={folder}: no checkpoint yet, starting again")
    return run, checkpoint


def lasting(config: dict, path: str = "") -> dict:
    """Return a resolved configuration without the keys that may change when a run goes on."""
    return {
        key: lasting(value, f"{path}{key}.") if isinstance(value, dict) else value
        for key, value in config.items()
        if path + key not in CHANGING
    }


def moved(run: DictConfig, folder: Path) -> DictConfig:
    """Change a run's configuration, in place, to write everything into this folder; return it."""
    run.output = run.trainer.default_root_dir = str(folder)
    run.checkpoints.folder = str(folder / "checkpoints")
    for name, logger in run.logger.items():
        logger.save_dir = (name == "wandb" and os.environ.get("WANDB_DIR")) or str(folder)
    return run


def change(run: DictConfig, cfg: DictConfig, overrides: list[str]) -> None:
    """Apply the overrides of the command line to a run's configuration, in place.

    The global batch stays the same: on other hardware its batches per device are computed again.

    Raises:
        ValueError: an override is of a key that may not change.
    """
    names = {override.split("=")[0].lstrip("+~").split("@")[0] for override in overrides} - {"resume", "trust"}
    values, hardware = {*PLACES, "most_per_device"}, {f"trainer.{key}" for key in HARDWARE}
    if strange := sorted(names - values - hardware - {"hardware"}):
        can = ", ".join(("hardware", *PLACES, "most_per_device"))
        raise ValueError(
            f"resume={cfg.resume}: {', '.join(strange)} cannot change in a run ({can} can); "
            "leave it out, or start a new run with init_from_checkpoint"
        )
    for key in names & values:
        OmegaConf.update(run, key, OmegaConf.select(cfg, key))
    given = hardware if "hardware" in names else names & hardware
    for key in (name.removeprefix("trainer.") for name in given):
        run.trainer.pop(key, None)
        if key in cfg.trainer:
            run.trainer[key] = cfg.trainer[key]
    if given or "most_per_device" in names:
        devices = (run.trainer.accelerator, run.trainer.devices, run.trainer.num_nodes)
        run.data.batch_size = device_batch(run.global_batch, run.most_per_device, *devices)
        run.trainer.accumulate_grad_batches = accumulation(run.global_batch, run.data.batch_size, *devices)


def keep_metrics(logger: CSVLogger, metrics: str) -> None:
    """Give a logger the rows of a checkpoint's metrics.csv, since the logger deletes the file when it starts."""
    logger.experiment.metrics = list(csv.DictReader(io.StringIO(metrics)))
    logger.save()
