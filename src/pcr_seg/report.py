"""From run folders to one table and one plot.

Every `summary.json` becomes a row of a DataFrame; rows that differ only in the seed become one line of a table, in
numbers (`aggregate`: CSV and plot) and in words (`tables`: Markdown and terminal). Data sets, split families and
backbones never share a line. mIoU is in percent everywhere but in `summary.json`.
"""

import json
import os
from functools import partial
from glob import glob
from itertools import cycle
from pathlib import Path
from textwrap import fill

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

SECTION = ["dataset", "split_family", "backbone"]  # what stands under one heading
CELL = [*SECTION, "num_labeled", "split"]  # what compared methods share
LINE = [*CELL, "method"]  # what the runs of one line share, all but their seed

MEASURES = {
    "miou_last": "mIoU, last epoch",
    "miou_prototype_last": "prototype head",
    "miou_best": "best epoch (chosen on val)",
}
INTEGERS = ["num_labeled", "seed", "iterations"]
OTHERS = ["num_unlabeled", "images_per_second", "peak_memory_mib", "git_commit", "iou"]

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

# Columns of words stand left, figures right; a narrow terminal does without these columns, in this order.
WORDS = ("split", "method", "in %")
DISPENSABLE = ("seconds", "iterations", "split", *reversed([*MEASURES.values(), *PUBLISHED_MEASURES.values()]))


def report(pattern: str, output: str | Path, baseline: str = "supervised") -> None:
    """Print what the runs under a glob reached; write report.md, report.csv, report.png and runs.csv to `output`."""
    runs, left_out = collect(pattern)
    runs = compare(runs, baseline)
    table, parts = aggregate(runs), tables(runs, baseline) | side_by_side(runs)
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    sections = [f"## {title}\n\n{markdown(part)}" for title, part in parts.items()]
    text = "\n\n".join(["# mIoU in %, mean ± std over seeds", *sections, *left_out]) + "\n"
    (output / "report.md").write_text(text, encoding="utf-8")
    table.round(4).to_csv(output / "report.csv", index=False)
    runs.drop(columns=["iou", "finished"]).round(4).to_csv(output / "runs.csv", index=False)
    plot(table).savefig(output / "report.png")
    console = Console(highlight=False, markup=False)
    console.print("mIoU in %, mean ± std over seeds")
    for title, part in parts.items():
        show(console, title, part)
    for line in ["", *left_out, f"Written to {output}: report.md, report.csv, report.png, runs.csv"]:
        console.print(line, soft_wrap=True)


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
    columns = ["folder", *LINE, "seed", *MEASURES, "iterations", "seconds", *OTHERS, "finished"]
    runs = pd.DataFrame(map(read, find(pattern)), columns=columns, dtype=object)
    numbers = [*INTEGERS, *MEASURES, "seconds"]
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


