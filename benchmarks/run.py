"""Measure what this project costs, compared with the usual ways; print tables, write JSON and docs/performance.md.

    python benchmarks/run.py                          # everything: make bench
    python benchmarks/run.py part=method repeats=3    # one part; several: part=[method,step]

Parts: start, method, levers, step, peers, loader, evaluation, growth, and gpu if there is one. Figures are worth
    keeping
only from a machine that does nothing else. Parts that are not measured keep their figures.
"""

import json
import os
import re
import sys
import warnings
from importlib import import_module
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # hides the announcements of torch's profiler

import torch
from measure import Row, machine
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

PARTS = ("start", "method", "levers", "step", "peers", "loader", "evaluation", "growth", "gpu")
ROOT = Path(__file__).parents[1]


def main(arguments: list[str]) -> None:
    """Run the chosen parts and store their results."""
    here = [part for part in PARTS if part != "gpu" or torch.cuda.is_available()]
    options = OmegaConf.create({"part": here, "repeats": 5, "threads": 1, "output": "benchmarks/results.json",
                                "document": "docs/performance.md"})  # fmt: skip
    OmegaConf.set_struct(options, True)  # a misspelt option is refused
    options = OmegaConf.merge(options, OmegaConf.from_cli(arguments))
    parts = [options.part] if isinstance(options.part, str) else list(options.part)
    if unknown := set(parts) - set(PARTS):
        sys.exit(f"error: part={unknown.pop()}: choose of {', '.join(PARTS)}")
    if "gpu" in parts and not torch.cuda.is_available():
        sys.exit("error: part=gpu: no GPU on this machine; leave it out")
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", ".*(LeafSpec|val_dataloader|logging interval|eval mode|many workers|fork).*")
    output, document = ROOT / options.output, ROOT / options.document
    results = json.loads(output.read_text()) if output.is_file() else {}
    for part in parts:
        module = import_module(part)
        rows = module.measure(options.repeats)
        results[part] = {"machine": machine(), "rows": rows, "targets": module.targets(rows)}
        show(part, results[part])
        output.write_text(json.dumps(results, indent=1) + "\n")
        document.write_text(filled(document.read_text(), results))
    print(f"{output}, {document}")


def show(part: str, result: dict) -> None:
    """Print a part's rows and targets."""
    rows = table(result["rows"])
    grid = Table(*rows[0], title=f"{part}, {result['machine']['threads']} thread(s)")
    for row in rows[1:]:
        grid.add_row(*row)
    Console(width=160).print(grid)
    for name, goal, value in result["targets"]:
        print(f"{name}: {value} (target {goal})")


def table(rows: list[Row]) -> list[list[str]]:
    """Return header and rows as text."""
    result = [["case", "version", "median ms", "quartiles", "ratio", "MiB"]]
    for row in rows:
        spread = " ... ".join(map(number, row["quartiles"])) if row["quartiles"] else ""
        values = [number(row[key]) for key in ("milliseconds", "ratio", "mebibytes")]
        result.append([row["case"], row["version"], values[0], spread, *values[1:]])
    return result


def number(value: float | None) -> str:
    """Write a number with three significant digits, None as ""."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def filled(document: str, results: dict) -> str:
    """Return the document with new tables between its markers `<!-- part -->` and `<!-- end -->`."""
    tables = {
        part: markdown(table(result["rows"])) + f"\n\n{footnote(result['machine'])}" for part, result in results.items()
    }
    goals = [["", "target", "measured"]]
    goals += [list(goal) for part in PARTS if part in results for goal in results[part]["targets"]]
    tables["targets"] = markdown(goals)
    for name, text in tables.items():
        block = f"<!-- {name} -->\n{text}\n<!-- end -->"
        document = re.sub(f"<!-- {name} -->.*?<!-- end -->", lambda _, block=block: block, document, flags=re.DOTALL)
    return document


def markdown(rows: list[list[str]]) -> str:
    """Return rows as a Markdown table."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def footnote(machine: dict) -> str:
    """Describe in one line the machine and versions that a table was measured with."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    where = ", ".join(filter(None, (machine["cpu"], machine.get("gpu"))))
    return (
        f"{where}, {machine['threads']} thread(s), load {machine['busy']}; {machine['date']}, commit"
        f" `{(machine['commit'] or 'unknown')[:12]}`; {versions}."
    )


if __name__ == "__main__":
    main(sys.argv[1:])
