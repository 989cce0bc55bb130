"""From a checkpoint file to what it predicts with. Needs torch and the network's own libraries alone.

A checkpoint says how its network and method were made: a class by its dotted name, and the arguments it was made with.
Only this project's own classes are called, unless the caller trusts others by name.
"""

import functools
import importlib
import inspect
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Sequence
from numbers import Number
from pathlib import Path
from types import FunctionType

import torch
from torch import nn

from pcr_seg.inference import Protocol
from pcr_seg.moved import LAST_READER
from pcr_seg.predictor import Predictor

FORMAT = 2
LAST = "last.ckpt"
HUB, HUB_FILE = "hf://", "model.ckpt"  # of a repository on the Hugging Face Hub
BACKBONES = ("student.backbone.", "teacher.network.backbone.")  # a frozen one may be left out
MISSING = object()

# What a checkpoint may be rebuilt from: a stranger's must not name anything else, not even of ours.
TRUSTED = (
    r"pcr_seg\.(method\.(\w+\.)?([A-Z]\w*|((per_image_)?ohem_|balanced_)?cross_entropy)"
    r"|inference\.(whole_image|sliding_window|multi_scale|center_padded)"
    r"|models\.(deeplab\.DeepLab|dpt\.DPT|mlp\.MLP|backbones\.TimmBackbone|smp\.(SMP|SMPEncoder)))"
)
TRUSTED_DATA = (
    r"pcr_seg\.data\.(sources\.(folder|camvid|voc|voc_aug|cityscapes|ade20k|coco)|synthetic\.synthetic"
    r"|features\.FrozenFeatures)"
)


def load(
    checkpoint: str | Path,
    *,
    student: nn.Module | None = None,
    trust: str | Sequence[str] = (),
    network: str = "teacher",
    protocol: Protocol | None = None,
) -> Predictor:
    """Rebuild what a checkpoint predicts with, in eval mode on the CPU, from nothing but the file.

    Args:
        checkpoint: a file of a run's `checkpoints` folder, one that a plain `Trainer` or `export.py format=weights` has
            written, or "hf://USER/NAME", perhaps with "@REVISION", of the Hugging Face Hub.
        student: a network of the class that was trained, where that is not this project's. It becomes the predictor's:
            its weights are replaced and frozen, and it is in eval mode from then on.
        trust: dotted names of modules, or packages, whose classes may be called to rebuild network and method instead.
        network: which one predicts, "teacher" or "student".
        protocol: how to predict whole images, instead of the checkpoint's way.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a checkpoint of this project, one that asks for code that is not trusted, weights that do not
            fit the network, or the other network's alone.
    """
    if network not in ("teacher", "student"):
        raise ValueError(f"network={network}: choose teacher or student")
    content = read_checkpoint(fetched(checkpoint))
    made, origin = content["pcr_seg"], f"checkpoint={checkpoint}"
    if made.get("only", network) != network:
        raise ValueError(f"{origin}: holds the {made['only']} alone; the {network} is in the run's last.ckpt")
    nodes = [made["method"], made["protocol"], *([made["student"]] if student is None else [])]
    refuse_strangers(origin, nodes, trust)
    try:
        left_out = not any(name.startswith(BACKBONES) for name in content["state_dict"])
        model = rebuilt(made["student"], weights=left_out) if student is None else student
        method = rebuilt(made["method"])
        if hasattr(method, "attach"):
            method.attach(model)
        state = part(content["state_dict"], "student." if network == "student" else "teacher.network.")
        if left_out:
            state |= {name: value for name, value in model.state_dict().items() if name.startswith("backbone.")}
        model.load_state_dict(state)
        method.load_state_dict(part(content["state_dict"], "method."))
        protocol = protocol or rebuilt(made["protocol"])
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{origin}: does not fit this version of the code: {reason}") from error
    metadata = {key: made[key] for key in ("config", "dataset") if key in made}
    predictor = Predictor(
        model, method, made["classes"], made["palette"], protocol, name=made["name"], metadata=metadata
    )
    return predictor.requires_grad_(False).to(memory_format=torch.channels_last).eval()  # as it was trained


