"""Publishes a W&B Report of compared runs: runyard's table and tests as text, and W&B's own panels of the runs.

It uses W&B's library for reports, a public preview, which the extra ``reports`` installs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runyard.errors import UserError
from runyard.tracking.wandb.agent import prepare_environment
from runyard.tracking.wandb.record import first_line

MAX_RUNS = 100  # that one of W&B's charts draws
WIDE, HALF, HIGH = 24, 12, 8  # a panel's widths and height, in W&B's grid of 24 columns


def publish(
    project: str,
    title: str,
    paragraphs: Sequence[str],
    colors: Mapping[str, str],
    curves: Sequence[tuple[str, str]],
    settings: Sequence[str],
) -> str:
    """Create a report in ``project`` (ENTITY/PROJECT, or PROJECT of the key's own entity). Returns its address.

    Args:
        paragraphs: Markdown, above the panels.
        colors: ``#rrggbb`` by W&B's run id: the runs, and the color of each.
        curves: W&B's name and a title of each metric to draw over epochs.
        settings: Dotted names of the settings in which the runs differ.

    Raises:
        UserError: the library is missing, or W&B did not accept the report.
    """
    prepare_environment()
    try:
        import wandb
        import wandb_workspaces.reports.v2 as wr
        from wandb_workspaces import expr
    except ModuleNotFoundError as error:
        raise UserError(f"--report: {error.name} is not installed", "pip install 'runyard[reports]'") from None
    entity, _, name = project.rpartition("/")
    try:
        entity = entity or str(wandb.Api().default_entity)
        runs = wr.Runset(
            entity=entity,
            project=name,
            name="Compared runs",
            filters=[expr.Metric("ID").isin(list(colors))],
            run_settings={run: wr.RunSettings(color=color) for run, color in colors.items()},
        )
        text = wr.MarkdownBlock("\n\n".join(paragraphs))
        panels = wr.PanelGrid(runsets=[runs], panels=_panels(curves, settings))
        return str(wr.Report(entity=entity, project=name, title=title, blocks=[text, panels]).save().url)
    except Exception as error:  # W&B's own and its transports' are of many kinds
        raise UserError(
            f"--report {title}: W&B did not accept it ({first_line(error)})", "the table is printed above"
        ) from None


def _panels(curves: Sequence[tuple[str, str]], settings: Sequence[str]) -> list[Any]:
    """Return the panels, two in a row: each curve, and accuracy against time; below them those of full width."""
    import wandb_workspaces.reports.v2 as wr

    top1, clock = wr.SummaryMetric("top1"), wr.SummaryMetric("clock_s")
    panels: list[Any] = [
        *(wr.LinePlot(title=title, x="epoch", y=[name], max_runs_to_show=MAX_RUNS) for name, title in curves),
        wr.ScatterPlot(title="Last test top-1 against training time, s", x=clock, y=top1),
    ]
    for index, panel in enumerate(panels):
        panel.layout = wr.Layout(x=index % 2 * HALF, y=index // 2 * HIGH, w=HALF, h=HIGH)
    full_width: list[Any] = [
        wr.RunComparer(diff_only=True),
        wr.WeavePanelSummaryTable(table_name="per_class"),
        wr.WeavePanelSummaryTable(table_name="sample_predictions"),
    ]
    if settings:
        axes = [wr.Config(name) for name in settings] + [top1]
        columns = [wr.ParallelCoordinatesPlotColumn(metric=metric) for metric in axes]
        full_width.insert(0, wr.ParallelCoordinatesPlot(columns=columns))
    first_row = -(-len(panels) // 2)
    for index, panel in enumerate(full_width, first_row):
        panel.layout = wr.Layout(x=0, y=index * HIGH, w=WIDE, h=HIGH)
    return panels + full_width
