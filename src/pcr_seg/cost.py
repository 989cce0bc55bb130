"""Predict a training's memory on each GPU and its traffic between GPUs: on a CPU, without data or weights.

python -m pcr_seg.cost dataset=cityscapes
python -m pcr_seg.cost dataset=coco backbone=dinov2_base backbone.checkpointing=true trainer.precision=32-true

It takes the keys of train.py. One training step runs on fake tensors, which have shapes but no numbers. The bytes of
the tensors that exist at the same time are counted, and their peak is the step's memory. docs/scaling.md lists the
assumptions.
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

from pcr_seg.commands.start import check
from pcr_seg.config import CONF, command_line, device_batch, grown_lr, one_line_errors
from pcr_seg.data import sources, synthetic
from pcr_seg.module import Segmentation
from pcr_seg.processes import units
from pcr_seg.training.fit import build_module

GPUS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
NODE = 8  # GPUs of a machine
FLOPS = 1.8e14  # per second: measured for a step of the Cityscapes recipe in bf16 on an H200, docs/performance.md
INSIDE, BETWEEN = 3e11, 2.5e10  # bytes per second of each GPU: NVLink inside of a machine, 200 Gbit/s between machines
IMAGES = 10_000  # unlabeled images, about as many as VOC has
CLASSES = {
    "voc": sources.VOC_CLASSES, "voc_aug": sources.VOC_CLASSES, "cityscapes": sources.CITYSCAPES_CLASSES,
    "camvid": sources.CAMVID_CLASSES, "ade20k": sources.ADE20K_CLASSES, "coco": range(1 + len(sources.COCO_THINGS)),
    "synthetic": synthetic.CLASSES,
}  # fmt: skip  # any other data set is counted with VOC's classes


class Unit(NamedTuple):
    """Weights that FSDP gathers at once, and how often a step does so."""

    bytes: int  # of all its weights
    trained: int  # bytes of those with a gradient
    with_gradient: int  # forwards that a backward follows, which gathers once more
    without: int  # forwards without a backward


class Cost(NamedTuple):
    """What one process needs for one batch: bytes, unless another unit is given."""

    student: int  # the student's weights
    teacher: int  # the teacher's weights, without those that it shares with the student
    buffers: int
    trained: int  # weights with a gradient
    optimizer: int  # the optimizer's state
    peak: int  # the most that a step allocates beside all these at one time, gradients included
    activations: int  # the same without gradients
    flops: float  # floating-point operations of the step
    bank: int  # prototypes
    units: tuple[Unit, ...]  # by which FSDP would divide the weights

    def memory(self, gpus: int, *, divided: bool) -> float:
        """Return the bytes that each of `gpus` holds, with `ddp` or, `divided`, with `fsdp`."""
        if not divided:
            buckets = self.trained if gpus > 1 else 0
            return self.student + self.teacher + self.buffers + self.optimizer + buckets + self.peak
        shares = (self.student + self.teacher + self.trained + self.optimizer) / gpus
        largest = max((unit.bytes + unit.trained for unit in self.units), default=0)
        training = 2 * largest + self.activations  # twice: while a unit computes, the next one is gathered
        return shares + self.buffers + max(training, self.teacher)  # an evaluation holds the whole teacher

    def sent(self, gpus: int, rounds: int, *, divided: bool) -> float:
        """Return the bytes that each GPU sends in an optimizer step of `rounds` batches."""
        share = (gpus - 1) / gpus
        bank = 2 * self.bank * rounds
        if not divided:
            return share * (2 * self.trained + bank)
        gathered = sum(unit.bytes * (2 * unit.with_gradient + unit.without) for unit in self.units)
        reduced = sum(unit.trained * unit.with_gradient for unit in self.units)
        return share * (rounds * (gathered + reduced) + bank)


class Alive(TorchDispatchMode):
    """A context that counts the bytes of the tensors made inside of it, from their creation to their deletion."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = self.gradients = self.activations = 0

    def __torch_dispatch__(self, func: object, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        """Run an operation and count the tensors that it returns."""
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
        """Take off a tensor that has been deleted."""
        self.now -= self.sizes.pop(key)

    def keep(self, parameter: nn.Parameter) -> None:
        """Count a weight's gradient, which stays to the end of the step."""
        self.gradients += parameter.grad.untyped_storage().nbytes()


def cost(cfg: DictConfig, images: int) -> Cost:
    """Return the cost of a step of `images` labeled images and as many unlabeled ones, run on fake tensors."""
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
    """Run one step on fake tensors; return the memory that it took, and its number of floating-point operations."""
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
    """Return a batch as the loaders give it, in bytes, with images of `side` x `side` pixels."""
    shape = (images, module.student.in_channels, side, side)
    labeled = {"image": torch.empty(shape, dtype=torch.uint8), "mask": torch.zeros(shape[0], side, side).long()}
    if not module.uses_unlabeled:
        return {"labeled": labeled}
    strong = torch.empty(images, module.method.views.strong, *shape[1:], dtype=torch.uint8)
    valid = torch.ones(images, side, side, dtype=torch.bool)
    unlabeled = {"weak": torch.empty(shape, dtype=torch.uint8), "strong": strong, "valid": valid}
    return {"labeled": labeled, "unlabeled": unlabeled, "other": dict(unlabeled)}


def count(calls: list[int], unit: nn.Module) -> None:
    """Count a forward of a unit: in `calls[0]` if a backward follows, which gathers it again, else in `calls[1]`."""
    calls[0 if torch.is_grad_enabled() and any(p.requires_grad for p in unit.parameters()) else 1] += 1


def size(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class Row(NamedTuple):
    """How `train.py` divides a step over a number of GPUs."""

    gpus: int
    total: int  # labeled images of an optimizer step
    images: int  # labeled images of one GPU at once
    rounds: int  # batches that a GPU accumulates
    lr: float  # learning rate


def plan(cfg: DictConfig, gpus: int) -> Row:
    """Divide a recipe's batch over GPUs; where less than two images would be left for each, use per_device=2."""
    batch = cfg.recipe.batch
    if batch % gpus == 0 and batch // gpus >= 2:
        images = device_batch(batch, cfg.most_per_device, "gpu", gpus, 1)
        return Row(gpus, batch, images, batch // gpus // images, cfg.optimizer.lr)
    growth, sgd = 2 * gpus / batch, cfg.optimizer._target_.endswith(".SGD")
    return Row(gpus, 2 * gpus, 2, 1, cfg.optimizer.lr * growth if sgd else grown_lr(cfg.optimizer.lr, "", growth))


def table(cfg: DictConfig, gpus: Iterable[int] = GPUS) -> Table:
    """Return a table of memory and traffic, with a row for each number of GPUs."""
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
    """Print the table of the training that the command line describes."""
    if {"-h", "--help"} & {*sys.argv}:
        print(__doc__)
        return
    with one_line_errors():
        words = command_line([*sys.argv[1:]])
        check("train", words)
        fixed = ["backbone.weights=null", "output=cost", "recipe.burn_in_epochs=0", "features=none"]
        precision = [] if any("precision" in word for word in words) else ["trainer.precision=bf16-mixed"]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("train", [*precision, *words, *fixed])
        Console(width=140).print(table(cfg))


if __name__ == "__main__":
    main()
