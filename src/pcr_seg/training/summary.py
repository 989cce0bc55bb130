"""The summary of a finished run: scores, settings and cost, for summary.json and for the terminal."""

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import lightning.pytorch as L
import torch
from rich.console import Console

from pcr_seg.config import CONF
from pcr_seg.data.datamodule import SegmentationData
from pcr_seg.module import Segmentation
from pcr_seg.scores import iou_of_heads, never_predicted, percent, score_table, warning_of
from pcr_seg.training.checkpoints import Checkpoints, whole_run
from pcr_seg.training.timer import callback, images_per_second


def summarize(trainer: L.Trainer, module: Segmentation, data: SegmentationData) -> dict:
    """Return the content of summary.json, but for the seconds: scores in 0..1, settings, speed and memory (MiB)."""
    metrics, config, counts = module.scores, module.metadata["config"], module.confusion.counts()
    return {
        "dataset": data.source.name,
        "split": str(config["split"]["labeled"]),
        "split_family": data.split.family,
        "method": module.name,
        "backbone": config["backbone"]["name"],
        "seed": config["seed"],
        "num_labeled": len(data.split.labeled),
        "num_unlabeled": len(data.split.unlabeled),
        "iterations": trainer.global_step,
        "semi_supervised_iterations": module.semi_supervised_steps,
        "miou_last": metrics.get("val/miou"),  # a run in folds has none of its own
        "miou_best": callback(trainer, Checkpoints).best_score if metrics else None,
        "miou_prototype_last": metrics.get("val/miou_prototype"),
        **iou_of_heads(metrics, module.class_names),
        "never_predicted": never_predicted(counts["linear"], module.class_names) if counts else [],
        "images_per_second": round(images_per_second(trainer, data, module), 2),
        "peak_memory_mib": round(peak_memory_mib(trainer.strategy.root_device)),
        "versions": versions("pcr-seg", "torch", "lightning", "timm", "albumentations"),
        "git_commit": git_commit(),
    }


def peak_memory_mib(device: torch.device) -> float:
    """Return the peak memory in MiB: of the GPU that was used, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**20
    import resource  # which Windows lacks

    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def versions(*packages: str) -> dict[str, str | None]:
    """Return the versions of Python and of packages; None for one that is not installed (this one may not be)."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def git_commit() -> str | None:
    """Return the commit of this code, with "-dirty" if files differ from it; None outside of a checkout."""
    # Only this project's .git: an installed wheel may lie inside of another project's checkout.
    checkout = [f"--git-dir={CONF.parent / '.git'}", f"--work-tree={CONF.parent}"]
    command = ["git", *checkout, "describe", "--always", "--dirty", "--abbrev=40", "--match="]
    result = subprocess.run(command, capture_output=True, text=True)
    return result.stdout.strip() or None if result.returncode == 0 else None


def print_summary(summary: dict, output: Path) -> None:
    """Print the result as a table, and commands to type next; for a fold print a single line."""
    console, folds = Console(), summary.get("folds")
    best = f"best epoch (chosen on val) {percent(summary['miou_best'])}"
    if whole_run(output) != output:
        console.print(f"{output.name}: mIoU {percent(summary['miou_last'])}, {best} · {summary['seconds']:.0f} s")
        return
    title = f"{summary['method']} on {summary['dataset']}, {summary['num_labeled']} labels, last epoch"
    if folds:
        title += f", mean of {folds} folds"
        best = (
            f"± {percent(summary['miou_last_std'])} over the folds, whose masks were new to them; last.ckpt knows all"
        )
    console.print(score_table(title, summary, summary["miou_last"], summary["miou_prototype_last"]))
    if summary.get("never_predicted"):
        console.print(warning_of(summary["never_predicted"]))
    console.print(f"{best} · {summary['seconds']:.0f} s")
    board = [f"tensorboard --logdir={output}/tensorboard"] if (output / "tensorboard").is_dir() else []
    offline = [f"wandb sync {path}" for path in sorted(output.glob("wandb/offline-run-*"))]
    for line in (
        f"run folder: {output} (pictures in panel.png)",
        *board,
        *offline,
        f"python report.py runs={output}",
        f"python eval.py checkpoint={output}{'/fold_1' if folds else ''}/checkpoints/last.ckpt",
        f"python predict.py checkpoint={output}/checkpoints/last.ckpt images=FOLDER output=predictions",
    ):
        console.print(line, soft_wrap=True, highlight=False)
