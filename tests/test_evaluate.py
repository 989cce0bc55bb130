"""Scores from a checkpoint alone, and what fits it not."""

import csv
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from conftest import composed
from torch import nn

from pcr_seg.commands.choose import choose
from pcr_seg.commands.evaluate import best_threshold, evaluate, score
from pcr_seg.commands.opening import open_checkpoint
from pcr_seg.inference import whole_image
from pcr_seg.models.output import SegmentorOutput
from pcr_seg.predictor import Predictor


def test_evaluation_repeats_the_summary(trained: Path, tmp_path: Path) -> None:
    result = evaluate(
        composed(f"checkpoint={trained}/checkpoints/last.ckpt", f"output={tmp_path}/e.json", "device=cpu", name="eval")
    )
    summary = json.loads((trained / "summary.json").read_text())
    assert result["miou"] == pytest.approx(summary["miou_last"], abs=1e-4)
    assert result["miou_prototype"] == pytest.approx(summary["miou_prototype_last"], abs=1e-4)
    assert json.loads((tmp_path / "e.json").read_text()) == result
    assert set(result["iou_prototype"]) == set(summary["iou"]) and result["threshold"] is None
    with (tmp_path / "e.csv").open() as file:
        rows = list(csv.DictReader(file))
    means = {row["image"]: float(row["iou"]) for row in rows if row["class"] == "mean"}
    assert means == {name: scores["iou"] for name, scores in result["images"].items()} and len(means) == 3
    for name, mean in means.items():
        own = [float(row["iou"]) for row in rows if row["image"] == name and row["class"] != "mean"]
        assert mean == pytest.approx(sum(own) / len(own), abs=1e-5)
    assert result["dice"]["rings"] == pytest.approx(2 * result["iou"]["rings"] / (1 + result["iou"]["rings"]), abs=1e-5)
    assert all(0 <= result["boundary_iou"][name] <= 1 for name in result["iou"])


class Grey(nn.Module):
    """Of two classes the second's logit is a pixel's value."""

    num_classes, feature_dim, in_channels = 2, 1, 3

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, images: torch.Tensor) -> SegmentorOutput:
        bright = self.weight * images[:, :1]
        return SegmentorOutput(torch.cat([torch.zeros_like(bright), bright], dim=1), bright, None)


def test_two_classes_have_a_threshold() -> None:
    predictor = Predictor(Grey(), None, ["sound", "pit"], [(0, 0, 0), (1, 1, 1)], whole_image)
    value = torch.arange(-20, 20).float()[None, None, None].expand(1, 3, 2, 40) / 10
    mask = (value[:, 0] > 1).long()  # of which a logit of 0 finds twice as much as there is
    mask[0, 1] = 255
    found = score(predictor, [{"image": value, "mask": mask, "name": ["a"]}])
    best = best_threshold(*found.curve)
    assert best["threshold"] == pytest.approx(torch.tensor(1.0).sigmoid().item(), abs=0.03)
    assert best["dice"] == 1 and best["dice_at_half"] == pytest.approx(2 * 9 / (20 + 9), abs=1e-3)
    assert found.never == [] and found.by_image.counts[0].tolist() == [[21, 9], [31, 9], [21, 19]]


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


def test_no_choice_is_the_checkpoints_own() -> None:
    for name in ("eval", "choose"):
        cfg = composed("checkpoint=x", name=name)
        assert cfg.get("dataset") is None and cfg.get("protocol") is None


@pytest.mark.parametrize(
    ("command", "typed", "answer"),
    [
        ("eval", "eval.student=maybe", "eval.student=maybe: choose true or false"),
        ("eval", "num_workers=two", "num_workers=two: choose a whole number"),
        ("eval", "num_workers=-1", "num_workers=-1: choose 0 or more"),
        ("eval", "checkpoint=null", "checkpoint=null: choose text"),
        ("eval", "trust=3", "trust=3: choose text or a list of text or null"),
        ("choose", "device=7", "device=7: choose text"),
        ("export", "prototype_head=perhaps", "prototype_head=perhaps: choose true or false"),
        ("predict", "margin=wide", "margin=wide: choose a whole number"),
        ("app", "port=http", "port=http: choose a whole number or null"),
    ],
)
def test_a_wrong_value_of_a_command_is_one_line(command: str, typed: str, answer: str) -> None:
    with pytest.raises(ValueError, match=f"^{answer}$"):
        open_checkpoint(composed("checkpoint=nothing.ckpt", typed, name=command))


