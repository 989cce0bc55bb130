"""From run folders to one table and one plot.

The `summary.json` of every run becomes a line of a DataFrame (`collect`), runs that differ only in the seed become
one line of the table (`aggregate`), and that table becomes Markdown, CSV, terminal and plot. Data sets, split
families and backbones never share a line. mIoU is in percent everywhere but in `summary.json`.
"""

import json
import math
import os
from glob import glob
from pathlib import Path
from textwrap import fill

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

SECTION = ["dataset", "split_family", "backbone"]  # what stands under one heading
CELL = [*SECTION, "num_labeled", "split"]  # what the methods of one comparison share
LINE = [*CELL, "method"]  # what the seeds of one line share

MEASURES = {
    "miou_last": "mIoU, last epoch",
    "miou_prototype_last": "prototype head, last epoch",
    "miou_best": "best epoch (chosen on val)",
}
PUBLISHED_COLUMNS = {"published_paper": "PCR paper (ResNet-101)", "published_checkpoint": "PCR checkpoint (ResNet-101)"}
WORDS = ("split", "method", "in %")  # columns of words stand left, columns of figures right
DROPPED_FIRST = ("seconds", "iterations", "split", *reversed(PUBLISHED_COLUMNS.values()), *reversed(MEASURES.values()))
ABSENT = "-"

# mIoU in % of the paper and of the authors' released checkpoint, both with ResNet-101.
# Source: rows "paper" and "this repo" in the README of github.com/HeimingX/semi_seg_proto, the authors' code
# for Xu et al., "Semi-supervised Semantic Segmentation with Prototype-based Consistency Regularization",
# NeurIPS 2022. VOC blender is left out: none of its figures could be verified.
PUBLISHED = pd.DataFrame(
    [
        ("voc", "u2pl", 92, 70.06, 70.78),
        ("voc", "u2pl", 183, 74.71, 74.65),
        ("voc", "u2pl", 366, 77.16, 76.77),
        ("voc", "u2pl", 732, 78.49, 78.70),
        ("voc", "u2pl", 1464, 80.65, 80.18),
        ("cityscapes", "u2pl", 186, 73.41, 73.99),
        ("cityscapes", "u2pl", 372, 76.31, 77.10),
        ("cityscapes", "u2pl", 744, 78.40, 78.58),
        ("cityscapes", "u2pl", 1488, 79.11, 79.55),
    ],
    columns=["dataset", "split_family", "num_labeled", *PUBLISHED_COLUMNS],
)


def report(pattern: str, output: str | Path, baseline: str = "supervised") -> None:
    """Print what the runs under `pattern` reached, and write it to the folder `output`.

    Args:
        pattern: glob of run folders; runs anywhere below a match count as well.
        output: folder for report.md, report.csv, runs.csv and report.png.
        baseline: method that gains are counted from, seed by seed.

    Raises:
        ValueError: the pattern names no finished run.
    """
    runs, left_out = collect(pattern)
    runs = pair(runs, baseline)
    table = aggregate(runs)
    parts = tables(table, baseline) | side_by_side(runs)
    note = f"Left out: {', '.join(left_out)}" if left_out else ""

    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    sections = [f"## {title}\n\n{markdown(frame)}" for title, frame in parts.items()]
    text = "\n\n".join(["# mIoU in %, mean ± std over seeds", *sections, note]).strip() + "\n"
    (output / "report.md").write_text(text, encoding="utf-8")
    table.round(4).to_csv(output / "report.csv", index=False)
    runs.drop(columns=["iou", "versions"], errors="ignore").round(4).to_csv(output / "runs.csv", index=False)
    plot(table).savefig(output / "report.png")

    console = Console(highlight=False, markup=False)
    console.print("mIoU in %, mean ± std over seeds:")
    for title, frame in parts.items():
        console.print(terminal_table(title, frame, console.width))
    for line in filter(None, [note, f"Written to {output}: report.md, report.csv, runs.csv, report.png"]):
        console.print(line, soft_wrap=True)


# --------------------------------------------------------------------------------------------- runs


