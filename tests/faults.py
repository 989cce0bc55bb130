"""train.py in processes of its own, which can be killed at any place; and what has to be equal afterwards.

A fork server imports everything once, so a run starts in a fraction of a second.
"""

import csv
import json
import multiprocessing
import os
import runpy
import signal
import socket
import sys
from pathlib import Path

import torch
from conftest import SMALL, TINY_SET
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

TRAIN = Path(__file__).parents[1] / "train.py"
UNTIMED = {"seconds", "images_per_second", "peak_memory_mib", "git_commit"}  # keys of summary.json that may differ
PLACES = {
    "start of a step": ("pcr_seg.module", "Segmentation.training_step"),
    "before the teacher moves": ("pcr_seg.method.teacher", "ema_update"),
    "end of a step": ("pcr_seg.module", "Segmentation.on_train_batch_end"),
    "start of an epoch": ("pcr_seg.module", "Segmentation.on_train_epoch_start"),
    "k-means": ("pcr_seg.method.prototypes", "kmeans"),
    "collecting features": ("pcr_seg.method.prototypes", "sample_features"),
    "validation": ("pcr_seg.module", "Segmentation.validation_step"),
    "end of validation": ("pcr_seg.module", "Segmentation.on_validation_epoch_end"),
    "halfway through a checkpoint's write": ("torch", "save"),
    "before a checkpoint is synced": ("os", "fsync"),
    "before a file gets its name": ("os", "replace"),
    "writing metrics.csv": ("csv", "DictWriter.writerows"),
    "summary": ("pcr_seg.training.fit", "summarize"),
}

MOST = {  # how often each place is passed at least in each of these runs
    "start of an epoch": 3, "k-means": 5, "collecting features": 8, "validation": 3, "end of validation": 1,
    "halfway through a checkpoint's write": 4, "before a checkpoint is synced": 4, "before a file gets its name": 5,
    "writing metrics.csv": 3, "summary": 1,
}  # fmt: skip


def die_at(place: str | tuple[str, str], count: int, number: int = signal.SIGKILL) -> None:
    """Make the count-th passing of a place, of `PLACES` or another, send this process a signal."""
    module, name = PLACES[place] if isinstance(place, str) else place
    *owners, name = name.split(".")
    owner = sys.modules[module] if module in sys.modules else __import__(module)
    for attribute in owners:
        owner = getattr(owner, attribute)
    original, passed = getattr(owner, name), 0

    def dying(*args: object, **kwargs: object) -> object:
        nonlocal passed
        passed += 1
        if passed == count:
            if place == "halfway through a checkpoint's write":
                original(*args, **kwargs)
                file = args[1]
                file.flush()
                os.truncate(file.fileno(), os.fstat(file.fileno()).st_size // 2)
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    setattr(owner, name, dying)


def record(folder: str, *, normless: bool = False) -> None:
    """Write what each step and validation leaves behind, on each rank; perhaps with a network without BatchNorm."""
    module = sys.modules["pcr_seg.module"].Segmentation
    step, validated = module.on_train_batch_end, module.on_validation_epoch_end

    def write(self: torch.nn.Module, kind: str, **values: object) -> None:
        name = f"{kind}_{self.trainer.global_step}_rank{self.trainer.global_rank}.pt"
        torch.save(values, Path(folder) / name)

    def record_step(self: torch.nn.Module, outputs: object, batch: dict, batch_idx: int) -> None:
        step(self, outputs, batch, batch_idx)
        names = [stream["name"] for stream in batch.values()]
        write(
            self, "step", prototypes=self.method.bank.prototypes, assigned=self.method.assigned, names=names,
            seed=torch.initial_seed(), losses={name: value.detach() for name, value in self.latest.items()},
        )  # fmt: skip

    def record_validation(self: torch.nn.Module) -> None:
        matrix, counts = self.confusion.counts()["linear"], self.pseudo_counts.clone()
        validated(self)
        write(self, "validation", matrix=matrix, own=counts, scores=self.scores)

    module.on_train_batch_end, module.on_validation_epoch_end = record_step, record_validation
    if normless:
        fit = sys.modules["pcr_seg.training.fit"]
        build = fit.build_module
        fit.build_module = lambda *args: without_norm(build(*args))
        sys.modules["pcr_seg.method.prototypes"].kmeans = any_centers


def any_centers(points: torch.Tensor, k: int, generator: torch.Generator) -> torch.Tensor:
    """In the place of k-means, which weights that differ in the last digits may send to another optimum."""
    return torch.randn(k, points.shape[1], generator=generator)


def without_norm(module: torch.nn.Module) -> torch.nn.Module:
    """Put the activation alone, or nothing, in the place of each BatchNorm."""
    for name, child in module.named_children():
        if isinstance(child, torch.nn.BatchNorm2d):
            setattr(module, name, getattr(child, "act", torch.nn.Identity()))
        without_norm(child)
    return module


def be_script(script: str, arguments: list[str], log: str, environment: dict, prepare: tuple) -> None:
    """In the child: be `python SCRIPT ARGUMENTS`, in a session and with an output of its own."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # torchrun has one for all of its ranks
        os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1), os.dup2(file, 2)
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # of the loaders' workers, as on any Linux
    torch.set_num_threads(1)
    if prepare:
        function, *details = prepare
        function(*details)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


def start(
    arguments: list[str], log: Path, *prepare: object, script: Path = TRAIN, **environment: str
) -> multiprocessing.Process:
    """Start `python SCRIPT ARGUMENTS`, its output going to `log`, after calling prepare[0](*prepare[1:])."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pcr_seg.training.fit"])
    process = context.Process(target=be_script, args=(str(script), arguments, str(log), environment, prepare))
    process.start()
    return process


