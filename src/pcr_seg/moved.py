"""What is called otherwise than it was, or is gone."""

LAST_READER = "3bc4437"  # the last commit that reads runs and checkpoints from before one file held one method

# Keys and choices that stood elsewhere, or that nothing asked for any more (docs/trials.md says what was measured).
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
