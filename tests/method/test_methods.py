"""Every method by its contract, in plain loops: no trainer, no data, tiny real networks with real backward passes."""

import copy
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import references as ref
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from pcr_seg.method import (
    IGNORE_INDEX,
    PCR,
    Consistency,
    FixMatch,
    PCRPlus,
    Supervised,
    Teacher,
    UniMatch,
    UniMatchV2,
    class_mask,
    cutmix,
    cutmix_boxes,
    on_grid,
    small_boxes,
)
from pcr_seg.method.pcr_crossed import PCRCrossed
from pcr_seg.method.second_head import SecondHead
from pcr_seg.method.unimatch import drop_features
from pcr_seg.method.unimatch_v2 import drop_complements
from pcr_seg.models.backbones import TimmBackbone
from pcr_seg.models.deeplab import DeepLab
from pcr_seg.models.dpt import DPT

NUM_CLASSES, SIZE, CELLS = 5, 32, 8
NAMES = ["background", "a", "b", "c", "d"]


def make_student(num_classes: int = NUM_CLASSES, **options: object) -> DeepLab:
    torch.manual_seed(0)
    options = {"channels": 8, "pooled_norm": False, **options}
    return DeepLab(TimmBackbone("test_resnet", output_stride=8), num_classes, **options)


def make_pcr(num_classes: int = NUM_CLASSES, feature_dim: int = 16, *, kind: type[PCR] = PCR, **options: object) -> PCR:
    """PCR with a bank filled by hand, without CutMix."""
    torch.manual_seed(1)
    options = {"grid_cells": CELLS, "cutmix_probability": 0.0, "threshold": 0.23, **options}
    method = kind(num_classes, feature_dim, **options)
    method.bank.prototypes = torch.rand(method.bank.prototypes.shape)
    method.bank.is_initialized.fill_(True)
    return method


def make_plus(feature_dim: int = 16) -> PCRPlus:
    """PCR with its additions, but for names."""
    method = PCRPlus(NUM_CLASSES, feature_dim, NAMES, grid_cells=CELLS, feature_weight=0.2, threshold=0.23)
    method.bank = make_pcr(feature_dim=feature_dim).bank
    return method


def make_batch(size: int = SIZE, num_classes: int = NUM_CLASSES, views: int = 1) -> tuple[dict, dict]:
    """A labeled and an unlabeled batch of two; a corner of each image is padding."""
    generator = torch.Generator().manual_seed(1)
    image, weak, *strong = torch.randn(2 + views, 2, 3, size, size, generator=generator)
    other_weak, *other_strong = torch.randn(1 + views, 2, 3, size, size, generator=generator)
    mask = torch.randint(num_classes, (2, size, size), generator=generator)
    valid = torch.ones(2, size, size, dtype=torch.bool)
    mask[:, :5, :7] = IGNORE_INDEX
    valid[:, -6:, :9] = False
    other = {"weak": other_weak, "strong": torch.stack(other_strong, 1), "valid": valid.flip(0, 1)}
    unlabeled = {"weak": weak, "strong": torch.stack(strong, 1), "valid": valid, "other": other}
    return {"image": image, "mask": mask}, unlabeled


def total(method: nn.Module, losses: dict[str, Tensor]) -> Tensor:
    return sum(method.weights[name] * loss for name, loss in losses.items())


def step(method: nn.Module, student: nn.Module | None = None, teacher: Teacher | None = None, **batch: int) -> Tensor:
    """The weighted loss of one step; random numbers follow from a seed."""
    student = student or make_student()
    labeled, unlabeled = make_batch(**batch)
    torch.manual_seed(2)
    return total(method, method(student, teacher or Teacher(student), labeled, unlabeled))


METHODS = {
    "supervised": (lambda d: Supervised(), 1),
    "consistency": (lambda d: Consistency(threshold=0.23), 1),
    "fixmatch": (lambda d: FixMatch(threshold=0.23), 1),
    "unimatch": (lambda d: UniMatch(threshold=0.23), 2),
    "unimatch_v2": (lambda d: UniMatchV2(threshold=0.23), 2),
    "pcr": (lambda d: make_pcr(feature_dim=d), 1),
    "pcr_plus": (lambda d: make_plus(d), 1),
}
every_method = pytest.mark.parametrize(("make", "views"), METHODS.values(), ids=METHODS)


