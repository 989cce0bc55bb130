"""README's picture: the labels of a run above, and what they lead to with and without other images below.

    python docs/before_after.py BEFORE_RUN AFTER_RUN [OUTPUT]

Above the labeled images of a run with their masks; below the validation images on which the second run gains most.
"""

import sys
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from PIL import Image

from pcr_seg import load
from pcr_seg.config import build
from pcr_seg.data.files import IGNORE_INDEX, Sample, read_image, read_mask
from pcr_seg.data.sources import Source
from pcr_seg.pictures import visualize
from pcr_seg.pictures.panels import look
from pcr_seg.predictor import Predictor

NUM_SHOWN = 4


def labels(predictor: Predictor, sample: Sample) -> np.ndarray:
    """What the linear head predicts, (H, W)."""
    return look(predictor, [read_image(sample.image, sample.format)], nearest=False)[0].labels["linear"]


def accuracy(found: np.ndarray, truth: np.ndarray) -> float:
    """Mean over the image's classes of the share of their pixels that were found."""
    return float(np.mean([(found[truth == one] == one).mean() for one in np.unique(truth[truth != IGNORE_INDEX])]))


def rows(before: Predictor, after: Predictor, source: Source) -> list[list[np.ndarray]]:
    """Image, both predictions and the truth where the gain is largest."""
    found = []
    for sample in source.val:
        truth, first, second = read_mask(sample), labels(before, sample), labels(after, sample)
        found.append((accuracy(second, truth) - accuracy(first, truth), sample, first, second, truth))
    best = sorted(found, key=lambda one: one[0], reverse=True)[:NUM_SHOWN]
    return [
        [visualize.rgb(read_image(sample.image)), *(visualize.colorize(mask, source.palette) for mask in masks)]
        for _, sample, *masks in best
    ]


def picture(before_run: Path, after_run: Path) -> Image.Image:
    """The labeled images above, the predictions below."""
    before, after = (load(run / "checkpoints/last.ckpt") for run in (before_run, after_run))
    source = build(OmegaConf.create(after.metadata["config"]["dataset"]))
    names = (after_run / "splits/labeled.txt").read_text().split()
    labeled = [sample for sample in source.train if sample.name in names]
    masks = [visualize.colorize(read_mask(sample), source.palette) for sample in labeled]
    images = [visualize.rgb(read_image(sample.image)) for sample in labeled]
    few = visualize.panel([images, masks], [""] * len(labeled), cell=104)
    titles = ["image", "before: the labels alone", "after: with images without labels", "truth"]
    shown = visualize.panel(rows(before, after, source), titles, list(zip(source.classes, source.palette, strict=True)))
    width = max(few.width, shown.width)
    whole = Image.new("RGB", (width, few.height + shown.height), visualize.PAPER)
    whole.paste(few, ((width - few.width) // 2, 0))
    whole.paste(shown, ((width - shown.width) // 2, few.height))
    return whole


if __name__ == "__main__":
    output = Path(sys.argv[3] if len(sys.argv) > 3 else "docs/images/before_after.png")
    picture(*map(Path, sys.argv[1:3])).quantize(128).save(output, optimize=True)
