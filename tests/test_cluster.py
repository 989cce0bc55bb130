"""torchrun and srun are read or refused, ranks share a folder, and what was ended goes on as if nothing had been."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from faults import MOST, PLACES, TRAIN, die_at, differences, finish, on_rank, outcome, start_torchrun, tiny, train

from pcr_seg import cluster
from pcr_seg.commands.start import check
from pcr_seg.config import command_line

RANKS = ("global_batch=4", "hardware=cluster_cpu")
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "6", "GROUP_WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "3"}


def environment(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    """This process with these variables and no others of a launcher."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC_", "OMPI_")):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, None),
        (TORCHRUN, ("torchrun", 2, 3)),
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x2)"}, ("srun", 2, 4)),
        ({"SLURM_STEP_TASKS_PER_NODE": "1"}, ("srun", 1, 1)),
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x2)", **TORCHRUN}, ("torchrun", 2, 3)),  # srun torchrun ...
        ({"SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_JOB_NAME": "bash"}, None),
        ({"SLURM_NTASKS": "4"}, None),  # sbatch has started the script alone
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
    ],
)
def test_launchers_are_known_by_their_environment(variables: dict, found: tuple | None, monkeypatch) -> None:
    environment(monkeypatch, **variables)
    assert cluster.launched() == found


def test_a_process_knows_its_place(monkeypatch) -> None:
    environment(monkeypatch)
    assert cluster.place() == (0, 1, 0)
    environment(monkeypatch, SLURM_STEP_TASKS_PER_NODE="4(x2)", SLURM_PROCID="5", SLURM_LOCALID="1")
    assert cluster.place() == (5, 8, 1)
    monkeypatch.setenv("RANK", "4"), monkeypatch.setenv("LOCAL_RANK", "1")
    environment(monkeypatch, **TORCHRUN)
    assert cluster.place() == (4, 6, 1)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "2,1"}, "srun: 2,1 tasks on its nodes; set --ntasks-per-node"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "2"}, "torchrun: 6 processes on 2 nodes; give each node the same"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "mpirun: is not read"),
    ],
)
def test_launches_that_nobody_can_follow(variables: dict, message: str, monkeypatch) -> None:
    environment(monkeypatch, **variables)
    with pytest.raises(ValueError, match=message):
        cluster.launched()