def collect(pattern: str) -> tuple[pd.DataFrame, list[str]]:
    """Read every run under a glob: one line per run, and in words which folders were left out and why."""
    runs, left_out = [], []
    for folder in find(pattern):
        try:
            runs.append(read(folder))
        except FileNotFoundError:
            left_out.append(f"{folder} (no summary.json)")
        except KeyError as error:
            left_out.append(f"{folder} (summary.json lacks {error})")
        except (TypeError, ValueError) as error:
            left_out.append(f"{folder} (broken summary.json: {error})")
    if not runs:
        raise ValueError(
            f"runs={pattern!r}: no finished run{': ' + left_out[0] if left_out else ''}; "
            "give a glob of run folders, such as runs='runs/*' (train.py writes their summary.json at its end)"
        )
    runs = pd.DataFrame(runs).sort_values("finished", kind="stable")
    older = runs.duplicated([*LINE, "seed"], keep="last")
    left_out += [f"{folder} (a newer run has its method, split and seed)" for folder in runs.folder[older]]
    return runs[~older], left_out


def find(pattern: str) -> list[Path]:
    """List the run folders at and below the matches of a glob; a match that holds none stands for itself."""
    found = {}  # by their real path: a link to a run is no second run
    for match in map(Path, sorted(glob(os.path.expanduser(pattern), recursive=True))):
        top = match.parent if match.name == "summary.json" else match
        files = [file for name in ("summary.json", "config.yaml") for file in top.rglob(name)]
        folders = sorted({file.parent for file in files if file.parent.name != ".hydra"})
        inside_a_run = not found.keys().isdisjoint(top.resolve().parents)
        if not folders and top.is_dir() and not inside_a_run and not (top / "report.md").is_file():
            folders = [top]
        found |= {folder.resolve(): folder for folder in folders}
    return list(found.values())


def read(folder: Path) -> dict:
    """Read the summary of one run; whatever is wrong with it raises."""
    file = folder / "summary.json"
    summary = json.loads(file.read_text(encoding="utf-8"))
    run = {"folder": str(folder)} | {name: str(summary[name] or "") for name in LINE}
    run |= {name: int(summary[name]) for name in ("num_labeled", "seed", "iterations")}
    run |= {name: math.nan if summary[name] is None else 100 * float(summary[name]) for name in MEASURES}
    if not 0 <= run["miou_last"] <= 100:
        raise ValueError(f"miou_last={summary['miou_last']}")
    finished = pd.Timestamp(file.stat().st_mtime, unit="s").round("s")
    return run | {"seconds": float(summary["seconds"]), "finished": finished, "iou": {}} | summary | run


def pair(runs: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Add what each run gains over the baseline with the same seed; the baseline goes first, PCR last."""
    reference = runs.loc[runs.method == baseline, [*CELL, "seed", "miou_last"]]
    paired = runs.merge(reference, how="left", on=[*CELL, "seed"], suffixes=("", "_baseline"))
    gain = (paired.miou_last - paired.pop("miou_last_baseline")).where(paired.method != baseline)

    def order(column: pd.Series) -> pd.Series:
        rank = {name: f"{name != baseline:d}{name.startswith('pcr'):d}{name}" for name in runs.method}
        return column.map(rank) if column.name == "method" else column

    return paired.assign(gain=gain).sort_values([*LINE, "seed"], key=order, ignore_index=True)


# ------------------------------------------------------------------------------------------- tables


def aggregate(runs: pd.DataFrame) -> pd.DataFrame:
    """Average over seeds: one line per method and split, with the published figures where there are any."""
    lines = runs.groupby(LINE, sort=False)
    table = lines.agg(
        n=("seed", "size"),
        seeds=("seed", lambda seeds: " ".join(map(str, seeds))),
        iterations=("iterations", lambda counts: "-".join(map(str, sorted({counts.min(), counts.max()})))),
        seconds=("seconds", "mean"),
    )
    figures = lines[[*MEASURES, "gain"]].agg(["mean", "std", "count"])
    figures.columns = ["_".join(names) for names in figures.columns]
    return table.join(figures).reset_index().merge(PUBLISHED, how="left")


def tables(table: pd.DataFrame, baseline: str) -> dict[str, pd.DataFrame]:
    """Put the lines of `aggregate` into words: one table for each data set, family and backbone, by its title."""
    parts = {}
    for section, lines in table.groupby(SECTION, sort=False):
        text = {"labeled": lines.num_labeled, "split": lines.split, "method": lines.method, "n": lines.n}
        text |= {head: column(lines, name) for name, head in MEASURES.items()}
        text |= {f"gain over {baseline}": column(lines, "gain", sign="+")}
        text |= {head: [f"{value:.2f}" for value in lines[name]] for name, head in PUBLISHED_COLUMNS.items()}
        text |= {"iterations": lines.iterations, "seconds": lines.seconds.round().astype(int)}
        frame = pd.DataFrame(text).astype(str).replace("nan", ABSENT)
        parts[title(*section)] = frame.loc[:, (frame != ABSENT).any()]
    return parts
