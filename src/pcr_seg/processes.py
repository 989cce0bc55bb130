"""What the processes of one training share (counts, buffers) and divide (weights, by FSDP2).

A layer's divided weights are gathered from all processes whenever it computes. So a network with divided weights only
runs if every process runs it.
"""

import copy
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

LEAST = 1_000_000  # weights that a block must have to be gathered by itself


class Divided:
    """Divides the weights of a student and its teacher over all devices, and gathers the teacher's on request.

    Args:
        module: the module that holds both. Its other weights (the method's) stay whole in every process.
        student: the network that learns.
        teacher: its copy, which is evaluated.
        mesh: all devices, in one dimension.

    Raises:
        ValueError: a network has weights of its own, outside of its layers (`shard`).
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
        """Keep `whole`, the teacher with all its weights, until the next step; every process has to call this."""
        state = {name: whole(value.detach()) for name, value in self.teacher.state_dict().items()}
        self.whole = copy.deepcopy(self.hollow)
        self.whole.load_state_dict(state, assign=True)
        self.whole.to(next(self.teacher.parameters()).device)

    def start_step(self) -> None:
        """Drop that copy, and take rank 0's BatchNorm statistics, as DDP does before each step."""
        self.whole = None
        share_buffers(self.module)


def average_gradient(parameter: nn.Parameter) -> None:
    """Average the gradient of an undivided weight over the processes, as DDP would."""
    dist.all_reduce(parameter.grad)
    parameter.grad /= dist.get_world_size()


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Divide the weights of a network in place, unit by unit (`units`): its parts, and large blocks in them.

    The network as a whole is not a unit. So any part may run first, and networks may share a part. Weights are laid out
    contiguously, because channels-last tensors cannot be divided.

    Raises:
        ValueError: the network has weights that belong to none of its layers.
    """
    if own := [name for name, _ in network.named_parameters(recurse=False)]:
        raise ValueError(
            f"trainer.strategy=fsdp: {type(network).__name__} has weights in no layer ({', '.join(own)}); put them into"
            " a module that it calls, or train with strategy=ddp"
        )
    network.to(memory_format=torch.contiguous_format)
    for module, weights in list(units(network)):  # a list, made before any weights are replaced by divided ones
        if not any(isinstance(weight, DTensor) for weight in weights):  # not divided yet, as part of another network
            fully_shard(module, mesh=mesh, reshard_after_forward=True)


def units(network: nn.Module) -> Iterator[tuple[nn.Module, list[nn.Parameter]]]:
    """Yield each module whose weights are gathered at once, with these: inner blocks before the parts around them."""
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
    """Return the children of a network; in place of a container that computes nothing, its children."""
    return [one for child in network.children() for one in ([child] if is_called(child) else parts(child))]


def is_called(module: nn.Module) -> bool:
    """Whether a module has a forward of its own; a ModuleList and the like have none."""
    return type(module).forward is not nn.Module.forward


def whole(value: object) -> object:
    """Return a divided tensor gathered, for which every process has to call this; anything else as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def like(value: Tensor, divided: object) -> Tensor:
    """Divide a whole tensor as another one is divided; return it as it is if that one is whole."""
    if not isinstance(divided, DTensor) or isinstance(value, DTensor):
        return value
    value = value.to(divided.device, divided.dtype)
    return distribute_tensor(value, divided.device_mesh, divided.placements)


@torch.no_grad()
def share_buffers(module: nn.Module) -> None:
    """Give every process rank 0's float buffers: without it each has BatchNorm statistics of its own."""
    buffers = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
    if not (buffers and dist.is_available() and dist.is_initialized()):
        return
    flat = torch.cat([buffer.flatten() for buffer in buffers])
    dist.broadcast(flat, src=0)
    shared = flat.split([buffer.numel() for buffer in buffers])
    torch._foreach_copy_(buffers, [part.view_as(buffer) for part, buffer in zip(shared, buffers, strict=True)])


def all_reduced(counts: Tensor) -> Tensor:
    """Add counts over all processes, in place, and return them."""
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(counts)
    return counts
