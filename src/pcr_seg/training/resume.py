"""Going on with a run: its configuration, what may change in it, and whose code it may name."""

import csv
import io
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.loggers import CSVLogger
from omegaconf import DictConfig, OmegaConf

from pcr_seg.checkpoint import TRUSTED, TRUSTED_DATA, refuse_strangers
from pcr_seg.config import accumulation, device_batch
from pcr_seg.moved import LAST_READER
from pcr_seg.training.checkpoints import Resumed, newest_checkpoint

# What a run folder's configuration may make when the run goes on: a stranger's must not name anything else.
TRUSTED_RUN = TRUSTED + (
    r"|torch\.optim\.[A-Z]\w*|lightning\.pytorch\.(Trainer|callbacks\.EarlyStopping|loggers\.\w+Logger)"
    r"|pcr_seg\.(module\.Segmentation|data\.datamodule\.SegmentationData|training\.(checkpoints\.Checkpoints|watch\.Watch))"
    rf"|{TRUSTED_DATA}"
)
PLACES = ("data.num_workers", "data.cache", "dataset.root", "dataset.unlabeled")  # where it runs, not what
HARDWARE = ("accelerator", "devices", "num_nodes", "strategy", "precision", "sync_batchnorm", "enable_progress_bar")
CHANGING = {  # in a run that goes on, with what follows from it
    "resume", "trust", *PLACES, *(f"trainer.{key}" for key in HARDWARE),
    "data.batch_size", "trainer.accumulate_grad_batches",
}  # fmt: skip


def resumed(cfg: DictConfig) -> tuple[DictConfig, Resumed | None]:
    """The configuration and newest checkpoint of the run to finish, or the configuration as it is and None.

    The run's own configuration holds; `hardware`, its keys and those of PLACES may be given anew. A run that was
    stopped before its first checkpoint has None, too, and starts again.

    Raises:
        FileNotFoundError: `resume` is no run folder.
        ValueError: its checkpoints are damaged, its configuration names foreign code, or an override may not change.
    """
    if cfg.resume in (None, "auto"):
        return cfg, None
    folder = Path(cfg.resume)
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"resume={folder}: holds no config.yaml; give a run folder, or start the run anew")
    run = OmegaConf.load(folder / "config.yaml")
    plain = OmegaConf.to_container(run)
    if "${" in str(plain):  # runs write what their references meant; one that computes could name anything
        raise ValueError(f"resume={folder}: its config.yaml holds references, which a run does not write; refused")
    if "module" not in run:
        raise ValueError(f"resume={folder}: was started by an older version; the last commit for it is {LAST_READER}")
    refuse_strangers(f"resume={folder}", plain.values(), cfg.get("trust"), TRUSTED_RUN)
    moved(run, folder)  # where it is now, which need not be where it was
    if HydraConfig.initialized():
        change(run, cfg, HydraConfig.get().overrides.task)
    checkpoint = newest_checkpoint(folder / "checkpoints")
    if checkpoint is None and not any(folder.glob("fold_*")):
        print(f"resume={folder}: no checkpoint yet, starting again")
    return run, checkpoint


def lasting(config: dict, path: str = "") -> dict:
    """What does not change in a run, of a resolved configuration."""
    return {
        key: lasting(value, f"{path}{key}.") if isinstance(value, dict) else value
        for key, value in config.items()
        if path + key not in CHANGING
    }


def moved(run: DictConfig, folder: Path) -> DictConfig:
    """The configuration with everything that it writes in this folder."""
    run.output = run.trainer.default_root_dir = str(folder)
    run.checkpoints.folder = str(folder / "checkpoints")
    for logger in run.logger.values():
        logger.save_dir = str(folder)
    return run


def change(run: DictConfig, cfg: DictConfig, overrides: list[str]) -> None:
    """Apply to the configuration of a run those overrides of the command line that do not belong to the run.

    The global batch stays, so other devices share it in other parts.
    """
    names = {override.split("=")[0].lstrip("+~").split("@")[0] for override in overrides} - {"resume", "trust"}
    hardware = {"hardware", *(f"trainer.{key}" for key in HARDWARE)}
    if strange := sorted(names - hardware - set(PLACES)):
        raise ValueError(
            f"resume={cfg.resume}: {', '.join(strange)} cannot change in a run (hardware, {', '.join(PLACES)} can); "
            "leave it out, or start a new run with init_from_checkpoint"
        )
    for key in names & set(PLACES):
        OmegaConf.update(run, key, OmegaConf.select(cfg, key))
    if names & hardware:
        for key in HARDWARE:
            run.trainer.pop(key, None)
            if key in cfg.trainer:
                run.trainer[key] = cfg.trainer[key]
        devices = (run.trainer.accelerator, run.trainer.devices, run.trainer.num_nodes)
        run.data.batch_size = device_batch(run.global_batch, run.most_per_device, *devices)
        run.trainer.accumulate_grad_batches = accumulation(run.global_batch, run.data.batch_size, *devices)


def keep_metrics(logger: CSVLogger, metrics: str) -> None:
    """Give a logger the rows of a checkpoint's metrics.csv: its start deletes the file."""
    logger.experiment.metrics = list(csv.DictReader(io.StringIO(metrics)))
    logger.save()
