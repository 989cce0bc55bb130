"""The trainer's strategy for divided weights (FSDP2), with checkpoints like those of a single process."""

from collections.abc import Mapping

from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from pcr_seg.processes import like, whole


class FSDP(ModelParallelStrategy):
    """FSDP2 over all processes; the module's `configure_model` divides the weights.

    A checkpoint is one file of whole tensors, which any strategy can read. Lightning's own saving is not used: it
    assigns the optimizer's states to parameters as if both had the same order, which they have not.

    Args:
        processes: number of processes on all nodes together.
    """

    def __init__(self, processes: int) -> None:
        super().__init__(processes, 1, save_distributed_checkpoint=False)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Whether the trainer calls `load_optimizer_state_dict`: yes."""
        return True

    def lightning_module_state_dict(self) -> dict:
        """Return the module's state in whole tensors on rank 0; every process has to call this."""
        return self.on_first(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict:
        """Return the optimizer's state in whole tensors on rank 0; every process has to call this."""
        return self.on_first(getattr(optimizer, "_optimizer", optimizer).state_dict())

    def on_first(self, state: dict) -> dict:
        """Gather a nested state as whole tensors on the CPU of rank 0; the other processes get {}."""

        def fetch(value: object) -> object:
            found = whole(value)
            if not isinstance(found, Tensor):
                return found
            return found.cpu() if self.is_global_zero else None

        found = tree_map(fetch, state)
        return found if self.is_global_zero else {}

    def load_checkpoint(self, checkpoint_path: str, weights_only: bool | None = None) -> dict:
        """Read the whole file in every process."""
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

    def load_model_state_dict(self, checkpoint: Mapping, strict: bool = True) -> None:
        """Load this process's share of the weights."""
        own = self.lightning_module.state_dict()
        state = {name: like(value, own.get(name)) for name, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping) -> None:
        """Load this process's share of the optimizer's state."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [p for group in optimizer.param_groups for p in group["params"]]
            state = {
                place: {
                    key: like(value, weights[place]) if getattr(value, "shape", None) == weights[place].shape else value
                    for key, value in values.items()
                }
                for place, values in saved["state"].items()
            }
            optimizer.load_state_dict(saved | {"state": state})
