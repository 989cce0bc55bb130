"""From a checkpoint and images to maps, one file each, and the area of each class."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from PIL import Image
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from pcr_seg.commands.opening import choose_device, open_checkpoint
from pcr_seg.data import tiles
from pcr_seg.data.files import Format, read_image
from pcr_seg.data.sources import find_images
from pcr_seg.pictures import visualize
from pcr_seg.pictures.panels import View, look
from pcr_seg.pixels import distinct_colors
from pcr_seg.predictor import Predictor

MAPS = ("index", "color", "overlay", "confidence", "disagreement", "prototype")
TWO_HEADED = {"disagreement", "prototype"}


def predict(cfg: DictConfig) -> dict:
    """Write the chosen maps of each image; write and return what areas.json holds.

    areas.json: `checkpoint`, `classes`, `images` (name -> file, height, width, pixels and share of each class) and
    `total` (the same over all images).

    Raises:
        ValueError: an unknown map, one that needs a bank where there is none, no images, or two of one name.
    """
    predictor = open_checkpoint(cfg)
    maps = check_maps(list(cfg.maps), predictor)
    images = named_images(str(cfg.images))
    predictor.to(choose_device(cfg.device))
    if cfg.batch_size < 1:
        raise ValueError(f"batch_size={cfg.batch_size}: choose 1 or more")
    large = {name: path for name, path in images.items() if cfg.tile and is_large(path, cfg.tile)}
    small = {name: path for name, path in images.items() if name not in large}
    image_format, output = predictor.image_format, Path(cfg.output)
    output.mkdir(parents=True, exist_ok=True)

    started, areas, heads = time.perf_counter(), {}, needed(maps)
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns) as progress, ThreadPoolExecutor() as pool:
        task, waiting = progress.add_task("predict", total=len(images)), []
        for batch in batches(small, image_format, cfg.batch_size):
            found = look(predictor, [image for _, image in batch], **heads)
            for written in waiting:  # one batch is written while the next is predicted, and never more than one
                written.result()
            waiting = []
            for (name, image), prediction in zip(batch, found, strict=True):
                areas[name] = area(images[name], prediction.labels["linear"], predictor.class_names)
                waiting.append(pool.submit(write_maps, predictor, image, prediction, maps, output, name))
            progress.advance(task, len(batch))
        for written in waiting:
            written.result()
        for name, path in large.items():
            areas[name] = predict_tiles(predictor, path, image_format, cfg, maps, name, progress)
            progress.advance(task)
    seconds = time.perf_counter() - started

    total = np.sum([list(of_image["pixels"].values()) for of_image in areas.values()], axis=0)
    content = {
        "checkpoint": str(cfg.checkpoint),
        "classes": predictor.class_names,
        "images": {name: areas[name] for name in images},
        "total": of_classes(total, predictor.class_names),
    }
    (output / "areas.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    console = Console(soft_wrap=True, highlight=False, markup=False)
    speed = f"{len(images) / seconds:.2f} images/s"
    console.print(f"{len(images)} images in {seconds:.1f} s on {predictor.device}, {speed}")
    console.print(f"{output}/{{{','.join(maps)}}} and the area of each class in {output}/areas.json")
    console.print(f"python choose.py checkpoint={cfg.checkpoint} budget=20     # which images to label next")
    console.print(f"python export.py checkpoint={cfg.checkpoint} format=onnx")
    return content


def check_maps(maps: list[str], predictor: Predictor) -> list[str]:
    """The maps, if there are such and the predictor can make them; otherwise a ValueError."""
    if strange := sorted(set(maps) - set(MAPS)):
        raise ValueError(f"maps: {', '.join(strange)} is none of {', '.join(MAPS)}")
    two_headed = sorted(TWO_HEADED & set(maps))
    if two_headed and predictor.bank is None:
        names = ", ".join(two_headed)
        raise ValueError(f"maps: {names} needs prototypes, which this checkpoint of {predictor.name} has not")
    return maps


def needed(maps: list[str]) -> dict[str, bool]:
    """What `look` has to compute for these maps, and no more."""
    return {"nearest": "prototype" in maps, "linear": not TWO_HEADED & set(maps)}


def named_images(place: str) -> dict[str, Path]:
    """Images of a file, a folder (with sub-folders) or a glob, by the name that their maps get."""
    start, paths = find_images(place)
    images: dict[str, Path] = {}
    for path in map(Path, paths):
        name = path.relative_to(start).with_suffix("").as_posix()
        if name in images:
            raise ValueError(f"{path}: its maps would be called as those of {images[name]}; rename one of them")
        images[name] = path
    if not images:
        raise ValueError(f"images={place}: no image there; give a file, a folder or a quoted glob")
    return images


def batches(images: dict[str, Path], format: Format, size: int) -> Iterator[list[tuple[str, np.ndarray]]]:
    """Read images in order, up to `size` neighbors of one shape at a time: a frame after another, a photo alone."""
    batch: list[tuple[str, np.ndarray]] = []
    for name, path in images.items():
        image = read_image(path, format)
        if batch and (len(batch) == size or image.shape != batch[0][1].shape):
            yield batch
            batch = []
        batch.append((name, image))
    if batch:
        yield batch


def draw_maps(predictor: Predictor, image: np.ndarray, found: View, maps: list[str]) -> dict[str, np.ndarray]:
    """The pictures of a prediction by the folder that they go to, (H, W) or (H, W, 3) uint8."""
    labels, palette = found.labels["linear"], predictor.palette
    pictures = {}
    if "index" in maps:
        pictures["index"] = labels
    if "color" in maps:
        pictures["color"] = visualize.colorize(labels, palette)
    if "overlay" in maps:
        pictures["overlay"] = visualize.overlay(visualize.rgb(image), labels, palette)
    if "confidence" in maps:
        pictures["confidence"] = to_bytes(found.confidence["linear"])
    if "disagreement" in maps:
        pictures["disagreement"] = to_bytes(found.disagreement)
    if "prototype" in maps:
        number = predictor.bank.prototypes.shape[:2].numel()
        pictures["prototype"] = found.nearest.astype(np.uint8 if number <= 256 else np.uint16)
        pictures["prototype_color"] = visualize.colorize(found.nearest, distinct_colors(number))
    return pictures


def to_bytes(values: np.ndarray) -> np.ndarray:
    """Numbers in 0..1 as 0..255."""
    return np.rint(values * 255).astype(np.uint8)


def write_maps(predictor: Predictor, image: np.ndarray, found: View, maps: list[str], output: Path, name: str) -> None:
    """Write the maps of one image as PNG files OUTPUT/MAP/NAME.png."""
    for kind, picture in draw_maps(predictor, image, found, maps).items():
        target = output / kind / f"{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        # A third larger than by default, in a fifth of the time.
        Image.fromarray(picture).save(target, compress_level=1)


def area(path: Path, labels: np.ndarray, classes: list[str]) -> dict:
    """What areas.json says of one image."""
    height, width = labels.shape
    counts = np.bincount(labels.ravel(), minlength=len(classes))
    return {"file": str(path), "height": height, "width": width, **of_classes(counts, classes)}


def of_classes(counts: np.ndarray, classes: list[str]) -> dict:
    """Pixels of each class, and their share in 0..1."""
    shares = counts / counts.sum()
    return {
        "pixels": dict(zip(classes, counts.tolist(), strict=True)),
        "share": dict(zip(classes, shares.round(6).tolist(), strict=True)),
    }


def is_large(path: Path, tile: int) -> bool:
    """Whether an image is predicted by tiles: a TIFF file with a longer side than `tile`."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return False
    with tiles.open_tiff(path) as file:
        return max(file.shape) > tile