def part(state: dict, prefix: str) -> dict:
    """The entries of a state dict below a prefix."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def fetched(checkpoint: str | Path) -> Path:
    """The file of a checkpoint; one of the Hugging Face Hub is downloaded into its cache.

    Raises:
        FileNotFoundError: the hub has no such repository or file, or cannot be reached.
    """
    if not is_on_hub(checkpoint):
        return Path(checkpoint)
    from huggingface_hub import hf_hub_download

    repo, _, revision = str(checkpoint).removeprefix(HUB).partition("@")
    try:
        return Path(hf_hub_download(repo, HUB_FILE, revision=revision or None))
    except Exception as error:  # of the network, of the hub, and of names, each with a class of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FileNotFoundError(f"checkpoint={checkpoint}: no {HUB_FILE} on the hub ({reason})") from error


def is_on_hub(checkpoint: str | Path) -> bool:
    """Whether a checkpoint is named as one of the Hugging Face Hub."""
    return str(checkpoint).startswith(HUB)


def weights_alone(content: dict, network: str) -> dict:
    """What it takes to predict, of a checkpoint's content: the weights of one network and of the method."""
    prefix = {"student": "student.", "teacher": "teacher.network."}[network]
    state = {key: value for key, value in content["state_dict"].items() if key.startswith((prefix, "method."))}
    return {"state_dict": state, "pcr_seg": content["pcr_seg"] | {"only": network}}


def read_checkpoint(path: str | Path, *, whole: bool = False) -> dict:
    """Load a checkpoint of this project to the CPU; nothing in it is executed.

    With `whole` it has to hold all that a training goes on from.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged (checksums included), of an older format, or not of this project.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint={path}: no such file; a run keeps them in checkpoints/{LAST}")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        content = torch.load(path, map_location="cpu", weights_only=True)
        made = content["pcr_seg"]
        parts = {"state_dict"} if "only" in made and not whole else {"state_dict", "loops", "epoch", "global_step"}
        complete = damaged is None and {"classes", "palette"} <= set(made) and parts <= set(content)
    except Exception as error:
        raise ValueError(f"checkpoint={path}: not a complete checkpoint of this project") from error
    if not complete:
        raise ValueError(f"checkpoint={path}: not a complete checkpoint of this project")
    if made.get("format") != FORMAT:
        raise ValueError(f"checkpoint={path}: of an older version; the last commit that reads it is {LAST_READER}")
    return content


# --------------------------------------------------------------------------------- how things were made


def described(thing: object) -> object:
    """How an object was made, in plain values: `_target_` and arguments, as Hydra writes it.

    A module's arguments are its attributes of the same names, as scikit-learn's estimators keep them. Those that it did
    not keep are listed as `_assumed_`: their defaults will do. Where there is none, or a value is not plain, the node
    is marked `_unknown_`, and `load` needs the network itself.
    """
    if isinstance(thing, functools.partial):
        arguments = inspect.signature(thing.func).bind_partial(*thing.args, **thing.keywords).arguments
        return described(thing.func) | {key: described(value) for key, value in arguments.items()}
    if isinstance(thing, FunctionType):
        return {"_target_": f"{thing.__module__}.{thing.__qualname__}", "_partial_": True}
    if isinstance(thing, Number) and hasattr(thing, "item"):
        return thing.item()  # NumPy's, which `weights_only` refuses
    if isinstance(thing, nn.Module):
        cls = class_of(thing)
        node = {"_target_": f"{cls.__module__}.{cls.__qualname__}"}
        try:
            return node | kept_arguments(thing)
        except TypeError:
            return node | {"_unknown_": True}
    if isinstance(thing, list | tuple):
        return [described(value) for value in thing]
    if isinstance(thing, dict):
        return {str(key): described(value) for key, value in thing.items()}
    if thing is None or isinstance(thing, bool | int | float | str):
        return thing
    raise TypeError(f"{type(thing).__name__} is no plain value")


def class_of(module: nn.Module) -> type:
    """The class that a module was made of; FSDP puts one of its own before it."""
    return next(cls for cls in type(module).__mro__ if not cls.__module__.startswith("torch.distributed.fsdp"))


def kept_arguments(module: nn.Module) -> dict:
    """The arguments of a module's constructor, as described; raises a TypeError for one that cannot be known."""
    arguments, assumed = {}, []
    for name, parameter in constructor_parameters(class_of(module)).items():
        value, default = getattr(module, name, MISSING), parameter.default
        if is_foreign_loss(value) and default is not inspect.Parameter.empty:
            continue  # a prediction needs none: the default will do
        if value is not MISSING and not replaces_another(value, default):
            arguments[name] = described(value)
        elif default is inspect.Parameter.empty:
            raise TypeError(f"{name} was not kept")
        else:
            assumed.append(name)
    return arguments | ({"_assumed_": assumed} if assumed else {})


