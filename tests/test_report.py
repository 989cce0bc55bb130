import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from pcr_seg.report import PUBLISHED, aggregate, collect, markdown, plot, report, side_by_side

ROOT = Path(__file__).parents[1]
SUMMARY = {
    "dataset": "camvid",
    "split": "1_8",
    "split_family": "u2pl",
    "method": "pcr",
    "backbone": "mobilenetv2",
    "seed": 0,
    "num_labeled": 46,
    "num_unlabeled": 321,
    "iterations": 800,
    "miou_last": 0.5,
    "miou_best": 0.55,
    "miou_prototype_last": None,
    "iou": {"sky": 0.9, "sign": None},
    "seconds": 100.0,
    "images_per_second": 9.0,
    "peak_memory_mib": 1000.0,
    "versions": {"torch": "2"},
    "git_commit": "abc",
}


def run_folder(folder: Path, **changes) -> Path:
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(SUMMARY | changes))
    return folder


def lines_by(table, *names):
    return {tuple(line[name] for name in names): line for line in table}


def test_mean_and_sample_deviation_over_seeds(tmp_path):
    for seed, last, best in ((0, 0.50, 0.55), (1, 0.52, 0.56), (2, 0.57, 0.57)):
        run_folder(tmp_path / str(seed), seed=seed, miou_last=last, miou_best=best, seconds=100 + seed)
    [line] = aggregate(collect(f"{tmp_path}/*")[0])
    assert line["n"] == 3
    assert line["miou_last"] == pytest.approx(53.0)
    assert line["miou_last_std"] == pytest.approx(math.sqrt((3**2 + 1**2 + 4**2) / 2))
    assert line["miou_best"] == pytest.approx(56.0)
    assert line["seconds"] == pytest.approx(101)
    assert line["miou_prototype_last"] is None
    assert "53.00 ± 3.61 | 56.00 ± 1.00" in markdown([line])
    assert "prototype head" not in markdown([line])


def test_one_run_has_no_deviation(tmp_path):
    run_folder(tmp_path / "a", miou_prototype_last=0.25)
    [line] = aggregate(collect(f"{tmp_path}/a")[0])
    assert (line["n"], line["miou_last_std"]) == (1, None)
    assert "| 50.00 | 25.00 | 55.00 |" in markdown([line])


def test_gain_is_paired_by_seed(tmp_path):
    for seed, last in ((0, 0.40), (1, 0.50)):
        run_folder(tmp_path / f"s{seed}", seed=seed, method="supervised", miou_last=last)
    for seed, last in ((0, 0.43), (1, 0.55), (2, 0.99)):
        run_folder(tmp_path / f"p{seed}", seed=seed, miou_last=last)
    # neither another backbone nor another split nor another family is a partner
    for name, changes in (
        ("b", {"backbone": "resnet50"}),
        ("c", {"split": "1_4", "num_labeled": 92}),
        ("d", {"split_family": "cps"}),
    ):
        run_folder(tmp_path / name, seed=2, method="supervised", **changes)
    rows, _ = collect(f"{tmp_path}/*")
    line = lines_by(aggregate(rows), "method", "split")["pcr", "1_8"]
    assert (line["n"], line["gain_n"]) == (3, 2)
    assert line["gain"] == pytest.approx(4.0)
    assert line["gain_std"] == pytest.approx(math.sqrt(2))
    assert "+4.00 ± 1.41 (n=2)" in markdown(aggregate(rows))
    assert lines_by(aggregate(rows, "consistency"), "method", "split")["pcr", "1_8"]["gain"] is None
    assert lines_by(aggregate(rows, "pcr"), "method", "split", "backbone", "split_family")[
        "supervised", "1_8", "mobilenetv2", "u2pl"
    ]["gain"] == pytest.approx(-4.0)


def test_nothing_is_mixed(tmp_path):
    cells = [
        {"dataset": "camvid"},
        {"dataset": "voc"},
        {"split_family": "cps"},
        {"split_family": None},
        {"backbone": "resnet50"},
        {"split": "1_4", "num_labeled": 92},
        {"method": "consistency"},
    ]
    for i, changes in enumerate(cells):
        for seed in (0, 1):
            run_folder(tmp_path / f"{i}_{seed}", seed=seed, miou_last=i / 10, **changes)
    table = aggregate(collect(f"{tmp_path}/*")[0])
    assert len(table) == len(cells)
    assert {line["n"] for line in table} == {2}
    assert all(line["miou_last_std"] == 0 for line in table)
    assert markdown(table).count("\n## ") == 5  # data set, family and backbone each under a heading of its own
    figure = plot(table)
    assert [axes.get_title() for axes in figure.axes] == [
        "camvid",
        "camvid · cps splits",
        "camvid · u2pl splits",
        "voc · u2pl splits",
    ]
    # consistency; pcr with either backbone
    assert [len(axes.containers) for axes in figure.axes] == [1, 1, 3, 1]


