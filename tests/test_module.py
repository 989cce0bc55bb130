"""The engine: what it hands to a method and when, the teacher's time, resuming, checkpoints; whole tiny trainings."""

import json
from pathlib import Path

import pytest
import torch
from conftest import small_config
from omegaconf import OmegaConf
from torch.optim.swa_utils import update_bn

from pcr_seg.checkpoint import load
from pcr_seg.config import build
from pcr_seg.method import IGNORE_INDEX
from pcr_seg.module import Segmentation
from pcr_seg.pixels import as_floats
from pcr_seg.training.fit import build_module, fit

NUM_CLASSES = 5


def make_module(tmp_path: Path, *overrides: str) -> Segmentation:
    """A module outside of any trainer: steps can be called, nothing is logged."""
    torch.manual_seed(0)
    config = small_config(tmp_path, *overrides)
    names = [f"class {c}" for c in range(NUM_CLASSES)]
    module = build_module(OmegaConf.to_container(config, resolve=True), names)
    module.log = module.log_dict = lambda *args, **kwargs: None
    if bank := getattr(module.method, "bank", None):
        bank.prototypes = torch.rand(bank.prototypes.shape)
        bank.is_initialized.fill_(True)
        module.method.check_begun()
    return module


def make_batch(size: int = 32, num_classes: int = NUM_CLASSES) -> tuple[dict, dict]:
    """A labeled and an unlabeled batch of two; a corner of each image is padding."""
    generator = torch.Generator().manual_seed(1)
    image, weak, strong = torch.randn(3, 2, 3, size, size, generator=generator)
    mask = torch.randint(num_classes, (2, size, size), generator=generator)
    valid = torch.ones(2, size, size, dtype=torch.bool)
    mask[:, :5, :7] = IGNORE_INDEX
    valid[:, -6:, :9] = False
    return {"image": image, "mask": mask}, {"weak": weak, "strong": strong[:, None], "valid": valid}


def test_supervised_teacher_keeps_its_statistics_alive(tmp_path: Path) -> None:
    """With teacher_bn=forward the averaged network has to see images in supervised training too."""
    fit(small_config(tmp_path, "method=supervised", "module.teacher_bn=forward", "trainer.max_epochs=1"))
    state = run_state(tmp_path / "run")["state_dict"]
    assert state["teacher.network.low_conv.1.running_mean"].any()


def test_weak_statistics_of_supervised_training_are_those_of_its_labeled_images(tmp_path: Path) -> None:
    config = small_config(tmp_path, "method=supervised", "module.teacher_bn=weak", "model.dropout=0")
    fit(config)
    network = load(tmp_path / "run/checkpoints/last.ckpt").network
    found = {name: buffer.clone() for name, buffer in network.named_buffers()}
    data = build(config.data, build(config.dataset), use_unlabeled=False)
    update_bn((as_floats(batch)["image"] for batch in data.labeled_dataloader()), network)
    for name, buffer in network.named_buffers():
        torch.testing.assert_close(buffer, found[name])


def run_state(folder: Path) -> dict:
    """Everything of a checkpoint that training goes on from."""
    content = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    return {key: content[key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "epoch")}


def flat(value: object) -> list:
    """Leaves of nested dictionaries and lists."""
    if isinstance(value, dict | list | tuple):
        return [leaf for item in (value.values() if isinstance(value, dict) else value) for leaf in flat(item)]
    return [value]


