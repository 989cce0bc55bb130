"""A checkpoint's network as one file for other programs: ONNX or pt2."""

import json
import math
import operator
import os
from collections.abc import Callable
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from pcr_seg.inference import predict_heads
from pcr_seg.method import PrototypeBank
from pcr_seg.module import initialized
from pcr_seg.pixels import mean_and_std
from pcr_seg.region_names import RegionNames
from pcr_seg.run import load_module

SIZES = ((2, 128, 160), (1, 97, 131), (3, 224, 161))  # batch, height, width; the first is also the one that is traced
TOLERANCE = 1e-3  # of logits


class Predictor(nn.Module):
    """The evaluated network with its linear head, and with a bank also the prototype head, as one plain function."""

    def __init__(self, network: nn.Module, bank: PrototypeBank | None, region_names: RegionNames | None) -> None:
        super().__init__()
        self.network, self.bank, self.region_names = network, bank, region_names

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """(B, channels, H, W) normalized -> logits (B, C, H, W); with a bank a pair of them, linear and prototype."""
        logits = predict_heads(self.network, self.bank, image, self.region_names)
        return logits if self.bank is None else logits.chunk(2, dim=1)


def export(cfg: DictConfig) -> Path:
    """Write the predictor as ONNX or pt2 with dynamic batch, height and width, compared at three sizes.

    Raises:
        ValueError: an unknown format, no prototypes where their head is asked for, or a file that answers differently.
    """
    if cfg.format not in ("onnx", "pt2"):
        raise ValueError(f"format={cfg.format}: choose onnx or pt2")
    module = load_module(cfg.checkpoint, student=cfg.eval.student)
    if cfg.prototype_head and not module.bank.is_initialized:
        raise ValueError(f"prototype_head=true: {cfg.checkpoint} has no prototypes yet; export the linear head alone")
    bank = module.bank if cfg.prototype_head else None
    predictor = Predictor(module.network, bank, initialized(module.region_names)).eval()
    predictor.to(memory_format=torch.contiguous_format)  # pt2 files warn of weights in another layout
    channels = predictor.network.backbone.in_channels
    images = [torch.randn(batch, channels, height, width) for batch, height, width in SIZES]
    output = Path(cfg.output or Path(cfg.checkpoint).with_suffix(f".{cfg.format}"))
    axes = {0: "batch", 2: "height", 3: "width"}
    dynamic = {axis: torch.export.Dim(name, min=1 if axis == 0 else 32) for axis, name in axes.items()}
    program = torch.export.export(
        predictor,
        (images[0],),
        dynamic_shapes={"image": dynamic},
        prefer_deferred_runtime_asserts_over_guards=True,  # pooling sizes are beyond what it can prove
    )
    partial = output.with_name("partial_" + output.name)
    write = write_pt2 if cfg.format == "pt2" else write_onnx
    exported = write(program, partial, metadata(module.metadata, channels))
    difference = max(largest_difference(predictor, exported, image) for image in images)
    if difference > TOLERANCE:
        raise ValueError(f"{output}: its logits differ from the network's by {difference:.2g}; not written")
    os.replace(partial, output)
    sizes = ", ".join(f"{batch} x {height} x {width}" for batch, height, width in SIZES)
    print(f"{output}: logits within {difference:.1g} of the network's at {sizes}")
    print(f"docs/export.md runs it without this package; python app.py checkpoint={cfg.checkpoint}")
    return output


def metadata(checkpoint: dict, channels: int) -> dict[str, object]:
    """What a program needs to feed the file and to read its answer: preprocessing, classes and their colors."""
    mean, std = mean_and_std(channels)
    return {
        "classes": checkpoint["classes"],
        "palette": checkpoint["palette"],
        "color_order": {1: "grey", 3: "RGB", 4: "RGB and a fourth channel"}[channels],
        "value_range": [0, 255],  # of what mean and std apply to
        "mean": [round(float(value), 3) for value in mean],
        "std": [round(float(value), 3) for value in std],
        "dataset": checkpoint["dataset"],
    }


@torch.inference_mode()
def largest_difference(predictor: Callable, exported: Callable, image: Tensor) -> float:
    """Largest absolute difference of any logit between the network and the file."""
    pairs = [result if isinstance(result, tuple) else (result,) for result in (predictor(image), exported(image))]
    return max((a - b).abs().max().item() for a, b in zip(*pairs, strict=True))


def write_pt2(program: torch.export.ExportedProgram, path: Path, metadata: dict[str, object]) -> Callable:
    """Write one pt2 file, the metadata as its extra file metadata.json, and return a function that runs it."""
    round_up_in_integers(program.graph)
    torch.export.save(program, path, extra_files={"metadata.json": json.dumps(metadata)})
    return torch.export.load(path).module()


def round_up_in_integers(graph: torch.fx.Graph) -> None:
    """Write ceil(a / b) on sizes as (a + b - 1) // b: timm's "same" padding uses the first, which pt2 cannot store."""

    def call(function: Callable, *arguments: object) -> torch.fx.Node:
        node = graph.call_function(function, arguments)
        node.meta["val"] = function(*(getattr(argument, "meta", {"val": argument})["val"] for argument in arguments))
        return node

    for node in [node for node in graph.nodes if node.target is math.ceil]:
        a, b = node.args[0].args
        with graph.inserting_before(node):
            node.replace_all_uses_with(call(operator.floordiv, call(operator.add, a, b - 1), b))
        graph.erase_node(node)
    graph.eliminate_dead_code()


def write_onnx(program: torch.export.ExportedProgram, path: Path, metadata: dict[str, object]) -> Callable:
    """Write one ONNX file, the metadata as JSON under its keys, and return a function that runs it."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch's exporter imports it late and fails less clearly
    except ImportError as error:
        raise ValueError("format=onnx needs more packages: pip install 'pcr-seg[export]'") from error
    names = ["logits", "prototype_logits"][: len(program.graph_signature.user_outputs)]
    onnx = torch.onnx.export(program, verbose=False, input_names=["image"], output_names=names)
    onnx.model.metadata_props.update({key: json.dumps(value) for key, value in metadata.items()})
    onnx.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda image: tuple(torch.from_numpy(x) for x in session.run(None, {"image": image.numpy()}))
