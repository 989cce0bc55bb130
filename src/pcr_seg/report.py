"""From run folders to one table and one plot.

A run folder is one seed of one method at one split; what it reached stands in its `summary.json`. Runs that
differ only in the seed become one line: mean and standard deviation (n-1) over the seeds. Data sets, split
families and backbones are never mixed in a line of a table or of the plot.

mIoU is a fraction (0..1) in `summary.json` and in the rows of `collect`, a percentage everywhere else.
"""

import csv
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from glob import glob
from itertools import accumulate, groupby
from pathlib import Path
from statistics import fmean, stdev
from textwrap import fill

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

Row = dict[str, object]
Part = tuple[str, list[list[str]]]  # heading; lines of a table, the first one its head

# What the runs of one line have in common, in the order of the table.
GROUP = ("dataset", "split_family", "backbone", "num_labeled", "split", "method")
CELL = GROUP[:-1]  # what the methods of one comparison have in common
SECTION = GROUP[:3]  # what stands under one heading
AXES = GROUP[:2]  # what is drawn into one coordinate system

FIGURES = ("miou_last", "miou_prototype_last", "miou_best")
NUMBERS = ("seed", "num_labeled", "iterations", "seconds")
LAST, PROTOTYPE, BEST = "mIoU, last epoch", "prototype head, last epoch", "best epoch (chosen on val)"
HEADING = "mIoU in %, mean ± std over seeds"
WORDS = ("split", "method", "in %")  # columns of words; all others hold figures
ABSENT = "-"

# mIoU in % by number of labeled images: (the paper, the authors' released checkpoint), both with ResNet-101.
# Source: rows "paper" and "this repo" in the README of github.com/HeimingX/semi_seg_proto, the authors' code
# for Xu et al., "Semi-supervised Semantic Segmentation with Prototype-based Consistency Regularization",
# NeurIPS 2022. VOC blender is left out: none of its figures could be verified.
PUBLISHED = {
    ("voc", "u2pl"): {
        92: (70.06, 70.78),
        183: (74.71, 74.65),
        366: (77.16, 76.77),
        732: (78.49, 78.70),
        1464: (80.65, 80.18),
    },
    ("cityscapes", "u2pl"): {
        186: (73.41, 73.99),
        372: (76.31, 77.10),
        744: (78.40, 78.58),
        1488: (79.11, 79.55),
    },
}


def report(pattern: str, output: str | Path, baseline: str = "supervised") -> None:
    """Prints what the runs under `pattern` reached and writes it to the folder `output`.

    Raises:
        ValueError: the pattern names no finished run.
    """
    rows, skipped = collect(pattern)
    table = aggregate(rows, baseline)
    left_out = _left_out(skipped)
    write(output, rows, table, [markdown(table), side_by_side(rows, baseline), left_out])
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 160  # a pipe has no width of its own, and rich's 80 would cost it columns
    console.print(f"{HEADING}:")
    for title, lines in _tables(table) + _comparisons(rows, baseline):
        console.print(_rich_table(title, lines, console.width))
    for line in filter(None, [left_out, f"Written to {output}: report.md, report.csv, report.png, runs.csv"]):
        console.print(line, soft_wrap=True)


def collect(pattern: str) -> tuple[list[Row], list[str]]:
    """Reads every run folder that a glob names or that lies anywhere below a folder it names.

    Args:
        pattern: for example `runs/*`; `**` and `~` are understood.

    Returns:
        One dict for each finished run: the keys of `summary.json`, and `folder`. And one line for each folder
        left out: unfinished, unreadable, or older than another run of the same method, split and seed.

    Raises:
        ValueError: the pattern names no finished run.
    """
    finished, unfinished = _find(sorted(glob(os.path.expanduser(pattern), recursive=True)))
    rows, skipped = {}, [f"`{folder}` (no summary.json)" for folder in unfinished]
    # oldest first, so that the newest of equal runs stays
    for folder in sorted(finished, key=lambda folder: (folder / "summary.json").stat().st_mtime_ns):
        try:
            row = _read(folder / "summary.json")
        except ValueError as error:
            skipped.append(f"`{folder}` ({error})")
            continue
        key = (*_pick(row, GROUP), row["seed"])
        if key in rows:
            skipped.append(f"`{rows[key]['folder']}` (same method, split and seed as the newer `{folder}`)")
        rows[key] = row
    if not rows:
        raise ValueError(
            f"no finished run under runs={pattern!r}{': ' + skipped[0] if skipped else ''}; "
            "give a glob of run folders, such as runs='runs/*'; train.py writes their summary.json at its end"
        )
    return [rows[key] for key in sorted(rows)], skipped


