"""Supervised training on the labeled images alone. What is evaluated is an average of the weights."""

from collections.abc import Callable

from torch import Tensor, nn

from pcr_seg.method.losses import cross_entropy, labeled_loss
from pcr_seg.method.teacher import Teacher


class Supervised(nn.Module):
    """The student learns the labeled images; unlabeled ones are not even loaded.

    Args:
        supervised_loss: loss on labeled images, of logits (B, C, H, W) and labels (B, H, W).
        auxiliary_weight: weight of the same loss on the auxiliary head's logits, if the network has one.
        ema_decay: decay of the averaged weights, which are evaluated, in 0..1.
    """

    def __init__(
        self,
        *,
        supervised_loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
        auxiliary_weight: float = 0.4,
        ema_decay: float = 0.99,
    ) -> None:
        super().__init__()
        self.supervised_loss, self.auxiliary_weight, self.ema_decay = supervised_loss, auxiliary_weight, ema_decay
        self.views, self.weights = None, {"supervised": 1.0}

    def forward(self, student: nn.Module, teacher: Teacher, labeled: dict, unlabeled: None = None) -> dict[str, Tensor]:
        """Return the loss of a step, by its name."""
        image, mask = labeled["image"], labeled["mask"]
        output = student(image)
        teacher.observe(image)
        return {"supervised": labeled_loss(self.supervised_loss, output, mask, self.auxiliary_weight)}
