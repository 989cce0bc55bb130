"""From a checkpoint and a data set to scores."""

import json
import re
from pathlib import Path

import lightning.pytorch as L
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from pcr_seg.config import build
from pcr_seg.data import splits
from pcr_seg.data.datamodule import eval_loader
from pcr_seg.data.sources import Source
from pcr_seg.loggers import ProgressBar
from pcr_seg.module import SemiSupervisedSegmentation
from pcr_seg.run import iou_of_heads, load_module, score_table


def evaluate(cfg: DictConfig) -> dict:
    """Score a checkpoint on a subset, print the table, write and return the JSON."""
    module = load_module(cfg.checkpoint, student=cfg.eval.student, protocol=cfg.get("protocol"))
    source = open_source(cfg, module)
    samples = getattr(source, cfg.subset)
    if not samples:
        raise ValueError(f"subset={cfg.subset}: {source.name} has no such images; choose another subset")
    splits.check_samples(samples)
    trainer = L.Trainer(accelerator=cfg.device, devices=1, logger=False, enable_model_summary=False,
                        callbacks=[ProgressBar()])  # fmt: skip
    trainer.validate(module, eval_loader(samples, cfg.num_workers), verbose=False)
    metrics = {key: value.item() for key, value in trainer.callback_metrics.items()}
    result = {
        "checkpoint": str(cfg.checkpoint),
        "dataset": source.name,
        "subset": cfg.subset,
        "network": "student" if cfg.eval.student else "teacher",
        "protocol": protocol_name(module),
        "num_images": len(samples),
        "miou": metrics["val/miou"],
        "miou_prototype": metrics.get("val/miou_prototype"),
        **iou_of_heads(metrics, module.class_names),
    }
    name = "_".join(["eval", source.name, cfg.subset, result["protocol"], result["network"]]) + ".json"
    output = Path(cfg.output or Path(cfg.checkpoint).parent.parent / name)
    output.write_text(json.dumps(result, indent=2) + "\n")
    title = f"{source.name} {cfg.subset}, {len(samples)} images, {result['network']}"
    Console().print(score_table(title, result, result["miou"], result["miou_prototype"]))
    print(output)
    return result


def protocol_name(module: SemiSupervisedSegmentation) -> str:
    """The protocol's function and what sets it apart, as one word: sliding_window-769-513-4."""
    values = [getattr(value, "func", value) for value in module.protocol.keywords.values()]
    words = [getattr(value, "__name__", str(value)) for value in (module.protocol.func, *values)]
    return re.sub(r"[^\w.-]+", "", "-".join(words))


def open_source(cfg: DictConfig, module: SemiSupervisedSegmentation) -> Source:
    """The data set that a command names, or the checkpoint's own; raises ValueError if the module does not fit it."""
    source = build(cfg.get("dataset") or OmegaConf.create(module.metadata["config"]["dataset"]))
    if list(source.classes) != module.class_names:
        raise ValueError(
            f"checkpoint={cfg.checkpoint}: knows the classes {', '.join(module.class_names)}; "
            f"{source.name} has {', '.join(source.classes)}: choose the data set it was trained on"
        )
    if (channels := source.train[0].format.channels) != module.student.backbone.in_channels:
        raise ValueError(f"dataset.channels={channels}: the checkpoint takes {module.student.backbone.in_channels}")
    return source
