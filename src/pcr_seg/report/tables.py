"""From run folders to tables.

Every `summary.json` becomes a row of a DataFrame; rows that differ only in the seed become one line of a table, in
numbers (`aggregate`: CSV and plot) and in words (`tables`: Markdown, terminal and page). Data sets, split families and
backbones never share a line. mIoU is in percent everywhere but in `summary.json`.
"""

import json
import os
from collections.abc import Sequence
from functools import partial
from glob import glob
from pathlib import Path

import pandas as pd

SECTION = ["dataset", "split_family", "backbone"]  # what stands under one heading
CELL = [*SECTION, "num_labeled", "split"]  # what compared methods share
LINE = [*CELL, "method"]  # what the runs of one line share, all but their seed
GAIN = "gain_over_"  # and the baseline's name: a column for each

MEASURES = {
    "miou_last": "mIoU, last epoch",
    "miou_prototype_last": "prototype head",
    "miou_best": "best epoch (chosen on val)",
}
INTEGERS = ["num_labeled", "seed", "iterations"]
COSTS = {"seconds": "seconds", "images_per_second": "images/s", "peak_memory_mib": "peak MiB"}
OTHERS = ["num_unlabeled", "git_commit", "iou"]

# mIoU in % of the paper and of the authors' released checkpoint, both with ResNet-101.
# Source: rows "paper" and "this repo" in the README of github.com/HeimingX/semi_seg_proto, the authors' code
# for Xu et al., "Semi-supervised Semantic Segmentation with Prototype-based Consistency Regularization",
# NeurIPS 2022. VOC blender is left out: none of its figures could be verified.
PUBLISHED_MEASURES = {
    "published_paper": "PCR paper (ResNet-101)",
    "published_checkpoint": "PCR checkpoint (ResNet-101)",
}
U2PL = {
    "voc": {92: (70.06, 70.78), 183: (74.71, 74.65), 366: (77.16, 76.77), 732: (78.49, 78.70), 1464: (80.65, 80.18)},
    "cityscapes": {186: (73.41, 73.99), 372: (76.31, 77.10), 744: (78.40, 78.58), 1488: (79.11, 79.55)},
}
PUBLISHED = pd.DataFrame(
    [(dataset, "u2pl", count, *pair) for dataset, pairs in U2PL.items() for count, pair in pairs.items()],
    columns=["dataset", "split_family", "num_labeled", *PUBLISHED_MEASURES],
)

WORDS = ("split", "method", "over", "in %")  # columns of words stand left, figures right


def find(pattern: str) -> list[Path]:
    """List the run folders at and below the matches of a glob; a match without any stands for itself."""
    found = {}  # by real path: a link to the latest run is no second run
    for top in map(Path, sorted(glob(os.path.join(os.path.expanduser(pattern), "")))):
        folders = {path.parent for name in (".hydra", "summary.json") for path in top.rglob(name)}
        if not folders and not (top / "report.md").is_file():
            folders = {top}
        found |= {folder.resolve(): folder for folder in sorted(folders)}
    return list(found.values())


def read(folder: Path) -> dict:
    """Read the summary of one run; of a broken one only the folder is known."""
    try:
        file = folder / "summary.json"
        summary = json.loads(file.read_text(encoding="utf-8"))
        return summary | {"folder": folder, "finished": file.stat().st_mtime_ns, "iou": dict(summary["iou"])}
    except (OSError, ValueError, TypeError, KeyError):
        return {"folder": folder}


