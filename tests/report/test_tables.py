import math
import os
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import write_run

from pcr_seg.report.plots import miou_over_labels
from pcr_seg.report.tables import (
    aggregate,
    class_gains,
    collect,
    compare,
    in_words,
    markdown,
    one_run_each,
    paired,
    side_by_side,
    tables,
)


def read(folder: Path, *baselines: str) -> pd.DataFrame:
    return compare(collect(f"{folder}/*")[0], baselines or ["supervised"])


def text(folder: Path, *baselines: str) -> str:
    return "\n".join(map(markdown, tables(read(folder, *baselines)).values()))


def test_mean_and_sample_deviation_over_seeds(tmp_path):
    for seed, last in enumerate([0.50, 0.52, 0.57]):
        write_run(tmp_path / str(seed), seed=seed, miou_last=last, seconds=100 + seed, iterations=800 - seed // 2)
    [line] = aggregate(read(tmp_path)).itertuples()
    assert (line.n, line.miou_last_mean, line.miou_last_std) == pytest.approx((3, 53, math.sqrt((9 + 1 + 16) / 2)))
    # no prototype head, no baseline, nothing published: no such columns; and runs of other lengths do not hide it
    heads, _, words = text(tmp_path).splitlines()
    assert heads.endswith(
        "| n | mIoU, last epoch | best epoch (chosen on val) | iterations | seconds | images/s | peak MiB |"
    )
    assert words == "| 46 | 1_8 | pcr | 3 | 53.00 ± 3.61 | 55.00 ± 0.00 | 799, 800 | 101 | 9 | 1000 |"
    write_run(tmp_path / "b", method="pcr_plus", miou_prototype_last=0.25)
    write_run(tmp_path / "c", method="pcr_plus", seed=1)
    assert "| pcr_plus | 2 | 50.00 ± 0.00 | 25.00 (n=1) | 55.00 ± 0.00 |" in text(tmp_path)


def test_gain_is_paired_by_seed_within_the_cell(tmp_path):
    for seed, supervised, pcr in ((0, 0.40, 0.43), (1, 0.50, 0.55)):
        write_run(tmp_path / f"supervised{seed}", seed=seed, miou_last=supervised, method="supervised")
        write_run(tmp_path / f"pcr{seed}", seed=seed, miou_last=pcr)
    write_run(tmp_path / "pcr2", seed=2, miou_last=0.99)
    for name, value in (("backbone", "resnet50"), ("split", "46"), ("num_labeled", 47), ("split_family", "cps")):
        write_run(tmp_path / name, seed=2, method="supervised", **{name: value})
    assert "| 55.00 ± 0.00 | +4.00 ± 1.41 (n=2) |" in text(tmp_path)
    assert read(tmp_path, "pcr").gain_over_pcr.dropna().tolist() == pytest.approx([-3, -5])
    assert "gain" not in text(tmp_path, "unimatch")


def test_data_sets_families_backbones_and_splits_are_never_mixed(tmp_path):
    cells = [{}, {"dataset": "voc"}, {"split_family": "cps"}, {"backbone": "resnet50"}, {"method": "unimatch"}]
    for i, changes in enumerate([*cells, {"split": "1_4", "num_labeled": 92}]):
        for seed in (0, 1):
            write_run(tmp_path / f"{i}_{seed}", seed=seed, miou_last=i / 10, **changes)
    table, headings = aggregate(read(tmp_path)), list(tables(read(tmp_path)))
    assert (set(table.miou_last_mean), set(table.miou_last_std)) == ({0, 10, 20, 30, 40, 50}, {0})
    axes = miou_over_labels(table).axes
    drawn = {one.get_title(loc="left"): sorted(line.get_label() for line in one.containers) for one in axes}
    cps, u2pl, voc = "camvid · cps splits", "camvid · u2pl splits", "voc · u2pl splits"
    assert drawn == {
        f"{cps} · mobilenetv2": ["pcr"],
        u2pl: ["pcr, mobilenetv2", "pcr, resnet50", "unimatch, mobilenetv2"],
        f"{voc} · mobilenetv2": ["pcr"],
    }
    assert headings == [f"{cps} · mobilenetv2", f"{u2pl} · mobilenetv2", f"{u2pl} · resnet50", f"{voc} · mobilenetv2"]


def test_lines_go_by_labels_the_baseline_first_and_pcr_last(tmp_path):
    for method in ("pcr_plus", "unimatch", "supervised", "pcr", "consistency"):
        for count, split in ((100, "1_4"), (5, "1_80")):
            write_run(tmp_path / f"{method}{count}", method=method, num_labeled=count, split=split)
    lines = [(line.num_labeled, line.method) for line in aggregate(read(tmp_path)).itertuples()]
    assert lines == [(n, m) for n in (5, 100) for m in ("supervised", "consistency", "unimatch", "pcr", "pcr_plus")]


def test_runs_below_the_glob_count_once_and_the_newer_of_equal_runs_counts(tmp_path):
    for name, seed, time in (("sweep/0", 0, 2000), ("sweep/1", 1, 1000), ("a/b/old", 0, 1000)):
        os.utime(write_run(tmp_path / "runs" / name, seed=seed, miou_last=time / 1e4) / "summary.json", (time, time))
    (tmp_path / "runs" / "latest").symlink_to(tmp_path / "runs" / "sweep" / "1")
    for pattern in ("runs", "runs/*"):
        runs, left_out = collect(f"{tmp_path}/{pattern}")
        assert sorted(zip(runs.seed, runs.miou_last, strict=True)) == [(0, 20), (1, 10)], pattern
        assert len(left_out) == 1 and "newer" in left_out[0] and left_out[0].endswith("a/b/old"), pattern


def test_folders_without_a_valid_summary_are_named_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "sweep" / "crashed" / ".hydra").mkdir(parents=True)
    for name, content in (("half", '{"dataset": '), ("list", "[]"), ("short", '{"seed": 0, "iou": {}}')):
        (write_run(tmp_path / name) / "summary.json").write_text(content)
    wrong = {"iou": 0.5, "method": None, "miou_last": 55.0, "num_labeled": None, "seconds": math.nan, "seed": "x"}
    for key, value in wrong.items():
        write_run(tmp_path / f"wrong_{key}", **{key: value})
    for pattern in ("*", "nothing/*"):
        with pytest.raises(ValueError, match=r"\*'.*runs='runs/\*'$"):
            collect(f"{tmp_path}/{pattern}")
    good = write_run(tmp_path / "good")
    runs, [line] = collect(f"{tmp_path}/*")
    assert [*runs.folder] == [good]
    bad = ["empty", "half", "list", "short", "sweep/crashed", *(f"wrong_{key}" for key in wrong)]
    assert line == "Left out (no valid summary.json): " + ", ".join(f"{tmp_path}/{name}" for name in bad)


