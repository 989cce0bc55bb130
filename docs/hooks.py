"""What MkDocs builds beside docs/: pages of the repository's root, and files of the repository that pages link to."""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"(?<=\]\()[^)\s#:]+")


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the pages of the root."""
    for source, uri in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / source)))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links within the site, which then holds a copy of the file.

    What names no file stays, and a strict build refuses it.
    """
    folder = Path(page.file.abs_src_path).parent

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
