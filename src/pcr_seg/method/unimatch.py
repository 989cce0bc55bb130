"""UniMatch: FixMatch with two strong views, and the weak view once more with dropped features.

Source: Yang et al., CVPR 2023, code LiheYoung/UniMatch @7292bac. What differs from it is listed in docs/method.md.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcr_seg.method.losses import IGNORE_INDEX, consistency_loss, cross_entropy, labeled_loss
from pcr_seg.method.mixing import UnlabeledViews, on_grid, paste, small_boxes
from pcr_seg.method.sampling import upsample
from pcr_seg.method.teacher import Teacher, pseudo_label, statistics_of_first


class UniMatch(nn.Module):
    """The network's own labels of weak views train two strong views, and the weak view with half of its features.

    Small boxes of another unlabeled batch are pasted into the strong views, each with boxes of its own. As in the
    source, labels inside of the boxes come from the network in eval mode, labels outside of them from its forward in
    training mode. The source weighs the labeled loss 1/2, both strong views together 1/4 and the dropped features 1/4.
    Here these are 1, 1/2 and 1/2: a common factor is the learning rate's matter. The student needs `encode(images)`,
    which returns feature maps, and `decode(maps)`, which returns its output.

    Args:
        threshold: least confidence of a pseudo-label that trains, in 0..1; 0.95 in the source, 0 on Cityscapes.
        supervised_loss: loss on labeled images, of logits (B, C, H, W) and labels (B, H, W).
        auxiliary_weight: weight of the same loss on the auxiliary head's logits, if the network has one.
        consistency_weight: weight of the mean of both strong views' losses.
        feature_weight: weight of the loss of the view with dropped features.
        cutmix_probability: probability that a strong view is mixed, in 0..1.
        burn_in_epochs: epochs on labeled images alone at the start; none in the source.
    """

    ema_decay = 0.0  # the teacher is the network itself

    def __init__(
        self,
        *,
        threshold: float = 0.95,
        supervised_loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
        auxiliary_weight: float = 0.4,
        consistency_weight: float = 0.5,
        feature_weight: float = 0.5,
        cutmix_probability: float = 0.5,
        burn_in_epochs: int = 0,
    ) -> None:
        super().__init__()
        self.threshold, self.cutmix_probability, self.burn_in_epochs = threshold, cutmix_probability, burn_in_epochs
        self.supervised_loss, self.auxiliary_weight = supervised_loss, auxiliary_weight
        self.consistency_weight, self.feature_weight = consistency_weight, feature_weight
        self.views = UnlabeledViews(strong=2, color=True, other=True)
        self.weights = {"supervised": 1.0, "consistency": consistency_weight, "features": feature_weight}
        self.figures: dict[str, Tensor] = {}

    def forward(self, student: nn.Module, teacher: Teacher, labeled: dict, unlabeled: dict | None) -> dict[str, Tensor]:
        """Return the losses of a step by name; without unlabeled images the supervised loss alone."""
        image, mask, n = labeled["image"], labeled["mask"], len(labeled["mask"])
        if unlabeled is None:
            return {"supervised": labeled_loss(self.supervised_loss, student(image), mask, self.auxiliary_weight)}

        # What is pasted into the boxes comes from another batch; the network labels it in eval mode.
        weak, valid, other, size = unlabeled["weak"], unlabeled["valid"], unlabeled["other"], mask.shape[-2:]
        taught = teacher.label(other["weak"], other["valid"])
        grid = {"probability": self.cutmix_probability, "device": weak.device}
        boxes = [small_boxes(len(weak), *weak.shape[-2:], **grid) for _ in range(2)]
        pairs = zip(unlabeled["strong"].unbind(1), boxes, other["strong"].unbind(1), strict=True)
        strong = torch.cat([paste(view, box, inside) for view, box, inside in pairs])

        # Labeled images and weak views are encoded once and decoded twice, whole and with dropped features, in one
        # batch. Then the strong views pass the network.
        maps = student.encode(torch.cat([image, weak]))
        with statistics_of_first(student, n + len(weak)):
            output = student.decode([torch.cat(pair) for pair in zip(maps, drop_features(maps), strict=True)])
        clean, dropped = output.logits.split(n + len(weak))
        of_strong = student(strong).logits
        teacher.observe(torch.cat([image, strong]))
        labels, confidence = pseudo_label(teacher.adjusted(upsample(clean[n:].detach(), size)))
        labels = labels.masked_fill(~valid, IGNORE_INDEX)

        views = []
        for box, logits in zip(boxes, of_strong.chunk(2), strict=True):
            box = on_grid(box, size)
            mixed = [paste(x, box, inside) for x, inside in zip((labels, confidence), taught, strict=True)]
            views.append(consistency_loss(upsample(logits, size), *mixed, self.threshold, divisor="valid"))
        dropped = upsample(dropped[n:], size)
        features = consistency_loss(dropped, labels, confidence, self.threshold, divisor="valid")
        self.figures = {"confident": ((confidence >= self.threshold) & valid).float().mean()}
        return {
            "supervised": labeled_loss(self.supervised_loss, output, mask, self.auxiliary_weight),
            "consistency": (views[0] + views[1]) / 2,
            "features": features,
        }


def drop_features(maps: list[Tensor]) -> list[Tensor]:
    """Set a random half of the channels of the first and of the last map to zero, another half for each image.

    The maps are (B, c, h, w), in the order of the backbone's stages. Those between stay whole, as in the source:
    DeepLab's logits do not depend on them.
    """
    dropped = {0, len(maps) - 1}
    return [F.dropout2d(x, 0.5) if place in dropped else x for place, x in enumerate(maps)]
