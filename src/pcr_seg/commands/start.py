"""Check a command line before Hydra reads it: names that do not exist, missing values, environment variables."""

import functools
import os
import re
import sys
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ValueType
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from pcr_seg import cluster
from pcr_seg.commands.help import show_help
from pcr_seg.config import CONF, QUOTES, command_line, items, one_line_errors, suggestion
from pcr_seg.data.published import MIRROR

OWN_CONF = r"-(cd|cp|cn)$|--config-|hydra\.searchpath"  # with a configuration of the user's own only Hydra can check
SHOWING = ("--cfg", "-c", "--info", "-i", "--shell-completion", "-sc")  # options that show something, and run nothing
TAKE_A_WORD = (*SHOWING, "--package", "-p")  # options that are followed by a word


def start(text: str) -> None:
    """Check the process's command line and rewrite it for Hydra (`config.command_line`); exit in one line if it is bad.

    Args:
        text: the script's docstring, which `--help` shows.
    """
    name, arguments = Path(sys.argv[0]).stem, command_line(sys.argv[1:])
    if {"-h", "--help"} & {*arguments}:
        sys.exit(show_help(name, text, composed(name).hydra.runtime.choices))
    arguments = ["--help" if argument == "--help=all" else argument for argument in arguments]
    with one_line_errors():
        refuse_environment(os.environ)
        if not any(re.match(OWN_CONF, argument) for argument in arguments):
            arguments = without_nulls(name, arguments)
            words = overrides(arguments)
            sweeps = {"-m", "--multirun"} & {*arguments} or any(word.startswith("hydra.mode=") for word in words)
            for cell in cells(words, bool(sweeps)):
                check(name, cell)
                if not {*SHOWING} & {*arguments}:
                    refuse_missing(composed(name, *cell), text)
    sys.argv[1:] = sorted(arguments, key=lambda argument: argument not in ("-m", "--multirun"))  # Hydra wants it first


def refuse_environment(environment: Mapping[str, str]) -> None:
    """Raise a ValueError for a variable that would change Lightning's trainer, or a misspelt one of this project."""
    for variable, value in environment.items():
        if variable.startswith("PL_TRAINER_"):
            key = variable.removeprefix("PL_TRAINER_").lower()
            raise ValueError(f"{variable}={value}: is not read here; unset it and give ++trainer.{key}={value}")
        if variable.startswith("PCR_SEG_") and variable not in (MIRROR, cluster.STARTED):
            raise ValueError(f"{variable}={value}: no such variable{suggestion(variable, [MIRROR])}")


def without_nulls(name: str, arguments: list[str]) -> list[str]:
    """Remove `group=null` if null is the group's default, because Hydra cannot read it."""
    defaults = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml").defaults)
    nulls = [f"{group}=null" for one in defaults if isinstance(one, dict) for group in one if one[group] is None]
    return [argument for argument in arguments if argument not in nulls]


def overrides(arguments: list[str]) -> list[str]:
    """Return the overrides among a command's arguments."""
    pairs = pairwise(["", *arguments])
    return [word for before, word in pairs if not word.startswith("-") and before not in TAKE_A_WORD]


def cells(words: list[str], sweeps: bool) -> list[list[str]]:
    """Return the overrides of as few cells of a sweep as contain each value once; without a sweep, of one cell.

    Raises:
        ValueError: a word is no override, or has several values without a sweep.
    """
    parser, values = OverridesParser.create(), []
    for word in words:
        try:
            override = parser.parse_override(word)
        except HydraException as error:
            raise ValueError(f"{word}: cannot be read as key=value; quote the value: \"key='value'\"") from error
        if override.is_sweep_override() and not sweeps:
            raise ValueError(f"{word}: several values are a sweep, which needs -m; a list is written [a,b]")
        if override.is_discrete_sweep() and override.value_type != ValueType.GLOB_CHOICE_SWEEP:
            values.append([f"{word.partition('=')[0]}={value}" for value in override.sweep_string_iterator()])
        elif not override.is_sweep_override():  # else only the sweeper knows the values
            values.append([word])
    return [[one[min(i, len(one) - 1)] for one in values] for i in range(max(map(len, values), default=1))]