@every_method
def test_a_plain_loop_trains_every_method(make: Callable, views: int) -> None:
    student, method = make_student(), make(16)
    teacher = Teacher(student, decay=method.ema_decay)
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    labeled, unlabeled = make_batch(views=views)
    labeled["mask"] = (labeled["image"][:, 0] > 0).long()
    supervised = []
    for _ in range(12):
        losses = method(student, teacher, labeled, unlabeled)
        loss = sum(method.weights[name] * loss for name, loss in losses.items())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        teacher.follow(student)
        supervised.append(losses["supervised"].item())
    assert losses.keys() == {name for name, weight in method.weights.items() if weight}
    assert supervised[-1] < 0.9 * supervised[0]
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


@every_method
def test_the_burn_in_is_supervised(make: Callable, views: int) -> None:
    student, method = make_student(), make(16)
    student.eval()  # no dropout: two forwards agree
    labeled, _ = make_batch()
    bank = copy.deepcopy(getattr(method, "bank", None))
    losses = method(student, Teacher(student), labeled, None)
    expected = Supervised()(student, Teacher(student), labeled)
    assert losses.keys() == {"supervised"} and torch.equal(losses["supervised"], expected["supervised"])
    assert bank is None or torch.equal(bank.prototypes, method.bank.prototypes)


class Maps(NamedTuple):
    logits: Tensor
    features: Tensor


class Head(nn.Module):
    """A network that sees feature maps of stride 16, computed beforehand, in place of images."""

    num_classes, feature_dim = NUM_CLASSES, 6

    def __init__(self) -> None:
        super().__init__()
        self.features, self.linear = nn.Conv2d(7, 6, 1), nn.Conv2d(6, NUM_CLASSES, 1)

    def forward(self, maps: Tensor) -> Maps:
        return self.decode(self.encode(maps))

    def encode(self, maps: Tensor) -> list[Tensor]:
        return [maps, maps]

    def decode(self, maps: list[Tensor]) -> Maps:
        features = self.features(maps[-1]).relu()
        return Maps(self.linear(features), features)


@every_method
def test_views_may_be_feature_maps(make: Callable, views: int) -> None:
    """Labels stay at full resolution; CutMix draws its boxes among the maps' cells."""
    torch.manual_seed(0)
    student, method = Head(), make(6)
    teacher = Teacher(student, decay=0.9)
    labeled, unlabeled = make_batch(size=96, views=views)
    labeled["image"], unlabeled["weak"] = torch.randn(2, 2, 7, 6, 6)
    unlabeled["strong"] = torch.randn(2, views, 7, 6, 6)
    unlabeled["other"] |= {"weak": torch.randn(2, 7, 6, 6), "strong": torch.randn(2, views, 7, 6, 6)}
    loss = total(method, method(student, teacher, labeled, unlabeled))
    loss.backward()
    assert loss.isfinite() and student.features.weight.grad.abs().sum() > 0


def test_boxes_on_a_coarser_grid_cover_the_same_place() -> None:
    torch.manual_seed(0)
    views = torch.arange(3.0)[:, None, None, None].expand(3, 7, 6, 9)
    labels = torch.arange(3)[:, None, None].expand(3, 96, 144)
    mixed, mixed_labels, confidence = cutmix(views, labels, labels / 10, 1.0)
    assert 0 < (mixed != views).float().mean() < 1
    assert torch.equal(mixed_labels, mixed[:, 0].repeat_interleave(16, 1).repeat_interleave(16, 2).long())
    torch.testing.assert_close(confidence, mixed_labels / 10)
    boxes = cutmix_boxes(2, 5, 7)
    assert on_grid(boxes, (5, 7)) is boxes and on_grid(boxes, (11, 20)).shape == (2, 1, 11, 20)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_cutmix_mixes_views_labels_and_confidence_alike(probability: float) -> None:
    views, labels, confidence = torch.rand(2, 3, 9, 9), torch.randint(5, (2, 9, 9)), torch.rand(2, 9, 9)
    mixed = cutmix(views, labels, confidence, probability)
    from_other = (mixed[0] == views.roll(-1, 0)).all(1)
    assert 0.3 < from_other.float().mean() < 0.7 if probability else not from_other.any()
    assert torch.equal(mixed[1], labels.roll(-1, 0).where(from_other, labels))
    assert torch.equal(mixed[2], confidence.roll(-1, 0).where(from_other, confidence))


# ---------------------------------------------------------------------------------------------------- PCR


