"""Command lines: what names nothing is one line with the name that was meant; what is right goes to Hydra as typed."""

import ast
import runpy
import subprocess
import sys

import pytest

from pcr_seg.commands.start import refuse_environment, start
from pcr_seg.config import CONF


def typed(monkeypatch: pytest.MonkeyPatch, line: str) -> list[str]:
    """The arguments that Hydra gets to read."""
    command, *arguments = line.split()
    monkeypatch.setattr(sys, "argv", [f"somewhere/{command}.py", *arguments])
    start(ast.get_docstring(ast.parse(CONF.with_name(f"{command}.py").read_text())))
    return sys.argv[1:]


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("train dataset=foldr", "dataset=foldr: no such choice; did you mean folder?"),
        ("train method=pcrr", "method=pcrr: no such choice; did you mean pcr?"),
        (
            "train method=ablation/no_cutmx",
            "method=ablation/no_cutmx: no such choice; did you mean ablation/no_cutmix?",
        ),
        ("train backbone=resnt", "backbone=resnt: no such choice; did you mean resnet50?"),
        ("train hardware=gpuu", "hardware=gpuu: no such choice; did you mean gpu?"),
        ("train experiment=voc_1_9", "experiment=voc_163: no such choice; did you mean voc_183?"),
        ("train logger=null", "logger=null: no such choice; choose csv, none, tensorboard, wandb"),
        ("train logger=3", "logger=3: no such choice; choose csv, none, tensorboard, wandb"),
        ("train hydra/sweeper=none", "hydra/sweeper/none: no such choice; choose basic"),
        ("train -m method=supervised,pcrr", "method=pcrr: no such choice; did you mean pcr?"),
        ("train -m seed=0,1,2 split=1_8,1_4 dataset=voc,camvd", "dataset=camvd: no such choice; did you mean camvid?"),
        ("train method=pcr,supervised", "method=pcr,supervised: several values are a sweep, which needs -m; a list is"),
        ("train +method=pcr", "+method=pcr: is there already; leave the + out"),
        ("train datta.crop_size=3", "datta.crop_size=3: no such key; did you mean data.crop_size?"),
        ("train data.cropsize=3", "data.cropsize=3: no such key; did you mean data.crop_size?"),
        ("train lr=3", "lr=3: no such key; did you mean module.lr or optimizer.lr?"),
        ("train ~trainer.max_stps", "~trainer.max_stps: no such key; did you mean trainer.max_steps?"),
        ("train hydra.swep.dir=x", "hydra.swep.dir=x: no such key; did you mean hydra.sweep.dir?"),
        ("train +data.crop_size=3", "+data.crop_size=3: is there already; leave the + out"),
        ("train backbone=resnet18 backbone.freeze=all", "backbone.freeze=all: is not set by default; give +backbone."),
        ("train trainer.gradient_clip_val=1", "trainer.gradient_clip_val=1: is not set by default; give +trainer.gr"),
        ("train +faster=true", "+faster=true: no such key; choose backbone, baseline, "),
        ("train +recipe.colour=3", "+recipe.colour=3: no such key; did you mean recipe.strong_color?"),
        ("train method=supervised method.threshold=1", "method.threshold=1: no such key; did you mean "),
        ("train data.scale[0]=1", "data.scale[0]=1: cannot be read as key=value; quote the value: "),
        ("train resume", "resume: cannot be read as key=value; quote the value: "),
        ("eval dataset=foldr", "dataset=foldr: no such choice; did you mean folder?"),
        ("eval dataset=3", "dataset=3: no such choice; choose ade20k, camvid, "),
        ("eval hardware=cpu", "hardware=cpu: eval.py has no such group; leave it out"),
        ("eval dataset.root=x", "dataset.root=x: belongs to a dataset, and none is chosen; give dataset=NAME as well"),
        ("eval +eval.studnt=true", "+eval.studnt=true: no such key; did you mean eval.student?"),
        ("predict protcol=flip", "protcol=flip: no such key; did you mean protocol?"),
        ("choose protocol=whole,slding", "protocol=whole,slding: several values are a sweep"),
        ("choose +x=1", "+x=1: no such key; choose budget, checkpoint, "),
        ("export fromat=pt2", "fromat=pt2: no such key; did you mean format?"),
        ("app prt=3", "prt=3: no such key; did you mean port?"),
        ("report run=x", "run=x: no such key; did you mean runs?"),
        ("prepare dataset=camvd", "dataset=camvd: no such choice; did you mean camvid?"),
        ("train dataset=folder", "dataset.root: is missing; give dataset.root=..."),
        ("eval", "checkpoint: is missing; type python eval.py checkpoint=RUN/checkpoints/last.ckpt"),
        ("report", "runs: is missing; type python report.py runs=runs/FOLDER"),
        (
            "choose checkpoint=x",
            "budget: is missing; type python choose.py checkpoint=RUN/checkpoints/last.ckpt budget=50",
        ),
    ],
)
def test_what_names_nothing_is_one_line(monkeypatch: pytest.MonkeyPatch, line: str, answer: str) -> None:
    with pytest.raises(SystemExit) as end:
        typed(monkeypatch, line)
    assert str(end.value).startswith(f"error: {answer}") and "\n" not in str(end.value)