def test_two_methods_stand_side_by_side_with_the_iou_of_each_class(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"s{seed}", seed=seed, method="supervised", miou_last=0.4)
        iou = {"sky": 0.8 + seed / 10, "car": 0.5, "sign": None}
        write_run(tmp_path / f"p{seed}", seed=seed, miou_last=0.5 + seed / 50, miou_prototype_last=0.45, iou=iou)
    assert markdown(*side_by_side(read(tmp_path)).values()).splitlines()[2:] == [
        "| mIoU, last epoch | 40.00 ± 0.00 | 51.00 ± 1.41 | +11.00 ± 1.41 |",
        "| prototype head | - | 45.00 ± 0.00 | - |",
        "| best epoch (chosen on val) | 55.00 ± 0.00 | 55.00 ± 0.00 | +0.00 ± 0.00 |",
        "| sky | 90.00 ± 0.00 | 85.00 ± 7.07 | -5.00 ± 7.07 |",
        "| car | - | 50.00 ± 0.00 | - |",
    ]
    write_run(tmp_path / "third", method="unimatch", split="46")
    assert side_by_side(read(tmp_path)) == {}


def test_paired_differences_name_each_seed_and_count_only_earlier_baselines(tmp_path):
    scores = {"supervised": {0: 0.40, 1: 0.50}, "consistency": {0: 0.42, 1: 0.50}, "pcr": {0: 0.43, 1: 0.55, 2: 0.9}}
    for method, by_seed in scores.items():
        for seed, value in by_seed.items():
            write_run(tmp_path / f"{method}{seed}", method=method, seed=seed, miou_last=value)
    [table] = paired(read(tmp_path, "supervised", "consistency")).values()
    assert table.columns.tolist() == ["labeled", "split", "method", "over", "mean ± std", "n", "seed 0", "seed 1"]
    assert table.iloc[:, 2:].to_numpy().tolist() == [
        ["consistency", "supervised", "+1.00 ± 1.41", "2", "+2.00", "+0.00"],
        ["pcr", "supervised", "+4.00 ± 1.41", "2", "+3.00", "+5.00"],
        ["pcr", "consistency", "+3.00 ± 2.83", "2", "+1.00", "+5.00"],
    ]
    assert paired(read(tmp_path, "unimatch")) == {}


