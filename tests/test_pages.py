"""README and docs/ say what is so: commands compose, quoted lines are the code's, figures are their files'."""

import ast
import csv
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pcr_seg.commands.cli import COMMANDS
from pcr_seg.commands.start import start

ROOT = Path(__file__).parents[1]
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md")), *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def fenced(page: Path, languages: str = "|bash|shell") -> list[str]:
    """The blocks of a page in these languages; by default those without one, and a shell's."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^ *```(?:{languages})\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE)


def typed() -> dict[str, str]:
    """The pages' commands that this repository answers, with their page; one of those that differ in values alone."""
    found, left_out = {}, r"\.\.\.|[A-Z]+"  # of a line
    for page in PAGES:
        for block in fenced(page):
            for line in block.replace("\\\n", " ").splitlines():
                line = re.sub(r"^(srun|OMP_\w+=\d).*?(?=python)|^\. \S+ && ", "", line)
                line = re.sub(r"^torchrun .*? (?=\w+\.py )", "python ", line)
                if re.match(r"python (\w+/)?\w+\.py|pcr-seg |make |pip ", line):
                    words = [word for word in shlex.split(line, comments=True) if not re.fullmatch(left_out, word)]
                    keys = [word.partition("=")[0] if "." in word.partition("=")[0] else word for word in words]
                    found.setdefault(" ".join(keys), (shlex.join(words), page.name))
    return dict(found.values())


TYPED = typed()


@pytest.mark.parametrize("line", TYPED, ids=lambda line: f"{TYPED[line]}:{line}"[:90])
def test_a_command_of_a_page_can_be_typed(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tool, *words = shlex.split(line)
    if tool == "make":
        targets = re.findall(r"^\$?([\w/()-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[0] in targets
    elif tool == "pip":
        extras = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
        assert {one for found in re.findall(r"\[(.*?)\]", line) for one in found.split(",")} <= extras
    elif tool == "python" and "/" in words[0]:
        assert (ROOT / words[0]).is_file()
    else:
        name, *arguments = words
        name = name.removesuffix(".py")
        assert name in COMMANDS
        arguments = [
            f"action={word}" if word in ("check", "suggest", "import", "manifest") else word for word in arguments
        ]
        for variable, value in {"SLURM_NTASKS": "4", "SLURM_STEP_TASKS_PER_NODE": "4", "SLURM_STEP_ID": "0"}.items():
            if "hardware=cluster" in arguments:
                monkeypatch.setenv(variable, value)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        text = ast.get_docstring(ast.parse((ROOT / f"{name}.py").read_text()))
        for kind, plugin in re.findall(r"hydra/(launcher|sweeper)=([a-z]+)", line):
            if plugin != "basic":
                pytest.importorskip(f"hydra_plugins.hydra_{plugin}_{kind}", reason="needs the extra: sweeps")
        if "--help" in arguments:
            return
        start(text)


def test_enough_commands_are_found() -> None:
    assert len(TYPED) > 60 and {"README.md", "training.md", "zoo.md", "data.md"} <= set(TYPED.values())


def test_the_methods_lines_are_those_of_its_file() -> None:
    source = [line.strip() for line in (ROOT / "src/pcr_seg/method/pcr.py").read_text().splitlines()]
    excerpts = fenced(ROOT / "docs/method.md", "python")
    assert len(excerpts) > 5
    for excerpt in excerpts:
        lines = [line.strip() for line in excerpt.splitlines()]
        assert any(source[i : i + len(lines)] == lines for i in range(len(source))), excerpt


def test_figures_of_what_was_learned_are_rows_of_its_file() -> None:
    with (ROOT / "docs/results/trials.csv").open() as file:
        rows = {f"{float(row['miou_last']):.1f}" for row in csv.DictReader(file) if row["miou_last"]}
    text = (ROOT / "docs/trials.md").read_text().partition("## What was learned")[2].partition("\n## ")[0]
    figures = re.findall(r"\b\d\d\.\d\b", text)
    assert len(figures) > 10
    assert not [figure for figure in figures if figure not in rows]


def test_the_first_screen_is_calm() -> None:
    """About what a browser shows before one scrolls: at most ten figures, and no scatter."""
    screen = README.partition("From Python:")[0]
    shown = re.sub(r"https?://\S+|\]\(.*?\)", "", screen)
    assert "±" not in README.partition("\n## ")[0] and len(re.findall(r"\d+", shown)) <= 10
    rows = README.partition("| I want to")[2].partition("\n\n")[0].splitlines()[2:]
    assert len(rows) <= 6


def test_words_are_spelt_right() -> None:
    pytest.importorskip("codespell_lib", reason="needs codespell (extra: dev)")
    result = subprocess.run([sys.executable, "-m", "codespell_lib"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
