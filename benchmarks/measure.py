"""Measure time and memory of functions, side by side in one process."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from pcr_seg.training.summary import git_commit, versions

Row = dict  # case, version, milliseconds, quartiles, ratio to the case's first version, mebibytes or None


def compare(case: str, versions: dict[str, Callable[[], object]], repeats: int, *, memory: bool = True) -> list[Row]:
    """Return a row for each version of doing the same thing; ratios are to the first version.

    Each round runs every version once, so that a slow moment of the machine affects all of them alike.
    """
    peaks = {name: peak_mebibytes(function) if memory else None for name, function in versions.items()}  # and warms up
    seconds: dict[str, list[float]] = {name: [] for name in versions}
    for _ in range(repeats):
        for name, function in versions.items():
            seconds[name].append(timed(function))
    return rows(case, seconds, peaks)


def rows(case: str, seconds: dict[str, list[float]], peaks: dict[str, float | None] | None = None) -> list[Row]:
    """Return rows from the seconds of each version, round by round; a ratio is the median of the rounds' ratios."""
    first = next(iter(seconds.values()))
    return [
        {
            "case": case,
            "version": name,
            "milliseconds": 1000 * statistics.median(own),
            "quartiles": [1000 * value for value in quartiles(own)],
            "ratio": statistics.median(mine / reference for mine, reference in zip(own, first, strict=True)),
            "mebibytes": (peaks or {}).get(name),
        }
        for name, own in seconds.items()
    ]


def quartiles(values: list[float]) -> tuple[float, float]:
    """Return the first and the third quartile; both are the value if there is only one."""
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def timed(function: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def peak_mebibytes(function: Callable[[], object]) -> float:
    """Return the peak memory, in MiB, of the tensors that one call allocates."""
    peak = MemoryPeak()
    peak.start()
    result = function()  # kept until the end: what a version returns is part of its memory
    peak.stop()
    del result
    return peak.mebibytes


class MemoryPeak:
    """Measures the peak memory of tensors allocated on the CPU between `start` and `stop`, by torch's profiler."""

    def start(self) -> None:
        """Begin to record."""
        self.profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        self.profiler.__enter__()

    def stop(self) -> None:
        """End, and compute `mebibytes`."""
        self.profiler.__exit__(None, None, None)
        events = [e for e in self.profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
        sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
        self.mebibytes = max(accumulate(sizes), default=0) / 2**20


def machine() -> dict:
    """Return the machine and the versions that figures were measured with."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), cpu)
    packages = ("torch", "torchvision", "lightning", "timm", "albumentations", "opencv-python-headless", "pillow")
    return {
        "cpu": cpu,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "busy": round(os.getloadavg()[0], 1),
        "date": time.strftime("%Y-%m-%d"),
        "commit": git_commit(),
        "versions": versions(*packages),
    }
