"""UniMatch V2: an averaged teacher, and two strong views that lack complementary halves of the features.

Source: Yang et al., UniMatch V2, 2024 (arXiv 2410.10777), code LiheYoung/UniMatch-V2 @70fe066.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pcr_seg.method.losses import consistency_loss, cross_entropy, labeled_loss
from pcr_seg.method.mixing import UnlabeledViews, on_grid, paste, small_boxes
from pcr_seg.method.sampling import upsample
from pcr_seg.method.teacher import Teacher, statistics_of_first


class UniMatchV2(nn.Module):
    """The teacher's labels of weak views train two strong views; the channels that one drops, the other keeps.

    Small boxes of the batch's images in reverse order are pasted into the strong views, each with boxes of its own. The
    student needs `encode(images)`, which returns feature maps, and `decode(maps)`, which returns its output.

    Args:
        threshold: least confidence of a pseudo-label that trains, in 0..1; 0.95 in the source.
        supervised_loss: loss on labeled images, of logits (B, C, H, W) and labels (B, H, W).
        auxiliary_weight: weight of the same loss on the auxiliary head's logits, if the network has one.
        supervised_weight: weight of the labeled loss; 1/2 in the source.
        consistency_weight: weight of the mean of both strong views' losses; 1/2 in the source.
        cutmix_probability: probability that a strong view is mixed, in 0..1.
        burn_in_epochs: epochs on labeled images alone at the start; none in the source.
        ema_decay: decay of the teacher's average, in 0..1.
    """

    def __init__(
        self,
        *,
        threshold: float = 0.95,
        supervised_loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
        auxiliary_weight: float = 0.4,
        supervised_weight: float = 0.5,
        consistency_weight: float = 0.5,
        cutmix_probability: float = 0.5,
        burn_in_epochs: int = 0,
        ema_decay: float = 0.996,
    ) -> None:
        super().__init__()
        self.threshold, self.cutmix_probability, self.burn_in_epochs = threshold, cutmix_probability, burn_in_epochs
        self.supervised_loss, self.auxiliary_weight = supervised_loss, auxiliary_weight
        self.supervised_weight, self.consistency_weight, self.ema_decay = (
            supervised_weight, consistency_weight, ema_decay,
        )  # fmt: skip
        self.views = UnlabeledViews(strong=2, color=True)
        self.weights = {"supervised": supervised_weight, "consistency": consistency_weight}
        self.figures: dict[str, Tensor] = {}

    def forward(self, student: nn.Module, teacher: Teacher, labeled: dict, unlabeled: dict | None) -> dict[str, Tensor]:
        """Return the losses of a step by name; without unlabeled images the supervised loss alone."""
        image, mask, n = labeled["image"], labeled["mask"], len(labeled["mask"])
        if unlabeled is None:
            return {"supervised": labeled_loss(self.supervised_loss, student(image), mask, self.auxiliary_weight)}

        # The teacher labels the weak views; images, labels and confidence are mixed with the same boxes.
        weak, size = unlabeled["weak"], mask.shape[-2:]
        taught = teacher.label(weak, unlabeled["valid"])
        grid = {"probability": self.cutmix_probability, "device": weak.device}
        boxes = [small_boxes(len(weak), *weak.shape[-2:], **grid) for _ in range(2)]
        views = zip(unlabeled["strong"].unbind(1), boxes, strict=True)
        images = torch.cat([image, *(paste(view, box, view.flip(0)) for view, box in views)])

        # One forward; the decoder sees both strong views with half of their channels dropped.
        maps = student.encode(images)
        dropped = drop_complements([x[n:] for x in maps])
        with statistics_of_first(student, n):
            output = student.decode([torch.cat([x[:n], half]) for x, half in zip(maps, dropped, strict=True)])
        teacher.observe(images)

        losses = []
        for box, small in zip(boxes, output.logits[n:].chunk(2), strict=True):
            box, logits = on_grid(box, size), upsample(small, size)
            labels, confidence = (paste(x, box, x.flip(0)) for x in taught)
            losses.append(consistency_loss(logits, labels, confidence, self.threshold, divisor="valid"))
        self.figures = {"confident": ((taught[1] >= self.threshold) & unlabeled["valid"]).float().mean()}
        return {
            "supervised": labeled_loss(self.supervised_loss, output, mask, self.auxiliary_weight),
            "consistency": (losses[0] + losses[1]) / 2,
        }


def drop_complements(maps: list[Tensor]) -> list[Tensor]:
    """Drop complementary channels in two views of the same images: what one view loses, the other keeps.

    The maps are (2B, c, h, w): the first view of each image, then the second. Each channel of an image is zero in one
    view and doubled in the other, and so in all maps with as many channels. Half of the images (rounded down), drawn at
    random, keep all channels in both views. Source: UniMatch V2, "complementary dropout".
    """
    count, device = len(maps[0]) // 2, maps[0].device
    whole = torch.randperm(count, device=device) < count // 2
    factors = {}
    for width in dict.fromkeys(x.shape[1] for x in maps):
        first = 2.0 * torch.bernoulli(torch.full((count, width), 0.5, device=device))
        both = torch.cat([first, 2 - first])
        factors[width] = both.where(~whole.repeat(2)[:, None], 1.0)[:, :, None, None]
    return [x * factors[x.shape[1]].to(x.dtype) for x in maps]
