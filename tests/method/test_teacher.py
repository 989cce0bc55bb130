"""Pseudo-labels, the moving average, and rules for BatchNorm."""

import copy
from types import SimpleNamespace

import pytest
import references as ref
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from toys import IGNORED, Size, randn

from pcr_seg import method
from pcr_seg.method import Teacher
from pcr_seg.method import teacher as teacher_module
from pcr_seg.models.output import SegmentorOutput


@pytest.mark.parametrize("shape", [(1, 2, 4, 4), (2, 21, 3, 5)])
def test_pseudo_label(shape: Size) -> None:
    logits = 3 * randn(*shape)
    logits[:, :, 0, 0] = 0  # a tie goes to the first class, as in numpy
    odds = logits.double().exp()
    expected = (
        torch.from_numpy(logits.numpy().argmax(axis=1)),
        (odds / odds.sum(dim=1, keepdim=True)).amax(dim=1).float(),
    )
    assert_close(method.pseudo_label(logits), expected)


def make_network(seed: int) -> nn.Module:
    """Parameters, float buffers, an integer and a boolean buffer, all different for seeds 1 and 2."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    for i, parameter in enumerate(network.parameters()):
        nn.init.constant_(parameter, 0.1 * seed + i)
    network.register_buffer("flag", torch.tensor(seed == 2))
    for _ in range(seed):
        network(randn(2, 3, 8, 8))
    return network


@pytest.mark.parametrize("rule", ["default", "copy", "keep"])
@pytest.mark.parametrize("decay", [0.0, 0.75, 1.0])
def test_ema_update(decay: float, rule: str) -> None:
    options = {} if rule == "default" else {"float_buffers": rule}
    teacher, student = make_network(1), make_network(2)
    before, expected = (
        copy.deepcopy(student.state_dict()),
        ref.ema(teacher, student, decay, *options.values()),
    )
    method.ema_update(teacher, student, decay, **options)
    assert_close(dict(teacher.state_dict()), expected)
    assert_close(dict(student.state_dict()), dict(before), rtol=0, atol=0)
    of_teacher, of_student = ({t.data_ptr() for t in net.state_dict().values()} for net in (teacher, student))
    assert of_teacher.isdisjoint(of_student)


def test_the_teacher_lags_the_student() -> None:
    student = nn.Linear(3, 2).requires_grad_(False)
    teacher, start = copy.deepcopy(student), student.weight.clone()
    student.weight += 1
    for step in range(1, 6):
        method.ema_update(teacher, student, 0.9)
        assert_close(teacher.weight.detach(), start + 1 - 0.9**step)


def test_ema_decay_warms_up() -> None:
    decays = [method.ema_decay_at(step, 0.99) for step in (0, 1, 3, 98, 99, 100, 10**6)]
    assert decays == pytest.approx([0, 0.5, 0.75, 1 - 1 / 99, 0.99, 0.99, 0.99])


def test_batchnorm_follows_what_it_normalises_as_before() -> None:
    network = make_network(2).eval()
    x, conv, norm = randn(4, 3, 8, 8), network[0], network[1]
    expected, before = network(x), copy.deepcopy(norm)
    with teacher_module.batchnorm_follows(network, momentum=0.1):
        assert_close(network(x), expected)
    trained = before.train()
    trained(conv(x))  # on one layer the statistics are those of training mode
    assert_close(norm.running_mean, trained.running_mean)
    assert_close(norm.running_var, trained.running_var)
    after = norm.running_mean.clone()
    network(randn(4, 3, 8, 8, seed=1))
    assert_close(norm.running_mean, after)


def make_teacher(bn: str, **options: float) -> tuple[Teacher, nn.Module]:
    torch.manual_seed(0)
    student = Tiny()
    return Teacher(student, bn=bn, **options), student


class Tiny(nn.Module):
    """One convolution with BatchNorm; its features are the images."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))

    def forward(self, images: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.layers(images), features=images)


def test_it_labels_in_eval_mode_and_padding_stays_unknown() -> None:
    teacher, student = make_teacher("copy")
    teacher.train()
    images, valid = randn(2, 3, 5, 5), torch.ones(2, 10, 10, dtype=torch.bool)
    valid[:, :3] = False
    labels, confidence = teacher.label(images, valid)
    expected = ref.upsample(student.eval()(images).logits, (10, 10)).softmax(1)
    assert (labels[~valid] == IGNORED).all() and not confidence[~valid].any()
    assert_close(confidence[valid], expected.amax(1)[valid].detach())
    assert torch.equal(labels[valid], expected.argmax(1)[valid])
    refined, _ = teacher.label(images, valid, lambda images, logits: -logits)
    assert torch.equal(refined[valid], expected.argmin(1)[valid])


def test_it_copies_then_follows_more_slowly_and_counts_on_after_a_round_trip() -> None:
    teacher, student = make_teacher("copy", decay=0.9)
    with torch.no_grad():
        for number in range(4):
            student.layers[0].weight.fill_(number)
            teacher.follow(student)
    assert teacher.network.layers[0].weight.unique().tolist() == pytest.approx([0.25 * (0 + 1 + 2 + 3)])
    other, _ = make_teacher("copy", decay=0.9)
    other.load_state_dict(teacher.state_dict())
    student.layers[0].weight.data.fill_(9.0)
    teacher.follow(student), other.follow(student)
    assert_close(dict(other.state_dict()), dict(teacher.state_dict()))
    assert other.steps == 5
    teacher.copy(student)
    assert torch.equal(teacher.network.layers[0].weight, student.layers[0].weight) and teacher.steps == 5