def test_loss_is_the_sum_of_its_naive_parts() -> None:
    """The whole step again, literally: full-resolution features, softmax and loops over pixels."""
    student, method = make_student(), make_pcr(consistency_weight=0.7, prototype_weight=0.3)
    student.eval()  # no dropout: two forwards agree
    teacher = Teacher(student)
    labeled, unlabeled = make_batch()
    prototypes = method.bank.prototypes.clone()
    size = labeled["mask"].shape[-2:]
    with torch.no_grad():
        up = torch.nn.functional.interpolate
        taught = up(student(unlabeled["weak"]).logits, size, mode="bilinear", align_corners=True).softmax(1)
        confidence, pseudo = taught.max(1)
        pseudo[~unlabeled["valid"]] = IGNORE_INDEX
        output = student(torch.cat([labeled["image"], unlabeled["strong"][:, 0]]))
        logits = up(output.logits, size, mode="bilinear", align_corners=True)
        features = up(output.features, size, mode="bilinear", align_corners=True)
        torch.manual_seed(2)
        torch.rand(3, 2), torch.rand(())  # what CutMix draws before the grid is drawn
        cell = SIZE // CELLS
        jitter = (torch.rand(2, CELLS, CELLS) * cell).long()
        cells = [(a, b) for a in range(CELLS) for b in range(CELLS)]
        points = [(a * cell + int(jitter[0, a, b]), b * cell + int(jitter[1, a, b])) for a, b in cells]
        rows, columns = torch.tensor(points).T
        cosine = ref.bank_logits(prototypes, features[:, :, rows, columns].transpose(1, 2), 0.1).transpose(1, 2)
        expected = ref.cross_entropy(logits[:2], labeled["mask"])
        expected += 0.7 * ref.consistency_loss(logits[2:], pseudo, confidence, 0.23)
        expected += 0.3 * ref.cross_entropy(cosine[:2], labeled["mask"][:, rows, columns])
        expected += 0.3 * ref.consistency_loss(cosine[2:], pseudo[:, rows, columns], confidence[:, rows, columns], 0.23)
    assert 0.05 < (confidence >= 0.23).float().mean() < 0.95, "the threshold has to separate something here"
    found = step(method, student, teacher).detach()
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=torch.float32), rtol=1e-4, atol=1e-5)


def test_without_prototypes_it_is_consistency_bit_for_bit() -> None:
    """Three steps of a loop: losses, gradients, weights and the teacher."""
    results = []
    for method in (make_pcr(prototype_weight=0, cutmix_probability=0.5), Consistency(threshold=0.23)):
        student = make_student()
        teacher = Teacher(student, decay=method.ema_decay)
        optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
        labeled, unlabeled = make_batch()
        torch.manual_seed(3)
        for _ in range(3):
            losses = method(student, teacher, labeled, unlabeled)
            optimizer.zero_grad()
            total(method, losses).backward()
            optimizer.step()
            teacher.follow(student)
        gradients = [p.grad for p in student.parameters()]
        results.append([*losses.values(), *gradients, *student.state_dict().values(), *teacher.state_dict().values()])
    assert len(results[0]) == len(results[1]) > 100
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_gradients_reach_the_student_only() -> None:
    student, method = make_student(), make_pcr(threshold=0.0)
    step(method, student).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters())
    assert not list(method.parameters()) and not method.bank.prototypes.requires_grad


def test_prototype_loss_reaches_the_features_but_not_the_linear_head() -> None:
    student, method = make_student(), make_pcr()
    method(student, Teacher(student), *make_batch())["prototype"].backward()
    assert all(p.grad is None or not p.grad.any() for p in student.linear_head.parameters())
    assert any(p.grad is not None and p.grad.any() for p in student.backbone.parameters())


def test_prototypes_move_in_the_step_only() -> None:
    student, method = make_student(), make_pcr()
    before = method.bank.prototypes.clone()
    loss = step(method, student)
    after = method.bank.prototypes.clone()
    assert not torch.equal(after, before) and method.assigned.sum() > 0
    loss.backward()
    torch.optim.SGD(student.parameters(), lr=0.1).step()
    method.heads(torch.rand(1, 16, 4, 4), (9, 9))
    assert torch.equal(method.bank.prototypes, after)


