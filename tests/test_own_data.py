"""A user's folder from training to prediction: kinds of images, masks that must stay closed, files that turn bad."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import composed, small_config
from PIL import Image

from pcr_seg.commands.evaluate import evaluate
from pcr_seg.commands.predict import predict
from pcr_seg.config import one_line_errors
from pcr_seg.data.sources import Source
from pcr_seg.training import fit as run

TINY = ["recipe=synthetic", "optimizer=adamw_scratch", "data.num_workers=0"]


def own_copy(tiny_set: Source, root: Path) -> Path:
    return Path(shutil.copytree(Path(tiny_set.train[0].image).parents[2], root))


def train(root: Path, data: Path, *overrides: str) -> dict:
    return run.fit(small_config(root, "dataset=folder", f"dataset.root={data}", *TINY, *overrides))


def convert(data: Path, pattern: str, change) -> None:
    for path in data.glob(pattern):
        image = Image.open(path)
        image.load()
        change(image).save(path)


def test_masks_of_unlabeled_images_are_never_read(tiny_set: Source, tmp_path: Path) -> None:
    data = own_copy(tiny_set, tmp_path / "set")
    labels = sorted((data / "labels/train").iterdir())
    (tmp_path / "four.txt").write_text("\n".join(path.stem for path in labels[:4]))
    whole = train(tmp_path / "a", data, f"split={tmp_path}/four.txt")
    for number, path in enumerate(labels[4:]):
        if number % 2:
            path.unlink()
        else:
            path.write_bytes(b"garbage")
    garbage = train(tmp_path / "b", data, f"split={tmp_path}/four.txt")
    assert (garbage["num_labeled"], garbage["num_unlabeled"]) == (4, 12)
    one, other = (torch.load(tmp_path / f"{x}/run/checkpoints/last.ckpt", weights_only=True) for x in "ab")
    assert all(torch.equal(one["state_dict"][key], other["state_dict"][key]) for key in one["state_dict"])
    assert garbage["miou_last"] == whole["miou_last"]


def test_unlabeled_images_elsewhere(tiny_set: Source, tmp_path: Path) -> None:
    data = own_copy(tiny_set, tmp_path / "set")
    (data / "unlabeled").rename(tmp_path / "photos")
    summary = train(tmp_path, data, "split.labeled=full", f"dataset.unlabeled='{tmp_path}/ph*/*.png'")
    assert (summary["num_labeled"], summary["num_unlabeled"]) == (12, 4)
    with pytest.raises(ValueError, match=r"images/val/.*: val image, but a copy of .*photos/copy\.png; remove one"):
        shutil.copy(next((data / "images/val").iterdir()), tmp_path / "photos/copy.png")
        train(tmp_path, data, "split.labeled=full", f"dataset.unlabeled={tmp_path}/photos", f"output={tmp_path}/other")


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (1, "RGB"), (4, "RGBA")])
def test_channels_from_training_to_prediction(tiny_set: Source, tmp_path: Path, channels: int, mode: str) -> None:
    data = own_copy(tiny_set, tmp_path / "set")
    convert(data, "images/*/*.png", lambda image: image.convert(mode))
    convert(data, "unlabeled/*.png", lambda image: image.convert(mode))
    summary = train(tmp_path, data, f"dataset.channels={channels}", "method.strong_color=true")
    checkpoint = f"checkpoint={tmp_path}/run/checkpoints/last.ckpt"
    result = evaluate(composed(checkpoint, "device=cpu", name="eval"))
    assert result["miou"] == pytest.approx(summary["miou_last"], abs=1e-4)
    areas = predict(
        composed(checkpoint, f"images={data}/images/val", f"output={tmp_path}/out", "device=cpu", name="predict")
    )
    paths = [tmp_path / f"out/index/{name}.png" for name in areas["images"]]
    assert all(np.array(Image.open(path)).shape == (48, 48) for path in paths) and len(paths) == 3
    with pytest.raises(ValueError, match=rf"dataset\.channels=3: the checkpoint takes {channels}"):
        evaluate(composed(checkpoint, "dataset=folder", f"dataset.root={data}", "device=cpu", name="eval"))


def test_a_binary_problem_in_black_and_white(tiny_set: Source, tmp_path: Path) -> None:
    data = own_copy(tiny_set, tmp_path / "set")
    convert(data, "labels/*/*.png", lambda mask: mask.point(lambda label: 255 * (label > 0)))
    name = "../../object [/]"  # neither a path nor rich's markup
    (data / "classes.txt").write_text(f"0 background 0 0 0\n1 {name} 255 255 255\n")
    with pytest.raises(ValueError, match=r"no mask shows a second class, and 255 is ignored; .* dataset\.masks=colors"):
        train(tmp_path / "ids", data)
    summary = train(tmp_path / "colors", data, "dataset.masks=colors")
    assert set(summary["iou"]) == {"background", name} and None not in summary["iou"].values()
    assert {path.name for path in tmp_path.iterdir()} == {"set", "colors"}
    assert {path.name for path in (tmp_path / "colors").iterdir()} == {"run"}


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_file_that_turns_bad_in_training_is_named_in_one_line(tiny_set, tmp_path, num_workers, monkeypatch) -> None:
    data = own_copy(tiny_set, tmp_path / "set")
    check = run.splits.check

    def check_then_damage(*arguments, **options) -> None:
        check(*arguments, **options)
        for path in (data / "unlabeled").iterdir():
            path.write_bytes(path.read_bytes()[:60])

    monkeypatch.setattr(run.splits, "check", check_then_damage)
    overrides = ["split.labeled=full", f"data.num_workers={num_workers}"]
    with pytest.raises(SystemExit) as stopped, one_line_errors():
        train(tmp_path, data, *overrides)
    message = str(stopped.value)
    assert message.startswith(f"error: {data}/unlabeled/") and "\n" not in message
    assert message.endswith("; replace or remove it")
