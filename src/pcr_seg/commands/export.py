"""Export a checkpoint's network: as ONNX or pt2 for other programs, as weights alone, or to the Hugging Face Hub."""

import json
import math
import operator
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from omegaconf import DictConfig
from timm.layers import Conv2dSame
from torch import Tensor, nn

from pcr_seg.checkpoint import HUB, HUB_FILE, fetched, is_on_hub, read_checkpoint, weights_alone
from pcr_seg.commands.opening import open_checkpoint, output_folder, run_folder
from pcr_seg.pixels import mean_and_std
from pcr_seg.predictor import Predictor, predict_heads
from pcr_seg.training.model_card import model_card

FORMATS = ("onnx", "pt2", "weights", "hub")
SIZES = ((2, 128, 160), (1, 97, 131), (3, 224, 161))  # batch, height, width to compare at; the first is traced
TOLERANCE = 1e-3  # largest allowed difference of a logit


class Exported(nn.Module):
    """A predictor's linear head, or both heads, as one module that torch can export."""

    def __init__(self, predictor: Predictor, *, prototype_head: bool) -> None:
        super().__init__()
        self.network, self.method, self.prototype_head = predictor.network, predictor.method, prototype_head
        flags_as_constants(self.method)
        if hasattr(self.network, "raw"):  # its backbone only sees sizes of the form n * stride + 1
            pad_alike(self.network)

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return logits (B, C, H, W) of normalized images (B, channels, H, W), or a pair: linear and prototype head."""
        heads = predict_heads(self.network, self.method, image, linear=not self.prototype_head)
        return (heads["linear"], heads["prototype"]) if self.prototype_head else heads["linear"]


def flags_as_constants(method: nn.Module) -> None:
    """Replace buffers that are a single flag (is_initialized) by Python values: a tracer cannot branch on a tensor."""
    for part in method.modules():
        for name, buffer in list(part.named_buffers(recurse=False)):
            if buffer.dtype == torch.bool and buffer.ndim == 0:
                delattr(part, name)
                setattr(part, name, bool(buffer))


def pad_alike(network: nn.Module) -> None:
    """Give convolutions that compute their padding from the size, as TensorFlow does, a fixed padding.

    Tracing the computation takes minutes. On maps of n * stride + 1 positions its result is the same for all sizes, and
    the same on both sides.
    """
    for parent in list(network.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, Conv2dSame):
                fixed = nn.Conv2d(
                    layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride,
                    [d * (k - 1) // 2 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)],
                    layer.dilation, layer.groups, bias=layer.bias is not None,
                )  # fmt: skip
                fixed.load_state_dict(layer.state_dict())
                setattr(parent, name, fixed)


def export(cfg: DictConfig) -> Path | str:
    """Export a checkpoint's network as its format says; return the file, or the address of the commit on the hub.

    Raises:
        ValueError: the format is unknown; `repo` is missing or not wanted; or the export fails (`export_program`,
            `push`).
        FileNotFoundError: for the hub, the checkpoint's run folder has no summary.json.
        OSError: nothing can be written to OUTPUT's folder.
    """
    if cfg.format not in FORMATS:
        raise ValueError(f"format={cfg.format}: choose {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    if (cfg.repo is None) == (cfg.format == "hub"):
        raise ValueError(f"repo={cfg.repo}: format=hub takes repo=USER/NAME, and no other format does")
    predictor = open_checkpoint(cfg)
    if cfg.format == "hub":
        return push(cfg, predictor)
    if cfg.format == "weights":
        return write_weights(cfg, output_of(cfg, ".weights.ckpt"))
    return export_program(cfg, predictor)


def output_of(cfg: DictConfig, suffix: str) -> Path:
    """Return the file to write: by default beside the checkpoint, or for one on a hub in the current folder."""
    if cfg.output:
        return Path(cfg.output)
    if is_on_hub(cfg.checkpoint):
        return Path(cfg.checkpoint.rpartition("/")[2].partition("@")[0] + suffix)
    return Path(cfg.checkpoint).with_suffix(suffix)


def write_weights(cfg: DictConfig, output: Path) -> Path:
    """Write a checkpoint with what prediction needs, without what resuming needs; all other commands can read it."""
    output_folder(output.parent, "name another file with output=FILE")
    content = weights_alone(read_checkpoint(fetched(cfg.checkpoint)), "student" if cfg.eval.student else "teacher")
    partial = output.with_name("partial_" + output.name)
    torch.save(content, partial)
    os.replace(partial, output)
    print(f"{output}: {output.stat().st_size / 1e6:.1f} MB, to predict with: python predict.py checkpoint={output}")
    return output


def push(cfg: DictConfig, predictor: Predictor) -> str:
    """Push weights and model card to a repository on the Hugging Face Hub, which is created if necessary.

    Returns:
        The address of the commit.

    Raises:
        ValueError: the hub refuses, or cannot be reached.
        FileNotFoundError: there is no summary.json of the run, from which the card is made.
    """
    from huggingface_hub import HfApi

    summary = run_folder(cfg) / "summary.json"
    if not summary.is_file():
        raise FileNotFoundError(f"{summary}: no such file, of which the card is made; push a finished run's checkpoint")
    config = predictor.metadata["config"]
    card = model_card(json.loads(summary.read_text(encoding="utf-8")), config, hub=f"{HUB}{cfg.repo}")
    with tempfile.TemporaryDirectory() as folder:
        write_weights(cfg, Path(folder, HUB_FILE))
        Path(folder, "README.md").write_text(card, encoding="utf-8")
        try:
            api = HfApi()
            api.create_repo(cfg.repo, private=cfg.private, exist_ok=True)
            found = api.upload_folder(repo_id=cfg.repo, folder_path=folder, commit_message=f"{predictor.name} weights")
        except Exception as error:  # connection, hub and invalid names each raise classes of their own
            reason = " ".join(str(error).split())
            raise ValueError(f"repo={cfg.repo}: not pushed ({reason}); log in with: hf auth login") from error
    print(f"{found.commit_url}: {'private' if cfg.private else 'public'}")
    print(f"python predict.py checkpoint={HUB}{cfg.repo} images=FOLDER output=predictions")
    return found.commit_url


def export_program(cfg: DictConfig, predictor: Predictor) -> Path:
    """Write the predictor as ONNX or pt2 for any batch, and for any height and width or those of `size` alone.

    The file's logits are compared with the network's for three batches, of three sizes where it takes any.

    Raises:
        ValueError: the prototype head is wanted but has no prototypes; torch is too old; packages are missing; torch
            cannot export the network so; or the file's logits differ from the network's.
        OSError: nothing can be written to OUTPUT's folder.
    """
    if cfg.prototype_head and predictor.bank is None:
        raise ValueError(f"prototype_head=true: {cfg.checkpoint} has no prototypes yet; export the linear head alone")
    output = output_of(cfg, f".{cfg.format}")
    output_folder(output.parent, "name another file with output=FILE")
    function = Exported(predictor, prototype_head=cfg.prototype_head).eval()
    function.to(memory_format=torch.contiguous_format)  # torch warns when it saves other layouts in pt2 files
    sizes = [(batch, *(cfg.size or size)) for batch, *size in SIZES]
    images = [torch.randn(batch, predictor.channels, height, width) for batch, height, width in sizes]
    axes = {0: "batch"} if cfg.size else {0: "batch", 2: "height", 3: "width"}
    dynamic = {axis: torch.export.Dim(name, min=1 if axis == 0 else 32) for axis, name in axes.items()}
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9):
        raise ValueError(f"format={cfg.format}: needs torch 2.9, and this is {torch.__version__}; pip install -U torch")
    try:
        program = torch.export.export(
            function,
            (images[0],),
            dynamic_shapes={"image": dynamic},
            prefer_deferred_runtime_asserts_over_guards=True,  # torch cannot prove its conditions for pooling
        )
    except Exception as error:  # the tracer has many kinds
        what, remedy = "this size", ""
        if not cfg.size:
            what, remedy = "any size", "; give that of your images, as size=[512,512]"
        reason = " ".join(str(error).partition("For more information")[0].split())[:120]
        message = f"format={cfg.format}: torch cannot export this network for {what} ({reason}){remedy}"
        raise ValueError(message) from error
    partial = output.with_name("partial_" + output.name)
    write = write_pt2 if cfg.format == "pt2" else write_onnx
    about = metadata(predictor) | ({"size": list(cfg.size)} if cfg.size else {})
    exported = write(program, partial, about)
    difference = max(largest_difference(function, exported, image) for image in images)
    if difference > TOLERANCE:
        raise ValueError(f"{output}: its logits differ from the network's by {difference:.2g}; not written")
    os.replace(partial, output)
    shapes = ", ".join(f"{batch} x {height} x {width}" for batch, height, width in sizes)
    print(f"{output}: logits within {difference:.1g} of the network's at {shapes}")
    print(f"docs/export.md runs it without this package; python app.py checkpoint={cfg.checkpoint}")
    return output


def metadata(predictor: Predictor) -> dict[str, object]:
    """Return what another program needs to use the file: preprocessing, classes and their colors."""
    channels = predictor.channels
    mean, std = mean_and_std(predictor.network, channels)
    return {
        "classes": predictor.class_names,
        "palette": [list(color) for color in predictor.palette],
        "color_order": {1: "grey", 3: "RGB", 4: "RGB and a fourth channel"}[channels],
        "value_range": [0, 255],  # of the images to which mean and std are applied
        "mean": [round(float(value), 3) for value in mean],
        "std": [round(float(value), 3) for value in std],
        "dataset": predictor.metadata.get("dataset"),
    }


@torch.inference_mode()
def largest_difference(function: Callable, exported: Callable, image: Tensor) -> float:
    """Return the largest absolute difference of a logit between the network and the file."""
    pairs = [result if isinstance(result, tuple) else (result,) for result in (function(image), exported(image))]
    return max((a - b).abs().max().item() for a, b in zip(*pairs, strict=True))


def write_pt2(program: torch.export.ExportedProgram, path: Path, metadata: dict[str, object]) -> Callable:
    """Write a pt2 file with the metadata in its extra file metadata.json; return a function that runs it."""
    round_up_in_integers(program.graph)
    torch.export.save(program, path, extra_files={"metadata.json": json.dumps(metadata)})
    return torch.export.load(path).module()


def round_up_in_integers(graph: torch.fx.Graph) -> None:
    """Replace ceil(a / b) of sizes, which timm's "same" padding uses and pt2 cannot store, by (a + b - 1) // b."""

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
    """Write an ONNX file with each item of the metadata as JSON; return a function that runs it."""
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  torch's exporter needs it, and would fail late and less clearly
    except ImportError as error:
        raise ValueError("format=onnx needs more packages: pip install 'pcr-seg[export]'") from error
    names = ["logits", "prototype_logits"][: len(program.graph_signature.user_outputs)]
    onnx = torch.onnx.export(program, verbose=False, input_names=["image"], output_names=names)
    onnx.model.metadata_props.update({key: json.dumps(value) for key, value in metadata.items()})
    onnx.save(path, external_data=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda image: tuple(torch.from_numpy(x) for x in session.run(None, {"image": image.numpy()}))