def collect(pattern: str) -> tuple[pd.DataFrame, list[str]]:
    """Read every run under a glob: a row for each, and in words which folders are left out and why."""
    columns = ["folder", *LINE, "seed", *MEASURES, "iterations", *COSTS, *OTHERS, "finished"]
    runs = pd.DataFrame(map(read, find(pattern)), columns=columns, dtype=object)
    numbers = [*INTEGERS, *MEASURES, *COSTS]
    runs[numbers] = runs[numbers].apply(pd.to_numeric, errors="coerce")
    valid = runs[[*LINE, *INTEGERS, "seconds"]].notna().all(axis=1) & runs.miou_last.between(0, 1)
    if not valid.any():
        raise ValueError(
            f"runs={pattern!r} names {len(runs)} folders, none with a valid summary.json; "
            "give a glob of finished runs, such as runs='runs/*'"
        )
    invalid, runs = runs[~valid], runs[valid].sort_values("finished", kind="stable")
    runs = runs.astype(dict.fromkeys(LINE, str) | dict.fromkeys(INTEGERS, int))
    runs[list(MEASURES)] *= 100
    older = runs.duplicated([*LINE, "seed"], keep="last")
    kinds = {"no valid summary.json": invalid, "a newer run has the same method, split and seed": runs[older]}
    left_out = [f"Left out ({why}): {', '.join(map(str, some.folder))}" for why, some in kinds.items() if len(some)]
    return runs[~older], left_out


def compare(runs: pd.DataFrame, baselines: Sequence[str]) -> pd.DataFrame:
    """Add the published figures, and what a run gains over each baseline's with its seed; sort by LINE and seed.

    A baseline is itself compared with those before it only.
    """
    for number, baseline in enumerate(baselines, start=1):
        reference = runs.loc[runs.method == baseline, [*CELL, "seed", "miou_last"]]
        reference = reference.rename(columns={"miou_last": "reference"})
        runs = runs.merge(reference, how="left", on=[*CELL, "seed"])
        runs[GAIN + baseline] = (runs.miou_last - runs.pop("reference")).where(~runs.method.isin(baselines[:number]))
    order = {name: f"{name.startswith('pcr'):d}{name}" for name in runs.method}
    order |= {name: f"-{number}" for number, name in enumerate(baselines)}
    runs = runs.sort_values([*LINE, "seed"], key=lambda key: key.map(order) if key.name == "method" else key)
    return runs.merge(PUBLISHED, how="left", on=["dataset", "split_family", "num_labeled"])


def gains(runs: pd.DataFrame) -> dict[str, str]:
    """Columns of the gains over baselines, and how they are headed."""
    return {name: name.replace("_", " ", 2) for name in runs if name.startswith(GAIN)}


def aggregate(runs: pd.DataFrame) -> pd.DataFrame:
    """Average over seeds, in numbers: mean, standard deviation (n-1) and number of runs for each figure."""
    lines = runs.groupby(LINE, sort=False)
    figures = lines[[*MEASURES, *gains(runs)]].agg(["mean", "std", "count"])
    figures.columns = ["_".join(names) for names in figures.columns]
    rest = {name: (name, "mean") for name in COSTS} | {name: (name, "first") for name in PUBLISHED_MEASURES}
    return figures.join(lines.agg(n=("seed", "size"), **rest)).reset_index()


