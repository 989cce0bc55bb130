"""The run folder, loading its checkpoints, and users' mistakes in one line."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHARED, composed, small_config
from omegaconf.errors import MissingMandatoryValue
from PIL import Image

from pcr_seg.checkpoint import load
from pcr_seg.commands.evaluate import evaluate
from pcr_seg.training import fit as run
from pcr_seg.training.summary import versions

SUMMARY_KEYS = {
    "dataset", "split", "split_family", "method", "backbone", "seed", "num_labeled", "num_unlabeled", "iterations",
    "miou_last", "miou_best", "miou_prototype_last", "iou", "iou_prototype", "seconds", "images_per_second",
    "never_predicted", "peak_memory_mib", "versions", "git_commit", "semi_supervised_iterations",
}  # fmt: skip
LOG_KEYS = {
    "train/supervised_loss", "train/consistency_loss", "train/prototype_loss", "train/confident", "train/lr",
    "val/miou", "val/miou_prototype", "val/iou/stripes", "pseudo/coverage", "pseudo/precision",
    "prototypes/usage_entropy", "prototypes/dead",
}  # fmt: skip


def test_baseline_trains_the_labeled_images_alone_beside_the_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    summary = run.fit(small_config(tmp_path, "baseline=true"))
    baseline = json.loads((tmp_path / "run/baseline/summary.json").read_text())
    assert (summary["method"], baseline["method"]) == ("pcr", "supervised")
    same = ("seed", "num_labeled", "iterations", "backbone", "split")
    assert [summary[key] for key in same] == [baseline[key] for key in same]
    for part in ("run", "run/baseline"):
        assert (tmp_path / part / "checkpoints/last.ckpt").is_file() and (tmp_path / part / "metrics.csv").is_file()
    gain = 100 * (summary["miou_last"] - baseline["miou_last"])
    assert f"pcr over supervised: {gain:+.1f} mIoU" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "run/baseline/checkpoints")
    for again in (f"resume={tmp_path / 'run'}", "baseline=true"):
        (tmp_path / "run/baseline/summary.json").unlink(missing_ok=True)
        assert run.fit(small_config(tmp_path, again))["miou_last"] == summary["miou_last"]
        assert json.loads((tmp_path / "run/baseline/summary.json").read_text())["miou_last"] == baseline["miou_last"]


def test_run_folder_is_complete(trained: Path) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    assert set(summary) == SUMMARY_KEYS
    assert (summary["method"], summary["num_labeled"], summary["num_unlabeled"]) == ("pcr", 4, 8)
    assert (summary["iterations"], summary["semi_supervised_iterations"]) == (6, 4)
    assert summary["images_per_second"] > 0 and summary["peak_memory_mib"] > 50
    assert set(summary["iou"]) == {"background", "stripes", "checks", "dots", "rings"}
    with (trained / "metrics.csv").open() as file:
        assert set(csv.DictReader(file).fieldnames) >= LOG_KEYS
    labeled, unlabeled = (
        [line for line in (trained / f"splits/{name}.txt").read_text().splitlines() if not line.startswith("#")]
        for name in ("labeled", "unlabeled")
    )
    assert len(labeled) == 4 and len(unlabeled) == 8 and not set(labeled) & set(unlabeled)
    assert "${" not in (trained / "config.yaml").read_text()
    with Image.open(trained / "panel.png") as panel:
        assert panel.width > 500
    assert (trained / "checkpoints/MODEL_CARD.md").read_text().startswith("---\nlibrary_name: pcr-seg")
    assert len(list((trained / "prototypes").glob("*.jpg"))) == 5 * 4 and (trained / "details.json").is_file()


def test_a_package_that_is_not_installed_does_not_end_a_training() -> None:
    found = versions("torch", "a-checkout-on-the-path")
    assert torch.__version__.startswith(found["torch"]) and found["a-checkout-on-the-path"] is None


def test_a_finished_run_is_not_repeated_nor_another_put_in_its_folder(trained: Path) -> None:
    overrides = ["method.threshold=0.2", "trainer.max_epochs=3"]
    before = (trained / "metrics.csv").stat().st_mtime_ns
    assert run.fit(small_config(trained.parent, *overrides)) == json.loads((trained / "summary.json").read_text())
    assert (trained / "metrics.csv").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"holds a finished run of another configuration \(seed was 0\)"):
        run.fit(small_config(trained.parent, *overrides, "seed=1"))
    other = ["logger=tensorboard", "most_per_device=1", f"data.lists={trained}"]  # changes nothing that is trained
    for same in ([*overrides, *other], [f"resume={trained}"]):
        assert run.fit(small_config(trained.parent, *same)) == json.loads((trained / "summary.json").read_text())
    assert (trained / "metrics.csv").stat().st_mtime_ns == before


def test_a_run_that_was_ended_early_ends_at_once_when_it_is_started_again(tmp_path: Path) -> None:
    config = small_config(tmp_path, "early_stopping.patience=1", "trainer.max_epochs=9", "optimizer.lr=0")
    summary = run.fit(config)
    assert summary["iterations"] < 9 * config.data.steps_per_epoch
    metrics = (tmp_path / "run/metrics.csv").read_bytes()
    (tmp_path / "run/summary.json").unlink()  # as if killed before it was written
    again = run.fit(config)
    assert all(again[key] == summary[key] for key in ("iterations", "miou_last", "miou_best"))
    assert (tmp_path / "run/metrics.csv").read_bytes() == metrics


def test_a_typed_accumulation_that_contradicts_the_batch_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"accumulate_grad_batches=4: .* makes 8 images a step, .* set global_batch=8"):
        run.fit(small_config(tmp_path, "trainer.accumulate_grad_batches=4"))


def test_checkpoint_loads_safely_and_best_is_not_last(trained: Path) -> None:
    contents = {n: torch.load(trained / f"checkpoints/{n}.ckpt", weights_only=True) for n in ("last", "best")}
    assert contents["last"]["global_step"] == 6
    assert contents["last"]["pcr_seg"]["classes"][1] == "stripes"


@pytest.mark.parametrize(
    "target", ["os.system", "pcr_seg.training.fit.os.system", "torch.hub.load", "pcr_seg.data.published.write_file"]
)
@pytest.mark.parametrize("node", ["student", "method", "protocol"])
def test_checkpoint_of_a_stranger_is_refused(trained: Path, tmp_path: Path, node: str, target: str) -> None:
    content = torch.load(trained / "checkpoints/last.ckpt", weights_only=True)
    content["pcr_seg"][node]["_target_"] = target
    torch.save(content, tmp_path / "strange.ckpt")
    with pytest.raises(ValueError, match=rf"strange\.ckpt: names {target}"):
        load(tmp_path / "strange.ckpt")


def test_an_old_checkpoint_is_refused_with_the_last_commit_that_reads_it(trained: Path, tmp_path: Path) -> None:
    content = torch.load(trained / "checkpoints/last.ckpt", weights_only=True)
    del content["pcr_seg"]["format"]
    torch.save(content, tmp_path / "old.ckpt")
    with pytest.raises(ValueError, match=r"old\.ckpt: of an older version; the last commit that reads it is 3bc4437"):
        load(tmp_path / "old.ckpt")


def test_damaged_and_missing_checkpoints_are_one_line(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.ckpt").write_bytes((trained / "checkpoints/last.ckpt").read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"broken\.ckpt: not a complete checkpoint"):
        load(tmp_path / "broken.ckpt")
    with pytest.raises(FileNotFoundError, match=r"missing\.ckpt: no such file"):
        load(tmp_path / "missing.ckpt")


def test_student_of_another_run_starts_both_networks(trained: Path, tmp_path: Path) -> None:
    config = small_config(
        tmp_path, f"init_from_checkpoint={trained}/checkpoints/last.ckpt", "optimizer.lr=0", "trainer.max_epochs=1"
    )
    run.fit(config)
    states = [torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
              for folder in (trained, tmp_path / "run")]  # fmt: skip
    weights = [key for key in states[0] if key.startswith("student") and key.endswith("weight")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in weights)
    other = [f"init_from_checkpoint={trained}/checkpoints/last.ckpt", "model.channels=24"]
    with pytest.raises(ValueError, match=r"last\.ckpt: does not fit this network \(size mismatch .*\); choose its "):
        run.fit(small_config(tmp_path / "other", *other))


def break_root(folder: Path) -> None:
    shutil.rmtree(folder)


def break_mask_size(folder: Path) -> None:
    mask = next((folder / "labels/val").iterdir())
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(mask)


def break_mask_values(folder: Path) -> None:
    for mask in (folder / "labels/val").iterdir():
        Image.fromarray(np.full((48, 48), 77, np.uint8)).save(mask)


def break_mask_mode(folder: Path) -> None:
    for mask in (folder / "labels/train").iterdir():
        Image.fromarray(np.zeros((48, 48, 3), np.uint8)).save(mask)


def break_image(folder: Path) -> None:
    next((folder / "images/train").iterdir()).write_bytes(b"not an image")


def break_mask(folder: Path) -> None:
    next((folder / "labels/train").iterdir()).unlink()


def break_separation(folder: Path) -> None:
    for image in (folder / "images/val").iterdir():
        shutil.copy(image, folder / "images/train")
        shutil.copy(folder / "labels/val" / image.name, folder / "labels/train")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_root, "broken"),
        (break_mask_size, r"labels/val/.*mask is 5x5.*resize"),
        (break_mask_values, r"labels/val/.*77"),
        (break_mask_mode, r"labels/train/.*has the color .*classes"),
        (break_image, r"images/train/.*"),
        (break_mask, r"train_00.*mask"),
        (break_separation, r"val_0000"),
    ],
)
def test_bad_data_is_one_line_before_training(tmp_path: Path, damage, message: str, tiny_set) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(Path(tiny_set.val[0].image).parents[2], folder)
    damage(folder)
    config = small_config(tmp_path, "dataset=folder", f"dataset.root={folder}", "backbone=tiny")
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        run.fit(config)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run/checkpoints").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["split=13"], r"13"),
        (["split=0"], r"0"),
        (["split.labeled=full"], r"split=full: every image is labeled.*method=supervised"),
        (["backbone.weights=missing.pth"], r"backbone\.weights=missing\.pth: no such file"),
        (["recipe.grid_cells=64"], r"grid_cells=64 exceeds the crop of 32x32"),
        (["resume=nowhere"], r"resume=nowhere: holds no config\.yaml; give a run folder"),
    ],
)
def test_bad_settings_are_one_line(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        run.fit(small_config(tmp_path, "dataset.size=48", "recipe.burn_in_epochs=0", *overrides))
    assert "\n" not in str(error.value)


def test_a_missing_setting_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingMandatoryValue, match=r"dataset\.root"):
        run.fit(small_config(tmp_path, "dataset=folder"))


def test_stopping_by_steps_still_leaves_a_complete_folder(tmp_path: Path) -> None:
    summary = run.fit(small_config(tmp_path, "trainer.max_steps=1"))
    assert summary["iterations"] == 1 and 0 < summary["images_per_second"] < 1e6
    for name in ("last", "best"):
        content = torch.load(tmp_path / f"run/checkpoints/{name}.ckpt", weights_only=True)
        assert content["global_step"] == 1


def test_last_epoch_is_scored_even_between_validations(tmp_path: Path) -> None:
    config = small_config(tmp_path, "trainer.max_epochs=3", "trainer.check_val_every_n_epoch=2", "method.threshold=0.2")
    summary = run.fit(config)
    checkpoint = f"checkpoint={tmp_path}/run/checkpoints/last.ckpt"
    result = evaluate(composed(checkpoint, f"output={tmp_path}/e.json", "device=cpu", name="eval"))
    assert result["miou"] == pytest.approx(summary["miou_last"], abs=1e-4)
    assert summary["miou_best"] >= summary["miou_last"]


def test_real_images_and_weights_train(tmp_path: Path) -> None:
    if not SHARED.is_dir():
        pytest.skip("the real data sets are not on this machine")
    summary = run.fit(
        small_config(
            tmp_path, "dataset=folder", f"dataset.root={SHARED}/data/wbc", "split=4", "backbone=mobilenetv2",
            f"backbone.weights={SHARED}/weights/mobilenetv2_100_in1k_features.pth", "data.num_workers=0",
        )
    )  # fmt: skip
    assert summary["dataset"] == "wbc" and summary["num_labeled"] == 4 and summary["num_unlabeled"] == 276
    assert np.isfinite(summary["miou_last"])
