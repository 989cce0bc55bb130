"""Score a checkpoint on a data set."""

import csv
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torchmetrics.classification import BinaryPrecisionRecallCurve

from pcr_seg.commands.opening import choose_device, open_checkpoint, open_source, run_folder, writing
from pcr_seg.data import splits
from pcr_seg.data.files import IGNORE_INDEX
from pcr_seg.data.whole import eval_loader
from pcr_seg.measures import ByImage, boundary_counts, measures
from pcr_seg.pixels import as_floats
from pcr_seg.predictor import Predictor
from pcr_seg.scores import Scores, iou_of_heads, never_predicted, percent, score_table, warning_of

SUBSETS = ("train", "val", "test")
MEASURES = ("iou", "dice", "precision", "recall", "boundary_iou")
MEAN = "mean"  # stands for a class in the row of an image's mean
THRESHOLDS = 101  # of the precision-recall curve: 0, 0.01 ... 1


def evaluate(cfg: DictConfig) -> dict:
    """Score a checkpoint on a subset, print tables, write a JSON and a CSV file with each image's scores.

    Returns:
        The content of the JSON file; all scores are in 0..1.

    Raises:
        ValueError: the subset is unknown or empty, or the network does not fit the data set.
        OSError: the files cannot be written; the tables have been printed by then.
    """
    if cfg.subset not in SUBSETS:
        raise ValueError(f"subset={cfg.subset}: choose {', '.join(SUBSETS[:-1])} or {SUBSETS[-1]}")
    if str(cfg.output).endswith(".csv"):
        raise ValueError(
            f"output={cfg.output}: names the JSON file, and the CSV lies beside it; choose a name in .json"
        )
    predictor = open_checkpoint(cfg)
    source = open_source(cfg, predictor)
    samples = getattr(source, cfg.subset)
    if not samples:
        raise ValueError(f"subset={cfg.subset}: {source.name} has no such images; choose another subset")
    splits.check_samples(samples)
    predictor.to(choose_device(cfg.device))
    found = score(predictor, track(eval_loader(samples, cfg.num_workers), "scoring"))
    rows = image_rows(found, predictor.class_names)
    result = {
        "checkpoint": str(cfg.checkpoint),
        "dataset": source.name,
        "subset": cfg.subset,
        "network": "student" if cfg.eval.student else "teacher",
        "protocol": protocol_name(predictor),
        "num_images": len(samples),
        "miou": found.metrics["val/miou"],
        "miou_prototype": found.metrics.get("val/miou_prototype"),
        **iou_of_heads(found.metrics, predictor.class_names),
        **class_scores(found, predictor.class_names),
        "never_predicted": found.never,
        "threshold": {"class": predictor.class_names[1], **best_threshold(*found.curve)} if found.curve else None,
        "images": {row["image"]: {key: row[key] for key in MEASURES} for row in rows if row["class"] == MEAN},
    }
    name = "_".join(["eval", source.name, cfg.subset, result["protocol"], result["network"]]) + ".json"
    output = Path(cfg.output or run_folder(cfg) / name)
    number = "1 image, which says little" if len(samples) == 1 else f"{len(samples)} images"
    title = f"{source.name} {cfg.subset}, {number}, {result['network']}"
    console = Console(highlight=False)
    console.print(score_table(title, result, result["miou"], result["miou_prototype"]))
    if found.never:
        console.print(warning_of(found.never))
    console.print(measure_table(result))
    if best := result["threshold"]:
        console.print(
            f"{escape(best['class'])} where its probability is over {best['threshold']:.2f} (chosen on these images):"
            f" Dice {percent(best['dice'])}; over 0.50: {percent(best['dice_at_half'])}"
        )
    means = {image: scores["iou"] for image, scores in result["images"].items() if scores["iou"] is not None}
    console.print(f"worst images: {', '.join(sorted(means, key=means.get)[:3])}", markup=False)
    with writing(output, "the scores are above; name another file with output=FILE"):
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        with output.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, ["image", "class", *MEASURES])
            table.writeheader()
            table.writerows(rows)
    print(f"{output}, and of each image and class {output.with_suffix('.csv').name}")
    return result


class Found(NamedTuple):
    """The result of scoring: `metrics` of all heads, everything else of the linear head."""

    metrics: dict[str, float]  # mIoU, and IoU of each class, by their keys in the log
    by_image: ByImage
    boundary: np.ndarray  # (N, 2, C) pixels in intersection and union of the boundaries
    never: list[str]  # classes that occur but are never predicted
    # With two classes, for the second one: precision and recall (T + 1,), thresholds (T,).
    curve: tuple[Tensor, Tensor, Tensor] | None


