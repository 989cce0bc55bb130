"""The teacher: an exponential moving average of the student. It labels unlabeled images and is what is evaluated.

All rules for its BatchNorm statistics (A12 in docs/method.md) are in this file.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from pcr_seg.method.losses import IGNORE_INDEX
from pcr_seg.method.sampling import upsample

BN_RULES = ("copy", "forward", "weak")


class Teacher(nn.Module):
    """A copy of the student that follows it: decay * teacher + (1 - decay) * student after each optimizer step.

    Parts of the student with an attribute `frozen` that is true are shared with it, not copied; they have to stay in
    eval mode by themselves.

    After n steps the decay is min(1 - 1 / (n + 1), decay), as in U2PL: the first step copies the student.

    Args:
        student: the network to copy.
        decay: decay of the average, in 0..1; with 0 the teacher equals the student.
        bn: where BatchNorm's running statistics come from. "copy": from the student. "forward": `observe` passes the
            student's batch through the teacher in training mode, as U2PL does. "weak": from the weak views that the
            teacher labels and, while no unlabeled images train, from the labeled images (`refresh`). These look like
            the images of an evaluation, which balanced or mixed crops do not.
        logit_adjustment: t: pseudo-labels are read from logits - t log(frequency of the class among the labels).
            `count` has to be called for it; 0 switches it off. Source: Menon et al., ICLR 2021.

    Raises:
        ValueError: `bn` is none of these.
    """

    def __init__(
        self, student: nn.Module, *, decay: float = 0.99, bn: str = "copy", logit_adjustment: float = 0.0
    ) -> None:
        super().__init__()
        if bn not in BN_RULES:
            raise ValueError(f"teacher_bn={bn}: choose one of {', '.join(BN_RULES)}")
        frozen = {id(part): part for part in student.modules() if getattr(part, "frozen", False)}
        self.network = copy.deepcopy(student, frozen).requires_grad_(False).eval()
        self.decay, self.bn, self.logit_adjustment = decay, bn, logit_adjustment
        self.register_buffer("log_frequency", torch.zeros(()), persistent=False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self._steps = 0  # the same number as the buffer's, which cannot be read without waiting for the device
        self.register_load_state_dict_post_hook(lambda teacher, _: setattr(teacher, "_steps", int(teacher.steps)))

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in eval mode whatever the module around it does."""
        return super().train(False)

    @torch.no_grad()
    def label(
        self,
        images: Float[Tensor, "B D h w"],
        valid: Bool[Tensor, "B H W"],
        refine: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> tuple[Int[Tensor, "B H W"], Float[Tensor, "B H W"]]:
        """Return pseudo-labels and confidence (0..1) at the size of `valid`; 255 and 0 where it is False (padding).

        `refine(images, logits)`, if given, changes the full-size logits before labels are read from them.
        """
        logits, _ = self.logits(images, valid.shape[-2:])
        labels, confidence = pseudo_label(logits if refine is None else refine(images, logits))
        return labels.masked_fill(~valid, IGNORE_INDEX), confidence.masked_fill(~valid, 0)

    @torch.no_grad()
    def logits(
        self, images: Float[Tensor, "B D h w"], size: tuple[int, int] | torch.Size
    ) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B E i j"]]:
        """Return logits of `size`, after the logit adjustment, and the features that they were computed from.

        Under the rule "weak" this forward also moves BatchNorm's statistics.
        """
        with batchnorm_follows(self.network) if self.bn == "weak" else nullcontext():
            output = self.network(images)
        return self.adjusted(upsample(output.logits, size)), output.features

    def adjusted(self, logits: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Return logits after the logit adjustment, for methods that label by other forwards than the teacher's."""
        return logits - self.logit_adjustment * self.log_frequency if self.logit_adjustment else logits

    def count(self, masks: Iterable[Int[Tensor, "B H W"]], num_classes: int) -> None:
        """Count the classes' frequencies in the masks, for `logit_adjustment`; a missing class counts as one pixel."""
        counts = sum(torch.bincount(mask[mask != IGNORE_INDEX], minlength=num_classes) for mask in masks)
        self.log_frequency = (counts.clamp(min=1) / counts.sum()).log().to(self.log_frequency)[:, None, None]

    @torch.no_grad()
    def observe(self, images: Float[Tensor, "B D h w"]) -> None:
        """Take BatchNorm's statistics from the student's batch, under the rule "forward"; else do nothing."""
        if self.bn == "forward":
            self.network.train()(images)
            self.network.eval()

    def follow(self, student: nn.Module) -> None:
        """Move towards the student, after each optimizer step."""
        decay = ema_decay_at(self._steps, self.decay)
        ema_update(self.network, student, decay, float_buffers="copy" if self.bn == "copy" else "keep")
        self.steps += 1
        self._steps += 1

    def copy(self, student: nn.Module) -> None:
        """Equal the student, BatchNorm's statistics included: after each optimizer step of the burn-in."""
        ema_update(self.network, student, 0.0, float_buffers="copy")

    def refresh(self, batches: Iterable[Tensor]) -> None:
        """Take BatchNorm's statistics from these images (B, 3, H, W), under the rule "weak"; else do nothing.

        For trainings and burn-ins without weak views, which else bring the statistics.
        """
        if self.bn != "weak":
            return
        momenta = {norm: norm.momentum for norm in norms_of(self.network)}
        for norm in momenta:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over all batches
        self.network.train()
        for images in batches if momenta else ():
            self.network(images)
        self.network.eval()
        for norm, momentum in momenta.items():
            norm.momentum = momentum


def pseudo_label(logits: Float[Tensor, "B C *S"]) -> tuple[Int[Tensor, "B *S"], Float[Tensor, "B *S"]]:
    """Return the most probable class of each pixel and its softmax probability in (0, 1]."""
    best, pseudo_labels = logits.float().max(dim=1)
    # exp(max - logsumexp) is the largest softmax value without a second tensor of C channels.
    return pseudo_labels, (best - logits.float().logsumexp(dim=1)).exp()


def ema_decay_at(step: int, decay: float) -> float:
    """Return the decay at a step after the burn-in, counted from 0: min(1 - 1 / (step + 1), decay), as in U2PL."""
    return min(1 - 1 / (step + 1), decay)


@torch.no_grad()
def ema_update(
    teacher: nn.Module,
    student: nn.Module,
    decay: float,
    *,
    float_buffers: Literal["copy", "keep"] = "copy",
) -> None:
    """Move the teacher's parameters to decay * teacher + (1 - decay) * student.

    Float buffers (BatchNorm's statistics) are copied, or kept as they are; they are not averaged, because an average of
    BatchNorm's own averages lags so far behind that short trainings are evaluated wrongly. Integer buffers are always
    copied: an average would be truncated. Modules that teacher and student share are left alone.
    """
    parameters, buffers = followed(teacher, student)
    torch._foreach_lerp_(*map(list, zip(*parameters, strict=True)), 1 - decay)
    for ours, theirs in buffers:
        if not ours.is_floating_point() or float_buffers == "copy":
            ours.copy_(theirs)


def followed(teacher: nn.Module, student: nn.Module) -> tuple[list[tuple], list[tuple]]:
    """Return the (teacher, student) pairs of parameters, and those of buffers, leaving out modules that both share.

    Of tensors that are divided over several devices, the pairs have this process's shares.
    """
    parameters, buffers, pairs = [], [], [(teacher, student)]
    for ours, theirs in pairs:
        if ours is theirs:
            continue  # a frozen part, with all that is in it
        for found, names in ((parameters, ours._parameters), (buffers, ours._buffers)):
            found += [(local(own), local(getattr(theirs, name))) for name, own in names.items() if own is not None]
        pairs += zip(ours.children(), theirs.children(), strict=True)
    return parameters, buffers


def local(tensor: Tensor) -> Tensor:
    """Return this process's share of a tensor that is divided over several (DTensor); any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


@contextmanager
def batchnorm_follows(network: nn.Module, momentum: float = 0.01) -> Iterator[None]:
    """Inside this context BatchNorm in eval mode moves its running statistics towards those of its inputs.

    It still normalises by the statistics from before. So one forward gives labels and statistics, and each layer sees
    its inputs as in an evaluation. Processes do not share these statistics. A momentum of 0.01 averages over about a
    hundred batches, as the teacher averages weights over about a hundred steps; BatchNorm's usual 0.1 makes scores
    noisy.
    """
    with after_each_norm(network, lambda norm, values: move_statistics(norm, values, momentum)):
        yield


@contextmanager
def statistics_of_first(network: nn.Module, count: int) -> Iterator[None]:
    """Inside this context BatchNorm in training mode moves its running statistics by the first `count` images only.

    The rest of the batch has perturbed features, which the evaluated statistics should not see; with a count of 0 all
    of it has. The output is as always: normalised by the whole batch.
    """
    momenta = {norm: norm.momentum for norm in norms_of(network) if norm.training}

    def follow(norm: nn.Module, values: Tensor) -> None:
        if count and norm in momenta:
            move_statistics(norm, values[:count], momenta[norm])

    for norm in momenta:
        norm.momentum = 0.0
    try:
        with after_each_norm(network, follow):
            yield
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum


def norms_of(network: nn.Module) -> list[nn.Module]:
    """Return the network's BatchNorm layers that have running statistics, without those of frozen parts."""
    if getattr(network, "frozen", False):
        return []
    if isinstance(network, nn.modules.batchnorm._BatchNorm):
        return [network] if network.track_running_stats else []
    return [norm for child in network.children() for norm in norms_of(child)]


@contextmanager
def after_each_norm(network: nn.Module, function: Callable[[nn.Module, Tensor], object]) -> Iterator[None]:
    """Inside this context, call a function with each BatchNorm layer and its input, after the layer's forward."""

    def call(norm: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        function(norm, inputs[0])

    hooks = [norm.register_forward_hook(call) for norm in norms_of(network)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def move_statistics(norm: nn.Module, values: Float[Tensor, "B C *S"], momentum: float) -> None:
    """Move running mean and variance of a BatchNorm layer towards those of its input.

    An input with one value for each channel has no variance and is skipped.
    """
    values = values.detach().float()
    if values.numel() == values.shape[1]:
        return
    variance, mean = torch.var_mean(values, dim=(0, *range(2, values.ndim)))
    for running, now in ((norm.running_mean, mean), (norm.running_var, variance)):
        running.data.lerp_(now.to(running), momentum)  # .data: an earlier forward's backward may still use them