@pytest.mark.parametrize("options", [{"prototype_on": "neither"}, {"bank_labels": "students"}])
def test_an_unknown_choice_is_one_line(options: dict) -> None:
    [(name, value)] = options.items()
    with pytest.raises(ValueError, match=f"method.{name}={value}: choose one of"):
        make_pcr(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"prototype_gate": False}, {"prototype_on": "labels"}, {"prototype_on": "pseudo-labels"},
        {"bank_labels": "teacher"}, {"num_prototypes": 1}, {"prototype_momentum": 1.0}, {"temperature": 0.2},
        {"cutmix_probability": 1.0}, {"consistency_weight": 0.5}, {"prototype_weight": 0.0}, {"grid_cells": 4},
        {"threshold": 0.3}, {"supervised_loss": lambda logits, labels: logits.mean()},
    ],
    ids=lambda options: next(iter(options)),
)  # fmt: skip
def test_every_option_does_something(options: dict) -> None:
    results = []
    for more in ({}, options):
        method = make_pcr(**more)
        loss = step(method)
        loss.backward()
        assert loss.isfinite()
        results.append((loss.item(), method.bank.prototypes.mean().item()))
    assert results[0] != results[1]


def test_the_auxiliary_head_weighs_its_share() -> None:
    labeled, _ = make_batch()
    student = make_student(auxiliary=True)
    student.eval()
    losses = [
        Supervised(auxiliary_weight=weight)(student, Teacher(student), labeled)["supervised"] for weight in (0, 1)
    ]
    auxiliary = torch.nn.functional.interpolate(
        student(labeled["image"]).auxiliary, (SIZE, SIZE), mode="bilinear", align_corners=True
    )
    expected = ref.cross_entropy(auxiliary.detach(), labeled["mask"])
    assert (losses[1] - losses[0]).item() == pytest.approx(float(expected), abs=1e-4)


def test_many_calls_of_a_step_move_prototypes_as_far_as_one() -> None:
    features, labels = torch.rand(40, 16), torch.zeros(40, dtype=torch.long)
    one, parts = make_pcr(num_prototypes=1), make_pcr(num_prototypes=1)
    parts.accumulate(4)
    one.bank.update(features[:1].expand(40, -1), labels)
    for _ in range(4):
        parts.bank.update(features[:1].expand(10, -1), labels[:10])
    torch.testing.assert_close(parts.bank.prototypes, one.bank.prototypes)


def test_it_begins_once_with_clusters_of_labeled_features() -> None:
    student, method = make_student(), PCR(NUM_CLASSES, 16, grid_cells=CELLS)
    with pytest.raises(RuntimeError, match="PCR has no prototypes yet: call begin"):
        step(method, student)
    assert method.heads(torch.rand(1, 16, 4, 4), (8, 8)) == {} and method.statistics() == {}
    labeled, _ = make_batch()
    method.begin(student, [labeled], torch.Generator().manual_seed(0))
    assert method.bank.is_initialized and (method.bank.prototypes.norm(dim=-1) > 0).all() and student.training
    before = method.bank.prototypes.clone()
    method.begin(student, iter(()), torch.Generator())
    assert torch.equal(method.bank.prototypes, before)
    assert set(method.heads(torch.rand(1, 16, 4, 4), (8, 8))) == {"prototype"}
    step(method, student)
    assert method.statistics().keys() == {"prototypes/usage_entropy", "prototypes/dead"}
    torch.testing.assert_close(method.usage.sum(dim=1), torch.ones(NUM_CLASSES))
    method.new_epoch()
    assert method.statistics()["prototypes/dead"] == NUM_CLASSES * 4


def test_nothing_is_labeled_and_nothing_is_confident() -> None:
    """An all-ignored batch under an unreachable threshold: loss 0, finite gradients, bank untouched."""
    student, method = make_student(), make_pcr(threshold=1.1)
    labeled, unlabeled = make_batch()
    labeled["mask"].fill_(IGNORE_INDEX)
    before = method.bank.prototypes.clone()
    loss = total(method, method(student, Teacher(student), labeled, unlabeled))
    loss.backward()
    assert loss == 0 and torch.equal(method.bank.prototypes, before)
    assert all(p.grad.isfinite().all() for p in student.parameters() if p.grad is not None)