@torch.inference_mode()
def score(predictor: Predictor, batches: Iterable[dict]) -> Found:
    """Score whole images, in batches of one."""
    num_classes = len(predictor.class_names)
    scores, boundary = Scores(num_classes), []
    curve = BinaryPrecisionRecallCurve(THRESHOLDS, ignore_index=IGNORE_INDEX).to(predictor.device)
    for batch in batches:
        on_device = {key: batch[key].to(predictor.device) for key in ("image", "mask")}
        floats = as_floats(on_device, predictor.network)
        heads = predictor.scored(floats["image"])
        truth = scores.update(heads, floats["mask"], *batch["name"])
        labels = heads["linear"].max(dim=1).indices[0].byte().cpu().numpy()
        boundary.append(boundary_counts(truth[0].cpu().numpy(), labels, num_classes))
        if num_classes == 2:
            curve.update(heads["linear"].softmax(dim=1)[:, 1], truth.long())
    means, classes = scores.by_key(predictor.class_names)
    metrics = {key: value.item() for key, value in (means | classes).items()}
    never = never_predicted(scores.counts()["linear"], predictor.class_names)
    return Found(metrics, scores.by_image(), np.stack(boundary), never, curve.compute() if num_classes == 2 else None)


def measured(found: Found) -> dict[str, np.ndarray]:
    """Return each of `MEASURES` by image and class (N, C), in 0..1; NaN where it divides 0 by 0."""
    with np.errstate(invalid="ignore"):
        boundary = found.boundary[:, 0] / found.boundary[:, 1]
    return measures(found.by_image.counts) | {"boundary_iou": boundary}


def image_rows(found: Found, class_names: list[str]) -> list[dict]:
    """Return the rows of the CSV file: of each image a mean over the classes in mask or prediction, and each class."""
    values, rows = measured(found), []
    for i, image in enumerate(found.by_image.names):
        there = np.flatnonzero(~np.isnan(values["iou"][i]))
        rows.append({"image": image, "class": MEAN} | {key: mean_of(x[i]) for key, x in values.items()})
        rows += [
            {"image": image, "class": class_names[c]} | {key: plain(x[i, c]) for key, x in values.items()}
            for c in there
        ]
    return rows


def class_scores(found: Found, class_names: list[str]) -> dict[str, dict[str, float | None]]:
    """Return Dice, precision, recall and boundary IoU of each class over all images, without the IoU."""
    boundary = found.boundary.sum(axis=0)
    with np.errstate(invalid="ignore"):
        values = measures(found.by_image.counts.sum(axis=0)) | {"boundary_iou": boundary[0] / boundary[1]}
    return {key: dict(zip(class_names, map(plain, values[key]), strict=True)) for key in MEASURES if key != "iou"}


def plain(value: float) -> float | None:
    """Round a number for JSON and CSV; None for NaN."""
    return None if np.isnan(value) else round(float(value), 6)


def mean_of(values: np.ndarray) -> float | None:
    """Return the mean of the values that are not NaN, or None if all are."""
    known = values[~np.isnan(values)]
    return plain(known.mean()) if len(known) else None


def best_threshold(precision: Tensor, recall: Tensor, thresholds: Tensor) -> dict:
    """Return the threshold with the largest Dice of the second of two classes, its Dice, that at 0.5, and the curve."""
    precision, recall = precision.nan_to_num(1.0), recall.nan_to_num(0.0)  # NaN: no pixel is found, or none is there
    dice = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
    best = int(dice[:-1].argmax())
    points = zip(thresholds.tolist(), precision.tolist(), recall.tolist(), strict=False)
    return {
        "threshold": round(thresholds[best].item(), 4),
        "dice": dice[best].item(),
        "dice_at_half": dice[len(thresholds) // 2].item(),
        "curve": [[round(value, 4) for value in point] for point in points],
    }


def measure_table(result: dict) -> Table:
    """Return a table of the linear head's Dice, precision, recall and boundary IoU of each class."""
    names = [key for key in MEASURES if key != "iou"]
    table = Table("linear head", *(name.replace("_iou", " IoU") for name in names))
    for label in result["iou"]:
        table.add_row(escape(label), *(percent(result[name][label]) for name in names))
    return table


def protocol_name(predictor: Predictor) -> str:
    """Return the protocol's function and arguments as one word, for a file's name: sliding_window-769-513-4."""
    protocol = predictor.protocol
    values = [getattr(value, "func", value) for value in getattr(protocol, "keywords", {}).values()]
    words = [getattr(value, "__name__", str(value)) for value in (getattr(protocol, "func", protocol), *values)]
    return re.sub(r"[^\w.-]+", "", "-".join(words))
