"""MkDocs makes the page of configuration keys here, from conf/: of each file its first comment and its keys."""

import re
from pathlib import Path

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from pcr_seg.commands.help import keys

CONF = Path(__file__).parents[1] / "conf"
INTRO = """# Configuration keys

Every key that a command takes, read from the files in `conf/` when this page was built. A command reads
`conf/COMMAND.yaml` and one file of each group: `method=pcr` is `conf/method/pcr.yaml`. A key is set by `KEY=VALUE`.
`???` has to be given, or comes with a choice; `${...}` is computed from other keys. Where a class is named, its
docstring explains the keys. [What wins over what](training.md#what-a-run-is-made-of).
"""


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the page."""
    files.append(File.generated(config, "configuration.md", content=page()))


def page() -> str:
    """Return the page in Markdown: the commands first, then the groups with their choices."""
    parts = [INTRO, "## Commands"]
    parts += [section(f"{path.stem}.py", path) for path in sorted(CONF.glob("*.yaml")) if path.stem != "no_run_folder"]
    for group in sorted(path for path in CONF.iterdir() if path.is_dir()):
        parts.append(f"## {group.name}")
        for path in sorted(group.rglob("*.yaml")):
            parts.append(section(f"{group.name}={path.relative_to(group).with_suffix('').as_posix()}", path))
    return "\n\n".join(parts) + "\n"


def section(title: str, path: Path) -> str:
    """Return the heading of a file, its first comment, what it builds on, and the table of its keys."""
    text = path.read_text(encoding="utf-8")
    comments = [line[2:] for line in re.match(r"(#.*\n)*", text)[0].splitlines() if not line.startswith("# @package")]
    commands = [line for line in comments if line.startswith("python ")]
    about = " ".join(line for line in comments if line not in commands)
    group = path.relative_to(CONF).parts[0] if path.parent != CONF else ""
    package = re.search(r"^# @package (\w+)", text)
    node = (package[1] if package else group).replace("_global_", "")
    found = [key for key in keys(path) if not key.name.startswith("hydra")]
    targets = {key.name.removesuffix("_target_"): key.value for key in found if key.name.endswith("_target_")}
    built_on = ", ".join(map(code, parents(text, group)))
    origin = [f"Builds on {built_on}."] if built_on else []
    origin += [f"Arguments of {linked(targets[''])}."] if "" in targets else []
    rows = []
    for key in found:
        target = targets.get(f"{key.name}.")
        if (key.value or key.meaning or target) and not re.search(r"(^|\.)_[a-z]+_$", key.name):
            name = f"{node}.{key.name}" if node else key.name
            rows.append(f"| {code(name)} | {linked(target) if target else code(key.value)} | {plain(key.meaning)} |")
    table = "\n".join(["| key | default | |", "|---|---|---|", *rows]) if rows else ""
    return "\n\n".join(filter(None, [f"### {title}", *map(code, commands), plain(about), " ".join(origin), table]))


def parents(text: str, group: str) -> list[str]:
    """Return the choices that a file begins with, as `group=choice`."""
    found = []
    for one in (yaml.safe_load(text) or {}).get("defaults", []):
        [(place, choice)] = one.items() if isinstance(one, dict) else [(group, one)]
        *above, name = str(choice).removesuffix("@_here_").strip("/").split("/")
        if choice is not None and name not in ("_self_", "no_run_folder"):
            found.append(f"{above[0] if above else re.sub('^(override )?/', '', place)}={name}")
    return found


def linked(target: str) -> str:
    """Return a link to the docstring of a class or function of this project; another's name as it is."""
    return f"[{code(target)}][{target}]" if target.startswith("pcr_seg.") else code(target)


def plain(text: str) -> str:
    """Return a comment so that Markdown shows it word for word, with links to the pages of docs/ that it names."""
    return re.sub(r"docs/(\w+\.md)", r"[docs/\1](\1)", entities(text))


def code(text: str) -> str:
    """Return a key, value or command as code, in HTML: it may contain any sign."""
    return f"<code>{entities(text)}</code>" if text else ""


def entities(text: str) -> str:
    """Return a text without signs that Markdown or HTML would read."""
    return re.sub(r"[^\w\s.,:;=/-]|__", lambda one: "".join(f"&#{ord(sign)};" for sign in one[0]), text)
