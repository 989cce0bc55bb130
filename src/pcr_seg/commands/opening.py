"""What commands open: a checkpoint, the data set to use it on, and a device."""

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from pcr_seg.checkpoint import load
from pcr_seg.config import build
from pcr_seg.data.sources import Source
from pcr_seg.predictor import Predictor


def open_checkpoint(cfg: DictConfig) -> Predictor:
    """The predictor of a command's checkpoint: the teacher's unless `eval.student`, by `protocol` or its own."""
    protocol = instantiate(cfg.protocol) if cfg.get("protocol") else None
    network = "student" if cfg.eval.student else "teacher"
    return load(cfg.checkpoint, trust=trusted(cfg), network=network, protocol=protocol)


def trusted(cfg: DictConfig) -> list[str]:
    """Modules of the user's own that a checkpoint may call: `trust=MODULE` or `trust=[MODULE,...]`."""
    names = cfg.trust or []
    return [names] if isinstance(names, str) else list(names)


def open_source(cfg: DictConfig, predictor: Predictor) -> Source:
    """The data set that a command names, or the checkpoint's own; raises ValueError if the network does not fit it."""
    own = predictor.metadata.get("config", {}).get("dataset")
    if not cfg.get("dataset") and own is None:
        raise ValueError(f"checkpoint={cfg.checkpoint}: names no data set; give dataset=folder dataset.root=FOLDER")
    source = build(cfg.get("dataset") or OmegaConf.create(own))
    if list(source.classes) != predictor.class_names:
        raise ValueError(
            f"checkpoint={cfg.checkpoint}: knows the classes {', '.join(predictor.class_names)}; "
            f"{source.name} has {', '.join(source.classes)}: choose the data set it was trained on"
        )
    if (channels := source.train[0].format.channels) != predictor.channels:
        raise ValueError(f"dataset.channels={channels}: the checkpoint takes {predictor.channels}")
    return source


def choose_device(name: str) -> torch.device:
    """The device of this name: auto (a GPU where there is one), cpu, gpu, cuda:1; raises ValueError without it."""
    meant = {"auto": "cuda" if torch.cuda.is_available() else "cpu", "gpu": "cuda"}.get(name, name)
    try:
        torch.zeros(1, device=meant)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={name}: not on this machine; set device=auto or device=cpu") from error
    return torch.device(meant)