def test_plot_shows_the_means_the_deviation_and_the_published_figures(tmp_path):
    for labels, split in ((92, 92), (183, "183")):
        for seed in (0, 1, 2):
            miou = 0.5 + labels / 1000 + seed / 100
            changes = {"split": split, "num_labeled": labels, "seed": seed, "miou_last": miou}
            run_folder(tmp_path / f"{split}_{seed}", dataset="voc", **changes)
    [axes] = plot(aggregate(collect(f"{tmp_path}/*")[0])).axes
    [container] = axes.containers
    line, _, [bars] = container
    assert line.get_xdata() == pytest.approx([92, 183])
    assert line.get_ydata() == pytest.approx([60.2, 69.3])
    assert [end for segment in bars.get_segments() for end in segment[:, 1]] == pytest.approx([59.2, 61.2, 68.3, 70.3])
    assert axes.get_xscale() == "log"
    hollow = [line for line in axes.lines if line.get_fillstyle() == "none"]
    assert [list(line.get_ydata()) for line in hollow] == [[70.06, 74.71], [70.78, 74.65]]
    assert [list(line.get_xdata()) for line in hollow] == [[92, 183]] * 2


def test_published_figures_stand_only_where_everything_matches(tmp_path):
    cases = {
        "classic": {"dataset": "voc", "num_labeled": 366},
        "other family": {"dataset": "voc", "num_labeled": 366, "split_family": "cps"},
        "blender": {"dataset": "voc_aug", "num_labeled": 366},
        "other count": {"dataset": "voc", "num_labeled": 367},
        "streets": {"dataset": "cityscapes", "num_labeled": 372, "split": "1_8"},
    }
    for name, changes in cases.items():
        run_folder(tmp_path / name, **changes)
    table = aggregate(collect(f"{tmp_path}/*")[0])
    found = {
        key: (line["published_paper"], line["published_checkpoint"])
        for key, line in lines_by(table, "dataset", "split_family", "num_labeled").items()
        if line["published_paper"] is not None
    }
    assert found == {("voc", "u2pl", 366): (77.16, 76.77), ("cityscapes", "u2pl", 372): (76.31, 77.10)}
    assert {family for _, family in PUBLISHED} == {"u2pl"}


def test_order_of_methods_and_splits(tmp_path):
    for method in ("pcr_plus", "unimatch", "supervised", "pcr", "consistency"):
        for labels, split in ((100, "1_4"), (5, "1_80")):
            run_folder(tmp_path / f"{method}{labels}", method=method, num_labeled=labels, split=split)
    table = aggregate(collect(f"{tmp_path}/*")[0])
    assert [line["num_labeled"] for line in table] == [5] * 5 + [100] * 5
    assert [line["method"] for line in table[:5]] == [
        "supervised",
        "consistency",
        "unimatch",
        "pcr",
        "pcr_plus",
    ]


def test_folders_below_the_glob_count_once(tmp_path):
    run_folder(tmp_path / "runs" / "sweep" / "0", seed=0)
    run_folder(tmp_path / "runs" / "sweep" / "1", seed=1)
    run_folder(tmp_path / "runs" / "single", seed=2)
    (tmp_path / "runs" / "latest").symlink_to(tmp_path / "runs" / "single")
    (tmp_path / "runs" / "notes.txt").write_text("")
    for pattern in ("runs", "runs/*", "runs/**", "runs/**/summary.json"):
        rows, skipped = collect(f"{tmp_path}/{pattern}")
        assert [row["seed"] for row in rows] == [0, 1, 2], pattern
        assert skipped == [], pattern


def test_broken_and_unfinished_runs_are_named_and_left_out(tmp_path):
    run_folder(tmp_path / "good")
    (tmp_path / "empty").mkdir()
    (tmp_path / "sweep" / "crashed" / ".hydra").mkdir(parents=True)
    (tmp_path / "sweep" / "crashed" / "config.yaml").write_text("seed: 0")
    (tmp_path / "sweep" / "crashed" / ".hydra" / "config.yaml").write_text("seed: 0")
    (tmp_path / "early" / ".hydra").mkdir(parents=True)
    (tmp_path / "early" / ".hydra" / "config.yaml").write_text("seed: 0")
    run_folder(tmp_path / "half").joinpath("summary.json").write_text('{"dataset": ')
    run_folder(tmp_path / "list").joinpath("summary.json").write_text("[]")
    short = {key: value for key, value in SUMMARY.items() if key != "miou_best"}
    run_folder(tmp_path / "short").joinpath("summary.json").write_text(json.dumps(short))
    wrong = {"seed": "x", "num_labeled": 0, "miou_last": None, "miou_best": 55.0, "seconds": math.nan}
    for key, value in wrong.items():
        run_folder(tmp_path / f"wrong_{key}", **{key: value})
    rows, skipped = collect(f"{tmp_path}/*")
    assert [row["folder"] for row in rows] == [str(tmp_path / "good")]
    text = "\n".join(skipped)
    for name in ("empty", "early", "sweep/crashed"):
        assert f"`{tmp_path}/{name}` (no summary.json)" in skipped
    assert f"`{tmp_path}/half` (summary.json is not readable JSON)" in skipped
    assert f"`{tmp_path}/short` (summary.json lacks miou_best)" in skipped
    assert "list" in text
    assert all(f"has {key}=" in text for key in wrong)
    assert len(skipped) == 6 + len(wrong)


