"""What a training needs of each GPU, and what the GPUs send each other: worked out on a CPU, without data or weights.

python -m pcr_seg.cost dataset=cityscapes
python -m pcr_seg.cost dataset=coco backbone=dinov2_base backbone.checkpointing=true trainer.precision=32-true

It takes the keys of train.py. One step is run on tensors that have shapes but no numbers, and what is alive in it is
counted. docs/scaling.md says what is assumed.
"""

import sys
import weakref
from collections.abc import Iterable
from typing import NamedTuple

import lightning.pytorch as L
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from pcr_seg.config import CONF, command_line, device_batch, grown_lr, one_line_errors
from pcr_seg.data import sources, synthetic
from pcr_seg.module import Segmentation
from pcr_seg.processes import units
from pcr_seg.training.fit import build_module

GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
NODE = 8  # GPUs of a machine
FLOPS = 1.8e14  # a second: what a step of the Cityscapes recipe reaches in bf16 on an H200, docs/performance.md
INSIDE, BETWEEN = 3e11, 2.5e10  # bytes a second of each GPU: NVLink, and 200 Gbit/s between machines
IMAGES = 10_000  # unlabeled ones, about VOC's
CLASSES = {
    "voc": sources.VOC_CLASSES, "voc_aug": sources.VOC_CLASSES, "cityscapes": sources.CITYSCAPES_CLASSES,
    "camvid": sources.CAMVID_CLASSES, "ade20k": sources.ADE20K_CLASSES, "coco": range(1 + len(sources.COCO_THINGS)),
    "synthetic": synthetic.CLASSES,
}  # fmt: skip  # others are counted with VOC's number


class Unit(NamedTuple):
    """What FSDP gathers at once: its bytes, those that have gradients, and how often a step asks for it."""

    bytes: int
    trained: int
    with_gradient: int
    without: int


class Cost(NamedTuple):
    """What one process needs for a batch of its own, in bytes."""

    student: int  # its weights
    teacher: int  # that are not the student's
    buffers: int
    trained: int  # weights with a gradient
    optimizer: int
    peak: int  # of what a step makes beside all that, its gradients included
    activations: int  # the same without the gradients
    flops: float  # of the step
    bank: int
    units: tuple[Unit, ...]

    def memory(self, gpus: int, *, divided: bool) -> float:
        """Bytes on each of so many GPUs, with `ddp` or divided by `fsdp`."""
        if not divided:
            buckets = self.trained if gpus > 1 else 0
            return self.student + self.teacher + self.buffers + self.optimizer + buckets + self.peak
        shares = (self.student + self.teacher + self.trained + self.optimizer) / gpus
        largest = max((unit.bytes + unit.trained for unit in self.units), default=0)
        training = 2 * largest + self.activations  # the next one is gathered while one computes
        return shares + self.buffers + max(training, self.teacher)  # which is whole while it is evaluated

    def sent(self, gpus: int, rounds: int, *, divided: bool) -> float:
        """Bytes that each GPU sends in an optimizer step of so many batches."""
        share = (gpus - 1) / gpus
        bank = 2 * self.bank * rounds
        if not divided:
            return share * (2 * self.trained + bank)
        gathered = sum(unit.bytes * (2 * unit.with_gradient + unit.without) for unit in self.units)
        reduced = sum(unit.trained * unit.with_gradient for unit in self.units)
        return share * (rounds * (gathered + reduced) + bank)


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors that are made within, and their peak, while they are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = self.gradients = self.activations = 0

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        """Note what an operation returns."""
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (key := (storage := tensor.untyped_storage())._cdata) not in self.sizes:
                self.sizes[key] = storage.nbytes()
                weakref.finalize(storage, self.forget, key)
                self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        self.activations = max(self.activations, self.now - self.gradients)
        return result

    def forget(self, key: int) -> None:
        """A tensor is gone."""
        self.now -= self.sizes.pop(key)

    def keep(self, parameter: nn.Parameter) -> None:
        """A weight's gradient is there, and stays."""
        self.gradients += parameter.grad.untyped_storage().nbytes()