def aggregate(rows: Sequence[Row], baseline: str = "supervised") -> list[Row]:
    """Means over seeds.

    Args:
        rows: runs as `collect` returns them.
        baseline: the method that gains are counted from, seed by seed, within the same data set, family,
            backbone and split.

    Returns:
        One dict for each line of the table, in its order: the keys of `GROUP`; `n` runs; `seeds`; mean and
        sample standard deviation in percent (`miou_last`, `miou_last_std`, and so on for `FIGURES` and
        `gain`; None where there is nothing to average, the deviation also for n = 1); `iterations`, "min-max"
        where the runs differ; `seconds`; `published_paper`, `published_checkpoint`; `gain_n` pairs;
        `baseline`.
    """
    ordered = sorted(rows, key=lambda row: (*_pick(row, CELL), *_method_order(row["method"], baseline), row["seed"]))
    lines = []
    for key, runs in _groups(ordered, GROUP):
        reference = [row for row in rows if _pick(row, GROUP) == (*key[:-1], baseline)]
        gains = _differences(runs, reference) if key[-1] != baseline else []
        gain = dict(zip(("gain", "gain_std"), _mean_std(gains), strict=True))
        lines.append(_summary(runs) | gain | {"gain_n": len(gains), "baseline": baseline})
    return lines


def markdown(table: Sequence[Row]) -> str:
    """The lines of `aggregate` as Markdown: one table for each data set, family and backbone.

    Columns without any entry are left out.
    """
    parts = [f"## {title}\n\n{_markdown_table(lines)}" for title, lines in _tables(table)]
    return "\n\n".join([f"# {HEADING}", *parts])


def side_by_side(rows: Sequence[Row], baseline: str = "supervised") -> str:
    """Two methods next to each other, with the IoU of each class, as Markdown.

    The difference is taken seed by seed and then averaged; methods that share no seed show none.

    Returns:
        An empty text unless the runs are of exactly two methods that meet at a split.
    """
    parts = [f"## {title}\n\n{_markdown_table(lines)}" for title, lines in _comparisons(rows, baseline)]
    return "\n\n".join(["# Side by side", *parts]) if parts else ""