def content(folder: Path) -> dict[str, tuple]:
    """Everything below a folder, with its time and a digest."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(f): (f.stat().st_mtime_ns, hashlib.sha256(f.read_bytes()).digest()) for f in files}


@pytest.mark.parametrize(
    ("variables", "hardware", "message"),
    [
        ({"SLURM_STEP_TASKS_PER_NODE": "2"}, [], "trainer.devices=1: but srun started 1 x 2 processes"),
        ({"SLURM_STEP_TASKS_PER_NODE": "2(x2)"}, ["hardware=ddp_cpu"], "devices=2: but srun started 2 x 2 processes"),
        (TORCHRUN, ["hardware=ddp_cpu"], "set hardware=cluster, which follows it"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, [], "mpirun: is not read"),
        ({}, ["hardware=cluster_cpu"], "hardware=cluster: neither torchrun nor srun started this process"),
    ],
)
def test_a_launcher_is_never_ignored(
    trained: Path, tmp_path: Path, variables: dict, hardware: list[str], message: str
) -> None:
    """One line, exit 1, and a folder in which something lies already stays as it is."""
    log, before = tmp_path / "log", content(trained)
    for folder in (trained, tmp_path / "new"):
        assert train(tiny(tmp_path, folder, "global_batch=4", *hardware), log, **variables) == 1
    lines = log.read_text().splitlines()
    assert len(lines) == 2 and all(line.startswith("error: ") and message in line for line in lines), lines
    assert content(trained) == before and not (tmp_path / "new").exists()


def test_a_resumed_run_asks_as_well(trained: Path, tmp_path: Path) -> None:
    before = content(trained)
    slurm = {"SLURM_STEP_TASKS_PER_NODE": "2"}
    assert train([f"resume={trained}", f"hydra.run.dir={tmp_path}/hydra"], tmp_path / "log", **slurm) == 1
    assert "srun started 1 x 2 processes" in (tmp_path / "log").read_text() and content(trained) == before


def test_the_folder_of_a_job_stays_when_it_is_queued_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def name(**variables: str) -> str:
        environment(monkeypatch, **variables)
        cluster.started.cache_clear()
        return cluster.started()

    monkeypatch.delenv(cluster.STARTED, raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr("sys.argv", ["train.py", "seed=1"])
    first = name(SLURM_JOB_ID="17")
    assert first.startswith("job_17_") and name(SLURM_JOB_ID="17", SLURM_RESTART_COUNT="1") == first
    assert name(SLURM_JOB_ID="20", SLURM_ARRAY_JOB_ID="17", SLURM_ARRAY_TASK_ID="3").startswith("job_17_3_")
    assert not name(SLURM_JOB_ID="17", SLURM_JOB_NAME="interactive").startswith("job")
    monkeypatch.setattr("sys.argv", ["train.py", "seed=2"])
    assert name(SLURM_JOB_ID="17") != first
    here = name()
    assert name(LOCAL_RANK="1") == here, "a process that the trainer has started"
    assert here.endswith(f"_{os.getpid()}"), "others may start in the same second"
    cluster.started.cache_clear()


def late(seconds: float) -> None:
    """Start later than the others."""
    time.sleep(seconds)


def test_the_files_for_slurm_and_skypilot_start_what_they_say(tmp_path: Path, monkeypatch) -> None:
    """Their last command, by stand-ins for srun and torchrun that say what they are told to start."""
    folder, keys = TRAIN.parent / "docs/cluster", ["dataset=cityscapes", "split=1_8", "per_device=2"]
    for tool in (tmp_path / "srun", tmp_path / ".venv/bin/torchrun"):
        tool.parent.mkdir(parents=True, exist_ok=True)
        tool.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
        tool.chmod(0o755)
    sky = yaml.safe_load((folder / "skypilot.yaml").read_text())
    environment(monkeypatch, **TORCHRUN | {"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"})
    for words, more in (
        (["bash", str(folder / "train.sbatch"), *keys], {"PYTHON": "python"}),
        (["bash", "-c", sky["run"]], {
            **sky["envs"], "KEYS": " ".join(keys), "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1",
            "SKYPILOT_NUM_GPUS_PER_NODE": "8", "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        }),
    ):  # fmt: skip
        variables = os.environ | more | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        told = subprocess.run(words, cwd=tmp_path, env=variables, capture_output=True, text=True, check=True)
        told = told.stdout.splitlines()
        options, started = told[: told.index("train.py")], told[told.index("train.py") + 1 :]
        assert "hardware=cluster" in started and set(keys) <= set(started)
        check("train", command_line(started))
    assert {"--nnodes=2", "--node-rank=1", "--nproc-per-node=8", "--master-addr=10.0.0.1"} <= set(options)


# ---------------------------------------------------------------------------------- preemption


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """Where the data lie, and the outcome of an unbroken run of two ranks, of which one starts later."""
    root = tmp_path_factory.mktemp("cluster")
    arguments = tiny(root, root / "run", *RANKS)
    arguments[0] = f"hydra.run.dir={root}/${{started:}}"
    assert finish(start_torchrun(arguments, root / "log", on_rank, 1, late, 1.5)) == 0, (root / "log").read_text()
    folders = [path for path in root.iterdir() if path.is_dir() and path.name != "data"]
    assert len(folders) == 1, "all ranks share a folder"
    return root, outcome(folders[0])


def survive(whole: tuple[Path, dict], folder: Path, rank: int, place: str, count: int, number: int) -> None:
    """One rank is killed, or told to end; torchrun starts both again, which go on in their folder."""
    root, unbroken = whole
    arguments, log = tiny(root, folder, *RANKS), folder.with_suffix(".log")
    arguments[0] = f"hydra.run.dir={folder}/${{started:}}"
    assert finish(start_torchrun(arguments, log, on_rank, rank, die_at, place, count, number, restarts=1)) == 0
    [run] = folder.iterdir()
    text = log.read_text()
    assert differences(unbroken, outcome(run)) == [] and "Traceback" not in text, text[-3000:]
    assert text.count("GLOBAL_RANK: 0") == 2, "it has started twice"


@pytest.mark.parametrize(("rank", "place", "count"), [(0, "end of a step", 5), (1, "before the teacher moves", 8)])
def test_torchrun_starts_a_killed_training_again(whole, tmp_path: Path, rank: int, place: str, count: int) -> None:
    survive(whole, tmp_path / "runs", rank, place, count, signal.SIGKILL)


RANK_ZERO = {
    "k-means", "collecting features", "halfway through a checkpoint's write", "before a checkpoint is synced",
    "writing metrics.csv", "before a file gets its name",
}  # fmt: skip


@pytest.mark.faults
@pytest.mark.parametrize("number", range(20))
def test_torchrun_starts_again_wherever_a_rank_ends(whole, tmp_path: Path, number: int, counts: dict) -> None:
    generator = random.Random(number)
    place = list(PLACES)[number % len(PLACES)]
    rank = 0 if place in RANK_ZERO else generator.randrange(2)
    count = generator.randint(1, max(1, MOST.get(place, 8) // 2))
    received = generator.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
    counts["ranks ended under torchrun"] += 1
    survive(whole, tmp_path / "runs", rank, place, count, received)
    counts["of them gone on"] += 1


def test_a_sweep_goes_on_in_its_half_done_cell(tmp_path: Path) -> None:
    log, sweep = tmp_path / "log", tmp_path / "sweep"
    assert train(tiny(tmp_path, tmp_path / "alone", "seed=1", "trainer.max_epochs=2"), log) == 0
    cells = tiny(tmp_path, tmp_path / "unused", "seed=0,1", "trainer.max_epochs=2")
    arguments = ["-m", f"hydra.sweep.dir={sweep}", *cells]
    assert train(arguments, log, die_at, "start of a step", 6 + 5) == -signal.SIGKILL
    first, second = sorted(path for path in sweep.iterdir() if path.is_dir())
    summary = (first / "summary.json").stat().st_mtime_ns
    assert train(arguments, log) == 0, log.read_text()[-2000:]
    assert (first / "summary.json").stat().st_mtime_ns == summary and "going on after epoch" in log.read_text()
    assert differences(outcome(tmp_path / "alone"), outcome(second)) == []


def listen(file: str) -> None:
    """Listen for SIGUSR2 as submitit does: queue the job again, here in a file, and leave with a code of its own."""
    signal.signal(signal.SIGUSR2, lambda number, frame: (Path(file).write_text("again"), sys.exit(7)))


def listen_and_die_at(file: str, *details: object) -> None:
    """Both."""
    listen(file)
    die_at(*details)


def test_whoever_listened_before_queues_the_job_again(tmp_path: Path) -> None:
    """Once the step is saved; SIGTERM, which often comes with it, changes nothing."""
    arguments, log, file = tiny(tmp_path, tmp_path / "run"), tmp_path / "log", tmp_path / "queued"
    arguments += ["checkpoints.every_n_steps=100"]
    assert train(arguments, log, listen_and_die_at, str(file), "start of a step", 5, signal.SIGUSR2) == 7
    assert file.read_text() == "again" and "stopped by a signal at step 5, saved" in log.read_text()
    assert train(arguments, log) == 0 and "going on after epoch 1" in log.read_text()


@pytest.mark.faults
@pytest.mark.parametrize(("number", "received"), [(0, signal.SIGUSR2), (1, signal.SIGUSR2), (2, signal.SIGKILL)])
def test_submitit_goes_on(tmp_path: Path, number: int, received: int, counts: dict) -> None:
    """The plugin itself: at SIGUSR2 it starts the job again, after SIGKILL the same command does."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    long = ["trainer.max_epochs=8", "checkpoints.every_n_steps=1"]
    assert train(tiny(tmp_path, tmp_path / "alone", *long), tmp_path / "log") == 0
    sweep = ["-m", "hydra/launcher=submitit_local", f"hydra.sweep.dir={tmp_path}/sweep"]
    command = [sys.executable, str(TRAIN), *sweep, *tiny(tmp_path, tmp_path / "unused", *long)]
    with subprocess.Popen(command) as process:
        while not (saved := list(tmp_path.glob("sweep/*/checkpoints/last.ckpt"))):
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(random.Random(number).uniform(0, 1.5))
        [job] = [pid for pid in descendants(process.pid) if "submitit.core._submit" in command_of(pid)]
        os.kill(job, received)
        counts["jobs of submitit ended"] += 1
    [cell] = {path.parents[1] for path in saved}
    assert (cell / "summary.json").is_file() == (received == signal.SIGUSR2)
    if received == signal.SIGKILL:
        subprocess.run(command, check=True)
    assert differences(outcome(tmp_path / "alone"), outcome(cell)) == []
    counts["of these gone on"] += 1


def descendants(pid: int) -> list[int]:
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return children + [found for child in children for found in descendants(child)]


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
