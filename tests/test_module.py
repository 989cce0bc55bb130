"""The step, the teacher, the bank and the schedule, on tiny networks with real backward passes."""

import json
from pathlib import Path

import pytest
import references as ref
import torch
from conftest import small_config
from omegaconf import OmegaConf
from torch.optim.swa_utils import update_bn

from pcr_seg.config import build
from pcr_seg.method import IGNORE_INDEX
from pcr_seg.module import Segmentation
from pcr_seg.pixels import as_floats
from pcr_seg.checkpoint import load
from pcr_seg.training.fit import build_module, fit

GOLDEN = Path(__file__).parent / "golden" / "losses.json"
NUM_CLASSES = 5


def make_module(tmp_path: Path, *overrides: str) -> Segmentation:
    """A module outside of any trainer: steps can be called, nothing is logged."""
    torch.manual_seed(0)
    config = small_config(tmp_path, "method.cutmix_probability=0", *overrides)
    names = [f"class {c}" for c in range(NUM_CLASSES)]
    module = build_module(OmegaConf.to_container(config, resolve=True), names)
    module.log = module.log_dict = module.log_losses = lambda *args, **kwargs: None
    module.bank.prototypes = torch.rand(module.bank.prototypes.shape)
    module.bank.is_initialized.fill_(True)
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


def step(module: Segmentation) -> torch.Tensor:
    torch.manual_seed(2)
    return module.semi_supervised_step(*make_batch())


def test_loss_is_the_sum_of_its_naive_parts(tmp_path: Path) -> None:
    """The whole step again, literally: full-resolution features, softmax and loops over pixels."""
    module = make_module(
        tmp_path, "method.consistency_weight=0.7", "method.prototype_weight=0.3", "method.threshold=0.23"
    )
    module.student.eval()  # no dropout: two forwards agree
    labeled, unlabeled = make_batch()
    prototypes = module.bank.prototypes.clone()
    size = labeled["mask"].shape[-2:]
    with torch.no_grad():
        up = torch.nn.functional.interpolate
        teacher = up(module.teacher(unlabeled["weak"]).logits, size, mode="bilinear", align_corners=True).softmax(1)
        confidence, pseudo = teacher.max(1)
        pseudo[~unlabeled["valid"]] = IGNORE_INDEX
        output = module.student(torch.cat([labeled["image"], unlabeled["strong"][:, 0]]))
        logits = up(output.logits, size, mode="bilinear", align_corners=True)
        features = up(output.features, size, mode="bilinear", align_corners=True)
        torch.manual_seed(2)
        torch.rand(3, 2), torch.rand(())  # what CutMix draws before the grid is drawn
        cell = size[0] // module.grid_cells
        jitter = (torch.rand(2, module.grid_cells, module.grid_cells) * cell).long()
        cells = [(a, b) for a in range(module.grid_cells) for b in range(module.grid_cells)]
        points = [(a * cell + int(jitter[0, a, b]), b * cell + int(jitter[1, a, b])) for a, b in cells]
        rows, columns = torch.tensor(points).T
        at_points = features[:, :, rows, columns].transpose(1, 2)
        cosine = ref.bank_logits(prototypes, at_points, 0.1).transpose(1, 2)
        expected = ref.cross_entropy(logits[:2], labeled["mask"])
        expected += 0.7 * ref.consistency_loss(logits[2:], pseudo, confidence, 0.23)
        expected += 0.3 * ref.cross_entropy(cosine[:2], labeled["mask"][:, rows, columns])
        expected += 0.3 * ref.consistency_loss(cosine[2:], pseudo[:, rows, columns], confidence[:, rows, columns], 0.23)
    assert 0.05 < (confidence >= 0.23).float().mean() < 0.95, "the threshold has to separate something here"
    torch.testing.assert_close(
        step(module).detach(), torch.as_tensor(expected, dtype=torch.float32), rtol=1e-4, atol=1e-5
    )


