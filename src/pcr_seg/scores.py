"""IoU of each head over a whole set and of each image: counted on the device, and added over all processes."""

import functools
import math

import torch
import torch.distributed as dist
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from torchmetrics.classification import MulticlassConfusionMatrix

from pcr_seg.inference import center_pad, iou_per_class
from pcr_seg.measures import ByImage, together

HEADS = ("linear", "prototype")  # the heads whose scores summary.json and eval's JSON list


def suffix(head: str) -> str:
    """Return how the head's keys in the log end: "" for the linear head, else "_prototype" and the like."""
    return "" if head == "linear" else f"_{head}"


class Scores(nn.Module):
    """A confusion matrix for each head, and for the linear head the counts of each single image."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes, self.matrices = num_classes, nn.ModuleDict()
        self.reset()

    def reset(self) -> None:
        """Count from zero."""
        self.matrices.clear()
        self.names: list[str] = []
        self.images: list[Tensor] = []  # (3, C) for each image: as `ByImage.counts`
        self.most = self.where = None  # as in `ByImage`

    def update(self, heads: dict[str, Tensor], mask: Tensor, name: str | None = None) -> Tensor:
        """Count the pixels of a batch: logits (B, C, H, W) by head, and the mask (B, H, W).

        A batch is kept as one image under `name`. Returns the mask as it was scored: (B, H', W'), the logits' size.
        """
        truth = center_pad(mask, heads["linear"].shape[-2:])
        for head, logits in heads.items():
            if head not in self.matrices:
                # Ignored pixels are counted as one more class and left out at the end: faster than removing them.
                matrix = MulticlassConfusionMatrix(self.num_classes + 1, validate_args=False)
                self.matrices[head] = matrix.to(logits.device)
            matrix = self.matrices[head]
            before = matrix.confmat.clone()
            predicted = logits.max(dim=1).indices  # argmax takes several times longer over channels
            matrix.update(predicted, truth.clamp(max=self.num_classes))
            if head == "linear":
                self.add_image((matrix.confmat - before)[:-1, :-1], name)
        return truth

    def add_image(self, matrix: Tensor, name: str | None) -> None:
        """Keep the counts of one image, from its confusion matrix (C, C), without waiting for the device."""
        self.images.append(torch.stack([matrix.diagonal(), matrix.sum(dim=1), matrix.sum(dim=0)]))
        if self.most is None:
            self.most, self.where = matrix, torch.zeros_like(matrix)
        else:
            self.where = torch.where(matrix > self.most, len(self.names), self.where)
            self.most = torch.maximum(matrix, self.most)
        self.names.append(name or f"image {len(self.names) + 1}")

    def by_image(self) -> ByImage | None:
        """Return the counts of each image of all processes, or None without images; every process has to call this."""
        own = None
        if self.images:
            arrays = (torch.stack(self.images), self.most, self.where)
            own = ByImage(self.names, *(array.cpu().numpy() for array in arrays))
        parts = [own]
        if dist.is_available() and dist.is_initialized():
            parts = [None] * dist.get_world_size()
            dist.all_gather_object(parts, own)
        parts = [part for part in parts if part]
        return functools.reduce(together, parts) if parts else None

    def counts(self) -> dict[str, Tensor]:
        """Return the confusion matrix (C, C) of [truth, prediction] of each head, over all processes."""
        return {head: matrix.compute()[:-1, :-1] for head, matrix in self.matrices.items()}

    def by_key(self, class_names: list[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return each head's mIoU, and each head's IoU of each class, by their keys in the log."""
        means, classes = {}, {}
        for head, counts in self.counts().items():
            iou = iou_per_class(counts)
            means[f"val/miou{suffix(head)}"] = iou.nanmean()
            names = [f"val/iou{suffix(head)}/{name}" for name in class_names]
            classes |= dict(zip(names, iou, strict=True))
        return means, classes


def never_predicted(counts: Tensor, class_names: list[str]) -> list[str]:
    """Return the classes that occur but are never predicted, from a confusion matrix (C, C) of [truth, prediction]."""
    never = (counts.sum(dim=0) == 0) & (counts.sum(dim=1) > 0)
    return [name for name, is_so in zip(class_names, never.tolist(), strict=True) if is_so]


def warning_of(never: list[str]) -> Text:
    """Return the terminal's warning about classes that are never predicted."""
    return Text(
        f"NEVER PREDICTED by the linear head: {', '.join(never)}. All of it becomes something else.", style="bold red"
    )


def iou_of_heads(metrics: dict[str, float], classes: list[str]) -> dict[str, dict[str, float | None] | None]:
    """Return the IoU of each class by head, "iou" and "iou_prototype", from logged `metrics`.

    A class that does not occur is None, since JSON has no NaN; so is a head that the run does not have.
    """
    heads = {}
    for head in HEADS:
        found = {name: metrics.get(f"val/iou{suffix(head)}/{name}") for name in classes}
        found = {name: None if value is None or math.isnan(value) else value for name, value in found.items()}
        heads[f"iou{suffix(head)}"] = found if f"val/miou{suffix(head)}" in metrics else None
    return heads


def score_table(title: str, scores: dict, miou: float, miou_prototype: float | None) -> Table:
    """Return a table of the IoU of each class and the mean, with a column for each head; `scores` of `iou_of_heads`."""
    columns = {"linear head": (scores["iou"], miou)}
    if scores["iou_prototype"]:
        columns["prototype head"] = (scores["iou_prototype"], miou_prototype)
    table = Table("IoU", *columns, title=title)
    for name in scores["iou"]:
        table.add_row(escape(name), *(percent(iou[name]) for iou, _ in columns.values()))
    table.add_section()
    table.add_row("mIoU", *(percent(mean) for _, mean in columns.values()), style="bold")
    return table


def percent(value: float | None) -> str:
    """Write a fraction as percent with one decimal, None as "-"."""
    return "-" if value is None else f"{100 * value:.1f}"
