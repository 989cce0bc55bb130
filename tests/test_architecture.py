"""Imports point down, as CONTRIBUTING.md draws them; the engine knows no method; methods need torch alone."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src/pcr_seg"
FILES = {"data.files", "data.sources"}
SHAPES = {"data.imports.images", "data.imports.shapes"}
TOOLS = ("coco", "cvat", "labelme", "labelstudio", "masks", "supervisely", "via", "yolo")
ALLOWED = {
    "pixels": set(),
    "method.sampling": set(),
    "method.losses": {"method.sampling"},
    "method.mixing": {"method.losses"},
    "method.prototypes": {"method.losses", "method.sampling"},
    "method.teacher": {"method.losses", "method.sampling"},
    "method.supervised": {"method.losses", "method.teacher"},
    "method.consistency": {"method.losses", "method.mixing", "method.sampling", "method.teacher"},
    "method.fixmatch": {"method.losses", "method.mixing", "method.sampling", "method.teacher"},
    "method.unimatch": {"method.losses", "method.mixing", "method.sampling", "method.teacher"},
    "method.unimatch_v2": {"method.losses", "method.mixing", "method.sampling", "method.teacher"},
    "method.pcr": {"method.losses", "method.mixing", "method.prototypes", "method.sampling", "method.teacher"},
    "method.pcr_crossed": {"method.losses", "method.pcr", "method.teacher"},
    "method.second_head": {"method.losses", "method.pcr_crossed", "method.sampling", "method.teacher"},
    "method.region_names": {"method.losses", "method.prototypes"},
    "method.pcr_plus": {
        "method.losses", "method.mixing", "method.pcr", "method.region_names", "method.sampling", "method.teacher",
        "method.unimatch",
    },
    "models.weights": set(),
    "models.backbones": {"method.sampling", "models.weights", "pixels"},
    "models.output": set(),
    "models.deeplab": {"models.output"},
    "models.dpt": {"method.sampling", "models.backbones", "models.output"},
    "models.mlp": {"method.sampling", "models.output", "pixels"},
    "models.official": set(),
    "models.smp": {"method.sampling", "models.backbones", "models.output", "pixels"},
    "data.files": set(),
    "data.classes": set(),
    "data.pool": {"data.files"},
    "data.sources": {"data.classes", "data.files", "data.pool"},
    "data.published": set(),
    "data.coco": {"data.classes", "data.files", "data.imports.shapes", "data.published"},
    "data.splits": {"data.files", "data.pool", "data.published", "data.sources"},
    "data.groups": {"data.files", "data.sources"},
    "data.held_out": {"data.files", "data.groups", "data.sources", "data.splits"},
    "data.objects": {"data.files", "data.sources", "data.splits"},
    "data.check": {"data.files", "data.held_out", "data.objects", "data.sources", "data.splits"},
    "data.suggest": {"data.files", "data.held_out", "data.objects", "data.sources", "data.splits"},
    "data.prepare": {
        "data.coco", "data.files", "data.pool", "data.published", "data.sources", "data.splits",
    },
    "data.imports.shapes": {"data.files"},
    "data.imports.images": {"data.files", "data.imports.shapes", "data.sources"},
    **{f"data.imports.{tool}": {"data.files", "data.sources", *SHAPES} for tool in TOOLS},
    "data.imports.drawing": {"data.files", "data.imports.shapes", "data.prepare"},
    "data.imports.dividing": {"data.splits"},
    "data.imports.layout": {
        "data.classes", "data.files", "data.groups", "data.imports.dividing", "data.imports.drawing", "data.prepare",
        "data.sources", *SHAPES,
    },
    "data.imports.importing": {
        "data.files", "data.imports.drawing", "data.imports.layout", *SHAPES,
        *(f"data.imports.{tool}" for tool in TOOLS),
    },
    "data.annotations": {"data.files", "data.imports.shapes"},
    "data.synthetic": {"data.sources"},
    "data.tiles": {"data.files"},
    "data.transforms": {"data.files", "pixels"},
    "data.features": {"data.files", "pixels"},
    "data.cache": {"data.files"},
    "data.streams": {"data.cache", "data.files", "data.transforms", "pixels"},
    "data.whole": {"data.features", "data.files", "pixels"},
    "data.datamodule": {
        "data.cache", "data.features", "data.files", "data.sources", "data.splits", "data.streams", "data.whole",
        "pixels",
    },
    "report.tables": set(),
    "report.plots": {"report.tables"},
    "report.pages": {"report.plots", "report.tables"},
    "report.write": {"report.pages", "report.plots", "report.tables"},
    "inference": {"method.sampling", "pixels"},
    "predictor": {"data.files", "inference", "method.prototypes", "method.sampling", "pixels"},
    "moved": set(),
    "checkpoint": {"inference", "moved", "predictor"},
    "measures": {"data.files"},
    "scores": {"inference", "measures"},
    "processes": set(),
    "module": {
        "checkpoint", "data.classes", "inference", "method.losses", "method.teacher", "pixels", "predictor",
        "processes", "scores",
    },
    "cluster": set(),
    "config": {"cluster", "data.published", "data.splits", "moved"},
    "pictures.visualize": set(),
    "pictures.panels": {"data.classes", "inference", "measures", "pictures.visualize", "pixels", "predictor", *FILES},
    "training.checkpoints": {"checkpoint"},
    "training.fsdp": {"processes"},
    "training.watch": set(),
    "training.values": {"checkpoint", "config"},
    "training.model_card": set(),
    "training.timer": {"data.datamodule", "module"},
    "training.summary": {"config", "data.datamodule", "module", "scores", "training.checkpoints", "training.timer"},
    "training.resume": {"checkpoint", "config", "moved", "training.checkpoints"},
    "training.folds": {"data.held_out", "data.sources", "data.splits"},
    "training.diagnosis": {
        "data.datamodule", "data.whole", "method.losses", "method.sampling", "method.teacher", "module", "pixels",
        "predictor",
    },
    "training.loggers": {"inference", "module", "pictures.panels", "pictures.visualize", *FILES},
    "training.fit": {
        "checkpoint", "cluster", "config", "data.datamodule", "data.sources", "data.splits", "inference",
        "method.sampling", "models.deeplab", "models.official", "module", "pictures.panels", "pixels",
        "training.checkpoints", "training.diagnosis", "training.folds", "training.fsdp", "training.loggers",
        "training.model_card", "training.resume", "training.summary", "training.timer", "training.values",
    },
    "cost": {"commands.start", "config", "data.sources", "data.synthetic", "module", "processes", "training.fit"},
    "commands.opening": {"checkpoint", "config", "data.held_out", "data.sources", "predictor", "training.values"},
    "commands.evaluate": {
        "commands.opening", "data.files", "data.splits", "data.whole", "measures", "pixels", "predictor", "scores",
    },
    "commands.maps": {
        "commands.opening", "config", "data.annotations", "data.classes", "data.files", "data.tiles", "pictures.panels",
        "pictures.visualize", "predictor",
    },
    "commands.predict": {
        "commands.maps", "commands.opening", "config", "data.annotations", "data.tiles", "pictures.panels", "predictor",
        *FILES,
    },
    "commands.autolabel": {
        "checkpoint", "cluster", "commands.maps", "commands.opening", "pictures.panels", "predictor", *FILES,
    },
    "commands.choose": {
        "commands.opening", "config", "data.annotations", "data.groups", "data.splits", "inference", "pictures.panels",
        "pictures.visualize", "pixels", "predictor", "report.pages", *FILES,
    },
    "commands.export": {"checkpoint", "commands.opening", "pixels", "predictor", "training.model_card"},
    "commands.app": {
        "commands.opening", "data.annotations", "data.files", "data.tiles", "pictures.panels", "pictures.visualize",
        "predictor",
    },
    "commands.prepare": {
        "config", "data.check", "data.imports.importing", "data.pool", "data.prepare", "data.suggest",
        "training.values",
    },
    "commands.help": {"config"},
    "commands.start": {"cluster", "commands.help", "config", "data.published", "training.values"},
    "commands.cli": {"config"},
}  # fmt: skip


def imported(path: Path) -> set[str]:
    """Dotted names of everything that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SRC).with_suffix("").parts)


