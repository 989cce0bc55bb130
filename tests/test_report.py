import json
import math
import os
import runpy
import sys
from pathlib import Path

import pandas as pd
import pytest

from pcr_seg.report import aggregate, collect, compare, markdown, plot, report, side_by_side, tables

SCRIPT = Path(__file__).parents[1] / "report.py"
SUMMARY = {
    "dataset": "camvid", "split": "1_8", "split_family": "u2pl", "method": "pcr", "backbone": "mobilenetv2", "seed": 0,
    "num_labeled": 46, "num_unlabeled": 321, "iterations": 800, "miou_last": 0.5, "miou_best": 0.55,
    "miou_prototype_last": None, "iou": {"sky": 0.9, "sign": None}, "seconds": 100.0, "images_per_second": 9.0,
    "peak_memory_mib": 1000, "versions": {"torch": "2"}, "git_commit": "abc",
}  # fmt: skip


def write(folder: Path, **changes) -> Path:
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(SUMMARY | changes))
    return folder


def read(folder: Path, baseline: str = "supervised") -> pd.DataFrame:
    return compare(collect(f"{folder}/*")[0], baseline)


def text(folder: Path, baseline: str = "supervised") -> str:
    return "\n".join(map(markdown, tables(read(folder, baseline), baseline).values()))


