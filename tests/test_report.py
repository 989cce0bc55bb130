import itertools
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
    heads, _, words = text(tmp_path).splitlines()
    assert heads.endswith("| n | mIoU, last epoch | best epoch (chosen on val) | iterations | seconds |")
    assert words == "| 46 | 1_8 | pcr | 3 | 53.00 ± 3.61 | 55.00 ± 0.00 | 799, 800 | 101 |"
    write(tmp_path / "b", method="pcr_plus", miou_prototype_last=0.25)
    write(tmp_path / "c", method="pcr_plus", seed=1)
    assert "| pcr_plus | 2 | 50.00 ± 0.00 | 25.00 (n=1) | 55.00 ± 0.00 |" in text(tmp_path)


def test_gain_is_paired_by_seed_within_the_cell(tmp_path):
    for seed, supervised, pcr in ((0, 0.40, 0.43), (1, 0.50, 0.55)):
        write(tmp_path / f"supervised{seed}", seed=seed, miou_last=supervised, method="supervised")
        write(tmp_path / f"pcr{seed}", seed=seed, miou_last=pcr)
    write(tmp_path / "pcr2", seed=2, miou_last=0.99)
    for name, value in (("backbone", "resnet50"), ("split", "46"), ("num_labeled", 47), ("split_family", "cps")):
        write(tmp_path / name, seed=2, method="supervised", **{name: value})
    assert "| 55.00 ± 0.00 | +4.00 ± 1.41 (n=2) |" in text(tmp_path)
    assert read(tmp_path, "pcr").gain.dropna().tolist() == pytest.approx([-3, -5])
    assert "gain" not in text(tmp_path, "unimatch")


def test_data_sets_families_backbones_and_splits_are_never_mixed(tmp_path):
    cells = [{}, {"dataset": "voc"}, {"split_family": "cps"}, {"backbone": "resnet50"}, {"method": "unimatch"}]
    for i, changes in enumerate([*cells, {"split": "1_4", "num_labeled": 92}]):
        for seed in (0, 1):
            write(tmp_path / f"{i}_{seed}", seed=seed, miou_last=i / 10, **changes)
    table, headings = aggregate(read(tmp_path)), list(tables(read(tmp_path), "supervised"))
    assert (set(table.miou_last_mean), set(table.miou_last_std)) == ({0, 10, 20, 30, 40, 50}, {0})
    drawn = [axes.get_title(loc="left") for axes in plot(table).axes for _ in axes.containers]
    cps, u2pl, voc = "camvid · cps splits", "camvid · u2pl splits", "voc · u2pl splits"
    assert drawn == [cps, u2pl, u2pl, u2pl, voc]
    assert headings == [f"{cps} · mobilenetv2", f"{u2pl} · mobilenetv2", f"{u2pl} · resnet50", f"{voc} · mobilenetv2"]


def test_lines_go_by_labels_the_baseline_first_and_pcr_last(tmp_path):
    for method in ("pcr_plus", "unimatch", "supervised", "pcr", "consistency"):
        for count, split in ((100, "1_4"), (5, "1_80")):
            write(tmp_path / f"{method}{count}", method=method, num_labeled=count, split=split)
    lines = [(line.num_labeled, line.method) for line in aggregate(read(tmp_path)).itertuples()]
    assert lines == [(n, m) for n in (5, 100) for m in ("supervised", "consistency", "unimatch", "pcr", "pcr_plus")]


def test_plot_shows_deviations_and_published_figures_where_data_set_family_and_count_match(tmp_path):
    for i, changes in enumerate([{}, {"dataset": "voc_aug"}, {"split_family": "cps"}]):
        for count, seed in itertools.product((92, 100, 183), (0, 1, 2)):
            run = {"num_labeled": count, "seed": seed, "miou_last": 0.5 + count / 1000 + seed / 100, "dataset": "voc"}
            write(tmp_path / f"{i}_{count}_{seed}", **run | changes)
    assert [text(tmp_path).count(cells) for cells in ("| 70.06 | 70.78 |", "| 74.71 | 74.65 |")] == [1, 1]
    drawn = plot(aggregate(read(tmp_path))).axes
    hollow = [[line.get_xydata().tolist() for line in axes.lines if line.get_fillstyle() == "none"] for axes in drawn]
    assert hollow == [[], [[[92, 70.06], [183, 74.71]], [[92, 70.78], [183, 74.65]]], []]
    (line, _, [bars]) = drawn[1].containers[0]
    assert line.get_xydata().ravel() == pytest.approx([92, 60.2, 100, 61, 183, 69.3])
    assert [end for bar in bars.get_segments() for end in bar[:, 1]] == pytest.approx([59.2, 61.2, 60, 62, 68.3, 70.3])
    assert [tick.get_text() for tick in drawn[1].get_xticklabels()] == ["92", "100", "183"]


