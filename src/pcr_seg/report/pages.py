"""HTML pages of a run, of a comparison of runs, and of images to label.

Each is a single file without scripts that loads nothing from a network; colors follow the browser's light or dark mode.
"""

import base64
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from types import MappingProxyType

import matplotlib
import pandas as pd
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from pcr_seg.report import plots
from pcr_seg.report.tables import (
    COSTS,
    LINE,
    WORDS,
    aggregate,
    class_gains,
    heading,
    one_run_each,
    paired,
    read,
    side_by_side,
    tables,
    words,
)

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
    lstrip_blocks=True,
)  # fmt: skip
TEMPLATES.globals |= {"WORDS": WORDS}


def run_page(folder: Path) -> str:
    """Return the page of one run, from its folder alone; parts whose files an older run lacks are left out."""
    details = folder / "details.json"
    details = json.loads(details.read_text(encoding="utf-8")) if details.is_file() else {}
    config = folder / "config.yaml"
    curves = plots.metrics(folder)
    last = {key: values.iloc[-1] for key, values in curves.items() if not key.startswith("val/iou")}
    curves = {key: values for key, values in curves.items() if plots.telling(values)}
    return TEMPLATES.get_template("run.html").render(
        summary=read(folder),
        command=command(folder),
        charts={
            plots.title_of(title): chart({plots.title_of(key).rpartition(": ")[2]: curves[key] for key in keys}, title)
            for title, keys in plots.charts(curves).items()
        },
        last=last,
        details=details,
        examples=[
            example | {"pictures": {title: picture(folder / file) for title, file in example["pictures"].items()}}
            for example in details.get("examples", [])
        ],
        legend=list(zip(details.get("classes", []), details.get("palette", []), strict=True)),
        confused={(cell["truth"], cell["prediction"]): cell for cell in details.get("confused", [])},
        evaluations=evaluations(folder),
        panel=picture(folder / "panel.png"),
        prototypes=[view | {"crops": picture(folder / f"prototypes/{view['label']}_{view['number']}.jpg")}
                    for view in details.get("prototypes", [])],
        config=config.read_text(encoding="utf-8") if config.is_file() else None,
    )  # fmt: skip


def evaluations(folder: Path) -> list[dict]:
    """Read the results of eval.py in a run folder, the newest last; those with a threshold get a chart."""
    found = []
    for file in sorted(folder.glob("eval_*.json"), key=lambda file: file.stat().st_mtime):
        result = json.loads(file.read_text(encoding="utf-8"))
        best = result.get("threshold")
        found.append(result | {"chart": threshold_chart(best["curve"]) if best else None})
    return found


def threshold_chart(curve: Sequence[Sequence[float]]) -> Markup:
    """Draw precision over recall as SVG, from rows of (threshold, precision, recall)."""
    figure = Figure(figsize=(4.2, 2.9), layout="constrained")
    axes = figure.subplots()
    _, precision, recall = zip(*curve, strict=True)
    axes.plot(recall, precision, label="precision at recall", color="C0", linewidth=1.4)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.grid(color="0.9")
    return svg(figure, "precision over recall")


def sweep_page(runs: pd.DataFrame, left_out: Sequence[str], links: Mapping[Path, str] = MappingProxyType({})) -> str:
    """Return the page that compares runs, from the rows of `compare`.

    Args:
        runs: a row for each run.
        left_out: sentences on which folders were left out, and why.
        links: the page of each run, by its folder.
    """
    table = aggregate(runs)
    by_method = {
        method: {key: values for key, values in plots.metrics(folder).items() if plots.telling(values)}
        for method, folder in one_run_each(runs).items()
    }
    keys = sorted({key for curves in by_method.values() for key in curves})
    first_baseline = next((name for name in runs.method.unique() if f"gain_over_{name}" in runs), None)
    return TEMPLATES.get_template("sweep.html").render(
        runs=runs,
        tables={title: part.drop(columns=["iterations", *COSTS.values()], errors="ignore")
                for title, part in tables(runs).items()},
        plots={title: labels_chart(lines) for title, lines in plots.sections_of(table)
               if lines.num_labeled.nunique() > 1},
        paired=paired(runs),
        side_by_side=side_by_side(runs),
        baseline=first_baseline,
        class_gains=class_gains(runs, first_baseline) if first_baseline else {},
        costs={title: part[[c for c in ("labeled", "method", "n", "iterations", *COSTS.values()) if c in part]]
               for title, part in tables(runs).items()},
        diagnosis=diagnosis(runs),
        pictures=pictures_side_by_side(one_run_each(runs)),
        links=links,
        single=bool((runs.groupby(LINE).size() == 1).all()),
        curves_of=", ".join(f"{method}: {folder}" for method, folder in one_run_each(runs).items()),
        charts={chart_title(key): chart({method: curves.get(key) for method, curves in by_method.items()}, key)
                for some in plots.charts(keys).values() for key in some},
        left_out=left_out,
    )  # fmt: skip


def choice_page(
    title: str, about: str, figures: Sequence[tuple[str, bytes, bytes]], legend: Sequence[tuple[str, Sequence[int]]]
) -> str:
    """Return the page of images to label next.

    Args:
        title: of the page.
        about: a sentence below it.
        figures: for each image a caption, the photo and its prediction, both the content of a JPEG file.
        legend: name and color (R, G, B) of each class.
    """
    shown = [(caption, *(data_uri(file, "jpeg") for file in files)) for caption, *files in figures]
    return TEMPLATES.get_template("choice.html").render(title=title, about=about, figures=shown, legend=legend)


