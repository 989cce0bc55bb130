"""From run folders to tables.

Every `summary.json` becomes a row of a DataFrame. Rows that differ only in the seed become one line of a table: in
numbers (`aggregate`, for CSV and plot) and as text (`tables`, for Markdown, terminal and page). Data sets, split
families and backbones have lines of their own. So have runs of one method with different settings: the settings in
which their `config.yaml` differ are then written behind the method's name. mIoU is in percent, but in `summary.json` a
fraction.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from functools import partial
from glob import glob
from pathlib import Path

import pandas as pd
import yaml

SECTION = ["dataset", "split_family", "backbone"]  # columns in which the runs under one heading agree
CELL = [*SECTION, "num_labeled", "split"]  # columns in which methods agree that are compared
LINE = [*CELL, "method"]  # columns in which the runs of one line agree: they differ only in the seed
GAIN = "gain_over_"  # the column of gains over a baseline: this and the baseline's name

MEASURES = {
    "miou_last": "mIoU, last epoch",
    "miou_prototype_last": "prototype head",
    "miou_best": "best epoch (chosen on val)",
}
INTEGERS = ["num_labeled", "seed", "iterations"]
COSTS = {"seconds": "seconds", "images_per_second": "images/s", "peak_memory_mib": "peak MiB"}
OTHERS = ["num_unlabeled", "git_commit", "iou"]

# mIoU in % of the paper and of the authors' released checkpoint, both with ResNet-101.
# Source: rows "paper" and "this repo" in the README of github.com/HeimingX/semi_seg_proto, the authors' code for Xu et
# al., NeurIPS 2022. VOC blender is left out: none of its figures could be verified.
PUBLISHED_MEASURES = {
    "published_paper": "PCR paper (ResNet-101)",
    "published_checkpoint": "PCR checkpoint (ResNet-101)",
    "published_unimatch_v2": "UniMatch V2 (DINOv2-B), best epoch",
}
U2PL = {
    "voc": {92: (70.06, 70.78), 183: (74.71, 74.65), 366: (77.16, 76.77), 732: (78.49, 78.70), 1464: (80.65, 80.18)},
    "cityscapes": {186: (73.41, 73.99), 372: (76.31, 77.10), 744: (78.40, 78.58), 1488: (79.11, 79.55)},
}
# mIoU in % of the best epoch on the validation images. Source: README of github.com/LiheYoung/UniMatch-V2 @12469da
# (Yang et al., 2024).
UNIMATCH_V2 = {
    ("voc", "cps"): {92: 86.3, 183: 87.9, 366: 88.9, 732: 90.0, 1464: 90.8},
    ("cityscapes", "cps"): {186: 83.6, 372: 84.3, 744: 84.5, 1488: 85.1},
    ("ade20k", "unimatch_v2"): {316: 38.7, 631: 45.0, 1263: 46.7, 2526: 49.8},
    ("coco", "unimatch_v2"): {232: 47.9, 463: 55.8, 925: 58.7, 1849: 60.4, 3697: 63.3},
}
NONE = float("nan")
PUBLISHED = pd.DataFrame(
    [(dataset, "u2pl", count, *pair, NONE) for dataset, pairs in U2PL.items() for count, pair in pairs.items()]
    + [(*key, count, NONE, NONE, figure) for key, figures in UNIMATCH_V2.items() for count, figure in figures.items()],
    columns=["dataset", "split_family", "num_labeled", *PUBLISHED_MEASURES],
)

WORDS = ("split", "method", "over", "in %")  # columns of text, aligned left; those of figures are aligned right

# Keys of config.yaml that are no settings of a line: where and how a run was made, or what has a column of its own.
NO_SETTINGS = re.compile(
    r"(output|seed|split|split_family|hardware|logger|resume|trust|baseline|diagnosis|upload_checkpoints|checkpoints)(\..*)?"
    r"|most_per_device|dataset\.root|(module|data|method)\.seed|backbone\.(name|weights)|method\.name"
    r"|data\.(labeled|family|lists|batch_size|num_workers|cache)"
    r"|trainer\.(accelerator|devices|num_nodes|strategy|precision|sync_batchnorm|accumulate_grad_batches|default_root_dir"
    r"|enable_.*|log_every_n_steps)"
)
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times as fast, if it is there


def find(pattern: str) -> list[Path]:
    """List the run folders at and below the matches of a glob; a match without run folders is listed itself.

    Folders of folds are not listed: the summary of the run above them has their scores.
    """
    found = {}  # by real path, so that a link to a run is not a second run
    for top in map(Path, sorted(glob(os.path.join(os.path.expanduser(pattern), "")))):
        folders = {path.parent for name in (".hydra", "summary.json") for path in top.rglob(name)}
        folders -= {run for run in folders if run != top and (run.parent / f"splits/{run.name}.txt").is_file()}
        if not folders and not (top / "report.md").is_file():
            folders = {top}
        found |= {folder.resolve(): folder for folder in sorted(folders)}
    return list(found.values())


def read(folder: Path) -> dict:
    """Read the summary of a run; if it is broken, return its folder alone."""
    try:
        file = folder / "summary.json"
        summary = json.loads(file.read_text(encoding="utf-8"))
        return summary | {"folder": folder, "finished": file.stat().st_mtime_ns, "iou": dict(summary["iou"])}
    except (OSError, ValueError, TypeError, KeyError):
        return {"folder": folder}


def settings(folder: Path) -> dict[str, str]:
    """Read the settings in a run's config.yaml, by dotted key (method.threshold); {} if it cannot be read."""
    try:
        config = yaml.load((folder / "config.yaml").read_text(encoding="utf-8"), Loader=LOADER)
        return {key: value for key, value in leaves(config) if not NO_SETTINGS.fullmatch(key)}
    except (OSError, ValueError, AttributeError, yaml.YAMLError):
        return {}


