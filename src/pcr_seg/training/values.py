"""Check a configuration's values before anything is built: types, ranges, and keys that nothing reads."""

import math
import types
from collections.abc import Callable, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra.utils import get_object

from pcr_seg.checkpoint import constructors, named_parameters, takes_further
from pcr_seg.config import suggestion

SHARE = (0.0, 1.0)
POSITIVE, NOT_NEGATIVE = (1, None), (0, None)
# Smallest and largest value of a key, in whichever group it is.
RANGES = {
    **dict.fromkeys(("threshold", "ema_decay", "prototype_momentum", "cutmix_probability", "labeled_classmix"), SHARE),
    **dict.fromkeys(("dropout", "warmup"), SHARE),
    **dict.fromkeys(("num_prototypes", "grid_cells", "crop_size", "batch_size", "global_batch"), POSITIVE),
    **dict.fromkeys(("per_device", "most_per_device", "steps_per_epoch", "channels"), POSITIVE),
    **dict.fromkeys(("every_n_steps", "log_every_n_steps", "accumulate_grad_batches", "max_epochs"), POSITIVE),
    **dict.fromkeys(("check_val_every_n_epoch",), POSITIVE),
    **dict.fromkeys(("num_workers", "burn_in_epochs", "lr", "weight_decay", "poly_power", "seed"), NOT_NEGATIVE),
    **dict.fromkeys(("auxiliary_weight", "consistency_weight", "prototype_weight", "feature_weight"), NOT_NEGATIVE),
    "temperature": (1e-6, None),
}
WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
COMPILE = Literal[False, True, "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
TOP = {  # types of top-level keys, which are no constructor's arguments
    "seed": int, "global_batch": int, "most_per_device": int, "per_device": int | None, "compile": COMPILE,
    "val": str | None, "baseline": bool, "diagnosis": bool, "upload_checkpoints": bool,
}  # fmt: skip


def check_values(config: dict, known: Sequence[str]) -> None:
    """Check a whole configuration.

    Args:
        config: the resolved configuration, as a plain dictionary.
        known: all top-level keys that it may have.

    Raises:
        ValueError: the first key that nothing reads, or the first value of a wrong type or out of range.
    """
    for key in config:
        if key not in known:
            raise ValueError(f"{key}: no such key{suggestion(key, known)}")
    for key, hint in TOP.items():
        if key in config:  # configurations of earlier runs lack some
            check_type(key, config[key], hint)
    unused = {"early_stopping"} if config["early_stopping"]["patience"] is None else set()
    # `module` comes last: its values are references to other keys, which should be named in an error.
    for key in sorted(config.keys() - unused, key=lambda key: key == "module"):
        check_node("", {key: config[key]})
    if config["trainer"].get("max_steps") == 0:
        raise ValueError("trainer.max_steps=0: choose 1 or more, or -1 to end by trainer.max_epochs")
    low, high = config["data"]["scale"]
    if not 0 < low <= high:
        raise ValueError(f"data.scale=[{low},{high}]: choose two factors above 0, the smaller one first")


def check_node(path: str, node: dict) -> None:
    """Check the keys and values of a node, and of the nodes in it, against what its `_target_` takes."""
    target = get_object(node["_target_"]) if "_target_" in node else None
    parameters = {} if target is None else arguments(target)
    for key, value in node.items():
        name = f"{path}.{key}".lstrip(".")
        if isinstance(value, dict):
            check_node(name, value)
        if key in parameters:
            if not (isinstance(value, dict) and "_target_" in value):
                check_type(name, value, parameters[key])
        elif parameters and not (key.startswith("_") or key == "name" or "**" in parameters):
            raise ValueError(f"{name}: no such key{suggestion(key, parameters)}")
        if key in RANGES and isinstance(value, int | float) and not isinstance(value, bool):
            low, high = RANGES[key]
            if not (value >= low and (high is None or value <= high)):  # so that NaN fails
                wanted = f"{low} or more" if high is None else f"{low:g} to {high:g}"
                raise ValueError(f"{name}={value}: choose {wanted}")


def arguments(target: Callable) -> dict[str, Any]:
    """Return the types of a constructor's or function's parameters by name; with a "**" if it takes any others."""
    functions = constructors(target) if isinstance(target, type) else [target]
    found = {}
    for function in reversed(functions):
        hints = type_hints(function)
        found |= {name: hints.get(name, Any) for name in named_parameters(function)}
    # Our constructors pass **kwargs to their parents, which are read as well; what other libraries do is not known.
    ends = [f for f in functions if f is functions[-1] or not f.__module__.startswith("pcr_seg.")]
    return found | ({"**": Any} if any(map(takes_further, ends)) else {})


def type_hints(function: Callable) -> dict[str, Any]:
    """Return the type hints of a function; {} if one of them names what is imported for type checkers only."""
    try:
        return get_type_hints(function)
    except Exception:
        return {}


def check_type(name: str, value: object, hint: object) -> None:
    """Raise a ValueError if a value does not fit a type hint."""
    if not fits(value, hint):
        raise ValueError(f"{name}={'null' if value is None else value}: choose {described_type(hint)}")


def fits(value: object, hint: object) -> bool:
    """Whether a plain value fits a type hint; True for hints that do not concern plain values."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if Callable in (hint, origin):
        return isinstance(value, dict)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin is tuple and Ellipsis not in inner:
        return isinstance(value, list | tuple) and len(value) == len(inner) and all(map(fits, value, inner))
    if origin in (list, Sequence):
        return isinstance(value, list | tuple) and all(fits(one, inner[0]) for one in value)
    return isinstance(value, hint) if isinstance(hint, type) and hint is not Any else True


def described_type(hint: object) -> str:
    """Describe in words the values that a type hint allows."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(described_type(one) for one in inner)
    if origin is Literal:
        return ", ".join(map(str, inner))
    if Callable in (hint, origin):
        return "a function, as {_target_: MODULE.NAME, _partial_: true}"
    if origin is tuple:
        return f"[{', '.join(described_type(one) for one in inner)}]"
    if origin in (list, Sequence):
        return f"a list of {described_type(inner[0])}"
    return WORDS.get(hint, getattr(hint, "__name__", str(hint)))
