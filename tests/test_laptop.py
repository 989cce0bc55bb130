"""Laptop mode as a whole: runs on kept features give what runs on images give, with every method, and go on."""

from pathlib import Path

import pytest
import timm
import torch
from conftest import small_config
from omegaconf import OmegaConf
from torch.testing import assert_close

from pcr_seg.checkpoint import load
from pcr_seg.config import CONF, build
from pcr_seg.data.features import FeatureViews
from pcr_seg.data.files import Sample, read_image
from pcr_seg.module import Segmentation
from pcr_seg.pixels import as_floats, as_tensor, normalize
from pcr_seg.training.fit import build_module, fit

# A tiny frozen network of random weights, read from a file as real ones are.
METHODS = sorted({path.stem for path in (CONF / "method").glob("*.yaml")} - {"pcr_named"})


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    file = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save(timm.create_model("test_efficientnet").state_dict(), file)
    return file


def laptop(root: Path, weights: Path, *overrides: str):
    return small_config(
        root, "experiment=laptop", "backbone.name=test_efficientnet", f"backbone.weights={weights}",
        f"features.folder={root}/features", f"data.cache={root}/features", "data.crop_size=33", "recipe.threshold=0.3",
        "recipe.fixmatch.threshold=0.3", *overrides,
    )  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_on_kept_features(tmp_path: Path, weights: Path, method: str) -> None:
    summary = fit(laptop(tmp_path, weights, f"method={method}", "trainer.max_epochs=3"))
    assert summary["miou_last"] > 0 and summary["iterations"] == 6


def test_a_step_on_kept_features_is_one_on_images(tmp_path: Path, weights: Path) -> None:
    cfg = laptop(tmp_path, weights, "method=supervised", "features.label_stride=1", "features.mirror=false",
                 "model.channels=16", "model.dropout=0")  # fmt: skip
    source = build(cfg.dataset)
    module = build_module(OmegaConf.to_container(cfg, resolve=True), list(source.classes))
    features = build(cfg.features, module.student)
    kept = build(cfg.data, source, use_unlabeled=False, features=features)
    kept.setup()
    batch = next(iter(kept._loader(kept.views(kept.split.labeled), [(0, 1), (1, 2)], drop_last=False)))
    assert isinstance(kept.views(kept.split.labeled), FeatureViews)

    # The same crops by hand: images of 48 pixels are shown in 49, of which a crop has 33.
    module.student.standardize([as_floats(batch, module.student)])
    losses = {}
    for way in ("kept", "anew"):
        view = as_floats(batch, module.student)
        if way == "anew":
            images = [image_of(sample, module) for sample in kept.split.labeled[:2]]
            shown = [module.student.join(module.student.raw(image))[0] for image in images]
            places = [place_of(part, full) for part, full in zip(view["image"], shown, strict=True)]
            crops = [full[:, y : y + 3, x : x + 3] for full, (y, x) in zip(shown, places, strict=True)]
            view["image"] = torch.stack(crops)
        losses[way] = module.method(module.student, module.teacher, view, None)["supervised"]
    assert_close(losses["kept"], losses["anew"], atol=1e-3, rtol=1e-3)


def image_of(sample: Sample, module: Segmentation) -> torch.Tensor:
    return normalize(as_tensor(read_image(sample.image)), module.student)[None]


def place_of(part: torch.Tensor, full: torch.Tensor) -> tuple[int, int]:
    side = full.shape[-1] - part.shape[-1] + 1
    places = [(y, x) for y in range(side) for x in range(side)]
    return min(places, key=lambda p: (full[:, p[0] : p[0] + 3, p[1] : p[1] + 3] - part).abs().max())


def test_it_is_scored_as_eval_scores_it(tmp_path: Path, weights: Path) -> None:
    from conftest import composed

    from pcr_seg.commands.evaluate import evaluate

    summary = fit(laptop(tmp_path, weights, "trainer.max_epochs=3"))
    checkpoint = tmp_path / "run/checkpoints/last.ckpt"
    again = evaluate(composed(f"checkpoint={checkpoint}", "num_workers=0", name="eval"))
    assert again["miou"] == pytest.approx(summary["miou_last"], abs=2e-3)


def test_a_checkpoint_is_whole_or_leaves_the_backbone_out(tmp_path: Path, weights: Path) -> None:
    image = torch.randn(1, 3, 48, 48)
    for backbone in ("true", "false"):
        fit(laptop(tmp_path / backbone, weights, f"checkpoints.backbone={backbone}", "trainer.max_epochs=3"))
    whole, part = (tmp_path / f"{backbone}/run/checkpoints/last.ckpt" for backbone in ("true", "false"))
    assert part.stat().st_size < whole.stat().st_size - 300_000
    for head, logits in load(part)(image).items():
        assert torch.equal(logits, load(whole)(image)[head])
    moved = weights.rename(weights.with_suffix(".moved"))
    try:
        load(whole)
        with pytest.raises(ValueError, match=r"tiny\.pth: no such file"):
            load(part)
    finally:
        moved.rename(weights)


def test_a_resumed_run_is_the_unbroken_one(tmp_path: Path, weights: Path) -> None:
    from test_golden import fit_and_stop_after

    options = ("checkpoints.backbone=false", "trainer.max_epochs=4", "method=pcr_crossed")
    fit(laptop(tmp_path / "whole", weights, *options))
    with pytest.raises(KeyboardInterrupt):
        fit_and_stop_after(laptop(tmp_path / "broken", weights, *options), epochs=3)
    fit(laptop(tmp_path / "broken", weights, f"resume={tmp_path}/broken/run"))
    whole, broken = (load(tmp_path / f"{name}/run/checkpoints/last.ckpt") for name in ("whole", "broken"))
    for (name, ours), theirs in zip(whole.state_dict().items(), broken.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


def test_an_image_that_cannot_be_read_is_left_out(tmp_path: Path, weights: Path) -> None:
    config = laptop(tmp_path, weights, "data.on_error=skip", "data.max_skipped=0.2")
    data = build(config.data, build(config.dataset))
    bad = Path(data.split.unlabeled[0].image)
    bad.write_bytes(bad.read_bytes()[:-40])  # its header is whole
    with pytest.warns(UserWarning, match=rf"{bad.name}: not readable .*; skipped, 1 of"):
        summary = fit(config)
    assert summary["num_unlabeled"] == len(data.split.unlabeled)
    config.data.max_skipped = 0.01
    config.output = f"{tmp_path}/strict"
    with pytest.raises(ValueError, match=r"1 of \d+ files are bad, more than data\.max_skipped=0\.01 allows"):
        fit(config)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("backbone.freeze=[]", r"features: needs backbone\.freeze=all and model=mlp or linear"),
        ("model=deeplab_small", r"features: needs backbone\.freeze=all and model=mlp or linear"),
        ("data.crop_size=40", r"data\.crop_size=40: kept features lie 16 pixels apart; use 33"),
        ("features.label_stride=5", r"features\.label_stride=5: does not divide 32; use 4"),
        ("method=pcr_named", r"method\.region_names=true: looks at images, .*; use features=none"),
        ("protocol=sliding", r"protocol: kept features are scored whole; use protocol=whole"),
    ],
)
def test_what_does_not_go_together_is_one_line(tmp_path: Path, weights: Path, override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(laptop(tmp_path, weights, override))
