"""Pictures of a predictor: predictions for a few images, and what each prototype stands for."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from pcr_seg.data.classes import distinct_colors
from pcr_seg.data.files import Sample, read_image, read_mask
from pcr_seg.data.sources import Source
from pcr_seg.inference import disagreement
from pcr_seg.measures import ByImage, measures
from pcr_seg.pictures import visualize
from pcr_seg.pixels import as_tensor, normalize
from pcr_seg.predictor import Predictor, predict_heads

NUM_IMAGES = 4  # images in a panel
NUM_CROPS = 4  # crops that show a prototype
GALLERY_IMAGES = 32  # images that are searched for the pixels nearest to each prototype
NUM_RANKED = 3  # so many worst, median and best images on a page
NUM_CONFUSED = 8  # cells of the confusion matrix that get an example
EXAMPLE = 640  # longer side of an example's pictures
CROP = 72  # side of one of a prototype's crops, in pixels of the picture


class PrototypeView(NamedTuple):
    """What one prototype stands for."""

    label: int  # its class
    number: int  # its index among the prototypes of the class
    usage: float  # share of the class's features that chose it in the last epoch, 0..1
    cosine: float  # mean cosine with the features at the crops' centers
    crops: Image.Image  # surroundings of the nearest pixel of several images


def save_pictures(
    predictor: Predictor, confusion: dict[str, Tensor], by_image: ByImage | None, source: Source, output: Path
) -> None:
    """Write into a run folder what report.py shows: panel.png, examples/, prototypes/ and details.json.

    details.json has `classes`; `palette`; `confusion` (pixel counts `[truth][prediction]` by head); `prototypes` (the
    fields of `PrototypeView`); `examples` (name, mean IoU, why it is shown, and its files by title); and `confused`
    (truth, prediction, pixels, and the index of the example that shows most of these).
    """
    example_panel(predictor, source).save(output / "panel.png")
    views = gallery(predictor, source)
    for view in views:
        (output / "prototypes").mkdir(exist_ok=True)
        view.crops.save(output / f"prototypes/{view.label}_{view.number}.jpg", quality=85)
    shown, confused = chosen_examples(by_image, [sample.name for sample in examples(source)])
    samples = {sample.name: sample for sample in source.val}
    for number, one in enumerate(shown):
        one["pictures"] = save_example(predictor, samples[one["name"]], number, output)
    details = {
        "classes": source.classes,
        "palette": source.palette,
        "confusion": {head: counts.tolist() for head, counts in confusion.items()},
        "prototypes": [{key: value for key, value in view._asdict().items() if key != "crops"} for view in views],
        "examples": shown,
        "confused": confused,
    }
    (output / "details.json").write_text(json.dumps(details) + "\n")


def chosen_examples(by_image: ByImage | None, fixed: Sequence[str]) -> tuple[list[dict], list[dict]]:
    """Choose the images that a page shows, and those that show the most frequent confusions of classes.

    Args:
        by_image: counts of each validation image; without it nothing is chosen.
        fixed: names of images that every run shows.

    Returns:
        `examples` and `confused`, as details.json has them (`save_pictures`), without the files. An example's `why` is
        a list of "worst", "median" or "best" (by the mean IoU of the classes that occur), "fixed", and "confused" (it
        has most pixels of one of the largest cells of the confusion matrix).
    """
    if by_image is None:
        return [], []
    iou = measures(by_image.counts)["iou"]
    means = np.nansum(iou, axis=1) / np.maximum((~np.isnan(iou)).sum(axis=1), 1)
    order = means.argsort(kind="stable").tolist()
    few = min(NUM_RANKED, -(-len(order) // 3))
    middle = (len(order) - few) // 2
    why: dict[int, list[str]] = {}
    for word, places in {"worst": order[:few], "median": order[middle:][:few], "best": order[::-1][:few]}.items():
        for place in places:
            if place not in why:
                why[place] = [word]
    cells = [(i, j) for i, j in np.argwhere(by_image.most > 0).tolist() if i != j]
    share = by_image.most / np.maximum(by_image.counts[:, 1].sum(axis=0), 1)[:, None]  # of the class
    cells = sorted(cells, key=lambda cell: -share[cell])[:NUM_CONFUSED]
    for cell in cells:
        why.setdefault(int(by_image.where[cell]), []).append("confused")
    for name in fixed:
        if name in by_image.names:
            why.setdefault(by_image.names.index(name), []).append("fixed")
    numbers = {place: number for number, place in enumerate(why)}
    shown = [{"name": by_image.names[i], "iou": round(means[i].item(), 4), "why": words} for i, words in why.items()]
    confused = [
        {"truth": i, "prediction": j, "pixels": int(by_image.most[i, j]), "example": numbers[int(by_image.where[i, j])]}
        for i, j in cells
    ]
    return shown, confused


def save_example(predictor: Predictor, sample: Sample, number: int, output: Path) -> dict[str, str]:
    """Write the pictures of one validation image into `output`/examples; return their files by title."""
    image, truth = read_image(sample.image, sample.format), read_mask(sample)
    [found] = look(predictor, [image], nearest=False)
    palette, photo, linear = predictor.palette, visualize.rgb(image), found.labels["linear"]
    pictures = {"image": photo, "truth": visualize.colorize(truth, palette)}
    pictures |= {f"{head} head": visualize.colorize(labels, palette) for head, labels in found.labels.items()}
    pictures |= {"errors": visualize.errors(photo, truth, linear, palette)}
    pictures |= {"confidence": visualize.heat(found.confidence["linear"])}
    files = {}
    (output / "examples").mkdir(exist_ok=True)
    for place, (title, picture) in enumerate(pictures.items()):
        exact = title == "truth" or title.endswith("head")
        files[title] = f"examples/{number}_{place}.{'png' if exact else 'jpg'}"
        small = Image.fromarray(picture)
        small.thumbnail((EXAMPLE, EXAMPLE), Image.Resampling.NEAREST if exact else Image.Resampling.LANCZOS)
        small.save(output / files[title], quality=85)
    return files


def example_panel(predictor: Predictor, source: Source) -> Image.Image:
    """Draw a row for each of a few validation images: image, truth, each head, nearest prototypes, confidence."""
    bank, rows, heads = predictor.bank, [], []
    prototypes = [] if bank is None else distinct_colors(bank.prototypes.shape[:2].numel())
    for sample in examples(source):
        image, truth = read_image(sample.image, sample.format), read_mask(sample)
        [found] = look(predictor, [image])
        row = [visualize.rgb(image), visualize.colorize(truth, source.palette)]
        row += [visualize.colorize(labels, source.palette) for labels in found.labels.values()]
        heads = [f"{head} head" for head in found.labels]
        if found.nearest is not None:
            row.append(visualize.colorize(found.nearest, prototypes))
        rows.append([*row, visualize.heat(found.confidence["linear"])])
    titles = ["image", "truth", *heads, *([] if bank is None else ["nearest prototype"]), "confidence"]
    return visualize.panel(rows, titles, legend=list(zip(source.classes, source.palette, strict=True)))


def spread(samples: tuple[Sample, ...], most: int) -> tuple[Sample, ...]:
    """Take up to `most` samples at equal distances, since neighbours in a data set are often alike."""
    return samples[:: max(1, len(samples) // most)][:most]


def examples(source: Source) -> tuple[Sample, ...]:
    """Return the validation images that panels show."""
    return spread(source.val, NUM_IMAGES)


class View(NamedTuple):
    """The prediction of one image, as pictures and maps need it."""

    labels: dict[str, np.ndarray]  # by head, (H, W) uint8 class ids
    confidence: dict[str, np.ndarray]  # by head, (H, W) in (0, 1]
    disagreement: np.ndarray | None  # between the first two heads, (H, W) in 0..1; None with a single head
    nearest: np.ndarray | None  # (H, W) index c * K + k of the nearest prototype; None without prototypes


@torch.inference_mode()
def head_names(predictor: Predictor) -> list[str]:
    """Return the names of a predictor's heads: "linear", and those that its method adds by now."""
    blank = torch.zeros(1, predictor.channels, 64, 64, device=predictor.device)
    return list(predict_heads(predictor.network, predictor.method, blank))


