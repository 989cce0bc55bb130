"""Load checkpoints of U2PL's PyTorch trainer, in which PCR was developed, into this project's DeepLab.

The files that PCR's authors released are MindSpore's and have to be converted to such a file first.

Both networks have the same layers, so loading only renames tensors. Their names are in U2PL @ab3d2be,
`u2pl/models/{model_helper,decoder,base,resnet}.py`; the prototypes' in the paper's evaluation release,
HeimingX/semi_seg_proto @1b98ea6, `core/models/model_helper.py`.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

# Prefixes of names: ours, and U2PL's, whose Sequentials also number activations, dropouts and ASPP's pooling.
LAYERS = {
    "backbone.net.": "encoder.",
    "aspp.pooled.0.": "decoder.aspp.conv1.1.",
    "aspp.pooled.1.": "decoder.aspp.conv1.2.",
    "aspp.branches.0.": "decoder.aspp.conv2.",
    "aspp.branches.1.": "decoder.aspp.conv3.",
    "aspp.branches.2.": "decoder.aspp.conv4.",
    "aspp.branches.3.": "decoder.aspp.conv5.",
    "head.": "decoder.head.",
    "low_conv.": "decoder.low_conv.",
    "linear_head.0.0.": "decoder.classifier.0.",
    "linear_head.0.1.": "decoder.classifier.1.",
    "linear_head.1.0.": "decoder.classifier.4.",
    "linear_head.1.1.": "decoder.classifier.5.",
    "linear_head.2.": "decoder.classifier.8.",
    "auxiliary_head.0.": "auxor.aux.",
    "auxiliary_head.1.": "auxor.aux.4.",
}
REMEDY = "build the same network: backbone=resnet101 model=deeplab, model.auxiliary=true for Cityscapes only"


def official_name(name: str) -> str:
    """Return the reference code's name for one of our network's tensors; any other name as it is."""
    start = next((start for start in LAYERS if name.startswith(start)), "")
    return LAYERS.get(start, "") + name.removeprefix(start)


def from_official(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Rename a state dict of the reference code to one that `network.load_state_dict` takes.

    The prefix `module.` (DistributedDataParallel) is removed. U2PL's `decoder.representation`, which PCR does not use,
    is left out.

    Args:
        state: state dict of the reference code's network.
        network: a DeepLab over a timm ResNet with the same layers.

    Returns:
        The state's tensors by the network's names. If the state has PCR's prototypes (C * K, D), they are added as
        "bank.prototypes" (C, K, D).

    Raises:
        ValueError: the state lacks a tensor of the network, has one that the network lacks, or one of another shape.
    """
    theirs = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    prototypes = [theirs.pop(name) for name in list(theirs) if name.endswith("proto_list")]
    theirs = {name: tensor for name, tensor in theirs.items() if not name.startswith("decoder.representation.")}
    ours = network.state_dict()
    names = {official_name(name): name for name in ours}
    for problem, which in (("lacks", names.keys() - theirs.keys()), ("has the unknown", theirs.keys() - names.keys())):
        if which:
            first = next(name for name in (*names, *theirs) if name in which)
            raise ValueError(f"{problem} {first} and {len(which) - 1} more tensors; {REMEDY}")
    for official, name in names.items():
        if theirs[official].shape != ours[name].shape:
            raise ValueError(f"{official} is {tuple(theirs[official].shape)}, not {tuple(ours[name].shape)}; {REMEDY}")
    renamed = {name: theirs[official] for official, name in names.items()}
    if prototypes:
        renamed["bank.prototypes"] = as_bank(prototypes[0], network.num_classes)
    return renamed


def as_bank(prototypes: Tensor, num_classes: int) -> Tensor:
    """Return prototypes (C * K, D), sorted by class, as (C, K, D); raise a ValueError for another shape."""
    if prototypes.ndim != 2 or len(prototypes) % num_classes:
        raise ValueError(f"prototypes are {tuple(prototypes.shape)}, not (K for each of {num_classes} classes, D)")
    return prototypes.unflatten(0, (num_classes, -1))


def load_official(module: nn.Module, path: str | Path) -> None:
    """Load a checkpoint file of the reference code into a module's student, teacher and prototype bank.

    The trainer's file has a `model_state` and a `teacher_state`; a file of one network is loaded into both. The bank
    takes the teacher's prototypes, if there are any.

    Args:
        module: a `pcr_seg.module.Segmentation`.
        path: a file of `torch.save`; no code in it is run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a checkpoint of the reference code, or not of this network. Nothing is loaded then.
    """
    content, bank = read_official(Path(path)), getattr(module.method, "bank", None)
    student = content.get("model_state", content.get("teacher_state", content))
    teacher = content.get("teacher_state", student)
    try:
        student, teacher = (from_official(state, module.student) for state in (student, teacher))
        student.pop("bank.prototypes", None)
        prototypes = teacher.pop("bank.prototypes", None)
        if bank is not None and prototypes is not None and prototypes.shape != bank.prototypes.shape:
            raise ValueError(f"holds {prototypes.shape[1]} prototypes for each class; set method.num_prototypes")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    module.student.load_state_dict(student)
    module.teacher.network.load_state_dict(teacher)
    if bank is not None and prototypes is not None:
        bank.prototypes.copy_(prototypes)
        bank.is_initialized.fill_(True)


def read_official(path: Path) -> dict:
    """Return a checkpoint file's content, on the CPU; raise a FileNotFoundError or ValueError as `load_official`."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; give a checkpoint of the reference code")
    # The file has the best mIoU as a NumPy number, which weights_only refuses. Allow such numbers alone, under the
    # names that NumPy 1 and 2 give them.
    scalar, (dtype, _) = np.float64(0).__reduce__()
    allowed = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    try:
        with torch.serialization.safe_globals([*allowed, np.dtype, type(dtype)]):
            content = torch.load(path, map_location="cpu", weights_only=True)
        return dict(content)
    except Exception as error:  # of many kinds; torch's own messages advise to load the file unsafely
        raise ValueError(f"{path}: not a PyTorch checkpoint of plain tensors ({type(error).__name__})") from error
