import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import write_run

from pcr_seg.report.plots import MOST_POINTS, charts, curves, metrics, miou_over_labels
from pcr_seg.report.tables import aggregate, collect, compare, markdown, tables


def write_metrics(folder: Path, **columns: list) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame({key.replace("__", "/"): values for key, values in columns.items()})
    table.assign(epoch=0).to_csv(folder / "metrics.csv", index=False)
    return folder


def test_plot_shows_deviations_and_published_figures_where_data_set_family_and_count_match(tmp_path):
    for i, changes in enumerate([{}, {"dataset": "voc_aug"}, {"split_family": "cps"}]):
        for count, seed in itertools.product((92, 100, 183), (0, 1, 2)):
            run = {"num_labeled": count, "seed": seed, "miou_last": 0.5 + count / 1000 + seed / 100, "dataset": "voc"}
            write_run(tmp_path / f"{i}_{count}_{seed}", **run | changes)
    runs = compare(collect(f"{tmp_path}/*")[0], ["supervised"])
    words = "\n".join(map(markdown, tables(runs).values()))
    assert [words.count(cells) for cells in ("| 70.06 | 70.78 |", "| 74.71 | 74.65 |")] == [1, 1]
    drawn = miou_over_labels(aggregate(runs)).axes
    hollow = [[line.get_xydata().tolist() for line in axes.lines if line.get_fillstyle() == "none"] for axes in drawn]
    assert hollow == [[[[92, 86.3], [183, 87.9]]], [[[92, 70.06], [183, 74.71]], [[92, 70.78], [183, 74.65]]], []]
    (line, _, [bars]) = drawn[1].containers[0]
    assert line.get_xydata().ravel() == pytest.approx([92, 60.2, 100, 61, 183, 69.3])
    assert [end for bar in bars.get_segments() for end in bar[:, 1]] == pytest.approx([59.2, 61.2, 60, 62, 68.3, 70.3])
    assert [tick.get_text() for tick in drawn[1].get_xticklabels()] == ["92", "100", "183"]


def test_metrics_are_read_by_key_in_percent_where_they_are_scores(tmp_path):
    write_metrics(tmp_path, step=[9, 9, 19], train__lr=[0.5, None, 0.25], val__miou=[None, 0.4, None], x=[None] * 3)
    found = metrics(tmp_path)
    assert {key: values.to_dict() for key, values in found.items()} == {
        "train/lr": {9: 0.5, 19: 0.25},
        "val/miou": {9: 40},
    }
    assert metrics(tmp_path / "nowhere") == {}


def test_keys_that_belong_together_share_axes_and_any_other_has_its_own():
    keys = [
        "val/iou/sky",
        "train/new",
        "val/miou_prototype",
        "train/prototype_loss",
        "val/miou",
        "train/supervised_loss",
    ]
    assert charts(keys) == {
        "losses": ["train/prototype_loss", "train/supervised_loss"],
        "mIoU": ["val/miou_prototype", "val/miou"],
        "train/new": ["train/new"],
    }


def test_curves_have_axes_for_each_key_and_a_line_for_each_run_in_one_color(tmp_path):
    steps = np.arange(5000)
    write_metrics(tmp_path / "a", step=steps, train__supervised_loss=steps / 1000)
    write_metrics(tmp_path / "b", step=[9, 19], train__supervised_loss=[3.0, 2.0], train__prototype_loss=[1.0, 0.5])
    drawn = [axes for axes in curves({"a": tmp_path / "a", "b": tmp_path / "b"}).axes if axes.lines]
    assert [axes.get_title(loc="left") for axes in drawn] == ["train/prototype_loss", "train/supervised_loss"]
    (long, short), [lone] = drawn[1].lines, drawn[0].lines
    assert [line.get_label() for line in (long, short, lone)] == ["a", "b", "b"]
    assert short.get_color() == lone.get_color() != long.get_color()
    assert short.get_xydata().tolist() == [[9, 3], [19, 2]]
    assert len(long.get_xdata()) == MOST_POINTS, "means of 25 steps each"
    np.testing.assert_allclose(long.get_ydata(), (long.get_xdata()) / 1000)