def test_resume_at_an_epochs_end_is_bit_equal(tmp_path: Path) -> None:
    overrides = ("trainer.max_epochs=3", "method.threshold=0.3", "method.strong_color=true")
    whole = small_config(tmp_path / "whole", *overrides, f"dataset.root={tmp_path}/data")
    fit(whole)
    broken = small_config(tmp_path / "broken", *overrides, f"dataset.root={tmp_path}/data")
    OmegaConf.update(broken, "module.poly_power", 0.9)
    with pytest.raises(KeyboardInterrupt):
        fit_and_stop_after(broken, epochs=2)
    torch.rand(17)  # a resumed process has another random state
    fit(small_config(tmp_path / "other", f"resume={tmp_path}/broken/run"))
    states = [flat(run_state(tmp_path / name / "run")) for name in ("whole", "broken")]
    assert len(states[0]) == len(states[1]) > 100
    for one, other in zip(*states, strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    summaries = [json.loads((tmp_path / n / "run/summary.json").read_text()) for n in ("whole", "broken")]
    for key in ("miou_last", "miou_best", "miou_prototype_last", "iterations", "iou"):
        assert summaries[0][key] == summaries[1][key]


def fit_and_stop_after(config: OmegaConf, epochs: int) -> None:
    """Run until the first step of the given epoch, and end there as an interrupted process does."""
    original = Segmentation.on_train_epoch_start

    def stop(self: Segmentation) -> None:
        original(self)
        if self.current_epoch == epochs:
            raise SystemExit

    Segmentation.on_train_epoch_start = stop  # fmt: skip
    try:
        fit(config)
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        Segmentation.on_train_epoch_start = original


def test_the_teacher_lags_after_the_burn_in_alone(tmp_path: Path) -> None:
    fit(small_config(tmp_path, "trainer.max_epochs=3"))
    state = run_state(tmp_path / "run")["state_dict"]
    assert state["teacher.steps"] == 4, "of six steps two are the burn-in's, which copies"
    weights = [k for k in state if k.startswith("student") and k.endswith("weight")]
    assert any(not torch.equal(state[k], state[k.replace("student", "teacher.network")]) for k in weights)
    assert state["method.bank.is_initialized"] and state["method.bank.prototypes"].norm(dim=-1).min() > 0


@pytest.mark.parametrize("length", ["method.burn_in_epochs=5", "method.burn_in_epochs=2"])
def test_a_burn_in_that_takes_all_is_refused(tmp_path: Path, length: str) -> None:
    with pytest.raises(ValueError, match=r"burn_in_epochs=\d: takes all of this training \(4 steps, 2 in an epoch\)"):
        fit(small_config(tmp_path, length))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("length", "burn_in"), [("trainer.max_epochs=1", 0), ("trainer.max_steps=3", 1)])
def test_a_burn_in_follows_from_the_real_length(tmp_path: Path, length: str, burn_in: int) -> None:
    config = small_config(tmp_path, "trainer.max_epochs=9", length)
    assert config.method.burn_in_epochs == burn_in
    summary = fit(config)
    assert summary["semi_supervised_iterations"] == summary["iterations"] - 2 * burn_in > 0


def test_one_image_a_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.batch_size=1: CutMix has no second image .*most_per_device=2"):
        fit(small_config(tmp_path, "most_per_device=1"))
    with pytest.raises(ValueError, match=r"data\.batch_size=1: BatchNorm of one pooled value"):
        fit(small_config(tmp_path, "most_per_device=1", "method=supervised", "model.pooled_norm=true"))
    assert fit(small_config(tmp_path, "most_per_device=1", "method=supervised"))["iterations"] == 4


@pytest.mark.parametrize("interval", [1, 3])
def test_weak_statistics_do_not_depend_on_when_it_was_validated(tmp_path: Path, interval: int) -> None:
    """Neither the scores of a training that stops between two validations, nor the first pseudo-labels."""
    runs = []
    for name, every in (("often", 1), ("seldom", interval)):
        overrides = ["module.teacher_bn=weak", "trainer.max_epochs=3", f"trainer.check_val_every_n_epoch={every}"]
        fit(small_config(tmp_path / name, *overrides, f"dataset.root={tmp_path}/data"))
        runs.append(run_state(tmp_path / name / "run")["state_dict"])
    for key, value in runs[0].items():
        assert torch.equal(value, runs[1][key]), key


def test_a_supervised_run_that_was_never_validated_has_right_statistics(tmp_path: Path) -> None:
    overrides = ["method=supervised", "module.teacher_bn=weak", "trainer.max_steps=3", "trainer.max_epochs=9"]
    fit(small_config(tmp_path, *overrides, "trainer.check_val_every_n_epoch=5"))
    state = run_state(tmp_path / "run")["state_dict"]
    norms = [key for key in state if key.startswith("teacher") and key.endswith("running_mean")]
    assert norms and all(state[key].any() for key in norms), "the initial ones are zero"


def test_prototypes_are_class_means_of_labeled_features(tmp_path: Path) -> None:
    """With K = 1 the bank starts as the mean feature of each class: check it against whole images' features."""
    config = small_config(tmp_path, "method.num_prototypes=1", "method.prototype_momentum=1.0", "trainer.max_epochs=2")
    fit(config)
    bank = run_state(tmp_path / "run")["state_dict"]["method.bank.prototypes"]
    assert bank.shape == (NUM_CLASSES, 1, 16) and (bank >= 0).all()
    cosine = torch.nn.functional.cosine_similarity(bank[:, 0, None], bank[None, :, 0], dim=-1)
    assert (cosine - torch.eye(NUM_CLASSES)).amax() < 0.9999, "classes must not share one mean"
