"""Predict images with a checkpoint: write maps, a file for each, and the area of each class."""

import json
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import Progress

from pcr_seg.commands.maps import (
    MAPS,
    REMEDY,
    check_maps,
    check_settings,
    draw_maps,
    needed,
    places,
    predict_batches,
    progress_bar,
    skipping,
    write_maps,
)
from pcr_seg.commands.opening import choose_device, open_checkpoint, output_folder, writing
from pcr_seg.config import check_counts
from pcr_seg.data import annotations, tiles
from pcr_seg.data.files import DataError, Format, is_url
from pcr_seg.data.sources import find_images
from pcr_seg.data.tiles import Cut
from pcr_seg.pictures.panels import View, look
from pcr_seg.predictor import Predictor

FOLDERS = {*MAPS, "prototype_color"}  # folders of the output


def predict(cfg: DictConfig) -> dict:
    """Write the chosen maps of each image, annotations if asked for, and areas.json; return the content of the latter.

    areas.json has `checkpoint`; `classes`; `images` (by name: file, height, width, pixels and share of each class);
    `failed` (by name: why an image was left out); and `total` (pixels and share of each class over all images). If the
    command is stopped, it has the images that are done.

    Raises:
        ValueError: a map is unknown, or the checkpoint cannot make it; a setting has no such value; there are no
            images, or two of the same name; or, with on_error=raise, an image cannot be read.
        OSError: a map cannot be written.
    """
    predictor = open_checkpoint(cfg)
    maps = check_maps([cfg.maps] if isinstance(cfg.maps, str) else list(cfg.maps), predictor)
    check_settings(cfg)
    if cfg.tile is not None:
        check_counts({"tile": cfg.tile})
        check_counts({"margin": cfg.margin}, least=0)
        tiles.cuts(1, cfg.tile, cfg.margin)
    output = Path(cfg.output)
    images = named_images(str(cfg.images), output)
    check_format(cfg, images)
    predictor.to(choose_device(cfg.device))
    output_folder(output, REMEDY)

    started, areas, failed = time.perf_counter(), {}, {}
    console = Console(soft_wrap=True, highlight=False, markup=False)
    try:
        writer = annotations.annotations(output, cfg.format, predictor.class_names) if cfg.format else nullcontext()
        with writer as annotate:
            predict_images(predictor, images, cfg, maps, areas, failed, annotate)
    except KeyboardInterrupt:
        console.print(f"interrupted: {len(areas)} of {len(images)} images are done; see {output}/areas.json")
        raise
    finally:
        content = write_areas(cfg, predictor.class_names, images, areas, failed)
    seconds = time.perf_counter() - started
    done = f"{len(areas)} of {len(images)}" if failed else len(images)
    console.print(f"{done} images in {seconds:.1f} s on {predictor.device}, {len(areas) / seconds:.2f} images/s")
    console.print(f"{output}/{{{','.join(maps)}}} and the area of each class in {output}/areas.json")
    if cfg.format:
        written = output / ("annotations.json" if cfg.format == "coco" else "labelme")
        place = cfg.images if Path(cfg.images).is_dir() else next(iter(images.values())).parent
        words = shlex.join([f"from={written}", f"images={place}"])
        console.print(f"python prepare.py import {words} dataset.root=NEW     # once {written} is corrected in a tool")
    console.print(f"python choose.py checkpoint={cfg.checkpoint} budget=20     # which images to label next")
    console.print(f"python export.py checkpoint={cfg.checkpoint} format=onnx")
    return content


def check_format(cfg: DictConfig, images: dict[str, Path]) -> None:
    """Raise a ValueError for an unknown annotation format, or for one with an image that is predicted by tiles."""
    if cfg.format not in (None, *annotations.FORMATS):
        raise ValueError(f"format={cfg.format}: choose {' or '.join(annotations.FORMATS)}, or leave it out")
    if cfg.format and cfg.tile and (large := [path for path in images.values() if is_large(path, cfg.tile)]):
        raise ValueError(
            f"format={cfg.format}: {large[0]} is predicted by tiles, for maps alone; leave out format or tile"
        )


def predict_images(
    predictor: Predictor, images: dict[str, Path], cfg: DictConfig, maps: list[str], areas: dict, failed: dict,
    annotate: Callable[[str, Path, np.ndarray], None] | None,
) -> None:  # fmt: skip
    """Write the maps of images; put each image's areas into `areas`, or the reason why it is left out into `failed`."""
    large = {name: path for name, path in images.items() if cfg.tile and is_large(path, cfg.tile)}
    small = {name: path for name, path in images.items() if name not in large}
    placed, output = places(small), Path(cfg.output)

    def write(name: str, image: np.ndarray, found: View) -> None:
        write_maps(predictor, image, found, maps, output, name, placed.get(name))
        if annotate:
            with writing(output, REMEDY):
                annotate(f"{name}{images[name].suffix}", images[name], found.labels["linear"])
        areas[name] = area(images[name], found.labels["linear"], predictor.class_names)

    with progress_bar() as progress:
        task = progress.add_task("predict", total=len(images))
        leave_out = skipping(failed, cfg.on_error, progress, task)
        predict_batches(predictor, [small], cfg.batch_size, maps, write, leave_out, progress, task)
        for name, path in large.items():
            try:
                areas[name] = predict_tiles(predictor, path, predictor.image_format, cfg, maps, name, progress)
                progress.advance(task)
            except (DataError, FileNotFoundError) as error:
                leave_out(name, error)


