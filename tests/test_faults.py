"""Runs that are killed, anywhere, and go on: everything ends as in a run that nothing happened to.

A few places stay in the ordinary tests; `make test-faults` draws many more and prints how many were survived.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from faults import MOST, PLACES, TRAIN, die_at, differences, finish, outcome, start_ranks, tiny, train

from pcr_seg.data.streams import Views
from pcr_seg.module import Segmentation
from pcr_seg.training.checkpoints import EXIT_STOPPED, read_checkpoint

VARIANTS = {
    "plain": [],
    "workers": ["data.num_workers=2", "checkpoints.every_n_steps=1", "method.strong_color=true"],
    "accumulated": [
        "global_batch=4", "most_per_device=2", "module.teacher_bn=forward",
        "checkpoints.every_n_steps=1",
    ],
    "by steps": [
        "trainer.max_steps=8", "trainer.check_val_every_n_epoch=2", "checkpoints.every_n_steps=1",
        "trainer.enable_progress_bar=true",
    ],
}  # fmt: skip


class Whole(dict):
    """Outcome of the unbroken run of each variant, run when first asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __missing__(self, variant: str) -> dict:
        folder = self.root / f"whole {variant}"
        assert train(tiny(self.root, folder, *VARIANTS[variant]), folder.with_suffix(".log")) == 0
        self[variant] = outcome(folder)
        return self[variant]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    return Whole(tmp_path_factory.mktemp("faults"))


def resume(folder: Path, *more: object, **environment: str) -> int:
    """Go on with a run as a person would; Hydra's own files go elsewhere."""
    return train(
        [f"resume={folder}", f"hydra.run.dir={folder}.hydra"], folder.with_suffix(".log"), *more, **environment
    )


def survive(whole: Whole, folder: Path, variant: str, *kills: tuple[str, int], counts: dict | None = None) -> None:
    """Kill a run at each of these places in turn, let it go on each time, and compare."""
    log, counts = folder.with_suffix(".log"), defaultdict(int) if counts is None else counts
    assert train(tiny(whole.root, folder, *VARIANTS[variant]), log, die_at, *kills[0]) == -signal.SIGKILL
    ends = [-signal.SIGKILL, *(resume(folder, die_at, *kill) for kill in kills[1:])]
    assert set(ends) <= {-signal.SIGKILL, 0}, "0: what was left of the run did not pass the second place so often"
    counts["kill points tried"] += ends.count(-signal.SIGKILL)
    assert resume(folder) == 0, log.read_text()[-2000:]
    assert differences(whole[variant], outcome(folder)) == []
    counts["kill points survived"] += ends.count(-signal.SIGKILL)


@pytest.mark.parametrize(
    ("place", "count"),
    [
        ("start of a step", 3),
        ("before the teacher moves", 6),
        ("k-means", 2),
        ("collecting features", 3),
        ("halfway through a checkpoint's write", 4),
    ],
)
def test_a_killed_run_ends_as_an_unbroken_one(whole: Whole, tmp_path: Path, place: str, count: int) -> None:
    survive(whole, tmp_path / "run", "plain", (place, count))


def drawn(number: int) -> tuple[str, list[tuple[str, int]]]:
    """Variant and places of a kill point; each place comes up, some runs are killed twice."""
    generator = random.Random(number)
    places = list(PLACES)
    kills = [places[number % len(places)], generator.choice(places)][: 2 if number % 3 == 0 else 1]
    # The first file that gets its name is config.yaml: before that there is no run to go on with.
    first = {"before a file gets its name": 2}
    kills = [(place, generator.randint(first.get(place, 1), MOST.get(place, 8))) for place in kills]
    return generator.choice(list(VARIANTS)), kills


@pytest.mark.faults
@pytest.mark.parametrize("number", range(26))
def test_kill_points(whole: Whole, tmp_path: Path, number: int, counts: dict) -> None:
    variant, kills = drawn(number)
    survive(whole, tmp_path / "run", variant, *kills, counts=counts)


