"""The five actions of prepare.py: prepare, check, suggest, import, manifest."""

import shlex
import sys
from functools import partial
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pcr_seg.config import build
from pcr_seg.data.check import check, num_errors, show, write
from pcr_seg.data.imports.importing import by_reason, import_export
from pcr_seg.data.pool import SUFFIX
from pcr_seg.data.prepare import manifest, prepare
from pcr_seg.data.suggest import suggest
from pcr_seg.training.values import arguments, check_node, check_type

IMPORT_KEYS = (
    "format", "rest", "empty", "overlap", "lines", "ignore", "attribute", "own_split", "group", "val", "seed", "links",
)  # fmt: skip


def act(cfg: DictConfig, dataset: str) -> None:
    """Run the action that `cfg.action` names.

    Args:
        cfg: configuration of prepare.py.
        dataset: the overrides that name the data set, as typed, for commands to print.

    Raises:
        ValueError: there is no such action, or its data or settings cannot be used.
        SystemExit: `check` has found errors.
    """
    if cfg.action not in ACTIONS:
        raise ValueError(f"action={cfg.action}: choose one of {', '.join(ACTIONS)}")
    check_node("", {"dataset": OmegaConf.to_container(cfg.dataset, resolve=True)})
    ACTIONS[cfg.action](cfg, dataset)


def run_prepare(cfg: DictConfig, dataset: str) -> None:
    """Download, unpack and check a benchmark data set, and print what it has."""
    reader = cfg.dataset._target_.rpartition(".")[2]
    print(prepare(reader, Path(cfg.dataset.root), partial(build, cfg.dataset), Path(cfg.lists)))


def run_check(cfg: DictConfig, dataset: str) -> None:
    """Examine a data set, print and write the report and the next command; exit with 1 if training would fail."""
    console = Console()
    report = check(build(cfg.dataset))
    show(report, console)
    for file in write(report, Path(cfg.output)):
        print(f"written: {file}")
    errors = num_errors(report)
    again, next_command = f"errors: {errors}; correct them and check again", f"python prepare.py suggest {dataset}"
    print(again if errors else f"next: {next_command}")
    sys.exit(min(errors, 1))


def run_suggest(cfg: DictConfig, dataset: str) -> None:
    """Print suggested settings with their reasons, and a command to copy."""
    import torch  # takes seconds, and no other action needs it

    console = Console()
    gpu_gib = torch.cuda.get_device_properties(0).total_memory / 2**30 if torch.cuda.is_available() else None
    suggestion = suggest(build(cfg.dataset), gpu_gib)
    table = Table("setting", "because")
    for (key, value), reason in zip(suggestion.overrides.items(), suggestion.reasons, strict=True):
        table.add_row(escape(f"{key}={value}"), reason)
    console.print(table)
    print(suggestion.time)
    words = shlex.join(f"{key}={value}" for key, value in suggestion.overrides.items())
    print(f"python train.py {dataset} {words}")


def run_import(cfg: DictConfig, dataset: str) -> None:
    """Convert an annotation tool's export into a data set; print what is left out, and the next command."""
    if cfg["from"] is None or "dataset.root=" not in dataset:
        raise ValueError("import: say what from, and where to: python prepare.py import from=EXPORT dataset.root=NEW")
    root, console = Path(cfg.dataset.root), Console(soft_wrap=True, highlight=False, markup=False)
    images = Path(cfg.images) if cfg.images else None
    plain, types = OmegaConf.to_container(cfg, resolve=True), arguments(import_export)
    for key in IMPORT_KEYS:
        check_type(key, plain[key], types[key])
    found = import_export(Path(cfg["from"]), root, images=images, **{key: plain[key] for key in IMPORT_KEYS})
    parts = ", ".join(f"{number} {part}" for part, number in found.parts.items())
    console.print(f"{root}: {parts} images from {found.format}, divided {found.divided}; {', '.join(found.classes)}")
    if found.left:
        table = Table("what", "why", "number", "first")
        for (what, why), those in by_reason(found.left).items():
            table.add_row(what, why, str(len(those)), " ".join(filter(None, (those[0].image, those[0].label))))
        console.print(table)
        console.print(f"each of them: {root}/left_out.csv")
    if not found.parts["val"]:
        console.print("no image is left to validate on: trainings hold some of the masks out")
    console.print(f"next: python prepare.py check dataset=folder {shlex.join([f'dataset.root={root}'])}")


def run_manifest(cfg: DictConfig, dataset: str) -> None:
    """List and look into the unlabeled images once, say what is left out, and how to train with the rest."""
    file = Path(cfg.manifest)
    if file.suffix != SUFFIX or str(cfg.dataset.get("unlabeled")).endswith(SUFFIX):
        raise ValueError(f"manifest={file}: a name that ends in {SUFFIX}, of images that are listed in no other")
    bad = manifest(build(cfg.dataset), file)
    for line in bad[:5]:
        print(f"left out: {line}")
    if len(bad) > 5:
        print(f"left out: {len(bad)} in all")
    others = [word for word in shlex.split(dataset) if not word.startswith("dataset.unlabeled=")]
    command = shlex.join([*others, f"dataset.unlabeled={file}"])
    print(f"python train.py {command}")


ACTIONS = {
    "prepare": run_prepare, "check": run_check, "suggest": run_suggest, "import": run_import, "manifest": run_manifest,
}  # fmt: skip
