"""Choose images to label next: those that the network is least sure of, and that differ from each other."""

import csv
from collections.abc import Sequence
from contextlib import nullcontext
from io import BytesIO
from math import ceil
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from pcr_seg.commands.opening import (
    choose_device,
    open_checkpoint,
    open_source,
    output_folder,
    run_folder,
    writing,
)
from pcr_seg.config import check_counts
from pcr_seg.data import annotations
from pcr_seg.data.files import DataError, Sample, read_bytes, read_image
from pcr_seg.data.groups import grouped
from pcr_seg.data.sources import read_list
from pcr_seg.data.splits import write_list
from pcr_seg.inference import center_pad, disagreement
from pcr_seg.pictures import visualize
from pcr_seg.pictures.panels import head_names, look
from pcr_seg.pixels import as_tensor, normalize
from pcr_seg.predictor import Predictor
from pcr_seg.report.pages import choice_page

SCORES = ("doubt", "disagreement")
THUMBNAIL = 640  # longer side of the page's pictures, in pixels
REMEDY = "name another folder with output=FOLDER"


def choose(cfg: DictConfig) -> list[str]:
    """Choose among the unlabeled images of a checkpoint's data set, write what it takes to label them, return names.

    OUTPUT/labeled.txt lists the run's labeled images and the new ones, for `split=`. new.csv has the new ones with
    rank, score, group and file. new.html shows them with predictions. images/ and annotations are for an annotation
    tool.

    Raises:
        FileNotFoundError: the run folder of the checkpoint has no splits/labeled.txt.
        ValueError: the checkpoint cannot give such a score; there are no such groups; the budget is larger than the
            number of images; or a list does not fit the data set.
        OSError: nothing can be written to OUTPUT.
    """
    predictor = open_checkpoint(cfg)
    check_keys(cfg, predictor)
    run = run_folder(cfg)
    source = open_source(cfg, predictor)
    samples = {sample.name: sample for sample in (*source.train, *source.unlabeled)}
    names = read_list(run / "splits/labeled.txt", samples.values())
    if strange := [name for name in names if name not in samples]:
        raise ValueError(
            f"{run}/splits/labeled.txt: {strange[0]} is not in {source.name}; give dataset=NAME dataset.root=FOLDER"
        )
    unlabeled = [samples[name] for name in sorted(samples.keys() - set(names))]
    if cfg.budget > len(unlabeled):
        raise ValueError(f"budget={cfg.budget}: {source.name} has {len(unlabeled)} unlabeled images; choose 1 to that")
    groups, what = grouped([sample.name for sample in unlabeled], cfg.group)
    predictor.to(choose_device(cfg.device))
    output = output_folder(Path(cfg.output or run / "next"), REMEDY)

    surveyed = {}
    for sample in track(unlabeled, "scoring"):
        try:
            surveyed[sample.name] = survey_file(predictor, sample, cfg.score)
        except DataError as error:
            print(f"left out: {error}")
    seen = list(surveyed.values())
    groups = [group for sample, group in zip(unlabeled, groups, strict=True) if sample.name in surveyed]
    unlabeled = [sample for sample in unlabeled if sample.name in surveyed]
    scores, places = np.array([score for score, _ in seen]), None
    known = []
    if cfg.diversity:
        places = np.stack([place for _, place in seen])
        known = [survey_file(predictor, samples[name], cfg.score)[1] for name in names]
    order = spread(scores, min(cfg.budget, len(scores)), places=places, known=known, groups=groups)
    chosen = [(unlabeled[i], scores[i].item(), groups[i]) for i in order]

    title = f"{len(chosen)} of {len(unlabeled)} images to label next"
    with writing(output, REMEDY):
        origin = f"{len(names)} of {run.name} and {len(chosen)} chosen by {cfg.score}"
        write_list(output / "labeled.txt", origin, [samples[name] for name in names] + [one for one, *_ in chosen])
        write_table(output / "new.csv", chosen, cfg.score)
        show(predictor, output, chosen, cfg.format, title, cfg.score)

    table = Table("rank", "image", cfg.score, title=title)
    for rank, (sample, score, _) in enumerate(chosen[:10], 1):
        table.add_row(str(rank), sample.name, f"{score:.3f}")
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.print(table)
    counts = [sum(group == one for _, _, group in chosen) for one in dict.fromkeys(group for _, _, group in chosen)]
    if what != "single images":
        console.print(f"groups by {what}: at most {max(counts)} images of one")
    console.print(f"look at them: {output}/new.html; all of them: {output}/new.csv")
    if cfg.format:
        file = "annotations.json" if cfg.format == "coco" else "labelme"
        console.print(f"correct the predictions in a tool: {output}/{file}, of the images in {output}/images")
    console.print("put image and mask among the training images, then")
    split = f"split={output}/labeled.txt" + (f" val={run}/splits/val.txt" if source.held_out else "")
    console.print(f"python train.py ... {split}     # ... as that run was started; the rest is unlabeled")
    return [sample.name for sample, *_ in chosen]


def check_keys(cfg: DictConfig, predictor: Predictor) -> None:
    """Raise a ValueError for a key that has no such value, or a score that the checkpoint cannot give."""
    check_counts({"budget": cfg.budget})
    if cfg.score not in SCORES:
        raise ValueError(f"score={cfg.score}: choose {' or '.join(SCORES)}")
    if cfg.diversity not in ("features", None):
        raise ValueError(f"diversity={cfg.diversity}: choose features or null")
    if cfg.format not in (*annotations.FORMATS, None):
        raise ValueError(f"format={cfg.format}: choose {', '.join(annotations.FORMATS)} or null")
    if cfg.score == "disagreement" and len(head_names(predictor)) == 1:
        raise ValueError(f"score=disagreement: {predictor.name} has no second head to disagree; choose score=doubt")