@pytest.mark.parametrize("bn", ["copy", "forward", "weak"])
def test_each_rule_has_statistics_of_its_own(bn: str) -> None:
    teacher, student = make_teacher(bn)
    weak, seen, labeled = randn(2, 3, 8, 8), 5 + 3 * randn(4, 3, 8, 8), 7 * randn(2, 3, 8, 8, seed=1)
    student.train()(seen)
    valid = torch.ones(2, 8, 8, dtype=torch.bool)
    teacher.label(weak, valid)
    teacher.observe(seen)
    teacher.follow(student)
    norm, of_student = teacher.network.layers[1], student.layers[1]
    fresh = Tiny()
    fresh.load_state_dict({**student.state_dict(), **{k: v for k, v in Tiny().state_dict().items() if "running" in k}})
    fresh.layers[1].momentum = 0.01 if bn == "weak" else 0.1
    fresh.train()(weak if bn == "weak" else seen)
    expected = of_student if bn == "copy" else fresh.layers[1]
    assert_close(norm.running_mean, expected.running_mean)
    assert_close(norm.running_var, expected.running_var)
    teacher.refresh([labeled])
    assert not teacher.network.training
    changed = not torch.equal(norm.running_mean, expected.running_mean)
    assert changed == (bn == "weak")


def test_a_frozen_part_keeps_its_statistics() -> None:
    """Teacher and student share it, in eval mode; with statistics of nothing it would be ruined for both."""

    class Frozen(nn.Sequential):
        frozen = True

        def train(self, mode: bool = True) -> nn.Module:
            return super().train(False)

    student = Tiny()
    student.layers = nn.Sequential(Frozen(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).eval(), *student.layers)
    teacher = Teacher(student, bn="weak")
    (_, shared), *_ = teacher.network.layers
    shared.running_mean.fill_(0.3)
    shared.running_var.fill_(2.0)
    teacher.label(randn(2, 3, 8, 8), torch.ones(2, 8, 8, dtype=torch.bool))
    teacher.refresh([randn(2, 3, 8, 8)])
    assert shared.running_mean.eq(0.3).all() and shared.running_var.eq(2).all()


def test_refreshed_statistics_are_the_mean_over_all_batches() -> None:
    (teacher, _), batches = make_teacher("weak"), [randn(2, 3, 8, 8), randn(2, 3, 8, 8, seed=1)]
    conv, norm = teacher.network.layers[:2]
    teacher.refresh(batches)
    means = torch.stack([conv(images).mean(dim=(0, 2, 3)) for images in batches])
    assert_close(norm.running_mean, means.mean(dim=0))
    assert norm.momentum == 0.1 and not norm.training


def test_an_unknown_rule_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"teacher_bn=averages: choose one of copy, forward, weak"):
        make_teacher("averages")


@pytest.mark.parametrize("count", [0, 2])
def test_only_the_first_images_of_a_batch_move_the_statistics(count: int) -> None:
    torch.manual_seed(0)
    network, alone, usual = Tiny().train(), Tiny().train(), Tiny().train()
    for other in (alone, usual):
        other.load_state_dict(network.state_dict())
    clean, perturbed = randn(2, 3, 8, 8), 9 * randn(3, 3, 8, 8, seed=1)
    with teacher_module.statistics_of_first(network, count):
        logits = network(torch.cat([clean, perturbed])).logits
    assert_close(logits, usual(torch.cat([clean, perturbed])).logits)
    if count:
        alone(clean)
    norm, expected = network.layers[1], alone.layers[1]
    assert_close((norm.running_mean, norm.running_var), (expected.running_mean, expected.running_var))
    assert norm.momentum == 0.1
    network(perturbed)
    assert not torch.equal(norm.running_mean, expected.running_mean)


def test_pseudo_labels_by_adjusted_logits() -> None:
    student = nn.Conv2d(3, 3, 1)

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = student

        def forward(self, x: torch.Tensor) -> SegmentorOutput:
            return SegmentorOutput(self.layer(x), x, None)

    teacher = Teacher(Wrapped(), logit_adjustment=0.5)
    mask = torch.tensor([[[0, 0, 0], [0, 0, 1]], [[0, 0, 0], [0, 255, 255]]])
    teacher.count([mask[:1], mask[1:]], 3)
    images, valid = torch.randn(2, 3, 4, 4), torch.ones(2, 4, 4, dtype=torch.bool)
    frequency = torch.tensor([9, 1, 1]) / 10  # a class without labels as if it had one
    expected = (student(images) - 0.5 * frequency.log()[:, None, None]).softmax(dim=1)
    labels, confidence = teacher.label(images, valid)
    assert torch.equal(labels, expected.argmax(dim=1)) and torch.allclose(confidence, expected.amax(dim=1))