def test_a_step_in_bf16_keeps_prototypes_in_fp32() -> None:
    method = make_pcr(threshold=0.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = step(method)
    loss.backward()
    assert loss.dtype == method.bank.prototypes.dtype == torch.float32
    torch.testing.assert_close(loss, step(make_pcr(threshold=0.0)), rtol=0.03, atol=0.03)


def test_two_classes_train() -> None:
    loss = step(make_pcr(2), make_student(2), num_classes=2)
    loss.backward()
    assert loss.isfinite() and loss > 0


# ----------------------------------------------------------------------------------------- the others


def published(
    student: nn.Module, labeled: dict, unlabeled: dict, threshold: float, boxes: list[Tensor], raised: Tensor
) -> dict:
    """UniMatch's losses as its code computes them, with masks by boolean indexing; FixMatch's with one strong view.

    Pseudo-labels are read from logits that are `raised` (C, 1, 1), which is not in their code.
    """
    up = partial(nn.functional.interpolate, size=(SIZE, SIZE), mode="bilinear", align_corners=True)
    weak, other = unlabeled["weak"], unlabeled["other"]
    ignore, ignore_mix = ((~part["valid"]).long() * 255 for part in (unlabeled, other))
    with torch.no_grad():
        student.eval()
        mix = (up(student(other["weak"]).logits) + raised).softmax(1)
        student.train()
    views = []
    for view, box in enumerate(boxes):
        image = unlabeled["strong"][:, view].clone()
        inside = box.expand(image.shape)
        image[inside] = other["strong"][:, view][inside]
        views.append(image)
    low, middle, high = student.backbone(torch.cat([labeled["image"], weak]))
    if len(boxes) == 2:
        low, high = (torch.cat([x, nn.functional.dropout2d(x, 0.5)]) for x in (low, high))
        middle = torch.cat([middle, middle])
    logits = up(student.decode([low, middle, high]).logits)
    strong = up(student(torch.cat(views)).logits).chunk(len(boxes))
    taught = (logits[2:4].detach() + raised).softmax(1)

    def loss_u(prediction: Tensor, box: Tensor | None) -> Tensor:
        labels, confidence, unknown = taught.argmax(1), taught.amax(1), ignore.clone()
        if box is not None:
            inside = box[:, 0]
            labels[inside], confidence[inside] = mix.argmax(1)[inside], mix.amax(1)[inside]
            unknown[inside] = ignore_mix[inside]
        pixels = nn.functional.cross_entropy(prediction, labels, reduction="none")
        return (pixels * ((confidence >= threshold) & (unknown != 255))).sum() / (unknown != 255).sum()

    losses = {"supervised": nn.functional.cross_entropy(logits[:2], labeled["mask"], ignore_index=255)}
    parts = [loss_u(prediction, box) for prediction, box in zip(strong, boxes, strict=True)]
    losses["consistency"] = sum(parts) / len(parts)
    if len(boxes) == 2:
        losses["features"] = loss_u(logits[6:], None)
    return losses


@pytest.mark.parametrize("adjustment", [0.0, 0.1])
@pytest.mark.parametrize("made", [FixMatch, UniMatch])
def test_the_peers_losses_are_those_of_their_published_step(made: type, adjustment: float) -> None:
    views = 2 if made is UniMatch else 1
    student = make_student(dropout=0.0)
    again, teacher = copy.deepcopy(student), Teacher(student, decay=0.0, logit_adjustment=adjustment)
    method = made(threshold=0.24, cutmix_probability=1.0)
    labeled, unlabeled = make_batch(views=views)
    teacher.log_frequency = torch.linspace(-2, 0, NUM_CLASSES)[:, None, None]
    torch.manual_seed(5)
    found = method(student, teacher, labeled, unlabeled)
    total(method, found).backward()
    torch.manual_seed(5)
    boxes = [small_boxes(2, SIZE, SIZE, probability=1.0) for _ in range(views)]
    expected = published(again, labeled, unlabeled, 0.24, boxes, -adjustment * teacher.log_frequency)
    total(method, expected).backward()
    assert found.keys() == expected.keys() and 0.05 < method.figures["confident"] < 0.95
    for name, loss in expected.items():
        torch.testing.assert_close(found[name], loss, rtol=1e-5, atol=1e-6)
    for (name, one), other in zip(student.named_parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5, msg=lambda m: f"{name}: {m}")  # noqa: B023


def test_dropped_features_move_no_statistics() -> None:
    """UniMatch decodes them together with clean ones, `pcr_plus` alone."""
    labeled, unlabeled = make_batch(views=2)
    for method in (UniMatch(), make_plus()):
        student, expected, seen = make_student(dropout=0.0), make_student(dropout=0.0).low_conv, []
        teacher, norm = Teacher(student), student.low_conv[1]
        student.low_conv[0].register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0].detach()))
        method(student, teacher, labeled, unlabeled)
        clean = [low[:4] for low in seen if len(low) == 8] + [low for low in seen if len(low) == 4]
        assert len(seen) == 2 and len(clean) == (2 if isinstance(method, UniMatch) else 1)
        for low in clean:
            expected(low)
        torch.testing.assert_close(norm.running_mean, expected[1].running_mean)
        torch.testing.assert_close(norm.running_var, expected[1].running_var)


