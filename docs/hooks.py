"""MkDocs builds these beside docs/: pages and linked files of the rest of the repository, and shapes as written."""

import ast
import posixpath
import re
from pathlib import Path

from griffe import Extension
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"(?<=\]\()[^)\s#:]+")


class ShapesAsWritten(Extension):
    """Has Griffe read every module as if its annotations were strings, for the API pages.

    Otherwise it would parse shapes as expressions: the one in Float[Tensor, "B *S"] as a product.
    """

    def on_module_node(self, *, node: ast.Module, **_: object) -> None:
        """Add `from __future__ import annotations` behind the module's docstring."""
        [future] = ast.parse("from __future__ import annotations").body
        node.body.insert(1 if ast.get_docstring(node) else 0, future)


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages that are Markdown files in the repository's root."""
    for source, uri in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / source)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links within the site, and copy the linked files into it.

    A link that leads to no file stays as it is, and a strict build refuses it.
    """
    folder = Path(page.file.abs_src_path or ROOT / "docs" / page.file.src_uri).parent  # a generated page has no file

    def within_site(match: re.Match) -> str:
        file = (folder / match[0]).resolve()
        if not (file.is_file() and file.is_relative_to(ROOT)):
            return match[0]
        path = file.relative_to(ROOT).as_posix()
        uri = PAGES.get(path) or path.removeprefix("docs/")
        if not files.get_file_from_path(uri):
            files.append(File.generated(config, uri, abs_src_path=str(file)))
        return posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or ".")

    return LINK.sub(within_site, markdown)
