"""Exported files answer as the network does, say what they need, and run without us."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import composed, small_config
from faults import finish, start
from PIL import Image
from timm.layers import Conv2dSame
from torch import nn

from pcr_seg.checkpoint import load
from pcr_seg.commands.export import export, export_program, output_of, pad_alike
from pcr_seg.data.files import read_image
from pcr_seg.inference import whole_image
from pcr_seg.method import Supervised
from pcr_seg.models.backbones import TimmBackbone
from pcr_seg.models.mlp import MLP
from pcr_seg.pixels import as_tensor, normalize
from pcr_seg.predictor import Predictor
from pcr_seg.training.fit import fit

ROOT = Path(__file__).parents[1]
CLASSES = ["background", "stripes", "checks", "dots", "rings"]
SHAPES = [(1, 3, 75, 141), (2, 3, 64, 96), (3, 3, 33, 150)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    fit(small_config(root, "method=pcr_named", "method.threshold=0.2"))  # all that a file may hold
    return root / "run/checkpoints/last.ckpt"


@pytest.fixture(scope="module")
def onnx(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With both heads, by the command: the shape checks of these tests know no sizes that are still free."""
    pytest.importorskip("onnxruntime", reason="needs the export extra")
    file = tmp_path_factory.mktemp("onnx") / "model.onnx"
    arguments, log = [f"checkpoint={checkpoint}", f"output={file}", "prototype_head=true"], checkpoint.with_name("log")
    assert finish(start(arguments, log, script=ROOT / "export.py")) == 0, log.read_text()
    assert re.search(r"model\.onnx: logits within \S+ of the network's at .*1 x 97 x 131", log.read_text())
    assert [path.name for path in file.parent.iterdir()] == ["model.onnx"], "one file"
    return file


