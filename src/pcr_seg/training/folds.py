"""Scores of a data set without val images: of a part that is held out, or of several trainings that take turns."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from omegaconf import DictConfig

from pcr_seg.data import held_out
from pcr_seg.data.sources import Source
from pcr_seg.data.splits import write_list


def with_val(cfg: DictConfig, source: Source, begun: bool) -> tuple[Source, list[Path]]:
    """The data set with images to validate on, or without any and the lists of the folds that take their place.

    A run that has begun reads its lists back, whatever the data set has got since.

    Args:
        cfg: of the run; `val`, `folds` and `seed` say what is held out where the data set has no val images.
        source: the data set.
        begun: whether the run goes on.

    Raises:
        FileNotFoundError: an image of a list is missing.
        ValueError: `folds` where there are val images, or with too few masks.
    """
    lists = Path(cfg.output, "splits")
    begun = begun or any(Path(cfg.output).glob("fold_*/config.yaml"))
    folds = sorted(lists.glob("fold_*.txt"), key=lambda path: held_out.natural(path.name)) if begun else []
    if not folds:
        if begun and (lists / "val.txt").is_file():
            return held_out.hold_out_list(source, lists / "val.txt"), []
        if cfg.val:
            return held_out.hold_out_list(source, Path(str(cfg.val))), []
        if source.val or not source.train:
            if cfg.folds not in ("auto", 0):
                raise ValueError(f"folds={cfg.folds}: {source.name} has val images, which give the score; leave it out")
            return source, []
        number = held_out.num_folds(cfg.folds, source)
        if not number:
            [val], how = held_out.deal(source, held_out.FIFTH, cfg.seed, fewest=3, scored=1)
            return held_out.hold_out(source, val, f"held out of train, {how}"), []
        fewest = min(3, number) if cfg.folds == "auto" else number
        parts, how = held_out.deal(source, number, cfg.seed, fewest=fewest)
        folds = [lists / f"fold_{turn}.txt" for turn in range(1, len(parts) + 1)]
        for path, part in zip(folds, parts, strict=True):
            write_list(path, f"one of {len(parts)} folds, {how}", part)
    return replace(source, held_out=f"scored in {len(folds)} folds"), folds


def over_folds(summaries: Sequence[dict]) -> dict:
    """The scores of a run from those of its folds: means, and the standard deviation (n - 1) of the mIoU."""

    def average(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return mean(known) if known else None

    def by_class(key: str) -> dict[str, float | None] | None:
        found = [summary[key] for summary in summaries if summary[key]]
        return {name: average([iou[name] for iou in found]) for name in found[0]} if found else None

    scores = [summary["miou_last"] for summary in summaries]
    return {
        "folds": len(scores),
        "miou_last": mean(scores),
        "miou_last_std": stdev(scores),
        "miou_best": None,
        "miou_prototype_last": average([summary["miou_prototype_last"] for summary in summaries]),
        "iou": by_class("iou"),
        "iou_prototype": by_class("iou_prototype"),
    }


def pictures_of_folds(folders: Sequence[Path], output: Path) -> None:
    """Show in a run's folder what its folds saw in validation: the first one's panel, and the confusion of all."""
    details = [json.loads((folder / "details.json").read_text()) for folder in folders]
    confusion: dict[str, np.ndarray] = {}
    for fold in details:
        for head, counts in fold["confusion"].items():
            confusion[head] = confusion.get(head, 0) + np.array(counts)
    together = {head: counts.tolist() for head, counts in confusion.items()}
    text = json.dumps(details[0] | {"confusion": together, "prototypes": []})
    (output / "details.json").write_text(text + "\n")
    shutil.copyfile(folders[0] / "panel.png", output / "panel.png")
