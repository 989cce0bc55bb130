"""Nothing in a step waits for the device or leaves it: proven on tensors without values, which nothing could read back.

A fake tensor has a shape and a device, also one that is not there, but no numbers. Reading one (`.item()`,
`if tensor`), a shape that depends on one (`nonzero`, masks as indices) and tensors of two devices in one operation are
errors.
"""

import functools
from pathlib import Path

import lightning.pytorch as L
import pytest
import torch
from test_module import NUM_CLASSES, make_batch, make_module
from torch import nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from pcr_seg.commands.export import flags_as_constants
from pcr_seg.data.datamodule import SegmentationData
from pcr_seg.data.sources import Source
from pcr_seg.method import PrototypeBank, jittered_grid, pcr
from pcr_seg.module import Segmentation

OHEM = ["recipe.supervised_loss._target_=pcr_seg.method.losses.ohem_cross_entropy"]
SETTINGS = [
    [],
    ["method=supervised"],
    ["method=consistency"],
    ["method=unimatch"],
    ["method=fixmatch"],
    ["method.prototype_gate=false", "method.bank_labels=teacher"],
    ["module.teacher_bn=forward"],
    ["method=pcr_named", "module.teacher_bn=weak"],
    ["model.auxiliary=true", *OHEM],
]


def fake_like(tensor: torch.Tensor, device: str = "cpu") -> torch.Tensor:
    """Shape, layout and type of a tensor, without its numbers."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)


def fake(module: nn.Module, device: str = "cpu") -> None:
    """Replace every parameter and buffer by a fake one."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    empty = fake_like(tensor, device)
                    tensors[name] = nn.Parameter(empty, tensor.requires_grad) if name in part._parameters else empty


def step_inputs(tmp_path: Path, overrides: list[str]) -> tuple[Segmentation, dict]:
    """A module that asks a trainer for no more than its epochs, and a batch in bytes, as loaders give it."""
    module = make_module(tmp_path, "recipe.burn_in_epochs=0", *overrides)
    module.trainer = L.Trainer(accelerator="cpu", logger=False, max_epochs=2)
    labeled, unlabeled = make_batch()
    views = module.method.views.strong if module.uses_unlabeled else 1
    unlabeled["strong"] = unlabeled["strong"].repeat(1, views, 1, 1, 1)
    for part, key in ((labeled, "image"), (unlabeled, "weak"), (unlabeled, "strong")):
        part[key] = (part[key] * 60 + 120).clamp(0, 255).byte()
    return module, {"labeled": labeled, "unlabeled": unlabeled, "other": unlabeled}


class Doubles(TorchDispatchMode):
    """Notes the operations that make double-precision tensors, which Apple's GPUs do not have."""

    def __init__(self) -> None:
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, function: object, types: object, args: tuple = (), kwargs: dict | None = None):
        result = function(*args, **(kwargs or {}))
        if any(getattr(made, "dtype", None) == torch.float64 for made in tree_leaves(result)):
            self.found.add(str(function))
        return result


@pytest.mark.parametrize("overrides", SETTINGS)
def test_a_step_reads_nothing_back(tmp_path: Path, overrides: list[str]) -> None:
    module, batch = step_inputs(tmp_path, overrides)
    with FakeTensorMode():
        fake(module)
        with Doubles() as doubles:
            loss = module.training_step(tree_map(fake_like, batch), 0)
            loss.backward()
            module.teacher.follow(module.student)
    assert not doubles.found
    assert isinstance(loss, FakeTensor) and all(isinstance(x, FakeTensor) for x in module.method.buffers())
    assert any(parameter.grad is not None for parameter in module.student.parameters())


def fake_on_gpu(module: Segmentation) -> None:
    """Move a module to a GPU that need not be there."""
    fake(module, "cuda")
    module._device = torch.device("cuda", 0)  # what module.to sets, which cannot move fake parameters


# No gradients below: their graph would ask for the driver.
@pytest.mark.parametrize("overrides", SETTINGS)
def test_a_step_stays_on_its_device(tmp_path: Path, overrides: list[str]) -> None:
    module, batch = step_inputs(tmp_path, overrides)
    with FakeTensorMode(), torch.no_grad():
        fake_on_gpu(module)
        loss = module.training_step(tree_map(functools.partial(fake_like, device="cuda"), batch), 0)
        module.teacher.follow(module.student)
    assert {x.device.type for x in (loss, *module.method.buffers())} == {"cuda"}


@pytest.mark.parametrize("protocol", ["whole", "sliding_multi_scale", "voc_center_pad"])
def test_a_prediction_stays_on_its_device(tmp_path: Path, protocol: str) -> None:
    module = make_module(tmp_path, "method=pcr_named", f"protocol={protocol}")
    flags_as_constants(module.method)
    with FakeTensorMode(), torch.no_grad():
        fake_on_gpu(module)
        heads = module.predictor.scored(torch.empty(2, 3, 40, 56, device="cuda"))
    assert [logits.shape[1] for logits in heads.values()] == [NUM_CLASSES] * 2
    assert {logits.device.type for logits in heads.values()} == {"cuda"}


def test_a_tensor_of_another_device_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(height: int, width: int, cells: int, device: torch.device) -> torch.Tensor:
        return jittered_grid(height, width, cells)

    monkeypatch.setattr(pcr, "jittered_grid", forgetful)
    with pytest.raises((RuntimeError, IndexError), match="device"):
        test_a_step_stays_on_its_device(tmp_path, [])


def test_a_value_that_is_read_back_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def update_if_any(bank: PrototypeBank, features: torch.Tensor, labels: torch.Tensor) -> None:
        if (labels != 255).any():
            bank.assigned = features

    monkeypatch.setattr(PrototypeBank, "update", update_if_any)
    with pytest.raises(DataDependentOutputException):
        test_a_step_reads_nothing_back(tmp_path, [])
    monkeypatch.setattr(PrototypeBank, "update", lambda bank, features, labels: features[labels != 255])
    with pytest.raises(DynamicOutputShapeException):
        test_a_step_reads_nothing_back(tmp_path, [])


class Reads(TorchDispatchMode):
    """Counts the values that are read back from tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: object, types: object, args: tuple = (), kwargs: dict | None = None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


class CountReads(L.Callback):
    """Notes the reads before each batch's start."""

    def __init__(self) -> None:
        self.reads, self.counts = Reads(), []

    def on_train_batch_start(self, *_: object) -> None:
        self.counts.append(self.reads.count)


def test_logging_reads_nothing_between_its_intervals(tmp_path: Path, tiny_set: Source) -> None:
    module = make_module(tmp_path, "optimizer=sgd", "method.burn_in_epochs=0")
    del module.log, module.log_dict  # the real ones
    data = SegmentationData(tiny_set, 4, crop_size=32, batch_size=2, steps_per_epoch=7, num_workers=0)
    counter = CountReads()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=L.loggers.CSVLogger(tmp_path),
        log_every_n_steps=3,
        limit_val_batches=0,
        callbacks=[counter],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    with counter.reads:
        trainer.fit(module, datamodule=data)
    reads = [after - before for before, after in zip(counter.counts, counter.counts[1:], strict=False)]
    assert [count > 0 for count in reads] == [False, False, True] * 2  # none but where the logger writes its row
