"""Write the table of published rows in docs/zoo.md: python benchmarks/zoo.py [RUN_FOLDER ...] fills in runs' rows."""

import csv
import hashlib
import json
import sys
from pathlib import Path

from pcr_seg.report.tables import U2PL

ROOT = Path(__file__).parents[1]
CSV, PAGE = ROOT / "docs/results/zoo.csv", ROOT / "docs/zoo.md"
# mIoU in % of trainings on labels alone: from U2PL, in the README of github.com/HeimingX/semi_seg_proto @1b98ea6.
SUPERVISED = {
    "voc": {92: 45.77, 183: 54.92, 366: 65.88, 732: 71.69, 1464: 72.50},
    "cityscapes": {186: 65.74, 372: 72.53, 744: 74.43, 1488: 77.83},
}
RUN = ("experiment", "last epoch", "best epoch", "seed", "images/s", "commit", "SHA-256 of last.ckpt")
PUBLISHED = ("experiment", "supervised", "paper", "released checkpoint")
HEAD = (*PUBLISHED, *RUN[1:])


def row(folder: Path) -> dict[str, str]:
    """Return the columns of a finished run; raise a ValueError if it does not belong to a published row."""
    summary = json.loads((folder / "summary.json").read_text())
    dataset, count = summary["dataset"], summary["num_labeled"]
    wanted = {"method": "pcr", "split_family": "u2pl", "backbone": "resnet101s"}
    other = [f"{key}={summary[key]}" for key, value in wanted.items() if summary[key] != value]
    if other or count not in U2PL.get(dataset, ()):
        raise ValueError(f"{folder}: is no published row ({', '.join(other) or f'{dataset}, {count} labels'})")
    with (folder / "checkpoints/last.ckpt").open("rb") as file:
        digest = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else hashlib.sha256(file.read())
    figures = (f"{100 * summary[key]:.2f}" for key in ("miou_last", "miou_best"))
    values = (*figures, summary["seed"], summary["images_per_second"], summary["git_commit"], digest.hexdigest())
    return dict(zip(RUN, (f"{dataset}_{count}", *map(str, values)), strict=True))


def rows() -> dict[str, dict[str, str]]:
    """Return the runs in the CSV file, by experiment."""
    with CSV.open(newline="") as file:
        return {each["experiment"]: each for each in csv.DictReader(file)}


def table(runs: dict[str, dict[str, str]]) -> str:
    """Return the published rows as Markdown, with the columns of runs where there are any."""
    lines = [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
    for dataset, counts in U2PL.items():
        for count, figures in counts.items():
            name = f"{dataset}_{count}"
            run = runs.get(name, dict.fromkeys(RUN, ""))
            published = (f"{figure:.2f}" for figure in (SUPERVISED[dataset][count], *figures))
            shown = (run[column][:12] for column in RUN[1:])
            lines.append(f"| {' | '.join([f'`{name}`', *published, *shown])} |")
    return "\n".join(lines)


def filled(page: str, runs: dict[str, dict[str, str]]) -> str:
    """Return the page with a new table."""
    before, _, after = page.partition("<!-- table -->")
    return f"{before}<!-- table -->\n\n{table(runs)}\n\n<!-- end -->{after.partition('<!-- end -->')[2]}"


def main(folders: list[str]) -> None:
    """Add the runs' rows to the CSV file, and write the page's table from it."""
    runs = rows() | {each["experiment"]: each for each in map(row, map(Path, folders))}
    with CSV.open("w", newline="") as file:
        writer = csv.DictWriter(file, RUN, lineterminator="\n")
        writer.writeheader()
        writer.writerows(runs.values())
    PAGE.write_text(filled(PAGE.read_text(), runs))


if __name__ == "__main__":
    main(sys.argv[1:])