def predict_tiles(
    predictor: Predictor, path: Path, format: Format, cfg: DictConfig, maps: list[str], name: str,
    progress: Progress,
) -> dict:  # fmt: skip
    """Write the maps of one TIFF file by tiles, as OUTPUT/MAP/NAME.tif with its georeference; return its areas."""
    counts = np.zeros(len(predictor.class_names), np.int64)
    with tiles.open_tiff(path) as file, ExitStack() as stack:
        rows, columns = (tiles.cuts(size, cfg.tile, cfg.margin) for size in file.shape)
        block, written = max(cut.last - cut.first for cut in rows + columns), {}
        places = [(row, column) for row in rows for column in columns]
        for row, column in progress.track(places, description=name):
            image = tiles.read_window(file, row, column, format)
            [found] = look(predictor, [image], **needed(maps))
            for kind, picture in draw_maps(predictor, image, found, maps).items():
                if kind not in written:
                    target = Path(cfg.output, kind, f"{name}.tif")
                    written[kind] = stack.enter_context(tiles.create_tiff(target, file, picture, block))
                tiles.write_window(written[kind], picture, row, column)
            kept = tiles.kept(found.labels["linear"], row, column)
            counts += np.bincount(kept.ravel(), minlength=len(counts))
        height, width = file.shape
    return {"file": str(path), "height": height, "width": width, **of_classes(counts, predictor.class_names)}