def test_gradients_reach_the_student_only(tmp_path: Path) -> None:
    module = make_module(tmp_path, "method.threshold=0.0")
    step(module).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.student.parameters())
    assert all(p.grad is None and not p.requires_grad for p in module.teacher.parameters())
    assert not module.bank.prototypes.requires_grad
    trained = {name.split(".")[0] for name, p in module.named_parameters() if p.requires_grad}
    assert trained == {"student"}


def test_prototype_loss_reaches_the_features_but_not_the_linear_head(tmp_path: Path) -> None:
    module = make_module(tmp_path, "method.consistency_weight=0", "method.supervised_loss._target_=torch.nn.MSELoss")
    module.labeled_loss = lambda logits, auxiliary, mask: logits.new_zeros(())
    step(module).backward()
    assert all(p.grad is None or not p.grad.any() for p in module.student.linear_head.parameters())
    assert any(p.grad is not None and p.grad.any() for p in module.student.backbone.parameters())


def test_bank_moves_in_the_step_only_by_update(tmp_path: Path) -> None:
    module = make_module(tmp_path)
    before = module.bank.prototypes.clone()
    loss = step(module)
    assert not torch.equal(module.bank.prototypes, before)
    after = module.bank.prototypes.clone()
    loss.backward()
    torch.optim.SGD(module.parameters(), lr=0.1).step()
    module.bank(torch.rand(3, module.student.feature_dim))
    assert torch.equal(module.bank.prototypes, after)


def test_padding_of_unlabeled_images_trains_nothing(tmp_path: Path) -> None:
    module = make_module(tmp_path, "method.threshold=0.0")
    _, unlabeled = make_batch()
    pseudo = module.teach(unlabeled)
    assert (pseudo.labels[~unlabeled["valid"]] == IGNORE_INDEX).all()
    assert (pseudo.labels[unlabeled["valid"]] != IGNORE_INDEX).all()
    assert not pseudo.confidence[~unlabeled["valid"]].any()


def test_cutmix_mixes_images_labels_and_confidence_alike(tmp_path: Path) -> None:
    module = make_module(tmp_path, "method.cutmix_probability=1")
    labeled, unlabeled = make_batch()
    teach = module.teach(unlabeled)
    mixed = module.mix(teach, labeled)
    from_other = (mixed.images == teach.images[:, 0].roll(-1, 0)).all(1)
    assert 0.4 < from_other.float().mean() < 0.6
    other_labels, other_confidence = teach.labels.roll(-1, 0), teach.confidence.roll(-1, 0)
    assert torch.equal(mixed.labels, other_labels.where(from_other, teach.labels))
    assert torch.equal(mixed.confidence, other_confidence.where(from_other, teach.confidence))


def test_classes_of_labeled_images_are_pasted_with_their_labels(tmp_path: Path) -> None:
    module = make_module(tmp_path, "method.cutmix_probability=0", "method.labeled_classmix=1")
    labeled, unlabeled = make_batch()
    taught = module.teach(unlabeled)
    mixed = module.mix(taught, labeled)
    covered = (mixed.images != taught.images[:, 0]).any(1)
    assert covered.flatten(1).any(1).all()
    assert torch.equal(mixed.images, labeled["image"].where(covered[:, None], taught.images[:, 0]))
    assert torch.equal(mixed.labels, labeled["mask"].where(covered, taught.labels))
    assert torch.equal(mixed.confidence, taught.confidence.masked_fill(covered, 1))
    assert torch.equal(
        module.mix(taught, labeled | {"mask": torch.full_like(labeled["mask"], 255)}).images, taught.images[:, 0]
    )