@torch.inference_mode()
def look(
    predictor: Predictor, images: Sequence[np.ndarray], *, nearest: bool = True, linear: bool = False
) -> list[View]:
    """Predict images (H, W, channels) uint8 of one size in one batch.

    `nearest=False` leaves out the nearest prototypes, which cost a second forward; `linear` leaves out all other heads.
    """
    batch = torch.stack([as_tensor(image) for image in images]).to(predictor.device)
    logits = predictor(normalize(batch, predictor.network), linear=linear)
    best = {head: values.softmax(dim=1).max(dim=1) for head, values in logits.items()}
    labels = {head: found.indices.byte().cpu().numpy() for head, found in best.items()}
    confidence = {head: found.values.cpu().numpy() for head, found in best.items()}
    differ = disagreement(*list(logits.values())[:2]).cpu().numpy() if len(logits) > 1 else None
    nearest = nearest and predictor.bank is not None
    return [
        View(
            {head: found[i] for head, found in labels.items()},
            {head: found[i] for head, found in confidence.items()},
            None if differ is None else differ[i],
            assignment(predictor, image) if nearest else None,
        )
        for i, image in enumerate(images)
    ]


@torch.inference_mode()
def feature_cosines(predictor: Predictor, image: np.ndarray) -> Tensor:
    """Return the cosine (h, w, C, K) of each feature of an image (H, W, 3) with each prototype."""
    pixels = normalize(as_tensor(image)[None].to(predictor.device), predictor.network)
    return predictor.bank.cosines(predictor.network(pixels).features[0].permute(1, 2, 0))


