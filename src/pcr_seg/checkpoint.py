"""Load a checkpoint file as a `Predictor`. Needs only torch and the libraries that the network itself needs.

A checkpoint tells how its network and method were made: the dotted name of a class, and its arguments. `load` calls
only classes of this project, unless the caller names others to trust.
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
HUB, HUB_FILE = "hf://", "model.ckpt"  # prefix of a repository on the Hugging Face Hub, and the file in it
BACKBONES = ("student.backbone.", "teacher.network.backbone.")  # weights that a file may lack if they are frozen
MISSING = object()

# The only names that a checkpoint may call. A stranger's file must not call anything else, even of this project.
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
    network: str | None = None,
    protocol: Protocol | None = None,
) -> Predictor:
    """Rebuild network and method from a checkpoint alone and return them as a predictor, in eval mode on the CPU.

    Args:
        checkpoint: a file of a run's `checkpoints` folder, one that a plain `Trainer` or `export.py format=weights` has
            written, or "hf://USER/NAME", with "@REVISION" if wanted, of the Hugging Face Hub.
        student: a network like the one that was trained, if its class is not this project's. The predictor takes it
            over: its weights are replaced and frozen, and it stays in eval mode.
        trust: dotted names of modules or packages whose classes may also be called to rebuild network and method.
        network: which network predicts, "teacher" or "student"; None: the teacher, or the only one in the file.
        protocol: how to predict whole images; by default as the checkpoint says.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a checkpoint of this project; it asks for code that is not trusted; its weights do
            not fit the network; or it holds the other of the two networks alone.
    """
    if network not in ("teacher", "student", None):
        raise ValueError(f"network={network}: choose teacher or student")
    content = read_checkpoint(fetched(checkpoint))
    made, origin = content["pcr_seg"], f"checkpoint={checkpoint}"
    network = network or made.get("only", "teacher")
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
    return predictor.requires_grad_(False).to(memory_format=torch.channels_last).eval()  # the layout of training


def part(state: dict, prefix: str) -> dict:
    """Return the entries of a state dict whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def fetched(checkpoint: str | Path) -> Path:
    """Return a checkpoint's file; one of the Hugging Face Hub is downloaded into the hub's cache first.

    Raises:
        FileNotFoundError: the hub has no such repository or file, or cannot be reached.
    """
    if not is_on_hub(checkpoint):
        return Path(checkpoint)
    from huggingface_hub import hf_hub_download

    repo, _, revision = str(checkpoint).removeprefix(HUB).partition("@")
    try:
        return Path(hf_hub_download(repo, HUB_FILE, revision=revision or None))
    except Exception as error:  # connection, hub and invalid names each raise classes of their own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FileNotFoundError(f"checkpoint={checkpoint}: no {HUB_FILE} on the hub ({reason})") from error


def is_on_hub(checkpoint: str | Path) -> bool:
    """Whether a checkpoint's name is that of a repository on the Hugging Face Hub (hf://...)."""
    return str(checkpoint).startswith(HUB)


def weights_alone(content: dict, network: str) -> dict:
    """Reduce a checkpoint's content to what prediction needs: the weights of one network and of the method."""
    prefix = {"student": "student.", "teacher": "teacher.network."}[network]
    state = {key: value for key, value in content["state_dict"].items() if key.startswith((prefix, "method."))}
    return {"state_dict": state, "pcr_seg": content["pcr_seg"] | {"only": network}}


