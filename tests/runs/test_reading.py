"""A History says what the directory says, whatever the state of its files."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from runyard.analysis.compare.groups import group_runs
from runyard.analysis.compare.narrative import table_notes
from runyard.errors import UserError
from runyard.runs.results.history import RunHistory
from runyard.runs.results.reading import load_history
from runyard.runs.state import ALIVE_WITHIN_S
from tests.support.fake_runs import BEGAN, Compare, Make


def append(run: RunHistory, **row: object) -> RunHistory:
    with open(run.directory / "metrics.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")
    return load_history(run.directory)


def test_a_history_holds_the_journals_own_figures(make: Make) -> None:
    run = make(0.92, test_images=100)
    rows = [json.loads(line) for line in (run.directory / "metrics.jsonl").read_text().splitlines()]
    epochs = [row for row in rows if row["event"] == "epoch"]
    for name in ("epoch", "step", "t", "clock_s", "train_loss", "test_top1", "lr", "images_per_s", "data_wait_pct"):
        assert run.series[name].tolist() == [row[name] for row in epochs]
    assert (run.last_top1, run.best_top1, run.best_epoch, run.parameters) == (0.92, 0.92, 10, 4_693_962)
    assert np.isnan(run.metric("val_top1")).all()
    confusion, predictions = run.confusion(), run.predictions()
    assert confusion is not None
    assert confusion.sum() == 100
    assert predictions is not None
    assert (predictions.predicted == predictions.label).mean() == pytest.approx(0.92)


def test_what_is_no_number_makes_no_curve_and_costs_no_other(make: Make) -> None:
    run = make(done=1, end="")
    nodes = [{"node": "gpu1", "cpu_pct": 30.0}, {"node": "gpu2", "cpu_pct": None}]
    odd = {"nodes": nodes, "note": "text", "train_loss": 1.5, "grad_norm": 0.25, "gpu_util_pct": None}
    run = append(run, event="epoch", t=BEGAN + 200, epoch=2, **odd)
    assert run.series["grad_norm"].tolist() == pytest.approx([np.nan, 0.25], nan_ok=True)
    assert run.series["train_loss"][1] == 1.5
    assert not {"nodes", "note", "gpu_util_pct"} & run.series.keys()


def test_gpu_hours_are_time_under_way_times_gpus_without_the_wait_between_starts(make: Make) -> None:
    whole, restarted = make(ranks=4, epoch_s=36.0), make(ranks=4, epoch_s=36.0, restarts=(5,))
    assert whole.gpu_hours == pytest.approx(10 * 36 * 4 / 3600)
    assert restarted.gpu_hours == pytest.approx(whole.gpu_hours)
    assert restarted.starts[1].start_time - restarted.starts[0].end_time == 60
    assert restarted.series["gpu_hours"][-1] == pytest.approx(restarted.gpu_hours)
    assert restarted.series["t"][-1] - whole.series["t"][-1] == pytest.approx(1000 + 60)
    assert [start.end_cause for start in restarted.starts] == ["interrupted", "finished"]


@pytest.mark.parametrize("seed", ["seven", [1, 2], True, 0.5, float("nan"), float("inf"), None])
def test_a_seed_that_is_no_whole_number_is_none_and_costs_no_table(
    make: Make, compare: Compare, tmp_path: Path, seed: object
) -> None:
    edited = make(0.9, seed=7, test_images=50)
    path = edited.directory / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"seed": seed}))
    assert edited.seed == 7
    assert load_history(edited.directory).seed is None
    make(0.91, seed=1, test_images=50)
    make(0.92, lr=3e-3, test_images=50)
    for form in ((), ("--by-run",), ("--json",), ("--html", str(tmp_path / "page.html"))):
        assert compare("--all", *form)[0] == 0


def test_a_run_without_a_gpu_costs_core_hours_and_no_gpu_hours(make: Make) -> None:
    run = make(device="cpu", ranks=2, epoch_s=36.0)
    assert run.cpu_only
    assert run.gpu_hours == 0
    assert run.core_hours == pytest.approx(10 * 36 * 2 * 2 / 3600)  # two threads each


def test_a_start_that_was_killed_costs_until_its_last_row_and_a_requeue_ends_it(make: Make) -> None:
    run = make(done=3, end="", ranks=1, epoch_s=36.0)
    assert run.gpu_hours == pytest.approx(3 * 36 / 3600)
    run = append(run, event="requeue", t=BEGAN + 200, cause="crash", step=780, without_progress=0)
    assert (run.state, run.message, run.starts[0].end_cause) == ("waiting", "crash", "crash")
    assert run.gpu_hours == pytest.approx(200 / 3600)


@pytest.mark.parametrize(
    ("end", "message", "state"),
    [
        ("finished", "", "finished"),
        ("failed", "the loss is not a finite number", "failed"),
        ("interrupted", "", "interrupted"),
    ],
)
def test_the_state_is_what_the_journal_said_last(make: Make, end: str, message: str, state: str) -> None:
    run = make(end=end, message=message, done=10 if end == "finished" else 4)
    assert (run.state, run.message) == (state, message)


def test_a_trial_that_its_search_stopped_was_not_interrupted(make: Make) -> None:
    stopped, finished = make(end="interrupted", done=4), make()
    for run in (stopped, finished):
        record = json.loads((run.directory / "run.json").read_text())
        (run.directory / "run.json").write_text(json.dumps(record | {"pruned": True}))
    assert load_history(stopped.directory).state == "pruned"
    assert load_history(finished.directory).state == "finished"


def test_a_requeued_run_waits_until_it_is_given_up(make: Make) -> None:
    run = make(done=3, end="interrupted")
    run = append(run, event="requeue", t=BEGAN + 200, cause="preemption", step=780, without_progress=0)
    assert (run.state, run.message) == ("waiting", "preemption")
    run = append(run, event="stop", t=BEGAN + 300, reason="failed", message="given up: three restarts, no progress")
    assert run.state == "failed"
    assert run.message.startswith("given up")


def test_an_unfinished_run_is_running_only_as_long_as_it_gives_a_sign_of_life(make: Make) -> None:
    now = time.time()
    assert make(done=3, end="", began=now - 3 * 36).state == "running"
    silent = make(done=3, end="", began=now - 3 * 36 - 2 * ALIVE_WITHIN_S)
    assert silent.state == "unknown"
    assert "no sign of life" in silent.message
    (silent.directory / "progress.json").write_text(json.dumps({"t": now - 1}))
    assert load_history(silent.directory).state == "running"


def test_trouble_after_the_end_does_not_unfinish_a_run(make: Make) -> None:
    run = append(make(), event="stop", t=BEGAN + 999, reason="failed", message="the report")
    assert run.state == "finished"


def test_a_run_that_never_started_has_no_metrics_and_no_cost(make: Make) -> None:
    run = make()
    (run.directory / "metrics.jsonl").unlink()
    run = load_history(run.directory)
    assert (run.state, run.starts, len(run.series["epoch"]), run.gpu_hours) == ("waiting", (), 0, 0)
    assert np.isnan(run.last_top1)
    assert np.isnan(run.best_top1)


def test_broken_lines_are_numbered_and_a_half_written_last_one_is_told_apart(make: Make) -> None:
    run = make()
    path = run.directory / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    lines[3] = lines[3][:50] + "\n"
    path.write_text("".join(lines) + '{"event": "epo')
    run = load_history(run.directory)
    assert run.broken_lines == (4, len(lines) + 1)
    assert run.last_line_truncated
    assert 3 not in run.series["epoch"]
    path.write_text("".join(lines))
    assert not load_history(run.directory).last_line_truncated


def test_of_a_repeated_epoch_the_last_counts(make: Make) -> None:
    run = make()
    row = {"event": "epoch", "t": BEGAN + 9999, "epoch": 10, "step": 3900, "test_top1": 0.5}
    assert append(run, **row).last_top1 == 0.5


def test_best_is_chosen_on_the_held_out_part_where_there_is_one(make: Make) -> None:
    run = make(0.92, validation=True)
    rows = [json.loads(line) for line in (run.directory / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if row["event"] == "epoch" and row["epoch"] == 7:
            row["val_top1"] = 0.99
    (run.directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    chosen = load_history(run.directory)
    assert (chosen.selection_metric, chosen.best_epoch) == ("val_top1", 7)
    assert chosen.best_top1 == chosen.series["test_top1"][6] < chosen.last_top1


def test_runs_of_an_older_and_a_newer_schema_are_read(make: Make) -> None:
    old = make(settings={"ema_decay": ..., "cluster.requeue": ...})
    new = make(settings={"optim.not_invented_yet": 3})
    assert "ema_decay" not in old.settings
    assert new.settings["optim.not_invented_yet"] == 3
    assert old.settings_sha256 == make().settings_sha256  # what is not there is as good as null
    assert new.settings_sha256 != old.settings_sha256


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.yaml", None),
        ("config.yaml", "[1"),
        ("config.yaml", "- a"),
        pytest.param("config.yaml", "[" * 100_000, id="config.yaml, nested so deep that libyaml crashes"),
        ("run.json", None),
        ("run.json", "{"),
        ("run.json", "[]"),
    ],
)
def test_a_damaged_directory_is_refused_by_the_name_of_its_file(make: Make, file: str, content: str | None) -> None:
    path: Path = make().directory
    (path / file).unlink()
    if content is not None:
        (path / file).write_text(content)
    with pytest.raises(UserError, match=file):
        load_history(path)


@pytest.mark.parametrize("run_id", ["../victim", "/tmp/victim", "a/b", "..", ".code", ""])
def test_an_id_that_names_another_place_is_damaged(make: Make, run_id: str) -> None:
    path = make().directory
    record = json.loads((path / "run.json").read_text())
    (path / "run.json").write_text(json.dumps(record | {"id": run_id}))
    with pytest.raises(UserError, match=r"run\.json: damaged \(id '.*': no plain name\)"):
        load_history(path)
    (path / "run.json").write_text(json.dumps(record | {"id": "another"}))
    assert load_history(path).id == "another"


@pytest.mark.parametrize("row", [
    {"event": "start", "world_size": 2, "device": "cuda"}, {"event": "start", "t": "noon"},
    {"event": "start", "t": 1e300, "device": "cpu"}, {"event": "start", "t": BEGAN, "world_size": 10**400},
    {"event": "epoch", "t": 10**400, "epoch": 3, "step": 10**400, "test_top1": 10**400},
    {"event": "epoch", "t": BEGAN, "epoch": 10**400}, {"event": "final", "parameters": 10**400},
    {"event": "final", "top1": 10**400, "confusion": [[10**400]]},
])  # fmt: skip
def test_odd_numbers_of_a_journal_cost_no_more_than_themselves(
    make: Make, compare: Compare, row: dict[str, object]
) -> None:
    run = append(make(end="", done=5), **row)
    make(0.9, lr=3e-3)
    assert (run.epochs_done, np.isfinite(run.gpu_hours)) == (5, True)
    code, out, _ = compare("--all", "--target", "0.5")
    assert code == 0
    assert "90.00" in out


def test_a_journal_that_cannot_be_read_is_named_and_the_other_runs_are_shown(make: Make, compare: Compare) -> None:
    run = make()
    (run.directory / "metrics.jsonl").unlink()
    (run.directory / "metrics.jsonl").mkdir()  # root reads a file whatever its permissions
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot read it \(a directory, not a regular file\)"):
        load_history(run.directory)
    make(0.9, lr=3e-3)
    code, out, err = compare("--all")
    assert (code, err.count("\n")) == (0, 1)
    assert f"skipped {run.directory}/metrics.jsonl" in err
    assert "90.00" in out


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"splits": {"test": 3}}'])
def test_without_its_data_json_a_run_has_no_identity_of_data(make: Make, content: str | None) -> None:
    path = make().directory
    (path / "data.json").unlink()
    if content is not None:
        (path / "data.json").write_text(content)
    assert (load_history(path).data_sha256, load_history(path).test_sha256) == (None, None)


def test_the_test_parts_identity_is_its_content_not_its_layout(make: Make) -> None:
    run = make()
    path = run.directory / "data.json"
    data = json.loads(path.read_text())
    data["splits"]["test"] |= {"arrays_sha256": {"x.npy": "a", "y.npy": "b"}}
    path.write_text(json.dumps(data))
    with_arrays = load_history(run.directory)
    data["splits"]["test"] |= {"beton_sha256": "other layout"}
    path.write_text(json.dumps(data))
    other_layout = load_history(run.directory)
    assert other_layout.test_sha256 == with_arrays.test_sha256
    assert other_layout.data_sha256 != with_arrays.data_sha256
    data["splits"]["test"]["arrays_sha256"]["x.npy"] = "c"
    path.write_text(json.dumps(data))
    assert load_history(run.directory).test_sha256 != with_arrays.test_sha256


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no numbers"])
def test_damaged_predictions_are_none(make: Make, content: bytes) -> None:
    run = make(test_images=10)
    (run.directory / "predictions.npz").write_bytes(content)
    assert run.predictions() is None


def test_a_run_whose_ranks_changed_midway_is_told_of_beside_the_table(make: Make) -> None:
    moved, stayed = make(seed=1, restarts=(2,)), make(seed=2, restarts=(2,))
    path = moved.directory / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    [row for row in lines if row["event"] == "start"][-1]["world_size"] = 2
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    moved = load_history(moved.directory)
    assert (moved.ranks, stayed.ranks) == ((4, 2), (4,))
    (only,) = group_runs([moved, stayed])
    (paragraph,) = table_notes([only])
    assert "The number of ranks changed midway, which changes what is learned: paper (4 then 2)." in paragraph
    (alone,) = table_notes(group_runs([stayed, make(seed=3)]))
    assert "changed midway" not in alone