def assignment(predictor: Predictor, image: np.ndarray) -> np.ndarray:
    """Return for each pixel (H, W) the index c * K + k of the prototype nearest to the closest cell's feature.

    The network sees the whole image at its own size, whatever the protocol. Corners are aligned as in all upsampling.
    """
    nearest = feature_cosines(predictor, image).flatten(2).argmax(dim=2).cpu().numpy()
    rows, columns = (
        np.rint(np.linspace(0, few - 1, many)).astype(int)
        for few, many in zip(nearest.shape, image.shape[:2], strict=True)
    )
    return nearest[rows[:, None], columns]


def gallery(predictor: Predictor, source: Source) -> list[PrototypeView]:
    """Show each prototype by the pixels nearest to it: the best pixel of each of its best validation images.

    Not by labeled images: prototypes were computed from these few, so they would always look convincing. Prototypes
    without data are left out. The list is empty without prototypes or validation images.
    """
    if predictor.bank is None or not source.val:
        return []
    samples = spread(source.val, GALLERY_IMAGES)
    found = [best_pixels(predictor, read_image(sample.image, sample.format)) for sample in samples]
    cosines, places = (torch.stack(parts).cpu() for parts in zip(*found, strict=True))  # (N, C, K), (N, C, K, 2)
    views = []
    for label, number in predictor.bank.prototypes.ne(0).any(dim=-1).nonzero().tolist():
        score, best = cosines[:, label, number].topk(min(NUM_CROPS, len(samples)), dim=0)
        shown = {i: visualize.rgb(read_image(samples[i].image, samples[i].format)) for i in best.tolist()}
        crops = [crop(image, *places[i, label, number].tolist()) for i, image in shown.items()]
        rows = [crops[:2], crops[2:]] if len(crops) == NUM_CROPS else [crops]
        usage, cosine = predictor.method.usage[label, number].item(), score.mean().item()
        views.append(PrototypeView(label, number, round(usage, 4), round(cosine, 4), visualize.grid(rows, gap=2)))
    return views


def best_pixels(predictor: Predictor, image: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return the largest cosine (C, K) of an image's features with each prototype, and where it is (C, K, 2).

    A place is (row, column) as shares of height and width, in 0..1.
    """
    cosines = feature_cosines(predictor, image)
    height, width = cosines.shape[:2]
    best, index = cosines.flatten(0, 1).max(dim=0)
    rows, columns = index // width, index % width  # in the feature map, whose corners are the image's
    return best, torch.stack([rows / max(height - 1, 1), columns / max(width - 1, 1)], dim=-1)


def crop(image: np.ndarray, row: float, column: float) -> Image.Image:
    """Cut out the surroundings of a place, given as shares of height and width, and mark it with a circle.

    The crop's side is a third of the image's shorter side, resized to `CROP` pixels.
    """
    height, width = image.shape[:2]
    side = max(8, min(height, width) // 3)
    y, x = row * (height - 1), column * (width - 1)
    top, left = (max(0, min(round(at - side / 2), size - side)) for at, size in ((y, height), (x, width)))
    picture = Image.fromarray(image[top : top + side, left : left + side]).resize((CROP, CROP))
    center = [(at + 0.5) * CROP / side for at in (x - left, y - top)]
    draw = ImageDraw.Draw(picture)
    draw.circle(center, 4, outline="black")
    draw.circle(center, 3, outline="white")
    return picture
