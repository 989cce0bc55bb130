"""Evaluation protocols as they are named on the command line: complete, composed, and scored on images of any size."""

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path

import lightning.pytorch as L
import pytest
import references as ref
import torch
from conftest import small_config
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.testing import assert_close

from pcr_seg import inference
from pcr_seg.module import SemiSupervisedSegmentation
from pcr_seg.run import CONF, build_module

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


@pytest.mark.parametrize("name", PROTOCOLS)
def test_training_takes_each_protocol_too(tmp_path: Path, name: str) -> None:
    config = small_config(tmp_path, f"protocol={name}").protocol
    assert instantiate(config).func is named(name).func


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


def make_module(tmp_path: Path, name: str) -> SemiSupervisedSegmentation:
    """A module with a bank, evaluated by a protocol of small windows."""
    torch.manual_seed(0)
    config = small_config(tmp_path, f"protocol={name}", *SMALLER.get(name, []))
    module = build_module(OmegaConf.to_container(config, resolve=True), [f"class {c}" for c in range(NUM_CLASSES)])
    module.bank.prototypes = torch.rand(module.bank.prototypes.shape)
    module.bank.is_initialized.fill_(True)
    for head in (module.teacher.linear_head[-1], module.student.linear_head[-1]):
        head.bias.data[ABSENT] = -100  # nobody predicts it
    return module.eval()


def make_samples() -> list[dict]:
    """Images of awkward sizes whose masks have ignored pixels and lack a class."""
    generator, samples = torch.Generator().manual_seed(1), []
    for size in SIZES:
        mask = torch.randint(ABSENT, (1, *size), generator=generator)
        mask[:, :3, 5:] = 255
        samples.append({"image": torch.randn(1, 3, *size, generator=generator), "mask": mask})
    return samples


def validate(module: SemiSupervisedSegmentation, samples: list[dict]) -> dict[str, Tensor]:
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.validate(module, samples, verbose=False)
    return trainer.callback_metrics


def heads_of(module: SemiSupervisedSegmentation) -> Callable[[Tensor], Tensor]:
    return partial(inference.predict_heads, module.teacher, module.bank)


def pixels(logits: list[Tensor], truths: list[Tensor]) -> tuple:
    """Truth and prediction of all images' pixels in two long arrays."""
    predictions = torch.cat([x.argmax(dim=1).flatten() for x in logits])
    return torch.cat([x.flatten() for x in truths]).numpy(), predictions.numpy()


@torch.no_grad()
@pytest.mark.parametrize("name", PROTOCOLS)
def test_scores_are_those_of_a_numpy_confusion_matrix(tmp_path: Path, name: str) -> None:
    module, samples = make_module(tmp_path, name), make_samples()
    metrics = validate(module, samples)
    logits = [module.protocol(heads_of(module), sample["image"]) for sample in samples]
    truths = [sample["mask"] for sample in samples]
    if name == "voc_center_pad":
        truths = [inference.center_pad(truth, (64, 64)) for truth in truths]
        assert all(truth.shape == (1, 64, 64) for truth in truths)
    for head, suffix in ((slice(0, NUM_CLASSES), ""), (slice(NUM_CLASSES, None), "_prototype")):
        truth, prediction = pixels([x[:, head] for x in logits], truths)
        expected = ref.iou_per_class(truth, prediction, NUM_CLASSES)
        found = [metrics[f"val/iou{suffix}/class {c}"].item() for c in range(NUM_CLASSES)]
        assert found == pytest.approx(list(expected), abs=1e-6, nan_ok=True)
        assert metrics[f"val/miou{suffix}"].item() == pytest.approx(ref.miou(truth, prediction, NUM_CLASSES), abs=1e-6)
    assert metrics[f"val/iou/class {ABSENT}"].isnan()  # in no mask and in no prediction: left out of the mean


@torch.no_grad()
def test_padding_counts_as_background(tmp_path: Path) -> None:
    """As many pixels as squares, less the ignored ones; the rest of class 0 is padding."""
    module, samples = make_module(tmp_path, "voc_center_pad"), make_samples()
    for i, sample in enumerate(samples):
        module.validation_step(sample, i)
    confusion, masks = module.confusion["linear"].compute(), torch.cat([s["mask"].flatten() for s in samples])
    assert confusion.sum() == len(samples) * 64**2 - (masks == 255).sum()
    added = len(samples) * 64**2 - masks.numel()
    expected = masks[masks != 255].bincount(minlength=NUM_CLASSES) + torch.tensor([added, 0, 0, 0, 0])
    assert torch.equal(confusion.sum(1), expected)


@torch.no_grad()
@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("size", SIZES)
def test_a_prediction_has_its_images_size(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    logits = make_module(tmp_path, name).predict_image(random_images(*size))
    assert {head: x.shape for head, x in logits.items()} == dict.fromkeys(
        ("linear", "prototype"), (1, NUM_CLASSES, *size)
    )