def leaves(node: dict, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the dotted keys and the values of a tree; a `_target_` becomes its node's key and the last of its name."""
    for name, value in node.items():
        path = f"{key}.{name}".lstrip(".")
        if name == "_target_":
            yield key, str(value).rpartition(".")[2]
        elif isinstance(value, dict):
            yield from leaves(value, path)
        else:
            yield path, value if isinstance(value, str) else json.dumps(value, default=str)


def told_apart(runs: pd.DataFrame) -> pd.DataFrame:
    """Add columns: `settings`; those `differing` among the runs of a line, which `words` has as text."""
    runs = runs.assign(settings=[settings(folder) for folder in runs.folder])
    differing, words = {}, {}
    for _, line in runs.groupby(LINE):
        found = dict(zip(line.index, differences([*line.settings]), strict=True))
        keys = {key for some in found.values() for key in some}
        differing |= found
        words |= {index: in_words(some, keys) for index, some in found.items()}
    return runs.assign(differing=pd.Series(differing, dtype=object), words=pd.Series(words, dtype=object))


def differences(runs: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Return for each run of a line the settings that have more than one value among the runs.

    A run without a key does not count as another value. Of keys that always have the same values (module.lr and
    optimizer.lr) only the first is returned.
    """
    found = {}
    for key in {key: None for run in runs for key in run}:
        values = tuple(run.get(key) for run in runs)
        if len({*values} - {None}) > 1:
            found.setdefault(values, key)
    return [{key: run[key] for key in found.values() if key in run} for run in runs]


def in_words(differing: dict[str, str], keys: set[str]) -> str:
    """Write settings in brackets, each key shortened to its last parts as long as no other one of `keys` ends so."""
    parts = []
    for key, value in differing.items():
        endings = [key.split(".", dots)[-1] for dots in range(key.count("."), -1, -1)]
        alone = (end for end in endings if sum(f".{other}".endswith(f".{end}") for other in keys) == 1)
        parts.append(f"{next(alone, key)}={value}")
    return f" ({', '.join(parts)})" if parts else ""


def collect(pattern: str) -> tuple[pd.DataFrame, list[str]]:
    """Read all runs under a glob.

    Returns:
        A row for each run; and sentences on which folders are left out, and why.

    Raises:
        ValueError: the glob matches no finished run.
    """
    columns = ["folder", *LINE, "seed", *MEASURES, "iterations", *COSTS, *OTHERS, "finished"]
    runs = pd.DataFrame(map(read, find(pattern)), columns=columns, dtype=object)
    numbers = [*INTEGERS, *MEASURES, *COSTS]
    runs[numbers] = runs[numbers].apply(pd.to_numeric, errors="coerce")
    valid = runs[[*LINE, *INTEGERS, "seconds"]].notna().all(axis=1) & runs.miou_last.between(0, 1)
    if not valid.any():
        raise ValueError(
            f"runs={pattern!r} names {len(runs)} folders, none with a valid summary.json; "
            "give a glob of finished runs, such as runs='runs/*'"
        )
    invalid, runs = runs[~valid], runs[valid].sort_values("finished", kind="stable")
    runs = runs.astype(dict.fromkeys(LINE, str) | dict.fromkeys(INTEGERS, int))
    runs[list(MEASURES)] *= 100
    runs = told_apart(runs)
    older = runs.duplicated([*LINE, "words", "seed"], keep="last")
    why = "a newer run has the same method, settings, split and seed"
    kinds = {"no valid summary.json": invalid, why: runs[older]}
    left_out = [f"Left out ({why}): {', '.join(map(str, some.folder))}" for why, some in kinds.items() if len(some)]
    return runs[~older], left_out


def compare(runs: pd.DataFrame, baselines: Sequence[str]) -> pd.DataFrame:
    """Add to each run its gain over each baseline's run of the same seed, and the published figures; sort the runs.

    A baseline is only compared with the baselines before it. If a baseline's runs differ in settings, a run is compared
    with the one that has the run's own values of these. From here on `method` contains the differing settings.
    """
    for number, baseline in enumerate(baselines, start=1):
        references = runs[runs.method == baseline].groupby([*CELL, "seed"])
        references = {cell: list(zip(some.differing, some.miou_last, strict=True)) for cell, some in references}
        reference = [
            next((miou for differing, miou in references.get(cell, ()) if differing.items() <= own.items()), None)
            for *cell, own in runs[[*CELL, "seed", "settings"]].itertuples(index=False)
            for cell in [tuple(cell)]
        ]
        gain = runs.miou_last - pd.Series(reference, runs.index, float)
        runs = runs.assign(**{GAIN + baseline: gain.where(~runs.method.isin(baselines[:number]))})
    order = {name: f"{name.startswith('pcr'):d}{name}" for name in runs.method}
    order |= {name: f"-{number}" for number, name in enumerate(baselines)}
    sorting = {"method": lambda key: key.map(order), "words": lambda key: key.map(by_number)}
    runs = runs.sort_values(
        [*LINE, "words", "seed"], key=lambda key: sorting[key.name](key) if key.name in sorting else key
    )
    runs = runs.assign(method=runs.method + runs.words).drop(columns=["settings", "differing", "words"])
    return runs.merge(PUBLISHED, how="left", on=["dataset", "split_family", "num_labeled"])


def by_number(text: str) -> str:
    """Rewrite the numbers in a text so that texts sort by their values."""
    return re.sub(r"\d+(\.\d+)?(e[-+]?\d+)?", lambda number: f"{float(number[0]):030.15f}", text)


def gains(runs: pd.DataFrame) -> dict[str, str]:
    """Return the columns of gains over baselines, with their titles."""
    return {name: name.replace("_", " ", 2) for name in runs if name.startswith(GAIN)}


def aggregate(runs: pd.DataFrame) -> pd.DataFrame:
    """Average over seeds, as numbers: mean, standard deviation (n-1) and number of runs for each figure."""
    lines = runs.groupby(LINE, sort=False)
    figures = lines[[*MEASURES, *gains(runs)]].agg(["mean", "std", "count"])
    figures.columns = ["_".join(names) for names in figures.columns]
    rest = {name: (name, "mean") for name in COSTS} | {name: (name, "first") for name in PUBLISHED_MEASURES}
    return figures.join(lines.agg(n=("seed", "size"), **rest)).reset_index()


def tables(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Average over seeds, as text: a table for each data set, split family and backbone, by its heading."""
    columns = {"n": ("seed", "size")}
    columns |= {head: (name, words) for name, head in MEASURES.items()}
    columns |= {head: (name, partial(words, sign="+")) for name, head in gains(runs).items()}
    columns |= {head: (name, lambda same: words(same[:1])) for name, head in PUBLISHED_MEASURES.items()}
    columns |= {"iterations": ("iterations", lambda counts: ", ".join(map(str, sorted(set(counts)))))}
    columns |= {head: (name, round_mean) for name, head in COSTS.items()}
    text = runs.groupby(LINE, sort=False).agg(**columns).reset_index().astype(str)
    text = text.rename(columns={"num_labeled": "labeled"})
    parts = {heading(*names): part.drop(columns=SECTION) for names, part in text.groupby(SECTION, sort=False)}
    return {title: part.loc[:, (part != "-").any()] for title, part in parts.items()}


def paired(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the differences to each baseline, seed by seed, as text: a table for each heading."""
    lines = {}
    for (*section, num_labeled, split, method), line in runs.groupby(LINE, sort=False):
        for name in gains(runs):
            differences = line.set_index("seed")[name].dropna()
            if len(differences):
                row = {"labeled": str(num_labeled), "split": split, "method": method, "over": name.removeprefix(GAIN)}
                row |= {"mean ± std": words(differences, "+"), "n": str(len(differences))}
                row |= {f"seed {seed}": f"{value:+.2f}" for seed, value in differences.sort_index().items()}
                lines.setdefault(f"{heading(*section)} · paired differences", []).append(row)
    return {title: pd.DataFrame(rows).fillna("-") for title, rows in lines.items()}


def side_by_side(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Compare two methods class by class: a table for each cell, by heading. {} unless there are exactly two."""
    parts = {}
    for cell, both in runs.groupby(CELL, sort=False):
        sides = {method: side.droplevel(0) for method, side in scores(both).groupby(level=0, sort=False)}
        if len(sides) == runs.method.nunique() == 2:
            first, second = sides.values()
            columns = {f"{method} (n={len(side)})": side.apply(words) for method, side in sides.items()}
            part = pd.DataFrame(columns | {"difference": (second - first).apply(words, sign="+")})
            part = part[(part != "-").any(axis=1)].rename_axis("in %").reset_index()
            parts[f"{heading(*cell[:3])} · split {cell[4]} ({cell[3]} labeled)"] = part
    return parts


def scores(runs: pd.DataFrame) -> pd.DataFrame:
    """Return scores in percent: a row for each method and seed, a column for each mIoU and each class."""
    runs = runs.set_index(["method", "seed"])
    iou = pd.DataFrame([*runs.iou], index=runs.index).apply(pd.to_numeric, errors="coerce") * 100
    return runs[[*MEASURES]].rename(columns=MEASURES).join(iou)


def class_gains(runs: pd.DataFrame, baseline: str) -> dict[str, pd.DataFrame]:
    """Return the gain in IoU of each class over the baseline, for each cell by its heading.

    Gains are taken seed by seed; a table has their mean and std for each class and method.
    """
    parts = {}
    for cell, runs_of_cell in runs.groupby(CELL, sort=False):
        iou = scores(runs_of_cell).drop(columns=MEASURES.values())
        if baseline not in iou.index or len(iou.index.unique(0)) < 2:
            continue
        difference = iou.drop(baseline, level=0) - iou.loc[baseline].reindex(iou.index, level=1)
        by_method = difference.dropna(how="all").groupby(level=0, sort=False)
        if by_method.ngroups:
            mean, std = by_method.mean().T, by_method.std().T
            parts[f"{heading(*cell[:3])} · {cell[3]} labeled"] = pd.concat({"mean": mean, "std": std}, axis=1)
    return parts


def one_run_each(runs: pd.DataFrame) -> dict[str, Path]:
    """Return the folder of one run for each method, all in the cell with most methods, with the lowest seeds."""
    cell = runs.groupby(CELL, sort=False).method.nunique().idxmax()
    runs = runs.set_index(CELL).loc[[cell]].sort_values("seed", kind="stable").drop_duplicates("method")
    return dict(zip(runs.method, runs.folder, strict=True))


def round_mean(values: pd.Series) -> str:
    """Write the mean as a whole number, or "-" if there are no values."""
    return "-" if values.isna().all() else f"{values.mean():.0f}"


def words(values: pd.Series, sign: str = "") -> str:
    """Write mean ± std of the runs of a line, and how many have the figure if not all of them do."""
    n = values.count()
    if n == 0:
        return "-"
    text = f"{values.mean():{sign}.2f}" + (f" ± {values.std():.2f}" if n > 1 else "")
    return text if n == len(values) else f"{text} (n={n})"


def heading(dataset: str, family: str, *backbone: str) -> str:
    """Return the heading of a section in the report or the plot."""
    return " · ".join([dataset, f"{family} splits", *backbone])


def markdown(table: pd.DataFrame) -> str:
    """Write a table of text as Markdown, with columns of figures aligned right."""
    rule = ["---" if name in WORDS else "---:" for name in table]
    return "\n".join(f"| {' | '.join(line)} |" for line in [table.columns, rule, *table.to_numpy()])
