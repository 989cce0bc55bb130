"""Configuration keys that have moved or are gone; docs/moved.md lists them for readers."""

LAST_READER = "3bc4437"  # the last commit that has the keys in GONE, and that reads checkpoints of format 1

# Old key -> new key. What was measured of those that are gone: docs/trials.md.
MOVED = {
    "method.head_lr_multiplier": "model.head_lr_multiplier",
    "method.poly_power": "module.poly_power",
    "method.teacher_bn": "module.teacher_bn",
    "method.seed": "seed",
    "method.feature_dropout_weight": "method.feature_weight",
    "method.prototype_on_labeled": "method.prototype_on=pseudo-labels",
    "method.prototype_on_unlabeled": "method.prototype_on=labels",
    "method.strong_views": "method=unimatch",
    "method.supervised_loss._target_": "recipe.supervised_loss._target_",
}
GONE = (
    "method.gate", "method.drop_percent", "method.class_thresholds", "method.normalizer", "method.bank_init",
    "method.bank_features", "method.copy_teacher_first_epoch", "method=entropy_gate", "method=random_prototypes",
)  # fmt: skip
