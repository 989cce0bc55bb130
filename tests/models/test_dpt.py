"""DPT beside a plain writing of it, and on images of any size."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from pcr_seg.models.backbones import TimmBackbone
from pcr_seg.models.dpt import DPT

VIT = {"depth": 4, "embed_dim": 32, "num_heads": 2}


def make(name: str = "vit_small_patch14_dinov2", **options) -> DPT:
    torch.manual_seed(0)
    return DPT(TimmBackbone(name, options=VIT), 5, **{"channels": 8, "projections": [4, 6, 8, 12]} | options)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=True)


def residual(w: dict, at: str, x: Tensor) -> Tensor:
    y = F.conv2d(x.clamp(min=0), w[f"{at}.first.weight"], w[f"{at}.first.bias"], padding=1)
    return F.conv2d(y.clamp(min=0), w[f"{at}.second.weight"], w[f"{at}.second.bias"], padding=1) + x


def naive(w: dict, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Level by level, as the published file describes it."""
    a, b, c, d = (F.conv2d(x, w[f"projected.{i}.weight"], w[f"projected.{i}.bias"]) for i, x in enumerate(maps))
    a = F.conv_transpose2d(a, w["resized.0.weight"], w["resized.0.bias"], stride=4)
    b = F.conv_transpose2d(b, w["resized.1.weight"], w["resized.1.bias"], stride=2)
    d = F.conv2d(d, w["resized.3.weight"], w["resized.3.bias"], stride=2, padding=1)
    a, b, c, d = (F.conv2d(x, w[f"narrowed.{i}.weight"], padding=1) for i, x in enumerate((a, b, c, d)))

    def out(level: int, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = resize(residual(w, f"fusions.{level}.both", x), size)
        return F.conv2d(x, w[f"fusions.{level}.out.weight"], w[f"fusions.{level}.out.bias"])

    path = out(3, d, c.shape[-2:])
    path = out(2, path + residual(w, "fusions.2.level", c), b.shape[-2:])
    path = out(1, path + residual(w, "fusions.1.level", b), a.shape[-2:])
    path = out(0, path + residual(w, "fusions.0.level", a), (2 * a.shape[-2], 2 * a.shape[-1]))
    features = F.conv2d(path, w["features.0.weight"], w["features.0.bias"], padding=1).clamp(min=0)
    return F.conv2d(features, w["linear_head.weight"], w["linear_head.bias"]), features


@pytest.mark.parametrize("size", [(42, 56), (14, 14)])
def test_it_equals_a_plain_writing(size: tuple[int, int]) -> None:
    network = make().eval()
    picture = torch.randn(2, 3, *size)
    with torch.no_grad():
        found = network(picture)
        logits, features = naive(network.state_dict(), network.backbone(picture, (-4, -3, -2, -1)))
    assert_close(found.logits, logits, rtol=1e-5, atol=1e-6)
    assert_close(found.features, features, rtol=1e-5, atol=1e-6)
    assert found.logits.shape == (2, 5, size[0] // 14 * 8, size[1] // 14 * 8)


@pytest.mark.parametrize("size", [(50, 61), (15, 20), (3, 5)])
def test_images_are_resized_to_the_nearest_patches(size: tuple[int, int]) -> None:
    network = make().eval()
    rounded = tuple(max(1, int(side / 14 + 0.5)) * 14 for side in size)
    picture = torch.randn(1, 3, *size)
    with torch.no_grad():
        assert_close(network(picture).logits, network(resize(picture, rounded)).logits)


@pytest.mark.parametrize(
    ("width", "channels", "projections"),
    [(384, 64, [48, 96, 192, 384]), (768, 128, [96, 192, 384, 768]), (1024, 256, [256, 512, 1024, 1024])],
)
def test_widths_are_the_published_ones(width: int, channels: int, projections: list[int]) -> None:
    with torch.device("meta"):
        backbone = TimmBackbone("vit_small_patch14_dinov2", options=VIT | {"embed_dim": width, "num_heads": 4})
        network = DPT(backbone, 21)
    assert (network.channels, network.projections, network.feature_dim) == (channels, projections, channels)
    assert not any("norm" in name for name, _ in network.named_modules() if not name.startswith("backbone"))


def test_every_parameter_trains() -> None:
    network = make()
    network(torch.randn(1, 3, 28, 28)).logits.square().mean().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None]


def test_a_pyramid_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match="wants four maps of a plain ViT, and test_resnet has maps") as caught:
        DPT(TimmBackbone("test_resnet"), 3)
    assert "\n" not in str(caught.value)
