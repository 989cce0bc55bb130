"""The report command: tables of runs in the terminal, and a folder with tables, plots and a page."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pcr_seg.report import pages, plots
from pcr_seg.report.tables import (
    COSTS,
    MEASURES,
    PUBLISHED_MEASURES,
    WORDS,
    aggregate,
    collect,
    compare,
    markdown,
    one_run_each,
    paired,
    side_by_side,
    tables,
)

BASELINES = ("supervised", "consistency")
MOST_PAGES = 24  # with more runs none gets a page of its own: each takes a second and a megabyte
# Columns that a narrow terminal leaves out, in this order.
DISPENSABLE = (
    *reversed(COSTS.values()), "iterations", "split", *reversed([*MEASURES.values(), *PUBLISHED_MEASURES.values()]),
)  # fmt: skip


def report(pattern: str, output: str | Path, baselines: Sequence[str] = BASELINES) -> None:
    """Print a comparison of the runs under a glob, and write it into the folder `output`: tables, plots and a page.

    For a single run, report.html is the page of the run.

    Args:
        pattern: a glob of run folders, or of folders above them.
        output: the folder to write into.
        baselines: methods that all others are compared with.

    Raises:
        ValueError: the glob matches no finished run, or none has a baseline's method.
    """
    runs, left_out = collect(pattern)
    if strange := [name for name in baselines if name not in {*runs.method, *BASELINES}]:
        raise ValueError(f"baselines={strange[0]}: no run has this method; choose among {', '.join(set(runs.method))}")
    runs = compare(runs, baselines)
    table, parts = aggregate(runs), tables(runs) | side_by_side(runs)
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    sections = [f"## {title}\n\n{markdown(part)}" for title, part in (parts | paired(runs)).items()]
    text = "\n\n".join(["# mIoU in %, mean ± std over seeds", *sections, *left_out]) + "\n"
    (output / "report.md").write_text(text, encoding="utf-8")
    table.round(4).to_csv(output / "report.csv", index=False)
    runs.drop(columns=["iou", "finished"]).round(4).to_csv(output / "runs.csv", index=False)
    plots.miou_over_labels(table).savefig(output / "report.png")
    plots.curves(one_run_each(runs)).savefig(output / "curves.png")
    page = (
        pages.run_page(runs.folder[0]) if len(runs) == 1 else pages.sweep_page(runs, left_out, run_pages(runs, output))
    )
    (output / "report.html").write_text(page, encoding="utf-8")
    console = Console(highlight=False, markup=False)
    console.print("mIoU in %, mean ± std over seeds")
    for title, part in parts.items():
        show(console, title, part)
    files = "report.html, report.md, report.csv, report.png, runs.csv, curves.png"
    for line in ["", *left_out, f"written to {output}: {files}", f"next: open {output}/report.html in a browser"]:
        console.print(line, soft_wrap=True)


def run_pages(runs: pd.DataFrame, output: Path) -> dict[Path, str]:
    """Write the page of each run into OUTPUT/runs, if there are few; return the links to them, else to the folders."""
    if len(runs) > MOST_PAGES:
        return {folder: folder.absolute().as_uri() for folder in runs.folder}
    (output / "runs").mkdir(exist_ok=True)
    links = {}
    for number, folder in enumerate(runs.folder, 1):
        links[folder] = f"runs/{number}.html"
        (output / links[folder]).write_text(pages.run_page(folder), encoding="utf-8")
    return links


def show(console: Console, title: str, table: pd.DataFrame) -> None:
    """Print a table of text; if the terminal is too narrow, leave out whole columns instead of cutting words."""
    widths = {name: max(map(len, [*fill(name, 13).split("\n"), *table[name]])) for name in table}
    for name in DISPENSABLE:
        if sum(widths.values()) + 2 * len(widths) - 2 > console.width:
            widths.pop(name, None)
    grid = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in widths:
        grid.add_column(fill(name, 13), justify="left" if name in WORDS else "right", no_wrap=name != "method")
    for line in table[list(widths)].to_numpy():
        grid.add_row(*line)
    note = " (all columns in report.md)" if len(widths) < len(table.columns) else ""
    console.print(f"\n{title}{note}\n", style="bold")
    console.print(grid)
