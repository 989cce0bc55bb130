"""The page that `--help` shows: what a command does, examples, choices and keys. `--help=all` is Hydra's own page."""

import re
from collections.abc import Iterator, Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pcr_seg.config import CONF

KEYS = "Keys (- is to be given, or comes with a choice)"
KEY = re.compile(r"(?P<key>\w+): *(?P<value>[^\s#].*?)?(?:\s*# *(?P<meaning>.*))?")


def show_help(name: str, text: str, chosen: Mapping[str, str | None]) -> None:
    """Print a command's docstring, its groups with their default and choices, and the keys in conf/NAME.yaml."""
    console = Console(highlight=False, soft_wrap=False)
    console.print(escape(text.strip()), soft_wrap=True)
    for title, rows in (("Choices", groups(chosen)), (KEYS, keys(name))):
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold", max_width=28 if title == KEYS else None)
        for row in rows:
            table.add_row(*map(escape, row))
        if table.row_count:
            console.print(f"\n{title}:", table, sep="\n")
    console.print("\n--help=all shows every key, --cfg job what a command line makes of them.")


def groups(chosen: Mapping[str, str | None]) -> Iterator[tuple[str, str]]:
    """Yield each group with its default, "group=choice", and all its choices."""
    for group, choice in chosen.items():
        choices = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
        if len(choices) > 1:
            yield f"{group}={choice or ''}", " ".join(choices)


def keys(name: str) -> Iterator[tuple[str, str, str]]:
    """Yield the top-level keys of a command that are in no group, with default and comment, from its YAML file."""
    lines = (CONF / f"{name}.yaml").read_text(encoding="utf-8").partition("defaults:")[2].splitlines()
    row = None
    for line in lines:
        if row and (more := re.fullmatch(r" +# (.*)", line)):
            row = (*row[:2], f"{row[2]} {more[1]}")
            continue
        if row:
            yield row
        match = KEY.fullmatch(line)
        row = match and match["value"] and (f"{match['key']}=", match["value"], match["meaning"] or "")
        row = row and (row[0], row[1].replace("???", "-"), row[2])
    if row:
        yield row
