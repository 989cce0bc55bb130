"""What only a GPU shows: that no step waits for it, that it computes what the CPU does, and that a run goes through."""

import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import TINY_SET, small_config
from lightning.fabric.utilities import move_data_to_device
from omegaconf import DictConfig
from test_device import OHEM, SETTINGS, step_inputs
from test_module import fit_and_stop_after, run_state

from pcr_seg.checkpoint import load
from pcr_seg.commands.opening import choose_device
from pcr_seg.config import CONF
from pcr_seg.predictor import Predictor
from pcr_seg.training.fit import fit

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


@pytest.fixture
def exact() -> Iterator[None]:
    """Convolutions and products in full fp32, not in TF32."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=False):
        yield


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("overrides", SETTINGS)
def test_no_step_waits_for_the_gpu(tmp_path: Path, overrides: list[str], precision: str) -> None:
    module, batch = step_inputs(tmp_path, overrides)
    module, batch = module.cuda(), move_data_to_device(batch, "cuda")
    optimizer = torch.optim.AdamW(module.student.parameters())

    def step() -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            loss = module.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        module.teacher.follow(module.student)
        return loss

    step()  # libraries wait while they start
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*[sS]ynchronization debug mode.*")  # it announces itself
        torch.cuda.set_sync_debug_mode("error")
    try:
        loss = step()
        with pytest.raises(RuntimeError, match="synchronizing"):
            loss.item()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["method=supervised"],
        ["method.prototype_gate=false", "method.bank_labels=teacher"],
        ["module.teacher_bn=forward"],
        ["method=pcr_named", "module.teacher_bn=weak"],
        ["model.auxiliary=true", *OHEM],
    ],
)
def test_a_step_is_that_of_the_cpu(tmp_path: Path, exact: None, overrides: list[str]) -> None:
    # A cell of the grid is one pixel: both devices draw the same points.
    module, batch = step_inputs(tmp_path, ["recipe.grid_cells=32", "recipe.threshold=0.2", *overrides])
    for part in module.modules():
        if isinstance(part, torch.nn.Dropout | torch.nn.Dropout2d):
            part.p = 0.0
    start = {name: value.clone() for name, value in module.state_dict().items()}
    results = []
    for device in ("cpu", "cuda"):
        module.load_state_dict(start)
        module.to(device).zero_grad()
        loss = module.training_step(move_data_to_device(batch, device), 0)
        loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in module.student.parameters() if p.grad is not None])
        module.teacher.follow(module.student)
        state = {name: value.cpu().clone() for name, value in module.state_dict().items()}
        results.append((loss.detach().cpu(), gradients.cpu(), state))
    (loss, gradients, state), (their_loss, their_gradients, their_state) = results
    torch.testing.assert_close(their_loss, loss, rtol=1e-4, atol=1e-5)
    # Not closer: a pixel may fall on the other side of a gate.
    assert (their_gradients - gradients).norm() < 1e-2 * gradients.norm()
    torch.testing.assert_close(their_state, state, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "overrides",
    [
        ["hardware=gpu", "logger=tensorboard"],
        ["method=pcr_named", "logger=wandb"],
        ["diagnosis=true", "watch.on_nonfinite=skip"],
    ],
)
def test_a_run_on_a_gpu_is_read_on_a_cpu(tmp_path: Path, exact: None, overrides: list[str]) -> None:
    summary = fit(gpu_config(tmp_path, *overrides))
    assert summary["iterations"] == 6 and 1 < summary["peak_memory_mib"] < 2000
    assert json.loads((tmp_path / "run/summary.json").read_text())["miou_last"] == summary["miou_last"]
    predictor = load(tmp_path / "run/checkpoints/last.ckpt")
    images = torch.randn(2, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    here = predictions(predictor, images)
    there = predictions(predictor.to(choose_device("auto")), images.cuda())
    assert set(there) == {"linear", "prototype"} and predictor.device.type == "cuda"
    torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-3)


def gpu_config(root: Path, *overrides: str) -> DictConfig:
    return small_config(root, "method.threshold=0.2", "trainer.max_epochs=3", *overrides, "trainer.accelerator=gpu")


def predictions(predictor: Predictor, images: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        return {head: logits.cpu() for head, logits in predictor(images).items()}


def test_a_broken_run_goes_on_as_it_would_have(tmp_path: Path, exact: None) -> None:
    data = f"dataset.root={tmp_path}/data"
    fit(gpu_config(tmp_path / "whole", data))
    with pytest.raises(KeyboardInterrupt):
        fit_and_stop_after(gpu_config(tmp_path / "broken", data), epochs=2)
    torch.rand(17, device="cuda")  # a resumed process has another random state
    fit(small_config(tmp_path / "other", f"resume={tmp_path}/broken/run"))
    whole, broken = (run_state(tmp_path / name / "run") for name in ("whole", "broken"))
    assert whole["global_step"] == broken["global_step"] == 6
    # Sums on a GPU have no fixed order.
    torch.testing.assert_close(broken["state_dict"], whole["state_dict"], rtol=1e-2, atol=1e-3, check_device=False)


def test_all_gpus_train_and_workers_feed_them(tmp_path: Path) -> None:
    config = ["split=4", "data.crop_size=32", "data.steps_per_epoch=2", "trainer.max_epochs=3", "method.threshold=0.2"]
    config += ["data.num_workers=2", "hardware=ddp", f"global_batch={2 * torch.cuda.device_count()}"]
    config += [f"dataset.root={tmp_path}/data", *TINY_SET, f"hydra.run.dir={tmp_path}/run"]
    subprocess.run([sys.executable, str(CONF.parent / "train.py"), *config], check=True)
    assert json.loads((tmp_path / "run/summary.json").read_text())["iterations"] == 6