def read_checkpoint(path: str | Path, *, whole: bool = False) -> dict:
    """Load a checkpoint of this project to the CPU; nothing in it is executed.

    With `whole` it also has to hold everything that a training needs to resume.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged (checksums are verified), of an older format, or not of this project.
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
    """Describe in plain values how an object was made: a dictionary of `_target_` and arguments, as Hydra writes it.

    The arguments of a module are read from its attributes of the same names, as with scikit-learn's estimators. One
    that has no such attribute is listed under `_assumed_`: `rebuilt` will use its default. If it has no default either,
    or a value is not plain, the node is marked `_unknown_`, and `load` needs the network itself (`student=`).

    Raises:
        TypeError: a value, outside of a module's arguments, is not plain.
    """
    if isinstance(thing, functools.partial):
        arguments = inspect.signature(thing.func).bind_partial(*thing.args, **thing.keywords).arguments
        return described(thing.func) | {key: described(value) for key, value in arguments.items()}
    if isinstance(thing, FunctionType):
        return {"_target_": f"{thing.__module__}.{thing.__qualname__}", "_partial_": True}
    if isinstance(thing, Number) and hasattr(thing, "item"):
        return thing.item()  # a NumPy number, which torch.load with `weights_only` refuses
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
    """Return the class that a module was made of; FSDP replaces it by a subclass of its own."""
    return next(cls for cls in type(module).__mro__ if not cls.__module__.startswith("torch.distributed.fsdp"))


def kept_arguments(module: nn.Module) -> dict:
    """Return the arguments of a module's constructor, as `described`; raise a TypeError for one that is unknown."""
    arguments, assumed = {}, []
    for name, parameter in constructor_parameters(class_of(module)).items():
        value, default = getattr(module, name, MISSING), parameter.default
        if is_foreign_loss(value) and default is not inspect.Parameter.empty:
            continue  # prediction uses no loss, so the default will do
        if value is not MISSING and not replaces_another(value, default):
            arguments[name] = described(value)
        elif default is inspect.Parameter.empty:
            raise TypeError(f"{name} was not kept")
        else:
            assumed.append(name)
    return arguments | ({"_assumed_": assumed} if assumed else {})


def replaces_another(value: object, default: object) -> bool:
    """Whether an attribute is a layer made from the argument of its name: `self.dropout = nn.Dropout(dropout)`."""
    return isinstance(value, nn.Module) and default not in (None, inspect.Parameter.empty)


def is_foreign_loss(value: object) -> bool:
    """Whether a value is a loss that a checkpoint may not call: a foreign function, or one of torch's loss modules."""
    if not isinstance(value, FunctionType | functools.partial | nn.modules.loss._Loss):
        return False
    return isinstance(value, nn.Module) or not re.fullmatch(TRUSTED, str(described(value)["_target_"]))


def constructor_parameters(cls: type) -> dict[str, inspect.Parameter]:
    """Return the named parameters of a constructor and, if it takes **kwargs, of the constructors behind it."""
    return {name: p for init in reversed(constructors(cls)) for name, p in named_parameters(init).items()}


def constructors(cls: type) -> list[Callable]:
    """Return a class's constructors up to the first that takes no **kwargs: its own, its parent's, and so on."""
    inits = [owner.__init__ for owner in cls.__mro__ if "__init__" in vars(owner)]
    last = next((place for place, init in enumerate(inits) if not takes_further(init)), len(inits))
    return inits[: last + 1]


def named_parameters(function: Callable) -> dict[str, inspect.Parameter]:
    """Return the parameters of a function without `self`, *args and **kwargs."""
    several = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    parameters = inspect.signature(function).parameters
    return {name: p for name, p in parameters.items() if p.kind not in several and name != "self"}


def takes_further(function: Callable) -> bool:
    """Whether a function takes **kwargs."""
    return any(p.kind == inspect.Parameter.VAR_KEYWORD for p in inspect.signature(function).parameters.values())


def rebuilt(node: object, *, weights: bool = False) -> object:
    """Make the object that `described` has described. It calls whatever a node names: use `refuse_strangers` before.

    With `weights` a network is made with its pretrained weights, from where they first came. Without, the arguments
    that ask for them are None, since the checkpoint has the weights.

    Raises:
        ValueError: the node is `_unknown_`, or names what is no class or function.
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
    """Import a class or function by its dotted name; raise a ValueError if another package has defined it."""
    module, _, name = target.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    home = getattr(found, "__module__", "")
    if not isinstance(found, type | FunctionType) or home.split(".")[0] != module.split(".")[0]:
        raise ValueError(f"{target} is no class or function of {module}")
    return found


def refuse_strangers(
    origin: str, nodes: Iterable[object], trust: str | Sequence[str] = (), trusted: str = TRUSTED
) -> None:
    """Raise a ValueError if one of these nodes, or a node in them, would call something that is not trusted.

    Args:
        origin: the checkpoint, as the message names it.
        nodes: as `described` makes them.
        trust: dotted names of modules or packages whose classes are allowed too.
        trusted: a regular expression of the names that are always allowed.
    """
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