def test_pasted_labels_move_prototypes_as_labels() -> None:
    """Where everything is pasted and the network is sure of another class, prototypes move by the labels."""
    method = make_plus()
    output = make_student().eval()(torch.randn(4, 3, SIZE, SIZE))
    output = output._replace(logits=torch.full_like(output.logits, -9.0))
    output.logits[:, 0] = 9.0
    mask, labels = torch.full((2, SIZE, SIZE), IGNORE_INDEX), torch.full((2, SIZE, SIZE), 3)
    labels, confidence = (x[:, None].expand(-1, 2, -1, -1) for x in (labels, torch.ones(2, SIZE, SIZE)))
    method.losses(output, mask, labels, confidence, torch.ones(2, SIZE, SIZE, dtype=torch.bool))
    assert method.assigned[3].sum() == 2 * CELLS**2 and method.assigned.sum() == method.assigned[3].sum()
    assert method.figures["confident"] == 0, "the teacher said nothing"


def test_half_of_the_channels_are_dropped_for_each_image() -> None:
    first, middle, last = (torch.ones(3, 200, 2, 2) for _ in range(3))
    dropped = drop_features([first, middle, last])
    assert dropped[1] is middle
    for maps in (dropped[0], dropped[2]):
        kept = maps[:, :, 0, 0] > 0
        assert ((maps == 0) | (maps == 2)).all() and (abs(kept.float().mean(1) - 0.5) < 0.15).all()
        assert not torch.equal(kept[0], kept[1])


def test_classes_of_labeled_images_are_pasted_with_their_labels() -> None:
    labeled, unlabeled = make_batch()
    method = PCRPlus(NUM_CLASSES, 16, NAMES, labeled_classmix=1.0)
    views, labels, confidence = unlabeled["strong"][:, 0], torch.full((2, SIZE, SIZE), 9), torch.zeros(2, SIZE, SIZE)
    torch.manual_seed(0)
    mixed = method.paste_classes(views, labels, confidence, labeled)
    torch.manual_seed(0)
    torch.rand(2, 1, 1, 1)
    covered = class_mask(labeled["mask"], NUM_CLASSES)[:, 0]
    assert 0.3 < covered.float().mean() < 0.7
    assert torch.equal(mixed[0], labeled["image"].where(covered[:, None], views))
    assert torch.equal(mixed[1], labeled["mask"].where(covered, labels))
    assert torch.equal(mixed[2], covered.float())


# --------------------------------------------------------------------------------- who labels for whom


def heads_of_teacher(method: PCR, teacher: Teacher, unlabeled: dict) -> tuple[Tensor, Tensor]:
    """Probabilities (B, C, H, W) of the teacher's heads, upsampled before they are compared."""
    with torch.no_grad():
        output, size = teacher.network(unlabeled["weak"]), unlabeled["valid"].shape[-2:]
        linear = ref.upsample(output.logits, size).softmax(dim=1)
        features = F.normalize(ref.upsample(output.features, size).movedim(1, -1), dim=-1)
        cosines = torch.einsum("bhwd,ckd->bhwck", features, F.normalize(method.bank.prototypes, dim=-1))
        return linear, (cosines.amax(dim=-1) / method.temperature).movedim(-1, 1).softmax(dim=1)