MODULES = [path for path in SRC.rglob("*.py") if path.name != "__init__.py" and "scripts" not in path.parts]


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_module_imports_only_what_lies_below_it(path: Path) -> None:
    name, names = module_name(path), imported(path)
    ours = {other for other in ALLOWED if f"pcr_seg.{other}" in names}
    assert ours <= ALLOWED[name]
    assert "pcr_seg.method" not in names, "its files are named, so that this test sees them"
    if name.startswith("data.") and name != "data.features":  # which asks a frozen network
        assert "torch.nn" not in names
    if not name.startswith(("commands.", "training.")) and name not in ("config", "cost"):
        assert not {"hydra", "omegaconf"} & {n.split(".")[0] for n in names}


def test_the_house_of_contributing_has_each_file_above_what_it_imports() -> None:
    house = (SRC.parents[1] / "CONTRIBUTING.md").read_text().partition("## The house")[2].partition("| beside it")[0]
    rows = re.findall(r"^\| (`.*?) \|", house, re.MULTILINE)
    places = {re.sub(r"\.py$|/$", "", name): i for i, row in enumerate(rows) for name in re.findall("`(.*?)`", row)}

    def place(module: str) -> int:
        return places[module] if module in places else places[module.partition(".")[0]]

    assert places.keys() - {"data/imports"} == {name.partition(".")[0] for name in ALLOWED}
    assert not [(name, other) for name, others in ALLOWED.items() for other in others if place(name) > place(other)]