@pytest.mark.parametrize(
    "override",
    [
        "method.gate=entropy", "method.gate=both", "method.normalizer=confident", "method.normalizer=u2pl",
        "method.prototype_gate=false", "method.prototype_on_labeled=false", "method.prototype_on_unlabeled=false",
        "method.bank_labels=teacher", "method.bank_features=teacher", "method.teacher_bn=forward",
        "method.num_prototypes=1", "model.auxiliary=true", "model.pooled_norm=true", "backbone.freeze_bn=true",
        "method.feature_dropout_weight=0.5", "method.class_thresholds=true",
    ],
)  # fmt: skip
def test_every_open_point_is_a_switch_that_does_something(tmp_path: Path, override: str) -> None:
    usual, other = (make_module(tmp_path, "method.threshold=0.23", *more) for more in ([], [override]))
    for module in (usual, other):
        module._trainer = type("Progress", (), {"max_epochs": 4, "current_epoch": 1})()
    losses = [step(module) for module in (usual, other)]
    losses[1].backward()
    assert losses[1].isfinite()
    banks = [module.bank.prototypes.mean() + module.class_confidence.mean() for module in (usual, other)]
    statistics = [sum(b.double().sum() for b in module.teacher.buffers()) for module in (usual, other)]
    assert losses[0] != losses[1] or banks[0] != banks[1] or statistics[0] != statistics[1]


def test_two_strong_views_are_mixed_apart_and_weigh_as_one(tmp_path: Path) -> None:
    module = make_module(tmp_path, "method.cutmix_probability=1", "method.threshold=0.0", "method.strong_views=2")
    labeled, unlabeled = make_batch()
    unlabeled["strong"] = torch.randn(2, 2, 3, 32, 32)
    taught = module.teach(unlabeled)
    mixed = module.mix(taught, labeled)
    assert mixed.images.shape == (4, 3, 32, 32) and mixed.labels.shape == mixed.confidence.shape == (4, 32, 32)
    for view, images in enumerate(mixed.images.split(2)):
        own, other = taught.images[:, view], taught.images[:, view].roll(-1, 0)
        assert ((images == own) | (images == other)).all()
    assert not torch.equal(mixed.labels[:2], mixed.labels[2:]), "boxes of their own"
    loss = module.semi_supervised_step(labeled, unlabeled)
    loss.backward()
    assert loss.isfinite()


def test_an_unknown_choice_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"method\.gate=entropi: choose one of threshold, entropy, both"):
        make_module(tmp_path, "method.gate=entropi")


def test_supervised_teacher_keeps_its_statistics_alive(tmp_path: Path) -> None:
    """With teacher_bn=forward the averaged network has to see images in supervised training too."""
    fit(small_config(tmp_path, "method=supervised", "method.teacher_bn=forward", "trainer.max_epochs=1"))
    state = run_state(tmp_path / "run")["state_dict"]
    assert state["teacher.low_conv.1.running_mean"].any()


def test_weak_statistics_are_those_of_images_as_they_are(tmp_path: Path) -> None:
    module = make_module(tmp_path, "method.teacher_bn=weak", "method.burn_in_epochs=0")
    seen = []
    norm = module.teacher.low_conv[1]
    before = norm.running_mean.clone(), norm.running_var.clone()
    norm.register_forward_hook(lambda norm, inputs, output: seen.append(inputs[0]))
    step(module)
    [inputs] = seen  # the labels' own forward is the only one
    var, mean = torch.var_mean(inputs, dim=(0, 2, 3))
    torch.testing.assert_close(norm.running_mean, 0.9 * before[0] + 0.1 * mean)
    torch.testing.assert_close(norm.running_var, 0.9 * before[1] + 0.1 * var)


def test_weak_statistics_of_supervised_training_are_those_of_its_labeled_images(tmp_path: Path) -> None:
    config = small_config(tmp_path, "method=supervised", "method.teacher_bn=weak", "model.dropout=0")
    fit(config)
    module = load_module(tmp_path / "run/checkpoints/last.ckpt")
    found = {name: buffer.clone() for name, buffer in module.teacher.named_buffers()}
    data = build(config.data, build(config.dataset), use_unlabeled=False)
    update_bn((as_floats(batch)["image"] for batch in data.labeled_dataloader()), module.teacher)
    for name, buffer in module.teacher.named_buffers():
        torch.testing.assert_close(buffer, found[name])


def test_step_in_bf16_keeps_the_bank_in_fp32(tmp_path: Path) -> None:
    module = make_module(tmp_path, "method.threshold=0.0")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = step(module)
    loss.backward()
    assert loss.dtype == module.bank.prototypes.dtype == torch.float32
    torch.testing.assert_close(loss, step(make_module(tmp_path, "method.threshold=0.0")), rtol=0.03, atol=0.03)


