"""The page that `--help` shows: what a command does, examples, choices and keys. `--help=all` is Hydra's own page."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pcr_seg.config import CONF

KEYS = "Keys (- is to be given, or comes with a choice)"


class Key(NamedTuple):
    """A key of a YAML file."""

    name: str  # dotted
    value: str  # as the file has it; "" for a node
    meaning: str  # the comment behind it


def show_help(name: str, text: str, chosen: Mapping[str, str | None]) -> None:
    """Print a command's docstring, its groups with their default and choices, and the keys in conf/NAME.yaml."""
    console = Console(highlight=False, soft_wrap=False)
    console.print(escape(text.strip()), soft_wrap=True)
    found = [key for key in keys(CONF / f"{name}.yaml") if key.value and "." not in key.name]
    rows_of_keys = [(f"{key.name}=", key.value.replace("???", "-"), key.meaning) for key in found]
    for title, rows in (("Choices", groups(chosen)), (KEYS, rows_of_keys)):
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


def keys(file: Path) -> Iterator[Key]:
    """Yield the keys of a YAML file but for `defaults`, those of nodes included, in the file's order.

    A comment belongs to the key on whose line it ends, and goes on in indented lines below it that have nothing else.
    """
    text = file.read_text(encoding="utf-8")
    lines = text.splitlines()

    def comment(end: yaml.Mark) -> str:
        words = [lines[end.line][end.column :].partition("#")[2]]
        for line in lines[end.line + 1 :]:
            if not (more := re.fullmatch(r" +# (.*)", line)):
                break
            words.append(more[1])
        return " ".join(word.strip() for word in words)

    def of_node(node: yaml.MappingNode, above: str) -> Iterator[Key]:
        for key, value in node.value:
            name = above + key.value
            if isinstance(value, yaml.MappingNode) and not value.flow_style:
                yield Key(name, "", comment(key.end_mark))
                yield from of_node(value, f"{name}.")
            elif name != "defaults":
                written = text[value.start_mark.index : value.end_mark.index]
                yield Key(name, written, comment(value.end_mark))

    if node := yaml.compose(text):
        yield from of_node(node, "")
