"""Numbers that go wrong: what ends a training, what is taken back, and what is said once."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import small_config

from pcr_seg.checkpoint import read_checkpoint
from pcr_seg.method import pcr, prototypes
from pcr_seg.module import Segmentation
from pcr_seg.training import fit as run


def change_losses(monkeypatch: pytest.MonkeyPatch, change: Callable[[torch.Tensor, int], torch.Tensor]) -> None:
    """Let a function of loss and step change the supervised loss of every method."""
    original = Segmentation.training_step

    def changed(self: Segmentation, batch: dict, batch_idx: int) -> torch.Tensor:
        forward = self.method.forward

        def spoiled(*args: object) -> dict[str, torch.Tensor]:
            losses = forward(*args)
            return losses | {"supervised": change(losses["supervised"], self.trainer.global_step)}

        with monkeypatch.context() as patch:
            patch.setattr(self.method, "forward", spoiled)
            return original(self, batch, batch_idx)

    monkeypatch.setattr(Segmentation, "training_step", changed)


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch):
    """Multiply the loss of some steps by a number."""

    def spoil_steps(steps: set[int], factor: float) -> None:
        change_losses(monkeypatch, lambda loss, step: loss * (factor if step in steps else 1))

    return spoil_steps


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_training(tmp_path: Path, spoil, factor: float) -> None:
    spoil({2}, factor)
    config = small_config(
        tmp_path, "data.steps_per_epoch=6", "trainer.log_every_n_steps=4", "checkpoints.every_n_steps=1"
    )
    with pytest.raises(ValueError, match=r"step 3 of rank 0 .*supervised (nan|inf).*; images train_000\d\d") as error:
        run.fit(config)
    assert "\n" not in str(error.value) and "no checkpoint holds it" in str(error.value)
    content = read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")
    assert content["global_step"] == 2, "the save after the bad step looked before it wrote"
    assert all(value.isfinite().all() for value in content["state_dict"].values())


def test_a_gradient_that_is_not_finite_ends_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss itself is finite: sqrt has an infinite slope at 0."""
    change_losses(monkeypatch, lambda loss, step: loss + (loss * 0).sqrt())
    with pytest.raises(ValueError, match=r"step 1 of rank 0 .*supervised \d.*gradient nan"):
        run.fit(small_config(tmp_path, "trainer.log_every_n_steps=2"))


def test_a_skipped_step_changes_nothing(tmp_path: Path, spoil, monkeypatch, caplog) -> None:
    spoil({4}, float("nan"))
    states = {}
    original = Segmentation.on_train_batch_end

    def keep(self: Segmentation, *args: object) -> None:
        original(self, *args)
        state = {k: v.clone() for k, v in self.state_dict().items() if not k.startswith("teacher")}
        states[self.trainer.global_step] = state

    monkeypatch.setattr(Segmentation, "on_train_batch_end", keep)
    run.fit(small_config(tmp_path, "watch.on_nonfinite=skip", "data.steps_per_epoch=3", "method.threshold=0.2"))
    changed = [
        [key for key, value in states[step].items() if not torch.equal(value, states[step - 1][key])]
        for step in range(2, 7)
    ]
    assert [bool(keys) for keys in changed] == [True, True, True, False, True]
    assert "skipped: step 5 of rank 0" in caplog.text and caplog.text.count("skipped") == 1
    assert all(value.isfinite().all() for value in states[6].values())


def test_too_many_skipped_steps_end_the_training(tmp_path: Path, spoil) -> None:
    spoil({0, 1, 2}, float("nan"))
    with pytest.raises(ValueError, match=r"step 3 .*; 2 steps were skipped before"):
        run.fit(small_config(tmp_path, "watch.on_nonfinite=skip", "watch.max_skipped=2", "data.steps_per_epoch=4"))


def test_an_unknown_policy_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"watch\.on_nonfinite=ignore: choose raise, skip"):
        run.fit(small_config(tmp_path, "watch.on_nonfinite=ignore"))


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == "pcr_seg.training.watch"]


def test_nothing_confident_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    overrides = ["method.threshold=1.0", "watch.patience=3", "data.steps_per_epoch=8", "method.prototype_weight=0"]
    run.fit(small_config(tmp_path, *overrides))
    [message] = warnings_of(caplog)
    assert "threshold=1.0 in 3 steps" in message and "lower method.threshold" in message


def test_a_constant_loss_is_said_once(tmp_path: Path, spoil, caplog: pytest.LogCaptureFixture) -> None:
    spoil(set(range(99)), 0.0)
    overrides = ["method=supervised", "watch.patience=3", "data.steps_per_epoch=8", "trainer.log_every_n_steps=3"]
    run.fit(small_config(tmp_path, *overrides))
    [message] = warnings_of(caplog)
    assert message.startswith("the supervised loss has been exactly 0 for 3 steps")


def test_a_class_without_labels_is_named(tmp_path: Path, caplog, monkeypatch: pytest.MonkeyPatch) -> None:
    original = prototypes.labeled_features

    def without_dots(*args: object) -> tuple[torch.Tensor, torch.Tensor]:
        features, labels = original(*args)
        return features[labels != 3], labels[labels != 3]

    monkeypatch.setattr(pcr, "labeled_features", without_dots)
    run.fit(small_config(tmp_path))
    assert any(message.startswith("no labeled pixel of dots:") for message in warnings_of(caplog))


def test_a_fall_below_the_burn_in_and_dead_prototypes_are_said(tmp_path: Path, caplog, monkeypatch) -> None:
    original = Segmentation.on_validation_epoch_end

    def worse(self: Segmentation) -> None:
        original(self)
        self.scores["val/miou"] = 0.5 - 0.1 * self.current_epoch

    monkeypatch.setattr(Segmentation, "on_validation_epoch_end", worse)
    run.fit(small_config(tmp_path, "method.num_prototypes=60", "trainer.max_epochs=3"))
    messages = warnings_of(caplog)
    assert sum(m.startswith("mIoU 40.0 is below the 50.0 of the supervised burn-in") for m in messages) == 1
    assert sum("of 300 prototypes were the nearest to no pixel" in m for m in messages) == 1


def test_a_healthy_training_is_silent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="pcr_seg.training.watch"):
        run.fit(small_config(tmp_path, "method=supervised", "watch.patience=1"))
    assert warnings_of(caplog) == []
