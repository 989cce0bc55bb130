"""Imports point down, as CONTRIBUTING.md draws them."""

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src/pcr_seg"
ALLOWED = {
    "method": set(),
    "region_names": {"method", "pixels"},
    "inference": {"method", "region_names"},
    "visualize": set(),
    "report.tables": set(),
    "report.plots": {"report.tables"},
    "report.pages": {"report.plots", "report.tables"},
    "report.write": {"report.pages", "report.plots", "report.tables"},
    "pixels": set(),
    "bank_init": {"method", "pixels"},
    "module": {"bank_init", "method", "inference", "pixels", "region_names"},
    "models.backbones": set(),
    "models.deeplab": set(),
    "models.official": set(),
    "data.files": set(),
    "data.sources": {"data.files"},
    "data.published": set(),
    "data.splits": {"data.files", "data.published", "data.sources"},
    "data.check": {"data.files", "data.sources", "data.splits"},
    "data.suggest": {"data.files", "data.sources", "data.splits"},
    "data.prepare": {"data.files", "data.published", "data.sources", "data.splits"},
    "data.synthetic": {"data.sources"},
    "data.tiles": {"data.files"},
    "data.transforms": {"data.files", "pixels"},
    "data.datamodule": {"data.files", "data.sources", "data.splits", "data.transforms", "pixels"},
    "panels": {"inference", "module", "pixels", "visualize", "data.files", "data.sources"},
    "diagnosis": {"inference", "method", "module", "pixels", "data.datamodule"},
    "loggers": {"inference", "module", "panels", "visualize", "data.files", "data.sources"},
    "config": {"data.published", "data.splits"},
    "model_card": set(),
    "checkpoints": set(),
    "watch": set(),
    "resume": {"checkpoints", "config"},
    "run": {
        "checkpoints", "resume", "config", "method", "model_card", "module", "models.deeplab", "models.official",
        "loggers", "panels", "diagnosis", "data.splits", "data.datamodule",
    },
    "evaluate": {"config", "loggers", "module", "run", "data.sources", "data.splits", "data.datamodule"},
    "predict": {"module", "panels", "run", "visualize", "data.files", "data.sources", "data.tiles"},
    "choose": {"evaluate", "module", "panels", "predict", "run", "data.files", "data.sources"},
    "cli": {"config"},
    "app": {"module", "panels", "run", "visualize"},
    "export": {"inference", "method", "module", "pixels", "region_names", "run"},
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


@pytest.mark.parametrize("path", [p for p in SRC.rglob("*.py") if p.name != "__init__.py"], ids=module_name)
def test_a_module_imports_only_what_lies_below_it(path: Path) -> None:
    name, names = module_name(path), imported(path)
    ours = {other for other in ALLOWED if f"pcr_seg.{other}" in names}
    assert ours <= ALLOWED[name]
    if name.startswith("data."):
        assert "torch.nn" not in names
    if name not in ("app", "choose", "config", "evaluate", "export", "predict", "resume", "run"):
        assert not {"hydra", "omegaconf"} & {n.split(".")[0] for n in names}
