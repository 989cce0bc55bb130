"""Methods of semi-supervised segmentation, one file each, beside the parts that several use. Torch alone.

    supervised.py  consistency.py  fixmatch.py  unimatch.py  unimatch_v2.py  pcr.py
    pcr_crossed.py, second_head.py, pcr_plus.py, region_names.py: not the paper's
    losses.py  mixing.py  sampling.py  prototypes.py  teacher.py

A method is an `nn.Module` that the engine (`pcr_seg.module`) or a plain loop calls:

    losses = method(student, teacher, labeled, unlabeled)
    loss = sum(method.weights[name] * value for name, value in losses.items())

labeled: `image` (B, 3, H, W) and `mask` (B, H, W), normalised floats and class ids, 255 where nothing is known.
unlabeled: `weak` (B, 3, H, W), `strong` (B, V, 3, H, W) and `valid` (B, H, W), False on padding, all of the labeled
images' size and number; and `other`, a second such batch, for a method that asks for one. It is None during the
burn-in. A view may be a feature map: labels have the size of `mask` and `valid`, and it has its own. Strong views of
feature maps are not loaded: the student makes them (`perturb`).

The student returns `logits` (B, C, h, w) and `features` (B, D, h, w), perhaps `auxiliary` logits. The teacher
(`Teacher`) gives pseudo-labels by `label(images, valid)`, which brings the statistics of its rule "weak", and wants
`observe(images)` after the student's forward for its rule "forward". A method has

- `weights`: of each loss by name; the log has them as `train/NAME_loss`;
- `views`: what it needs of the unlabeled stream (`UnlabeledViews`), or None if nothing;
- every argument of its constructor as an attribute of the same name, from which a checkpoint rebuilds it;

and, where there is something to say,

- `burn_in_epochs` (0) on labels alone before, and `ema_decay` (0) of the teacher;
- `threshold` of the pseudo-labels, whose coverage and precision validation then counts;
- `figures`: numbers of the newest step with unlabeled images, logged as `train/NAME` and watched;
- `statistics()`: numbers by log key, asked for at each validation;
- `heads(features, size)`: full-size logits of predictors beside the linear head, by name, once they exist;
- `refine(images, logits)`: the linear head's full-size logits as predictions show them;
- `bank`, prototypes that pictures and predictions may show, with `usage`, the share of features that chose each;
- `attach(student)`, called when module or predictor are made, before weights are loaded;
- `accumulate(batches)`, how many calls make one optimizer step: a bank moves once for each step's pixels;
- `new_epoch()`, and then, after the burn-in, `begin(student, labeled_batches, generator)`, which returns at once where
  what has to be done once is done: its state has to say so.
"""

from pcr_seg.method.consistency import Consistency
from pcr_seg.method.fixmatch import FixMatch
from pcr_seg.method.losses import (
    IGNORE_INDEX,
    balance,
    balanced_cross_entropy,
    consistency_loss,
    cross_entropy,
    labeled_loss,
    ohem_cross_entropy,
    per_image_ohem_cross_entropy,
)
from pcr_seg.method.mixing import UnlabeledViews, class_mask, cutmix, cutmix_boxes, on_grid, paste, small_boxes
from pcr_seg.method.pcr import PCR
from pcr_seg.method.pcr_crossed import PCRCrossed
from pcr_seg.method.pcr_plus import PCRPlus
from pcr_seg.method.prototypes import PrototypeBank, kmeans, labeled_features
from pcr_seg.method.sampling import at_points, jittered_grid, sample_features, upsample
from pcr_seg.method.supervised import Supervised
from pcr_seg.method.teacher import Teacher, batchnorm_follows, ema_decay_at, ema_update, pseudo_label
from pcr_seg.method.unimatch import UniMatch
from pcr_seg.method.unimatch_v2 import UniMatchV2

__all__ = [
    "IGNORE_INDEX",
    "PCR",
    "Consistency",
    "FixMatch",
    "PCRCrossed",
    "PCRPlus",
    "PrototypeBank",
    "Supervised",
    "Teacher",
    "UniMatch",
    "UniMatchV2",
    "UnlabeledViews",
    "at_points",
    "balance",
    "balanced_cross_entropy",
    "batchnorm_follows",
    "class_mask",
    "consistency_loss",
    "cross_entropy",
    "cutmix",
    "cutmix_boxes",
    "ema_decay_at",
    "ema_update",
    "jittered_grid",
    "kmeans",
    "labeled_features",
    "labeled_loss",
    "ohem_cross_entropy",
    "on_grid",
    "paste",
    "per_image_ohem_cross_entropy",
    "pseudo_label",
    "sample_features",
    "small_boxes",
    "upsample",
]
