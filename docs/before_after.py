"""Draw README's picture from two runs, one trained on labels alone and one with unlabeled images as well.

    python docs/before_after.py BEFORE_RUN AFTER_RUN [OUTPUT]

Above are the labeled images with their masks, below the validation images on which the second run gains most.
"""

import sys
from pathlib import Path

import matplotlib
import numpy as np
from omegaconf import OmegaConf
from PIL import Image, ImageFont, ImageOps

from pcr_seg import load
from pcr_seg.config import build
from pcr_seg.data.files import IGNORE_INDEX, Sample, read_image, read_mask
from pcr_seg.data.sources import Source
from pcr_seg.pictures import visualize
from pcr_seg.pictures.panels import look
from pcr_seg.predictor import Predictor

NUM_SHOWN = 8


def labels(predictor: Predictor, sample: Sample) -> np.ndarray:
    """Return the linear head's prediction (H, W)."""
    return look(predictor, [read_image(sample.image, sample.format)], nearest=False)[0].labels["linear"]


def accuracy(found: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean over the image's classes of the share of their pixels that were found, in 0..1."""
    return float(np.mean([(found[truth == one] == one).mean() for one in np.unique(truth[truth != IGNORE_INDEX])]))


def gains(before: Predictor, after: Predictor, source: Source) -> list[list[np.ndarray]]:
    """Return image, both predictions and the truth of the validation images with the largest gain."""
    found = []
    for sample in source.val:
        truth, first, second = read_mask(sample), labels(before, sample), labels(after, sample)
        found.append((accuracy(second, truth) - accuracy(first, truth), sample, first, second, truth))
    best = sorted(found, key=lambda one: one[0], reverse=True)[:NUM_SHOWN]
    return [
        [visualize.rgb(read_image(sample.image)), *(visualize.colorize(mask, source.palette) for mask in masks)]
        for _, sample, *masks in best
    ]


def title_of(text: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """Draw a row's title, padded to the width of all titles."""
    return ImageOps.pad(visualize.write(text, font, 140), (140, 24), color=visualize.PAPER)


def picture(before_run: Path, after_run: Path) -> Image.Image:
    """Draw the whole picture: rows of images with their titles to the left."""
    before, after = (load(run / "checkpoints/last.ckpt") for run in (before_run, after_run))
    source = build(OmegaConf.create(after.metadata["config"]["dataset"]))
    names = (after_run / "splits/labeled.txt").read_text().splitlines()
    labeled = [sample for sample in source.train if sample.name in names]
    few = [[visualize.rgb(read_image(x.image)), visualize.colorize(read_mask(x), source.palette)] for x in labeled]
    rows = [*zip(*few, strict=True), *zip(*gains(before, after, source), strict=True)]
    titles = ["labeled images", "their masks", "new images", "before", "after", "truth"]

    font = ImageFont.truetype(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), 15)
    cells = [[visualize.fit(one, 112) for one in row] for row in rows]
    cells = [[title_of(title, font), *row] for title, row in zip(titles, cells, strict=True)]
    blocks = [visualize.grid(part, gap=4) for part in (cells[:2], cells[2:])]
    key = visualize.key(list(zip(source.classes, source.palette, strict=True)), font, blocks[0].width)
    whole = visualize.grid([[part] for part in (*blocks, key)], gap=20)
    return ImageOps.expand(whole, border=12, fill=visualize.PAPER)


if __name__ == "__main__":
    output = Path(sys.argv[3] if len(sys.argv) > 3 else "docs/images/before_after.png")
    picture(*map(Path, sys.argv[1:3])).quantize(160).save(output, optimize=True)
