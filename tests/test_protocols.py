"""Evaluation protocols as they are named on the command line: complete, composed, and scored on images of any size."""

import inspect
from functools import partial
from pathlib import Path

import lightning.pytorch as L
import numpy as np
import pytest
import references as ref
import torch
from conftest import small_config
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import DataLoader

from pcr_seg import inference
from pcr_seg.config import CONF
from pcr_seg.module import Segmentation
from pcr_seg.predictor import predict_heads
from pcr_seg.training.fit import build_module

PROTOCOLS = sorted(path.stem for path in (CONF / "protocol").glob("*.yaml"))
SMALLER = {
    "sliding": ["protocol.window=40", "protocol.stride=27"],
    "sliding_multi_scale": ["protocol.inner.window=40", "protocol.inner.stride=27", "protocol.scales=[0.5,1.25]"],
    "multi_scale": ["protocol.scales=[0.5,1.25]"],
    "voc_center_pad": ["protocol.size=64"],
}
SIZES = [(37, 50), (50, 33), (10, 64), (25, 30)]
NUM_CLASSES, ABSENT = 5, 4


def named(name: str, *overrides: str) -> partial:
    """The protocol that `python eval.py protocol=NAME` uses."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return instantiate(compose("eval", ["checkpoint=x", f"protocol={name}", *overrides]).protocol)


@pytest.fixture(scope="module")
def network() -> nn.Conv2d:
    """A convolution whose zero padding tells where a window ends."""
    torch.manual_seed(0)
    return nn.Conv2d(3, 6, 5, padding=2).requires_grad_(False)


def random_images(*size: int) -> Tensor:
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_names_every_argument(name: str) -> None:
    pending = [named(name)]
    for protocol in pending:
        own = set(inspect.signature(protocol.func).parameters) - {"predict", "images", "num_classes"}
        assert set(protocol.keywords) == own
        pending += [value for value in protocol.keywords.values() if isinstance(value, partial)]
        assert not any(OmegaConf.is_config(value) for value in protocol.keywords.values())


def test_each_dataset_has_the_papers_protocol_by_default(tmp_path: Path) -> None:
    protocols = {
        dataset: instantiate(small_config(tmp_path, f"dataset={dataset}").protocol)
        for dataset in ("voc", "voc_aug", "cityscapes")
    }
    assert protocols["voc"].func is protocols["voc_aug"].func is inference.whole_image
    assert protocols["cityscapes"].func is inference.sliding_window
    assert (protocols["cityscapes"].keywords["window"], protocols["cityscapes"].keywords["stride"]) == (769, 513)


@pytest.mark.parametrize("size", [(375, 500), (500, 334)])
def test_whole_and_center_pad_on_a_voc_image(network: nn.Conv2d, size: tuple[int, int]) -> None:
    images = random_images(*size)
    whole, padded = (named(name)(network, images) for name in ("whole", "voc_center_pad"))
    assert torch.equal(whole, network(images))
    assert padded.shape == (1, 6, 513, 513)
    assert_close(inference.center_pad(padded, size)[..., 2:-2, 2:-2], whole[..., 2:-2, 2:-2])  # but at its edges
    truth = inference.center_pad(torch.full((1, *size), 7), (513, 513))
    assert (truth == 0).float().mean().item() == pytest.approx(1 - size[0] * size[1] / 513**2)


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("size", [(37, 50), (130, 28)])
def test_heads_side_by_side_do_not_meet(network: nn.Conv2d, name: str, size: tuple[int, int]) -> None:
    protocol, images = named(name, *SMALLER.get(name, [])), random_images(*size)
    both = protocol(network, images)
    for head in (slice(0, 3), slice(3, 6)):
        assert_close(protocol(lambda x, head=head: network(x)[:, head], images), both[:, head])


@pytest.mark.parametrize("name", sorted(set(PROTOCOLS) - {"voc_center_pad"}))
@pytest.mark.parametrize("size", [(37, 50), (130, 28), (7, 9)])
def test_a_constant_prediction_stays_itself(name: str, size: tuple[int, int]) -> None:
    """However windows, scales and mirrors are weighted, their weights at a pixel add up to one."""
    logits = torch.tensor([2.0, -1.0, 0.5])[None, :, None, None]
    predicted = named(name, *SMALLER.get(name, []))(
        lambda x: logits.expand(len(x), -1, *x.shape[-2:]), random_images(*size)
    )
    assert_close(predicted, logits.expand(-1, -1, *size))


@pytest.fixture(scope="module", params=PROTOCOLS)
def module(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Segmentation:
    """A tiny network with a bank, for each protocol, with small windows."""
    torch.manual_seed(0)
    overrides = ["backbone=tiny", f"protocol={request.param}", *SMALLER.get(request.param, [])]
    config = small_config(tmp_path_factory.mktemp("protocol"), *overrides)
    module = build_module(OmegaConf.to_container(config, resolve=True), [f"class {c}" for c in range(NUM_CLASSES)])
    module.method.bank.prototypes = torch.rand(module.method.bank.prototypes.shape)
    module.method.bank.is_initialized.fill_(True)
    module.teacher.network.linear_head[-1].bias.data[ABSENT] = -100  # nobody predicts it
    return module.eval()


def make_samples() -> list[dict]:
    """Images of awkward sizes whose masks have ignored pixels and lack a class."""
    generator, samples = torch.Generator().manual_seed(1), []
    for size in SIZES:
        mask = torch.randint(ABSENT, (1, *size), generator=generator)
        mask[:, :3, 5:] = 255
        samples.append({"image": torch.randn(1, 3, *size, generator=generator), "mask": mask})
    return samples


def validate(module: Segmentation, samples: list[dict]) -> dict[str, Tensor]:
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.validate(module, DataLoader(samples, batch_size=None), verbose=False)
    return trainer.callback_metrics


def truths_for(protocol: partial, samples: list[dict]) -> list[Tensor]:
    """What the predictions are scored against: masks as they are, or in a square whose rest is background."""
    if protocol.func is not inference.center_padded:
        return [sample["mask"] for sample in samples]
    squares = torch.zeros(len(SIZES), 1, 64, 64, dtype=torch.long)
    for square, sample, (height, width) in zip(squares, samples, SIZES, strict=True):
        top, left = (64 - height) // 2, (64 - width) // 2
        square[:, top : top + height, left : left + width] = sample["mask"]
    return list(squares)


@torch.no_grad()
def test_scores_are_those_of_a_numpy_confusion_matrix(module: Segmentation) -> None:
    samples = make_samples()
    metrics = validate(module, samples)

    def predict(images: Tensor) -> Tensor:
        return torch.cat(list(predict_heads(module.teacher.network, module.method, images).values()), dim=1)

    logits = [module.protocol(predict, sample["image"]) for sample in samples]
    truth = torch.cat([x.flatten() for x in truths_for(module.protocol, samples)]).numpy()
    for head, suffix in ((slice(0, NUM_CLASSES), ""), (slice(NUM_CLASSES, None), "_prototype")):
        prediction = torch.cat([x[:, head].argmax(dim=1).flatten() for x in logits]).numpy()
        confusion = ref.confusion_matrix(truth, prediction, NUM_CLASSES)
        hit, union = confusion.diagonal(), confusion.sum(0) + confusion.sum(1) - confusion.diagonal()
        ious = [hit[c] / union[c] if union[c] else float("nan") for c in range(NUM_CLASSES)]
        found = [metrics[f"val/iou{suffix}/class {c}"].item() for c in range(NUM_CLASSES)]
        assert found == pytest.approx(ious, abs=1e-6, nan_ok=True)
        assert metrics[f"val/miou{suffix}"].item() == pytest.approx(np.nanmean(ious), abs=1e-6)
    assert metrics[f"val/iou/class {ABSENT}"].isnan()  # in no mask and no prediction: left out of the mean


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
def test_a_prediction_has_its_images_size(module: Segmentation, size: tuple[int, int]) -> None:
    logits = module.predictor(random_images(*size))
    assert list(logits) == ["linear", "prototype"]
    assert all(x.shape == (1, NUM_CLASSES, *size) for x in logits.values())
