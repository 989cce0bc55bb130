"""Trainings without val images: a part held out, or folds and a last training on all masks; what reads them back."""

import json
import re
import shutil
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
import torch
from conftest import composed, small_config
from PIL import Image

from pcr_seg.commands.choose import choose
from pcr_seg.commands.evaluate import evaluate
from pcr_seg.data.sources import Source, folder
from pcr_seg.data.synthetic import synthetic
from pcr_seg.report.pages import run_page
from pcr_seg.report.tables import find
from pcr_seg.training import fit as run
from pcr_seg.training.folds import over_folds

TINY = ["recipe=synthetic", "optimizer=adamw_scratch", "data.num_workers=0", "split.labeled=full"]
QUICK = ["method=supervised", "trainer.max_epochs=1", "folds=2"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images and masks of train, and images without; no val."""
    root = tmp_path_factory.mktemp("drawn")
    source = synthetic(str(root), num_train=24, num_val=1, num_unlabeled=4, size=48)
    made = Path(source.train[0].image).parents[2]
    for part in ("images", "labels"):
        shutil.rmtree(made / part / "val")
    return made


def own(drawn: Path, root: Path, masks: int) -> Path:
    """A copy with so many masks."""
    shutil.copytree(drawn, root / "set")
    for part in ("images", "labels"):
        for path in sorted((root / "set" / part / "train").iterdir())[masks:]:
            path.unlink()
    return root / "set"


def train(root: Path, *overrides: str) -> dict:
    return run.fit(small_config(root, "dataset=folder", f"dataset.root={root}/set", *TINY, *overrides))


def names(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if not line.startswith("#")]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def test_a_part_is_held_out_and_read_back(drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data, output = own(drawn, tmp_path, 24), tmp_path / "run"
    summary = train(tmp_path)
    val = names(output / "splits/val.txt")
    out = capsys.readouterr().out
    assert out.count("held out of train") == 1 and f"{len(val)} val (held out of train, neighbours by name" in out
    assert 4 <= len(val) <= 6 and summary["num_labeled"] == 24 - len(val) and "folds" not in summary
    assert not set(val) & {*names(output / "splits/labeled.txt"), *names(output / "splits/unlabeled.txt")}

    # A mask more would change the draw: what was held out stays.
    for part, other in (("images", (9, 9, 9)), ("labels", 1)):
        content = np.array(Image.open(next((data / part / "train").iterdir())))
        content[:4, :4] = other
        Image.fromarray(content).save(data / part / "train/aaa.png")
    checkpoint = f"checkpoint={output}/checkpoints/last.ckpt"
    result = evaluate(composed(checkpoint, "device=cpu", name="eval"))
    assert (result["num_images"], result["subset"]) == (len(val), "val")
    assert result["miou"] == pytest.approx(summary["miou_last"], abs=1e-4)
    assert evaluate(composed(checkpoint, "subset=train", "device=cpu", name="eval"))["num_images"] == 25 - len(val)
    assert not set(choose(composed(checkpoint, "budget=5", "device=cpu", name="choose"))) & set(val)
    assert f"split={output}/next/labeled.txt val={output}/splits/val.txt" in capsys.readouterr().out

    (output / "summary.json").unlink()
    again = run.fit(small_config(tmp_path, f"resume={output}"))
    assert names(output / "splits/val.txt") == val and again["miou_last"] == summary["miou_last"]
    train(tmp_path, f"val={output}/splits/val.txt", f"output={tmp_path}/other")
    assert names(tmp_path / "other/splits/val.txt") == val
    assert len(names(tmp_path / "other/splits/labeled.txt")) == 25 - len(val)


def test_folds_score_and_a_last_training_takes_all(drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    own(drawn, tmp_path, 6)
    output = tmp_path / "run"
    summary = train(tmp_path)
    out = capsys.readouterr().out
    assert "set: no val images, so 4 trainings, each without another part of the masks, give the score" in out
    assert "6 labeled (all 6 training images), 4 unlabeled, no val (scored in 4 folds)" in out
    folds = [output / f"fold_{turn}" for turn in range(1, 5)]
    held_out = [names(fold / "splits/val.txt") for fold in folds]
    assert sorted(name for val in held_out for name in val) == [f"train_{turn:05}" for turn in range(6)]
    assert [names(output / f"splits/{fold.name}.txt") for fold in folds] == held_out
    scores = [json.loads((fold / "summary.json").read_text()) for fold in folds]
    assert [score["num_labeled"] for score in scores] == [6 - len(val) for val in held_out]
    assert summary["miou_last"] == pytest.approx(mean(score["miou_last"] for score in scores))
    assert summary["miou_last_std"] == pytest.approx(stdev(score["miou_last"] for score in scores))
    assert (summary["folds"], summary["num_labeled"], summary["miou_best"]) == (4, 6, None)
    assert summary == json.loads((output / "summary.json").read_text())
    assert names(output / "splits/labeled.txt") == [f"train_{turn:05}" for turn in range(6)]
    assert not (output / "splits/val.txt").exists() and not (output / "checkpoints/best.ckpt").exists()

    confusion = json.loads((output / "details.json").read_text())["confusion"]["linear"]
    assert np.sum(confusion) == 6 * 48 * 48, "each mask was scored once"
    assert find(str(output)) == [output] and find(str(folds[0])) == [folds[0]]
    page = re.sub(r"\s+", " ", run_page(output))
    assert "mIoU %, mean of 4 folds" in page and "best epoch" not in page
    card = (output / "checkpoints/MODEL_CARD.md").read_text()
    assert "means over 4 trainings" in card and "best.ckpt" not in card
    fold = f"checkpoint={folds[0]}/checkpoints/last.ckpt"
    result = evaluate(composed(fold, "device=cpu", name="eval"))
    assert result["miou"] == pytest.approx(scores[0]["miou_last"], abs=1e-4)
    with pytest.raises(ValueError, match=r"subset=val: set has no such images"):
        evaluate(composed(f"checkpoint={output}/checkpoints/last.ckpt", "device=cpu", name="eval"))


@pytest.mark.parametrize("lost", ["last", "fold_2/summary.json", "fold_2"])
def test_a_run_stopped_in_its_folds_goes_on(drawn: Path, tmp_path: Path, lost: str, capsys) -> None:
    own(drawn, tmp_path, 4)
    whole, output = train(tmp_path, *QUICK), tmp_path / "run"
    before = weights(output)

    def stop(output: Path) -> list[int]:
        (output / "summary.json").unlink()
        shutil.rmtree(output / "checkpoints")
        if lost.endswith(".json"):
            (output / lost).unlink()
        elif lost != "last":
            shutil.rmtree(output / lost)
        return [path.stat().st_mtime_ns for path in output.glob("fold_*/metrics.csv")]

    for command in ([], [f"resume={tmp_path}/moved"]):
        written = stop(output)
        if command:
            output = output.rename(tmp_path / "moved")
        capsys.readouterr()
        summary = train(tmp_path, *QUICK, *command)
        assert "starting again" not in capsys.readouterr().out
        same = ("miou_last", "miou_last_std", "iou", "num_labeled")
        assert [summary[key] for key in same] == [whole[key] for key in same]
        now = weights(output)
        assert all(torch.equal(before[key], now[key]) for key in before)
        kept = [path.stat().st_mtime_ns for path in output.glob("fold_*/metrics.csv")]
        assert len(set(kept) & set(written)) == (1 if lost == "fold_2/summary.json" else len(written)), "not repeated"


def test_the_last_training_does_not_depend_on_the_folds(drawn: Path, tmp_path: Path) -> None:
    own(drawn, tmp_path, 5)
    for folds in (2, 3):
        train(tmp_path, *QUICK, f"folds={folds}", f"output={tmp_path}/{folds}")
        assert len(list((tmp_path / str(folds)).glob("fold_*"))) == folds
    two, three = weights(tmp_path / "2"), weights(tmp_path / "3")
    assert all(torch.equal(two[key], three[key]) for key in two)


def test_a_baseline_has_folds_of_its_own(drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    own(drawn, tmp_path, 4)
    summary = train(tmp_path, "folds=2", "baseline=true", "method=consistency")
    baseline = json.loads((tmp_path / "run/baseline/summary.json").read_text())
    assert (baseline["method"], baseline["folds"]) == ("supervised", 2)
    assert not list((tmp_path / "run").glob("fold_*/baseline"))
    for turn in (1, 2):
        lists = [names(tmp_path / f"run/{place}fold_{turn}/splits/val.txt") for place in ("", "baseline/")]
        assert lists[0] == lists[1], "both are scored on the same images"
    gain = 100 * (summary["miou_last"] - baseline["miou_last"])
    assert f"consistency over supervised: {gain:+.1f} mIoU" in capsys.readouterr().out


def test_folds_where_there_are_val_images_are_refused(tiny_set: Source, tmp_path: Path) -> None:
    data = Path(tiny_set.train[0].image).parents[2]
    shutil.copytree(data, tmp_path / "set")
    with pytest.raises(ValueError, match=r"folds=3: set has val images, which give the score; leave it out"):
        train(tmp_path, "folds=3")
    assert not (tmp_path / "run").exists() and folder(data).held_out == ""


def test_means_leave_out_classes_that_a_fold_does_not_show() -> None:
    def fold(miou: float, cat: float | None, *never: str) -> dict:
        iou = {"iou": {"cat": cat, "dog": 0.0}, "iou_prototype": None, "never_predicted": never}
        return {"miou_last": miou, "miou_prototype_last": None, **iou}

    scores = over_folds([fold(0.2, 0.4, "dog"), fold(0.4, None, "dog", "cat"), fold(0.9, 0.5, "dog")])
    assert scores["never_predicted"] == ["dog"], "in none of the folds"
    assert scores["iou"] == {"cat": pytest.approx(0.45), "dog": 0} and scores["miou_last"] == pytest.approx(0.5)
    assert scores["miou_last_std"] == pytest.approx(stdev([0.2, 0.4, 0.9]))
    assert scores["iou_prototype"] is None and scores["miou_prototype_last"] is None