def chart_title(key: str) -> str:
    """Return the title of the axes that show one logged key."""
    kind = "mIoU in %, " if key.startswith("val/miou") else "loss, " if key.endswith("_loss") else ""
    return kind + plots.title_of(key)


def pictures_side_by_side(folders: Mapping[str, Path]) -> list[dict[str, str]]:
    """Return, for each image that all runs show, its pictures by title: image, truth, and each run's linear head."""
    shown: dict[str, dict[str, str]] = {}
    for method, folder in folders.items():
        details = folder / "details.json"
        details = json.loads(details.read_text(encoding="utf-8")) if details.is_file() else {}
        for example in details.get("examples", []):
            if "fixed" in example["why"]:
                files = {title: folder / file for title, file in example["pictures"].items()}
                row = shown.setdefault(example["name"], {title: picture(files[title]) for title in ("image", "truth")})
                row[method] = picture(files["linear head"])
    return [row for row in shown.values() if len(row) == 2 + len(folders)]


def diagnosis(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return tables of the last values of what else the runs have logged: pseudo-labels, prototypes, diagnosis.

    Losses and scores are left out, since the page has them elsewhere. There is a table for each heading, and a row in
    it for each line of runs.
    """
    last = []
    for folder in runs.folder:
        curves = plots.metrics(folder)
        named = {key: values.iloc[-1] for key, values in curves.items()}
        last.append(
            {k: v for k, v in named.items() if not re.fullmatch(r"val/m?iou.*|train/(.+_loss|lr|images_.+)", k)}
        )
    figures = pd.DataFrame(last, index=runs.index)
    parts = {}
    for names, line in runs.groupby(LINE, sort=False):
        row = {"labeled": str(names[3]), "method": names[5]}
        row |= {plots.title_of(key): words(values) for key, values in figures.loc[line.index].items()}
        parts.setdefault(heading(*names[:3]), []).append(row)
    parts = {title: pd.DataFrame(rows) for title, rows in parts.items()}
    return {
        title: part.loc[:, (part != "-").any()]
        for title, part in parts.items()
        if (part.iloc[:, 2:] != "-").any(axis=None)
    }


def command(folder: Path) -> str | None:
    """Return the command that trains this run again, with splits as people type them, without Hydra's quotes."""
    file = folder / ".hydra/overrides.yaml"
    if not file.is_file():
        return None
    overrides = [
        re.sub(r"^(split(?:\.labeled)?)='([^']*)'$", r"\1=\2", str(x)) for x in yaml.safe_load(file.read_text()) or []
    ]
    return shlex.join(["python", "train.py", *overrides])


def chart(curves: dict[str, pd.Series | None], title: str) -> Markup:
    """Draw curves as SVG, with a legend if there are several."""
    figure = Figure(figsize=(4.2, 2.6), layout="constrained")
    axes = figure.subplots()
    plots.draw_curves(axes, curves)
    if title == "mIoU" or title.startswith("val/miou"):
        axes.set_ylabel("%")
    if len(curves) > 1:
        columns = 3 if max(map(len, curves)) < 16 else 1
        figure.legend(loc="outside upper left", ncols=columns, frameon=False, fontsize="small", handlelength=1.2)
    return svg(figure, title)


def labels_chart(lines: pd.DataFrame) -> Markup:
    """Draw one section of `plots.miou_over_labels` as SVG, with the legend above."""
    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    plots.draw_section(figure.subplots(), lines)
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize="small")
    return svg(figure, "mIoU over labeled images")


def svg(figure: Figure, title: str) -> Markup:
    """Return a figure as inline SVG, in the page's font and colors; hovering over a point shows its values."""
    file = StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    colors = {"#000000": "currentColor", "#e6e6e6": "var(--line)", "#404040": "currentColor"}
    colors |= {to_hex(f"C{number}"): f"var(--c{number}, {to_hex(f'C{number}')})" for number in range(10)}
    for color, themed in colors.items():
        text = text.replace(color, themed)
    height = figure.get_figheight() * 72
    hits = []
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            line = handle[0] if isinstance(handle, tuple) else handle  # an errorbar's first part is its line
            places = axes.transData.transform(line.get_xydata()) * 72 / figure.dpi
            for (x, y), (at, value) in zip(places, line.get_xydata(), strict=True):
                words = escape(f"{label}: {value:.4g} at {at:.4g}")
                hits.append(f'<circle cx="{x:.1f}" cy="{height - y:.1f}" r="5"><title>{words}</title></circle>')
    start, end = text.index("<svg"), text.rindex("</svg>")
    label = f'<svg role="img" aria-label="{escape(title)}"'
    return Markup(text[start:end].replace("<svg", label, 1) + f'<g class="hits">{"".join(hits)}</g></svg>')


def picture(file: Path) -> str | None:
    """Return an image file as a data URI; None if there is no such file."""
    return data_uri(file.read_bytes(), "png" if file.suffix == ".png" else "jpeg") if file.is_file() else None


def data_uri(content: bytes, kind: str) -> str:
    """Return the content of an image file, of kind "png" or "jpeg", as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