def test_the_newer_of_two_equal_runs_counts(tmp_path):
    for name, miou, time in (("a_new", 0.6, 2000), ("b_old", 0.4, 1000)):
        os.utime(run_folder(tmp_path / name, miou_last=miou) / "summary.json", (time, time))
    rows, skipped = collect(f"{tmp_path}/*")
    assert [row["miou_last"] for row in rows] == [0.6]
    assert len(skipped) == 1
    assert "b_old" in skipped[0].split("(")[0]


def test_runs_of_different_length_show_it(tmp_path):
    for seed, iterations in ((0, 800), (1, 200)):
        run_folder(tmp_path / str(seed), seed=seed, iterations=iterations)
    assert "| 200-800 |" in markdown(aggregate(collect(f"{tmp_path}/*")[0]))


def test_two_methods_stand_side_by_side(tmp_path):
    for seed in (0, 1):
        run_folder(tmp_path / f"s{seed}", seed=seed, method="supervised", miou_last=0.4)
        changes = {
            "miou_last": 0.5 + seed / 50,
            "miou_prototype_last": 0.45,
            "iou": {"sky": 0.8, "sign": None},
        }
        run_folder(tmp_path / f"p{seed}", seed=seed, **changes)
    rows, _ = collect(f"{tmp_path}/*")
    text = side_by_side(rows)
    assert "| in % | supervised (n=2) | pcr (n=2) | difference |" in text
    assert "| mIoU, last epoch | 40.00 ± 0.00 | 51.00 ± 1.41 | +11.00 ± 1.41 |" in text
    assert "| prototype head, last epoch | - | 45.00 ± 0.00 | - |" in text
    assert "| sky | 90.00 ± 0.00 | 80.00 ± 0.00 | -10.00 ± 0.00 |" in text
    assert "sign" not in text
    assert side_by_side(rows[:2]) == ""
    assert side_by_side([*rows, rows[0] | {"method": "consistency"}]) == ""
    assert side_by_side([rows[0], rows[-1] | {"split_family": "cps"}]) == ""


def test_no_match_names_the_glob_and_the_remedy(tmp_path):
    with pytest.raises(ValueError, match=r"nothing/\*'.*runs='runs/\*'") as error:
        collect(f"{tmp_path}/nothing/*")
    assert "\n" not in str(error.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty` \(no summary\.json\)"):
        collect(f"{tmp_path}/*")


@pytest.mark.parametrize("num_methods", [1, 2, 12])
def test_report_prints_and_writes_all_files(tmp_path, capsys, num_methods):
    for i in range(num_methods):
        run_folder(tmp_path / "runs" / str(i), method=f"method_{i:02}", miou_last=0.3 + i / 100, iou={"[void]": 0.5})
    report(f"{tmp_path}/runs/*", tmp_path / "made" / "report", baseline="method_00")
    printed = capsys.readouterr().out
    assert "30.00" in printed
    assert "iterations" in printed
    assert ("[void]" in printed) == (num_methods == 2)
    assert "Left out" not in printed
    output = tmp_path / "made" / "report"
    assert "| method_00 | 1 | 30.00 | 55.00 |" in (output / "report.md").read_text(encoding="utf-8")
    with (output / "report.csv").open(encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert len(table) == num_methods
    assert (table[0]["miou_last"], table[0]["miou_last_std"], table[0]["dataset"]) == ("30.0", "", "camvid")
    with (output / "runs.csv").open(encoding="utf-8") as file:
        runs = list(csv.DictReader(file))
    assert (len(runs), runs[0]["miou_last"], runs[0]["git_commit"]) == (num_methods, "30.0", "abc")
    with Image.open(output / "report.png") as image:
        assert min(image.size) > 400
        assert len(image.convert("RGB").getcolors(1 << 24)) > 10


def test_a_narrow_terminal_loses_columns_but_no_words(tmp_path, monkeypatch, capsys):
    for method in ("supervised", "consistency", "pcr"):
        for seed in (0, 1):
            run_folder(tmp_path / f"{method}{seed}", method=method, seed=seed, miou_last=0.4 + seed / 50)
    monkeypatch.setenv("COLUMNS", "70")
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes the pipe for a terminal
    report(f"{tmp_path}/*", tmp_path / "report")
    printed = capsys.readouterr().out
    assert "all columns in report.md" in printed
    assert all(word in printed for word in ("supervised", "consistency", "(chosen", "± 1.41"))
    assert "…" not in printed
    assert "seconds" not in printed
    assert "seconds" in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")


def test_script_ends_with_one_line_and_leaves_no_file(tmp_path):
    run_folder(tmp_path / "runs" / "a")
    command = [sys.executable, str(ROOT / "report.py")]

    def call(*arguments):
        return subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)

    done = call("runs=runs/*")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report", "runs"]
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "report.csv",
        "report.md",
        "report.png",
        "runs.csv",
    ]
    for arguments, message in (((), "runs='runs/*'"), (("runs=elsewhere/*",), "'elsewhere/*'")):
        done = call(*arguments)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
        assert message in done.stderr
