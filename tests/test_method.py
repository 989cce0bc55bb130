"""`pcr_seg.method` against naive references, and the edge cases its contracts name."""

import copy
from collections import Counter
from collections.abc import Callable
from itertools import product

import pytest
import references as ref
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pcr_seg import method
from pcr_seg.method import PrototypeBank

Size = tuple[int, ...]

IGNORED = ref.IGNORE_INDEX
BANKS = [(2, 1), (2, 4), (5, 3), (21, 4)]  # classes, prototypes per class
LOGITS = [(1, 2, 9), (2, 4, 5, 7), (3, 21, 3, 5)]
SIZES = [((5, 7), (33, 41)), ((9, 9), (33, 33)), ((1, 1), (8, 8)), ((1, 5), (8, 17)), ((6, 4), (6, 4))]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def random_labels(*shape: int, num_classes: int) -> Tensor:
    labels = torch.randint(num_classes, shape, generator=generator(0))
    return labels.masked_fill(torch.rand(shape, generator=generator(1)) < 0.2, IGNORED)


def make_bank(num_classes: int, num_prototypes: int, dim: int, **options: float) -> PrototypeBank:
    """A bank filled by hand, which the contract says is enough."""
    bank = PrototypeBank(num_classes, num_prototypes, dim, **options)
    bank.prototypes.copy_(randn(num_classes, num_prototypes, dim, seed=7))
    bank.is_initialized.fill_(True)
    return bank


