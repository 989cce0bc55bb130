"""From a checkpoint and a data set to scores."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track

from pcr_seg.commands.opening import choose_device, open_checkpoint, open_source, writing
from pcr_seg.data import splits
from pcr_seg.data.whole import eval_loader
from pcr_seg.pixels import as_floats
from pcr_seg.predictor import Predictor
from pcr_seg.scores import Scores, iou_of_heads, score_table

SUBSETS = ("train", "val", "test")


def evaluate(cfg: DictConfig) -> dict:
    """Score a checkpoint on a subset, print the table, write and return the JSON.

    Raises:
        ValueError: an unknown or empty subset, or a data set that the network does not fit.
        OSError: the file cannot be written; the table has been printed by then.
    """
    if cfg.subset not in SUBSETS:
        raise ValueError(f"subset={cfg.subset}: choose {', '.join(SUBSETS[:-1])} or {SUBSETS[-1]}")
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
    title = f"{source.name} {cfg.subset}, {len(samples)} images, {result['network']}"
    Console().print(score_table(title, result, result["miou"], result["miou_prototype"]))
    with writing(output, "the scores are above; name another file with output=FILE"):
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(output)
    return result


@torch.inference_mode()
def score(predictor: Predictor, batches: Iterable[dict]) -> dict[str, float]:
    """MIoU of each head over whole images, one at a time, and the IoU of each class, by the log's keys."""
    scores = Scores(len(predictor.class_names))
    for batch in batches:
        on_device = {key: batch[key].to(predictor.device) for key in ("image", "mask")}
        batch = as_floats(on_device, predictor.network)
        scores.update(predictor.scored(batch["image"]), batch["mask"])
    means, classes = scores.by_key(predictor.class_names)
    return {key: value.item() for key, value in (means | classes).items()}


def protocol_name(predictor: Predictor) -> str:
    """The protocol's function and what sets it apart, as one word: sliding_window-769-513-4."""
    protocol = predictor.protocol
    values = [getattr(value, "func", value) for value in getattr(protocol, "keywords", {}).values()]
    words = [getattr(value, "__name__", str(value)) for value in (getattr(protocol, "func", protocol), *values)]
    return re.sub(r"[^\w.-]+", "", "-".join(words))