def replaces_another(value: object, default: object) -> bool:
    """Whether an attribute is a layer made of the argument of its name: `self.dropout = nn.Dropout(dropout)`."""
    return isinstance(value, nn.Module) and default not in (None, inspect.Parameter.empty)


def is_foreign_loss(value: object) -> bool:
    """Whether a value is a loss that is not this project's: a function, or one of torch's loss modules."""
    if not isinstance(value, FunctionType | functools.partial | nn.modules.loss._Loss):
        return False
    return isinstance(value, nn.Module) or not re.fullmatch(TRUSTED, str(described(value)["_target_"]))


def constructor_parameters(cls: type) -> dict[str, inspect.Parameter]:
    """Named parameters of a constructor, and of its parent's where it passes further ones on."""
    return {name: p for init in reversed(constructors(cls)) for name, p in named_parameters(init).items()}


def constructors(cls: type) -> list[Callable]:
    """A class's constructor, its parent's where it passes further arguments on, and so forth."""
    inits = [owner.__init__ for owner in cls.__mro__ if "__init__" in vars(owner)]
    last = next((place for place, init in enumerate(inits) if not takes_further(init)), len(inits))
    return inits[: last + 1]


def named_parameters(function: Callable) -> dict[str, inspect.Parameter]:
    """The parameters of a function that have a name of their own, without `self`."""
    several = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    parameters = inspect.signature(function).parameters
    return {name: p for name, p in parameters.items() if p.kind not in several and name != "self"}


def takes_further(function: Callable) -> bool:
    """Whether a function takes arguments that it does not name."""
    return any(p.kind == inspect.Parameter.VAR_KEYWORD for p in inspect.signature(function).parameters.values())


def rebuilt(node: object, *, weights: bool = False) -> object:
    """What `described` describes. Calls whatever the nodes name: `refuse_strangers` comes first.

    With `weights` pretrained ones are had again, from where they came; else they are in the checkpoint.
    """
    if isinstance(node, list):
        return [rebuilt(value, weights=weights) for value in node]
    if not isinstance(node, dict):
        return node
    arguments = {
        key: rebuilt(value, weights=weights) for key, value in node.items() if not re.fullmatch("_[a-z]+_", key)
    }
    if "_target_" not in node:
        return arguments
    if node.get("_unknown_"):
        raise ValueError(
            f"{node['_target_']} did not keep its arguments as attributes of the same names; hand the network over: "
            "load(..., student=network)"
        )
    for assumed in node.get("_assumed_", ()):
        warnings.warn(
            f"{node['_target_']} did not keep its argument {assumed}, so the default is assumed; where it was another, "
            "hand the network over: load(..., student=network)",
            stacklevel=2,
        )
    target = imported(node["_target_"])
    if isinstance(target, type) and not weights:
        arguments |= dict.fromkeys({"weights", "encoder_weights"} & set(constructor_parameters(target)))
    return functools.partial(target, **arguments) if node.get("_partial_") else target(**arguments)


def imported(target: str) -> Callable:
    """A class or function by its dotted name; raises a ValueError for what a module has merely imported."""
    module, _, name = target.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    home = getattr(found, "__module__", "")
    if not isinstance(found, type | FunctionType) or home.split(".")[0] != module.split(".")[0]:
        raise ValueError(f"{target} is no class or function of {module}")
    return found


def refuse_strangers(
    origin: str, nodes: Iterable[object], trust: str | Sequence[str] = (), trusted: str = TRUSTED
) -> None:
    """Raise a ValueError where one of these nodes would call something that is not trusted."""
    nodes, names = list(nodes), [trust] if isinstance(trust, str) else list(trust or ())
    own = "|".join(rf"{re.escape(name)}\.[\w.]+" for name in names if name)
    while nodes:
        node = nodes.pop()
        if isinstance(node, dict):
            target = str(node.get("_target_", ""))
            if target and not re.fullmatch(trusted, target) and not (own and re.fullmatch(own, target)):
                raise ValueError(
                    f"{origin}: names {target}, which is not this project's code; refused "
                    f"(trust={target.rpartition('.')[0]} allows it, if it is yours)"
                )
            nodes += node.values()
        elif isinstance(node, list | tuple):
            nodes += node
