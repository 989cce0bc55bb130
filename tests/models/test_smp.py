"""Decoders of segmentation_models_pytorch on this project's backbones."""

import pytest
import torch

from pcr_seg.models.backbones import TimmBackbone
from pcr_seg.models.smp import SMP, SMPEncoder

smp = pytest.importorskip("segmentation_models_pytorch", reason="needs the smp extra")


ARCHS = ["unet", "unetplusplus", "fpn", "upernet", "segformer", "linknet", "manet", "pspnet"]


@pytest.mark.parametrize("arch", ARCHS)
def test_every_decoder_predicts_images_of_any_size(arch: str) -> None:
    network = SMP(TimmBackbone("test_resnet"), 4, arch=arch).eval()
    with torch.no_grad():
        output = network(torch.randn(2, 3, 70, 95))
    assert output.logits.shape[:2] == (2, 4) and output.features.shape[1] == network.feature_dim
    assert output.logits.shape[-2:] == output.features.shape[-2:] and output.logits.std() > 0
    if arch == "unet":
        assert output.logits.shape[-2:] == (64, 96)


def test_it_equals_the_packages_own_network() -> None:
    """With the same weights, on an encoder that both have."""
    own = smp.create_model("unet", "tu-resnet18", None, 3, 4).eval()
    network = SMP(TimmBackbone("resnet18"), 4).eval()
    encoder = {name.removeprefix("encoder.model."): value for name, value in own.state_dict().items()}
    network.backbone.net.load_state_dict({name: encoder[name] for name in network.backbone.net.state_dict()})
    network.decoder.load_state_dict(own.decoder.state_dict())
    network.linear_head.load_state_dict(own.segmentation_head[0].state_dict())
    picture = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(network(picture).logits, own(picture))


@pytest.mark.parametrize("arch", ["unet", "upernet", "segformer"])
def test_a_pyramid_without_stride_2_and_an_encoder_of_the_package_will_do(arch: str) -> None:
    for backbone in (TimmBackbone("mambaout_femto"), SMPEncoder("mit_b0")):
        network = SMP(backbone, 3, arch=arch)
        network(torch.randn(2, 3, 64, 64)).logits.square().mean().backward()
        idle = [name for name, p in network.named_parameters() if p.grad is None]
        assert not [name for name in idle if not name.startswith("backbone")]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: SMP(TimmBackbone("test_resnet", output_stride=8), 3), "wants maps of strides 4, 8, 16 and 32"),
        (lambda: SMP(TimmBackbone("test_resnet"), 3, arch="deeplabv3plus"), "is model=deeplab here"),
        (lambda: SMP(TimmBackbone("test_resnet"), 3, arch="vnet"), "model.arch=vnet"),
        (lambda: SMPEncoder("mit_b9"), "backbone.name=mit_b9, backbone.weights=None: "),
        (lambda: SMPEncoder("mit_b0", weights="nowhere.pth"), "backbone.weights=nowhere.pth: "),
    ],
)
def test_what_does_not_fit_is_one_line(make, says: str) -> None:
    with pytest.raises(ValueError) as caught:
        make()
    assert says in str(caught.value) and "\n" not in str(caught.value)