def survey_file(predictor: Predictor, sample: Sample, score: str) -> tuple[float, np.ndarray]:
    """Read an image file and return its `survey`."""
    image = as_tensor(read_image(sample.image, sample.format))[None].to(predictor.device)
    return survey(predictor, normalize(image, predictor.network), score)


@torch.inference_mode()
def survey(
    predictor: Predictor, image: Tensor, score: str, size: tuple[int, int] | torch.Size | None = None
) -> tuple[float, np.ndarray]:
    """Return how unsure the network is of an image, in 0..1, and the image's place among others.

    Args:
        predictor: the model.
        image: (1, channels, H, W), normalized; or its features, if the network takes these.
        score: "doubt", the mean over pixels of 1 - the linear head's confidence; or "disagreement", the mean of
            `inference.disagreement` of the first two heads.
        size: (H, W) of the image, if features are given.

    Returns:
        The score; and the place, the mean of the network's features (D,), scaled to length 1.
    """
    means: list[Tensor] = []
    hook = predictor.network.register_forward_hook(
        lambda network, images, output: means.append(output.features.mean(dim=(0, 2, 3)))
    )
    try:  # the hook sees each window, if the protocol divides the image
        heads = predictor.scored(image, linear=score == "doubt", size=size)
    finally:
        hook.remove()
    first, *others = (center_pad(logits, size or image.shape[-2:]) for logits in heads.values())
    doubt = 1 - first.softmax(dim=1).amax(dim=1) if score == "doubt" else disagreement(first, others[0])
    place = torch.nn.functional.normalize(torch.stack(means).mean(dim=0), dim=0)
    return doubt.mean().item(), place.float().cpu().numpy()


def spread(
    scores: np.ndarray,
    budget: int,
    *,
    places: np.ndarray | None = None,
    known: Sequence[np.ndarray] = (),
    groups: Sequence[str] | None = None,
) -> list[int]:
    """Choose images one after another: each time the largest score times distance to the nearest image chosen before.

    This is the greedy choice of k centers, weighted by scores (Sener and Savarese, "Active learning for convolutional
    neural networks: a core-set approach", ICLR 2018). From no group more than twice its share of the budget is taken,
    as long as other groups have images left.

    Args:
        scores: (N,), above 0.
        budget: number of images to choose.
        places: (N, D); without them only scores count.
        known: places (D,) of images that are labeled already.
        groups: the group of each image; by default each image is a group.

    Returns:
        The indices of the chosen images, in order.
    """
    distance = np.ones(len(scores))
    if places is not None and len(known):
        distance = np.min([np.linalg.norm(places - place, axis=1) for place in known], axis=0)
    numbers = np.unique(groups, return_inverse=True)[1] if groups is not None else np.arange(len(scores))
    given = np.zeros(numbers.max() + 1, int)
    most, left, chosen = ceil(2 * budget / len(given)), np.ones(len(scores), bool), []
    for _ in range(budget):
        while not (free := left & (given[numbers] < most)).any():
            most += 1
        best = int(np.where(free, scores * distance, -1).argmax())
        if places is not None:
            apart = np.linalg.norm(places - places[best], axis=1)
            distance = np.minimum(distance, apart) if chosen or len(known) else apart
        chosen.append(best)
        left[best] = False
        given[numbers[best]] += 1
    return chosen


def write_table(path: Path, chosen: Sequence[tuple[Sample, float, str]], score: str) -> None:
    """Write the chosen images as a CSV file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["rank", "name", score, "group", "image"])
        for rank, (sample, value, group) in enumerate(chosen, 1):
            table.writerow([rank, sample.name, f"{value:.6f}", group, sample.image])


def show(
    predictor: Predictor, output: Path, chosen: Sequence[tuple[Sample, float, str]], format: str | None, title: str,
    score: str,
) -> None:  # fmt: skip
    """Write new.html and, for an annotation tool, copies of the images and their predictions as annotations."""
    names, palette = predictor.class_names, predictor.palette
    figures = []
    writer = annotations.annotations(output, format, names) if format else nullcontext()
    with writer as annotate:
        for rank, (sample, value, _) in enumerate(track(chosen, "drawing"), 1):
            image = read_image(sample.image, sample.format)
            [view] = look(predictor, [image], nearest=False, linear=True)
            labels, shown = view.labels["linear"], visualize.rgb(image)
            overlay = visualize.overlay(shown, labels, palette, background=annotations.ground(names))
            caption = f"{rank}. {sample.name}, {score} {value:.2f}"
            figures.append((caption, thumbnail(shown), thumbnail(overlay)))
            if annotate:
                file = output / "images" / f"{sample.name}{Path(sample.image).suffix}"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(read_bytes(sample.image))
                annotate(file.relative_to(output / "images").as_posix(), file, labels)
    page = choice_page(title, f"{score} (0 to 1) of {predictor.name}", figures, list(zip(names, palette, strict=True)))
    (output / "new.html").write_text(page, encoding="utf-8")


def thumbnail(picture: np.ndarray) -> bytes:
    """Return a picture (H, W, 3) of uint8 as the content of a JPEG file, with sides of at most `THUMBNAIL` pixels."""
    image, file = Image.fromarray(picture), BytesIO()
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    image.save(file, "JPEG", quality=85)
    return file.getvalue()
