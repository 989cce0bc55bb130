"""The documentation as a site: built strictly, whole, and asking nothing of a network. Notebooks as they ran."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from pcr_seg.commands.help import keys

ROOT = Path(__file__).parents[1]


class Links(HTMLParser):
    """What a page refers to (by tag), and the anchors that it has itself."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links, self.anchors = [], {""}
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        canonical = ("rel", "canonical") in attributes  # says where the page lies, and is not fetched
        for name, value in attributes:
            if name in ("href", "src") and not canonical:
                self.links.append((tag, value))
            elif name in ("id", "name"):
                self.anchors.add(value)


def build(site: Path, *options: str) -> subprocess.CompletedProcess:
    # Not --quiet: warnings that are not shown are not counted, and pass.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site), *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocstrings_handlers.python", reason="needs mkdocs-material, mkdocstrings (extra: docs)")
    folder = tmp_path_factory.mktemp("docs") / "site"
    result = build(folder)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Links]:
    return {path: Links(path) for path in site.rglob("*.html") if path.name != "404.html"}


def test_no_page_is_missing(site: Path, pages: dict[Path, Links]) -> None:
    written = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    wanted = written | {Path(f"{name}.html") for name in ("index", "contributing", "changelog", "configuration")}
    assert {path.relative_to(site) for path in pages} == wanted
    menu = {(site / link).resolve() for _, link in pages[site / "changelog.html"].links}
    assert set(pages) <= menu | {site / "changelog.html"}, "the menu leads to each"


def test_every_module_has_its_place_in_the_api(pages: dict[Path, Links]) -> None:
    helpers = {
        "pcr_seg.commands.cli",
        "pcr_seg.moved",
        "pcr_seg.training.model_card",
    }  # nothing to call
    source = ROOT / "src"
    modules = {".".join(path.relative_to(source).with_suffix("").parts) for path in source.rglob("*.py")}
    described = {anchor for page in pages.values() for anchor in page.anchors}
    assert {module for module in modules if not module.endswith("__init__")} - described == helpers
    assert {"pcr_seg.method.prototypes.PrototypeBank.update", "pcr_seg.module.Segmentation"} <= described


def test_shapes_are_shown_as_written(site: Path) -> None:
    page = (site / "api/method.html").read_text(encoding="utf-8")
    signatures = re.findall(r'<div class="doc-signature highlight">(.*?)</div>', page, re.DOTALL)
    shown = unescape(re.sub(r"<[^>]*>", "", "".join(signatures)))
    shapes = re.findall(r"\b(?:Float|Int|Bool)\[Tensor, (.*?)\]", shown)
    assert len(shapes) > 40 and {shape[0] for shape in shapes} <= {"'", '"'}
    assert "B *S" in {shape[1:-1] for shape in shapes}


def test_links_lead_somewhere_in_the_site(site: Path, pages: dict[Path, Links]) -> None:
    broken, followed = [], 0
    for page, found in pages.items():
        for tag, link in found.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                assert tag == "a", f"{page.name} would fetch {link}"
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            anchors = pages[target].anchors if target in pages else {""}
            followed += 1
            if not target.is_file() or not target.is_relative_to(site) or unquote(parts.fragment) not in anchors:
                broken.append(f"{page.name}: {link}")
    assert not broken and followed > 1000


def test_the_readme_is_the_start_page_with_its_links_turned(site: Path, pages: dict[Path, Links]) -> None:
    start = (site / "index.html").read_text(encoding="utf-8")
    assert "from a few labeled and many unlabeled images" in start
    links = {link for _, link in pages[site / "index.html"].links}
    assert {"data.html", "images/before_after.png", "src/pcr_seg/method/pcr.py"} <= links
    for file in ("images/before_after.png", "src/pcr_seg/method/pcr.py"):
        original = ROOT / file if file.endswith(".py") else ROOT / "docs" / file
        assert (site / file).read_bytes() == original.read_bytes()


def leaves(node: dict, above: str) -> Iterator[str]:
    """Dotted keys of a YAML file's values, but for those that Hydra reads itself."""
    for key, value in node.items():
        if isinstance(value, dict) and value and key != "hydra":
            yield from leaves(value, f"{above}{key}.")
        elif key not in ("defaults", "hydra") and not re.fullmatch("_[a-z]+_", key):
            yield f"{above}{key}"


def test_every_key_has_its_row_in_the_page_of_configuration(site: Path) -> None:
    page = unescape((site / "configuration.html").read_text(encoding="utf-8"))
    _, *parts = re.split(r'<h3 id="[^"]*">(.*?)<a', page)
    sections = dict(zip(parts[::2], parts[1::2], strict=True))
    for file in (ROOT / "conf").rglob("*.yaml"):
        group, *names = file.relative_to(ROOT / "conf").with_suffix("").parts
        if group == "no_run_folder":
            continue
        text = file.read_text(encoding="utf-8")
        package = re.search(r"^# @package (\w+)", text)
        node = package[1] if package else group if names else "_global_"
        found = [*leaves(yaml.safe_load(text) or {}, "" if node == "_global_" else f"{node}.")]
        rows = sections.pop(f"{group}={'/'.join(names)}" if names else f"{group}.py")
        assert not [key for key in found if f"<code>{key}</code>" not in rows], file
    assert not sections


def test_a_comment_may_go_on_and_a_value_hold_the_sign_of_one(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text('one: "a # b"   # first\n               # and more\n# not of two\ntwo: {x: 1}\n')
    assert [*keys(tmp_path / "a.yaml")] == [("one", '"a # b"', "first and more"), ("two", "{x: 1}", "")]


def test_tables_are_tables(site: Path) -> None:
    for path in (ROOT / "docs").glob("*.md"):
        tables = sum("|--" in line and set(line) <= set("|-: ") for line in path.read_text().splitlines())
        page = (site / path.name).with_suffix(".html").read_text()
        assert page.count("<table>") == tables, path.name
        assert "\\|" not in page, f"{path.name}: a table's code cannot hold |, where GitHub and this site agree"


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_committed_as_they_ran(path: Path) -> None:
    """In order, with pictures, and with no word of the machine."""
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    assert sum("image/png" in output.get("data", {}) for output in outputs) > 1
    words = json.dumps([{**output, "data": {**output.get("data", {}), "image/png": ""}} for output in outputs])
    assert not re.search(r"/(tmp|home|root|work|usr|Users)/", words), "a path of the machine that ran it"


def test_a_broken_link_fails_the_build(site: Path, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("# Start\n\n[gone](gone.md) and [nowhere](index.md#nowhere)\n")
    settings = (ROOT / "mkdocs.yml").read_text().partition("\nvalidation:")[2]
    (tmp_path / "mkdocs.yml").write_text(f"site_name: broken\nvalidation:{settings}")
    result = build(tmp_path / "site", "--config-file", str(tmp_path / "mkdocs.yml"))
    assert result.returncode == 1 and "gone.md" in result.stderr and "#nowhere" in result.stderr