@pytest.mark.parametrize(
    "line",
    [
        "train",
        "train method=ablation/no_cutmix data.crop_size=33 ++data.pad_label=0 +trainer.limit_train_batches=2",
        "train -m method=supervised,pcr seed=range(0,3) dataset=glob(c*) hydra.sweep.dir=x hydra/launcher=basic",
        "train -m trainer.devices=[0,1],[2] seed=choice(0,1) optimizer.lr=interval(0,1)",
        "train hydra.mode=MULTIRUN seed=0,1",
        "train ~trainer.max_steps dataset=folder dataset.root=a dataset.unlabeled=[a,b] +hydra.job.env_set.A=1",
        "train --config-dir=mine dataset=mine my.key=3",
        "train -cd mine dataset=mine",
        "train -p data resume=x trust=[a]",
        "eval checkpoint=x protocol=sliding protocol.window=513 eval.student=true subset=test",
        "predict checkpoint=x maps=[index,disagreement] images=photos/*.jpg",
        "predict -sc install=bash",
    ],
)
def test_what_hydra_can_read_stays(monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    assert typed(monkeypatch, line) == line.split()[1:]


def test_a_sweep_may_be_asked_for_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra reads what comes before -m as something else."""
    assert typed(monkeypatch, "train seed=0,1 -m dataset=voc") == ["-m", "seed=0,1", "dataset=voc"]


def test_no_choice_where_that_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert typed(monkeypatch, "eval dataset=null protocol=null checkpoint=x") == ["checkpoint=x"]
    assert typed(monkeypatch, "train experiment=null --cfg job") == ["--cfg", "job", "--resolve"]


COMMANDS = sorted(path.stem for path in CONF.glob("*.yaml") if path.stem != "no_run_folder")
SHOW_HELP = """
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
heavy = {"torch", "torchvision", "timm", "lightning", "wandb", "albumentations", "cv2", "matplotlib", "torchmetrics"}
print("brought:", *sorted(heavy & {*sys.modules}))
"""


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_examples_choices_and_keys_at_once(name: str) -> None:
    command = [sys.executable, "-c", SHOW_HELP, str(CONF.with_name(f"{name}.py"))]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown.count(f"python {name}.py") >= 1 and "--help=all" in shown and shown.endswith("brought:\n")
    keys = {line.partition(":")[0] for line in (CONF / f"{name}.yaml").read_text().splitlines() if line[:1].islower()}
    nested = {key for key in keys if f"\n{key}:\n" in (CONF / f"{name}.yaml").read_text()} | {"recipe", "defaults"}
    assert all(f"\n{key}=" in shown for key in keys - nested)
    if name == "train":
        assert "method=pcr " in shown and "unimatch_v2" in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_starts_so(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "nothing=3"])
    with pytest.raises(SystemExit, match=r"^error: nothing=3: no such key; "):
        runpy.run_path(str(CONF.with_name(f"{name}.py")), run_name="__main__")


@pytest.mark.parametrize(
    ("variable", "value", "answer"),
    [
        ("PL_TRAINER_MAX_EPOCHS", "3", r"give \+\+trainer\.max_epochs=3$"),
        ("PL_TRAINER_LIMIT_TRAIN_BATCHES", "2", r"give \+\+trainer\.limit_train_batches=2$"),
        ("PCR_SEG_SPLIT_URL", "x", r"no such variable; did you mean PCR_SEG_SPLITS_URL\?$"),
    ],
)
def test_the_environment_changes_nothing_unseen(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, answer: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit, match=f"^error: {variable}={value}: .*{answer}"):
        typed(monkeypatch, "train")
    if "give" in answer:
        monkeypatch.delenv(variable)
        assert typed(monkeypatch, "train " + answer.replace("\\", "").removeprefix("give ").rstrip("$"))


def test_what_lightning_itself_sets_and_the_address_of_lists_are_no_mistake() -> None:
    refuse_environment({"PL_GLOBAL_SEED": "0", "PCR_SEG_SPLITS_URL": "x"})
