"""From a checkpoint and images to maps, one file each, and the area of each class."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from PIL import Image
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from pcr_seg import visualize
from pcr_seg.data import tiles
from pcr_seg.data.files import Format, read_image
from pcr_seg.data.sources import find_images
from pcr_seg.module import SemiSupervisedSegmentation
from pcr_seg.panels import Prediction
from pcr_seg.panels import predict as look
from pcr_seg.run import load_module

MAPS = ("index", "color", "overlay", "confidence", "disagreement", "prototype")
TWO_HEADED = {"disagreement", "prototype"}


def predict(cfg: DictConfig) -> dict:
    """Write the chosen maps of each image; write and return what areas.json holds.

    areas.json: `checkpoint`, `classes`, `images` (name -> file, height, width, pixels and share of each class) and
    `total` (the same over all images).

    Raises:
        ValueError: an unknown map, one that needs a bank where there is none, no images, or two of one name.
    """
    module = load_module(cfg.checkpoint, student=cfg.eval.student, protocol=cfg.get("protocol"))
    maps = check_maps(list(cfg.maps), module)
    images = named_images(str(cfg.images))
    module.to(choose_device(cfg.device))
    if cfg.batch_size < 1:
        raise ValueError(f"batch_size={cfg.batch_size}: choose 1 or more")
    if not TWO_HEADED & set(maps):
        module.bank.is_initialized.fill_(False)  # the prototype head would be computed for nothing
    large = {name: path for name, path in images.items() if cfg.tile and is_large(path, cfg.tile)}
    small = {name: path for name, path in images.items() if name not in large}
    image_format, output = dataset_format(module), Path(cfg.output)
    output.mkdir(parents=True, exist_ok=True)

    started, areas = time.perf_counter(), {}
    columns = (*Progress.get_default_columns(), MofNCompleteColumn())
    with Progress(*columns) as progress, ThreadPoolExecutor() as pool:
        task, waiting = progress.add_task("predict", total=len(images)), []
        for batch in batches(small, image_format, cfg.batch_size):
            found = look(module, [image for _, image in batch], nearest="prototype" in maps)
            for written in waiting:  # one batch is written while the next is predicted, and never more than one
                written.result()
            waiting = []
            for (name, image), prediction in zip(batch, found, strict=True):
                areas[name] = area(images[name], prediction.labels["linear"], module.class_names)
                waiting.append(pool.submit(write_maps, module, image, prediction, maps, output, name))
            progress.advance(task, len(batch))
        for written in waiting:
            written.result()
        for name, path in large.items():
            areas[name] = predict_tiles(module, path, image_format, cfg, maps, name, progress)
            progress.advance(task)
    seconds = time.perf_counter() - started

    total = np.sum([list(of_image["pixels"].values()) for of_image in areas.values()], axis=0)
    content = {
        "checkpoint": str(cfg.checkpoint),
        "classes": module.class_names,
        "images": {name: areas[name] for name in images},
        "total": of_classes(total, module.class_names),
    }
    (output / "areas.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"{len(images)} images in {seconds:.1f} s on {module.device}, {len(images) / seconds:.2f} images/s")
    console.print(f"{output}/{{{','.join(maps)}}} and the area of each class in {output}/areas.json")
    console.print(f"python choose.py checkpoint={cfg.checkpoint} budget=20     # which images to label next")
    console.print(f"python export.py checkpoint={cfg.checkpoint} format=onnx")
    return content


def check_maps(maps: list[str], module: SemiSupervisedSegmentation) -> list[str]:
    """The maps, if there are such and the module can make them; otherwise a ValueError."""
    if strange := sorted(set(maps) - set(MAPS)):
        raise ValueError(f"maps: {', '.join(strange)} is none of {', '.join(MAPS)}")
    needed = sorted(TWO_HEADED & set(maps))
    if needed and not module.bank.is_initialized:
        raise ValueError(f"maps: {', '.join(needed)} needs prototypes, which this checkpoint of {module.name} has not")
    return maps


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


def choose_device(name: str) -> torch.device:
    """The device of this name: auto (a GPU where there is one), cpu, gpu, cuda:1; raises ValueError without it."""
    meant = {"auto": "cuda" if torch.cuda.is_available() else "cpu", "gpu": "cuda"}.get(name, name)
    try:
        torch.zeros(1, device=meant)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={name}: not on this machine; set device=auto or device=cpu") from error
    return torch.device(meant)


def dataset_format(module: SemiSupervisedSegmentation) -> Format:
    """How images are read: as those that the module was trained on."""
    dataset = module.metadata["config"]["dataset"]
    return Format(dataset.get("channels", 3), dataset.get("max_value"))


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


def draw_maps(
    module: SemiSupervisedSegmentation, image: np.ndarray, found: Prediction, maps: list[str]
) -> dict[str, np.ndarray]:
    """The pictures of a prediction by the folder that they go to, (H, W) or (H, W, 3) uint8."""
    labels, palette = found.labels["linear"], module.metadata["palette"]
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
        number = module.bank.prototypes.shape[:2].numel()
        pictures["prototype"] = found.nearest.astype(np.uint8 if number <= 256 else np.uint16)
        pictures["prototype_color"] = visualize.colorize(found.nearest, visualize.palette(number))
    return pictures


def to_bytes(values: np.ndarray) -> np.ndarray:
    """Numbers in 0..1 as 0..255."""
    return np.rint(values * 255).astype(np.uint8)


def write_maps(
    module: SemiSupervisedSegmentation, image: np.ndarray, found: Prediction, maps: list[str], output: Path, name: str
) -> None:
    """Write the maps of one image as PNG files OUTPUT/MAP/NAME.png."""
    for kind, picture in draw_maps(module, image, found, maps).items():
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
    module: SemiSupervisedSegmentation, path: Path, format: Format, cfg: DictConfig, maps: list[str], name: str,
    progress: Progress,
) -> dict:  # fmt: skip
    """Write the maps of one TIFF file by tiles, as OUTPUT/MAP/NAME.tif with its georeference; return its areas."""
    counts = np.zeros(len(module.class_names), np.int64)
    with tiles.open_tiff(path) as file, ExitStack() as stack:
        rows, columns = (tiles.cuts(size, cfg.tile, cfg.margin) for size in file.shape)
        block, written = max(cut.last - cut.first for cut in rows + columns), {}
        places = [(row, column) for row in rows for column in columns]
        for row, column in progress.track(places, description=name):
            image = tiles.read_window(file, row, column, format)
            [found] = look(module, [image], nearest="prototype" in maps)
            for kind, picture in draw_maps(module, image, found, maps).items():
                if kind not in written:
                    target = Path(cfg.output, kind, f"{name}.tif")
                    written[kind] = stack.enter_context(tiles.create_tiff(target, file, picture, block))
                tiles.write_window(written[kind], picture, row, column)
            kept = tiles.kept(found.labels["linear"], row, column)
            counts += np.bincount(kept.ravel(), minlength=len(counts))
        height, width = file.shape
    return {"file": str(path), "height": height, "width": width, **of_classes(counts, module.class_names)}
