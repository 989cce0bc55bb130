"""The decoder: the paper's layers and their order, by what each of them does to its output."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from pcr_seg.models.backbones import TimmBackbone
from pcr_seg.models.deeplab import ASPP, DeepLab, pointwise_by_onednn

CLASSES, CHANNELS = 5, 8


def make(**options) -> DeepLab:
    torch.manual_seed(0)
    return DeepLab(TimmBackbone("test_resnet", output_stride=8), CLASSES, **{"channels": CHANNELS} | options)


def images(*size: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0))


def paper(**options) -> DeepLab:
    """The paper's network without memory for its weights."""
    with torch.device("meta"):
        backbone = TimmBackbone("resnet101s", output_stride=8, multi_grid=[4, 8, 16], ceil_mode=True)
        return DeepLab(backbone, 21, **options).eval()


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_papers_decoder_has_the_papers_size() -> None:
    network = paper()
    assert count(network) - count(network.backbone) == 19_999_253
    auxiliary = 1024 * 256 * 9 + 256 + 2 * 256 + 256 * 21 + 21
    assert count(paper(auxiliary=True)) - count(network) == auxiliary
    assert count(paper(pooled_norm=False)) - count(network) == 256 - 2 * 256  # a bias instead of a BatchNorm
    assert network.feature_dim == 512 and network.num_classes == 21


def test_the_papers_decoder_has_the_papers_layers() -> None:
    parameters = {
        name: tuple(parameter.shape)
        for name, parameter in paper(auxiliary=True).named_parameters()
        if not name.startswith("backbone.") and parameter.ndim == 4
    }
    biases = {name for name, _ in paper(auxiliary=True).named_parameters() if f"{name[:-4]}weight" in parameters}
    assert parameters == {
        "aspp.pooled.0.weight": (256, 2048, 1, 1),
        "aspp.branches.0.0.weight": (256, 2048, 1, 1),
        "aspp.branches.1.0.weight": (256, 2048, 3, 3),
        "aspp.branches.2.0.weight": (256, 2048, 3, 3),
        "aspp.branches.3.0.weight": (256, 2048, 3, 3),
        "head.0.weight": (256, 1280, 3, 3),
        "low_conv.0.weight": (256, 256, 1, 1),
        "linear_head.0.0.weight": (256, 512, 3, 3),
        "linear_head.1.0.weight": (256, 256, 3, 3),
        "linear_head.2.weight": (21, 256, 1, 1),
        "auxiliary_head.0.0.weight": (256, 1024, 3, 3),
        "auxiliary_head.1.weight": (21, 256, 1, 1),
    }
    assert biases == {
        "low_conv.0.bias",
        *(f"linear_head.{i}.bias" for i in ("0.0", "1.0", "2")),
        *(f"auxiliary_head.{i}.bias" for i in ("0.0", "1")),
    }


@pytest.mark.parametrize(("size", "low", "middle"), [(513, 129, 65), (769, 193, 97), (375, 95, 48)])
def test_the_papers_features_have_the_papers_shape(size: int, low: int, middle: int) -> None:
    output = paper(auxiliary=True)(torch.empty(1, 3, size, size, device="meta"))
    assert output.features.shape == (1, 512, low, low)
    assert output.logits.shape == (1, 21, low, low)
    assert output.auxiliary.shape == (1, 21, middle, middle)


@pytest.mark.parametrize("rates", [(12, 24, 36), (6, 12, 18)])
def test_aspp_branches_reach_as_far_as_their_rates(rates: tuple[int, ...]) -> None:
    """A single pixel spreads over the whole map, to itself, and to the corners of three squares, in this order."""
    aspp = ASPP(1, 1, rates, pooled_norm=True).eval()
    for convolution in (module for module in aspp.modules() if isinstance(module, nn.Conv2d)):
        nn.init.ones_(convolution.weight)
    point = torch.zeros(1, 1, 81, 81)
    point[..., 40, 40] = 1
    pooled, *branches = aspp(point)[0]
    assert_close(pooled, torch.full((81, 81), 1 / 81**2))
    for branch, rate in zip(branches, (0, *rates), strict=True):
        rows, columns = branch.nonzero().T.tolist()
        steps = {40 - rate, 40, 40 + rate}
        assert set(zip(rows, columns, strict=True)) == {(row, column) for row in steps for column in steps}


