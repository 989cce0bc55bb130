"""PCR from Python: plain loaders, own networks and those of others, a method of one's own; and their checkpoints."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL, TINY_SET, composed
from lightning.pytorch import Trainer
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

import pcr_seg
from pcr_seg import PCR, SMP, Consistency, DeepLab, Segmentation, Supervised, TimmBackbone, UniMatch, load
from pcr_seg.commands.evaluate import evaluate
from pcr_seg.commands.export import export
from pcr_seg.commands.predict import predict
from pcr_seg.config import CONF
from pcr_seg.data.sources import Source

ROOT = CONF.parent
CLASSES = ["sky", "road", "car"]


class Mine(Dataset):
    """Three classes are three colors; in bytes, or in floats that are normalised."""

    def __init__(self, number: int, *, labeled: bool, views: int = 1, floats: bool = False, size: int = 64) -> None:
        self.number, self.labeled, self.views, self.floats, self.size = number, labeled, views, floats, size

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, index: int) -> dict:
        generator = torch.Generator().manual_seed(index)
        cells = torch.randint(3, (4, 4), generator=generator)
        mask = cells.repeat_interleave(self.size // 4, 0).repeat_interleave(self.size // 4, 1)
        image = (255 * nn.functional.one_hot(mask, 3).permute(2, 0, 1)).byte()
        image = image.float() / 128 - 1 if self.floats else image
        if self.labeled:
            return {"image": image, "mask": mask}
        valid = torch.ones_like(mask, dtype=torch.bool)
        return {"weak": image, "strong": image.expand(self.views, *image.shape), "valid": valid}


class Net(nn.Module):
    """Somebody's network: it keeps its arguments, and knows nothing of this project."""

    def __init__(self, num_classes: int = 3, width: int = 8) -> None:
        super().__init__()
        self.num_classes, self.width, self.feature_dim = num_classes, width, width
        self.body = nn.Sequential(nn.Conv2d(3, width, 3, stride=4, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, images: torch.Tensor) -> pcr_seg.SegmentorOutput:
        features = self.body(images)
        return pcr_seg.SegmentorOutput(self.head(features), features, None)


class Forgetful(Net):
    """The same, but one of its arguments cannot be known any more."""

    def __init__(self, activation: nn.Module, num_classes: int = 3) -> None:
        super().__init__(num_classes)
        self.body[2] = activation


def streams(*, views: int = 1, floats: bool = False) -> dict[str, DataLoader]:
    """Two labeled batches and three unlabeled ones in an epoch."""
    mine = DataLoader(Mine(4, labeled=True, floats=floats), batch_size=2, shuffle=True)
    others = DataLoader(Mine(6, labeled=False, views=views, floats=floats), batch_size=2, shuffle=True)
    return {"labeled": mine, "unlabeled": others, "other": others}


def validation(*, floats: bool = False) -> DataLoader:
    return DataLoader(Mine(3, labeled=True, floats=floats))


def fit(module: Segmentation, folder: Path, loaders: dict, val: DataLoader, epochs: int = 3, **options: object) -> Path:
    """Train without Hydra; return the checkpoint's path."""
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=1, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, loaders, val, **options)
    assert trainer.global_step == epochs * len(loaders.get("unlabeled", loaders["labeled"]))
    trainer.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"


def photo(folder: Path, size: int = 50) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (size, size + 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    return folder / "photo.png"


def write_set(folder: Path) -> Path:
    """The same images as a folder that `dataset=folder` reads."""
    for subset in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / subset).mkdir(parents=True)
        for index in range(3):
            sample = Mine(9, labeled=True)[index + 3 * (subset == "val")]
            name = f"{subset}_{index}.png"
            Image.fromarray(sample["image"].permute(1, 2, 0).numpy()).save(folder / "images" / subset / name)
            Image.fromarray(sample["mask"].byte().numpy()).save(folder / "labels" / subset / name)
    colors = [f"{c} {name} {30 * c} 0 0\n" for c, name in enumerate(CLASSES)]
    (folder / "classes.txt").write_text("".join(colors))
    return folder


