import runpy
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import write_run

from pcr_seg.report.write import report

SCRIPT = Path(__file__).parents[2] / "report.py"
FILES = {"report.html", "report.md", "report.csv", "report.png", "runs.csv", "curves.png"}


@pytest.mark.parametrize("methods", [["pcr"], ["supervised", "pcr"], [f"a_long_method_{i}" for i in range(12)]])
def test_the_terminal_loses_columns_but_no_words(tmp_path, monkeypatch, capsys, methods):
    for i, method in enumerate(methods):
        for seed in (0, 1):
            changes = {"miou_last": 0.3 + i / 50 + seed / 50, "miou_prototype_last": 0.3, "iou": {"[void]": 0.5}}
            write_run(tmp_path / "runs" / f"{method}{seed}", method=method, seed=seed, **changes)
    monkeypatch.setenv("COLUMNS", "80")
    report(f"{tmp_path}/runs/*", tmp_path / "out", methods[:1])
    printed, full = capsys.readouterr().out, (tmp_path / "out/report.md").read_text()
    assert all(word in printed for word in (*methods, "31.00 ± 1.41", "all columns in report.md"))
    assert max(len(line) for line in printed.splitlines() if str(tmp_path) not in line) <= 80
    assert "…" not in printed and "seconds" not in printed and "Left out" not in printed
    assert ("[void]" in printed) == (len(methods) == 2)
    assert all(word in full for word in (*methods, "seconds", "30.00 ± 0.00"))


def test_the_script_writes_its_files_or_ends_with_one_line(tmp_path, monkeypatch):
    write_run(tmp_path / "runs" / "a", seed=3)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["report.py", "runs=runs/*"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report", "runs"]
    assert {path.name for path in Path("report").iterdir()} == FILES
    facts = pd.read_csv("report/runs.csv")[["folder", "seed", "miou_last", "git_commit", "seconds", "peak_memory_mib"]]
    assert facts.to_numpy().tolist() == [["runs/a", 3, 50, "abc", 100, 1000]]
    monkeypatch.setattr(sys, "argv", ["report.py", "runs=runs/*", "baselines=null"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    monkeypatch.setattr(sys, "argv", ["report.py", "runs=runs/*", "baselines=supervized"])
    with pytest.raises(SystemExit, match=r"baselines=supervized: no run has this method; choose among pcr"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    monkeypatch.setattr(sys, "argv", ["report.py", "runs=elsewhere/*"])
    with pytest.raises(SystemExit, match=r"^error: runs='elsewhere/\*'.*[^\n]$"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
