"""Reference parity: our network beside one with U2PL's names and order of operations, written from a description."""

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from pcr_seg.method import PCR, Teacher
from pcr_seg.models.backbones import TimmBackbone
from pcr_seg.models.deeplab import DeepLab
from pcr_seg.models.official import from_official, load_official

SMALL = {"blocks": (3, 4, 6, 3), "widths": (4, 6, 8, 10), "channels": 8, "num_classes": 5}  # a narrow ResNet-50
PAPER = {"blocks": (3, 4, 23, 3), "widths": (64, 128, 256, 512), "channels": 256, "num_classes": 19}


def conv(inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, dilation * (kernel // 2), dilation, bias=bias)


def numbered(layers: dict[int, nn.Module]) -> nn.ModuleDict:
    """Layers named by their number in a Sequential whose other layers hold no tensors."""
    return nn.ModuleDict({str(number): layer for number, layer in layers.items()})


class Block(nn.Module):
    """Bottleneck of a ResNet; stride and dilation are those of the 3x3 convolution."""

    def __init__(self, inputs: int, width: int, stride: int, dilation: int, shortcut: bool) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, width, 1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, stride, dilation), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = conv(width, 4 * width, 1), nn.BatchNorm2d(4 * width)
        if shortcut:
            self.downsample = nn.Sequential(conv(inputs, 4 * width, 1, stride), nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(y)).relu()
        y = self.bn3(self.conv3(y))
        return (y + (self.downsample(x) if hasattr(self, "downsample") else x)).relu()


class Encoder(nn.Module):
    def __init__(self, blocks: tuple[int, ...], widths: tuple[int, ...]) -> None:
        super().__init__()
        self.conv1 = numbered(
            {0: conv(3, 64, 3, stride=2), 1: nn.BatchNorm2d(64),
             3: conv(64, 64, 3), 4: nn.BatchNorm2d(64), 6: conv(64, 128, 3)}
        )  # fmt: skip
        self.bn1 = nn.BatchNorm2d(128)
        strides = (1, 2, 1, 1)
        dilations = ([1] * blocks[0], [1] * blocks[1], [1] + [2] * (blocks[2] - 1), [4, 8, 16])
        inputs = 128
        for i, (width, stride) in enumerate(zip(widths, strides, strict=True)):
            stage = []
            for number, dilation in enumerate(dilations[i]):
                stage.append(Block(inputs, width, stride if number == 0 else 1, dilation, shortcut=number == 0))
                inputs = 4 * width
            setattr(self, f"layer{i + 1}", nn.Sequential(*stage))

    def forward(self, x: Tensor) -> list[Tensor]:
        stem = self.conv1
        x = stem["1"](stem["0"](x)).relu()
        x = stem["4"](stem["3"](x)).relu()
        x = self.bn1(stem["6"](x)).relu()
        x = F.max_pool2d(x, 3, 2, padding=1, ceil_mode=True)
        x1 = self.layer1(x)
        x2 = self.layer2(x1)
        x3 = self.layer3(x2)
        return [x1, x2, x3, self.layer4(x3)]


class Aspp(nn.Module):
    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        norm = functools.partial(nn.BatchNorm2d, channels)
        self.conv1 = numbered({1: conv(inputs, channels, 1), 2: norm()})
        self.conv2 = numbered({0: conv(inputs, channels, 1), 1: norm()})
        self.conv3 = numbered({0: conv(inputs, channels, 3, dilation=12), 1: norm()})
        self.conv4 = numbered({0: conv(inputs, channels, 3, dilation=24), 1: norm()})
        self.conv5 = numbered({0: conv(inputs, channels, 3, dilation=36), 1: norm()})

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.conv1["2"](self.conv1["1"](F.adaptive_avg_pool2d(x, 1))).relu()
        branches = [F.interpolate(pooled, x.shape[-2:], mode="bilinear", align_corners=True)]
        branches += [b["1"](b["0"](x)).relu() for b in (self.conv2, self.conv3, self.conv4, self.conv5)]
        return torch.cat(branches, dim=1)


class Decoder(nn.Module):
    def __init__(self, low: int, high: int, channels: int, num_classes: int) -> None:
        super().__init__()
        norm = functools.partial(nn.BatchNorm2d, channels)
        self.low_conv = numbered({0: conv(low, channels, 1, bias=True), 1: norm()})
        self.aspp = Aspp(high, channels)
        self.head = numbered({0: conv(5 * channels, channels, 3), 1: norm()})
        self.classifier = numbered(
            {0: conv(2 * channels, channels, 3, bias=True), 1: norm(),
             4: conv(channels, channels, 3, bias=True), 5: norm(), 8: conv(channels, num_classes, 1, bias=True)}
        )  # fmt: skip

    def forward(self, x1: Tensor, x4: Tensor) -> tuple[Tensor, Tensor]:
        high = self.head["1"](self.head["0"](self.aspp(x4))).relu()
        low = self.low_conv["1"](self.low_conv["0"](x1)).relu()
        high = F.interpolate(high, low.shape[-2:], mode="bilinear", align_corners=True)
        features = torch.cat([low, high], dim=1)
        y = self.classifier["1"](self.classifier["0"](features)).relu()
        y = self.classifier["5"](self.classifier["4"](y)).relu()
        return self.classifier["8"](y), features


class Official(nn.Module):
    """Whole network: logits, features and, with `auxiliary`, auxiliary logits, all at the decoder's resolution."""

    def __init__(
        self, blocks: tuple[int, ...], widths: tuple[int, ...], channels: int, num_classes: int, auxiliary: bool
    ) -> None:
        super().__init__()
        self.encoder = Encoder(blocks, widths)
        self.decoder = Decoder(4 * widths[0], 4 * widths[3], channels, num_classes)
        if auxiliary:
            layers = {0: conv(4 * widths[2], channels, 3, bias=True), 1: nn.BatchNorm2d(channels)}
            layers[4] = conv(channels, num_classes, 1, bias=True)
            self.auxor = nn.ModuleDict({"aux": numbered(layers)})

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x1, _, x3, x4 = self.encoder(images)
        logits, features = self.decoder(x1, x4)
        if not hasattr(self, "auxor"):
            return logits, features, None
        aux = self.auxor["aux"]
        return logits, features, aux["4"](aux["1"](aux["0"](x3)).relu())


def distinct(network: nn.Module, seed: int = 0) -> nn.Module:
    """Give every tensor values of its own; small residuals, so that 33 blocks on top of each other stay in range."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            tensor.fill_(7)
        elif name.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        elif tensor.ndim == 1:
            values = 0.2 * torch.randn(tensor.shape, generator=generator)
            is_scale = name.endswith("weight")
            tensor.copy_(values + ((0.3 if "bn3" in name else 1.0) if is_scale else 0.0))
        else:
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * tensor[0].numel() ** -0.5)
    return network.eval()


def make_official(auxiliary: bool = False, **sizes: object) -> Official:
    return distinct(Official(**(SMALL | sizes), auxiliary=auxiliary))


def make_ours(auxiliary: bool = False, **sizes: object) -> DeepLab:
    """Our network of these sizes with other values in it."""
    sizes = SMALL | sizes
    name = {6: "resnet50s", 23: "resnet101s"}[sizes["blocks"][2]]
    options = {"channels": sizes["widths"]}
    backbone = TimmBackbone(name, output_stride=8, multi_grid=[4, 8, 16], ceil_mode=True, options=options)
    network = DeepLab(backbone, sizes["num_classes"], channels=sizes["channels"], auxiliary=auxiliary)
    return distinct(network, seed=1)


def wrapped(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """As DistributedDataParallel names them."""
    return {f"module.{name}": tensor for name, tensor in state.items()}


@torch.no_grad()
def assert_same_outputs(ours: DeepLab, official: Official, height: int, width: int) -> None:
    images = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(2))
    output = ours.eval()(images)
    logits, features, auxiliary = official(images)
    assert 0.1 < logits.std() < 10 and (features > 0).float().mean() > 0.2  # so that differences can be seen
    assert_close(output.features, features, rtol=1e-4, atol=1e-4)
    assert_close(output.logits, logits, rtol=1e-4, atol=1e-4)
    assert (output.auxiliary is None) == (auxiliary is None)
    if auxiliary is not None:
        assert_close(output.auxiliary, auxiliary, rtol=1e-4, atol=1e-4)


def test_the_papers_network_is_the_official_one() -> None:
    """Cityscapes' network at full size: 42.62 M parameters in the encoder and 20.0 M in the decoder."""
    with torch.device("meta"):
        empty = make_ours(auxiliary=True, **PAPER), Official(**PAPER, auxiliary=True)
    assert sum(p.numel() for p in empty[1].encoder.parameters()) == 42_623_936
    assert sum(p.numel() for p in empty[1].decoder.parameters()) == 19_998_739
    official, ours = make_official(auxiliary=True, **PAPER), empty[0].to_empty(device="cpu")
    ours.load_state_dict(from_official(official.state_dict(), ours))
    assert_same_outputs(ours, official, 65, 65)


@pytest.mark.parametrize("auxiliary", [False, True])
@pytest.mark.parametrize("size", [(65, 65), (94, 131), (41, 305)])  # the second shows ceil_mode, the third all of ASPP
def test_same_outputs_from_the_same_tensors(auxiliary: bool, size: tuple[int, int]) -> None:
    official, ours = make_official(auxiliary), make_ours(auxiliary)
    renamed = from_official(wrapped(official.state_dict()), ours)
    assert renamed.keys() == ours.state_dict().keys()
    ours.load_state_dict(renamed)
    assert_same_outputs(ours, official, *size)


def test_every_tensor_has_one_official_name() -> None:
    official = make_official(auxiliary=True)
    renamed = from_official(official.state_dict(), make_ours(auxiliary=True))
    given, taken = ({tensor.data_ptr() for tensor in state.values()} for state in (official.state_dict(), renamed))
    assert given == taken


def test_what_u2pl_has_beyond_pcr_is_left_out() -> None:
    state, ours = make_official().state_dict(), make_ours()
    extra = {f"decoder.representation.{i}.weight": torch.zeros(8, 16, 3, 3) for i in (0, 4, 8)}
    assert from_official(state | extra, ours).keys() == ours.state_dict().keys()


@pytest.mark.parametrize("owner", ["proto_net", "relation_net"])
def test_prototypes_come_class_by_class(owner: str) -> None:
    rows = torch.arange(5 * 3.0)[:, None].expand(15, 16)  # row c * K + k
    state = wrapped(make_official().state_dict() | {f"{owner}.proto_list": rows})
    prototypes = from_official(state, make_ours())["bank.prototypes"]
    assert prototypes.shape == (5, 3, 16)
    assert all((prototypes[c, k] == c * 3 + k).all() for c in range(5) for k in range(3))


def without(name: str) -> Callable[[dict], dict]:
    return lambda state: {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without("encoder.layer3.5.bn2.running_var"), "lacks encoder.layer3.5.bn2.running_var and 0 more"),
        (without("decoder.classifier.8.bias"), "lacks decoder.classifier.8.bias and 0 more"),
        (lambda state: {}, "lacks encoder.conv1.0.weight and "),
        (lambda state: state | {"encoder.layer3.6.bn1.bias": 0, "x": 0}, "unknown encoder.layer3.6.bn1.bias and 1"),
        (lambda _: make_official(auxiliary=True).state_dict(), "unknown auxor.aux.0.weight and 8 more"),
        (lambda _: make_official(num_classes=6).state_dict(), r"classifier.8.weight is \(6, 8, 1, 1\), not \(5, "),
        (lambda state: state | {"proto_net.proto_list": torch.zeros(16, 9)}, r"prototypes are \(16, 9\), not \(K for"),
    ],
)  # fmt: skip
def test_another_network_is_refused_by_the_first_tensor(change: Callable[[dict], dict], says: str) -> None:
    state = change(make_official().state_dict())
    with pytest.raises(ValueError, match=says) as caught:
        from_official(state, make_ours())
    assert str(caught.value).isprintable()  # one line


