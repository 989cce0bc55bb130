"""The paper's recipes run with their real networks, on files of the real layouts, for two steps."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import composed
from PIL import Image

from pcr_seg.training.fit import fit

STEPS = [
    "split=2", "global_batch=2", "data.num_workers=0", "data.crop_size=65", "trainer.max_steps=2",
    "trainer.max_epochs=2", "trainer.accelerator=cpu", "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1", "backbone.weights=null", "recipe.burn_in_epochs=0",
]  # fmt: skip


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


def write_cityscapes(root: Path) -> None:
    """Four training images and one to validate on, 48x96, with labelIds."""
    rng = np.random.default_rng(0)
    for subset, count in (("train", 4), ("val", 1)):
        for number in range(count):
            stem = f"ulm/ulm_{number:06d}_000019"
            save(root / f"leftImg8bit/{subset}/{stem}_leftImg8bit.png", rng.integers(256, size=(48, 96, 3)))
            label_ids = np.repeat(np.arange(7, 19), 4)[:, None].repeat(96, axis=1)
            save(root / f"gtFine/{subset}/{stem}_gtFine_labelIds.png", label_ids)


def write_voc(root: Path) -> None:
    """Four training images with masks of the devkit, two more without, one to validate on."""
    rng = np.random.default_rng(0)
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    ids = [f"2007_{number:06d}" for number in range(7)]
    for name, chosen in (("train", ids[:4]), ("train_aug", ids[:6]), ("val", ids[6:])):
        (lists / f"{name}.txt").write_text("\n".join(chosen))
    for name in ids:
        save(root / f"JPEGImages/{name}.jpg", rng.integers(256, size=(75, 100, 3)))
        save(root / f"SegmentationClass/{name}.png", np.repeat(np.arange(15), 5)[:, None].repeat(100, axis=1))


def write_ade20k(root: Path) -> None:
    """Four training images and one to validate on, with labels 0 (other) to 11."""
    rng = np.random.default_rng(0)
    for subset, short, count in (("training", "train", 4), ("validation", "val", 1)):
        for number in range(count):
            name = f"ADE_{short}_{number + 1:08d}"
            save(root / f"images/{subset}/{name}.jpg", rng.integers(256, size=(60, 80, 3)))
            save(root / f"annotations/{subset}/{name}.png", np.repeat(np.arange(12), 5)[:, None].repeat(80, axis=1))


def write_coco(root: Path) -> None:
    """Four training images and one to validate on, and their masks."""
    rng = np.random.default_rng(0)
    for subset, numbers in (("train2017", range(4)), ("val2017", [9])):
        for number in numbers:
            save(root / f"{subset}/{number:012d}.jpg", rng.integers(256, size=(60, 80, 3)))
            save(root / f"masks/{number:012d}.png", np.repeat([0, 1, 80, 255], 15)[:, None].repeat(80, axis=1))


VIT = ["+backbone.options.depth=4", "+backbone.options.embed_dim=32", "+backbone.options.num_heads=2"]


@pytest.mark.parametrize(
    ("arguments", "write", "count"),
    [
        (["dataset=voc", "recipe=voc_dinov2", "split=92"], write_voc, 4),
        (["dataset=cityscapes", "recipe=cityscapes_dinov2", "split=1_16"], write_cityscapes, 2),
        (["experiment=ade20k_1_64"], write_ade20k, 2),
        (["experiment=coco_1_512"], write_coco, 2),
    ],
)
@pytest.mark.parametrize("method", ["unimatch_v2", "pcr"])
def test_two_steps_of_unimatch_v2s_recipes(
    tmp_path: Path, arguments: list[str], write: Callable, count: int, method: str
) -> None:
    write(tmp_path / "data")
    published = composed(*arguments, f"method={method}", "output=x", "trainer.devices=4", "hardware=ddp_cpu")
    batch, crop = 16 if write is write_coco else 8, 798 if write is write_cityscapes else 518
    assert (published.global_batch, published.optimizer.lr, published.model.head_lr_multiplier) == (batch, 5e-6, 40)
    assert (published.method.threshold, published.data.crop_size) == (0.95, crop)
    small = ["data.crop_size=70", "recipe.grid_cells=8"]
    small += ["protocol.window=70", "protocol.stride=44"] if write is write_cityscapes else []
    config = composed(
        *arguments, f"method={method}", f"dataset.root={tmp_path}/data", f"output={tmp_path}/run", *STEPS, *small, *VIT
    )
    summary = fit(config)
    assert (summary["iterations"], summary["num_labeled"], summary["num_unlabeled"]) == (2, 2, count)
    assert np.isfinite(summary["miou_last"])


@pytest.mark.parametrize(
    ("experiment", "write", "more", "num_unlabeled"),
    [
        ("cityscapes_1_8", write_cityscapes, ["protocol.window=65", "protocol.stride=44"], 2),
        ("voc_92", write_voc, [], 4),
    ],
)
def test_two_steps_of_the_real_recipe(
    tmp_path: Path, experiment: str, write: Callable, more: list[str], num_unlabeled: int
) -> None:
    write(tmp_path / "data")
    folders = [f"dataset.root={tmp_path}/data", f"output={tmp_path}/run"]
    config = composed(f"experiment={experiment}", *folders, *STEPS, *more)
    assert config.backbone.name == "resnet101s" and config.model.channels == 256
    assert config.method.supervised_loss._target_.endswith("ohem_cross_entropy")
    summary = fit(config)
    assert (summary["iterations"], summary["num_labeled"], summary["num_unlabeled"]) == (2, 2, num_unlabeled)
    assert np.isfinite(summary["miou_last"]) and np.isfinite(summary["miou_prototype_last"])
    assert json.loads((tmp_path / "run/summary.json").read_text())["backbone"] == "resnet101s"
