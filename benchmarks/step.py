"""Measure a whole training step, compared with the cost of its network passes alone (floor) and a supervised step.

The step is the Trainer's, with hooks, losses, prototypes, teacher and logging; its batch is in memory already.
"""

import copy
import tempfile
import time

import lightning.pytorch as L
import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch.loggers import CSVLogger
from measure import MemoryPeak, Row, rows, timed
from omegaconf import OmegaConf
from torch.utils.data import DataLoader

from pcr_seg.config import CONF, build
from pcr_seg.method import cross_entropy, jittered_grid, sample_features
from pcr_seg.module import Segmentation
from pcr_seg.training.fit import build_module

CLASSES = [str(c) for c in range(11)]
PAPER_DECODER = ["model=deeplab", "model.pooled_norm=false"]  # the pooled norm needs more than one image
# backbone, crop, output stride, labeled images (and as many unlabeled ones), further settings
CASES = (
    ("mobilenetv2", 161, 16, 4, ()),
    ("mobilenetv2", 321, 16, 2, ()),
    ("mobilenetv2", 321, 8, 2, ()),
    ("resnet50", 321, 16, 1, PAPER_DECODER),
    ("resnet50", 321, 8, 1, PAPER_DECODER),
)


def measure(repeats: int) -> list[Row]:
    """Return rows of floor, step, the prototypes' part of it, and the supervised step, for each network."""
    found = []
    for backbone, crop, stride, images, further in CASES:
        overrides = (f"backbone={backbone}", f"backbone.output_stride={stride}", *further)
        case = f"{backbone}, stride {stride}, {images} + {images} x {crop} x {crop}"
        pcr, supervised = make_module(*overrides), make_module(*overrides, "method=supervised")
        batch = make_batch(images, crop)
        clock = run(pcr, batch, repeats, {"floor": Floor(pcr), "prototypes": Prototypes(pcr, 2 * images, crop)})
        alone = run(supervised, batch, repeats, {})
        seconds = {"floor": clock.others["floor"], "step": clock.steps}
        seconds |= {"of it, prototypes": clock.others["prototypes"], "supervised step": alone.steps}
        found += rows(case, seconds, {"step": clock.peak.mebibytes, "supervised step": alone.peak.mebibytes})
    return found


def make_module(*overrides: str, dataset: str = "camvid") -> Segmentation:
    """Return the module that `train.py` makes for a data set, with random weights and a filled bank."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings = [f"dataset={dataset}", "output=.", "recipe.burn_in_epochs=0", *overrides, "backbone.weights=null"]
        config = compose("train", settings)
    module = build_module(OmegaConf.to_container(config, resolve=True), CLASSES)
    if hasattr(module.method, "bank"):
        module.method.bank.prototypes.uniform_()
        module.method.bank.is_initialized.fill_(True)
    return module


def make_batch(images: int, crop: int, strong_views: int = 1, device: str = "cpu") -> dict:
    """Return a batch as the loaders give it, of noise."""
    generator = torch.Generator().manual_seed(0)
    image, weak = torch.randn(2, images, 3, crop, crop, generator=generator)
    mask = torch.randint(len(CLASSES), (images, crop, crop), generator=generator)
    strong = weak[:, None].expand(-1, strong_views, -1, -1, -1)
    unlabeled = {"weak": weak, "strong": strong, "valid": torch.ones_like(mask, dtype=torch.bool)}
    other = {key: value.flip(0) for key, value in unlabeled.items()}
    streams = {"labeled": {"image": image, "mask": mask}, "unlabeled": unlabeled, "other": other}
    return {name: {key: value.to(device) for key, value in stream.items()} for name, stream in streams.items()}


def fitting(batch: dict, module: Segmentation) -> dict:
    """Return the streams of a batch, with as many strong views, that a module's method takes."""
    if not module.uses_unlabeled:
        return {"labeled": batch["labeled"]}
    views, unlabeled = module.method.views, batch["unlabeled"]
    streams = {"labeled": batch["labeled"], "unlabeled": unlabeled | {"strong": unlabeled["strong"][:, : views.strong]}}
    return streams | ({"other": batch["other"]} if views.other else {})


def run(module: Segmentation, batch: dict, repeats: int, others: dict) -> "Clock":
    """Train on the same batch on the CPU; return the clock that timed it."""
    clock = Clock(repeats, others)
    train(module, batch, clock, accelerator="cpu")
    return clock


