"""Write predictions as files: read images in batches, predict them, and write maps while the next batch is predicted.

The file of a map is complete or not there at all.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from omegaconf import DictConfig
from PIL import Image
from rich.progress import MofNCompleteColumn, Progress, TaskID

from pcr_seg.commands.opening import writing
from pcr_seg.config import check_counts
from pcr_seg.data import annotations, tiles
from pcr_seg.data.classes import distinct_colors
from pcr_seg.data.files import DataError, Format, nearly_black, read_image
from pcr_seg.pictures import visualize
from pcr_seg.pictures.panels import View, head_names, look
from pcr_seg.predictor import Predictor

MAPS = ("index", "color", "overlay", "confidence", "disagreement", "prototype")
REMEDY = "make room there, or name another folder with output=FOLDER"
GEO_TAGS = {33550, 33922, 34264, 34735}  # GeoTIFF's tags: pixel scale, tie points, transform, coordinate system
ORIENTATION = 274  # TIFF's tag; a value of 1 is upright
BLOCK = 256  # side in pixels of the blocks of a GeoTIFF that is written at once


def check_settings(cfg: DictConfig) -> None:
    """Raise a ValueError for a `batch_size` or `on_error` that has no such value."""
    check_counts({"batch_size": cfg.batch_size})
    if cfg.on_error not in ("skip", "raise"):
        raise ValueError(f"on_error={cfg.on_error}: choose skip or raise")


def check_maps(maps: list[str], predictor: Predictor) -> list[str]:
    """Return the maps; raise a ValueError if one does not exist or the predictor cannot make it."""
    if strange := sorted(set(maps) - set(MAPS)):
        raise ValueError(f"maps: {', '.join(strange)} is none of {', '.join(MAPS)}")
    lacking = []
    if "disagreement" in maps and len(head_names(predictor)) == 1:
        lacking.append("disagreement needs a second head")
    if "prototype" in maps and predictor.bank is None:
        lacking.append("prototype needs prototypes")
    if lacking:
        raise ValueError(f"maps: {', '.join(lacking)}, which this checkpoint of {predictor.name} has not; leave it out")
    return maps


def needed(maps: list[str]) -> dict[str, bool]:
    """Return the arguments of `look` with which it computes no more than these maps need."""
    return {"nearest": "prototype" in maps, "linear": "disagreement" not in maps}


def progress_bar(*, shown: bool = True) -> Progress:
    """Return a progress bar that counts images."""
    return Progress(*Progress.get_default_columns(), MofNCompleteColumn(), disable=not shown)


def predict_batches(
    predictor: Predictor, groups: Iterable[Mapping[str, Path | str]], batch_size: int, maps: list[str],
    write: Callable[[str, np.ndarray, View], None], unreadable: Callable[[str, Exception], None],
    progress: Progress, task: TaskID,
) -> None:  # fmt: skip
    """Predict groups of images in batches, and write each image's prediction in a thread meanwhile.

    Args:
        predictor: the model.
        groups: each with its images' files by name; a batch never has images of two groups.
        batch_size: most images in a batch.
        maps: the maps that will be written; only what these need is computed.
        write: is called with an image's name, the image (H, W, channels) and its prediction.
        unreadable: is called with the name of an image that cannot be read, and the error.
        progress: shows how many images are done.
        task: the task of `progress` to advance.
    """
    heads, format = needed(maps), predictor.image_format
    with ThreadPoolExecutor() as pool:
        waiting: list[Future] = []
        for group in groups:
            for batch in batches(group, format, batch_size, unreadable):
                for name, image in batch:
                    if nearly_black(group[name], int(image.max()), format):
                        remedy = "scale its values to 16 bits, or train with dataset.max_value"
                        line = f"{group[name]}: nearly black as it is read; {remedy}"
                        progress.console.print(line, soft_wrap=True, markup=False)
                found = look(predictor, [image for _, image in batch], **heads)
                for written in waiting:  # wait, so that no more than one batch is being written
                    written.result()
                waiting = [pool.submit(write, *pair, view) for pair, view in zip(batch, found, strict=True)]
                progress.advance(task, len(batch))
        for written in waiting:
            written.result()


def skipping(
    failed: dict[str, str], on_error: str, progress: Progress, task: TaskID
) -> Callable[[str, Exception], None]:
    """Return a function for images that cannot be read: it prints the error and notes it in `failed`, or raises it.

    `on_error` is "skip" or "raise".
    """

    def leave_out(name: str, error: Exception) -> None:
        if on_error == "raise":
            raise error
        failed[name] = str(error)
        progress.console.print(f"left out: {error}", soft_wrap=True, highlight=False, markup=False)
        progress.advance(task)

    return leave_out


def batches(
    images: Mapping[str, Path | str], format: Format, size: int, unreadable: Callable[[str, Exception], None]
) -> Iterator[list[tuple[str, np.ndarray]]]:
    """Read images in order and yield batches of up to `size` neighbours of the same shape.

    `unreadable` is called with the name of an image that cannot be read, and the error.
    """
    batch: list[tuple[str, np.ndarray]] = []
    for name, path in images.items():
        try:
            image = read_image(path, format)
        except (DataError, FileNotFoundError) as error:
            unreadable(name, error)
            continue
        if batch and (len(batch) == size or image.shape != batch[0][1].shape):
            yield batch
            batch = []
        batch.append((name, image))
    if batch:
        yield batch


def draw_maps(predictor: Predictor, image: np.ndarray, found: View, maps: list[str]) -> dict[str, np.ndarray]:
    """Return the pictures (H, W) or (H, W, 3) of a prediction, by the folder that each is written to.

    All are uint8, except for the indices of more than 256 prototypes, which are uint16.
    """
    labels, palette = found.labels["linear"], predictor.palette
    ground = annotations.ground(predictor.class_names)
    pictures = {}
    if "index" in maps:
        pictures["index"] = labels
    if "color" in maps:
        pictures["color"] = visualize.colorize(labels, palette)
    if "overlay" in maps:
        pictures["overlay"] = visualize.overlay(visualize.rgb(image), labels, palette, background=ground)
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
    """Convert numbers in 0..1 to uint8 in 0..255."""
    return np.rint(values * 255).astype(np.uint8)


def write_maps(
    predictor: Predictor, image: np.ndarray, found: View, maps: list[str], output: Path, name: str,
    place: Path | None = None,
) -> None:  # fmt: skip
    """Write the maps of an image as OUTPUT/MAP/NAME.png, or as NAME.tif with the georeference of the file `place`."""
    for kind, picture in draw_maps(predictor, image, found, maps).items():
        target = output / kind / f"{name}{'.tif' if place else '.png'}"
        with complete(target) as partial:
            if place:
                write_tiff(partial, picture, place)
            else:
                write_png(partial, picture)


@contextmanager
def complete(target: Path) -> Iterator[Path]:
    """Yield a hidden file beside `target` to write to, which is then renamed to it; raise an OSError of one line."""
    partial = target.with_name(f".{target.name}")
    with writing(target, REMEDY):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)


def write_png(target: Path, picture: np.ndarray) -> None:
    """Write (H, W) or (H, W, 3) as a PNG file; weakly compressed, which makes it larger but much faster to write."""
    Image.fromarray(picture).save(target, compress_level=1)


def write_tiff(target: Path, picture: np.ndarray, place: Path) -> None:
    """Write (H, W) or (H, W, bands) as a TIFF file with the georeference of `place`, a file of the same size."""
    rows, columns = (tiles.Cut(0, size, 0, size) for size in picture.shape[:2])
    with tiles.open_tiff(place) as like, tiles.create_tiff(target, like, picture, BLOCK) as file:
        tiles.write_window(file, picture, rows, columns)


def places(images: dict[str, Path]) -> dict[str, Path]:
    """Return the georeferenced images; without rasterio print that the georeference is lost, and return none."""
    found = {name: path for name, path in images.items() if is_georeferenced(path)}
    if found and find_spec("rasterio") is None:
        remedy = "pip install 'pcr-seg[tiles]' keeps it"
        print(f"{len(found)} GeoTIFF files: their maps become PNG and lose the place on earth; {remedy}")
        return {}
    return found


def is_georeferenced(path: Path) -> bool:
    """Whether a file is an upright GeoTIFF, so that its prediction has the same rows and columns; reads tags only."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return False
    try:
        with Image.open(path, formats=["TIFF"]) as image:
            return not GEO_TAGS.isdisjoint(image.tag_v2) and image.tag_v2.get(ORIENTATION, 1) == 1
    except Exception:  # Pillow raises nearly any exception for damaged files, which `read_image` will report
        return False