def tables(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Average over seeds, in words: a table for each data set, family and backbone, by its heading."""
    columns = {"n": ("seed", "size")}
    columns |= {head: (name, words) for name, head in MEASURES.items()}
    columns |= {head: (name, partial(words, sign="+")) for name, head in gains(runs).items()}
    columns |= {head: (name, lambda same: words(same[:1])) for name, head in PUBLISHED_MEASURES.items()}
    columns |= {"iterations": ("iterations", lambda counts: ", ".join(map(str, sorted(set(counts)))))}
    columns |= {head: (name, round_mean) for name, head in COSTS.items()}
    text = runs.groupby(LINE, sort=False).agg(**columns).reset_index().astype(str)
    text = text.rename(columns={"num_labeled": "labeled"})
    parts = {heading(*names): part.drop(columns=SECTION) for names, part in text.groupby(SECTION, sort=False)}
    return {title: part.loc[:, (part != "-").any()] for title, part in parts.items()}


def paired(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The differences to each baseline, seed by seed, in words: a table for each data set, family and backbone."""
    lines = {}
    for (*section, num_labeled, split, method), line in runs.groupby(LINE, sort=False):
        for name in gains(runs):
            differences = line.set_index("seed")[name].dropna()
            if len(differences):
                row = {"labeled": str(num_labeled), "split": split, "method": method, "over": name.removeprefix(GAIN)}
                row |= {"mean ± std": words(differences, "+"), "n": str(len(differences))}
                row |= {f"seed {seed}": f"{value:+.2f}" for seed, value in differences.sort_index().items()}
                lines.setdefault(f"{heading(*section)} · paired differences", []).append(row)
    return {title: pd.DataFrame(rows).fillna("-") for title, rows in lines.items()}


def side_by_side(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Compare two methods class by class, by heading; nothing unless the runs are of exactly two."""
    parts = {}
    for cell, both in runs.groupby(CELL, sort=False):
        sides = {method: side.droplevel(0) for method, side in scores(both).groupby(level=0, sort=False)}
        if len(sides) == runs.method.nunique() == 2:
            first, second = sides.values()
            columns = {f"{method} (n={len(side)})": side.apply(words) for method, side in sides.items()}
            part = pd.DataFrame(columns | {"difference": (second - first).apply(words, sign="+")})
            part = part[(part != "-").any(axis=1)].rename_axis("in %").reset_index()
            parts[f"{heading(*cell[:3])} · split {cell[4]} ({cell[3]} labeled)"] = part
    return parts


def scores(runs: pd.DataFrame) -> pd.DataFrame:
    """Spread runs out: a row for each method and seed, a column for each mIoU and each class."""
    runs = runs.set_index(["method", "seed"])
    iou = pd.DataFrame([*runs.iou], index=runs.index).apply(pd.to_numeric, errors="coerce") * 100
    return runs[[*MEASURES]].rename(columns=MEASURES).join(iou)


def class_gains(runs: pd.DataFrame, baseline: str) -> dict[str, pd.DataFrame]:
    """Gain in IoU of each class over the baseline, seed by seed: (mean, std) by class and method for each cell."""
    parts = {}
    for cell, runs_of_cell in runs.groupby(CELL, sort=False):
        iou = scores(runs_of_cell).drop(columns=MEASURES.values())
        if baseline not in iou.index or len(iou.index.unique(0)) < 2:
            continue
        difference = iou.drop(baseline, level=0) - iou.loc[baseline].reindex(iou.index, level=1)
        by_method = difference.dropna(how="all").groupby(level=0, sort=False)
        if by_method.ngroups:
            mean, std = by_method.mean().T, by_method.std().T
            parts[f"{heading(*cell[:3])} · {cell[3]} labeled"] = pd.concat({"mean": mean, "std": std}, axis=1)
    return parts


def one_run_each(runs: pd.DataFrame) -> dict[str, Path]:
    """Folder of one run for each method, all of one cell: the one with most methods, and its lowest seeds."""
    cell = runs.groupby(CELL, sort=False).method.nunique().idxmax()
    runs = runs.set_index(CELL).loc[[cell]].sort_values("seed", kind="stable").drop_duplicates("method")
    return dict(zip(runs.method, runs.folder, strict=True))


def round_mean(values: pd.Series) -> str:
    """The mean as a whole number; "-" of nothing."""
    return "-" if values.isna().all() else f"{values.mean():.0f}"


def words(values: pd.Series, sign: str = "") -> str:
    """Write mean ± std of the runs of a line, and how many have the figure if not all of them do."""
    n = values.count()
    if n == 0:
        return "-"
    text = f"{values.mean():{sign}.2f}" + (f" ± {values.std():.2f}" if n > 1 else "")
    return text if n == len(values) else f"{text} (n={n})"


def heading(dataset: str, family: str, *backbone: str) -> str:
    """Name a section of the report or of the plot."""
    return " · ".join([dataset, f"{family} splits", *backbone])


def markdown(table: pd.DataFrame) -> str:
    """Write a table of words as Markdown, figures to the right."""
    rule = ["---" if name in WORDS else "---:" for name in table]
    return "\n".join(f"| {' | '.join(line)} |" for line in [table.columns, rule, *table.to_numpy()])
