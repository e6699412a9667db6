"""A metric is named in one table: what training logs is in it, and what is added to it shows everywhere."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from runyard.config.schema import Config
from runyard.data.prepare.pipeline import prepare_dataset
from runyard.runs import journal
from runyard.runs.results.metrics import METRICS
from runyard.runs.run import Run
from tests.support.fake_runs import fabricate
from tests.support.trainings import train

DOCUMENT = Path(__file__).parents[2] / "docs/file-formats.md"
NO_METRICS = {"event", "t", "epoch", "step", "nodes", "slowest_node"}  # where a row belongs, and texts
COMPUTED = {"gpu_hours", "core_hours"}  # from the starts: no row has them

EVERYWHERE = """
import json, sys
from dataclasses import asdict
from runyard.runs.results import metrics
from runyard.runs.events import parse_event
metrics.METRICS += eval(sys.argv[2], vars(metrics))
metrics.METRICS_BY_NAME |= {metric.name: metric for metric in metrics.METRICS if metric.of == "run"}
from runyard.analysis.compare import choose, groups, table
from runyard.analysis.page.content import page_data
from runyard.analysis.report.page import render
from runyard.runs.results.facts import load_report_data
from runyard.runs.run import Run
from runyard.tracking.export.rows import export_metrics
from runyard.tracking.wandb.history import WandbHistory
run = Run.open(sys.argv[1])
chosen = choose.select_runs([], everything=True, runs_dir=run.path.parent, conditions=json.loads(sys.argv[3]))
found = groups.group_runs(chosen.runs)
history = WandbHistory(run.config)
history.consume(map(parse_event, load_report_data(run).epochs))
print(json.dumps({
    "table": table.as_dict(table.table_rows(found)[0]),
    "charts": page_data(found)["measures"],
    "report": render(load_report_data(run), {"curves": b""}),
    "wandb": history.points[-1].values,
    "best": history.points[-1].summary,
    "export": sorted(export_metrics(chosen.runs[0])),
}))
"""


@pytest.fixture
def measured(tmp_path: Path, make_config: Callable[..., Config]) -> Path:
    """A run of two epochs whose rows have a number that no table names."""
    path = fabricate(tmp_path / "runs", make_config("experiment=starter", "epochs=2"), "run-0")
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if row["event"] == "epoch":
            row["calibration_error"] = 0.5 / row["epoch"]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def shown(run: Path, metric: str, *conditions: str) -> Any:
    """What every reader of the run says, with these metrics added to the table in a process of its own."""
    command = [sys.executable, "-c", EVERYWHERE, str(run), metric, json.dumps(conditions)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_one_line_of_the_table_brings_a_metric_to_the_comparison_its_page_the_report_and_wandb(measured: Path) -> None:
    line = 'Metric("calibration_error", "Calibration error", "%", "test/calibration", "lower", factor=100),'
    everywhere = shown(measured, f"({line})", "calibration_error<0.3")
    assert everywhere["table"]["calibration_error"] == 0.25
    assert ["calibration_error", "Calibration error, %", 100] in everywhere["charts"]
    assert '<th scope="row">Calibration error, %</th><td class="n"><data value="0.25">25</data>' in everywhere["report"]
    assert everywhere["wandb"]["test/calibration"] == 0.25
    assert everywhere["best"]["test/calibration"] == {"min": 0.25, "last": 0.25}
    assert "test/calibration" in everywhere["export"]


def test_a_number_that_the_table_lacks_has_a_chart_by_its_own_name_and_nothing_else(measured: Path) -> None:
    """The negative control: the line of the table did it."""
    everywhere = shown(measured, "()")
    assert ["calibration_error", "calibration_error", 1] in everywhere["charts"]
    del everywhere["charts"]
    assert "alibration" not in json.dumps(everywhere)


def unlisted(rows: Iterable[dict[str, Any]]) -> set[str]:
    """The fields of ``epoch`` rows, and of their nodes, that the table lacks."""
    rows = [row for row in rows if row["event"] == "epoch"]
    assert rows
    listed = {metric.name for metric in METRICS if metric.of != "node"} | NO_METRICS
    of_a_node = {metric.name for metric in METRICS if metric.of == "node"} | {"node"}
    nodes = {name for row in rows for node in row.get("nodes", []) for name in node}
    return {name for row in rows for name in row if name not in listed} | (nodes - of_a_node)


@pytest.mark.slow
def test_every_number_that_training_logs_is_in_the_table(make_run: Callable[..., Run], tmp_path: Path) -> None:
    run = make_run("epochs=1", "tracking.all_nodes=true", "data.validation_fraction=0.25", f"data.root={tmp_path}/data")
    prepare_dataset(run.config.data, progress=False)
    train(run, world_size=2)
    rows = journal.read_journal(run.journal_path)[0]
    assert unlisted(rows) == set()
    logged = {name for row in rows if row["event"] == "epoch" for name in row}
    assert {metric.name for metric in METRICS if metric.of != "node"} - logged == COMPUTED, (
        "and all there is, is logged"
    )


def test_a_number_that_the_table_lacks_is_noticed(measured: Path) -> None:
    """The negative control."""
    assert unlisted(journal.read_journal(measured / "metrics.jsonl")[0]) == {"calibration_error"}


def test_each_metric_is_listed_once_and_documented() -> None:
    names = [(metric.name, metric.of) for metric in METRICS]
    assert len(set(names)) == len(names)
    document = DOCUMENT.read_text()
    assert [name for name, _ in names if f"`{name}`" not in document and name not in COMPUTED] == []
