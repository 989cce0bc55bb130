"""Print the tables of docs/results.md from the rows of evidence.py: means, and paired differences with 95 % intervals.

    python benchmarks/evidence_table.py docs/results/evidence.csv "group=compare;variants" over=consistency
    python benchmarks/evidence_table.py docs/results/evidence.csv group=frequencies "over=consistency, drawn"
    python benchmarks/evidence_table.py docs/results/evidence.csv "uses=pcr projected"

The rows are those of the methods of these groups of benchmarks/evidence.yaml, with the seeds 5 to 14 (`seeds=5:15`).
For voc_animals, on whose half 0 settings were chosen, only half 1 counts (`half=1`); for other sets the mean of both. A
difference is that of a head (linear, prototype, average) to the linear head of the method `over`, with the same labels,
seed by seed; its interval is Student's t. `uses=METHOD` prints how well that method's heads are calibrated, and how
well what they say finds the linear head's wrong pixels.
"""

import sys
from math import sqrt
from pathlib import Path

import pandas as pd
from omegaconf import OmegaConf
from scipy.stats import t

CHOSEN_ON = "voc_animals"
USES = {
    "ece_linear": "ECE linear", "ece_prototype": "ECE prototype", "auroc_confidence": "AUROC 1 - confidence",
    "auroc_disagreement": "AUROC disagreement", "auroc_distance": "AUROC distance",
}  # fmt: skip
PLAN = Path(__file__).with_name("evidence.yaml")


def main(file: str, *arguments: str) -> None:
    """Print a table with a row for each method and a column for each set and number of labels."""
    options = dict(argument.split("=", 1) for argument in arguments)
    first, last = map(int, options.get("seeds", "5:15").split(":"))
    plan = OmegaConf.load(PLAN)
    groups = {group.name: group.methods for group in plan.groups}
    chosen = options["group"].split(";") if "group" in options else groups
    methods = dict.fromkeys(method for name in chosen for method in groups[name])  # in order, each once
    rows = pd.read_csv(file, dtype={"labels": str})
    counts = (rows["set"] != CHOSEN_ON) | (rows.half == int(options.get("half", 1)))
    rows = rows[rows.seed.between(first, last - 1) & counts]
    cells = [(name, labels) for name, chosen in plan.sets.items() for labels in chosen.labels]
    if "uses" in options:
        print_uses(rows[rows.method == options["uses"]].groupby(["set", "labels"])[[*USES]].mean(), cells)
        return
    scores = rows.groupby(["set", "labels", "method", "seed"])[["linear", "prototype", "average"]].mean()
    cells = [cell for cell in cells if cell in scores.index and set(methods) & set(scores.loc[cell].index.unique(0))]
    print(f"| method | {' | '.join(f'{name}, {labels}' for name, labels in cells)} |")
    print("|---" + "|--:" * len(cells) + "|")
    for method in methods:
        row = [entry(scores.loc[cell], method, options["over"], options.get("head", "linear")) for cell in cells]
        if any(row):
            print(f"| {' | '.join([method, *row])} |")


def print_uses(means: pd.DataFrame, cells: list[tuple[str, str]]) -> None:
    """Print a row for each set and number of labels: calibration errors, and how well doubts find wrong pixels."""
    print(f"| set, labels | {' | '.join(USES.values())} |")
    print("|---" + "|--:" * len(USES) + "|")
    for name, labels in cells:
        if (name, labels) in means.index:
            print(f"| {name}, {labels} | {' | '.join(f'{value:.2f}' for value in means.loc[name, labels])} |")


def entry(cell: pd.DataFrame, method: str, over: str, head: str) -> str:
    """Return a method's mean score and its difference to the method `over`, from scores by (method, seed)."""
    if method not in cell.index or (own := cell.loc[method][head].dropna()).empty:
        return ""
    if method == over or over not in cell.index:
        return f"{own.mean():.1f} ± {own.std():.1f}" if len(own) > 2 else f"{own.mean():.1f}"
    pairs = (own - cell.loc[over].linear).dropna()
    return f"{own.mean():.1f} ({difference(pairs)})" if len(pairs) else f"{own.mean():.1f}"


def difference(pairs: pd.Series) -> str:
    """Write the mean of paired differences, with its 95 % interval from three on, and how many are above 0."""
    half = t.ppf(0.975, len(pairs) - 1) * pairs.std() / sqrt(len(pairs)) if len(pairs) > 2 else None
    return f"{pairs.mean():+.1f}{f' ± {half:.1f}' if half else ''}, {(pairs > 0).sum()} of {len(pairs)}"


if __name__ == "__main__":
    main(*sys.argv[1:])
