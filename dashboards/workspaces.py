"""The W&B dashboards of this project, as code: one for a single run, one to compare methods over numbers of labels.

    python dashboards/workspaces.py [ENTITY/PROJECT]      (make dashboards: your own pcr-seg)

Pushes both as new views of the project and prints where they are. Needs `pip install "pcr-seg[dashboards]"`, a W&B key
(`wandb login`) and at least one run, logged with `python train.py logger=wandb`.
"""

import sys

import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from pcr_seg.config import wandb_mode

STEP = "trainer/global_step"


def run_workspace(entity: str, project: str) -> ws.Workspace:
    """Return the dashboard of a single run: curves, pictures, classes, prototypes."""
    curves = [
        lines("mIoU of both heads", "val/miou", "val/miou_prototype"),
        lines("losses", "train/supervised_loss", "train/consistency_loss", "train/prototype_loss"),
        lines("learning rate", "train/lr"),
        lines("images per second", "train/images_per_second"),
    ]
    pseudo_labels = [
        lines("pseudo-labels: coverage and precision", "pseudo/coverage", "pseudo/precision"),
        lines("confident pixels in training", "train/confident"),
        wr.MediaBrowser(title="truth, both heads, pseudo-labels", media_keys=["val/images"], num_columns=2),
    ]
    classes = [
        wr.LinePlot(title="IoU of each class", x=STEP, metric_regex="val/iou/.*"),
        wr.LinePlot(title="IoU of each class, prototype head", x=STEP, metric_regex="val/iou_prototype/.*"),
        wr.WeavePanelSummaryTable(table_name="val/iou_table"),
        *(chart("wandb/bar/v0", f"val/iou_bars_{head}", label="class", value=head) for head in ("linear", "prototype")),
        *(
            chart("wandb/confusion_matrix/v1", f"val/confusion_{head}",
                  Actual="Actual", Predicted="Predicted", nPredictions="nPredictions")
            for head in ("linear", "prototype")
        ),
    ]  # fmt: skip
    prototypes = [
        lines("entropy of the prototypes' use", "prototypes/usage_entropy"),
        lines("dead prototypes", "prototypes/dead"),
        chart("wandb/bar/v0", "prototypes/usage", label="prototype", value="share"),
        wr.MediaBrowser(title="nearest pixels", media_keys=["prototypes/gallery"], num_columns=4),
    ]
    parts = {"Training": curves, "Pseudo-labels": pseudo_labels, "Classes": classes, "Prototypes": prototypes}
    return workspace(entity, project, "A run", parts)


def sweep_workspace(entity: str, project: str) -> ws.Workspace:
    """Return the dashboard that compares methods: scores over numbers of labels, single runs, settings, cost."""
    by_method = {"groupby": wr.Config("method.name"), "groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}
    over_labels = [
        wr.LinePlot(title="mIoU over labels", x="num_labeled", y=["miou_last"], log_x=True, **by_method),
        wr.ScatterPlot(
            title="each run", x=wr.SummaryMetric("num_labeled"), y=wr.SummaryMetric("miou_last"), log_x=True
        ),
        wr.BarPlot(title="mIoU, last epoch", metrics=["miou_last"], **by_method),
        wr.LinePlot(title="mIoU in training", x=STEP, y=["val/miou"], **by_method),
        wr.LinePlot(title="precision of pseudo-labels", x=STEP, y=["pseudo/precision"], **by_method),
        wr.LinePlot(title="coverage of pseudo-labels", x=STEP, y=["pseudo/coverage"], **by_method),
    ]
    columns = [
        *map(wr.Config, ("method.name", "method.threshold", "method.prototype_weight", "method.temperature", "seed")),
        *map(wr.SummaryMetric, ("num_labeled", "miou_prototype_last", "miou_last")),
    ]
    settings = [
        wr.ParallelCoordinatesPlot(columns=[wr.ParallelCoordinatesPlotColumn(metric=column) for column in columns]),
        wr.RunComparer(),
    ]
    cost = [
        wr.BarPlot(title=name, metrics=[name], **by_method)
        for name in ("seconds", "images_per_second", "peak_memory_mib")
    ]
    return workspace(entity, project, "Label ratios", {"Over labels": over_labels, "Settings": settings, "Cost": cost})


def lines(title: str, *keys: str) -> wr.LinePlot:
    """Return a plot of logged keys over optimizer steps."""
    return wr.LinePlot(title=title, x=STEP, y=list(keys))


def chart(preset: str, key: str, **fields: str) -> wr.CustomChart:
    """Return one of W&B's charts, drawn from the table that `wandb.plot` logs as KEY_table."""
    return wr.CustomChart(query={"summaryTable": {"tableKey": f"{key}_table"}}, chart_name=preset, chart_fields=fields)


def workspace(entity: str, project: str, name: str, parts: dict[str, list]) -> ws.Workspace:
    """Return a view with a section for each part."""
    sections = [ws.Section(name=title, panels=panels, is_open=True) for title, panels in parts.items()]
    return ws.Workspace(entity=entity, project=project, name=f"pcr-seg: {name}", sections=sections)


def main() -> None:
    """Push both dashboards."""
    if wandb_mode() != "online":
        sys.exit("error: W&B knows no key or cannot be reached; run `wandb login` and try again")
    *entity, project = (sys.argv[1] if len(sys.argv) > 1 else "pcr-seg").split("/")
    for build in (run_workspace, sweep_workspace):
        view = build(entity[0] if entity else wandb.Api().default_entity, project).save()
        print(f"{view.name}: {view.url}")


if __name__ == "__main__":
    main()
