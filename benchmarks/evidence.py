"""Compare methods with few labels: many short trainings on kept features, one after another in one process.

    python benchmarks/evidence.py benchmarks/evidence.yaml data=FOLDER            # the cells that have no row yet
    python benchmarks/evidence.py benchmarks/evidence.yaml data=FOLDER group=compare part=0/2   # half of a group

A cell (data set, labels, method, seed) is one training, as `train.py` would do it. Its rows are appended to the CSV
file when it ends, so the command can be stopped and started again. Scores are those of the last epoch's teacher on all
validation images at full size. There are two rows: `half` 0 has the images at even places of the set, on which settings
are chosen, `half` 1 the others.
"""

import csv
import os
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import lightning.pytorch as L
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_calibration_error

from pcr_seg.config import CONF, build, quote_split
from pcr_seg.inference import iou_per_class
from pcr_seg.pixels import as_floats
from pcr_seg.training.fit import build_module, streams

ADJUSTED = 0.25  # logit adjustment at test time, for the column "adjusted"
HEADER = [
    "set", "labels", "method", "seed", "half", "linear", "prototype", "average", "adjusted", "train_seconds", "steps",
    "commit", "iou_linear", "iou_prototype", "ece_linear", "ece_prototype", "auroc_confidence", "auroc_disagreement",
    "auroc_distance", "aurc_confidence", "aurc_disagreement", "aurc_distance", "overrides",
]  # fmt: skip


def main(file: str, *arguments: str) -> None:
    """Run the cells of a plan (YAML) that have no row in its CSV file."""
    options = dict(argument.split("=", 1) for argument in arguments)
    plan = OmegaConf.to_container(OmegaConf.load(file))
    table = Path(options.get("output", Path(file).with_suffix(".csv")))
    part, parts = map(int, options.get("part", "0/1").split("/"))
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    chosen = [group for group in plan["groups"] if group["name"] == options.get("group", group["name"])]
    cells = list(cells_of(plan | {"groups": chosen}))
    kept = [f"{key}={options['features']}" for key in ("features.folder", "data.cache") if "features" in options]
    weights = [f"backbone.weights={options['weights']}"] if "weights" in options else []  # of fine-tuned backbones
    for place, cell in enumerate(cells):
        if place % parts == part and cell[:4] not in rows_of(table):
            *names, overrides = cell
            print(f"{place + 1}/{len(cells)}: {' '.join(map(str, names))}", flush=True)
            files = kept if "experiment=laptop" in overrides else weights  # others keep no features
            append(table, names, overrides, run([*overrides, *files, f"dataset.root={options['data']}/{names[0]}"]))


def cells_of(plan: dict) -> Iterator[tuple]:
    """Yield (set, labels, method, seed, overrides) of each cell, seed by seed, so that all means grow alike."""
    for seed in range(max(stop for _, stop in (group.get("seeds", plan["seeds"]) for group in plan["groups"]))):
        for group in plan["groups"]:
            if seed not in range(*group.get("seeds", plan["seeds"])):
                continue
            for name in group["sets"]:
                chosen = plan["sets"][name]
                for labels in group.get("labels", {}).get(name, chosen["labels"]):
                    for method, overrides in group["methods"].items():
                        every = [*group.get("overrides", plan["overrides"]), *chosen["overrides"], *overrides]
                        yield name, str(labels), method, seed, [*every, f"split={labels}", f"seed={seed}"]


def rows_of(table: Path) -> set[tuple]:
    """Return the cells that have a row, as (set, labels, method, seed)."""
    if not table.is_file():
        return set()
    with table.open() as file:
        return {(row["set"], row["labels"], row["method"], int(row["seed"])) for row in csv.DictReader(file)}


