"""What a stranger's machine runs from this repository (workflows, containers), and the pages of a release."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml
import zoo
from conftest import write_run

from pcr_seg.commands.start import check, composed
from pcr_seg.config import CONF
from pcr_seg.moved import GONE, LAST_READER, MOVED

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
TOOLS = {"pip", "uv", "playwright", "ruff", "codespell", "python", "pcr-seg", "twine"}


def project() -> dict:
    """What pyproject.toml holds."""
    tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def commands(workflow: Path) -> list[list[str]]:
    """The words of each command that a workflow runs."""
    jobs = yaml.safe_load(workflow.read_text())["jobs"].values()
    lines = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_what_there_is(workflow: Path) -> None:
    extras = project()["project"]["optional-dependencies"]
    lines = commands(workflow)
    assert lines
    for words in lines:
        assert words[0] in TOOLS
        for word in words:
            if word.startswith(("tests", "notebooks")):
                assert (ROOT / word.partition("::")[0]).exists(), word
            if found := re.fullmatch(r"\.\[(.*)\]", word):
                assert set(found[1].split(",")) <= {*extras}, word
        if words[0] == "pcr-seg":
            check(words[1], words[2:])


def test_three_pythons_on_three_systems() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text())["jobs"]
    pythons = {tuple(jobs[name]["strategy"]["matrix"]["python"]) for name in ("tests", "windows")}
    [versions] = pythons
    declared = {text.rpartition(" ")[2] for text in project()["project"]["classifiers"] if "Python :: 3." in text}
    assert len(versions) == 3 and set(versions) <= declared
    assert project()["project"]["requires-python"] == f">={min(versions, key=lambda v: int(v[2:]))}"
    assert jobs["tests"]["strategy"]["matrix"]["os"] == ["ubuntu-latest", "macos-latest"]
    assert jobs["windows"]["runs-on"] == "windows-latest"


def test_containers_run_what_there_is() -> None:
    lines = [line.split(maxsplit=1) for line in (ROOT / "Dockerfile").read_text().splitlines() if line[:1].isupper()]
    file = {}
    for instruction, rest in lines:
        file.setdefault(instruction, []).append(rest)
    [extras] = re.findall(r"/src\[(.*?)\]", " ".join(file["RUN"]))
    assert set(extras.split(",")) <= {*project()["project"]["optional-dependencies"]}
    assert json.loads(file["ENTRYPOINT"][0]) == list(project()["project"]["scripts"])
    command, *_ = json.loads(file["CMD"][0])
    assert (CONF / f"{command}.yaml").is_file()
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    made = shlex.split(container["postCreateCommand"])
    assert made[0] == "make" and f"$(VENV){made[1].removeprefix('.venv')}:" in (ROOT / "Makefile").read_text()


def test_issue_templates_are_forms() -> None:
    forms = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")}
    assert set(forms) == {"bug", "result", "config"}
    for name in ("bug", "result"):
        assert {"name", "description", "body"} <= set(forms[name])
        ids = [part["id"] for part in forms[name]["body"]]
        assert len(ids) == len({*ids}) and all(part["attributes"]["label"] for part in forms[name]["body"])


def test_one_version_and_one_address_everywhere() -> None:
    about = project()["project"]
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cff["version"] == about["version"] and cff["license"] == about["license"] and cff["title"] == about["name"]
    assert cff["repository-code"] == about["urls"]["Homepage"]
    paper = cff["preferred-citation"]
    readme = (ROOT / "README.md").read_text()
    assert paper["title"] in readme and str(paper["year"]) in readme
    assert all(f"{one['family-names']}, {one['given-names']}" in readme for one in paper["authors"])
    site = re.search(r"^site_url: (\S+)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert site[1] == about["urls"]["Documentation"]


def test_the_page_of_moved_keys_has_each_of_them() -> None:
    text = (ROOT / "docs/moved.md").read_text()
    assert LAST_READER in text
    rows = [line.split(" | ", 1) for line in text.partition("## Names")[0].splitlines() if line.startswith("| `")]
    for old, new in MOVED.items():
        right = [new_cell for old_cell, new_cell in rows if re.search(rf"`{re.escape(old)}[`=]", old_cell)]
        assert right and f"`{new}" in right[0], old
    for old in GONE:
        [right] = [new_cell for old_cell, new_cell in rows if f"`{old}`" in old_cell]
        assert right.startswith("gone"), old


@pytest.mark.parametrize("new", sorted(set(MOVED.values())))
def test_where_a_key_has_moved_there_is_one(new: str) -> None:
    if "=" in new:
        check("train", [new])
        return
    method = ["method=unimatch"] if new == "method.feature_weight" else []
    check("train", [*method, f"{new}=1"])


def test_the_zoo_is_made_of_its_rows_and_the_published_figures(tmp_path: Path) -> None:
    page = zoo.PAGE.read_text()
    assert zoo.filled(page, zoo.rows()) == page
    run = write_run(
        tmp_path / "run", dataset="voc", num_labeled=92, backbone="resnet101s", git_commit="0123456789abcdef"
    )
    (run / "checkpoints").mkdir()
    (run / "checkpoints/last.ckpt").write_bytes(b"weights")
    line = zoo.table({"voc_92": zoo.row(run)}).splitlines()[2]
    assert line.startswith("| `voc_92` | 45.77 | 70.06 | 70.78 | 50.00 | 55.00 | 0 | 9.0 | 0123456789ab | ")
    with pytest.raises(ValueError, match="is no published row \\(backbone=mobilenetv2\\)"):
        zoo.row(write_run(tmp_path / "other", dataset="voc", num_labeled=92))
    for name in re.findall(r"`(\w+_\d+)`", zoo.table({})):
        assert composed("train", f"experiment={name}").backbone.name == "resnet101s"


@pytest.mark.skipif(sys.platform == "darwin", reason="an Apple GPU may be there")
def test_a_gpu_that_is_not_there_is_one_line() -> None:
    from pcr_seg.config import check_launch

    with pytest.raises(ValueError, match="mps: an Apple GPU is not on this machine; use hardware=auto"):
        check_launch(composed("train", "hardware=mps").trainer)
