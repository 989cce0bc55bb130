"""What TensorBoard shows, and one W&B run for each job; tests/test_dashboards.py reads a W&B run back."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SMALL, TINY_SET, small_config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pcr_seg.config import CONF
from pcr_seg.training.fit import fit


def test_tensorboard_shows_scalars_and_pictures_beside_the_csv_file(tmp_path: Path) -> None:
    fit(small_config(tmp_path, "logger=tensorboard"))
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
    environment |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / "none")}
    command = [sys.executable, str(CONF.parent / "train.py"), "logger=wandb", f"hydra.run.dir={tmp_path}/run"]
    command += [f"dataset.root={tmp_path}/data", *TINY_SET, *SMALL]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert list((tmp_path / "run/wandb").glob("offline-run-*"))