@pytest.mark.parametrize("place", range(5))
def test_aspp_concatenates_its_branches_in_order(place: int) -> None:
    aspp, x = ASPP(6, 3, (2, 4, 6), pooled_norm=True).eval(), torch.randn(2, 6, 9, 9)
    before = aspp(x)
    branch = [aspp.pooled, *aspp.branches][place]
    nn.init.constant_(branch[1].bias, -100)  # nothing passes its ReLU
    after = aspp(x)
    own = slice(3 * place, 3 * place + 3)
    assert before[:, own].any() and not after[:, own].any()
    others = torch.ones(15, dtype=torch.bool)
    others[own] = False
    assert torch.equal(before[:, others], after[:, others])


def test_features_are_low_level_first() -> None:
    network, batch = make().eval(), images(65, 49)
    low, _, high = network.backbone(batch)
    features = network(batch).features
    assert features.shape == (2, network.feature_dim, 17, 13) == (2, 2 * CHANNELS, 17, 13)
    assert torch.equal(features[:, :CHANNELS], network.low_conv(low))
    deep = network.head(network.aspp(high))
    upsampled = F.interpolate(deep, (17, 13), mode="bilinear", align_corners=True)
    assert torch.equal(features[:, CHANNELS:], upsampled)
    # align_corners: the corners are the small map's own
    assert_close(features[:, CHANNELS:, [0, 0, -1, -1], [0, -1, 0, -1]], deep[:, :, [0, 0, -1, -1], [0, -1, 0, -1]])


@pytest.mark.parametrize("training", [False, True])
def test_features_are_not_negative(training: bool) -> None:
    features = make().train(training)(images(33, 33)).features
    assert features.min() == 0 and features.max() > 0


def test_logits_are_of_the_features() -> None:
    network, batch = make().eval(), images(33, 33)
    output = network(batch)
    assert torch.equal(output.logits, network.linear_head(output.features))
    assert output.auxiliary is None


def test_auxiliary_head_is_on_the_last_but_one_map() -> None:
    network, batch = make(auxiliary=True).eval(), images(65, 33)
    _, middle, high = network.backbone(batch)
    assert middle.shape[1] != high.shape[1]  # so the head fits one of them only
    output = network(batch)
    assert output.auxiliary.shape == (2, CLASSES, 9, 5)
    assert torch.equal(output.auxiliary, network.auxiliary_head(middle))


