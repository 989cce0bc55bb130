"""What the tests share: one thread, the generated data set, and composed configurations."""

import json
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from pcr_seg.config import CONF, command_line
from pcr_seg.data.sources import Source
from pcr_seg.data.synthetic import synthetic

torch.set_num_threads(1)  # two test processes on two cores: more threads would only wait for each other

SHARED = Path(__file__).parents[2] / "shared"
TINY_SET = ["dataset.num_train=12", "dataset.num_val=3", "dataset.size=48"]
SMALL = [
    "split=4",
    "data.crop_size=32",
    "global_batch=2",
    "data.steps_per_epoch=2",
    "recipe.grid_cells=8",
    "model.channels=8",
    "trainer.max_epochs=2",
    "trainer.check_val_every_n_epoch=1",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1",
]


def small_config(root: Path, *overrides: str) -> DictConfig:
    """The synthetic default (or another data set) made tiny, writing under `root`; later overrides win."""
    own_data = any(override.startswith("dataset=") for override in overrides)
    data = [] if own_data else [f"dataset.root={root}/data", *TINY_SET]
    return composed(f"output={root}/run", *data, *SMALL, *overrides)


def composed(*overrides: str, name: str = "train") -> DictConfig:
    """What the command line of a script means."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, command_line(list(overrides)))


COUNTS: dict[str, int] = defaultdict(int)


@pytest.fixture
def counts() -> dict[str, int]:
    """What the fault suites count; the numbers are printed at the end."""
    return COUNTS


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the counts of the fault suites."""
    for name, number in COUNTS.items():
        terminalreporter.write_line(f"{name}: {number}")


@pytest.fixture(scope="session")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A dozen generated training images of 48 pixels, three to validate on, four without masks."""
    return synthetic(str(tmp_path_factory.mktemp("tiny")), num_train=12, num_val=3, num_unlabeled=4, size=48)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of one tiny training of PCR on the generated set; nobody changes it."""
    root = tmp_path_factory.mktemp("trained")
    from pcr_seg.training.fit import fit  # brings Lightning, which not every test needs

    fit(small_config(root, "method.threshold=0.2", "trainer.max_epochs=3"))
    return root / "run"


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """Chromium: the one playwright installed, or the system's."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra: dev)")
    with api.sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        found = own if Path(own).is_file() else shutil.which("chromium") or shutil.which("google-chrome")
        if not found:
            pytest.skip("no Chromium: playwright install chromium, or the system's package")
        browser = playwright.chromium.launch(executable_path=found)
        yield browser
        browser.close()


SUMMARY = {
    "dataset": "camvid", "split": "1_8", "split_family": "u2pl", "method": "pcr", "backbone": "mobilenetv2", "seed": 0,
    "num_labeled": 46, "num_unlabeled": 321, "iterations": 800, "miou_last": 0.5, "miou_best": 0.55,
    "miou_prototype_last": None, "iou": {"sky": 0.9, "sign": None}, "iou_prototype": None, "seconds": 100.0,
    "images_per_second": 9.0, "peak_memory_mib": 1000, "versions": {"torch": "2"}, "git_commit": "abc",
}  # fmt: skip


def write_run(folder: Path, **changes) -> Path:
    """A run folder that holds a summary and nothing else."""
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(SUMMARY | changes))
    return folder