def finish(process: multiprocessing.Process, seconds: float = 300) -> int:
    """Exit code of a training (negative: the signal that ended it), which has to end in time."""
    process.join(timeout=seconds)
    if process.exitcode is None:
        os.killpg(process.pid, signal.SIGKILL)
        raise TimeoutError(f"still running after {seconds} s")
    return process.exitcode


def train(arguments: list[str], log: Path, *prepare: object, **environment: str) -> int:
    """Run `python train.py ARGUMENTS` to its end; return its exit code."""
    return finish(start(arguments, log, *prepare, **environment))


def start_ranks(arguments: list[str], logs: list[Path], *prepare: object) -> list[multiprocessing.Process]:
    """Start one process for each log, as ranks of one training."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(len(logs)), "NODE_RANK": "0"}
    arguments = [*arguments, "hardware=ddp_cpu", f"trainer.devices={len(logs)}"]
    return [start(arguments, log, *prepare, LOCAL_RANK=str(rank), **shared) for rank, log in enumerate(logs)]


def start_torchrun(
    arguments: list[str], log: Path, *prepare: object, ranks: int = 2, restarts: int = 0, script: Path = TRAIN,
    **environment: str,
) -> multiprocessing.Process:  # fmt: skip
    """Start `torchrun --nproc-per-node=RANKS --max-restarts=RESTARTS SCRIPT ARGUMENTS`, forking the ranks."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pcr_seg.training.fit"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = LaunchConfig(
        1, 1, ranks, run_id="test", rdzv_backend="static", rdzv_endpoint=f"127.0.0.1:{port}", rdzv_configs={"rank": 0},
        max_restarts=restarts, monitor_interval=0.1, start_method="fork",
    )  # fmt: skip
    process = context.Process(target=be_torchrun, args=(config, str(script), arguments, str(log), environment, prepare))
    process.start()
    return process


def be_torchrun(config: LaunchConfig, *details: object) -> None:
    """In the child: start `be_script` as each rank, and again where one has failed."""
    os.setsid()
    elastic_launch(config, be_script)(*details)


def on_rank(rank: int, function: object, *details: object) -> None:
    """Prepare this rank alone, and only before torchrun has started it again."""
    if os.environ["RANK"] == str(rank) and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        function(*details)


def tiny(root: Path, folder: Path, *overrides: str) -> list[str]:
    """Arguments of a training of ten seconds at most: three epochs of three steps, the first of them burn-in."""
    return [
        f"hydra.run.dir={folder}", f"dataset.root={root}/data", *TINY_SET, *SMALL, "data.steps_per_epoch=3",
        "trainer.max_epochs=3", "recipe.threshold=0.2", "data.num_workers=0", "checkpoints.every_n_steps=2", *overrides,
    ]  # fmt: skip


def outcome(folder: Path) -> dict:
    """All that has to be bit-equal, whatever happened to a run on its way."""
    last, best = (torch.load(folder / f"checkpoints/{name}.ckpt", weights_only=True) for name in ("last", "best"))
    summary = json.loads((folder / "summary.json").read_text())
    last["callbacks"].pop("TrainTimer")
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        **{key: value for key, value in last.items() if key not in ("pcr_seg", "loops")},
        "best": best["state_dict"],
        "metrics.csv": rows,
        "summary": {key: value for key, value in summary.items() if key not in UNTIMED},
        "panel": (folder / "panel.png").read_bytes(),
    }


def differences(one: object, other: object, path: str = "") -> list[str]:
    """Where two nested structures differ, bit for bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted(one.keys() | other.keys(), key=str)
        return [d for key in keys for d in differences(one.get(key), other.get(key), f"{path}/{key}")]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return [d for i, pair in enumerate(zip(one, other, strict=True)) for d in differences(*pair, f"{path}/{i}")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and torch.equal(one, other)
    else:
        same = one == other or (one != one and other != other)  # NaN is itself here
    return [] if same else [path]