def write_areas(cfg: DictConfig, classes: list[str], images: dict[str, Path], areas: dict, failed: dict) -> dict:
    """Write areas.json with the images that are done, in the images' order, and return its content."""
    done = {name: areas[name] for name in images if name in areas}
    pixels = [list(of_image["pixels"].values()) for of_image in done.values()]
    total = np.sum([[0] * len(classes), *pixels], axis=0)
    content = {
        "checkpoint": str(cfg.checkpoint),
        "classes": classes,
        "images": done,
        "failed": failed,
        "total": of_classes(total, classes),
    }
    file = Path(cfg.output, "areas.json")
    with writing(file, REMEDY):
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return content


def named_images(place: str, output: Path) -> dict[str, Path]:
    """Return the images of a file, a folder with its sub-folders, or a glob, by the name that their maps get.

    Maps that an earlier prediction has written are left out.

    Raises:
        ValueError: `place` is a URL; there are no images; or the maps of two would have the same name.
    """
    if is_url(place):
        raise ValueError(f"images={place}: is a URL, which autolabel.py reads; copy the images to this machine")
    start, paths = find_images(place)
    images: dict[str, Path] = {}
    maps = [path for path in paths if is_map(Path(path), output.resolve())]
    for path in map(Path, sorted(set(paths) - set(maps))):
        name = path.relative_to(start).with_suffix("").as_posix()
        if name in images:
            raise ValueError(f"{path}: its maps would be called as those of {images[name]}; rename one of them")
        images[name] = path
    if not images:
        found = "maps of an earlier prediction alone" if maps else "no image there"
        raise ValueError(f"images={place}: {found}; give a file, a folder or a quoted glob")
    if maps:
        print(f"left out: {len(maps)} maps of earlier predictions in images={place}")
    return images


def is_map(path: Path, output: Path) -> bool:
    """Whether this command has written a file: it is in OUTPUT/MAP/, or in a folder MAP/ beside an areas.json."""
    if path.suffix not in (".png", ".tif") or FOLDERS.isdisjoint(path.parts):
        return False
    above = [folder.parent for folder in path.resolve().parents if folder.name in FOLDERS]
    return any(folder == output or (folder / "areas.json").is_file() for folder in above)


def area(path: Path, labels: np.ndarray, classes: list[str]) -> dict:
    """Return what areas.json has about one image."""
    height, width = labels.shape
    counts = np.bincount(labels.ravel(), minlength=len(classes))
    return {"file": str(path), "height": height, "width": width, **of_classes(counts, classes)}


def of_classes(counts: np.ndarray, classes: list[str]) -> dict:
    """Return the pixels of each class, and their share in 0..1; 0 if there are no pixels at all."""
    shares = counts / max(counts.sum(), 1)
    return {
        "pixels": dict(zip(classes, counts.tolist(), strict=True)),
        "share": dict(zip(classes, shares.round(6).tolist(), strict=True)),
    }


def is_large(path: Path, tile: int) -> bool:
    """Whether an image is predicted by tiles: a TIFF file with a longer side than `tile`."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return False
    try:
        with tiles.open_tiff(path) as file:
            return max(file.shape) > tile
    except OSError:  # `read_image` will report what is wrong with it
        return False


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Inside this context, turn GDAL's errors about a damaged file into a DataError that names the file."""
    try:
        yield
    except OSError as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: not readable as an image ({reason}); replace or remove it") from error


def read_windows(
    file, path: Path, rows: list[Cut], columns: list[Cut], format: Format
) -> Iterator[tuple[Cut, Cut, np.ndarray]]:
    """Yield each window's rows, columns and pixels."""
    for row in rows:
        with reading(path):
            strip = tiles.read_strip(file, row, format)
        for column in columns:
            if strip is not None:
                image = strip[:, column.start : column.stop]
            else:
                with reading(path):
                    image = tiles.read_window(file, row, column, format)
            yield row, column, image


def predict_tiles(
    predictor: Predictor, path: Path, format: Format, cfg: DictConfig, maps: list[str], name: str,
    progress: Progress,
) -> dict:  # fmt: skip
    """Write the maps of one TIFF file by tiles, as OUTPUT/MAP/NAME.tif with its georeference; return its areas.

    Raises:
        DataError: a window cannot be read; the maps are removed then.
        OSError: a map cannot be written.
    """
    counts, written = np.zeros(len(predictor.class_names), np.int64), {}
    try:
        with ExitStack() as stack:
            with reading(path):
                file = stack.enter_context(tiles.open_tiff(path))
            rows, columns = (tiles.cuts(size, cfg.tile, cfg.margin) for size in file.shape)
            block = max(cut.last - cut.first for cut in rows + columns)
            windows = read_windows(file, path, rows, columns, format)
            for row, column, image in progress.track(windows, len(rows) * len(columns), description=name):
                [found] = look(predictor, [image], **needed(maps))
                for kind, picture in draw_maps(predictor, image, found, maps).items():
                    target = Path(cfg.output, kind, f"{name}.tif")
                    with writing(target, REMEDY):
                        if target not in written:
                            written[target] = stack.enter_context(tiles.create_tiff(target, file, picture, block))
                        tiles.write_window(written[target], picture, row, column)
                kept = tiles.kept(found.labels["linear"], row, column)
                counts += np.bincount(kept.ravel(), minlength=len(counts))
            height, width = file.shape
    except BaseException:  # an interrupt as well
        for target in written:
            target.unlink(missing_ok=True)
        raise
    return {"file": str(path), "height": height, "width": width, **of_classes(counts, predictor.class_names)}
