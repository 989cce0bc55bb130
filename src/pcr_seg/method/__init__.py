"""Methods of semi-supervised segmentation: one file for each, and the parts that several share. They need torch alone.

    methods               supervised.py  consistency.py  fixmatch.py  unimatch.py  unimatch_v2.py  pcr.py
    variants of PCR,      pcr_crossed.py  second_head.py  pcr_plus.py (with region_names.py)
      not in the paper
    shared parts          losses.py  mixing.py  sampling.py  prototypes.py  teacher.py

A method is an `nn.Module` that the engine (`pcr_seg.module`) or a plain loop calls:

    losses = method(student, teacher, labeled, unlabeled)
    loss = sum(method.weights[name] * value for name, value in losses.items())

`labeled` has `image` (B, 3, H, W), normalised floats, and `mask` (B, H, W), class ids with 255 where nothing is known.
`unlabeled` has `weak` (B, 3, H, W), `strong` (B, V, 3, H, W) with V strong views of each image, and `valid` (B, H, W),
False on padding; B, H and W are those of the labeled images. A method that asks for a second unlabeled batch finds it
under `other`. During the burn-in `unlabeled` is None. A view may be a feature map, smaller than `mask` and `valid`,
whose size the labels have. Strong views of feature maps are not loaded: the student makes them (`perturb`).

The student returns `logits` (B, C, h, w), `features` (B, D, h, w) and, if it has an auxiliary head, its `auxiliary`
logits. The teacher (`Teacher`) gives pseudo-labels by `label(images, valid)`. After the student's forward a method
calls `teacher.observe(images)` with the images that the student has seen: the teacher's BatchNorm rule "forward" needs
them.

A method has to have

- `weights`: the weight of each loss, by the loss's name; the log calls the loss `train/NAME_loss`;
- `views`: what it needs of the unlabeled images (`UnlabeledViews`), or None if it needs none;
- every argument of its constructor as an attribute of the same name: a checkpoint rebuilds the method from these;

and may have

- `burn_in_epochs`: epochs on labeled images alone at the start (0 without it);
- `ema_decay`: decay of the teacher's average (0 without it: the teacher equals the student);
- `threshold`: least confidence of a pseudo-label that trains; validation then counts how many pixels of the validation
  images reach it, and how many of these are right;
- `figures`: numbers of the newest step with unlabeled images, by name; they are logged as `train/NAME` and watched;
- `statistics()`: numbers by log key, which the engine asks for at each validation;
- `heads(features, size)`: logits (B, C, H, W) of its predictors beside the linear head, by name, once they exist;
- `refine(images, logits)`: changes the linear head's logits (B, C, H, W) before a prediction is read from them;
- `bank`: prototypes that pictures and predictions can show, and `usage`, the share of features that chose each;
- `attach(student)`: called once, when the module or the predictor is made and before weights are loaded;
- `accumulate(batches)`: called before training with the number of batches in an optimizer step, so that prototypes can
  move as far in these as in one large batch;
- `new_epoch()`: called at the start of every epoch;
- `begin(student, labeled_batches, generator)`: called after `new_epoch()` in every epoch after the burn-in. What it
  does once it must not do again after a resume, so its state has to say that it is done.
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