def test_mean_and_sample_deviation_over_seeds(tmp_path):
    for seed, last in enumerate([0.50, 0.52, 0.57]):
        write(tmp_path / str(seed), seed=seed, miou_last=last, seconds=100 + seed, iterations=800 - seed // 2)
    [line] = aggregate(read(tmp_path)).itertuples()
    assert (line.n, line.miou_last_mean, line.miou_last_std) == pytest.approx((3, 53, math.sqrt((9 + 1 + 16) / 2)))
    # no prototype head, no baseline, nothing published: no such columns; and runs of other lengths do not hide it
    assert text(tmp_path).splitlines() == [
        "| labeled | split | method | n | mIoU, last epoch | best epoch (chosen on val) | iterations | seconds |",
        "| ---: | --- | --- | ---: | ---: | ---: | ---: | ---: |",
        "| 46 | 1_8 | pcr | 3 | 53.00 ± 3.61 | 55.00 ± 0.00 | 799, 800 | 101 |",
    ]


def test_one_run_has_no_deviation_and_a_figure_that_some_lack_says_so(tmp_path):
    write(tmp_path / "a", miou_prototype_last=0.25)
    assert "| 1 | 50.00 | 25.00 | 55.00 |" in text(tmp_path)
    write(tmp_path / "b", seed=1)
    assert "| 2 | 50.00 ± 0.00 | 25.00 (n=1) | 55.00 ± 0.00 |" in text(tmp_path)


def test_gain_is_paired_by_seed_within_the_cell(tmp_path):
    for seed, supervised, pcr in ((0, 0.40, 0.43), (1, 0.50, 0.55)):
        write(tmp_path / f"supervised{seed}", seed=seed, miou_last=supervised, method="supervised")
        write(tmp_path / f"pcr{seed}", seed=seed, miou_last=pcr)
    write(tmp_path / "pcr2", seed=2, miou_last=0.99)
    for name, value in (("backbone", "resnet50"), ("split", "46"), ("num_labeled", 47), ("split_family", "cps")):
        write(tmp_path / name, seed=2, method="supervised", **{name: value})
    assert "| 66.67 ± 29.14 | 55.00 ± 0.00 | +4.00 ± 1.41 (n=2) |" in text(tmp_path)
    assert read(tmp_path).gain.dropna().tolist() == pytest.approx([3, 5])
    assert read(tmp_path, "pcr").gain.dropna().tolist() == pytest.approx([-3, -5])
    assert "gain" not in text(tmp_path, "unimatch")


def test_data_sets_families_backbones_and_splits_are_never_mixed(tmp_path):
    cells = [{}, {"dataset": "voc"}, {"split_family": "cps"}, {"backbone": "resnet50"}, {"method": "unimatch"}]
    for i, changes in enumerate([*cells, {"split": "1_4", "num_labeled": 92}]):
        for seed in (0, 1):
            write(tmp_path / f"{i}_{seed}", seed=seed, miou_last=i / 10, **changes)
    table, headings = aggregate(read(tmp_path)), list(tables(read(tmp_path), "supervised"))
    assert sorted(table.miou_last_mean) == pytest.approx([0, 10, 20, 30, 40, 50])
    assert (set(table.n), set(table.miou_last_std)) == ({2}, {0})
    assert headings[:2] == ["camvid · cps splits · mobilenetv2", "camvid · u2pl splits · mobilenetv2"]
    assert headings[2:] == ["camvid · u2pl splits · resnet50", "voc · u2pl splits · mobilenetv2"]
    drawn = [(axes.get_title(loc="left"), len(axes.containers)) for axes in plot(table).axes]
    # three lines: pcr with either backbone, and unimatch
    assert drawn == [("camvid · cps splits", 1), ("camvid · u2pl splits", 3), ("voc · u2pl splits", 1)]


def test_lines_go_by_labels_the_baseline_first_and_pcr_last(tmp_path):
    for method in ("pcr_plus", "unimatch", "supervised", "pcr", "consistency"):
        for count, split in ((100, "1_4"), (5, "1_80")):
            write(tmp_path / f"{method}{count}", method=method, num_labeled=count, split=split)
    table = aggregate(read(tmp_path))
    assert list(table.num_labeled) == [5] * 5 + [100] * 5
    assert list(table.method) == ["supervised", "consistency", "unimatch", "pcr", "pcr_plus"] * 2


def test_plot_shows_means_deviations_and_published_figures(tmp_path):
    for count in (92, 183):
        for seed in (0, 1, 2):
            miou = 0.5 + count / 1000 + seed / 100
            write(tmp_path / f"{count}_{seed}", dataset="voc", num_labeled=count, seed=seed, miou_last=miou)
    [axes] = plot(aggregate(read(tmp_path))).axes
    [(line, _, [bars])] = axes.containers
    assert line.get_xydata().ravel() == pytest.approx([92, 60.2, 183, 69.3])
    assert [end for bar in bars.get_segments() for end in bar[:, 1]] == pytest.approx([59.2, 61.2, 68.3, 70.3])
    assert axes.get_xscale() == "log"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["92", "183"]
    hollow = [line.get_xydata().tolist() for line in axes.lines if line.get_fillstyle() == "none"]
    assert hollow == [[[92, 70.06], [183, 74.71]], [[92, 70.78], [183, 74.65]]]


def test_published_figures_stand_only_where_data_set_family_and_count_match(tmp_path):
    for i, changes in enumerate([{}, {"split_family": "cps"}, {"dataset": "voc_aug"}, {"num_labeled": 367}]):
        write(tmp_path / str(i), **{"dataset": "voc", "num_labeled": 366} | changes)
    [line] = aggregate(read(tmp_path)).dropna(subset="published_paper").itertuples()
    assert (line.dataset, line.split_family, line.num_labeled) == ("voc", "u2pl", 366)
    assert text(tmp_path).count("| 77.16 | 76.77 |") == 1


def test_runs_below_the_glob_count_once_and_the_newer_of_equal_runs_counts(tmp_path):
    for name, seed, time in (("sweep/0", 0, 2000), ("sweep/1", 1, 1000), ("a/b/old", 0, 1000)):
        os.utime(write(tmp_path / "runs" / name, seed=seed, miou_last=time / 1e4) / "summary.json", (time, time))
    (tmp_path / "runs" / "latest").symlink_to(tmp_path / "runs" / "sweep" / "1")
    (tmp_path / "runs" / "notes.txt").touch()
    for pattern in ("runs", "runs/*", "r*/sweep/../*"):
        runs, left_out = collect(f"{tmp_path}/{pattern}")
        assert sorted(zip(runs.seed, runs.miou_last, strict=True)) == [(0, 20), (1, 10)], pattern
        assert len(left_out) == 1 and "newer" in left_out[0] and left_out[0].endswith("a/b/old"), pattern


def test_folders_without_a_valid_summary_are_named_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "sweep" / "crashed" / ".hydra").mkdir(parents=True)
    for name, content in (("half", '{"dataset": '), ("list", "[]"), ("short", '{"seed": 0, "iou": {}}')):
        (write(tmp_path / name) / "summary.json").write_text(content)
    wrong = {"iou": 0.5, "method": None, "miou_last": 55.0, "num_labeled": None, "seconds": math.nan, "seed": "x"}
    for key, value in wrong.items():
        write(tmp_path / f"wrong_{key}", **{key: value})
    for pattern in ("*", "nothing/*"):
        with pytest.raises(ValueError, match=r"\*'.*runs='runs/\*'$"):
            collect(f"{tmp_path}/{pattern}")
    good = write(tmp_path / "good")
    runs, [line] = collect(f"{tmp_path}/*")
    assert list(runs.folder) == [good]
    bad = ["empty", "half", "list", "short", "sweep/crashed", *(f"wrong_{key}" for key in wrong)]
    assert line == "Left out (no valid summary.json): " + ", ".join(f"{tmp_path}/{name}" for name in bad)


