"""Measure whether images that `choose.py` chooses train better than random ones.

    python benchmarks/active.py data=FOLDER [features=FOLDER] [seeds=0:10] [sets=voc_animals,camvid] [part=0/2]

For each data set and seed a supervised training in laptop mode on 28 random images chooses 27 more of the rest, in each
of the ways in WAYS. A new training on the 55 images is scored as in evidence.py. "drawn" are random images; "doubt and
apart" is the default of `choose.py`. Each training's rows are appended to docs/results/active.csv when it ends, and a
training that has rows is not repeated. The table is made by:

    python benchmarks/evidence_table.py docs/results/active.csv seeds=0:10 over=drawn
"""

import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from evidence import append, rows_of, scored, trained

from pcr_seg.commands.choose import spread, survey
from pcr_seg.data.groups import grouped
from pcr_seg.pixels import as_floats

FIRST, MORE = 28, 27
OVERRIDES = [
    "experiment=laptop", "recipe=folder", "dataset=folder", "split_family=drawn", "method=supervised",
    "trainer.check_val_every_n_epoch=12",
]  # fmt: skip
WAYS = ("drawn", "doubt", "apart", "doubt and apart")


def main(*arguments: str) -> None:
    """Run the trainings that have no row yet."""
    options = dict(argument.split("=", 1) for argument in arguments)
    table = Path(options.get("output", "docs/results/active.csv"))
    part, parts = map(int, options.get("part", "0/1").split("/"))
    first, last = map(int, options.get("seeds", "0:10").split(":"))
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    sets = options.get("sets", "voc_animals,camvid").split(",")
    cells = [(name, seed) for seed in range(first, last) for name in sets]
    for name, seed in cells[part::parts]:
        kept = [f"{key}={options['features']}" for key in ("features.folder", "data.cache") if "features" in options]
        run(table, name, seed, [*OVERRIDES, f"seed={seed}"], [*kept, f"dataset.root={options['data']}/{name}"])


def run(table: Path, name: str, seed: int, overrides: list[str], places: list[str]) -> None:
    """Train on the first images of a data set and seed; choose more in each way without a row, and train on all."""
    rows = rows_of(table)
    ways = [way for way in WAYS if (name, str(FIRST + MORE), way, seed) not in rows]
    if not ways:
        return
    start = [*overrides, f"split={FIRST}"]
    module, data, cost = trained([*start, *places])
    if (name, str(FIRST), "drawn", seed) not in rows:
        append(table, [name, str(FIRST), "drawn", seed], start, [row | cost for row in scored(module, data)])
    labeled = data.split.labeled
    known = {sample.name for sample in labeled}
    rest = [sample for sample in data.source.train if sample.name not in known]
    seen = survey_all(module, data, [*labeled, *rest])
    for way in ways:
        print(f"{name}, seed {seed}: {way}", flush=True)
        chosen = choose(way, seen, len(labeled), [sample.name for sample in rest], seed)
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as split:
            split.write("\n".join([*known, *(rest[i].name for i in chosen)]))
            split.flush()
            module, data, cost = trained([*overrides, *places, f"split={split.name}"])
        cell = [name, str(FIRST + MORE), way, seed]
        append(table, cell, [*overrides, f"split={FIRST}+{MORE}"], [row | cost for row in scored(module, data)])


def survey_all(module: torch.nn.Module, data, samples: list) -> list[tuple[float, np.ndarray]]:
    """Return doubt and place (`survey`) of each image, from its kept features."""
    features = data.features
    features.compute(samples, module.device, whole=True)
    found = []
    for sample in samples:
        image = as_floats({"image": features.whole(sample)[None].to(module.device)}, module.student)["image"]
        size = [(side - 1) * features.stride + 1 for side in image.shape[-2:]]
        found.append(survey(module.predictor, image, "doubt", size))
    return found


def choose(way: str, seen: list, labeled: int, names: list[str], seed: int) -> list[int]:
    """Return the indices of the chosen images, counted behind the `labeled` first ones in `seen`."""
    if way == "drawn":
        return np.random.default_rng(seed).permutation(len(names))[:MORE].tolist()
    scores, places = np.array([score for score, _ in seen[labeled:]]), np.stack([place for _, place in seen])
    apart = {"places": places[labeled:], "known": places[:labeled]} if "apart" in way else {}
    scores = scores if "doubt" in way else np.ones(len(scores))
    return spread(scores, MORE, groups=grouped(names, "auto")[0], **apart)


if __name__ == "__main__":
    main(*sys.argv[1:])
