"""Which images to label next: those that the two heads disagree on, spread over the prototypes."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track
from rich.table import Table

from pcr_seg.commands.opening import choose_device, open_checkpoint, open_source, output_folder, whole_number
from pcr_seg.data.files import Sample, read_image
from pcr_seg.data.sources import read_list
from pcr_seg.pictures.panels import head_names, look
from pcr_seg.predictor import Predictor


def choose(cfg: DictConfig) -> list[str]:
    """Rank the unlabeled images of a checkpoint's data set, write the next split and a table, return the names.

    OUTPUT/labeled.txt holds the run's labeled images and the new ones, for `split=`; OUTPUT/new.csv the new ones with
    rank, mean disagreement (0..1) and file.

    Raises:
        FileNotFoundError: the run folder's splits/labeled.txt is not beside the checkpoint.
        ValueError: no bank, no second head, a budget that the images do not fill, or lists that do not fit the set.
        OSError: nothing can be written to OUTPUT.
    """
    predictor = open_checkpoint(cfg)
    if predictor.bank is None:
        raise ValueError(f"checkpoint={cfg.checkpoint}: {predictor.name} has no prototypes to disagree with; train pcr")
    if len(head_names(predictor)) == 1:
        raise ValueError(f"checkpoint={cfg.checkpoint}: {predictor.name} has no second head to disagree; train pcr")
    whole_number(cfg, "budget")
    run = Path(cfg.checkpoint).absolute().parents[1]
    source, labeled = open_source(cfg, predictor), read_list(run / "splits/labeled.txt")
    samples = {sample.name: sample for sample in (*source.train, *source.unlabeled)}
    if strange := [name for name in labeled if name not in samples]:
        raise ValueError(
            f"{run}/splits/labeled.txt: {strange[0]} is not in {source.name}; give dataset=NAME dataset.root=FOLDER"
        )
    unlabeled = [samples[name] for name in sorted(samples.keys() - set(labeled))]
    if not 1 <= cfg.budget <= len(unlabeled):
        raise ValueError(f"budget={cfg.budget}: {source.name} has {len(unlabeled)} unlabeled images; choose 1 to that")
    predictor.to(choose_device(cfg.device))
    output = output_folder(Path(cfg.output or run / "next"), "name another folder with output=FOLDER")

    spread = np.stack([disagreement_by_prototype(predictor, sample) for sample in track(unlabeled, "scoring")])
    order = cover(spread, cfg.budget)
    chosen = [(unlabeled[i], spread[i].sum().item()) for i in order]
    write(output, labeled, chosen, origin=f"{len(labeled)} of {run.name} and {len(chosen)} chosen by disagreement")

    table = Table("rank", "image", "disagreement", title=f"{len(chosen)} of {len(unlabeled)} images to label next")
    for rank, (sample, score) in enumerate(chosen[:10], 1):
        table.add_row(str(rank), sample.name, f"{score:.3f}")
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(table)
    console.print(f"all of them: {output}/new.csv; draw their masks, and put image and mask among the training images")
    split = f"split={output}/labeled.txt" + (f" val={run}/splits/val.txt" if source.held_out else "")
    console.print(f"python train.py ... {split}     # ... as that run was started; the rest is unlabeled")
    return [sample.name for sample, _ in chosen]


def disagreement_by_prototype(predictor: Predictor, sample: Sample) -> np.ndarray:
    """The mean disagreement of an image's pixels, in parts for their nearest prototypes: (C * K,), its sum in 0..1."""
    [found] = look(predictor, [read_image(sample.image, sample.format)])
    number = predictor.bank.prototypes.shape[:2].numel()
    return np.bincount(found.nearest.ravel(), found.disagreement.ravel(), number) / found.nearest.size


def cover(spread: np.ndarray, budget: int) -> list[int]:
    """Choose rows of (N, M) one after another, each the one that adds most to sum_m sqrt(sum over chosen rows).

    Much disagreement counts, and less on prototypes where much has been chosen: of two equal images the second adds
    41 % of the first. The function is monotone and submodular, so this reaches 1 - 1/e of the best set's value.
    Source: feature-based functions, Wei, Iyer and Bilmes, ICML 2015; the bound, Nemhauser et al. 1978.
    """
    covered, chosen = np.zeros(spread.shape[1]), []
    for _ in range(budget):
        value = np.sqrt(covered + spread).sum(axis=1)
        value[chosen] = -1
        chosen.append(int(value.argmax()))
        covered = covered + spread[chosen[-1]]
    return chosen


def write(output: Path, labeled: Sequence[str], chosen: Sequence[tuple[Sample, float]], origin: str) -> None:
    """Write labeled.txt (old and new names) and new.csv."""
    lines = [f"# {origin}", *labeled, *(sample.name for sample, _ in chosen)]
    (output / "labeled.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with (output / "new.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["rank", "name", "disagreement", "image"])
        for rank, (sample, score) in enumerate(chosen, 1):
            table.writerow([rank, sample.name, f"{score:.6f}", sample.image])