def append(table: Path, names: list, overrides: list[str], found: list[dict]) -> None:
    """Write the rows of one cell, one for each half of the validation images."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    new = not table.is_file()
    with table.open("a") as file:
        writer = csv.DictWriter(file, HEADER, lineterminator="\n")
        if new:
            writer.writeheader()
        for row in found:
            kept = " ".join(overrides)
            writer.writerow(dict(zip(HEADER, names, strict=False)) | row | {"commit": commit, "overrides": kept})


def run(overrides: list[str], *, score: bool = True) -> list[dict]:
    """Train one cell; return a row for each half of the validation images, or [] without `score`."""
    module, data, cost = trained(overrides)
    return [row | cost for row in scored(module, data)] if score else []


def trained(overrides: list[str]) -> tuple[L.LightningModule, L.LightningDataModule, dict]:
    """Train as `train.py` would, without writing a run folder; return module, data, and the columns of its cost."""
    with initialize_config_dir(str(CONF), version_base=None):
        cfg = compose("train", overrides=[*map(quote_split, overrides), "output=none"])
    L.seed_everything(cfg.seed, verbose=False)
    source = build(cfg.dataset)
    module = build_module(OmegaConf.to_container(cfg, resolve=True), list(source.classes), list(source.palette))
    features = build(cfg.features, module.student) if cfg.features else None
    data = build(cfg.data, source, **streams(module.method), pad_color=module.student.mean, features=features)
    trainer = build(
        cfg.trainer, logger=False, enable_checkpointing=False, enable_progress_bar=False, limit_val_batches=0,
    )  # fmt: skip
    started = time.process_time()
    trainer.fit(module, data)
    cost = {"train_seconds": round(time.process_time() - started, 1), "steps": trainer.global_step}
    module.to(trainer.strategy.root_device)  # the trainer has moved it to the CPU in the end
    return module, data, cost


@torch.inference_mode()
def scored(module: L.LightningModule, data: L.LightningDataModule) -> list[dict]:
    """Return a row of scores for each half of the validation images."""
    num_classes = module.student.num_classes
    frequency = torch.zeros(num_classes)
    for batch in data.labeled_dataloader():
        frequency += torch.bincount(batch["mask"][batch["mask"] < num_classes], minlength=num_classes)
    prior = (frequency.clamp(min=1) / frequency.sum()).log()[:, None, None].to(module.device)
    predictor, halves = module.predictor, (Half(num_classes), Half(num_classes))
    for place, batch in enumerate(data.val_dataloader()):
        on_device = {key: batch[key].to(module.device) for key in ("image", "mask")}
        batch = as_floats(on_device, module.student)
        heads = predictor.scored(batch["image"], size=batch["mask"].shape[-2:])
        halves[place % 2].add({head: logits[0] for head, logits in heads.items()}, batch["mask"][0], prior)
    return [{"half": place} | half.row() for place, half in enumerate(halves)]


class Half:
    """Counts over half of the validation images: confusion matrices, and the heads' confidence at some pixels."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.confusion: dict[str, Tensor] = {}
        self.pixels: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, heads: dict[str, Tensor], truth: Tensor, prior: Tensor) -> None:
        """Count an image: logits (C, H, W) by head, the mask (H, W), and the classes' log frequencies (C, 1, 1)."""
        predictions = heads | {"adjusted": heads["linear"] - ADJUSTED * prior}
        if "prototype" in heads:
            predictions["average"] = heads["linear"].softmax(dim=0) + heads["prototype"].softmax(dim=0)
        known = truth < self.num_classes
        row = self.num_classes * truth[known]
        for head, logits in predictions.items():
            pairs = row + logits.max(dim=0).indices[known]  # argmax takes several times longer over channels
            count = torch.bincount(pairs, minlength=self.num_classes**2).view(self.num_classes, self.num_classes)
            self.confusion[head] = self.confusion.get(head, 0) + count

        few = known[::8, ::8]
        some = {head: logits[:, ::8, ::8][:, few] for head, logits in heads.items()}
        for head, logits in some.items():
            sure, best = logits.softmax(dim=0).max(dim=0)
            self.pixels[f"sure_{head}"].append(sure)
            self.pixels[f"right_{head}"].append(best == truth[::8, ::8][few])
        if "prototype" in some:
            shared = some["linear"].softmax(dim=0) * some["prototype"].softmax(dim=0)
            self.pixels["disagreement"].append(1 - shared.sum(dim=0))
            self.pixels["distance"].append(-some["prototype"].amax(dim=0))

    def row(self) -> dict:
        """Return the columns of a row: IoU in percent, calibration errors, and how well measures of doubt find errors.

        AUROC and AURC (area under the risk-coverage curve) are of the linear head's errors at every eighth pixel.
        """
        pixels = {name: torch.cat(parts) for name, parts in self.pixels.items()}
        wrong, row = ~pixels["right_linear"], {}
        for head, count in self.confusion.items():
            iou = 100 * iou_per_class(count)
            row[head] = round(iou.nanmean().item(), 2)
            row[f"iou_{head}"] = " ".join(f"{value:.1f}" for value in iou.tolist())
        for head in ("linear", "prototype"):
            if f"sure_{head}" in pixels:
                error = binary_calibration_error(pixels[f"sure_{head}"], pixels[f"right_{head}"].long(), n_bins=15)
                row[f"ece_{head}"] = round(error.item(), 4)
        doubts = {"confidence": 1 - pixels["sure_linear"]}
        doubts |= {name: pixels[name] for name in ("disagreement", "distance") if name in pixels}
        for name, doubt in doubts.items():
            rank = doubt.argsort().argsort().float() / len(doubt)  # in 0..1, as the metric requires
            row[f"auroc_{name}"] = round(binary_auroc(rank, wrong.long()).item(), 4)
            sorted_wrong = wrong[doubt.argsort()].float()
            kept = torch.arange(1, len(doubt) + 1, device=doubt.device)
            row[f"aurc_{name}"] = round((sorted_wrong.cumsum(0) / kept).mean().item(), 4)
        return {key: value for key, value in row.items() if key in HEADER}


if __name__ == "__main__":
    main(*sys.argv[1:])