def test_two_methods_stand_side_by_side_with_the_iou_of_each_class(tmp_path):
    for seed in (0, 1):
        write(tmp_path / f"s{seed}", seed=seed, method="supervised", miou_last=0.4)
        iou = {"sky": 0.8 + seed / 10, "car": 0.5, "sign": None}
        write(tmp_path / f"p{seed}", seed=seed, miou_last=0.5 + seed / 50, miou_prototype_last=0.45, iou=iou)
    [(title, table)] = side_by_side(read(tmp_path)).items()
    assert title == "camvid · u2pl splits · mobilenetv2 · split 1_8 (46 labeled)"
    assert markdown(table).splitlines()[2:] == [
        "| mIoU, last epoch | 40.00 ± 0.00 | 51.00 ± 1.41 | +11.00 ± 1.41 |",
        "| prototype head | - | 45.00 ± 0.00 | - |",
        "| best epoch (chosen on val) | 55.00 ± 0.00 | 55.00 ± 0.00 | +0.00 ± 0.00 |",
        "| sky | 90.00 ± 0.00 | 85.00 ± 7.07 | -5.00 ± 7.07 |",
        "| car | - | 50.00 ± 0.00 | - |",
    ]
    write(tmp_path / "third", method="unimatch")
    assert side_by_side(read(tmp_path)) == {}


@pytest.mark.parametrize("methods", [["pcr"], ["supervised", "pcr"], [f"a_long_method_{i}" for i in range(12)]])
def test_the_terminal_loses_columns_but_no_words(tmp_path, monkeypatch, capsys, methods):
    for i, method in enumerate(methods):
        for seed in (0, 1):
            changes = {"miou_last": 0.3 + i / 50 + seed / 50, "miou_prototype_last": 0.3, "iou": {"[void]": 0.5}}
            write(tmp_path / "runs" / f"{method}{seed}", method=method, seed=seed, **changes)
    monkeypatch.setenv("COLUMNS", "80")
    report(f"{tmp_path}/runs/*", tmp_path / "out", baseline=methods[0])
    printed = capsys.readouterr().out
    assert all(word in printed for word in (*methods, "31.00 ± 1.41", "all columns in report.md"))
    assert max(len(line) for line in printed.splitlines() if str(tmp_path) not in line) <= 80
    assert "…" not in printed and "seconds" not in printed and "Left out" not in printed
    assert ("[void]" in printed) == (len(methods) == 2)
    assert all(word in (tmp_path / "out/report.md").read_text() for word in (*methods, "seconds", "30.00 ± 0.00"))


def test_the_script_writes_four_files_or_ends_with_one_line(tmp_path, monkeypatch):
    write(tmp_path / "runs" / "a", seed=3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["report.py", "runs=runs/*"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report", "runs"]
    assert {path.name for path in Path("report").iterdir()} == {"report.csv", "report.md", "report.png", "runs.csv"}
    [run] = pd.read_csv("report/runs.csv").to_dict("records")
    assert (run["folder"], run["seed"], run["miou_last"], run["git_commit"]) == ("runs/a", 3, 50, "abc")
    assert (run["seconds"], run["peak_memory_mib"]) == (100, 1000)
    monkeypatch.setattr(sys, "argv", ["report.py", "runs=elsewhere/*"])
    with pytest.raises(SystemExit, match=r"^error: runs='elsewhere/\*'.*[^\n]$"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