def test_nothing_is_labeled_and_nothing_is_confident(tmp_path: Path) -> None:
    """An all-ignored batch under an unreachable threshold: loss 0, finite gradients, bank untouched."""
    module = make_module(tmp_path, "method.threshold=1.1")
    labeled, unlabeled = make_batch()
    labeled["mask"].fill_(IGNORE_INDEX)
    before = module.bank.prototypes.clone()
    loss = module.semi_supervised_step(labeled, unlabeled)
    loss.backward()
    assert loss == 0 and torch.equal(module.bank.prototypes, before)
    assert all(p.grad.isfinite().all() for p in module.student.parameters() if p.grad is not None)


def test_whole_run_reproduces_the_golden_losses(tmp_path: Path) -> None:
    """Guards refactors: delete tests/golden/losses.json and run once to record an intended change of numbers."""
    fit(small_config(tmp_path, "method.threshold=0.2"))
    lines = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    rows = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    keys = ("train/supervised_loss", "train/consistency_loss", "train/prototype_loss", "val/miou", "val/miou_prototype")
    found = {key: [round(float(row[key]), 5) for row in rows if row.get(key)] for key in keys}
    if not GOLDEN.is_file():
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())
    assert all(golden.values()), "every key has to be recorded"
    for key in keys:
        # Other builds of torch round differently; a changed formula moves the third digit.
        torch.testing.assert_close(torch.tensor(found[key]), torch.tensor(golden[key]), rtol=5e-3, atol=5e-3)


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
    OmegaConf.update(broken, "method.poly_power", 0.9)
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


def test_teacher_copies_in_burn_in_then_lags(tmp_path: Path) -> None:
    fit(small_config(tmp_path, "trainer.max_epochs=1"))
    state = run_state(tmp_path / "run")["state_dict"]
    pairs = {k: (v, state[k.replace("student", "teacher")]) for k, v in state.items() if k.startswith("student")}
    assert all(torch.equal(student, teacher) for student, teacher in pairs.values())
    assert not state["bank.is_initialized"]
    fit(small_config(tmp_path / "longer", "trainer.max_epochs=3"))
    state = run_state(tmp_path / "longer/run")["state_dict"]
    weights = [k for k in pairs if k.endswith("weight")]
    assert any(not torch.equal(state[k], state[k.replace("student", "teacher")]) for k in weights)
    assert state["bank.is_initialized"] and state["bank.prototypes"].norm(dim=-1).min() > 0


def test_prototypes_are_class_means_of_labeled_features(tmp_path: Path) -> None:
    """With K = 1 the bank starts as the mean feature of each class: check it against whole images' features."""
    config = small_config(tmp_path, "method.num_prototypes=1", "method.prototype_momentum=1.0", "trainer.max_epochs=2")
    fit(config)
    bank = run_state(tmp_path / "run")["state_dict"]["bank.prototypes"]
    assert bank.shape == (NUM_CLASSES, 1, 16) and (bank >= 0).all()
    cosine = torch.nn.functional.cosine_similarity(bank[:, 0, None], bank[None, :, 0], dim=-1)
    assert (cosine - torch.eye(NUM_CLASSES)).amax() < 0.9999, "classes must not share one mean"


def test_a_few_steps_lower_each_loss(tmp_path: Path) -> None:
    module = make_module(tmp_path, "method.threshold=0.0", "method.ema_decay=0.9")
    optimizer = torch.optim.Adam(module.student.parameters(), lr=3e-3)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        losses.append(step(module))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


def test_two_classes_train(tmp_path: Path) -> None:
    config = OmegaConf.to_container(small_config(tmp_path, "method.threshold=0.5"), resolve=True)
    module = build_module(config, ["background", "object"])
    module.log = module.log_dict = module.log_losses = lambda *args, **kwargs: None
    module.bank.prototypes = torch.rand(module.bank.prototypes.shape)
    module.bank.is_initialized.fill_(True)
    loss = module.semi_supervised_step(*make_batch(num_classes=2))
    loss.backward()
    assert loss.isfinite() and loss > 0
