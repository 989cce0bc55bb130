"""Four families train, are resumed bit for bit, predict odd sizes and are scored, each with a decoder that suits it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import composed, small_config
from test_module import fit_and_stop_after

from pcr_seg.checkpoint import load
from pcr_seg.commands.evaluate import evaluate
from pcr_seg.training.fit import fit

VIT = [f"+backbone.options.{key}={value}" for key, value in (("depth", 4), ("embed_dim", 32), ("num_heads", 2))]
FAMILIES = {
    "vit_small_patch14_reg4_dinov2": [*VIT, "model=dpt", "model.projections=[8,8,8,8]", "method=unimatch_v2"],
    "vit_small_patch16_dinov3": [*VIT, "model=mlp", "backbone.freeze=1", "backbone.layer_decay=0.8"],
    "mambaout_femto": ["model=deeplab_small"],
    "convnext_atto": ["model=deeplab_small", "backbone.checkpointing=true"],
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_trains_resumes_predicts_and_is_scored(tmp_path: Path, name: str) -> None:
    overrides = ["backbone=any", f"backbone.name={name}", "backbone.weights=null", *FAMILIES[name]]
    fit(small_config(tmp_path / "whole", *overrides))
    with pytest.raises(KeyboardInterrupt):
        fit_and_stop_after(small_config(tmp_path / "parts", *overrides), epochs=1)
    fit(small_config(tmp_path / "other", f"resume={tmp_path}/parts/run"))
    files = [tmp_path / part / "run/checkpoints/last.ckpt" for part in ("whole", "parts")]
    whole, parts = (torch.load(file, weights_only=True)["state_dict"] for file in files)
    assert whole.keys() == parts.keys() and all(torch.equal(whole[key], parts[key]) for key in whole)
    predictor = load(files[0])
    assert predictor.predict(np.zeros((37, 50, 3), np.uint8)).labels.shape == (37, 50)
    summary = evaluate(composed(f"checkpoint={files[0]}", "device=cpu", name="eval"))
    assert 0 <= summary["miou"] <= 1
