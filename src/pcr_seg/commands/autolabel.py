"""Label very many images by a model, as a data set to train on: by any number of processes, which may be killed.

    classes.txt  labels/train/NAME.png  images/train/NAME.jpg  confidence/train/NAME.png  disagreement/train/NAME.png

An image appears in images/train/ only when its mask is complete. So at any time the folder is a data set, and shows
what is done. Images are divided into groups of `batch_size` in the order of their list. So which images share a batch,
and every byte of the result, depends neither on the number of processes nor on where one was stopped.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from omegaconf import DictConfig, ListConfig, OmegaConf

from pcr_seg import cluster
from pcr_seg.checkpoint import fetched
from pcr_seg.commands.maps import (
    REMEDY,
    check_maps,
    check_settings,
    complete,
    draw_maps,
    predict_batches,
    progress_bar,
    skipping,
    write_png,
)
from pcr_seg.commands.opening import choose_device, open_checkpoint, output_folder, writing
from pcr_seg.data.files import IGNORE_INDEX, Sample, alone_on_disk, read_bytes
from pcr_seg.data.sources import class_table, without_masks
from pcr_seg.pictures.panels import View
from pcr_seg.predictor import Predictor

MAPS = ("confidence", "disagreement")  # maps that can be written beside the masks
SETTINGS = "autolabel.json"  # file with the settings that all images of a folder were labeled with


def autolabel(cfg: DictConfig) -> dict[str, str]:
    """Label this process's part of the images; return by name why images were left out.

    Raises:
        ValueError: a setting has no such value; the checkpoint cannot make a map; there are no images; the folder has
            labels of another checkpoint or of other settings; or, with on_error=raise, an image cannot be read.
        OSError: a file cannot be written.
    """
    predictor, place = open_checkpoint(cfg), cluster.place()
    maps = [cfg.maps] if isinstance(cfg.maps, str) else list(cfg.maps or ())
    if strange := sorted(set(maps) - set(MAPS)):
        raise ValueError(f"maps: {', '.join(strange)} is none of {', '.join(MAPS)}")
    check_maps(maps, predictor)
    check_settings(cfg)
    output, places = Path(cfg.output), list(cfg.images) if isinstance(cfg.images, ListConfig) else cfg.images
    check_apart(output, [places] if isinstance(places, str) else places)
    images = without_masks(places, predictor.image_format, key="images")
    check_same(cfg, output)
    predictor.to(choose_device(cfg.device, place.local_rank))
    output_folder(output, REMEDY)
    if place.rank == 0:
        content = json.dumps(settings(cfg), indent=2) + "\n"
        with complete(output / SETTINGS) as file:
            file.write_text(content, encoding="utf-8")
        with complete(output / "classes.txt") as file:
            file.write_text(class_table(predictor.class_names, predictor.palette), encoding="utf-8")

    started, failed = time.perf_counter(), {}
    count = label_images(predictor, images, cfg, maps, failed, place)
    seconds = time.perf_counter() - started
    own = f"process {place.rank} of {place.total}: " if place.total > 1 else ""
    speed = f"{count} images labeled in {seconds:.1f} s on {predictor.device}, {count / seconds:.2f} images/s"
    print(f"{own}{speed}{f'; {len(failed)} cannot be read' if failed else ''}")
    if place.rank == 0:
        print(f"python train.py dataset=folder dataset.root={output} split=full method=supervised")
    return failed


def label_images(
    predictor: Predictor, images: Sequence[Sample], cfg: DictConfig, maps: list[str], failed: dict, place: cluster.Place
) -> int:
    """Write the labels of those of this process's groups that are not complete yet; return the number of images."""
    output, taken = Path(cfg.output), 0
    waiting: dict[str, Sample] = {}  # images that are being read and predicted, until they are written

    def write(name: str, image: np.ndarray, found: View) -> None:
        sample, confidence = waiting.pop(name), found.confidence["linear"]
        pictures = draw_maps(predictor, image, found, maps)
        pictures["labels"] = np.where(confidence < cfg.threshold, np.uint8(IGNORE_INDEX), found.labels["linear"])
        for kind, picture in pictures.items():
            with complete(output / kind / "train" / f"{name}.png") as file:
                write_png(file, picture)
        put(sample.image, image_place(output, sample))

    groups = list(own_groups(len(images), cfg.batch_size, place))
    with progress_bar(shown=place.rank == 0) as progress:
        task = progress.add_task("label", total=sum(map(len, groups)))

        def unfinished() -> Iterator[dict[str, str]]:
            nonlocal taken
            for group in groups:
                samples = [images[i] for i in group]
                if all(os.path.lexists(image_place(output, sample)) for sample in samples):
                    progress.advance(task, len(group))
                    continue
                waiting.update((sample.name, sample) for sample in samples)
                taken += len(samples)
                yield {sample.name: sample.image for sample in samples}

        leave_out = skipping(failed, cfg.on_error, progress, task)
        predict_batches(predictor, unfinished(), cfg.batch_size, maps, write, leave_out, progress, task)
    return taken - len(failed)


def own_groups(number: int, size: int, place: cluster.Place) -> Iterator[range]:
    """Yield this process's groups of up to `size` images; processes take groups in turn."""
    for first in range(place.rank * size, number, place.total * size):
        yield range(first, min(first + size, number))


def image_place(output: Path, sample: Sample) -> Path:
    """Return an image's path in the new data set."""
    return output / "images/train" / f"{sample.name}{Path(sample.image).suffix}"


def put(image: str, target: Path) -> None:
    """Link an image from its place in the data set, unless it is there; one in a tar or at a URL is copied."""
    if os.path.lexists(target):
        return
    if not alone_on_disk(image):
        with complete(target) as file:
            file.write_bytes(read_bytes(image))
        return
    with writing(target, REMEDY):
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(os.path.abspath(image))


def check_apart(output: Path, places: Sequence[str]) -> None:
    """Raise a ValueError if `output` lies inside of a folder of images, where its images would be labeled as well."""
    for place in places:
        folder = Path(place.partition("**")[0])
        if folder.is_dir() and output.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"output={output}: lies in images={place}; name a folder outside of it")


def settings(cfg: DictConfig) -> dict:
    """Return the settings on which the labels depend, byte for byte."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    keys = ("images", "threshold", "maps", "batch_size", "protocol", "eval")
    digest = hashlib.sha256(fetched(cfg.checkpoint).read_bytes()).hexdigest()
    return {"checkpoint": digest, **{key: plain.get(key) for key in keys}}


def check_same(cfg: DictConfig, output: Path) -> None:
    """Raise a ValueError if a folder has labels that were made with other settings, or by hand."""
    file = output / SETTINGS
    if not file.is_file():
        if others := [name for name in ("classes.txt", "images", "labels") if (output / name).exists()]:
            raise ValueError(f"output={output}: has {others[0]} of another data set; name a new folder")
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    for key, value in settings(cfg).items():
        if before.get(key) != value:
            what = "another checkpoint" if key == "checkpoint" else f"{key}={before.get(key)}"
            raise ValueError(f"output={output}: holds labels of {what}; go on with that, or name another folder")