@pytest.mark.parametrize("choice", ["linear", "average", "crossed"])
def test_the_teachers_heads_label_for_the_students_heads(choice: str) -> None:
    student, (_, unlabeled) = make_student(), make_batch()
    method, teacher = make_pcr(kind=PCRCrossed, pseudo_labels=choice), Teacher(student)
    linear, prototype = heads_of_teacher(method, teacher, unlabeled)
    for_linear, for_prototype = {
        "linear": (linear, linear),
        "average": ((linear + prototype) / 2,) * 2,
        "crossed": (prototype, linear),
    }[choice]
    labels, confidence = method.label(teacher, unlabeled["weak"], unlabeled["valid"])
    for place, wanted in enumerate((for_linear, for_prototype)):
        sure, best = wanted.max(dim=1)
        assert (labels[:, place] == best.masked_fill(~unlabeled["valid"], IGNORE_INDEX)).float().mean() > 0.999
        assert_close(confidence[:, place], sure.masked_fill(~unlabeled["valid"], 0.0), atol=1e-5, rtol=0)


def test_crossed_labels_train_the_other_head() -> None:
    student = make_student(dropout=0.0)
    method, teacher = make_pcr(kind=PCRCrossed), Teacher(student)
    labeled, unlabeled = make_batch()
    torch.manual_seed(2)
    losses = method(student, teacher, labeled, unlabeled)
    sure, best = heads_of_teacher(method, teacher, unlabeled)[1].max(dim=1)
    student = make_student(dropout=0.0)
    logits = ref.upsample(student(torch.cat([labeled["image"], unlabeled["strong"][:, 0]])).logits, (SIZE, SIZE))[2:]
    loss = F.cross_entropy(logits, best, reduction="none")
    trains = (sure >= method.threshold) & unlabeled["valid"]
    assert 0.05 < trains.float().mean() < 0.95
    assert_close(losses["consistency"], (loss * trains).sum() / trains.numel(), atol=4e-3, rtol=0)


def test_prototypes_that_follow_labels_alone() -> None:
    method, expected = make_pcr(bank_labels="none"), make_pcr()
    labeled, unlabeled = make_batch()
    for one, valid in ((method, unlabeled["valid"]), (expected, torch.zeros_like(unlabeled["valid"]))):
        student = make_student()
        torch.manual_seed(2)
        one(student, Teacher(student), labeled, unlabeled | {"valid": valid})
    assert torch.equal(method.bank.prototypes, expected.bank.prototypes)


@pytest.mark.parametrize("choice", ["linear", "average", "crossed"])
def test_a_second_linear_head_learns_by_gradient_and_labels_by_its_average(choice: str) -> None:
    torch.manual_seed(1)
    method = SecondHead(NUM_CLASSES, 16, grid_cells=CELLS, threshold=0.23, pseudo_labels=choice, prototype_momentum=0.5)
    method.begin(make_student(), [], torch.Generator())
    before = copy.deepcopy(method.bank.state_dict())
    step(method).backward()
    assert method.bank.head.weight.grad.abs().sum() > 0 and method.bank.averaged.weight.grad is None
    with torch.no_grad():
        method.bank.head.weight += 1
    method.accumulate(2)  # two updates by the root of the decay are one by the decay
    for _ in range(2):
        method.bank.update(torch.zeros(1, 16), torch.zeros(1, dtype=torch.long))
    assert_close(method.bank.averaged.weight, before["averaged.weight"] + 0.5)
    features = torch.randn(2, 16, 4, 4)
    weight, bias = method.bank.averaged.parameters()
    expected = ref.upsample(F.conv2d(features, weight[..., None, None], bias), (9, 9))
    assert_close(method.heads(features, (9, 9))["prototype"], expected)


def test_a_second_linear_head_learns_labels_in_the_burn_in_and_is_averaged_from_then_on() -> None:
    torch.manual_seed(1)
    method, student = SecondHead(NUM_CLASSES, 16, grid_cells=SIZE), make_student(dropout=0.0)  # a cell for each pixel
    labeled, _ = make_batch()
    losses = method(student, Teacher(student), labeled, None)
    features = ref.upsample(student(labeled["image"]).features, (SIZE, SIZE))
    logits = F.conv2d(features, method.bank.head.weight[..., None, None], method.bank.head.bias)
    assert_close(losses["prototype"], F.cross_entropy(logits, labeled["mask"], ignore_index=255), atol=1e-4, rtol=0)
    assert not method.heads(features, (SIZE, SIZE))
    method.begin(student, [], torch.Generator())
    assert torch.equal(method.bank.averaged.weight, method.bank.head.weight)
    averaged = method.bank.averaged.weight.clone()
    with torch.no_grad():
        method.bank.head.weight += 1
    method.begin(student, [], torch.Generator())  # as in each later epoch
    assert torch.equal(method.bank.averaged.weight, averaged)