def output_and_gradient(function: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and the gradient that a fixed random upstream gradient gives."""
    leaf = at.detach().clone().requires_grad_()
    output = function(leaf)
    return output.detach(), torch.autograd.grad(output, leaf, randn(*output.shape, seed=99))[0]


@pytest.mark.parametrize(("num_classes", "num_prototypes"), BANKS)
@pytest.mark.parametrize("leading", [(), (7,), (1, 3, 2)])
def test_bank_logits(num_classes: int, num_prototypes: int, leading: Size) -> None:
    bank, features = make_bank(num_classes, num_prototypes, 6, temperature=0.2), randn(*leading, 6)
    expected = output_and_gradient(lambda x: ref.bank_logits(bank.prototypes, x, 0.2), features)
    assert_close(output_and_gradient(bank, features), expected, rtol=1e-5, atol=1e-5)


def test_dead_prototypes_take_no_part() -> None:
    bank, features = make_bank(3, 2, 4), -torch.rand(5, 4, generator=generator(0)) - 0.1
    bank.prototypes.abs_()  # every living cosine is negative, so a dead one that counts as 0 would win
    bank.prototypes[0, 1], bank.prototypes[2] = 0, 0
    assert_close(bank(features), ref.bank_logits(bank.prototypes, features, 0.1))


@pytest.mark.parametrize(("num_classes", "num_prototypes"), BANKS)
@pytest.mark.parametrize(("small", "size"), SIZES)
def test_dense_logits(num_classes: int, num_prototypes: int, small: Size, size: Size) -> None:
    bank, features = make_bank(num_classes, num_prototypes, 8), randn(2, 8, *small).relu()
    bank.prototypes[0, -1], features[0, :, 0, 0] = 0, 0
    logits = bank.dense_logits(features, size)
    assert_close(logits, ref.dense_logits(bank.prototypes, features, size, 0.1), rtol=0, atol=1e-4)
    assert_close(logits, bank(ref.upsample(features, size).movedim(1, -1)).movedim(-1, 1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_bank_computes_in_single_precision(dtype: torch.dtype, autocast: bool) -> None:
    bank, labels = make_bank(3, 2, 8), random_labels(12, num_classes=3)
    features, dense = randn(12, 8).to(dtype), randn(1, 8, 3, 4).relu().to(dtype)
    before = bank.prototypes.clone()
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        logits, dense_logits = bank(features), bank.dense_logits(dense, (9, 10))
        bank.update(features, labels)
    assert logits.dtype == dense_logits.dtype == bank.prototypes.dtype == torch.float32
    assert_close(logits, ref.bank_logits(before, features.float(), 0.1), rtol=1e-5, atol=1e-5)
    assert_close(dense_logits, ref.dense_logits(before, dense.float(), (9, 10), 0.1), rtol=0, atol=1e-4)
    assert_close(bank.prototypes, ref.bank_update(before, features.float(), labels, 0.99), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("num_classes", "num_prototypes"), BANKS)
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99])
def test_update(num_classes: int, num_prototypes: int, momentum: float) -> None:
    bank = make_bank(num_classes, num_prototypes, 6, momentum=momentum)
    bank.prototypes[0, 0] = 0
    before = bank.prototypes.clone()
    features, labels = 10 * randn(40, 6), random_labels(40, num_classes=num_classes)
    labels[labels == num_classes - 1] = IGNORED  # one class has no pixel at all
    bank.update(features, labels)
    expected = ref.bank_update(before, features, labels, momentum)
    untouched = (expected == before).all(dim=2)
    assert not untouched.all()
    assert_close(bank.prototypes, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(bank.prototypes[untouched], before[untouched])


@pytest.mark.parametrize("num_points", [0, 5])
def test_update_without_labels_changes_nothing(num_points: int) -> None:
    bank = make_bank(3, 2, 4)
    before = bank.prototypes.clone()
    bank.update(randn(num_points, 4), torch.full((num_points,), IGNORED))
    assert torch.equal(bank.prototypes, before)


def test_update_moves_one_of_two_equal_prototypes() -> None:
    bank = make_bank(2, 2, 3, momentum=0.5)
    bank.prototypes[0] = torch.tensor([1.0, 0.0, 0.0])
    bank.update(torch.tensor([[2.0, 0.0, 0.0], [4.0, 2.0, 0.0]]), torch.zeros(2, dtype=torch.long))
    rows = sorted(bank.prototypes[0].tolist())
    assert rows == [[1, 0, 0], [2, 0.5, 0]]


def test_update_before_backward_is_safe_and_leaves_no_graph() -> None:
    bank, features = make_bank(3, 2, 4, momentum=0.5), randn(8, 4).requires_grad_()
    losses = [(bank(features) * (features @ bank.prototypes[0].T).sum()).sum() for _ in range(2)]
    losses[0].backward()
    expected, features.grad = features.grad, None
    bank.update(features, torch.arange(8) % 3)
    losses[1].backward()
    assert torch.equal(features.grad, expected)
    assert not bank.prototypes.requires_grad
    assert not list(bank.parameters())


def test_bank_state_survives_a_round_trip() -> None:
    bank, other = make_bank(3, 2, 4), PrototypeBank(3, 2, 4)
    bank.update(randn(8, 4), torch.arange(8) % 3)
    state, was_initialized = bank.state_dict(), other.is_initialized.item()
    assert {name: (value.dtype, tuple(value.shape)) for name, value in state.items()} == {
        "prototypes": (torch.float32, (3, 2, 4)),
        "is_initialized": (torch.bool, ()),
    }
    other.load_state_dict(state)
    assert (was_initialized, other.is_initialized.item()) == (False, True)
    assert torch.equal(other.prototypes, bank.prototypes)


def worst_match(centers: Tensor, points: Tensor) -> float:
    """The largest distance from a row of either to the nearest row of the other."""
    distances = (centers[:, None] - points[None]).norm(dim=-1)
    return max(distances.amin(dim=0).max().item(), distances.amin(dim=1).max().item())


@pytest.mark.parametrize(("k", "seed"), [*product([1, 2, 4, 6], range(3))])
def test_kmeans_centers_are_raw_means_of_directions(k: int, seed: int) -> None:
    magnitudes = torch.logspace(-1, 1.5, 20)  # so far apart that only the cosine finds the groups
    groups = (torch.eye(8)[:k, None] + 0.05 * randn(k, 20, 8, seed=seed)) * magnitudes[:, None]
    points = groups.reshape(-1, 8)[torch.randperm(20 * k, generator=generator(seed))]
    assert worst_match(method.kmeans(points, k, generator=generator(seed)), groups.mean(dim=1)) < 1e-4


@pytest.mark.parametrize("copies", [1, 5])
@pytest.mark.parametrize(("num_distinct", "k"), [(1, 1), (1, 4), (2, 3), (3, 8)])
def test_kmeans_of_few_distinct_points_copies_them(num_distinct: int, k: int, copies: int) -> None:
    distinct = torch.eye(5)[:num_distinct] * 4 + randn(num_distinct, 5)
    centers = method.kmeans(distinct.repeat(copies, 1), k, generator=generator(0))
    assert centers.shape == (k, 5)
    assert worst_match(centers, distinct) < 0.1


def test_kmeans_of_one_direction_is_never_nan_or_zero() -> None:
    points = torch.arange(6.0)[:, None].expand(6, 3)  # the origin among them
    centers = method.kmeans(points, 3, generator=generator(0))
    assert centers.isfinite().all()
    assert centers.any(dim=1).all()


def test_kmeans_without_points_returns_zeros() -> None:
    assert torch.equal(method.kmeans(torch.zeros(0, 5), 3), torch.zeros(3, 5))


@pytest.mark.parametrize("size", [(8, 8, 4), (33, 33, 4), (33, 47, 8), (13, 9, 3), (5, 5, 5), (513, 513, 32)])
def test_jittered_grid_has_one_point_per_cell(size: Size) -> None:
    assert ref.is_jittered_grid(method.jittered_grid(*size), *size)


def test_jittered_grid_is_uniform_and_independent_per_cell() -> None:
    stream = generator(0)
    grids = torch.stack([method.jittered_grid(7, 5, 2, generator=stream) for _ in range(600)])
    offsets = grids - torch.tensor([[0, 0], [0, 2], [3, 0], [3, 2]])
    counts = Counter((cell, *offset) for grid in offsets.tolist() for cell, offset in enumerate(grid))
    assert counts.keys() == set(product(range(4), range(3), range(2)))
    assert all(50 < count < 150 for count in counts.values())  # five sigma around 100
    assert len(offsets[:, :2, 0].unique(dim=0)) == 9  # neighbours do not share their row offset


@pytest.mark.parametrize(("small", "size"), [*SIZES, ((1, 3), (1, 9)), ((95, 125), (375, 500))])
def test_sample_features(small: Size, size: Size) -> None:
    corners = torch.tensor([[0, 0], [0, size[1] - 1], [size[0] - 1, 0], [size[0] - 1, size[1] - 1]])
    inside = (torch.rand(30, 2, generator=generator(1)) * torch.tensor(size)).long()
    points, features = torch.cat([corners, inside]), randn(2, 3, *small)
    expected = output_and_gradient(lambda x: ref.sample_features(x, points, size), features)
    actual = output_and_gradient(lambda x: method.sample_features(x, points, size), features)
    assert_close(actual, expected, rtol=1e-6, atol=1e-6)


DRAWS = [
    lambda g: method.jittered_grid(64, 64, 8, generator=g),
    lambda g: method.cutmix_boxes(4, 65, 65, generator=g),
    lambda g: method.kmeans(randn(100, 8), 5, restarts=1, iterations=1, generator=g),
]


@pytest.mark.parametrize("draw", DRAWS)
def test_the_generator_alone_decides(draw: Callable[[torch.Generator], Tensor]) -> None:
    state = torch.get_rng_state()
    first, again, other = draw(generator(1)), draw(generator(1)), draw(generator(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("shape", LOGITS)
def test_cross_entropy(shape: Size) -> None:
    logits, labels = 3 * randn(*shape), random_labels(shape[0], *shape[2:], num_classes=shape[1])
    expected = output_and_gradient(lambda x: ref.cross_entropy(x, labels), logits)
    assert_close(output_and_gradient(lambda x: method.cross_entropy(x, labels), logits), expected)


@pytest.mark.parametrize("shape", LOGITS)
@pytest.mark.parametrize("min_kept", [1, 7, 30, 1000])
@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_ohem_cross_entropy(shape: Size, min_kept: int, threshold: float) -> None:
    labels = random_labels(shape[0], *shape[2:], num_classes=shape[1])
    answers = nn.functional.one_hot(labels.clamp(max=shape[1] - 1), shape[1]).movedim(-1, 1)
    logits = 2 * randn(*shape) + 4 * answers  # mostly right, so that now the threshold decides, now min_kept
    options = {"threshold": threshold, "min_kept": min_kept}
    expected = output_and_gradient(lambda x: ref.ohem_cross_entropy(x, labels, **options), logits)
    actual = output_and_gradient(lambda x: method.ohem_cross_entropy(x, labels, **options), logits)
    assert_close(actual, expected)


def test_ohem_counts_valid_pixels_only_and_keeps_ties() -> None:
    logits, labels = (
        torch.tensor([2.0, 0.0])[None, :, None].repeat(1, 1, 6),
        torch.tensor([[0, 0, 0, 1, IGNORED, IGNORED]]),
    )
    easy, hard = torch.tensor([-2.0, 2.0]).exp().log1p()  # three pixels tie at probability 0.88, one has 0.12
    plain = (3 * easy + hard) / 4
    assert_close(method.ohem_cross_entropy(logits, labels, min_kept=5), plain)  # fewer valid pixels than that
    assert_close(method.ohem_cross_entropy(logits, labels, min_kept=2), plain)  # the second has twins
    assert_close(method.ohem_cross_entropy(logits, labels, min_kept=1), hard)


@pytest.mark.parametrize("shape", LOGITS)
@pytest.mark.parametrize("threshold", [0.0, 0.65, 1.1])
def test_consistency_loss(shape: Size, threshold: float) -> None:
    logits, labels = 3 * randn(*shape), random_labels(shape[0], *shape[2:], num_classes=shape[1])
    confidence = torch.rand(labels.shape, generator=generator(3))
    confidence[0, ..., :3] = threshold  # just enough
    expected = output_and_gradient(lambda x: ref.consistency_loss(x, labels, confidence, threshold), logits)
    actual = output_and_gradient(lambda x: method.consistency_loss(x, labels, confidence, threshold), logits)
    assert_close(actual, expected)


LOSSES = [
    method.cross_entropy,
    method.ohem_cross_entropy,
    lambda logits, labels: method.ohem_cross_entropy(logits, labels, min_kept=1),
    lambda logits, labels: method.consistency_loss(logits, labels, torch.ones(labels.shape), 0.5),
]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("shape", LOGITS)
def test_all_ignored_is_zero_with_a_graph(loss: Callable[[Tensor, Tensor], Tensor], shape: Size) -> None:
    logits, labels = randn(*shape).requires_grad_(), torch.full((shape[0], *shape[2:]), IGNORED)
    value = loss(logits, labels)
    value.backward()
    assert torch.equal(value, torch.tensor(0.0))
    assert torch.equal(logits.grad, torch.zeros(shape))


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


@pytest.mark.parametrize("shape", LOGITS)
def test_class_confidence_and_what_it_makes_of_a_threshold(shape: Size) -> None:
    labels = random_labels(shape[0], *shape[2:], num_classes=shape[1])
    labels[labels == 1] = IGNORED  # a class that no pixel was given
    confidence = torch.rand(labels.shape, generator=generator(3))
    before = torch.linspace(0.5, 1.0, shape[1])
    average = method.class_confidence(before, labels, confidence, momentum=0.9)
    relative = method.relative_confidence(confidence, labels, average)
    for c in range(shape[1]):
        given = [float(x) for x, label in zip(confidence.flatten(), labels.flatten(), strict=True) if label == c]
        expected = 0.9 * float(before[c]) + 0.1 * sum(given) / len(given) if given else float(before[c])
        assert float(average[c]) == pytest.approx(expected, rel=1e-5)
        # Asking 0.8 of the relative confidence is asking 0.8 * average / largest average of the confidence itself.
        assert_close(relative[labels == c] * average[c] / average.max(), confidence[labels == c])
    assert not relative[labels == IGNORED].any()


@pytest.mark.parametrize("shape", LOGITS)
def test_balanced_weights_give_each_class_the_same_share(shape: Size) -> None:
    labels = random_labels(shape[0], *shape[2:], num_classes=shape[1])
    labels[labels == 0] = 1
    weights = method.balance(labels, shape[1])
    shares = [weights[labels == c].sum() for c in range(shape[1]) if (labels == c).any()]
    assert_close(torch.stack(shares), torch.full((len(shares),), (labels != IGNORED).sum() / len(shares)))
    assert not weights[labels == IGNORED].any()
    logits = randn(*shape)
    by_class = [
        ref.cross_entropy(logits, labels.where(labels == c, IGNORED)) for c in range(shape[1]) if (labels == c).any()
    ]
    assert_close(method.cross_entropy(logits, labels, weights), sum(by_class) / len(by_class))
    assert_close(method.balanced_cross_entropy(logits, labels, power=1.0), sum(by_class) / len(by_class))
    assert_close(method.balanced_cross_entropy(logits, labels, power=0.0), method.cross_entropy(logits, labels))


@pytest.mark.parametrize("size", [(33, 33), (32, 64), (65, 47), (20, 7)])
def test_cutmix_boxes_cover_half_the_image(size: Size) -> None:
    boxes = method.cutmix_boxes(16, *size, generator=generator(0))
    assert (boxes.shape, boxes.dtype) == ((16, 1, *size), torch.bool)
    for _, _, height, width in map(ref.rectangle, boxes[:, 0]):
        assert size[1] // 2 + 1 <= width <= size[1] - 1
        assert abs(height - size[0] * size[1] / 2 / width) <= 0.5


def test_cutmix_boxes_are_uniform_in_width_and_position() -> None:
    counts = Counter(map(ref.rectangle, method.cutmix_boxes(2000, 8, 7, generator=generator(0))[:, 0]))
    shapes = [(7, 4), (6, 5), (5, 6)]
    assert counts.keys() == {(y, x, h, w) for h, w in shapes for y, x in product(range(9 - h), range(8 - w))}
    assert all(30 < count < 140 for count in counts.values())  # five sigma around 2000 / 3 / (8 or 9)


@pytest.mark.parametrize("size", [*product([1, 2, 3], repeat=2)])
def test_cutmix_boxes_of_tiny_images_stay_in_bounds(size: Size) -> None:
    boxes = method.cutmix_boxes(8, *size, generator=generator(0))
    assert (boxes.shape, boxes.dtype) == ((8, 1, *size), torch.bool)
    assert all(map(ref.rectangle, boxes[:, 0]))


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("channels", [(), (3,), (2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.long])
def test_paste(batch: int, channels: Size, dtype: torch.dtype) -> None:
    x = (100 * randn(batch, *channels, 9, 7)).to(dtype)
    before, boxes = x.clone(), method.cutmix_boxes(batch, 9, 7, generator=generator(0))
    assert_close(method.paste(x, boxes), ref.paste(before, boxes), rtol=0, atol=0)
    assert torch.equal(x, before)


@pytest.mark.parametrize("seed", range(5))
def test_class_mask_draws_half_of_the_classes_shown(seed: int) -> None:
    labels = torch.stack([random_labels(6, 7, num_classes=5), torch.full((6, 7), IGNORED), torch.full((6, 7), 3)])
    drawn = method.class_mask(labels, 5, generator=generator(seed))[:, 0]
    for mask, image in zip(drawn, labels, strict=True):
        shown = set(image.unique().tolist()) - {IGNORED}
        inside, outside = set(image[mask].tolist()), set(image[~mask].tolist()) - {IGNORED}
        assert inside | outside == shown and not inside & outside and len(inside) == -(-len(shown) // 2)


def test_class_mask_draws_every_class_alike() -> None:
    labels = torch.tensor([0, 1, 2, 4]).view(1, 2, 2).expand(4000, 2, 2)
    shares = method.class_mask(labels, 6, generator=generator(0))[:, 0].float().mean(0)
    assert_close(shares, torch.full((2, 2), 0.5), atol=0.03, rtol=0)


def make_network(seed: int) -> nn.Module:
    """Parameters, float buffers, an integer and a boolean buffer, all different for seeds 1 and 2."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    for i, parameter in enumerate(network.parameters()):
        nn.init.constant_(parameter, 0.1 * seed + i)
    network.register_buffer("flag", torch.tensor(seed == 2))
    for _ in range(seed):
        network(randn(2, 3, 8, 8))
    return network


@pytest.mark.parametrize("rule", ["default", "copy", "average", "keep"])
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
    with method.batchnorm_follows(network):
        assert_close(network(x), expected)
    trained = before.train()
    trained(conv(x))  # on one layer the statistics are those of training mode
    assert_close(norm.running_mean, trained.running_mean)
    assert_close(norm.running_var, trained.running_var)
    after = norm.running_mean.clone()
    network(randn(4, 3, 8, 8, seed=1))
    assert_close(norm.running_mean, after)
