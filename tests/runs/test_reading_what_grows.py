"""A journal that grows is read by its end, each line once; and one state machine says what its events come to."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from runyard.files import write_atomic
from runyard.runs.events import EpochEvent, Row, StartEvent, StopEvent, parse_event
from runyard.runs.journal import Journal, JournalReader, read_events
from runyard.runs.state import ALIVE_WITHIN_S, JournalState, RunState, state_on_disk

START: Row = {"event": "start", "t": 1.0, "step": 0}
STOPS: dict[str, Row] = {
    reason: {"event": "stop", "t": 2.0, "reason": reason} for reason in ("finished", "interrupted", "failed")
}
FINAL: Row = {"event": "final", "t": 2.0, "top1": 0.5}
REQUEUE: Row = {"event": "requeue", "t": 3.0, "cause": "crash", "step": 7}


def messages(reader: JournalReader) -> list[object]:
    return [event.row.get("message") for event in reader.new_events()]


def test_each_line_is_read_once_and_a_line_being_written_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    reader, journal = JournalReader(path), Journal(path)
    assert messages(reader) == [], "there is no file yet"
    journal.write("warning", message="a")
    journal.write("warning", message="b")
    assert messages(reader) == ["a", "b"]
    with open(path, "a") as file:
        file.write('{"event": "warning", "mess')
        file.flush()
        assert messages(reader) == []
        file.write('age": "c"}\n')
    assert messages(reader) == ["c"]
    assert messages(reader) == []


def test_only_what_is_new_is_read_from_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    journal, reader = Journal(path), JournalReader(path)
    for number in range(100):
        journal.write("warning", message=number)
    assert len(messages(reader)) == 100
    path.write_bytes(b"x" * (path.stat().st_size - 1) + b"\n")  # the same file: what was read is not looked at again
    journal.write("warning", message="new")
    assert messages(reader) == ["new"]
    assert messages(JournalReader(path)) == ["new"], "the control: a reader that begins there finds one damaged line"


def test_a_journal_that_is_replaced_goes_on_after_the_lines_that_were_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    journal, reader = Journal(path), JournalReader(path)
    journal.write("warning", message="a")
    assert messages(reader) == ["a"]
    write_atomic(path, path.read_bytes())  # as who takes over a run does
    journal.write("warning", message="b")
    assert messages(reader) == ["b"]


def test_a_line_with_values_of_wrong_types_is_an_event_with_defaults() -> None:
    start = parse_event({"event": "start", "t": "x", "step": None, "world_size": [2], "job_id": 12, "nodes": True})
    assert isinstance(start, StartEvent)
    assert (start.t != start.t, start.step, start.world_size, start.job_id, start.nodes) == (True, 0, 1, "12", None)
    stop = parse_event({"event": "stop", "t": 10**400, "reason": 3})
    assert isinstance(stop, StopEvent)
    assert (stop.reason, stop.retry, stop.failure.fields()) == ("3", True, {})
    epoch = parse_event({"event": "epoch", "t": 1, "epoch": 10**400, "test_top1": float("nan"), "lr": 10**400})
    assert isinstance(epoch, EpochEvent)
    assert (epoch.epoch, epoch.number("test_top1"), epoch.number("lr")) == (0, None, None)


@pytest.mark.parametrize(
    ("rows", "state", "message"),
    [
        ([], "waiting", "not started"),
        ([START, FINAL, STOPS["finished"]], "finished", ""),
        ([START, FINAL], "finished", ""),
        ([START, STOPS["finished"], STOPS["failed"]], "finished", ""),
        ([START, STOPS["finished"], START | {"t": 0.0}], "unknown", None),
        ([START, STOPS["interrupted"]], "interrupted", ""),
        ([START, STOPS["interrupted"], REQUEUE], "waiting", "crash"),
        ([START, REQUEUE, STOPS["failed"] | {"message": "given up"}], "failed", "given up"),
        ([STOPS["failed"] | {"message": "no GPU"}], "failed", "no GPU"),
        ([START], "unknown", None),
    ],
)
def test_a_state_is_what_the_journal_said_last(rows: list[Row], state: str, message: str | None) -> None:
    journal = JournalState.of(map(parse_event, rows))
    found, why = state_on_disk(journal, pruned=False, last_sign=2.0)
    assert found == state
    assert why == message if message is not None else why.startswith("no sign of life since 1970-01-01")


def test_a_run_without_an_end_runs_while_it_gives_signs_of_life_and_a_pruned_one_was_not_interrupted() -> None:
    journal = JournalState.of([parse_event(START)])
    now = time.time()
    assert state_on_disk(journal, pruned=False, last_sign=now)[0] is RunState.RUNNING
    assert state_on_disk(journal, pruned=False, last_sign=now - 2 * ALIVE_WITHIN_S)[0] is RunState.UNKNOWN
    assert state_on_disk(journal, pruned=True, last_sign=0.0)[0] is RunState.PRUNED
    finished = JournalState.of(map(parse_event, [START, STOPS["finished"]]))
    assert state_on_disk(finished, pruned=True, last_sign=0.0)[0] is RunState.FINISHED


def test_a_million_lines_are_read_in_bounded_memory(tmp_path: Path) -> None:
    """One line at a time: the reader holds none of those it has yielded."""
    path = tmp_path / "metrics.jsonl"
    line = json.dumps({"event": "checkpoint", "t": 1.0, "step": 7, "name": "step_00000007"}) + "\n"
    path.write_text(line * 10_000)
    lines = JournalReader(path).new_lines()
    assert next(lines).decode() == line
    os.truncate(path, 0)  # what is not read yet is gone: the rest of one buffer is all that can come
    assert sum(1 for _ in lines) < 1_000
    assert read_events(path) == []
