"""An installed wheel is enough: pcr-seg runs outside of a checkout, which it does not see."""

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
COMMANDS = ("train", "eval", "predict", "export", "report", "prepare", "app", "choose", "autolabel")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as its wheel holds it, and nothing of its dependencies."""
    for module in ("hatchling", "hatch_fancy_pypi_readme"):
        pytest.importorskip(module, reason=f"needs {module} (extra: dev)")
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    result = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder / "site")
    return folder / "site"


def pcr_seg(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Run the console command of the wheel's metadata; an editable install of the checkout comes after it, unseen."""
    [entry] = [line for line in next(installed.glob("*.dist-info/entry_points.txt")).read_text().splitlines()
               if line.startswith("pcr-seg")]  # fmt: skip
    module, function = entry.partition("=")[2].strip().split(":")
    code = f"import sys, pcr_seg; assert pcr_seg.__file__.startswith({str(installed)!r}); sys.argv[0] = 'pcr-seg'"
    code += f"; from {module} import {function}; {function}()"
    environment = os.environ | {"PYTHONPATH": str(installed)}
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=folder, env=environment, capture_output=True,
                          text=True)  # fmt: skip


def test_train_composes_from_another_folder(installed: Path, tmp_path: Path) -> None:
    result = pcr_seg(installed, tmp_path, "train", "dataset=cityscapes", "split=1_8", "--cfg", "job")
    assert result.returncode == 0, result.stderr
    config = yaml.safe_load(result.stdout)
    assert config["split"]["labeled"] == "1_8" and config["backbone"]["name"] == "resnet101s"
    assert not list(tmp_path.iterdir()), "looking leaves nothing behind"


def test_wheel_holds_what_the_checkout_does(installed: Path) -> None:
    held = installed / "pcr_seg/scripts"
    assert sorted(path.stem for path in held.glob("*.py")) == sorted(COMMANDS)
    assert sorted(path.stem for path in ROOT.glob("*.py")) == sorted(COMMANDS), "pyproject.toml names each script"
    configs = [{path.relative_to(folder): path.read_text() for path in folder.rglob("*.yaml")}
               for folder in (held / "conf", ROOT / "conf")]  # fmt: skip
    assert configs[0] == configs[1]
    sources = {path.relative_to(ROOT / "src") for path in (ROOT / "src").rglob("*") if path.suffix in (".html", ".md")}
    assert sources and all((installed / path).is_file() for path in sources)


def test_what_pypi_shows_leads_to_files_and_pages_of_this_repository(installed: Path) -> None:
    text = next(installed.glob("*.dist-info/METADATA")).read_text(encoding="utf-8").partition("\n\n")[2]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.sub(r"\]\(.*?\)", "", text) == re.sub(r"\]\(.*?\)", "", readme)
    links, pages = re.findall(r"\]\((.*?)\)", text), 0
    for link, original in zip(links, re.findall(r"\]\((.*?)\)", readme), strict=True):
        place = (
            r"https://(?:raw\.githubusercontent\.com/pcr-seg/pcr-seg/main|github\.com/pcr-seg/pcr-seg/blob/main)/(.*)"
        )
        if file := re.fullmatch(place, link):
            assert (ROOT / file[1]).is_file() and file[1] == original
        elif page := re.fullmatch(r"https://pcr-seg\.github\.io/pcr-seg/(\w+)\.html(.*)", link):
            assert (ROOT / f"docs/{page[1]}.md").is_file() and original == f"docs/{page[1]}.md{page[2]}"
            pages += 1
        else:
            assert link == original and link.startswith("https://")
    assert pages > 10 and "](https://raw.githubusercontent.com/" in text


def test_no_command_and_a_wrong_one_are_one_line(installed: Path, tmp_path: Path) -> None:
    for arguments, name in (([], "no command"), (["trian"], "trian")):
        result = pcr_seg(installed, tmp_path, *arguments)
        assert result.returncode == 1
        assert result.stderr == f"error: {name}: choose pcr-seg {'|'.join(COMMANDS)} [key=value ...]\n"