def test_the_readmes_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [lines] = re.findall(r"```python\n(from lightning.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    # A smaller network from random weights, one epoch, in this folder.
    for typed, tried in {
        'TimmBackbone("mobilenetv2_100", weights="timm")': 'TimmBackbone("test_resnet", output_stride=8)',
        "Trainer(max_epochs=20)": 'Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False)',
        '"photo.jpg"': '"photo.png"',
    }.items():
        assert typed in lines
        lines = lines.replace(typed, tried)
    monkeypatch.chdir(tmp_path)
    photo(tmp_path)
    names = {"mine": streams()["labeled"], "others": streams()["unlabeled"], "val": validation()}
    exec(lines.replace("\nload(", "\nfound = load("), names)
    assert names["found"].labels.shape == (50, 57)


@pytest.mark.parametrize("floats", [False, True], ids=["bytes", "floats"])
@pytest.mark.parametrize("method", ["pcr", "consistency", "unimatch", "supervised"])
def test_plain_loaders_train_every_kind_of_method(tmp_path: Path, method: str, floats: bool) -> None:
    torch.manual_seed(0)
    student = DeepLab(TimmBackbone("test_resnet", output_stride=8), num_classes=3, channels=8, pooled_norm=False)
    made = {
        "pcr": lambda: PCR(3, student.feature_dim, grid_cells=8),
        "consistency": Consistency, "unimatch": UniMatch, "supervised": Supervised,
    }[method]()  # fmt: skip
    module = Segmentation(student, made, CLASSES, lr=1e-3)
    checkpoint = fit(module, tmp_path, streams(views=2, floats=floats), validation(floats=floats), epochs=2)
    assert 0 <= module.scores["val/miou"] <= 1
    predictor = load(checkpoint)
    assert predictor.class_names == CLASSES and predictor.name == type(made).__name__
    assert (predictor.bank is not None) == (method == "pcr")
    images = torch.randn(1, 3, 40, 56)
    for head, logits in module.predictor(images).items():
        assert torch.equal(predictor(images)[head], logits)


def test_a_prediction_of_a_path_an_image_and_an_array_is_one(tmp_path: Path) -> None:
    predictor = load(
        fit(Segmentation(Net(), PCR(3, 8, grid_cells=8), CLASSES), tmp_path, streams(), validation()), student=Net()
    )
    path = photo(tmp_path)
    found = predictor.predict(path)
    assert found.labels.shape == found.confidence.shape == (50, 57) and found.labels.dtype == np.uint8
    assert {head: values.shape for head, values in found.heads.items()} == dict.fromkeys(
        ("linear", "prototype"), (3, 50, 57)
    )
    np.testing.assert_allclose(found.heads["linear"].sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(found.heads["linear"].argmax(0), found.labels)
    for image in (Image.open(path), np.asarray(Image.open(path)), str(path)):
        np.testing.assert_array_equal(predictor.predict(image).labels, found.labels)
    grey = np.asarray(Image.open(path).convert("L"))
    np.testing.assert_array_equal(predictor.predict(grey).labels, predictor.predict(Image.fromarray(grey)).labels)
    with pytest.raises(FileNotFoundError, match=r"nothing\.jpg: no such image"):
        predictor.predict("nothing.jpg")
    for wrong in (np.zeros((5, 5, 3)), np.zeros((5, 5, 2), np.uint8)):
        with pytest.raises(ValueError, match="image: "):
            predictor.predict(wrong)


def test_an_own_network_goes_through_every_command(tmp_path: Path) -> None:
    """Only where the caller hands it over or names its module."""
    module = Segmentation(Net(width=12), PCR(3, 12, grid_cells=8), CLASSES)
    checkpoint = fit(module, tmp_path, streams(), validation())
    with pytest.raises(ValueError, match=rf"names {__name__}\.Net, which is not this project's code; refused .*trust="):
        load(checkpoint)
    images = torch.randn(1, 3, 40, 56)
    expected = module.predictor(images)["linear"]
    for predictor in (load(checkpoint, trust=__name__), load(checkpoint, student=Net(width=12))):
        assert torch.equal(predictor(images)["linear"], expected)
    with pytest.raises(ValueError, match=r"last\.ckpt: does not fit this version of the code"):
        load(checkpoint, student=Net(width=5))

    data, common = write_set(tmp_path / "set"), [f"checkpoint={checkpoint}", f"trust={__name__}"]
    folder = ["dataset=folder", f"dataset.root={data}"]
    with pytest.raises(ValueError, match=r"last\.ckpt: names no data set; give dataset=folder dataset\.root=FOLDER"):
        evaluate(composed(*common, "device=cpu", name="eval"))
    result = evaluate(composed(*common, *folder, f"output={tmp_path}/e.json", "device=cpu", name="eval"))
    assert 0 <= result["miou"] <= 1 and result["miou_prototype"] is not None
    content = predict(
        composed(*common, f"images={data}/images/val", f"output={tmp_path}/out", "device=cpu", name="predict")
    )
    assert len(content["images"]) == 3 and (tmp_path / "out/index/val_0.png").is_file()
    exported = export(composed(*common, "format=pt2", f"output={tmp_path}/net.pt2", name="export"))
    assert exported.is_file()


def test_a_network_that_forgot_its_arguments_is_handed_over(tmp_path: Path) -> None:
    checkpoint = fit(Segmentation(Forgetful(nn.Tanh()), Supervised(), CLASSES), tmp_path, streams(), validation())
    with pytest.raises(ValueError, match=r"Forgetful did not keep its arguments .*load\(\.\.\., student=network\)"):
        load(checkpoint, trust=__name__)
    assert load(checkpoint, student=Forgetful(nn.Tanh())).class_names == CLASSES


def test_a_loss_of_ones_own_is_left_behind(tmp_path: Path) -> None:
    for number, loss in enumerate((nn.CrossEntropyLoss(ignore_index=255), lambda logits, labels: logits.mean())):
        (tmp_path / str(number)).mkdir()
        module = Segmentation(Net(), Supervised(supervised_loss=loss), CLASSES)
        checkpoint = fit(module, tmp_path / str(number), streams(), validation(), epochs=1)
        assert load(checkpoint, student=Net()).class_names == CLASSES


def test_what_a_module_merely_imported_is_not_called(tmp_path: Path) -> None:
    checkpoint = fit(Segmentation(Net(), Supervised(), CLASSES), tmp_path, streams(), validation(), epochs=1)
    content = torch.load(checkpoint, weights_only=True)
    content["pcr_seg"]["student"] = {"_target_": f"{__name__}.subprocess"}
    torch.save(content, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match=r"subprocess is no class or function of"):
        load(tmp_path / "evil.ckpt", trust=__name__)
    content["pcr_seg"]["student"] = {"_target_": "pcr_seg.method.losses.Callable"}
    torch.save(content, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match=r"Callable is no class or function of"):
        load(tmp_path / "evil.ckpt")


@pytest.mark.parametrize(
    ("made", "loaders", "answer"),
    [
        (Consistency, {"labeled"}, "Consistency: needs a loader unlabeled"),
        (UniMatch, {"labeled", "unlabeled"}, "UniMatch: needs 2 strong views"),
    ],
)
def test_loaders_that_a_method_misses_are_one_line(tmp_path: Path, made: type, loaders: set, answer: str) -> None:
    module = Segmentation(
        DeepLab(TimmBackbone("test_resnet", output_stride=8), 3, channels=8), made(burn_in_epochs=0), CLASSES
    )
    given = {name: loader for name, loader in streams().items() if name in loaders}
    with pytest.raises(ValueError, match=answer):
        fit(module, tmp_path, given, validation())


class Default(Net):
    """One of its arguments is not kept, but has a default."""

    def __init__(self, num_classes: int = 3, depth: int = 1) -> None:
        super().__init__(num_classes)
        self.body.extend([nn.Conv2d(8, 8, 1) for _ in range(depth)])


def test_an_assumed_default_is_said(tmp_path: Path) -> None:
    checkpoint = fit(Segmentation(Default(), Supervised(), CLASSES), tmp_path, streams(), validation())
    with pytest.warns(UserWarning, match=r"Default did not keep its argument depth, so the default is assumed"):
        load(checkpoint, trust=__name__)


def test_training_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    def module() -> Segmentation:
        torch.manual_seed(0)
        return Segmentation(Net(), PCR(3, 8, grid_cells=8), CLASSES, lr=1e-2)

    first = module()
    checkpoint = fit(first, tmp_path, streams(), validation(), epochs=2)
    second = module()
    fit(second, tmp_path, streams(), validation(), epochs=3, ckpt_path=checkpoint, weights_only=True)
    assert second.teacher.steps == 2 * 3 and second.semi_supervised_steps == 2 * 3
    moved = [
        not torch.equal(a, b) for a, b in zip(first.student.parameters(), second.student.parameters(), strict=True)
    ]
    assert all(moved)


def test_class_names_have_to_fit_the_network() -> None:
    with pytest.raises(ValueError, match="class_names: 2 for a network of 3 classes"):
        Segmentation(Net(), Supervised(), ["a", "b"])


def test_a_unet_of_another_library_trains_with_pcr(tmp_path: Path) -> None:
    pytest.importorskip("segmentation_models_pytorch", reason="needs the smp extra")
    student = SMP(TimmBackbone("resnet18"), 3, options={"decoder_channels": [32, 16, 8, 8, 8]})
    module = Segmentation(student, PCR(3, student.feature_dim, grid_cells=8), CLASSES, lr=1e-3)
    checkpoint = fit(module, tmp_path, streams(), validation(), epochs=2)
    found = load(checkpoint).predict(np.zeros((64, 96, 3), np.uint8))
    assert found.labels.shape == (64, 96) and set(found.heads) == {"linear", "prototype"}


METHOD = '''
"""Entropy minimization: the network is asked to be sure on unlabeled images."""

from torch import nn

from pcr_seg.method.losses import cross_entropy, labeled_loss
from pcr_seg.method.mixing import UnlabeledViews


class MinimumEntropy(nn.Module):
    """Labels, and the entropy of what the network says of weak views."""

    views = UnlabeledViews()

    def __init__(self, *, entropy_weight: float = 0.1, burn_in_epochs: int = 1, ema_decay: float = 0.99) -> None:
        super().__init__()
        self.entropy_weight, self.burn_in_epochs, self.ema_decay = entropy_weight, burn_in_epochs, ema_decay
        self.weights = {"supervised": 1.0, "entropy": entropy_weight}

    def forward(self, student, teacher, labeled, unlabeled):
        losses = {"supervised": labeled_loss(cross_entropy, student(labeled["image"]), labeled["mask"])}
        if unlabeled is not None:
            logits = student(unlabeled["weak"]).logits.log_softmax(1)
            losses["entropy"] = -(logits.exp() * logits).sum(1).mean()
        return losses
'''
YAML = """
_target_: pcr_seg.method.minimum_entropy.MinimumEntropy
name: minimum_entropy
entropy_weight: 0.1
burn_in_epochs: ${recipe.burn_in_epochs}
ema_decay: 0.99
"""


def test_another_method_is_one_file_and_one_yaml(tmp_path: Path) -> None:
    """Added to a copy of the project: trained, logged, resumed, scored and loaded, with nothing else changed."""
    assert len(METHOD.strip().splitlines()) <= 30
    project = tmp_path / "project"
    copied = project / "src/pcr_seg"
    for folder in ("conf", "src/pcr_seg"):
        shutil.copytree(ROOT / folder, project / folder)
    for script in ("train.py", "eval.py"):
        shutil.copy(ROOT / script, project)
    (copied / "method/minimum_entropy.py").write_text(METHOD)
    (project / "conf/method/minimum_entropy.yaml").write_text(YAML)

    def run(*arguments: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(project / "src")}
        command = [sys.executable, *arguments]
        result = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout

    settings = [s for s in (*TINY_SET, *SMALL) if not s.startswith("trainer.max_epochs")]
    run(
        "train.py",
        "method=minimum_entropy",
        "hydra.run.dir=run",
        "dataset.root=data",
        *settings,
        "trainer.max_epochs=3",
    )
    summary = json.loads((project / "run/summary.json").read_text())
    assert (summary["method"], summary["semi_supervised_iterations"]) == ("minimum_entropy", 4)
    assert "train/entropy_loss" in (project / "run/metrics.csv").read_text().splitlines()[0]
    run("eval.py", "checkpoint=run/checkpoints/last.ckpt", "device=cpu", "output=e.json")
    assert json.loads((project / "e.json").read_text())["miou"] == pytest.approx(summary["miou_last"], abs=1e-4)


class Pair(nn.Module):
    """A method that asks for a second unlabeled batch, and notes what it is handed."""

    views = pcr_seg.UnlabeledViews(strong=2, other=True)

    def __init__(self) -> None:
        super().__init__()
        self.weights, self.burn_in_epochs, self.seen, self.events = {"supervised": 1.0}, 1, [], []

    def forward(self, student: nn.Module, teacher: nn.Module, labeled: dict, unlabeled: dict | None) -> dict:
        self.seen.append((labeled, unlabeled))
        loss = Supervised()(student, teacher, labeled)["supervised"]
        self.figures = {"loss_seen": loss.detach()}
        return {"supervised": loss}

    def accumulate(self, batches: int) -> None:
        self.events.append(("accumulate", batches))

    def begin(self, student: nn.Module, labeled_batches: object, generator: torch.Generator) -> None:
        self.events.append(("begin", sum(len(batch["mask"]) for batch in labeled_batches)))

    def statistics(self) -> dict[str, torch.Tensor]:
        return {"pair/steps": torch.tensor(float(len(self.seen)))}


def test_what_a_method_is_handed_and_when(tmp_path: Path, tiny_set: Source) -> None:
    from pcr_seg.data.datamodule import SegmentationData

    data = SegmentationData(
        tiny_set, 4, crop_size=32, batch_size=2, steps_per_epoch=2, num_workers=0, strong_views=2, other=True
    )
    network, method = Net(num_classes=5), Pair()
    module = Segmentation(network, method, list(tiny_set.classes))
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, data)
    assert method.events == [("accumulate", 1), ("begin", 16)], "each labeled image four times, after the burn-in"
    assert [unlabeled is None for _, unlabeled in method.seen] == [True, True, False, False]
    for labeled, unlabeled in method.seen[2:]:
        assert labeled["image"].is_floating_point() and labeled["mask"].dtype == torch.long
        assert unlabeled["strong"].shape == unlabeled["other"]["strong"].shape == (2, 2, 3, 32, 32)
        assert unlabeled["weak"].is_floating_point() and unlabeled["other"]["valid"].dtype == torch.bool
        assert not torch.equal(unlabeled["weak"], unlabeled["other"]["weak"]), "drawn independently"
    assert module.scores["pair/steps"] == 4 and module.latest.keys() == {"supervised", "loss_seen"}


def test_docstrings_and_types_of_public_functions() -> None:
    assert (ROOT / "src/pcr_seg/py.typed").is_file()
    for name in pcr_seg.__all__:
        assert textwrap.dedent(getattr(pcr_seg, name).__doc__ or "").strip(), name