def plot(table: Sequence[Row]) -> Figure:
    """Draws the mIoU of the last epoch over the number of labels.

    One coordinate system for each data set and family, one line with error bars (std) for each method and
    backbone, the published figures as hollow markers.

    Args:
        table: lines of `aggregate`.
    """
    names = _line_names(table)
    sections = list(_groups(table, AXES))
    columns = min(3, len(sections))
    num_rows = math.ceil(len(sections) / columns)
    figure = Figure(figsize=(4.2 * columns + 2.4, 3.6 * num_rows), dpi=150, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    handles = {}
    for number, (section, lines) in enumerate(sections, start=1):
        axes = figure.add_subplot(num_rows, columns, number)
        handles |= _draw_lines(axes, lines, names) | _draw_published(axes, lines)
        _dress(axes, _title(section), lines)
    # one order for all coordinate systems, the published figures last
    handles = {name: handles[name] for name in sorted(handles, key=lambda name: _rank(name, names))}
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", frameon=False, fontsize=10)
    return figure


def write(output: str | Path, rows: Sequence[Row], table: Sequence[Row], texts: Sequence[str]) -> None:
    """Writes the folder `output`: report.md, report.csv, runs.csv, report.png.

    Percent in all of them; an empty field of a CSV file means that there is no such figure.

    Args:
        output: made if it is not there.
        rows: runs as `collect` returns them, for runs.csv.
        table: lines of `aggregate`, for report.csv and report.png.
        texts: parts of report.md, such as `markdown(table)`; empty ones are skipped.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "report.md").write_text("\n\n".join(filter(None, texts)) + "\n", encoding="utf-8")
    _write_csv(output / "report.csv", table)
    flat = [{name: value for name, value in row.items() if not isinstance(value, dict)} for row in rows]
    percent = [row | {name: 100 * row[name] for name in FIGURES if row[name] is not None} for row in flat]
    _write_csv(output / "runs.csv", percent)
    plot(table).savefig(output / "report.png")


def _find(matches: Iterable[str]) -> tuple[list[Path], list[Path]]:
    """Run folders at and below the matches of a glob, each once: with a summary.json, and without."""
    finished, unfinished, seen = [], [], set()
    for match in map(Path, matches):
        if match.is_file() and match.name != "summary.json":
            continue
        top = match.parent if match.is_file() else match
        for folder in list(_run_folders(top)) or [top]:
            resolved = folder.resolve()  # a link to the latest run is no second run
            if resolved in seen:
                continue
            if (folder / "summary.json").is_file():
                finished.append(folder)
            elif not any(parent in seen for parent in resolved.parents):
                unfinished.append(folder)
            seen.add(resolved)
    return finished, unfinished


def _run_folders(top: Path) -> Iterator[Path]:
    """Folders from `top` down that hold a summary.json or the config.yaml of a run; outer ones first."""
    for path, folders, files in os.walk(top):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if "summary.json" in files or "config.yaml" in files:
            yield Path(path)


def _read(path: Path) -> Row:
    """One summary, checked as far as the table needs it.

    Raises:
        ValueError: what is wrong with it, in a few words.
    """
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ValueError("summary.json is not readable JSON") from None
    missing = [name for name in (*GROUP, *NUMBERS, *FIGURES) if not isinstance(row, dict) or name not in row]
    if missing:
        raise ValueError(f"summary.json lacks {', '.join(dict.fromkeys(missing))}")
    for name in (*NUMBERS, *FIGURES):
        if _wrong(name, row[name]):
            raise ValueError(f"summary.json has {name}={row[name]}")
    # a split such as 92 may come as a number, and a data set without families has none
    text = {name: str("" if row[name] is None else row[name]) for name in GROUP if name != "num_labeled"}
    iou = row["iou"] if isinstance(row.get("iou"), dict) else {}
    return row | text | {"iou": iou, "folder": str(path.parent)}


def _wrong(name: str, value: object) -> bool:
    if value is None:  # only the last epoch of the linear head is sure to be there
        return name not in FIGURES[1:]
    if not isinstance(value, int | float) or not math.isfinite(value):
        return True
    return not 0 <= value <= 1 if name in FIGURES else name == "num_labeled" and value < 1


def _pick(row: Row, names: Iterable[str]) -> tuple:
    return tuple(row[name] for name in names)


def _groups(rows: Iterable[Row], names: Sequence[str]) -> Iterator[tuple[tuple, list[Row]]]:
    """Neighbours that agree in `names`; the rows come sorted by them."""
    return ((key, list(group)) for key, group in groupby(rows, key=lambda row: _pick(row, names)))


def _method_order(method: str, baseline: str) -> tuple:
    """The baseline first, PCR and what is built on it last."""
    return method != baseline, method.startswith("pcr"), method


def _mean_std(fractions: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation in percent; a figure that a run lacks has no mean."""
    if not fractions or None in fractions:
        return None, None
    return 100 * fmean(fractions), 100 * stdev(fractions) if len(fractions) > 1 else None


def _differences(runs: Iterable[Row], reference: Iterable[Row], name: str = LAST) -> list[float]:
    """Runs minus reference for each seed that both have, as fractions."""
    base = {run["seed"]: _figures(run).get(name) for run in reference}
    pairs = [(_figures(run).get(name), base.get(run["seed"])) for run in runs]
    return [value - other for value, other in pairs if value is not None and other is not None]


def _figures(run: Row) -> dict[str, float | None]:
    """All fractions of a run by the name a reader sees."""
    return dict(zip((LAST, PROTOTYPE, BEST), _pick(run, FIGURES), strict=True)) | run["iou"]


def _summary(runs: Sequence[Row]) -> Row:
    """The runs of one line (they agree in `GROUP`) as the keys that need no other method."""
    line = {name: runs[0][name] for name in GROUP}
    line |= {"n": len(runs), "seeds": " ".join(str(run["seed"]) for run in runs)}
    for figure in FIGURES:
        line[figure], line[f"{figure}_std"] = _mean_std([run[figure] for run in runs])
    lengths = sorted({run["iterations"] for run in runs})
    # runs of different length do not repeat each other: let it be seen
    line["iterations"] = lengths[0] if len(lengths) == 1 else f"{lengths[0]}-{lengths[-1]}"
    line["seconds"] = fmean(run["seconds"] for run in runs)
    published = PUBLISHED.get(_pick(line, AXES), {}).get(line["num_labeled"], (None, None))
    return line | dict(zip(("published_paper", "published_checkpoint"), published, strict=True))


def _tables(table: Sequence[Row]) -> list[Part]:
    parts = []
    for section, lines in _groups(table, SECTION):
        cells = [_cells(line) for line in lines]
        filled = [name for name in cells[0] if any(line[name] != ABSENT for line in cells)]
        parts.append((_title(section), [filled, *([line[name] for name in filled] for line in cells)]))
    return parts


def _comparisons(rows: Sequence[Row], baseline: str) -> list[Part]:
    methods = sorted({row["method"] for row in rows}, key=lambda method: _method_order(method, baseline))
    if len(methods) != 2:
        return []
    parts = []
    for cell, runs in _groups(rows, CELL):
        first, second = ([run for run in runs if run["method"] == method] for method in methods)
        if first and second:
            parts.append((f"{_title(cell[:3])} · split {cell[4]} ({cell[3]} labeled)", _compare(first, second)))
    return parts


def _compare(first: Sequence[Row], second: Sequence[Row]) -> list[list[str]]:
    """Head and lines of the table of two methods: figure, first, second, difference."""
    lines = [["in %", *(f"{side[0]['method']} (n={len(side)})" for side in (first, second)), "difference"]]
    for name in dict.fromkeys(name for run in (*first, *second) for name in _figures(run)):
        sides = [_show(*_mean_std([_figures(run).get(name) for run in side])) for side in (first, second)]
        if sides != [ABSENT, ABSENT]:
            lines.append([name, *sides, _show(*_mean_std(_differences(second, first, name)), sign="+")])
    return lines


def _cells(line: Row) -> dict[str, str]:
    """One line of `aggregate` as text, by the head of its column."""
    figures = [_show(line[figure], line[f"{figure}_std"]) for figure in FIGURES]
    gain = _show(line["gain"], line["gain_std"], sign="+")
    if 0 < line["gain_n"] < line["n"]:
        gain += f" (n={line['gain_n']})"
    return {
        "split": line["split"],
        "labeled": str(line["num_labeled"]),
        "method": line["method"],
        "n": str(line["n"]),
        **dict(zip((LAST, PROTOTYPE, BEST), figures, strict=True)),
        f"gain over {line['baseline']}": gain,
        "PCR, paper": _show(line["published_paper"], None),
        "PCR, released checkpoint": _show(line["published_checkpoint"], None),
        "iterations": str(line["iterations"]),
        "seconds": f"{line['seconds']:.0f}",
    }


def _show(mean: float | None, std: float | None, sign: str = "") -> str:
    if mean is None:
        return ABSENT
    return f"{mean:{sign}.2f}" + ("" if std is None else f" ± {std:.2f}")


def _markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """The first line is the head. Columns of words stand left, columns of figures right."""
    rule = ["---" if name in WORDS else "---:" for name in lines[0]]
    return "\n".join("| " + " | ".join(line) + " |" for line in (lines[0], rule, *lines[1:]))


def _rich_table(title: str, lines: Sequence[Sequence[str]], width: int) -> Table:
    """The same for a terminal of `width` characters, where rich itself would cut words short."""
    columns = list(zip(*lines, strict=True))
    if sum(_width(column) + 2 for column in columns) > width:
        columns = [[cell.replace(" ± ", "\n± ") for cell in column] for column in columns]
    # what matters most stands left; a narrow terminal ends before the last columns
    fitting = [total <= width for total in accumulate(_width(column) + 2 for column in columns)].count(True)
    note = "" if fitting == len(columns) else " (all columns in report.md)"
    table = Table(title=f"\n{title}{note}", title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    table.pad_edge, table.padding = False, (0, 1, 0, 0)
    for column in columns[:fitting]:
        head = fill(column[0], _width(column), break_on_hyphens=False)
        table.add_column(head, justify="left" if column[0] in WORDS else "right", no_wrap=True)
    for cells in list(zip(*columns[:fitting], strict=True))[1:]:
        table.add_row(*map(Text, cells))  # Text: a class name such as [void] is no markup
    return table


def _width(column: Sequence[str]) -> int:
    """Characters that a column needs when its head, the first cell, is broken at every space."""
    return max(len(part) for part in (*column[0].split(), *"\n".join(column[1:]).split("\n")))


def _title(section: Sequence[str]) -> str:
    """(dataset, family) or (dataset, family, backbone) as a heading."""
    return " · ".join([section[0], *([f"{section[1]} splits"] if section[1] else []), *section[2:]])


def _left_out(skipped: Sequence[str], at_most: int = 10) -> str:
    if not skipped:
        return ""
    more = [f"and {len(skipped) - at_most} more"] if len(skipped) > at_most else []
    return f"Left out ({len(skipped)}): " + "; ".join([*skipped[:at_most], *more])


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})