def compare(runs: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Add the published figures, and what a run gains over the baseline's with its seed; sort by LINE and seed."""
    reference = runs.loc[runs.method == baseline, [*CELL, "seed", "miou_last"]].rename(columns={"miou_last": "gain"})
    runs = runs.merge(reference, how="left", on=[*CELL, "seed"])
    runs["gain"] = (runs.miou_last - runs.gain).where(runs.method != baseline)
    order = {name: f"{name != baseline:d}{name.startswith('pcr'):d}{name}" for name in runs.method}
    runs = runs.sort_values([*LINE, "seed"], key=lambda key: key.map(order) if key.name == "method" else key)
    return runs.merge(PUBLISHED, how="left", on=["dataset", "split_family", "num_labeled"])


def aggregate(runs: pd.DataFrame) -> pd.DataFrame:
    """Average over seeds, in numbers: mean, standard deviation (n-1) and number of runs for each figure."""
    lines = runs.groupby(LINE, sort=False)
    figures = lines[[*MEASURES, "gain"]].agg(["mean", "std", "count"])
    figures.columns = ["_".join(names) for names in figures.columns]
    rest = lines.agg(n=("seed", "size"), seconds=("seconds", "mean"), **{x: (x, "first") for x in PUBLISHED_MEASURES})
    return figures.join(rest).reset_index()


def tables(runs: pd.DataFrame, baseline: str) -> dict[str, pd.DataFrame]:
    """Average over seeds, in words: a table for each data set, family and backbone, by its heading."""
    columns = {"n": ("seed", "size")}
    columns |= {head: (name, words) for name, head in MEASURES.items()}
    columns |= {f"gain over {baseline}": ("gain", partial(words, sign="+"))}
    columns |= {head: (name, lambda same: words(same[:1])) for name, head in PUBLISHED_MEASURES.items()}
    columns |= {"iterations": ("iterations", lambda counts: ", ".join(map(str, sorted(set(counts)))))}
    columns |= {"seconds": ("seconds", lambda seconds: f"{seconds.mean():.0f}")}
    text = runs.groupby(LINE, sort=False).agg(**columns).reset_index().astype(str)
    text = text.rename(columns={"num_labeled": "labeled"})
    parts = {heading(*names): part.drop(columns=SECTION) for names, part in text.groupby(SECTION, sort=False)}
    return {title: part.loc[:, (part != "-").any()] for title, part in parts.items()}


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


def show(console: Console, title: str, table: pd.DataFrame) -> None:
    """Print a table of words; a terminal too narrow for it loses columns, never parts of words."""
    widths = {name: max(map(len, [*fill(name, 13).split("\n"), *table[name]])) for name in table}
    for name in DISPENSABLE:
        if sum(widths.values()) + 2 * len(widths) - 2 > console.width:
            widths.pop(name, None)
    grid = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in widths:
        grid.add_column(fill(name, 13), justify="left" if name in WORDS else "right", no_wrap=True)
    for line in table[list(widths)].to_numpy():
        grid.add_row(*line)
    note = " (all columns in report.md)" if len(widths) < len(table.columns) else ""
    console.print(f"\n{title}{note}\n", style="bold")
    console.print(grid)


def plot(table: pd.DataFrame) -> Figure:
    """Draw last-epoch mIoU over labeled images: axes for each data set and family, a line for each method."""
    table = table.assign(look=pd.factorize(table.method)[0])  # a method looks alike in all axes
    sections = table.groupby(SECTION[:2], sort=False)
    figure = Figure(figsize=(8, 3.8 * len(sections)), dpi=150, layout="constrained")
    for axes, (names, lines) in zip(figure.subplots(len(sections), squeeze=False).flat, sections, strict=True):
        draw_methods(axes, lines)
        draw_published(axes, lines)
        counts = sorted(set(lines.num_labeled))
        axes.set(xlabel="labeled images", ylabel="mIoU (%), last epoch", xscale="log")
        axes.set_title(heading(*names), loc="left")
        axes.set_xlim(counts[0] / 1.3, counts[-1] * 1.3)
        axes.set_xticks(counts, labels=counts)
        axes.set_xticks([], minor=True)
        axes.grid(color="0.9")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def draw_methods(axes: Axes, lines: pd.DataFrame) -> None:
    """Draw a line with error bars for each method and backbone, slightly apart so that none hides another."""
    groups = lines.groupby(["backbone", "method"], sort=False)
    dashes = dict(zip(lines.backbone.unique(), cycle(["-", "--", ":", "-."]), strict=False))
    for number, ((backbone, method), line) in enumerate(groups):
        look = line["look"].iloc[0]
        style = {"color": f"C{look}", "marker": "osD^vP*X<>p"[look % 11], "linestyle": dashes[backbone], "capsize": 3}
        x = line.num_labeled * 1.015 ** (number - (len(groups) - 1) / 2)
        axes.errorbar(x, line.miou_last_mean, line.miou_last_std, label=f"{method}, {backbone}", **style)


def draw_published(axes: Axes, lines: pd.DataFrame) -> None:
    """Draw the published figures at the counts that were run, as hollow markers."""
    for (name, label), marker in zip(PUBLISHED_MEASURES.items(), "os", strict=True):
        points = lines[["num_labeled", name]].dropna().drop_duplicates()
        if len(points):
            axes.plot(*points.to_numpy().T, marker, markersize=9, fillstyle="none", color="0.25", label=label)
