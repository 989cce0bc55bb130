"""The trainer's part in dividing weights over all devices: checkpoints that a single process could have written."""

from collections.abc import Mapping

from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from pcr_seg.processes import like, whole


class FSDP(ModelParallelStrategy):
    """FSDP2 over all processes. What is divided is the module's business (`configure_model`).

    A checkpoint is one file of whole tensors, which any strategy reads. Lightning's own way goes by names, and takes
    the optimizer's weights for the module's in the same order, which they are not.

    Args:
        processes: of all nodes.
    """

    def __init__(self, processes: int) -> None:
        super().__init__(processes, 1, save_distributed_checkpoint=False)

    @property
    def lightning_restore_optimizer(self) -> bool:
        """The trainer hands the optimizer's state on."""
        return True

    def lightning_module_state_dict(self) -> dict:
        """Whole tensors on the first process; every one has to ask for them."""
        return self.on_first(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict:
        """The same of the optimizer."""
        return self.on_first(getattr(optimizer, "_optimizer", optimizer).state_dict())

    def on_first(self, state: dict) -> dict:
        """A nested state in whole tensors on the CPU, on the first process alone: others keep nothing of it."""

        def fetch(value: object) -> object:
            found = whole(value)
            if not isinstance(found, Tensor):
                return found
            return found.cpu() if self.is_global_zero else None

        found = tree_map(fetch, state)
        return found if self.is_global_zero else {}

    def load_checkpoint(self, checkpoint_path: str, weights_only: bool | None = None) -> dict:
        """Read the whole file, in every process."""
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only)

    def load_model_state_dict(self, checkpoint: Mapping, strict: bool = True) -> None:
        """Take each process's share of the weights."""
        own = self.lightning_module.state_dict()
        state = {name: like(value, own.get(name)) for name, value in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(state, strict=strict)

    def load_optimizer_state_dict(self, checkpoint: Mapping) -> None:
        """Take each process's share of the optimizer's state."""
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
