"""What the diagnosis measures: distances against loops, and pseudo-labels against masks that were set aside."""

import csv
from pathlib import Path

import pytest
import torch
from conftest import small_config
from test_module import make_module

from pcr_seg.data.sources import Source
from pcr_seg.training.diagnosis import class_distances, features_as_evaluated
from pcr_seg.training.fit import fit


def test_class_distances_against_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(40, 5, generator=generator), torch.randint(0, 3, (40,), generator=generator)
    labels[labels == 1] = 255
    directions = {c: sum(f / f.norm() for f in features[labels == c]) for c in (0, 2)}

    def distance(a: torch.Tensor, b: torch.Tensor) -> float:
        return 1 - float(a @ b / a.norm() / b.norm())

    means = [
        sum(distance(f, mean) for f in features[labels == c]) / int((labels == c).sum())
        for c, mean in directions.items()
    ]
    within, between = class_distances(features, labels, 4)
    assert float(within) == pytest.approx(sum(means) / 2, abs=1e-5)
    assert float(between) == pytest.approx(distance(directions[0], directions[2]), abs=1e-5)


def test_compact_classes_are_close_within_and_far_between() -> None:
    corners = torch.eye(3).repeat_interleave(5, 0)
    within, between = class_distances(corners, torch.arange(3).repeat_interleave(5), 3)
    assert float(within) == pytest.approx(0, abs=1e-6) and float(between) == pytest.approx(1)


def test_diagnosis_changes_nothing_and_logs_every_figure(tmp_path: Path) -> None:
    overrides = ["method.threshold=0.2"]
    plain = fit(small_config(tmp_path / "plain", *overrides))
    diagnosed = fit(small_config(tmp_path / "diagnosed", *overrides, "diagnosis=true"))
    assert plain["miou_last"] == diagnosed["miou_last"]
    assert plain["miou_prototype_last"] == diagnosed["miou_prototype_last"]
    with (tmp_path / "diagnosed/run/metrics.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    for name in ("coverage", "precision", "agreement", "within_class", "between_class"):
        values = [float(row[f"diagnosis/{name}"]) for row in rows if row.get(f"diagnosis/{name}")]
        assert values and all(0 <= value <= 2 for value in values), name


def test_steps_without_masks_have_no_figures(tiny_set: Source, tmp_path: Path) -> None:
    data = Path(tiny_set.train[0].image).parents[2]
    folder = ["dataset=folder", f"dataset.root={data}", "recipe=synthetic", "optimizer=adamw_scratch"]
    steps = ["split=10", "global_batch=2", "data.steps_per_epoch=6", "method.burn_in_epochs=1", "data.num_workers=0"]
    summary = fit(small_config(tmp_path, *folder, *steps, "diagnosis=true"))
    with (tmp_path / "run/metrics.csv").open() as lines:
        coverage = [row["diagnosis/coverage"] for row in csv.DictReader(lines) if row.get("diagnosis/coverage")]
    assert summary["num_unlabeled"] == 6, "two of them with masks, two images in each of six steps"
    assert len(coverage) == 6 and 0 < coverage.count("nan") <= 4


def test_features_are_those_of_the_evaluated_size(tmp_path: Path) -> None:
    module = make_module(tmp_path, "protocol=multi_scale", "protocol.scales=[0.5]").eval()
    image = torch.randn(3, 64, 48)
    found = features_as_evaluated(module, image)
    smaller = torch.nn.functional.interpolate(image[None], (32, 24), mode="bilinear", align_corners=True)
    torch.testing.assert_close(found, module.teacher.network(smaller).features)
