"""What commands have in common: they open a checkpoint, a data set, a device, and a folder to write to."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from pcr_seg.checkpoint import MISSING, TRUSTED_DATA, is_on_hub, load, refuse_strangers
from pcr_seg.config import build
from pcr_seg.data.held_out import hold_out_again
from pcr_seg.data.sources import Source
from pcr_seg.predictor import Predictor
from pcr_seg.training.values import check_node, check_type

# Types of keys that are no constructor's arguments, for the commands that have them.
TYPES = {
    "checkpoint": str, "trust": str | list[str] | None, "eval.student": bool, "device": str, "num_workers": int,
    "prototype_head": bool, "private": bool, "repo": str | None, "port": int | None, "margin": int, "tile": int | None,
    "threshold": float, "maps": str | list[str],
    "size": tuple[int, int] | None,
}  # fmt: skip


def check_values(cfg: DictConfig) -> None:
    """Raise a ValueError for the first value of a command's configuration with a wrong type or out of range."""
    config = OmegaConf.to_container(cfg, resolve=True)
    for key, hint in TYPES.items():
        if (value := OmegaConf.select(cfg, key, default=MISSING)) is not MISSING:
            check_type(key, OmegaConf.to_container(value) if isinstance(value, ListConfig) else value, hint)
    check_node("", {key: value for key, value in config.items() if key not in ("trust", "checkpoint")})


def open_checkpoint(cfg: DictConfig) -> Predictor:
    """Load the checkpoint of a command: its teacher, or student if `eval.student`, with `protocol` or its own one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a value has a wrong type, or the checkpoint cannot be used (`checkpoint.load`).
    """
    check_values(cfg)
    protocol = instantiate(cfg.protocol) if cfg.get("protocol") else None
    network = "student" if cfg.eval.student else None
    return load(cfg.checkpoint, trust=cfg.trust or (), network=network, protocol=protocol)


def run_folder(cfg: DictConfig) -> Path:
    """Return the run folder of a checkpoint; for one on a hub the current folder."""
    return Path.cwd() if is_on_hub(cfg.checkpoint) else Path(cfg.checkpoint).absolute().parents[1]


def open_source(cfg: DictConfig, predictor: Predictor) -> Source:
    """Read the data set that a command names, or else that of the checkpoint's run.

    Raises:
        FileNotFoundError: the data set is not there.
        ValueError: there is none; the checkpoint's would call foreign code; or the network does not fit it.
    """
    source = build(cfg.get("dataset") or own_dataset(cfg, predictor))
    source = hold_out_again(source, run_folder(cfg) / "splits/val.txt")
    if list(source.classes) != predictor.class_names:
        raise ValueError(
            f"checkpoint={cfg.checkpoint}: knows the classes {', '.join(predictor.class_names)}; "
            f"{source.name} has {', '.join(source.classes)}: choose the data set it was trained on"
        )
    if (channels := source.format.channels) != predictor.channels:
        raise ValueError(f"dataset.channels={channels}: the checkpoint takes {predictor.channels}")
    return source


def own_dataset(cfg: DictConfig, predictor: Predictor) -> DictConfig:
    """Return the node of the data set of a checkpoint's run; raise a ValueError for none, or one with foreign code."""
    own = predictor.metadata.get("config", {}).get("dataset")
    if not isinstance(own, dict):
        raise ValueError(f"checkpoint={cfg.checkpoint}: names no data set; give dataset=folder dataset.root=FOLDER")
    node = OmegaConf.create(own)
    plain = OmegaConf.to_container(node)  # as Hydra will see it, so that nothing it would call is missed
    refuse_strangers(f"checkpoint={cfg.checkpoint}", [plain], cfg.trust or (), TRUSTED_DATA)
    return node


@contextmanager
def writing(output: Path, remedy: str) -> Iterator[None]:
    """Inside this context, turn an OSError into one of one line with file and remedy."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{output}: cannot be written ({error.strerror or error}); {remedy}") from error


def output_folder(folder: Path, remedy: str) -> Path:
    """Make a folder, before the work starts; raise an OSError of one line if nothing can be written into it."""
    with writing(folder, remedy):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    return folder


def choose_device(name: str, number: int = 0) -> torch.device:
    """Return the device of this name: auto (a GPU if there is one), cpu, gpu, cuda:1 ...

    If auto or gpu may mean several GPUs, it is the one of this `number`, modulo their number.

    Raises:
        ValueError: there is no such device.
    """
    gpu = f"cuda:{number % max(1, torch.cuda.device_count())}"
    meant = {"auto": gpu if torch.cuda.is_available() else "cpu", "gpu": gpu}.get(name, name)
    try:
        torch.zeros(1, device=meant)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={name}: not on this machine; set device=auto or device=cpu") from error
    return torch.device(meant)
