"""Imports point down, as CONTRIBUTING.md draws them."""

import ast
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src/pcr_seg"
ALLOWED = {
    "method": set(),
    "inference": {"method"},
    "visualize": set(),
    "report": set(),
    "module": {"method", "inference"},
    "models.backbones": set(),
    "models.deeplab": set(),
    "models.official": set(),
    "data.sources": set(),
    "data.published": set(),
    "data.splits": {"data.published", "data.sources"},
    "data.prepare": {"data.published", "data.sources", "data.splits"},
    "data.synthetic": {"data.sources"},
    "data.transforms": {"data.sources"},
    "data.datamodule": {"data.sources", "data.splits", "data.transforms"},
    "panels": {"module", "visualize", "data.sources", "data.transforms"},
    "checkpoints": set(),
    "watch": set(),
    "config": {"data.published", "data.splits"},
    "resume": {"checkpoints", "config"},
    "run": {
        "checkpoints", "config", "resume", "method", "module", "inference", "models.official", "panels", "visualize",
        "data.sources", "data.splits", "data.datamodule", "data.transforms",
    },
    "export": {"inference", "run"},
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
    if name not in ("config", "resume", "run", "export"):
        assert not {"hydra", "omegaconf"} & {n.split(".")[0] for n in names}