def train(module: Segmentation, batch: dict, clock: L.Callback, **trainer: object) -> None:
    """Train on the same batch under a trainer, for as many steps as the clock's `total`."""
    with tempfile.TemporaryDirectory() as folder:
        quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
        limits = {"max_steps": clock.total, "limit_val_batches": 0, "log_every_n_steps": 10}
        fitter = L.Trainer(logger=CSVLogger(folder), callbacks=[clock], **limits, **quiet, **trainer)
        streams = fitting(batch, module)
        fitter.fit(module, {name: DataLoader([part] * clock.total, batch_size=None) for name, part in streams.items()})


class Clock(L.Callback):
    """Times the trainer's steps, from one batch's start to the next one's, and other functions between them."""

    def __init__(self, repeats: int, others: dict) -> None:
        self.total = repeats + 3  # one to warm up, one to measure memory, and a last one, which no other follows
        self.functions, self.others = others, {name: [] for name in others}
        self.steps, self.peak, self.started = [], MemoryPeak(), None

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: dict, batch_idx: int) -> None:
        """End the previous step, time the other functions, and start a step."""
        now, last = time.perf_counter(), self.total - 1
        if 1 < batch_idx < last:
            self.steps.append(now - self.started)
        if batch_idx == last:
            self.peak.stop()
        for name, function in self.functions.items() if batch_idx < last - 1 else ():
            seconds = timed(lambda function=function: function(module, batch))
            if batch_idx > 0:
                self.others[name].append(seconds)
        if batch_idx == last - 1:
            self.peak.start()
        self.started = time.perf_counter()


class Floor:
    """What every mean teacher has to compute: its forward, the student's forward and backward, the optimizer's step."""

    def __init__(self, module: Segmentation) -> None:
        self.student, self.teacher = copy.deepcopy(module.student), copy.deepcopy(module.teacher.network)
        self.optimizer = build(OmegaConf.create({"_target_": "torch.optim.AdamW"}), self.student.parameters())

    def __call__(self, module: Segmentation, batch: dict) -> None:
        """Do this once, on copies of the module's networks."""
        with torch.no_grad():
            self.teacher(batch["unlabeled"]["weak"])
        logits = self.student(torch.cat([batch["labeled"]["image"], batch["unlabeled"]["strong"][:, 0]])).logits
        self.optimizer.zero_grad()
        logits.backward(torch.ones_like(logits))
        self.optimizer.step()


class Prototypes:
    """What the prototype head does in a step: sampling, loss, its backward to the features, and the bank's update."""

    def __init__(self, module: Segmentation, images: int, crop: int) -> None:
        small = -(-crop // 4)
        features = torch.rand(images, module.student.feature_dim, small, small)
        self.features = features.to(memory_format=torch.channels_last).requires_grad_()

    def __call__(self, module: Segmentation, batch: dict) -> None:
        """Do it once on features of noise, as many as there are labeled and unlabeled images."""
        mask = batch["labeled"]["mask"].repeat(2, 1, 1)
        size, method = mask.shape[-2:], module.method
        points = jittered_grid(*size, method.grid_cells)
        sampled, wanted = sample_features(self.features, points, size), mask[:, points[:, 0], points[:, 1]]
        torch.autograd.grad(cross_entropy(method.bank(sampled).transpose(1, 2), wanted), self.features)
        method.bank.update(sampled.detach().flatten(0, 1), wanted.flatten())


def targets(found: list[Row]) -> list[tuple[str, str, str]]:
    """Return each target of the project: what it is about, the goal, and what was measured."""
    by_version = {name: [row for row in found if row["version"] == name] for name in {r["version"] for r in found}}
    over_floor = max(row["ratio"] for row in by_version["step"])
    pairs = zip(by_version["step"], by_version["supervised step"], strict=True)
    over_supervised = max(row["milliseconds"] / alone["milliseconds"] for row, alone in pairs)
    of_resnet = [row["ratio"] for row in by_version["of it, prototypes"] if row["case"].startswith("resnet50")]
    result = [
        ("step over its floor", "1.08", f"{over_floor:.2f}"),
        ("step over a supervised step on the same labels", "2.5", f"{over_supervised:.2f}"),
    ]
    if of_resnet:
        result.append(("prototypes' share of a resnet50 step", "3 %", f"{100 * max(of_resnet):.1f} %"))
    return result
