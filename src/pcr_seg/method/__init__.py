"""Methods of semi-supervised segmentation, one file each, beside the parts that several use. Torch alone.

    supervised.py  consistency.py  fixmatch.py  unimatch.py  pcr.py        pcr_plus.py, region_names.py: not the paper's
    losses.py  mixing.py  sampling.py  prototypes.py  teacher.py

A method is an `nn.Module` that the engine (`pcr_seg.module`) or a plain loop calls:

    losses = method(student, teacher, labeled, unlabeled)
    loss = sum(method.weights[name] * value for name, value in losses.items())

labeled: `image` (B, 3, H, W) and `mask` (B, H, W), normalised floats and class ids. unlabeled: `weak` (B, 3, H, W),
`strong` (B, V, 3, H, W), `valid` (B, H, W), and `other`, a second such batch, for a method that asks for one; None
during the burn-in. Views may be feature maps: sizes of labels are those of `mask` and `valid`. A method has

- `weights`: of each loss by name; the log has them as `train/NAME_loss`;
- `views`: what it needs of the unlabeled stream (`UnlabeledViews`), or None if nothing;

and, where there is something to say,

- `burn_in_epochs` (0) on labels alone before, and `ema_decay` (0) of the teacher;
- `threshold` of the pseudo-labels, whose coverage and precision validation then counts;
- `figures`: numbers of the newest step, logged as `train/NAME` and watched;
- `statistics()`: numbers by log key, asked for at each validation;
- `heads(features, size)`: full-size logits of predictors beside the linear head, by name, once they exist;
- `refine(images, logits)`: the linear head's full-size logits as predictions and pseudo-labels show them;
- `attach(student)`, called once before training; `new_epoch()`; `accumulate(batches)`, how many calls make one
  optimizer step (a bank moves once for each step's pixels); and `begin(student, labeled_batches, generator)`, called at
  the start of each epoch after the burn-in, for what is done once then.
"""

from pcr_seg.method.consistency import Consistency
from pcr_seg.method.fixmatch import FixMatch
from pcr_seg.method.losses import (
    IGNORE_INDEX,
    balanced_cross_entropy,
    consistency_loss,
    cross_entropy,
    labeled_loss,
    ohem_cross_entropy,
)
from pcr_seg.method.mixing import UnlabeledViews, class_mask, cutmix, cutmix_boxes, on_grid, paste
from pcr_seg.method.pcr import PCR
from pcr_seg.method.pcr_plus import PCRPlus
from pcr_seg.method.prototypes import PrototypeBank, kmeans, labeled_features
from pcr_seg.method.sampling import at_points, jittered_grid, sample_features, upsample
from pcr_seg.method.supervised import Supervised
from pcr_seg.method.teacher import Teacher, ema_decay_at, ema_update, pseudo_label
from pcr_seg.method.unimatch import UniMatch

__all__ = [
    "IGNORE_INDEX", "PCR", "Consistency", "FixMatch", "PCRPlus", "PrototypeBank", "Supervised", "Teacher", "UniMatch",
    "UnlabeledViews", "at_points", "balanced_cross_entropy", "class_mask", "consistency_loss", "cross_entropy",
    "cutmix", "cutmix_boxes", "ema_decay_at", "ema_update", "jittered_grid", "kmeans", "labeled_features",
    "labeled_loss", "ohem_cross_entropy", "on_grid", "paste", "pseudo_label", "sample_features", "upsample",
]  # fmt: skip