def test_gain_of_each_class_is_paired_by_seed(tmp_path):
    for seed, (supervised, pcr) in enumerate([(0.5, 0.6), (0.7, 0.74)]):
        write_run(tmp_path / f"s{seed}", method="supervised", seed=seed, iou={"sky": supervised, "sign": None})
        write_run(tmp_path / f"p{seed}", seed=seed, iou={"sky": pcr, "sign": 0.5})
    write_run(tmp_path / "p2", seed=2, iou={"sky": 0.99, "sign": 0.5})
    [table] = class_gains(read(tmp_path), "supervised").values()
    assert table["mean"].pcr["sky"] == pytest.approx(7) and math.isnan(table["mean"].pcr["sign"])
    assert table["std"].pcr["sky"] == pytest.approx(math.sqrt(2 * 3**2))
    assert class_gains(read(tmp_path), "unimatch") == {}


def test_curves_compare_the_lowest_seeds_of_the_cell_with_most_methods(tmp_path):
    write_run(tmp_path / "other", num_labeled=5, seed=0)
    for method, seed in (("pcr", 2), ("pcr", 1), ("supervised", 1)):
        write_run(tmp_path / f"{method}{seed}", method=method, seed=seed)
    assert one_run_each(read(tmp_path)) == {"supervised": tmp_path / "supervised1", "pcr": tmp_path / "pcr1"}


def write_settings(folder: Path, seed: int = 0, changes: dict | None = None, **summary) -> None:
    """A run folder with a config.yaml as train.py leaves it: one setting stands in several places."""
    changes = {"lr": 0.01, "crop": 65, "loss": "cross_entropy"} | (changes or {})
    loss = {"_target_": f"pcr_seg.method.losses.{changes['loss']}", "_partial_": True}
    loss |= {"ratio": changes["ratio"]} if "ratio" in changes else {}
    config = {
        "seed": seed, "output": str(folder), "hardware": folder.name, "most_per_device": len(folder.name),
        "recipe": {"supervised_loss": loss, "threshold": 0.8}, "module": {"lr": changes["lr"], "seed": seed},
        "data": {"crop_size": changes["crop"], "batch_size": seed + 1, "num_workers": seed, "seed": seed},
        "dataset": {"root": str(folder)}, "optimizer": {"_target_": "torch.optim.SGD", "lr": changes["lr"]},
        "trainer": {"devices": seed, "default_root_dir": str(folder)}, "logger": {"csv": {"save_dir": str(folder)}},
        "method": {"supervised_loss": loss, "threshold": changes.get("threshold", 0.8)}, "resume": folder.name,
    }  # fmt: skip
    write_run(folder, seed=seed, **summary)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def methods(folder: Path, *baselines: str) -> dict[str, int]:
    return {line.method: line.n for line in aggregate(read(folder, *baselines)).itertuples()}


