"""Scores for a data set without val images: by holding out a part of the masks, or by cross-validation in folds."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import numpy as np

from pcr_seg.data import held_out
from pcr_seg.data.sources import Source
from pcr_seg.data.splits import write_list


def with_val(
    source: Source, output: Path, begun: bool, *, val: str | None, folds: int | str, seed: int
) -> tuple[Source, list[Path]]:
    """Decide what a data set is validated on.

    A run that goes on reads its own lists back, even if the data set has changed since.

    Args:
        source: the data set.
        output: the run folder; lists are in its `splits`.
        begun: whether the run goes on.
        val: a text file of names to validate on, or None.
        folds: for a data set without val images: the number of folds, "auto", or 0 to hold a part out.
        seed: of the random draw.

    Returns:
        The data set with images to validate on, and no folds; or the data set without any, and a list file for each
        fold.

    Raises:
        FileNotFoundError: an image of a list is missing.
        ValueError: `folds` is given although there are val images, or there are too few masks for it.
    """
    lists = output / "splits"
    begun = begun or any(output.glob("fold_*/config.yaml"))
    parts = sorted(lists.glob("fold_*.txt"), key=lambda path: held_out.natural(path.name)) if begun else []
    if begun and not parts and (lists / "val.txt").is_file():
        return held_out.hold_out_list(source, lists / "val.txt"), []
    if val:
        return held_out.hold_out_list(source, Path(str(val))), []
    if not parts and (source.val or not source.train):
        if folds not in ("auto", 0):
            raise ValueError(f"folds={folds}: {source.name} has val images, which give the score; leave it out")
        return source, []
    if not parts:
        number = held_out.num_folds(folds, source)
        if number == 0:
            [some], how = held_out.deal(source, held_out.FIFTH, seed, fewest=3, scored=1)
            return held_out.hold_out(source, some, f"held out of train, {how}"), []
        dealt, how = held_out.deal(source, number, seed, fewest=min(3, number) if folds == "auto" else number)
        parts = [lists / f"fold_{turn}.txt" for turn in range(1, len(dealt) + 1)]
        for path, samples in zip(parts, dealt, strict=True):
            write_list(path, f"one of {len(dealt)} folds, {how}", samples)
    return replace(source, val=(), held_out=f"scored in {len(parts)} folds"), parts


def over_folds(summaries: Sequence[dict]) -> dict:
    """Return a run's scores from its folds' summaries: means, and the standard deviation (n - 1) of the mIoU."""

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
        "never_predicted": [
            name for name in summaries[0]["iou"] if all(name in one.get("never_predicted", ()) for one in summaries)
        ],
    }


def pictures_of_folds(folders: Sequence[Path], output: Path) -> None:
    """Write pictures into a run's folder: the first fold's, and the confusion matrix of all folds together."""
    details = [json.loads((folder / "details.json").read_text()) for folder in folders]
    confusion: dict[str, np.ndarray] = {}
    for fold in details:
        for head, counts in fold["confusion"].items():
            confusion[head] = confusion.get(head, 0) + np.array(counts)
    together = {head: counts.tolist() for head, counts in confusion.items()}
    text = json.dumps(details[0] | {"confusion": together, "prototypes": []})
    (output / "details.json").write_text(text + "\n")
    shutil.copyfile(folders[0] / "panel.png", output / "panel.png")
    shutil.copytree(folders[0] / "examples", output / "examples", dirs_exist_ok=True)