def test_an_unknown_subset_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"subset=foo: choose train, val or test"):
        evaluate(composed("checkpoint=x", "subset=foo", name="eval"))
    with pytest.raises(ValueError, match=r"output=a\.csv: names the JSON"):
        evaluate(composed("checkpoint=x", "output=a.csv", name="eval"))


def test_scores_are_shown_before_a_file_that_cannot_be_written(trained: Path, tmp_path: Path, capsys) -> None:
    checkpoint = f"checkpoint={trained}/checkpoints/last.ckpt"
    (tmp_path / "file").write_text("")
    for output in ("file/e.json", "."):
        with pytest.raises(OSError, match=r": cannot be written \(.+\); the scores are above; .*output=FILE") as error:
            evaluate(composed(checkpoint, f"output={tmp_path}/{output}", "device=cpu", name="eval"))
        assert "mIoU" in capsys.readouterr().out and "\n" not in str(error.value)
    evaluate(composed(checkpoint, f"output={tmp_path}/new/e.json", "device=cpu", name="eval"))
    assert (tmp_path / "new/e.json").is_file()


STRANGE = [
    {"_target_": "os.system", "command": "touch ran"},
    {"_target_": "pcr_seg.data.sources.folder", "root": {"_target_": "os.system", "command": "touch ran"}},
    {"_target_": "pcr_seg.data.sources.folder", "root": ({"_target_": "os.system", "command": "touch ran"},)},
    "_target_: os.system\ncommand: touch ran",
]


@pytest.mark.parametrize("dataset", STRANGE, ids=["plain", "nested", "tuple", "text"])
@pytest.mark.parametrize("command", [evaluate, choose])
def test_a_strangers_data_set_is_refused(trained: Path, tmp_path: Path, monkeypatch, command, dataset) -> None:
    content = torch.load(trained / "checkpoints/last.ckpt", weights_only=True)
    content["pcr_seg"]["config"]["dataset"] = dataset
    shutil.copytree(trained / "splits", tmp_path / "run/splits")
    (tmp_path / "run/checkpoints").mkdir()
    torch.save(content, tmp_path / "run/checkpoints/last.ckpt")
    monkeypatch.chdir(tmp_path)
    cfg = composed(
        "checkpoint=run/checkpoints/last.ckpt", *(["budget=1"] if command is choose else []),
        name="choose" if command is choose else "eval",
    )  # fmt: skip
    reason = "names no data set" if isinstance(dataset, str) else "names os.system, which is not this project's code"
    with pytest.raises(ValueError, match=rf"checkpoint=run/checkpoints/last\.ckpt: {reason}"):
        command(cfg)
    assert not os.path.exists("ran")


def test_a_data_set_of_ones_own_is_read_where_it_is_trusted(trained: Path, tmp_path: Path, monkeypatch) -> None:
    content = torch.load(trained / "checkpoints/last.ckpt", weights_only=True)
    content["pcr_seg"]["config"]["dataset"]["_target_"] = "my_reader.read"
    torch.save(content, tmp_path / "last.ckpt")
    (tmp_path / "my_reader.py").write_text("from pcr_seg.data.synthetic import synthetic as read\n")
    monkeypatch.syspath_prepend(tmp_path)
    arguments = [f"checkpoint={tmp_path}/last.ckpt", f"output={tmp_path}/e.json", "device=cpu"]
    with pytest.raises(ValueError, match=r"names my_reader\.read.* \(trust=my_reader allows it"):
        evaluate(composed(*arguments, name="eval"))
    assert evaluate(composed(*arguments, "trust=my_reader", name="eval"))["num_images"] == 3
