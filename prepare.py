"""Put a data set into place, import one from an annotation tool, examine one, or get settings suggested.

python prepare.py dataset=voc_aug                            # downloads VOC 2012 and SBD, 3.4 GB; serves voc as well
python prepare.py dataset=cityscapes dataset.root=FOLDER     # unpacks the zip files that you downloaded into FOLDER
python prepare.py check dataset=folder dataset.root=FOLDER   # decodes your images and masks and reports what is wrong
python prepare.py suggest dataset=folder dataset.root=FOLDER # settings for them, each with its reason, as a command
python prepare.py import from=EXPORT dataset.root=NEW        # labels of COCO, CVAT, Labelme, Label Studio, YOLO, ...
python prepare.py manifest dataset=folder dataset.root=FOLDER # lists very many unlabeled images once, for fast starts
"""

import shlex
import sys
from functools import partial
from pathlib import Path

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pcr_seg.commands.start import start
from pcr_seg.config import build, one_line_errors
from pcr_seg.data.check import check, num_errors, show, write
from pcr_seg.data.imports.importing import by_reason, import_export
from pcr_seg.data.pool import SUFFIX
from pcr_seg.data.prepare import manifest, prepare
from pcr_seg.data.suggest import suggest

ACTIONS = ("prepare", "check", "suggest", "import", "manifest")
IMPORT_KEYS = (
    "format", "rest", "empty", "overlap", "lines", "ignore", "attribute", "own_split", "group", "val", "seed", "links",
)  # fmt: skip


@hydra.main(config_path="conf", config_name="prepare", version_base="1.3")
def main(cfg: DictConfig) -> None:
    """Run, and turn a user's mistake into one line."""
    overrides = HydraConfig.get().overrides.task
    dataset = shlex.join(override for override in overrides if override.startswith("dataset"))
    with one_line_errors():
        if cfg.action not in ACTIONS:
            raise ValueError(f"action={cfg.action}: choose one of {', '.join(ACTIONS)}")
        runs = (run_prepare, run_check, run_suggest, run_import, run_manifest)
        dict(zip(ACTIONS, runs, strict=True))[cfg.action](cfg, dataset)


def run_prepare(cfg: DictConfig, dataset: str) -> None:
    """Bring files into place."""
    reader = cfg.dataset._target_.rpartition(".")[2]
    print(prepare(reader, Path(cfg.dataset.root), partial(build, cfg.dataset), Path(cfg.lists)))


def run_check(cfg: DictConfig, dataset: str) -> None:
    """Examine, report, say what comes next; exit with 1 if training would fail."""
    console = Console()
    report = check(build(cfg.dataset))
    show(report, console)
    for file in write(report, Path(cfg.output)):
        console.print(f"written: {file}", soft_wrap=True, highlight=False)
    errors = num_errors(report)
    again, next_command = f"errors: {errors}; correct them and check again", f"python prepare.py suggest {dataset}"
    console.print(again if errors else f"next: {next_command}", soft_wrap=True, highlight=False)
    sys.exit(min(errors, 1))


def run_suggest(cfg: DictConfig, dataset: str) -> None:
    """Show the settings with their reasons, and the command to copy."""
    console = Console()
    gpu_gib = torch.cuda.get_device_properties(0).total_memory / 2**30 if torch.cuda.is_available() else None
    suggestion = suggest(build(cfg.dataset), gpu_gib)
    table = Table("setting", "because")
    for (key, value), reason in zip(suggestion.overrides.items(), suggestion.reasons, strict=True):
        table.add_row(escape(f"{key}={value}"), reason)
    console.print(table)
    console.print(suggestion.time, soft_wrap=True, highlight=False)
    words = shlex.join(f"{key}={value}" for key, value in suggestion.overrides.items())
    console.print(f"python train.py {dataset} {words}", soft_wrap=True, highlight=False)


def run_import(cfg: DictConfig, dataset: str) -> None:
    """Make a data set of what a tool exported, and say what is left out and what comes next."""
    if cfg["from"] is None or "dataset.root=" not in dataset:
        raise ValueError("import: say what from, and where to: python prepare.py import from=EXPORT dataset.root=NEW")
    root, console = Path(cfg.dataset.root), Console(soft_wrap=True, highlight=False, markup=False)
    images = Path(cfg.images) if cfg.images else None
    found = import_export(Path(cfg["from"]), root, images=images, **{key: cfg[key] for key in IMPORT_KEYS})
    parts = ", ".join(f"{number} {part}" for part, number in found.parts.items())
    console.print(f"{root}: {parts} images from {found.format}, divided {found.divided}; {', '.join(found.classes)}")
    if found.left:
        table = Table("what", "why", "number", "first")
        for (what, why), those in by_reason(found.left).items():
            table.add_row(what, why, str(len(those)), " ".join(filter(None, (those[0].image, those[0].label))))
        console.print(table)
        console.print(f"each of them: {root}/left_out.csv")
    if not found.parts["val"]:
        console.print("no image is left to validate on: label some more, and import again")
    console.print(f"next: python prepare.py check dataset=folder {shlex.join([f'dataset.root={root}'])}")


def run_manifest(cfg: DictConfig, dataset: str) -> None:
    """List and look into the unlabeled images once, say what is left out, and how to train with the rest."""
    console, file = Console(), Path(cfg.manifest)
    if file.suffix != SUFFIX or str(cfg.dataset.get("unlabeled")).endswith(SUFFIX):
        raise ValueError(f"manifest={file}: a name that ends in {SUFFIX}, of images that are listed in no other")
    bad = manifest(build(cfg.dataset), file)
    for line in bad[:5]:
        console.print(f"left out: {line}", soft_wrap=True, highlight=False)
    if len(bad) > 5:
        console.print(f"left out: {len(bad)} in all", highlight=False)
    others = [word for word in shlex.split(dataset) if not word.startswith("dataset.unlabeled=")]
    command = shlex.join([*others, f"dataset.unlabeled={file}"])
    console.print(f"python train.py {command}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    words = [f"action={word}" if word in ACTIONS else word for word in sys.argv[1:]]
    sys.argv[1:] = words
    start()
    main()
