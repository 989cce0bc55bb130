"""What TensorBoard shows, and one W&B run for each job; tests/test_dashboards.py reads a W&B run back."""

import os
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE, STDOUT
from types import SimpleNamespace

import pytest
from conftest import SMALL, TINY_SET, small_config
from lightning.pytorch.callbacks import RichProgressBar
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pcr_seg.config import CONF
from pcr_seg.training.fit import fit
from pcr_seg.training.loggers import ProgressBar


def test_tensorboard_shows_scalars_and_pictures_beside_the_csv_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(small_config(tmp_path, "logger=tensorboard"))
    assert f"tensorboard --logdir={tmp_path}/run/tensorboard" in capsys.readouterr().out.splitlines()
    [events] = (tmp_path / "run/tensorboard").glob("events*")
    shown = EventAccumulator(str(events)).Reload().Tags()
    logged = set((tmp_path / "run/metrics.csv").read_text().splitlines()[0].split(",")) - {"step"}
    assert logged <= set(shown["scalars"])
    prototypes = {tag for tag in shown["images"] if tag.startswith("prototypes/gallery/")}
    assert len(prototypes) == 5 * 4 and "prototypes/gallery/stripes 3" in prototypes
    assert {*shown["images"]} - prototypes == {"val/images", "val/confusion_linear", "val/confusion_prototype"}


def test_each_job_is_its_own_wandb_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for job in range(2):
        fit(small_config(tmp_path / str(job), "logger=wandb", "trainer.max_epochs=1"))
    runs = [path.name for job in range(2) for path in (tmp_path / f"{job}/run/wandb").glob("offline-run-*")]
    assert len({name.rsplit("-", 1)[1] for name in runs}) == 2


def test_wandb_is_offline_without_a_login_and_with_an_empty_home(tmp_path: Path) -> None:
    """As a new user meets it: no WANDB_MODE, no key, nothing in the home folder."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    environment |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none"), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, str(CONF.parent / "train.py"), "logger=wandb", f"hydra.run.dir={tmp_path}/run"]
    command += [f"dataset.root={tmp_path}/data", *TINY_SET, *SMALL]
    result = subprocess.run(command, env=environment, cwd=tmp_path, stdout=PIPE, stderr=STDOUT, text=True)
    assert result.returncode == 0, result.stdout
    [run] = (tmp_path / "run/wandb").glob("offline-run-*")
    shown = result.stdout.splitlines()
    assert f"wandb sync {run}" in shown
    summary = next(i for i, line in enumerate(shown) if "supervised on synthetic" in line or "pcr on synthetic" in line)
    assert not any(line.startswith("wandb:") for line in shown[summary:])


def test_the_bar_says_how_long_the_whole_training_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Module:
        method = SimpleNamespace(burn_in_epochs=1)

    clock = iter([0.0, 10.0, 20.0, 60.0])
    monkeypatch.setattr("pcr_seg.training.loggers.time.monotonic", lambda: next(clock))
    monkeypatch.setattr(RichProgressBar, "on_train_epoch_start", lambda *_: None)
    monkeypatch.setattr(RichProgressBar, "get_metrics", lambda *_: {"v_num": 0})
    bar = ProgressBar()
    trainer = SimpleNamespace(
        training=True, current_epoch=0, global_step=0, estimated_stepping_batches=400, callback_metrics={}
    )
    bar.on_train_epoch_start(trainer, Module())
    assert "all" not in bar.get_metrics(trainer, Module())
    trainer.global_step = 10
    assert bar.get_metrics(trainer, Module())["all"] == "0:06:30 left"
    trainer.current_epoch, trainer.global_step = 1, 200
    bar.on_train_epoch_start(trainer, Module())
    trainer.global_step = 220
    assert bar.get_metrics(trainer, Module())["all"] == "0:06:00 left", "by the steps with unlabeled images"
