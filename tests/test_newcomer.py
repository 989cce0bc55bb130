"""A newcomer's first hour: README's commands on a folder of images, then whatever each command says comes next."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest

from pcr_seg.data.synthetic import synthetic

ROOT = Path(__file__).parents[1]
# A tiny network for a few steps, where a newcomer waits for MobileNetV2 to download and to train.
QUICK = ["backbone=tiny", "model.channels=8", "trainer.max_epochs=2", "data.steps_per_epoch=2", "data.num_workers=0",
         "data.crop_size=32", "recipe.grid_cells=8", "global_batch=2", "trainer.enable_progress_bar=false"]  # fmt: skip


def command(line: str, *further: str) -> list[str]:
    """`python train.py ...` as it is typed in a checkout, started from elsewhere."""
    python, script, *arguments = shlex.split(line)
    assert python == "python" and (ROOT / script).is_file(), line
    return [sys.executable, str(ROOT / script), *arguments, *further]


def run(folder: Path, line: str, *further: str) -> str:
    environment = os.environ | {"COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command(line, *further), cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, f"{line}\n{result.stdout}\n{result.stderr}"
    return result.stdout


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
    with subprocess.Popen(command(next_command(output, "app"), "port=null"), cwd=tmp_path, stdout=subprocess.PIPE,
                          text=True) as page:  # fmt: skip
        try:
            address = re.search(r"http://127\.0\.0\.1:\d+", page.stdout.readline())[0]
            assert urlopen(address, timeout=30).status == 200
        finally:
            page.terminate()
