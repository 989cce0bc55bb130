"""From a checkpoint and a data set to scores."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track

from pcr_seg.checkpoint import load
from pcr_seg.config import build
from pcr_seg.data import splits
from pcr_seg.data.datamodule import eval_loader
from pcr_seg.data.sources import Source
from pcr_seg.pixels import as_floats
from pcr_seg.predictor import Predictor
from pcr_seg.scores import Scores
from pcr_seg.training.summary import iou_of_heads, score_table


def evaluate(cfg: DictConfig) -> dict:
    """Score a checkpoint on a subset, print the table, write and return the JSON."""
    predictor = open_checkpoint(cfg)
    source = open_source(cfg, predictor)
    samples = getattr(source, cfg.subset)
    if not samples:
        raise ValueError(f"subset={cfg.subset}: {source.name} has no such images; choose another subset")
    splits.check_samples(samples)
    predictor.to(choose_device(cfg.device))
    metrics = score(predictor, track(eval_loader(samples, cfg.num_workers), "scoring"))
    result = {
        "checkpoint": str(cfg.checkpoint),
        "dataset": source.name,
        "subset": cfg.subset,
        "network": "student" if cfg.eval.student else "teacher",
        "protocol": protocol_name(predictor),
        "num_images": len(samples),
        "miou": metrics["val/miou"],
        "miou_prototype": metrics.get("val/miou_prototype"),
        **iou_of_heads(metrics, predictor.class_names),
    }
    name = "_".join(["eval", source.name, cfg.subset, result["protocol"], result["network"]]) + ".json"
    output = Path(cfg.output or Path(cfg.checkpoint).parent.parent / name)
    output.write_text(json.dumps(result, indent=2) + "\n")
    title = f"{source.name} {cfg.subset}, {len(samples)} images, {result['network']}"
    Console().print(score_table(title, result, result["miou"], result["miou_prototype"]))
    print(output)
    return result


@torch.inference_mode()
def score(predictor: Predictor, batches: Iterable[dict]) -> dict[str, float]:
    """mIoU of each head over whole images, one at a time, and the IoU of each class, by the log's keys."""
    scores = Scores(len(predictor.class_names))
    for batch in batches:
        on_device = {key: batch[key].to(predictor.device) for key in ("image", "mask")}
        batch = as_floats(on_device, predictor.network)
        scores.update(predictor.scored(batch["image"]), batch["mask"])
    means, classes = scores.by_key(predictor.class_names)
    return {key: value.item() for key, value in (means | classes).items()}


def open_checkpoint(cfg: DictConfig) -> Predictor:
    """The predictor of a command's checkpoint: the teacher unless `eval.student`, with `protocol` where it names one."""
    protocol = instantiate(cfg.protocol) if cfg.get("protocol") else None
    network = "student" if cfg.eval.student else "teacher"
    return load(cfg.checkpoint, trust=trusted(cfg), network=network, protocol=protocol)


def trusted(cfg: DictConfig) -> list[str]:
    """Modules of the user's own that a checkpoint may call: `trust=MODULE` or `trust=[MODULE,...]`."""
    names = cfg.trust or []
    return [names] if isinstance(names, str) else list(names)


def choose_device(name: str) -> torch.device:
    """The device of this name: auto (a GPU where there is one), cpu, gpu, cuda:1; raises ValueError without it."""
    meant = {"auto": "cuda" if torch.cuda.is_available() else "cpu", "gpu": "cuda"}.get(name, name)
    try:
        torch.zeros(1, device=meant)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={name}: not on this machine; set device=auto or device=cpu") from error
    return torch.device(meant)


def protocol_name(predictor: Predictor) -> str:
    """The protocol's function and what sets it apart, as one word: sliding_window-769-513-4."""
    protocol = predictor.protocol
    values = [getattr(value, "func", value) for value in getattr(protocol, "keywords", {}).values()]
    words = [getattr(value, "__name__", str(value)) for value in (getattr(protocol, "func", protocol), *values)]
    return re.sub(r"[^\w.-]+", "", "-".join(words))


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
