"""What a run sends to W&B, read back from disk; every key that a dashboard names is among it."""

import importlib.util
import json
import re
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import small_config

from pcr_seg.training.fit import fit

SCRIPT = Path(__file__).parents[1] / "dashboards/workspaces.py"
HISTORY = {  # what design and README promise of every run of pcr
    "train/supervised_loss", "train/consistency_loss", "train/prototype_loss", "train/confident", "train/lr",
    "train/images_per_second", "val/miou", "val/miou_prototype", "val/iou/stripes", "val/iou_prototype/stripes",
    "pseudo/coverage", "pseudo/precision", "prototypes/usage_entropy", "prototypes/dead", "val/images", "val/iou_table",
    "val/iou_bars_linear_table", "val/confusion_prototype_table", "prototypes/usage_table", "prototypes/gallery",
}  # fmt: skip


def records(file: Path) -> Iterator:
    """The records of a .wandb file: a LevelDB log of blocks of 32 KiB after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, position, parts = file.read_bytes(), 7, b""
    while position + 7 <= len(data):  # a last record that is not all there yet is left out
        if (rest := 32768 - position % 32768) < 7:
            position += rest
            continue
        length, kind = struct.unpack("<xxxxHB", data[position : position + 7])
        if position + 7 + length > len(data):
            return
        parts += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""


def when_closed(file: Path) -> list:
    """The records, once the last one is there: W&B's own process may still write when the run has ended here."""
    for _ in range(300):
        found = list(records(file))
        if any(record.HasField("exit") for record in found):
            return found
        time.sleep(0.1)
    raise AssertionError(f"{file}: W&B did not close it within 30 seconds")


def add(content: dict, found) -> None:
    """Put the items of a record into a nested dictionary."""
    for item in found:
        *path, last = item.nested_key or [item.key]
        node = content
        for key in path:
            node = node.setdefault(key, {})
        node[last] = json.loads(item.value_json)


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """History, summary, configuration and files of a tiny offline run."""
    root = tmp_path_factory.mktemp("logged")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        fit(small_config(root, "logger=wandb", "upload_checkpoints=true", "method.threshold=0.2"))
    [file] = root.glob("run/wandb/offline-run-*/*.wandb")
    content = {"history": {}, "summary": {}, "config": {}, "artifacts": [], "files": file.parent / "files"}
    for record in when_closed(file):
        add(content["history"], record.history.item)
        add(content["summary"], record.summary.update)
        add(content["config"], [*record.config.update, *record.run.config.update])
        if record.HasField("run"):
            content["group"], content["name"] = record.run.run_group, record.run.display_name
        if record.artifact.type == "model":
            content["artifacts"].append(record.artifact)
    return content


def test_a_run_logs_scalars_pictures_tables_summary_and_settings(logged: dict) -> None:
    assert set(logged["history"]) >= HISTORY
    assert logged["summary"]["miou_last"] == pytest.approx(logged["history"]["val/miou"])
    assert logged["summary"]["method"] == "pcr" and logged["config"]["method"]["threshold"] == 0.2
    assert (logged["group"], logged["name"]) == (logged["files"].parents[3].name, "pcr_4_seed0")
    masks = logged["history"]["val/images"]["all_masks"]
    assert set(masks[0]) == {"truth", "linear", "prototype", "pseudo_labels"}
    assert [{*artifact.aliases} - {"latest"} for artifact in logged["artifacts"]] == [{"best"}, {"last"}]


def test_tables_agree_with_the_summary(logged: dict) -> None:
    table = json.loads((logged["files"] / logged["history"]["val/iou_table"]["path"]).read_text())
    assert table["columns"] == ["class", "linear", "prototype"]
    assert [row[1] or 0 for row in table["data"]] == pytest.approx([x or 0 for x in logged["summary"]["iou"].values()])
    cells = json.loads((logged["files"] / logged["history"]["val/confusion_linear_table"]["path"]).read_text())["data"]
    assert sum(count for _, _, count in cells) == 3 * 48 * 48, "every validation pixel once"


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["run_workspace", "sweep_workspace"])
def test_dashboards_name_only_what_is_logged(logged: dict, name: str) -> None:
    wr = pytest.importorskip("wandb_workspaces.reports.v2", reason="wandb-workspaces is not installed (extra: dev)")
    spec = importlib.util.spec_from_file_location("workspaces", SCRIPT)
    workspaces = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(workspaces)
    view = getattr(workspaces, name)("entity", "project")
    assert len(view._to_model().model_dump_json()) > 3000, "it can be sent"
    history, summary, panels = set(logged["history"]), set(logged["summary"]), 0
    for panel in (panel for section in view.sections for panel in section.panels):
        panels += 1
        if isinstance(panel, wr.LinePlot):
            assert {panel.x, *panel.y} <= history | {"Step"}
            assert panel.y or any(re.fullmatch(panel.metric_regex, key) for key in history)
        elif isinstance(panel, wr.MediaBrowser):
            assert set(panel.media_keys) <= history
        elif isinstance(panel, wr.CustomChart):
            key = panel.query["summaryTable"]["tableKey"]
            columns = json.loads((logged["files"] / logged["history"][key]["path"]).read_text())["columns"]
            assert set(panel.chart_fields.values()) <= set(columns)
        elif isinstance(panel, wr.WeavePanelSummaryTable):
            assert panel.table_name in history
        elif isinstance(panel, wr.BarPlot):
            assert set(panel.metrics) <= summary
        elif isinstance(panel, wr.ScatterPlot | wr.ParallelCoordinatesPlot):
            scatter = isinstance(panel, wr.ScatterPlot)
            for metric in (panel.x, panel.y) if scatter else [column.metric for column in panel.columns]:
                known = summary if isinstance(metric, wr.SummaryMetric) else flat(logged["config"])
                assert metric.name in known
        if groupby := getattr(panel, "groupby", None):
            assert groupby.name in flat(logged["config"])
    assert panels > 8


def flat(config: dict, prefix: str = "") -> set[str]:
    """Names of all settings, nested ones with dots."""
    names = {prefix + key for key in config}
    return names.union(*(flat(v, f"{prefix}{k}.") for k, v in config.items() if isinstance(v, dict)))


def test_without_a_key_pushing_ends_in_one_line() -> None:
    pytest.importorskip("wandb_workspaces", reason="wandb-workspaces is not installed (extra: dev)")
    environment = {"WANDB_MODE": "offline", "PATH": "", "PYTHONPATH": str(SCRIPT.parents[1] / "src")}
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "wandb login" in done.stderr
