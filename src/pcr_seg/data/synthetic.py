"""A generated data set with large variation inside each class, small enough to train on a laptop in minutes.

A class is a pattern (stripes, checks, dots, rings) in two colors. The pair of colors is any point on a closed path
through random pairs of colors, and the paths of different classes cross. A few labeled images show a few points of each
path, the unlabeled ones show all of it. So a method does well that spreads labels from the appearances it has seen to
similar ones.
"""

import os
import re
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from pcr_seg.data.sources import Source, folder

CLASSES = {
    "background": (60, 60, 60),
    "stripes": (230, 90, 60),
    "checks": (70, 150, 230),
    "dots": (240, 200, 60),
    "rings": (120, 200, 110),
}
NUM_APPEARANCES = 6
OWN = r"(v\d+_)?seed\d+(_\d+)+px|splits|tmp\w+"  # names of generated sets, lists, and unfinished sets
VERSION = 2  # of the drawing; it is part of the folder's name, so that changed pictures get a new folder


def synthetic(
    root: str,
    *,
    seed: int = 0,
    num_train: int = 240,
    num_val: int = 60,
    num_unlabeled: int = 0,
    size: int = 96,
) -> Source:
    """Return the generated data set, written once as a `folder` data set under `root`.

    Args:
        root: folder for generated data; each combination of arguments has a sub-folder.
        seed: all random numbers follow from it.
        num_train: number of images with masks, of which labeled ones are chosen.
        num_val: number of images to validate on.
        num_unlabeled: number of further images without masks.
        size: side of an image in pixels.

    Raises:
        ValueError: `root` is a file, or holds other files than generated data, such as a data set of the user's.
    """
    target = Path(root) / f"v{VERSION}_seed{seed}_{num_train}_{num_val}_{num_unlabeled}_{size}px"
    refuse_strangers(Path(root), target)
    if not target.exists():
        write(target, seed=seed, num_train=num_train, num_val=num_val, num_unlabeled=num_unlabeled, size=size)
    return folder(target, name="synthetic")


def refuse_strangers(root: Path, target: Path) -> None:
    """Raise a ValueError if a folder for generated data is a file, or has other files.

    If `target` has been generated there before, only the files of a user's data set are refused.
    """
    if not root.exists():
        return
    if not root.is_dir():
        raise ValueError(f"dataset.root={root}: is a file; name a folder for the generated set")
    names = {path.name for path in root.iterdir() if not path.name.startswith(".")}
    strange = {name for name in names if not re.fullmatch(OWN, name)}
    if strange and (not target.exists() or strange & {"images", "classes.txt"}):
        raise ValueError(f"dataset.root={root}: holds files that are no generated set; say dataset=folder to read it")


def write(target: Path, *, seed: int, num_train: int, num_val: int, num_unlabeled: int, size: int) -> None:
    """Generate the data set into a folder, which appears under its name only when it is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".") as scratch:
        partial = Path(scratch) / "set"
        colors = [f"{i} {name} {r} {g} {b}\n" for i, (name, (r, g, b)) in enumerate(CLASSES.items())]
        appearances = draw_appearances(np.random.default_rng([seed, 0]))
        parts = {"images/train": num_train, "images/val": num_val, "unlabeled": num_unlabeled}
        for number, (images, count) in enumerate(parts.items(), start=1):
            (partial / images).mkdir(parents=True)
            labels = partial / images.replace("images", "labels")
            labels.mkdir(parents=True, exist_ok=True)
            for index in range(count):
                image, mask = draw_image(np.random.default_rng([seed, number, index]), appearances, size)
                name = f"{labels.name}_{index:05d}.png"
                Image.fromarray(image).save(partial / images / name)
                if labels.parent.name == "labels":
                    Image.fromarray(mask).save(labels / name)
        if not num_unlabeled:
            (partial / "unlabeled").rmdir()
        (partial / "classes.txt").write_text("# id name R G B\n" + "".join(colors))
        try:
            os.rename(partial, target)
        except OSError:
            if not target.is_dir():  # if it is there, another process was faster, with the same data
                raise


def draw_appearances(rng: np.random.Generator) -> np.ndarray:
    """Draw the pairs of colors on each class's path: (classes, appearances, 2, 3) in 0..255.

    A pair is a dark and a light color. They differ so much that the pattern can be seen, also between two pairs.
    """
    dark = rng.uniform(20, 190, size=(len(CLASSES), NUM_APPEARANCES, 1, 3))
    contrast = rng.uniform(50, 90, size=(len(CLASSES), NUM_APPEARANCES, 1, 3))
    return np.concatenate([dark, np.clip(dark + contrast, 0, 255)], axis=2)


def draw_image(rng: np.random.Generator, appearances: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw an image (size, size, 3) and its mask (size, size), both uint8: two to four objects on a background."""
    y, x = np.mgrid[:size, :size].astype(np.float32)
    image = paint(rng, 0, appearances, x, y)
    mask = np.zeros((size, size), np.uint8)
    for _ in range(rng.integers(2, 5)):
        label = int(rng.integers(1, len(CLASSES)))
        inside = draw_shape(rng, x, y, size)
        image[inside] = paint(rng, label, appearances, x, y)[inside]
        mask[inside] = label
    image += rng.normal(0, 12, size=image.shape)
    return image.clip(0, 255).astype(np.uint8), mask


def draw_shape(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, size: int) -> np.ndarray:
    """Draw a boolean mask (size, size): a rotated ellipse or rectangle of a quarter to a half of the image's side."""
    center, radii = rng.uniform(0.15, 0.85, 2) * size, rng.uniform(0.14, 0.28, 2) * size
    angle = rng.uniform(0, np.pi)
    u = ((x - center[0]) * np.cos(angle) + (y - center[1]) * np.sin(angle)) / radii[0]
    v = ((y - center[1]) * np.cos(angle) - (x - center[0]) * np.sin(angle)) / radii[1]
    return u**2 + v**2 < 1 if rng.random() < 0.5 else np.maximum(abs(u), abs(v)) < 0.9


def paint(rng: np.random.Generator, label: int, appearances: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Draw a class's pattern (size, size, 3) in float, with colors of its path, a random angle, phase and scale."""
    stop, share = divmod(rng.uniform(0, NUM_APPEARANCES), 1)
    before, after = appearances[label].take([int(stop), int(stop) + 1], axis=0, mode="wrap")
    first, second = (1 - share) * before + share * after + rng.normal(0, 8, size=(2, 3))
    angle, period = rng.uniform(0, np.pi), rng.uniform(7, 10)
    phase = rng.uniform(0, 2 * np.pi, 2)
    u = 2 * np.pi / period * (x * np.cos(angle) + y * np.sin(angle)) + phase[0]
    v = 2 * np.pi / period * (y * np.cos(angle) - x * np.sin(angle)) + phase[1]
    radius = np.hypot(x - x.mean() - 9 * phase[0], y - y.mean() - 9 * phase[1])
    wave = {
        0: np.zeros_like(u),
        1: np.sin(u),
        2: np.sign(np.sin(u) * np.sin(v)),
        3: 2.0 * ((np.cos(u) + np.cos(v)) > 0.9) - 1,
        4: np.sin(2 * np.pi / period * radius),
    }[label]
    weight = ((wave + 1) / 2)[..., None]
    return (first * (1 - weight) + second * weight).astype(np.float32)
