"""Print the tables of docs/results.md from the rows of evidence.py: means, and paired differences with 95 % intervals.

    python benchmarks/evidence_table.py docs/results/evidence.csv
    python benchmarks/evidence_table.py docs/results/evidence.csv "group=compare;variants" "over=supervised;consistency"

The rows are those of the methods of these groups of benchmarks/evidence.yaml, with the seeds 5 to 14 (`seeds=5:15`).
For voc_animals, on whose half 0 settings were chosen, only half 1 counts (`half=1`); for other sets the mean of both. A
difference is to a method named by `over`, with the same labels, seed by seed; its interval is Student's t.
"""

import sys
from math import sqrt
from pathlib import Path

import pandas as pd
from omegaconf import OmegaConf
from scipy.stats import t

CHOSEN_ON = "voc_animals"
PLAN = Path(__file__).with_name("evidence.yaml")


def main(file: str, *arguments: str) -> None:
    """Print a table for each set and number of labels."""
    options = dict(argument.split("=", 1) for argument in arguments)
    first, last = map(int, options.get("seeds", "5:15").split(":"))
    baselines = options.get("over", "supervised;consistency").split(";")
    groups = {group.name: group.methods for group in OmegaConf.load(PLAN).groups}
    chosen = options["group"].split(";") if "group" in options else groups
    order = {method: place for place, method in enumerate(method for name in chosen for method in groups[name])}
    rows = pd.read_csv(file, dtype={"labels": str})
    counts = (rows["set"] != CHOSEN_ON) | (rows.half == int(options.get("half", 1)))
    rows = rows[rows.seed.between(first, last - 1) & counts & rows.method.isin([*order])]
    rows = rows.sort_values("method", key=lambda methods: methods.map(order), kind="stable")
    scores = rows.groupby(["set", "labels", "method", "seed"], sort=False)[["linear", "prototype", "average"]].mean()
    for (name, labels), cell in scores.groupby(level=["set", "labels"], sort=False):
        print(f"\n**{name}, {labels}**\n")
        print(table(cell.droplevel(["set", "labels"]), baselines))


def table(cell: pd.DataFrame, baselines: list[str]) -> str:
    """Return the table of one set and number of labels as Markdown, from scores by (method, seed)."""
    linear = cell.linear.unstack("seed")
    baselines = [name for name in baselines if name in linear.index]
    heads = ["method", "seeds", "linear head", "prototype head", *(f"over {name}" for name in baselines)]
    lines = [f"| {' | '.join(heads)} |", "|---" + "|--:" * (len(heads) - 1) + "|"]
    for method in cell.index.unique("method"):
        second = cell.loc[method].prototype.dropna()
        others = [difference(linear.loc[method] - linear.loc[base]) for base in baselines]
        own = linear.loc[method].dropna()
        spread = f" ± {own.std():.1f}" if len(own) > 2 else ""
        heads = f"{own.mean():.1f}{spread} | {f'{second.mean():.1f}' if len(second) else '-'}"
        lines.append(f"| {' | '.join([method, str(len(own)), heads, *others])} |")
    return "\n".join(lines)


def difference(pairs: pd.Series) -> str:
    """Write the mean of paired differences, with its 95 % interval from three on, and how many are above 0."""
    pairs = pairs.dropna()
    if not pairs.any():
        return "-"
    half = t.ppf(0.975, len(pairs) - 1) * pairs.std() / sqrt(len(pairs)) if len(pairs) > 2 else None
    return f"{pairs.mean():+.1f}{f' ± {half:.1f}' if half else ''} ({(pairs > 0).sum()} of {len(pairs)})"


if __name__ == "__main__":
    main(*sys.argv[1:])
