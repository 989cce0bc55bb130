"""Whether torchrun or SLURM's srun started this process as one of several, and what all of these have to agree on."""

import functools
import hashlib
import os
import re
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch.distributed import TCPStore

INTERACTIVE = ("bash", "interactive")  # names of SLURM jobs in which a person types commands; Lightning's list
STARTED = "PCR_SEG_STARTED"  # environment variable that hands the result of `started` on to processes of the trainer
HOSTED: list["TCPStore"] = []  # stores that this process hosts; one closes when nothing refers to it


class Launch(NamedTuple):
    """A launcher, and the processes that it started: one for each device of each node."""

    by: str  # "torchrun" or "srun"
    nodes: int
    devices: int  # of each node


def launched() -> Launch | None:
    """Return the launcher that started this process, by its environment; None if a person or the trainer did.

    Raises:
        ValueError: nodes have different numbers of processes, or the launcher is not supported (mpirun).
    """
    env = os.environ
    if "TORCHELASTIC_RUN_ID" in env:
        nodes, world = int(env["GROUP_WORLD_SIZE"]), int(env["WORLD_SIZE"])
        if int(env["LOCAL_WORLD_SIZE"]) * nodes != world:
            raise ValueError(f"torchrun: {world} processes on {nodes} nodes; give each node the same --nproc-per-node")
        return Launch("torchrun", nodes, world // nodes)
    if (tasks := env.get("SLURM_STEP_TASKS_PER_NODE")) and env.get("SLURM_JOB_NAME") not in INTERACTIVE:
        even = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", tasks)  # 4(x2): four on each of two
        if not even:
            raise ValueError(f"srun: {tasks} tasks on its nodes; set --ntasks-per-node, so that each has as many")
        return Launch("srun", int(even[2] or 1), int(even[1]))
    if int(env.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        raise ValueError("mpirun: is not read, so each process would train alone; use torchrun or srun")
    return None


def check_launch(nodes: int, devices: int) -> None:
    """Raise a ValueError if a launcher has started other numbers of processes than the configuration asks for."""
    found = launched()
    if found and found[1:] != (nodes, devices):
        raise ValueError(
            f"trainer.num_nodes={nodes}, trainer.devices={devices}: but {found.by} started {found.nodes} x"
            f" {found.devices} processes; set hardware=cluster, which follows it (on CPUs hardware=cluster_cpu)"
        )


class Place(NamedTuple):
    """Which of the launcher's processes this one is."""

    rank: int  # 0..total - 1
    total: int
    local_rank: int  # its number on its node, from 0


def place() -> Place:
    """Return this process's place among the launcher's; without a launcher, that of a single process."""
    found, env = launched(), os.environ
    if not found:
        return Place(0, 1, 0)
    rank, local = ("RANK", "LOCAL_RANK") if found.by == "torchrun" else ("SLURM_PROCID", "SLURM_LOCALID")
    return Place(int(env[rank]), found.nodes * found.devices, int(env[local]))


@functools.cache
def started() -> str:
    """Return a name for this start of the command, for its run folder: the same in all of its processes.

    It is the time of the start and the process's number, as several may start in a second; restarts by torchrun keep
    those of the first. In a queued SLURM job it is the job's
    number, which the job keeps when it is queued again, and a digest of the command.
    """
    env = os.environ
    if "SLURM_JOB_ID" in env and env.get("SLURM_JOB_NAME") not in INTERACTIVE:
        number = "_".join(env[key] for key in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID") if key in env)
        command = hashlib.sha256(" ".join(sys.argv[1:]).encode()).hexdigest()[:6]
        return f"job_{number or env['SLURM_JOB_ID']}_{command}"
    now = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{os.getpid()}"
    if "TORCHELASTIC_RUN_ID" in env:
        return _store().compare_set("pcr_seg/started", "", now).decode()
    if "LOCAL_RANK" in env:  # the trainer started this process, with a copy of its own environment
        return env.get(STARTED, now)
    return env.setdefault(STARTED, now)


@functools.cache
def _store() -> "TCPStore":
    """Return the store that torchrun's processes share: torchrun's own, or one that rank 0 hosts."""
    from torch.distributed import TCPStore  # seconds, which a command without a launcher need not wait for

    env = os.environ
    hosts = env["RANK"] == "0" and env.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    return TCPStore(env["MASTER_ADDR"], int(env["MASTER_PORT"]), None, hosts, multi_tenant=True)


def meet_anew() -> None:
    """After a restart by torchrun, let the processes meet at another port; once in each process.

    torchrun's store still has the addresses of the processes that ended, and a new one that reads them waits for these
    in vain (seen with torch 2.14).
    """
    env = os.environ
    attempt = int(env.get("TORCHELASTIC_RESTART_COUNT", 0))
    if not attempt or HOSTED or env["TORCHELASTIC_USE_AGENT_STORE"] != "True":
        return
    from torch.distributed import TCPStore

    old, key = _store(), f"pcr_seg/port_{attempt}"
    if env["RANK"] == "0":
        HOSTED.append(TCPStore(env["MASTER_ADDR"], 0, None, True, wait_for_workers=False, multi_tenant=True))
        old.set(key, str(HOSTED[0].port))
    env["MASTER_PORT"], env["TORCHELASTIC_USE_AGENT_STORE"] = old.get(key).decode(), "False"
