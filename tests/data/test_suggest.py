"""Suggestions follow from sizes and machine as docs/data.md says, and train.py takes them."""

from pathlib import Path

import numpy as np
import pytest
from conftest import composed
from PIL import Image

from pcr_seg.data.files import Sample
from pcr_seg.data.sources import Source
from pcr_seg.data.suggest import suggest


def source(folder: Path, sides: list[int], num_unlabeled: int = 0) -> Source:
    samples = []
    for number, side in enumerate(sides):
        Image.fromarray(np.zeros((side, 2 * side, 3), np.uint8)).save(folder / f"{number}.png")
        samples.append(Sample(str(number), folder / f"{number}.png"))
    cut = len(samples) - num_unlabeled
    return Source("own", ("a", "b"), ((0, 0, 0), (1, 1, 1)), tuple(samples[:cut]), tuple(samples[cut:]), (), ())


@pytest.mark.parametrize(
    ("sides", "gpu_gib", "crop"),
    [([300] * 3, None, 161), ([100, 120, 300], None, 113), ([9], None, 33), ([400] * 3, 8, 321), ([2000], 80, 513)],
)
def test_crops_show_most_of_an_image(tmp_path: Path, sides: list[int], gpu_gib: float | None, crop: int) -> None:
    assert suggest(source(tmp_path, sides), gpu_gib).overrides["data.crop_size"] == str(crop)


@pytest.mark.parametrize("gpu_gib", [None, 11.0, 24.0])
@pytest.mark.parametrize(("count", "num_unlabeled"), [(1, 0), (20, 0), (20, 10), (400, 390)])
def test_suggestions_compose_and_stay_in_range(tmp_path, count, num_unlabeled, gpu_gib) -> None:
    suggestion = suggest(source(tmp_path, [40] * count, num_unlabeled), gpu_gib)
    assert len(suggestion.reasons) == len(suggestion.overrides)
    words = [f"{key}={value}" for key, value in suggestion.overrides.items()]
    config = composed("dataset=folder", "dataset.root=x", *words)
    steps = config.data.steps_per_epoch * config.trainer.max_epochs
    fewest, most = (600, 1500) if gpu_gib is None else (2000, 40000)
    assert fewest <= steps < most + config.data.steps_per_epoch
    labeled = count - num_unlabeled if num_unlabeled else -(-count // 8)
    assert config.global_batch == min(labeled, {None: 4, 11.0: 8, 24.0: 16}[gpu_gib])
    assert config.split.labeled == ("full" if num_unlabeled else "1_8")