def test_runs_below_the_glob_count_once_and_the_newer_of_equal_runs_counts(tmp_path):
    for name, seed, time in (("sweep/0", 0, 2000), ("sweep/1", 1, 1000), ("a/b/old", 0, 1000)):
        os.utime(write(tmp_path / "runs" / name, seed=seed, miou_last=time / 1e4) / "summary.json", (time, time))
    (tmp_path / "runs" / "latest").symlink_to(tmp_path / "runs" / "sweep" / "1")
    for pattern in ("runs", "runs/*"):
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
    assert [*runs.folder] == [good]
    bad = ["empty", "half", "list", "short", "sweep/crashed", *(f"wrong_{key}" for key in wrong)]
    assert line == "Left out (no valid summary.json): " + ", ".join(f"{tmp_path}/{name}" for name in bad)


def test_two_methods_stand_side_by_side_with_the_iou_of_each_class(tmp_path):
    for seed in (0, 1):
        write(tmp_path / f"s{seed}", seed=seed, method="supervised", miou_last=0.4)
        iou = {"sky": 0.8 + seed / 10, "car": 0.5, "sign": None}
        write(tmp_path / f"p{seed}", seed=seed, miou_last=0.5 + seed / 50, miou_prototype_last=0.45, iou=iou)
    assert markdown(*side_by_side(read(tmp_path)).values()).splitlines()[2:] == [
        "| mIoU, last epoch | 40.00 ± 0.00 | 51.00 ± 1.41 | +11.00 ± 1.41 |",
        "| prototype head | - | 45.00 ± 0.00 | - |",
        "| best epoch (chosen on val) | 55.00 ± 0.00 | 55.00 ± 0.00 | +0.00 ± 0.00 |",
        "| sky | 90.00 ± 0.00 | 85.00 ± 7.07 | -5.00 ± 7.07 |",
        "| car | - | 50.00 ± 0.00 | - |",
    ]
    write(tmp_path / "third", method="unimatch", split="46")
    assert side_by_side(read(tmp_path)) == {}


@pytest.mark.parametrize("methods", [["pcr"], ["supervised", "pcr"], [f"a_long_method_{i}" for i in range(12)]])
def test_the_terminal_loses_columns_but_no_words(tmp_path, monkeypatch, capsys, methods):
    for i, method in enumerate(methods):
        for seed in (0, 1):
            changes = {"miou_last": 0.3 + i / 50 + seed / 50, "miou_prototype_last": 0.3, "iou": {"[void]": 0.5}}
            write(tmp_path / "runs" / f"{method}{seed}", method=method, seed=seed, **changes)
    monkeypatch.setenv("COLUMNS", "80")
    report(f"{tmp_path}/runs/*", tmp_path / "out", baseline=methods[0])
    printed, full = capsys.readouterr().out, (tmp_path / "out/report.md").read_text()
    assert all(word in printed for word in (*methods, "31.00 ± 1.41", "all columns in report.md"))
    assert max(len(line) for line in printed.splitlines() if str(tmp_path) not in line) <= 80
    assert "…" not in printed and "seconds" not in printed and "Left out" not in printed
    assert ("[void]" in printed) == (len(methods) == 2)
    assert all(word in full for word in (*methods, "seconds", "30.00 ± 0.00"))


def test_the_script_writes_four_files_or_ends_with_one_line(tmp_path, monkeypatch):
    write(tmp_path / "runs" / "a", seed=3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["report.py", "runs=runs/*"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report", "runs"]
    assert {path.name for path in Path("report").iterdir()} == {"report.csv", "report.md", "report.png", "runs.csv"}
    facts = pd.read_csv("report/runs.csv")[["folder", "seed", "miou_last", "git_commit", "seconds", "peak_memory_mib"]]
    assert facts.to_numpy().tolist() == [["runs/a", 3, 50, "abc", 100, 1000]]
    monkeypatch.setattr(sys, "argv", ["report.py", "runs=elsewhere/*"])
    with pytest.raises(SystemExit, match=r"^error: runs='elsewhere/\*'.*[^\n]$"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
