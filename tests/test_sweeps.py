"""Cells of a sweep by each launcher's local variant: failed ones are listed, finished ones left alone; Optuna."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from faults import TRAIN, tiny, train

LAUNCHERS = {  # plugin, and what its local variant is told
    "joblib": ("joblib", ["hydra.launcher.n_jobs=2"]),
    "submitit_local": ("submitit", []),
    "ray": ("ray", ["+hydra.launcher.ray.init.num_cpus=2", "+hydra.launcher.ray.init.include_dashboard=false"]),
}


def needs(plugin: str) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{plugin}", reason=f"hydra-{plugin} is not installed (extras sweeps, ray)")


def arguments(root: Path, *words: str) -> list[str]:
    """Of a sweep in root/sweep, of trainings of one epoch."""
    own = ("hydra.run.dir", "split=", "recipe.threshold=")
    cell = [word for word in tiny(root, root / "unused", "trainer.max_epochs=1") if not word.startswith(own)]
    return ["-m", f"hydra.sweep.dir={root}/sweep", *cell, *words]


def sweep(root: Path, *words: str) -> str:
    """Run it in a process of its own, as people do; return what it says, its exit code first."""
    done = subprocess.run([sys.executable, str(TRAIN), *arguments(root, *words)], capture_output=True, text=True)
    return f"{done.returncode}\n{done.stdout}\n{done.stderr}"


def summaries(root: Path) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in root.glob("sweep/*/summary.json")}


CELLS = ("split=99,4", "data.steps_per_epoch=2", "method=supervised")  # of which one asks for too many labels


def check_listed(said: str) -> None:
    lines = said.splitlines()
    listed = lines[lines.index("error: 1 cells of the sweep failed") + 1]
    assert "split.labeled='99'" in listed and listed.endswith(": split '99': 99 of 12 images; ask for 1 to 12")
    assert "Traceback" not in said


def test_cells_that_fail_are_listed_and_finished_ones_left_alone(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert train(arguments(tmp_path, *CELLS), log) == 1
    check_listed(log.read_text())
    done = summaries(tmp_path)
    assert train(arguments(tmp_path, *CELLS[1:], "split=4"), log) == 0
    assert len(done) == 1 and summaries(tmp_path) == done and "finished already" in log.read_text()


@pytest.mark.faults  # minutes
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers_do_the_same(tmp_path: Path, launcher: str) -> None:
    plugin, options = LAUNCHERS[launcher]
    needs(f"{plugin}_launcher")
    words = [f"hydra/launcher={launcher}", *CELLS, *options]
    said = sweep(tmp_path, *words)
    assert said.startswith("1\n"), said[-2000:]
    check_listed(said)
    done = summaries(tmp_path)
    assert len(done) == 1 and sweep(tmp_path, *words).startswith("1\n") and summaries(tmp_path) == done


@pytest.mark.faults
@pytest.mark.filterwarnings("ignore")  # of SQLAlchemy 1, which is no longer new
def test_a_study_survives_a_restart(tmp_path: Path) -> None:
    needs("optuna_sweeper")
    import optuna

    storage = f"sqlite:///{tmp_path}/study.db"
    words = [
        "hydra/sweeper=optuna", "hydra.sweeper.study_name=pcr", f"hydra.sweeper.storage={storage}", "split=4",
        "hydra.sweeper.direction=maximize", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1",
        "hydra.sweeper.max_failure_rate=1", "data.steps_per_epoch=1", "method=pcr", "recipe.burn_in_epochs=0",
        "recipe.threshold=interval(0.1,0.9)", "method.prototype_weight=interval(0.1,2)",
        "method.num_prototypes=range(1,4)", "method.temperature=tag(log,interval(0.02,0.5))",
    ]  # fmt: skip
    for trials in (2, 4):
        said = sweep(tmp_path, *words)
        assert said.startswith("0\n"), said[-2000:]
        study = optuna.load_study(study_name="pcr", storage=storage)
        assert len(study.trials) == trials
    scores = sorted(json.loads(Path(file).read_text())["miou_last"] for file in summaries(tmp_path))
    assert sorted(trial.value for trial in study.trials) == pytest.approx(scores)
    assert set(study.trials[0].params) == {
        "recipe.threshold", "method.prototype_weight", "method.num_prototypes", "method.temperature",
    }  # fmt: skip