def test_runs_that_differ_in_settings_are_told_apart_by_them(tmp_path):
    for lr in (0.1, 0.01):
        for crop in (65, 129):
            for seed in (0, 1):
                write_settings(tmp_path / f"{lr}_{crop}_{seed}", seed, {"lr": lr, "crop": crop})
    write_settings(tmp_path / "again", 0, {"lr": 0.1, "crop": 65})
    runs, [left_out] = collect(f"{tmp_path}/*")
    assert len(runs) == 8 and left_out.endswith("0.1_65_0") and "same method, settings, split and seed" in left_out
    cells = [f"pcr (lr={lr}, crop_size={crop})" for lr in (0.01, 0.1) for crop in (65, 129)]
    assert methods(tmp_path) == dict.fromkeys(cells, 2), "by value, and nothing else that differs is a setting"
    assert list(one_run_each(read(tmp_path))) == cells and "| pcr (lr=0.01, crop_size=129) | 2 |" in text(tmp_path)


def test_seeds_machines_and_places_are_no_settings(tmp_path):
    for seed in (0, 1, 2):
        write_settings(tmp_path / str(seed), seed)
    assert methods(tmp_path) == {"pcr": 3}


def test_losses_have_their_names_and_values_that_only_some_have(tmp_path):
    write_settings(tmp_path / "a")
    write_settings(tmp_path / "b", changes={"loss": "ohem_cross_entropy", "ratio": 0.5})
    assert list(methods(tmp_path)) == [f"pcr (supervised_loss={x})" for x in ("cross_entropy", "ohem_cross_entropy")]
    write_settings(tmp_path / "c", changes={"loss": "ohem_cross_entropy", "ratio": 0.7})
    ratios = [f"pcr (supervised_loss=ohem_cross_entropy, ratio={x})" for x in (0.5, 0.7)]
    assert list(methods(tmp_path)) == ["pcr (supervised_loss=cross_entropy)", *ratios]


def test_keys_are_as_short_as_they_are_clear():
    keys = {"recipe.threshold", "recipe.fixmatch.threshold", "threshold", "data.crop_size"}
    words = in_words(dict.fromkeys(sorted(keys), "1"), keys)
    assert words == " (crop_size=1, fixmatch.threshold=1, recipe.threshold=1, threshold=1)"


def test_gains_are_over_the_baseline_of_the_same_settings(tmp_path):
    for lr, supervised, pcr in ((0.1, 0.4, 0.45), (0.01, 0.5, 0.53)):
        write_settings(tmp_path / f"s{lr}", changes={"lr": lr}, method="supervised", miou_last=supervised)
        write_settings(tmp_path / f"p{lr}", changes={"lr": lr}, miou_last=pcr)
    runs = read(tmp_path).set_index("method").gain_over_supervised
    assert runs["pcr (lr=0.1)"] == pytest.approx(5) and runs["pcr (lr=0.01)"] == pytest.approx(3)
    assert runs[["supervised (lr=0.1)", "supervised (lr=0.01)"]].isna().all()
    for threshold in (0.7, 0.9):
        changes = {"lr": 0.1, "threshold": threshold}
        write_settings(tmp_path / f"t{threshold}", changes=changes, method="pcr_plus", miou_last=0.41)
    runs = read(tmp_path).set_index("method").gain_over_supervised
    assert runs["pcr_plus (threshold=0.7)"] == pytest.approx(1), "of its learning rate, which no other pcr_plus changes"


def test_runs_without_a_configuration_count_as_before(tmp_path):
    write_run(tmp_path / "a", seed=0), write_run(tmp_path / "b", seed=1)
    write_settings(tmp_path / "c", 2)
    (write_run(tmp_path / "d", seed=3) / "config.yaml").write_text("a: [")
    assert methods(tmp_path) == {"pcr": 4}
    write_settings(tmp_path / "e", 2, {"lr": 0.1})
    assert methods(tmp_path) == {"pcr": 3, "pcr (lr=0.01)": 1, "pcr (lr=0.1)": 1}