def cost(cfg: DictConfig, images: int) -> Cost:
    """Run a step of `images` labeled images, and as many unlabeled ones, without numbers."""
    classes = CLASSES.get(cfg.dataset._target_.rpartition(".")[2], sources.VOC_CLASSES)
    with torch.device("meta"):
        module = build_module(OmegaConf.to_container(cfg, resolve=True), [f"class {i}" for i in range(len(classes))])
    module.log = module.log_dict = lambda *args, **kwargs: None
    module.trainer = L.Trainer(accelerator="cpu", logger=False, max_epochs=1, enable_model_summary=False)
    if bank := getattr(module.method, "bank", None):
        bank.is_initialized = torch.tensor(True)
    if hasattr(module.method, "check_begun"):
        module.method.check_begun()
    divided = dict(pair for network in (module.student, module.teacher.network) for pair in units(network))
    calls = {unit: [0, 0] for unit in divided}
    for unit in calls:
        unit.register_forward_hook(lambda unit, *_: count(calls[unit], unit))
    optimizer = module.optimizer([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    states = 2 if "betas" in optimizer.defaults else int(optimizer.defaults.get("momentum", 0) > 0)
    shared = {id(p) for p in module.student.parameters()}
    trained = size(p for p in module.parameters() if p.requires_grad)
    sizes = {
        "student": size(module.student.parameters()),
        "teacher": size(p for p in module.teacher.parameters() if id(p) not in shared),
        "buffers": size({id(b): b for b in module.buffers()}.values()),
        "trained": trained,
        "optimizer": states * trained,
        "bank": size([bank.prototypes]) if hasattr(bank, "prototypes") else 0,
    }
    alive, flops = run(module, cfg, images)
    found = [Unit(size(own), size(p for p in own if p.requires_grad), *calls[unit]) for unit, own in divided.items()]
    return Cost(**sizes, peak=alive.peak, activations=alive.activations, flops=flops, units=tuple(found))


def run(module: Segmentation, cfg: DictConfig, images: int) -> tuple[Alive, float]:
    """One step; what was alive in it, and its multiplications and additions."""
    alive, counter = Alive(), FlopCounterMode(display=False)
    with FakeTensorMode(), counter:
        for part in module.modules():
            for tensors in (part._parameters, part._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None:
                        empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
                        weight = isinstance(tensor, nn.Parameter)
                        tensors[name] = nn.Parameter(empty, tensor.requires_grad) if weight else empty
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(alive.keep)
        with alive:
            batch = views(module, images, cfg.data.crop_size)
            with torch.autocast("cpu", torch.bfloat16, enabled=cfg.trainer.precision == "bf16-mixed"):
                loss = module.training_step(batch, 0)
            loss.backward()
    return alive, counter.get_total_flops()


def views(module: Segmentation, images: int, side: int) -> dict:
    """A batch as the loaders give it: bytes."""
    shape = (images, module.student.in_channels, side, side)
    labeled = {"image": torch.empty(shape, dtype=torch.uint8), "mask": torch.zeros(shape[0], side, side).long()}
    if not module.uses_unlabeled:
        return {"labeled": labeled}
    strong = torch.empty(images, module.method.views.strong, *shape[1:], dtype=torch.uint8)
    valid = torch.ones(images, side, side, dtype=torch.bool)
    unlabeled = {"weak": torch.empty(shape, dtype=torch.uint8), "strong": strong, "valid": valid}
    return {"labeled": labeled, "unlabeled": unlabeled, "other": dict(unlabeled)}


def count(calls: list[int], unit: nn.Module) -> None:
    """Count a call of a unit: with a gradient it is gathered once more in the backward pass."""
    calls[0 if torch.is_grad_enabled() and any(p.requires_grad for p in unit.parameters()) else 1] += 1


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class Row(NamedTuple):
    """One number of GPUs: images of a step, of each GPU at once, in how many rounds; the rest of `train.py`'s rule."""

    gpus: int
    total: int
    images: int
    rounds: int
    lr: float


def plan(cfg: DictConfig, gpus: int) -> Row:
    """How a recipe is shared: as it is, as long as each GPU has two images, beyond that with per_device=2."""
    batch = cfg.recipe.batch
    if batch % gpus == 0 and batch // gpus >= 2:
        images = device_batch(batch, cfg.most_per_device, "gpu", gpus, 1)
        return Row(gpus, batch, images, batch // gpus // images, cfg.optimizer.lr)
    growth, sgd = 2 * gpus / batch, cfg.optimizer._target_.endswith(".SGD")
    return Row(gpus, 2 * gpus, 2, 1, cfg.optimizer.lr * growth if sgd else grown_lr(cfg.optimizer.lr, "", growth))


def table(cfg: DictConfig, gpus: Iterable[int] = GPUS) -> Table:
    """What each number of GPUs needs and sends."""
    found: dict[int, Cost] = {}
    shown = Table(
        "GPUs", "images", "of a GPU", "lr", "ddp GiB", "fsdp GiB", "ddp GB sent", "fsdp GB sent", "ddp send : compute",
        "fsdp send : compute", f"steps for {IMAGES:,} images",
    )  # fmt: skip
    for row in (plan(cfg, number) for number in gpus):
        each = found[row.images] = found.get(row.images) or cost(cfg, row.images)
        memory = [f"{each.memory(row.gpus, divided=divided) / 2**30:.1f}" for divided in (False, True)]
        sent = [each.sent(row.gpus, row.rounds, divided=divided) for divided in (False, True)]
        compute = row.rounds * each.flops / FLOPS
        shares = [f"{bytes / (INSIDE if row.gpus <= NODE else BETWEEN) / compute:.2f}" for bytes in sent]
        shown.add_row(
            str(row.gpus), str(row.total), f"{row.rounds} x {row.images}", f"{row.lr:.2g}", *memory,
            *(f"{bytes / 1e9:.2f}" for bytes in sent), *shares, str(-(-IMAGES // row.total)),
        )  # fmt: skip
    one = next(iter(found.values()))
    weights = f"{one.student / 4e6:.1f} million weights, {one.flops / 1e12:.2f} TFLOP for {next(iter(found))} images"
    shown.title = f"{cfg.method.name}, {cfg.backbone.name}, {cfg.trainer.precision}: {weights}"
    return shown


def main() -> None:
    """Print the table of the recipe that the command line means."""
    with one_line_errors():
        words = command_line([*sys.argv[1:]])
        fixed = ["backbone.weights=null", "output=cost", "recipe.burn_in_epochs=0", "features=none"]
        precision = [] if any("precision" in word for word in words) else ["trainer.precision=bf16-mixed"]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("train", [*precision, *words, *fixed])
        Console(width=140).print(table(cfg))


if __name__ == "__main__":
    main()
