"""Plots of runs: mIoU over the number of labels, and curves over the steps of a training."""

import re
from collections.abc import Iterable, Mapping
from itertools import cycle
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pcr_seg.report.tables import PUBLISHED_MEASURES, SECTION, heading

MOST_POINTS = 200  # points of a curve; a longer one shows means of intervals
NAMES = {  # what a logged key means; any other key is called by its last part
    "mIoU": "mIoU in %",
    "pseudo/coverage": "pseudo-labels: share of val pixels that get one",
    "pseudo/precision": "pseudo-labels: share of these that is right",
    "train/confident": "pseudo-labels: share of unlabeled pixels that get one",
    "train/lr": "learning rate",
    "prototypes/usage_entropy": "how evenly prototypes are used, 0 to 1",
    "prototypes/dead": "prototypes that no feature is nearest to",
    "diagnosis/coverage": "pseudo-labels: share of pixels that get one, by masks set aside",
    "diagnosis/precision": "pseudo-labels: share of these that is right, by masks set aside",
    "diagnosis/within_class": "distance of features within a class",
    "diagnosis/between_class": "distance of features between classes",
    "val/miou": "linear head",
    "val/miou_prototype": "prototype head",
}
CHARTS = {  # keys of one run that share axes; every other key has axes of its own
    "losses": r"train/.+_loss",
    "mIoU": r"val/miou.*",
    "pseudo-labels": r"pseudo/.+|train/(confident|pseudo_.+)",
}


def miou_over_labels(table: pd.DataFrame) -> Figure:
    """Draw last-epoch mIoU over labeled images: axes for each data set and family, a line for each method."""
    sections = sections_of(table)
    figure = Figure(figsize=(8, 3.8 * len(sections)), dpi=150, layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(len(sections), squeeze=False).flat, sections, strict=True):
        draw_section(axes, lines)
        axes.set_title(title, loc="left")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def sections_of(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Divide the lines of an `aggregate` by data set and split family; return each part with its heading."""
    table = table.assign(look=pd.factorize(table.method)[0])  # so that a method has the same color in all axes
    sections = table.groupby(SECTION[:2], sort=False)
    return [(heading(*names, *only_backbone(lines)), lines) for names, lines in sections]


def draw_section(axes: Axes, lines: pd.DataFrame) -> None:
    """Draw the methods of one section, and the published figures at the same counts."""
    draw_methods(axes, lines)
    draw_published(axes, lines)
    counts = sorted(set(lines.num_labeled))
    axes.set(xlabel="labeled images", ylabel="mIoU (%), last epoch", xscale="log")
    axes.set_xlim(counts[0] / 1.3, counts[-1] * 1.3)
    axes.set_xticks(counts, labels=counts)
    axes.set_xticks([], minor=True)
    axes.grid(color="0.9")


def draw_methods(axes: Axes, lines: pd.DataFrame) -> None:
    """Draw a line with error bars for each method and backbone, slightly apart so that none hides another."""
    groups = lines.groupby(["backbone", "method"], sort=False)
    named = not only_backbone(lines)
    dashes = dict(zip(lines.backbone.unique(), cycle(["-", "--", ":", "-."]), strict=False))
    for number, ((backbone, method), line) in enumerate(groups):
        look = line["look"].iloc[0]
        style = {"color": f"C{look}", "marker": "osD^vP*X<>p"[look % 11], "linestyle": dashes[backbone], "capsize": 3}
        x = line.num_labeled * 1.015 ** (number - (len(groups) - 1) / 2)
        label = f"{method}, {backbone}" if named else method
        axes.errorbar(x, line.miou_last_mean, line.miou_last_std, label=label, **style)


def only_backbone(lines: pd.DataFrame) -> list[str]:
    """Return the backbone of all lines, for their heading; [] if there are several, which the lines then name."""
    names = list(lines.backbone.unique())
    return names if len(names) == 1 else []


def draw_published(axes: Axes, lines: pd.DataFrame) -> None:
    """Draw the published figures at the counts that were run, as hollow markers."""
    for (name, label), marker in zip(PUBLISHED_MEASURES.items(), "osD", strict=True):
        points = lines[["num_labeled", name]].dropna().drop_duplicates()
        if len(points):
            axes.plot(*points.to_numpy().T, marker, markersize=9, fillstyle="none", color="0.25", label=label)


def title_of(key: str) -> str:
    """Return in words what a logged key means."""
    return NAMES.get(key) or key.rpartition("/")[2].removesuffix("_loss").replace("_", " ")


def telling(values: pd.Series) -> bool:
    """Whether a curve is worth showing: it has more than one point, and is not 0 everywhere."""
    return len(values) > 1 and bool((values != 0).any())


def metrics(folder: Path) -> dict[str, pd.Series]:
    """Read the curves of a run's metrics.csv: values over steps, by key, IoU in percent. {} if there is no file."""
    file = folder / "metrics.csv"
    if not file.is_file():
        return {}
    table = pd.read_csv(file).set_index("step").drop(columns="epoch", errors="ignore").sort_index(axis=1)
    found = {key: values.dropna() for key, values in table.items() if values.notna().any()}
    return {key: values * 100 if key.startswith(("val/miou", "val/iou")) else values for key, values in found.items()}


def charts(keys: Iterable[str]) -> dict[str, list[str]]:
    """Group keys that share axes, by the axes' title; the IoU of single classes is left out, as tables show it."""
    shared = {}
    for key in keys:
        if not key.startswith("val/iou"):
            title = next((title for title, pattern in CHARTS.items() if re.fullmatch(pattern, key)), key)
            shared.setdefault(title, []).append(key)
    order = [*CHARTS, *sorted(shared)]
    return {title: shared[title] for title in sorted(shared, key=order.index)}


def curves(folders: Mapping[str, Path]) -> Figure:
    """Draw each key that runs log: axes for each key, a line for each run, named by the folders' keys."""
    runs = {name: metrics(folder) for name, folder in folders.items()}
    keys = [key for keys in charts(sorted({key for run in runs.values() for key in run})).values() for key in keys]
    rows = max(1, -(-len(keys) // 3))
    figure = Figure(figsize=(12, 2.7 * rows), dpi=150, layout="constrained")
    for axes, key in zip(
        figure.subplots(rows, 3, squeeze=False).flat, [*keys, *[None] * (3 * rows - len(keys))], strict=True
    ):
        if key is None:
            axes.set_axis_off()
        else:
            draw_curves(axes, {name: run.get(key) for name, run in runs.items()})
            axes.set_title(key, loc="left", fontsize="medium")
    handles = [Line2D([], [], color=f"C{i}") for i in range(len(runs))]
    columns = min(len(runs), max(1, 120 // max(map(len, runs))))  # names can be long, with settings in them
    figure.legend(handles, runs, loc="outside upper center", ncols=columns, frameon=False)
    return figure


def draw_curves(axes: Axes, curves: Mapping[str, pd.Series | None]) -> None:
    """Draw curves over steps, colored in their order; a long one as means of intervals of steps."""
    for number, (name, values) in enumerate(curves.items()):
        if values is None:
            continue
        if len(values) > MOST_POINTS:
            width = -(-(values.index[-1] + 1) // MOST_POINTS)
            values = values.groupby(values.index // width * width + width // 2).mean()
        marker = "o" if len(values) <= 12 else None
        axes.plot(values.index, values, label=name, color=f"C{number}", marker=marker, markersize=3.5, linewidth=1.4)
    axes.set_xlabel("step")
    axes.margins(y=0.08)
    axes.grid(color="0.9")