def _line_names(table: Sequence[Row]) -> dict[tuple, str]:
    """(method, backbone) -> name in the legend, in the order of the legend."""
    keys = {_pick(line, ("method", "backbone")) for line in table}
    keys = sorted(keys, key=lambda key: (*_method_order(key[0], table[0]["baseline"]), key[1]))
    several = len({backbone for _, backbone in keys}) > 1
    return {key: f"{key[0]} ({key[1]})" if several else key[0] for key in keys}


def _rank(name: str, names: dict[tuple, str]) -> int:
    order = list(names.values())
    return order.index(name) if name in order else len(order)


def _draw_lines(axes: Axes, lines: Sequence[Row], names: dict[tuple, str]) -> dict[str, object]:
    """One line with error bars per method and backbone; returns the handles for the legend by name."""
    methods, backbones = (list(dict.fromkeys(part)) for part in zip(*names, strict=True))
    low, high = _span(lines)
    handles = {}
    for number, (key, name) in enumerate(names.items()):
        own = [line for line in lines if _pick(line, ("method", "backbone")) == key]
        if not own:
            continue
        # a little beside each other, so that the error bars do not cover one another
        shift = (high / low) ** (0.012 * (number - (len(names) - 1) / 2))
        handles[name] = axes.errorbar(
            [line["num_labeled"] * shift for line in own],
            [line["miou_last"] for line in own],
            yerr=[math.nan if line["miou_last_std"] is None else line["miou_last_std"] for line in own],
            **_style(methods.index(key[0]), backbones.index(key[1])),
        )
    return handles