def check(name: str, words: list[str]) -> None:
    """Raise a ValueError for the first override of a choice or key that does not exist, with the nearest that does."""
    groups = composed(name).hydra.runtime.choices
    for word in words:
        check_choice(name, word, groups)
    base = OmegaConf.to_container(composed(name, *(word for word in words if key_of(word) in groups)))
    known = {*dict(items(base)), *groups}
    for word in words:
        check_key(word, base, known)
    composed(name, *words)  # Hydra raises for whatever else is wrong


def refuse_missing(cfg: DictConfig, text: str) -> None:
    """Raise a ValueError for the first key without a value, with the docstring's first example that sets the key."""
    values = OmegaConf.to_container(cfg)
    del values["hydra"]
    for key in (path for path, value in items(values) if value == "???"):
        examples = re.findall(rf"python \w+\.py (?:\S+ )*?{key}=\S+(?: \S+)*", text)
        raise ValueError(f"{key}: is missing; {f'type {examples[0]}' if examples else f'give {key}=...'}")


def check_key(word: str, base: dict, known: set[str]) -> None:
    """Raise a ValueError if an override's key is not in the configuration, and is no addition that something reads."""
    key = key_of(word)
    if key in known:
        if re.match(r"\+[^+]", word):
            raise ValueError(f"{word}: is there already; leave the + out")
        return
    if word.startswith("+") and (key.startswith("hydra.") or below_constructor(base, key)):
        return
    group = key.partition(".")[0]
    if group in known and group not in base:
        raise ValueError(f"{word}: belongs to a {group}, and none is chosen; give {group}=NAME as well")
    if takes(base, key):
        raise ValueError(f"{word}: is not set by default; give +{word}")
    others = [one for one in known if not key.startswith(f"{one}.")]
    raise ValueError(f"{word}: no such key{suggestion(key, others) or '; choose ' + listed(key, known)}")


def check_choice(name: str, word: str, groups: Mapping[str, str]) -> None:
    """Raise a ValueError if an override chooses what its group does not have, or a group that the command lacks."""
    group, value = key_of(word), word.partition("=")[2].strip(QUOTES)
    if not (group and (CONF / group).is_dir()) or word.startswith("~"):
        return
    if word.startswith("+") and group in groups:
        raise ValueError(f"{word}: is there already; leave the + out")
    if group not in groups:
        raise ValueError(f"{word}: {name}.py has no such group; leave it out")
    choices = [str(path.relative_to(CONF / group).with_suffix("")) for path in (CONF / group).rglob("*.yaml")]
    if value not in choices and not value.startswith("["):  # a list of them is Hydra's to read
        raise ValueError(f"{word}: no such choice{suggestion(value, choices) or '; choose ' + listed('', choices)}")


def key_of(word: str) -> str:
    """Return the key or group of an override."""
    return word.lstrip("+~").partition("=")[0]


@functools.cache
def composed(name: str, *words: str) -> DictConfig:
    """Return a command's configuration with these overrides, including Hydra's own."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, list(words), return_hydra_config=True)


def listed(key: str, known: Iterable[str]) -> str:
    """List the keys in the same node as one that does not exist, or the top-level ones."""
    above = key.rpartition(".")[0]
    above = above if above in known else ""
    return ", ".join(sorted(one for one in known if one.rpartition(".")[0] == above and "/" not in one))


def takes(base: dict, key: str) -> bool:
    """Whether the constructor of the node that a key is in takes such an argument."""
    node = base
    for part in key.split(".")[:-1]:
        node = node.get(part) if isinstance(node, dict) else None
    if not isinstance(node, dict) or "_target_" not in node:
        return False
    from pcr_seg.training.values import arguments  # takes seconds, and only errors need it

    return key.rpartition(".")[2] in arguments(get_object(node["_target_"]))


def below_constructor(node: dict, key: str) -> bool:
    """Whether a key is in a node with a `_target_`, whose constructor will take it, or be checked not to."""
    for part in key.split(".")[:-1]:
        node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict) and "_target_" in node:
            return True
    return False
