"""What the processes of one training share and divide: counts, buffers, and weights (FSDP2).

Divided weights are gathered layer by layer where they compute, so every process has to compute with a network.
"""

import copy
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

LEAST = 1_000_000  # weights of a block that is gathered by itself


class Divided:
    """A student and its teacher, their weights divided alike over all devices; and the teacher whole while asked for.

    Args:
        module: holds both. What else of it has weights stays whole in every process.
        student: the network that learns.
        teacher: one of the same form, which is evaluated.
        mesh: of all devices, in one dimension.

    Raises:
        ValueError: weights lie in no part of a network.
    """

    def __init__(self, module: nn.Module, student: nn.Module, teacher: nn.Module, mesh: DeviceMesh) -> None:
        for tensor in (*module.parameters(), *module.buffers()):
            dist.broadcast(tensor.data, src=0)
        empty = {id(p): nn.Parameter(p.to("meta"), requires_grad=False) for p in teacher.parameters()}
        self.module, self.teacher, self.hollow = module, teacher, copy.deepcopy(teacher, empty)
        self.whole: nn.Module | None = None
        for network in (student, teacher):
            shard(network, mesh)
        for parameter in module.parameters():
            if parameter.requires_grad and not isinstance(parameter, DTensor):
                parameter.register_post_accumulate_grad_hook(average_gradient)

    def gather(self) -> None:
        """Hold the teacher whole on this device until the next step; every process has to call this."""
        state = {name: whole(value.detach()) for name, value in self.teacher.state_dict().items()}
        self.whole = copy.deepcopy(self.hollow)
        self.whole.load_state_dict(state, assign=True)
        self.whole.to(next(self.teacher.parameters()).device)

    def start_step(self) -> None:
        """Leave that copy, and take the first process's statistics, as DDP does."""
        self.whole = None
        share_buffers(self.module)


def average_gradient(parameter: nn.Parameter) -> None:
    """Average the gradient of a weight that every process has whole."""
    dist.all_reduce(parameter.grad)
    parameter.grad /= dist.get_world_size()


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Divide the weights of a network, in place: each of its parts computes as before, and so do large blocks in it.

    The network itself is no unit, so any part may compute first, and networks may share one. Weights become
    contiguous, in torch's own layout: others cannot be divided.

    Raises:
        ValueError: weights lie in the network itself and in no part of it.
    """
    if own := [name for name, _ in network.named_parameters(recurse=False)]:
        raise ValueError(
            f"trainer.strategy=fsdp: {type(network).__name__} has weights in no layer ({', '.join(own)}); put them into"
            " a module that it calls, or train with strategy=ddp"
        )
    network.to(memory_format=torch.contiguous_format)
    for module, weights in list(units(network)):  # before any of them are replaced by divided ones
        if not any(isinstance(weight, DTensor) for weight in weights):  # of another network, too
            fully_shard(module, mesh=mesh, reshard_after_forward=True)


def units(network: nn.Module) -> Iterator[tuple[nn.Module, list[nn.Parameter]]]:
    """What is gathered together, with its weights: parts of a network, and large blocks in them, inner ones first."""
    taken: set[nn.Parameter] = set()
    for part in parts(network):
        lists = [module for module in part.modules() if isinstance(module, nn.Sequential | nn.ModuleList)]
        blocks = {block for one in lists for block in one.children() if is_called(block)}
        for module in reversed(list(part.modules())):
            weights = [p for p in module.parameters() if p not in taken]
            large = module in blocks and sum(p.numel() for p in weights) >= LEAST
            if weights and (large or module is part):
                taken.update(weights)
                yield module, weights


def parts(network: nn.Module) -> list[nn.Module]:
    """The children of a network, and those of a mere list of modules in its place."""
    return [one for child in network.children() for one in ([child] if is_called(child) else parts(child))]


def is_called(module: nn.Module) -> bool:
    """Whether a module computes something itself, and is no mere list of others."""
    return type(module).forward is not nn.Module.forward


def whole(value: object) -> object:
    """A divided tensor's content, for which every process has to ask; anything else as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def like(value: Tensor, divided: object) -> Tensor:
    """A whole tensor divided as another one is, if that is."""
    if not isinstance(divided, DTensor) or isinstance(value, DTensor):
        return value
    value = value.to(divided.device, divided.dtype)
    return distribute_tensor(value, divided.device_mesh, divided.placements)


@torch.no_grad()
def share_buffers(module: nn.Module) -> None:
    """Give every process the first one's float buffers: BatchNorm's statistics are each one's own."""
    buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    if not (buffers and dist.is_available() and dist.is_initialized()):
        return
    flat = torch.cat([buffer.flatten() for buffer in buffers])
    dist.broadcast(flat, src=0)
    shared = flat.split([buffer.numel() for buffer in buffers])
    torch._foreach_copy_(buffers, [part.view_as(buffer) for part, buffer in zip(shared, buffers, strict=True)])


def all_reduced(counts: Tensor) -> Tensor:
    """Counts added over all processes."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(counts)
    return counts
