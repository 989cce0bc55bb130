"""Scores from a checkpoint alone, and what fits it not."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import composed

from pcr_seg.commands.evaluate import evaluate


def test_evaluation_repeats_the_summary(trained: Path, tmp_path: Path) -> None:
    result = evaluate(
        composed(f"checkpoint={trained}/checkpoints/last.ckpt", f"output={tmp_path}/e.json", "device=cpu", name="eval")
    )
    summary = json.loads((trained / "summary.json").read_text())
    assert result["miou"] == pytest.approx(summary["miou_last"], abs=1e-4)
    assert result["miou_prototype"] == pytest.approx(summary["miou_prototype_last"], abs=1e-4)
    assert json.loads((tmp_path / "e.json").read_text()) == result
    assert set(result["iou_prototype"]) == set(summary["iou"])


def test_evaluation_of_the_student_by_windows(trained: Path, tmp_path: Path) -> None:
    arguments = [f"checkpoint={trained}/checkpoints/last.ckpt", f"output={tmp_path}/e.json", "device=cpu"]
    whole = evaluate(composed(*arguments, "eval.student=true", name="eval"))
    window = ["protocol=sliding", "protocol.window=32", "protocol.stride=22"]
    windows = evaluate(composed(*arguments, "eval.student=true", *window, name="eval"))
    assert whole["network"] == "student" and whole["miou_prototype"] != windows["miou_prototype"]


def test_evaluation_on_another_folder_checks_its_classes(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(next((trained.parent / "data").iterdir()), tmp_path / "other")
    classes = tmp_path / "other/classes.txt"
    arguments = [
        f"checkpoint={trained}/checkpoints/last.ckpt", f"output={tmp_path}/e.json", "device=cpu",
        "dataset=folder", f"dataset.root={tmp_path}/other",
    ]  # fmt: skip
    assert evaluate(composed(*arguments, name="eval"))["dataset"] == "other"
    with pytest.raises(ValueError, match=r"subset=test: .* has no such images"):
        evaluate(composed(*arguments, "subset=test", name="eval"))
    classes.write_text(classes.read_text().replace("rings", "hoops"))
    with pytest.raises(ValueError, match=r"hoops: choose the data set"):
        evaluate(composed(*arguments, name="eval"))
