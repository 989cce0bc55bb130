"""A checkpoint's network as one file for other programs: ONNX or pt2."""

import math
import operator
import os
from collections.abc import Callable
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from pcr_seg.inference import predict_heads
from pcr_seg.run import load_module


class LinearPredictor(nn.Module):
    """The evaluated network and its linear head as one plain function, for export."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """(B, channels, H, W) normalized -> logits (B, C, H, W)."""
        return predict_heads(self.network, None, image)


def export(cfg: DictConfig) -> Path:
    """Write the linear predictor as ONNX or pt2 with dynamic batch, height and width, checked at odd sizes."""
    if cfg.format not in ("onnx", "pt2"):
        raise ValueError(f"format={cfg.format}: choose onnx or pt2")
    predictor = LinearPredictor(load_module(cfg.checkpoint, student=cfg.eval.student).network).eval()
    predictor.to(memory_format=torch.contiguous_format)  # pt2 files warn of weights in another layout
    channels = predictor.network.backbone.in_channels
    output = Path(cfg.output or Path(cfg.checkpoint).with_suffix(f".{cfg.format}"))
    dynamic = {"image": {axis: torch.export.Dim(name, min=2 if axis == 0 else 32) for axis, name in
                         ((0, "batch"), (2, "height"), (3, "width"))}}  # fmt: skip
    program = torch.export.export(
        predictor,
        (torch.randn(2, channels, 128, 160),),
        dynamic_shapes=dynamic,
        prefer_deferred_runtime_asserts_over_guards=True,  # pooling sizes are beyond what it can prove
    )
    partial = output.with_name("partial_" + output.name)
    if cfg.format == "pt2":
        round_up_in_integers(program.graph)
        torch.export.save(program, partial)
        exported = torch.export.load(partial).module()
    else:
        exported = export_onnx(program, partial)
    for shape in ((2, channels, 128, 160), (3, channels, 97, 131), (2, channels, 224, 161)):
        image = torch.randn(shape)
        with torch.inference_mode():
            difference = (exported(image) - predictor(image)).abs().max().item()
        if difference > 1e-3:
            raise ValueError(f"{output}: differs from the network by {difference:.2g} at {shape}; not written")
    os.replace(partial, output)
    print(f"{output}: checked against the network at three sizes")
    return output


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


def export_onnx(program: torch.export.ExportedProgram, path: Path):
    """Write one ONNX file and return a function that runs it."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch's exporter imports it late and fails less clearly
    except ImportError as error:
        raise ValueError("format=onnx needs more packages: pip install 'pcr-seg[export]'") from error
    names = {"input_names": ["image"], "output_names": ["logits"]}
    torch.onnx.export(program, f=path, external_data=False, verbose=False, **names)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