class Holder(nn.Module):
    """What `load_official` fills."""

    def __init__(self, num_prototypes: int) -> None:
        super().__init__()
        self.student, self.teacher = make_ours(), Teacher(make_ours())
        self.method = PCR(5, 16, num_prototypes=num_prototypes)


def test_a_trainers_checkpoint_fills_student_teacher_and_bank(tmp_path: Path) -> None:
    student, teacher = distinct(Official(**SMALL, auxiliary=False), 3), make_official()
    lists = {number: torch.randn(10, 16) for number in range(2)}
    checkpoint = {
        "epoch": 7,
        "model_state": wrapped(student.state_dict() | {"proto_net.proto_list": lists[0]}),
        "teacher_state": wrapped(teacher.state_dict() | {"proto_net.proto_list": lists[1]}),
        "optimizer_state": torch.optim.SGD(student.parameters(), lr=0.1).state_dict(),
        "best_miou": np.mean([0.5, 0.25]),  # a NumPy number, as the trainer writes it
    }
    torch.save(checkpoint, tmp_path / "ckpt.pth")
    module = Holder(num_prototypes=2)
    load_official(module, tmp_path / "ckpt.pth")
    assert_same_outputs(module.student, student, 33, 33)
    assert_same_outputs(module.teacher.network, teacher, 33, 33)
    assert torch.equal(module.method.bank.prototypes, lists[1].reshape(5, 2, 16)) and module.method.bank.is_initialized


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model_state": s}, lambda s: {"teacher_state": s}])
def test_a_file_of_one_network_serves_for_both(tmp_path: Path, wrap: Callable[[dict], dict]) -> None:
    official, module = make_official(), Holder(num_prototypes=2)
    torch.save(wrap(official.state_dict()), tmp_path / "net.pth")
    load_official(module, tmp_path / "net.pth")
    assert_same_outputs(module.student, official, 33, 33)
    assert_same_outputs(module.teacher.network, official, 33, 33)
    assert not module.method.bank.is_initialized


def write_broken(kind: str, path: Path) -> None:
    state = make_official().state_dict()
    if kind == "prototypes":
        torch.save(state | {"proto_net.proto_list": torch.zeros(15, 16)}, path)
    elif kind == "teacher":
        torch.save({"model_state": state, "teacher_state": without("encoder.bn1.bias")(state)}, path)
    elif kind == "code":
        torch.save(make_official(), path)
    elif kind == "garbage":
        path.write_bytes(b"not a checkpoint\n" * 99)


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("prototypes", "holds 3 prototypes for each class; set method.num_prototypes"),
        ("teacher", "lacks encoder.bn1.bias"),
        ("code", "not a PyTorch checkpoint of plain tensors"),
        ("garbage", "not a PyTorch checkpoint of plain tensors"),
        ("missing", "no such file"),
    ],
)
def test_broken_files_are_one_line_and_load_nothing(tmp_path: Path, kind: str, says: str) -> None:
    path, module = tmp_path / "ckpt.pth", Holder(num_prototypes=2)
    write_broken(kind, path)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises((ValueError, FileNotFoundError), match=says) as caught:
        load_official(module, path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and message.isprintable()
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
