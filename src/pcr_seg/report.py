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
    runs.drop(columns=["finished", "iou", "versions"], errors="ignore").round(4).to_csv(output / "runs.csv", index=False)
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
    run = {"folder": str(folder), "finished": file.stat().st_mtime_ns, "iou": summary.get("iou") or {}}
    run |= {name: str(summary[name] or "") for name in LINE}
    run |= {name: int(summary[name]) for name in ("num_labeled", "seed", "iterations")}
    run |= {name: math.nan if summary[name] is None else 100 * float(summary[name]) for name in MEASURES}
    if not 0 <= run["miou_last"] <= 100:
        raise ValueError(f"miou_last={summary['miou_last']}")
    return summary | run | {"seconds": float(summary["seconds"])}


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
    return table.join(figures).reset_index().merge(PUBLISHED, how="left", on=list(PUBLISHED.columns[:3]))


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


def side_by_side(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Compare two methods with the IoU of each class; nothing unless the runs are of exactly two."""
    parts = {}
    for cell, both in runs.groupby(CELL, sort=False):
        sides = {method: figures(own) for method, own in both.groupby("method", sort=False)}
        if len(sides) == 2 == runs.method.nunique():
            (_, first), (_, second) = sides.items()
            text = {f"{method} (n={len(side)})": side.apply(describe) for method, side in sides.items()}
            frame = pd.DataFrame(text | {"difference": (second - first).apply(describe, sign="+")})
            frame = frame[(frame != ABSENT).any(axis=1)].rename_axis("in %").reset_index()
            parts[f"{title(*cell[:3])} · split {cell[4]} ({cell[3]} labeled)"] = frame
    return parts


def figures(runs: pd.DataFrame) -> pd.DataFrame:
    """Spread one method's runs out: a line per seed, a column for each mIoU and for each class."""
    runs = runs.set_index("seed")
    iou = pd.DataFrame(runs.iou.tolist(), index=runs.index).astype(float) * 100
    return runs[list(MEASURES)].rename(columns=MEASURES).join(iou)


def column(lines: pd.DataFrame, name: str, sign: str = "") -> list[str]:
    """Put mean and std of one figure into words for each line of `aggregate`."""
    parts = lines[[f"{name}_mean", f"{name}_std", f"{name}_count", "n"]]
    return [words(*line, sign=sign) for line in parts.itertuples(index=False)]


def describe(values: pd.Series, sign: str = "") -> str:
    """Put mean and std of some runs into words."""
    return words(values.mean(), values.std(), values.count(), len(values), sign)


def words(mean: float, std: float, count: int, n: int, sign: str = "") -> str:
    """Write mean and std, and over how many runs where some of the n lack the figure."""
    if not count:
        return ABSENT
    return f"{mean:{sign}.2f}" + (f" ± {std:.2f}" if count > 1 else "") + (f" (n={count})" if count < n else "")


def title(dataset: str, family: str, backbone: str = "") -> str:
    """Name a data set, family and backbone in one heading."""
    return " · ".join(filter(None, [dataset, family and f"{family} splits", backbone]))


def markdown(frame: pd.DataFrame) -> str:
    """Write a table as Markdown."""
    rule = ["---" if name in WORDS else "---:" for name in frame]
    return "\n".join(f"| {' | '.join(line)} |" for line in [frame.columns, rule, *frame.values])


def terminal_table(heading: str, frame: pd.DataFrame, width: int) -> Table:
    """Lay a table out for a terminal: what does not fit loses columns, never parts of words."""

    def widths(frame: pd.DataFrame) -> list[int]:
        return [max(map(len, [*fill(name, 13).split("\n"), *frame[name]])) + 2 for name in frame]

    total = len(frame.columns)
    for name in DROPPED_FIRST:
        if sum(widths(frame)) > width:
            frame = frame.drop(columns=name, errors="ignore")
    heading = f"\n{heading}" + (" (all columns in report.md)" if len(frame.columns) < total else "")
    table = Table(title=heading, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.pad_edge = False
    for name in frame:
        table.add_column(fill(name, 13), justify="left" if name in WORDS else "right", no_wrap=True)
    for line in frame.values:
        table.add_row(*line)
    return table


# --------------------------------------------------------------------------------------------- plot


def plot(table: pd.DataFrame) -> Figure:
    """Draw mIoU of the last epoch over labeled images: one coordinate system per data set and family."""
    sections = list(table.groupby(SECTION[:2], sort=False))
    columns = min(3, len(sections))
    rows = math.ceil(len(sections) / columns)
    figure = Figure(figsize=(4.2 * columns + 2.4, 3.6 * rows), dpi=150, layout="constrained")
    styles = line_styles(table)
    for number, (section, lines) in enumerate(sections, start=1):
        axes = figure.add_subplot(rows, columns, number)
        draw_lines(axes, lines, styles)
        draw_published(axes, lines)
        dress(axes, title(*section), sorted(set(lines.num_labeled)))
    drawn = [pair for axes in figure.axes for pair in zip(*axes.get_legend_handles_labels(), strict=True)]
    handles = {label: handle for handle, label in drawn}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", frameon=False)
    return figure


def line_styles(table: pd.DataFrame) -> dict[tuple, dict]:
    """Choose for each (method, backbone): color and marker tell methods apart, dashes backbones."""
    methods, backbones = list(table.method.unique()), list(table.backbone.unique())
    styles = {}
    for method, backbone in table[["method", "backbone"]].drop_duplicates().itertuples(index=False):
        i, k = methods.index(method), backbones.index(backbone)
        styles[method, backbone] = {
            "label": method if len(backbones) == 1 else f"{method} ({backbone})",
            "color": matplotlib.colormaps["tab10"](i % 10),
            "marker": "osD^vP*X<>p"[i % 11],
            "linestyle": ("-", "--", ":", "-.")[k % 4],
        }
    return styles


def draw_lines(axes: Axes, lines: pd.DataFrame, styles: dict[tuple, dict]) -> None:
    """Draw a line with error bars for each method and backbone, side by side so that no bar hides another."""
    for number, (key, style) in enumerate(styles.items()):
        own = lines[(lines.method == key[0]) & (lines.backbone == key[1])]
        if len(own):
            x = own.num_labeled * 1.015 ** (number - (len(styles) - 1) / 2)
            axes.errorbar(x, own.miou_last_mean, yerr=own.miou_last_std, capsize=3, markersize=5, **style)


def draw_published(axes: Axes, lines: pd.DataFrame) -> None:
    """Draw the published figures at the counts that were run, as hollow markers."""
    for (name, label), marker in zip(PUBLISHED_COLUMNS.items(), "os", strict=True):
        points = lines[["num_labeled", name]].dropna().drop_duplicates()
        if len(points):
            style = {"marker": marker, "markersize": 9, "fillstyle": "none", "linestyle": "none", "color": "0.25"}
            axes.plot(points.num_labeled, points[name], label=label, **style)


def dress(axes: Axes, heading: str, counts: list[int]) -> None:
    """Give it a title, a logarithmic axis with the counts themselves as ticks, and a light grid."""
    axes.set(title=heading, xlabel="labeled images", ylabel="mIoU (%), last epoch", xscale="log")
    axes.set_xlim(counts[0] / 1.3, counts[-1] * 1.3)
    axes.set_xticks(counts, labels=map(str, counts))
    axes.set_xticks([], minor=True)
    axes.margins(y=0.1)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