@pytest.mark.parametrize("path", sorted((SRC / "method").glob("*.py")), ids=lambda path: path.stem)
def test_a_method_needs_torch_alone(path: Path) -> None:
    roots = {name.split(".")[0] for name in imported(path)}
    assert roots - set(sys.stdlib_module_names) <= {"torch", "jaxtyping", "pcr_seg"}


def test_the_engine_knows_no_method_by_name() -> None:
    text = (SRC / "module.py").read_text()
    methods = [path.stem for path in (SRC / "method").glob("*.py")]
    parts = ("__init__", "losses", "mixing", "sampling", "prototypes", "teacher")
    words = [name.replace("_", "[ _]?") for name in methods if name not in parts] + ["prototype", "bank", "cutmix"]
    found = re.findall(rf"(?i)\b(?:{'|'.join(words)})s?\b", text.replace("pcr_seg", ""))
    assert not found and len(text.splitlines()) < 350


def test_the_paper_is_one_short_file() -> None:
    assert len((SRC / "method/pcr.py").read_text().splitlines()) < 215


LAZY = """
import sys, time
import torch
before = time.process_time()
import pcr_seg
spent = time.process_time() - before
assert not {"lightning", "timm", "hydra", "pcr_seg.method"} & set(sys.modules)
print(spent)
"""


def test_importing_the_package_is_quick() -> None:
    result = subprocess.run([sys.executable, "-c", LAZY], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 0.3


def test_every_public_name_is_there() -> None:
    import pcr_seg

    for name in pcr_seg.__all__:
        assert getattr(pcr_seg, name).__name__ == name
    assert set(pcr_seg.__all__) == set(pcr_seg.HOMES) and pcr_seg.__version__
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = pcr_seg.Nothing


LOADING = """
import sys
from pcr_seg import load
found = load(sys.argv[1]).predict(sys.argv[2])
assert found.labels.shape == found.confidence.shape == found.heads["prototype"].shape[1:]
heavy = {"lightning", "hydra", "omegaconf", "albumentations", "matplotlib", "torchmetrics"} & set(sys.modules)
assert not heavy, heavy
"""


PREDICTING = """
import runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
heavy = {"lightning", "albumentations", "matplotlib", "torchmetrics", "scipy", "pandas"} & set(sys.modules)
assert not heavy, heavy
"""


def test_the_predict_command_needs_nothing_of_training(trained: Path, tmp_path: Path) -> None:
    """But for wandb, which timm imports where it is installed."""
    image = next((trained.parent / "data").rglob("val_00001.png"))
    checkpoint = trained / "checkpoints/last.ckpt"
    arguments = [f"checkpoint={checkpoint}", f"images={image}", f"output={tmp_path}", "format=coco"]
    command = [sys.executable, "-c", PREDICTING, str(SRC.parents[1] / "predict.py"), *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "areas.json").is_file()


def test_loading_and_predicting_need_the_networks_own_libraries_alone(trained: Path) -> None:
    image = next((trained.parent / "data").rglob("val_00001.png"))
    command = [sys.executable, "-c", LOADING, str(trained / "checkpoints/last.ckpt"), str(image)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