@pytest.mark.faults
@pytest.mark.parametrize("number", range(3))
def test_kills_of_the_real_process_at_a_random_time(whole: Whole, tmp_path: Path, number: int, counts: dict) -> None:
    """No fork server, nothing patched: `python train.py`, SIGKILL some time after its first line."""
    folder = tmp_path / "run"
    command = [sys.executable, str(TRAIN), *tiny(whole.root, folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert "run folder" in process.stdout.readline()
    counts["kill points tried"] += 1
    time.sleep(random.Random(number).uniform(0, 5))
    process.kill()
    process.wait()
    process.stdout.close()
    subprocess.run([sys.executable, str(TRAIN), f"resume={folder}", f"hydra.run.dir={folder}.hydra"], check=True)
    assert differences(whole["plain"], outcome(folder)) == []
    counts["kill points survived"] += 1


def test_resuming_reads_only_what_is_left(whole: Whole, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = tiny(whole.root, folder, "checkpoints.every_n_steps=1")
    assert train(arguments, tmp_path / "run.log", die_at, "start of a step", 9) == -signal.SIGKILL
    assert resume(folder, print_views) == 0
    views = (tmp_path / "run.log").read_text().count("view of ")
    assert views == 2 * 2, "the last of nine steps: two labeled and two unlabeled images"


def print_views() -> None:
    """Print each training view that is made."""
    original = Views.__getitem__
    Views.__getitem__ = lambda self, index: (print("view of", index, flush=True), original(self, index))[1]


def test_sigterm_saves_and_says_so(whole: Whole, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = tiny(whole.root, folder, "checkpoints.every_n_steps=100")
    assert train(arguments, tmp_path / "run.log", die_at, "start of a step", 5, signal.SIGTERM) == EXIT_STOPPED
    assert f"saved: python train.py resume={folder}" in (tmp_path / "run.log").read_text()
    assert read_checkpoint(folder / "checkpoints/last.ckpt")["global_step"] == 5
    assert resume(folder) == 0
    assert differences(whole["plain"], outcome(folder)) == []


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_slurm_queues_the_job_again(whole: Whole, tmp_path: Path, number: int) -> None:
    """The same command in the same job finds its folder again."""
    bin, log = tmp_path / "bin", tmp_path / "run.log"
    bin.mkdir()
    (bin / "scontrol").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/requeued\n')
    (bin / "scontrol").chmod(0o755)
    slurm = {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0",
             "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_STEP_TASKS_PER_NODE": "1",
             "PATH": f"{bin}:{os.environ['PATH']}"}  # fmt: skip
    arguments = tiny(whole.root, tmp_path / "runs" / "${started:}")
    assert train(arguments, log, die_at, "start of a step", 5, number, **slurm) == EXIT_STOPPED
    assert (tmp_path / "requeued").read_text() == "requeue 17\n"
    [folder] = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("job_17_") and not list(folder.glob("hpc_ckpt*"))
    assert train(arguments, log, **slurm) == 0 and [folder] == list((tmp_path / "runs").iterdir())
    assert differences(whole["plain"], outcome(folder)) == []


@pytest.mark.faults
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_ends_the_run_which_goes_on(tmp_path: Path, victim: int, counts: dict) -> None:
    """Through the launcher: both ranks are gone soon, and one rank goes on alone, at the same place."""
    folder, log = tmp_path / "run", tmp_path / "run.log"
    arguments = tiny(tmp_path, folder, "global_batch=4", "hardware=ddp_cpu", "trainer.max_epochs=200",
                     "recipe.burn_in_epochs=1")  # fmt: skip
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, str(TRAIN), *arguments], stdout=file, stderr=file)
        wait_for(lambda: (folder / "checkpoints/last.ckpt").is_file(), seconds=200)
        [child] = children(process.pid)
        counts["ranks killed"] += 1
        killed = time.time()
        os.kill([process.pid, child][victim], signal.SIGKILL)
        assert process.wait(timeout=60) != 0
        wait_for(lambda: not Path(f"/proc/{child}").exists(), seconds=60)
    print(f"down after {time.time() - killed:.1f} s")
    lines = log.read_text().splitlines()
    assert sum("a process of this training was lost" in line for line in lines) == 1, log.read_text()[-3000:]
    assert not any("Traceback" in line for line in lines)
    step = read_checkpoint(folder / "checkpoints/last.ckpt")["global_step"]
    config = (folder / "config.yaml").read_text()  # shorten what is left
    (folder / "config.yaml").write_text(config.replace("max_epochs: 200", f"max_epochs: {step // 3 + 2}"))
    more = [f"resume={folder}", "hardware=cpu", f"hydra.run.dir={folder}.hydra"]
    assert train(more, log) == 0, log.read_text()[-2000:]
    assert read_checkpoint(folder / "checkpoints/last.ckpt")["global_step"] == 3 * (step // 3 + 2)


def wait_for(condition: object, seconds: float) -> None:
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, f"not within {seconds} s"
        time.sleep(0.1)


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.faults
def test_ranks_go_on_alone_at_the_same_positions(tmp_path: Path) -> None:
    """Two ranks with two images each, then one that accumulates two batches of two."""
    folder, logs = tmp_path / "run", [tmp_path / "0.log", tmp_path / "1.log"]
    arguments = tiny(tmp_path, folder, "global_batch=4", "most_per_device=2", "checkpoints.every_n_steps=1")
    ranks = start_ranks(arguments, logs, die_at, "start of a step", 5)
    assert [finish(rank) for rank in ranks] == [-signal.SIGKILL] * 2
    seen = []
    for label in ("alone", "both"):
        copy, records = tmp_path / label, tmp_path / f"{label} records"
        shutil.copytree(folder, copy)
        records.mkdir()
        arguments = [f"resume={copy}", f"hydra.run.dir={copy}.hydra"]
        if label == "alone":
            assert train([*arguments, "hardware=cpu"], logs[0], keep_names, str(records)) == 0
        else:
            ranks = start_ranks(arguments, logs, keep_names, str(records))
            assert [finish(rank) for rank in ranks] == [0, 0]
        names = defaultdict(list)
        for file in records.iterdir():
            names[int(file.name.split("_")[0])] += torch.load(file, weights_only=True)
        seen.append({step: sorted(images) for step, images in names.items()})
    assert seen[0] == seen[1] and sorted(seen[0]) == [4, 5, 6, 7, 8]


def keep_names(folder: str) -> None:
    """Write the names of each batch's images."""
    original = Segmentation.training_step

    def step(self: Segmentation, batch: dict, batch_idx: int) -> torch.Tensor:
        names = [f"{kind} {name}" for kind, stream in batch.items() for name in stream["name"]]
        file = f"{self.trainer.global_step}_{self.trainer.global_rank}_{batch_idx}.pt"
        torch.save(names, Path(folder) / file)
        return original(self, batch, batch_idx)

    Segmentation.training_step = step