def expected(checkpoint: Path, image: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        return load(checkpoint)(image)


def check_metadata(about: dict) -> None:
    """By the values of ImageNet and the generated set, written out."""
    assert about["classes"] == CLASSES and about["dataset"] == "synthetic"
    assert len(about["palette"]) == 5 and about["palette"][1] == [230, 90, 60]
    assert (about["color_order"], about["value_range"]) == ("RGB", [0, 255])
    assert about["mean"] == [123.675, 116.28, 103.53] and about["std"] == [58.395, 57.12, 57.375]


def test_onnx_answers_as_both_heads_do(checkpoint: Path, onnx: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(onnx), providers=["CPUExecutionProvider"])
    check_metadata({key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()})
    for shape in SHAPES:
        image = torch.randn(shape)
        found = session.run(["logits", "prototype_logits"], {"image": image.numpy()})
        for logits, wanted in zip(found, expected(checkpoint, image).values(), strict=True):
            torch.testing.assert_close(torch.from_numpy(logits), wanted, rtol=1e-3, atol=1e-3)


def test_pt2_answers_as_the_linear_head_does(checkpoint: Path, tmp_path: Path) -> None:
    file = export(composed(f"checkpoint={checkpoint}", "format=pt2", f"output={tmp_path}/m.pt2", name="export"))
    assert [path.name for path in tmp_path.iterdir()] == ["m.pt2"], "one file"
    extra = {"metadata.json": ""}
    program = torch.export.load(file, extra_files=extra).module()
    check_metadata(json.loads(extra["metadata.json"]))
    for shape in SHAPES:
        image = torch.randn(shape)
        torch.testing.assert_close(program(image), expected(checkpoint, image)["linear"], rtol=1e-3, atol=1e-4)


def test_script_of_the_docs_runs_without_this_package(checkpoint: Path, onnx: Path, tmp_path: Path) -> None:
    docs = (ROOT / "docs/export.md").read_text(encoding="utf-8")
    [script] = re.findall(r"```python\n(.*?)```", docs, re.DOTALL)
    assert set(re.findall(r"^(?:import|from) (\w+)", script, re.MULTILINE)) == {
        "json", "sys", "numpy", "onnxruntime", "PIL"
    }  # fmt: skip
    (tmp_path / "run_onnx.py").write_text(script)
    image = next(checkpoint.parents[2].glob("data/*/images/val/*.png"))
    command = [sys.executable, "-W", "error", "run_onnx.py", str(onnx), str(image), "mask.png"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    wanted = expected(checkpoint, normalize(as_tensor(read_image(image)))[None])["linear"][0].argmax(dim=0).numpy()
    with Image.open(tmp_path / "mask.png") as mask:
        assert mask.mode == "P" and (np.asarray(mask) == wanted).mean() > 0.999
    shares = dict(line.split(": ") for line in result.stdout.splitlines())
    assert set(shares) == {CLASSES[label] for label in np.unique(wanted)}


def test_what_cannot_be_exported_is_one_line(tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="format=tflite: choose onnx, pt2, weights or hub"):
        export(composed(f"checkpoint={checkpoint}", "format=tflite", name="export"))
    content = torch.load(checkpoint, weights_only=True)
    content["state_dict"]["method.bank.is_initialized"].fill_(False)
    torch.save(content, tmp_path / "early.ckpt")
    with pytest.raises(ValueError, match=r"prototype_head=true: .*early\.ckpt has no prototypes yet"):
        export(composed(f"checkpoint={tmp_path}/early.ckpt", "prototype_head=true", name="export"))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file: cannot be written \(.*\); name another file with output=FILE"):
        export(composed(f"checkpoint={checkpoint}", f"output={tmp_path}/file/m.onnx", name="export"))


def test_the_student_alone_predicts_without_being_asked_for(tmp_path: Path, checkpoint: Path, monkeypatch) -> None:
    words = [f"checkpoint={checkpoint}", "format=weights", "eval.student=true", f"output={tmp_path}/student.ckpt"]
    export(composed(*words, name="export"))
    found, student = load(tmp_path / "student.ckpt"), load(checkpoint, network="student")
    assert torch.equal(*(next(each.network.parameters()) for each in (found, student)))
    with pytest.raises(ValueError, match=r"student\.ckpt: holds the student alone"):
        load(tmp_path / "student.ckpt", network="teacher")


def test_a_file_of_the_hub_is_written_here() -> None:
    cfg = composed("checkpoint=hf://me/model.v1@abc", name="export")
    assert output_of(cfg, ".pt2") == Path("model.v1.pt2")


class InFours(nn.Module):
    """A network that shows its layers multiples of four pixels, which torch's tracer does not follow."""

    num_classes, feature_dim = 3, 3

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, 2, 1)

    def forward(self, images: torch.Tensor) -> SimpleNamespace:
        sides = [4 * round(int(side) / 4) for side in images.shape[-2:]]
        features = self.layer(F.interpolate(images, sides))
        return SimpleNamespace(logits=features, features=features)


def test_a_network_of_one_size_says_so_and_is_exported_for_it(tmp_path: Path) -> None:
    predictor = Predictor(InFours(), Supervised(), list("abc"), [(0, 0, 0)] * 3, whole_image).eval()
    arguments = ["checkpoint=own.ckpt", "format=pt2", f"output={tmp_path}/m.pt2"]
    with pytest.raises(ValueError, match=r"^format=pt2: torch .* any size \(.*\); .* as size=\[512,512\]$"):
        export_program(composed(*arguments, name="export"), predictor)
    file = export_program(composed(*arguments, "size=[41,57]", name="export"), predictor)
    extra = {"metadata.json": ""}
    program, image = torch.export.load(file, extra_files=extra).module(), torch.randn(2, 3, 41, 57)
    assert json.loads(extra["metadata.json"])["size"] == [41, 57]
    torch.testing.assert_close(program(image), predictor(image)["linear"])


@pytest.mark.parametrize("size", [(64, 96), (97, 131), (224, 161)])
def test_fixed_padding_is_that_of_the_size_where_images_are_shown_on_a_grid(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = MLP(TimmBackbone("tf_efficientnet_lite0"), 3).eval()
    image = torch.randn(1, 3, *size)
    with torch.inference_mode():
        expected = network(image).logits
        pad_alike(network)
        assert not any(isinstance(layer, Conv2dSame) for layer in network.modules())
        assert torch.allclose(network(image).logits, expected, atol=1e-5)