@pytest.mark.parametrize("size", [(65, 65), (33, 47), (64, 50), (17, 90), (9, 9)])
@pytest.mark.parametrize("options", [{}, {"auxiliary": True, "pooled_norm": False, "rates": [6, 12]}])
def test_any_image_size(size: tuple[int, int], options: dict) -> None:
    network = make(**options).eval()
    output = network(images(*size))
    low = tuple(-(-side // 4) for side in size)
    assert output.features.shape == (2, 2 * CHANNELS, *low)
    assert output.logits.shape == (2, CLASSES, *low)
    assert output.logits.isfinite().all()


def norms(network: nn.Module) -> set[str]:
    return {name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)}


def test_pooled_norm_concerns_that_branch_alone() -> None:
    assert norms(make()) - norms(make(pooled_norm=False)) == {"aspp.pooled.1"}
    assert norms(make(pooled_norm=False)) < norms(make())
    assert make(pooled_norm=False).aspp.pooled[0].bias is not None


def test_without_pooled_norm_a_single_image_trains() -> None:
    single = images(33, 33, batch=1)
    assert make(pooled_norm=False).train()(single).logits.isfinite().all()
    with pytest.raises(ValueError, match="more than 1 value per channel"):  # what the option is for
        make(pooled_norm=True).train()(single)


@pytest.mark.parametrize("auxiliary", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_dropout_is_after_each_3x3_stage_of_decoder_and_head(dropout: float, auxiliary: bool) -> None:
    dropouts = {
        name: module.p
        for name, module in make(dropout=dropout, auxiliary=auxiliary).named_modules()
        if isinstance(module, nn.Dropout2d)
    }
    expected = ["head.3", "linear_head.0.3", "linear_head.1.3"] + ["auxiliary_head.0.3"] * auxiliary
    assert dropouts == (dict.fromkeys(expected, dropout) if dropout else {})


@pytest.mark.parametrize("pooled_norm", [False, True])
@pytest.mark.parametrize("auxiliary", [False, True])
def test_gradient_reaches_every_parameter(pooled_norm: bool, auxiliary: bool) -> None:
    network = make(pooled_norm=pooled_norm, auxiliary=auxiliary).train()
    output = network(images(65, 65))
    loss = output.logits.square().sum() + (output.auxiliary.square().sum() if auxiliary else 0)
    loss.backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    decoder = {name: p.grad for name, p in network.named_parameters() if not name.startswith("backbone.")}
    assert [name for name, gradient in decoder.items() if not gradient.any()] == []
    assert network.backbone.net.conv1[0].weight.grad.any()


def test_gradient_of_the_features_reaches_decoder_and_backbone_but_not_the_head() -> None:
    network = make().train()
    network(images(33, 33)).features.square().sum().backward()
    without = {name for name, parameter in network.named_parameters() if parameter.grad is None}
    assert without == {name for name, _ in network.named_parameters() if name.startswith("linear_head.")}


def test_gradient_of_the_auxiliary_logits_reaches_the_backbone() -> None:
    network = make(auxiliary=True).train()
    network(images(33, 33)).auxiliary.square().sum().backward()
    assert network.auxiliary_head[0][0].weight.grad.any() and network.backbone.net.conv1[0].weight.grad.any()
    assert network.aspp.pooled[0].weight.grad is None and network.linear_head[2].weight.grad is None


def test_encoding_and_decoding_is_the_whole() -> None:
    network, batch = make(channels=32).eval(), images(33, 33)
    maps = network.encode(batch)
    assert [x.shape[1] for x in maps] == network.backbone.channels
    for part, whole in zip(network.decode(maps)[:2], network(batch)[:2], strict=True):
        assert torch.equal(part, whole)


def test_parameter_groups_hold_every_trained_parameter_once() -> None:
    network = make(channels=32, head_lr_multiplier=10.0)
    next(network.backbone.parameters()).requires_grad_(False)
    backbone, heads = network.parameter_groups(0.1)
    assert (backbone["lr"], heads["lr"]) == (0.1, 1.0)
    of_backbone = {id(p) for p in network.backbone.parameters()}
    assert {id(p) for p in backbone["params"]} < of_backbone and not of_backbone & {id(p) for p in heads["params"]}
    assert len(backbone["params"]) + len(heads["params"]) == sum(p.requires_grad for p in network.parameters())


def test_pointwise_by_onednn_computes_the_same() -> None:
    network = DeepLab(TimmBackbone("mobilenetv2_035", output_stride=16), CLASSES, channels=CHANNELS, dropout=0)
    network.eval().to(memory_format=torch.channels_last)  # BatchNorm of random weights' few values magnifies rounding
    other = copy.deepcopy(network)
    pointwise_by_onednn(other)
    for net in (network, other):
        net(images(33, 41)).logits.square().sum().backward()
    assert_close(other(images(33, 41)).logits, network(images(33, 41)).logits)
    for ours, theirs in zip(other.parameters(), network.parameters(), strict=True):
        assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-3)