def test_complements_equal_a_plain_writing() -> None:
    """Channel by channel, for the same draws: 0 and 2, 2 and 0, or 1 and 1 in both views of an image."""
    maps = [torch.randn(10, width, 3, 2) for width in (6, 6, 4)]
    torch.manual_seed(3)
    found = drop_complements(maps)
    torch.manual_seed(3)
    kept = {image for image, place in enumerate(torch.randperm(5).tolist()) if place < 2}
    draws = {width: torch.bernoulli(torch.full((5, width), 0.5)) for width in (6, 4)}
    for x, y in zip(maps, found, strict=True):
        for view in range(2):
            for image in range(5):
                for channel in range(x.shape[1]):
                    on = draws[x.shape[1]][image, channel] == (view == 0)
                    factor = 1 if image in kept else 2 * int(on)
                    torch.testing.assert_close(y[5 * view + image, channel], factor * x[5 * view + image, channel])


def published_v2(
    student: nn.Module,
    teacher: nn.Module,
    labeled: dict,
    unlabeled: dict,
    threshold: float,
    boxes: list[Tensor],
    factors: Tensor,
) -> tuple[dict[str, Tensor], Tensor]:
    """UniMatch V2's losses as its paper and code describe them: two forwards, masks by boolean indexing."""
    up = partial(nn.functional.interpolate, size=(SIZE_V2, SIZE_V2), mode="bilinear", align_corners=True)
    unknown = (~unlabeled["valid"]).long() * 255
    with torch.no_grad():
        taught = up(teacher(unlabeled["weak"]).logits).softmax(1)
    labels, confidence = taught.argmax(1), taught.amax(1)
    views = []
    for view, box in enumerate(boxes):
        image = unlabeled["strong"][:, view].clone()
        image[box.expand(image.shape)] = image.flip(0)[box.expand(image.shape)]
        views.append(image)
    supervised = nn.functional.cross_entropy(up(student(labeled["image"]).logits), labeled["mask"], ignore_index=255)
    maps = student.backbone(torch.cat(views), (-4, -3, -2, -1))
    strong = up(student.decode([x * factors[:, :, None, None] for x in maps]).logits).chunk(2)
    losses = []
    for logits, box in zip(strong, boxes, strict=True):
        box = box[:, 0]
        mixed, sure, ignored = labels.clone(), confidence.clone(), unknown.clone()
        mixed[box], sure[box], ignored[box] = labels.flip(0)[box], confidence.flip(0)[box], unknown.flip(0)[box]
        pixels = nn.functional.cross_entropy(logits, mixed, reduction="none")
        losses.append((pixels * ((sure >= threshold) & (ignored != 255))).sum() / (ignored != 255).sum())
    parts = {"supervised": supervised, "consistency": (losses[0] + losses[1]) / 2}
    return parts, (parts["supervised"] + parts["consistency"]) / 2


SIZE_V2 = 56


def test_unimatch_v2_is_its_published_step() -> None:
    torch.manual_seed(0)
    vit = TimmBackbone("vit_small_patch14_dinov2", options={"depth": 4, "embed_dim": 32, "num_heads": 2})
    student = DPT(vit, NUM_CLASSES, channels=8, projections=[8, 8, 8, 8])
    teacher = Teacher(student, decay=0.996)
    with torch.no_grad():
        teacher.network.linear_head.weight.mul_(10)  # an average that differs, and is sure here and there
    again, method = copy.deepcopy(student), UniMatchV2(threshold=0.365, cutmix_probability=1.0)
    labeled, unlabeled = make_batch(size=SIZE_V2, views=2)
    torch.manual_seed(5)
    found = method(student, teacher, labeled, unlabeled)
    total(method, found).backward()
    torch.manual_seed(5)
    boxes = [small_boxes(2, SIZE_V2, SIZE_V2, probability=1.0) for _ in range(2)]
    factors = drop_complements([torch.ones(4, 32, 1, 1)])[0][:, :, 0, 0]
    parts, loss = published_v2(again, teacher.network, labeled, unlabeled, 0.365, boxes, factors)
    loss.backward()
    assert found.keys() == parts.keys() and 0.05 < method.figures["confident"] < 0.95
    for name, expected in parts.items():
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(total(method, found), loss, rtol=1e-5, atol=1e-6)
    for (name, one), other in zip(student.named_parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5, msg=lambda m: f"{name}: {m}")  # noqa: B023
