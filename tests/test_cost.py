"""What the cost model counts without numbers, beside what a real step on the CPU makes."""

import sys
from pathlib import Path

import pytest
import torch
from conftest import composed, small_config
from measure import peak_mebibytes
from test_module import make_module

from pcr_seg import cost
from pcr_seg.processes import units

SETTINGS = {
    "pcr": ["global_batch=8", "data.crop_size=64"],
    "unimatch": ["method=unimatch", "data.crop_size=64"],
    "frozen": ["method=supervised", "+backbone.freeze=all", "optimizer=sgd", "data.crop_size=64"],
}


def counted(tmp_path: Path, words: list[str], images: int = 2) -> cost.Cost:
    return cost.cost(small_config(tmp_path, "recipe.burn_in_epochs=0", *words), images)


@pytest.mark.parametrize("name", SETTINGS)
def test_bytes_are_those_of_a_real_step(tmp_path: Path, name: str) -> None:
    words = SETTINGS[name]
    found, module = counted(tmp_path, words), make_module(tmp_path, "recipe.burn_in_epochs=0", *words)
    optimizer = module.optimizer([p for p in module.parameters() if p.requires_grad], lr=1e-3)
    batch = cost.views(module, 2, 64)

    def step() -> torch.Tensor:
        loss = module.training_step(batch, 0)
        loss.backward()
        return loss

    module.student(torch.zeros(2, 3, 64, 64))  # whatever is made once
    peak = 2**20 * peak_mebibytes(step)
    assert found.peak == pytest.approx(peak, rel=0.05, abs=2**19), (
        "but for what convolutions of the CPU need to compute"
    )
    assert found.trained == sum(p.grad.nbytes for p in module.parameters() if p.grad is not None)
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    assert found.optimizer == sum(value.nbytes for value in states if value.ndim)
    assert found.student == sum(p.nbytes for p in module.student.parameters())
    assert found.student + found.teacher == sum(unit.bytes for unit in found.units), "each weight once"
    assert found.buffers > 0 and found.activations <= found.peak


def test_units_are_gathered_as_often_as_they_compute(tmp_path: Path) -> None:
    found = counted(tmp_path, ["module.teacher_bn=copy"])
    student, teacher = ([unit for unit in found.units if bool(unit.trained) is trained] for trained in (True, False))
    assert {unit[2:] for unit in student} == {(1, 0)} and {unit[2:] for unit in teacher} == {(0, 1)}
    bytes = found.student
    assert found.sent(4, 3, divided=False) == pytest.approx(3 / 4 * (2 * bytes + 2 * 3 * found.bank))
    assert found.sent(4, 3, divided=True) == pytest.approx(3 / 4 * 3 * (2 * bytes + bytes + bytes + 2 * found.bank))
    assert found.sent(1, 1, divided=True) == found.sent(1, 1, divided=False) == 0


def test_divided_weights_take_less_where_weights_are_what_is_large(tmp_path: Path) -> None:
    found = counted(tmp_path, [])._replace(activations=0, peak=0)
    assert found.memory(2, divided=False) > found.memory(1, divided=False), "buckets"
    assert found.memory(64, divided=True) < found.memory(64, divided=False)
    assert found.memory(512, divided=True) >= found.teacher, "which is whole while it is evaluated"


def test_large_blocks_are_units_by_themselves(tmp_path: Path, monkeypatch) -> None:
    student = make_module(tmp_path).student
    parts = [module for module, _ in units(student)]
    monkeypatch.setattr("pcr_seg.processes.LEAST", 300)
    finer = list(units(student))
    assert len(finer) > len(parts) and set(parts) <= {module for module, _ in finer}
    weights = [p for _, own in finer for p in own]
    assert len(weights) == len(set(weights)) == len(list(student.parameters()))


def test_bf16_and_checkpointing_take_less(tmp_path: Path) -> None:
    vit = ["backbone=any", "backbone.name=vit_tiny_patch16_224", "backbone.weights=null", "model=linear",
           "+backbone.options.depth=6", "data.crop_size=64"]  # fmt: skip
    whole, short, again = (
        counted(tmp_path, [*vit, *words]).activations
        for words in ([], ["trainer.precision=bf16-mixed"], ["backbone.checkpointing=true"])
    )
    assert short < whole and again < whole


def test_a_recipe_is_shared_until_each_gpu_has_two_images() -> None:
    cfg = composed("dataset=cityscapes", "output=x", "trainer.accelerator=gpu")
    rows = [cost.plan(cfg, gpus) for gpus in (1, 8, 16, 512)]
    assert [row[1:4] for row in rows] == [(16, 2, 8), (16, 2, 1), (32, 2, 1), (1024, 2, 1)]
    for row in rows[2:]:
        grown = composed(
            "dataset=cityscapes", "output=x", "per_device=2", f"trainer.devices={row.gpus}", "trainer.accelerator=gpu"
        )
        assert (grown.global_batch, grown.module.lr) == (row.total, pytest.approx(row.lr))
    assert cost.table(composed("dataset=synthetic", "output=x", "model.channels=8"), [1, 16]).row_count == 2


def test_its_command_line_is_checked_as_that_of_train(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["cost", "--help"])
    cost.main()
    assert "python -m pcr_seg.cost dataset=cityscapes" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["cost", "backbne=resnet50"])
    with pytest.raises(SystemExit, match=r"error: backbne=resnet50: no such key; did you mean backbone\?"):
        cost.main()