def _style(method: int, backbone: int) -> dict[str, object]:
    """Colour and marker tell methods apart, the dashes backbones; 220 methods have a pair of their own."""
    shade, light = method % 10, method // 10 % 2  # tab20 holds ten strong colours, each before its light one
    return {
        "color": matplotlib.colormaps["tab20"](2 * shade + light),
        "marker": "osD^vP*X<>p"[method % 11],
        "linestyle": ("-", "--", ":", "-.")[backbone % 4],
        "linewidth": 1.5,
        "markersize": 5,
        "capsize": 3,
    }


def _draw_published(axes: Axes, lines: Sequence[Row]) -> dict[str, object]:
    """The published figures at the counts that were run; returns the handles for the legend by name."""
    handles = {}
    kinds = (
        ("published_paper", "PCR, paper", "o"),
        ("published_checkpoint", "PCR, released checkpoint", "s"),
    )
    for name, label, marker in kinds:
        points = sorted({(line["num_labeled"], line[name]) for line in lines if line[name] is not None})
        if points:
            x, y = zip(*points, strict=True)
            style = {"marker": marker, "markersize": 9, "fillstyle": "none", "linestyle": "none"}
            [handles[label]] = axes.plot(x, y, color="0.25", **style)
    return handles


def _span(lines: Sequence[Row]) -> tuple[float, float]:
    """Ends of the axis of labels: wide enough for a single count, too."""
    counts = [line["num_labeled"] for line in lines]
    room = max(1.15, (max(counts) / min(counts)) ** 0.1) if len(set(counts)) > 1 else 2
    return min(counts) / room, max(counts) * room


def _dress(axes: Axes, title: str, lines: Sequence[Row]) -> None:
    """Title, logarithmic axis of labels with the counts themselves as ticks, light grid."""
    low, high = _span(lines)
    ticks = []
    for count in sorted({line["num_labeled"] for line in lines}):
        # counts such as 92 and 93 would be written over each other
        if not ticks or math.log(count / ticks[-1]) > 0.1 * math.log(high / low):
            ticks.append(count)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:.0f}"))
    axes.set(title=title, xlabel="labeled images", ylabel="mIoU (%), last epoch")
    axes.margins(y=0.1)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
