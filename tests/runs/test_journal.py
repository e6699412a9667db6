"""The journal keeps its lines whatever happens to the process that writes them."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from runyard.runs import journal
from runyard.runs.journal import Journal


def test_what_is_written_is_read_back_in_order(tmp_path):
    path = tmp_path / "metrics.jsonl"
    Journal(path).write("start", job="1", resumed_from=None)
    Journal(path).write("epoch", epoch=1, train_loss=1.5, note="line\nbreak \u2028 ünïcode")
    rows, broken = journal.read_journal(path)
    assert broken == 0
    assert [row["event"] for row in rows] == ["start", "epoch"]
    assert rows[1]["train_loss"] == 1.5
    assert rows[1]["note"] == "line\nbreak \u2028 ünïcode"
    assert rows[0]["t"] <= rows[1]["t"]


def test_every_line_is_strict_json_and_non_finite_numbers_are_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    nested = {"a": [float("inf"), 1.0]}
    Journal(path).write("epoch", epoch=1, train_loss=float("nan"), nested=nested, lr=np.float32("nan"))

    def refuse(word):
        raise AssertionError(word)

    row = json.loads(path.read_text(), parse_constant=refuse)
    assert row["train_loss"] is None
    assert row["nested"] == {"a": [None, 1.0]}
    assert row["lr"] is None


def test_numpy_numbers_and_arrays_are_stored_as_plain_numbers(tmp_path):
    path = tmp_path / "metrics.jsonl"
    Journal(path).write("final", top1=np.float32(0.5), confusion=np.array([[3, 1], [0, 4]]))
    (row,), _ = journal.read_journal(path)
    assert row["top1"] == 0.5
    assert row["confusion"] == [[3, 1], [0, 4]]


@pytest.mark.parametrize("kept", [1, 5, 20])
def test_a_half_written_last_line_costs_itself_and_nothing_else(tmp_path, kept):
    path = tmp_path / "metrics.jsonl"
    Journal(path).write("epoch", epoch=1)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:kept])
    Journal(path).write("epoch", epoch=2)
    rows, broken = journal.read_journal(path)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert broken == 1


def test_without_the_repair_the_line_after_a_crash_would_be_lost(tmp_path, monkeypatch):
    """Negative control of the test above."""
    monkeypatch.setattr(journal, "_ends_mid_line", lambda file: False)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"event": "epo')
    Journal(path).write("epoch", epoch=2)
    assert journal.read_journal(path) == ([], 1)


def test_a_line_is_on_disk_when_write_returns(tmp_path, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_size), real(fd)))
    path = tmp_path / "metrics.jsonl"
    Journal(path).write("start")
    assert path.stat().st_size in synced


def test_a_writer_that_dies_at_once_leaves_its_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    program = (
        "import os, sys; from runyard.runs.journal import Journal; "
        "Journal(sys.argv[1]).write('stop', reason='failed'); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert journal.read_journal(path)[0][0]["reason"] == "failed"


def test_a_value_that_json_cannot_say_is_refused_before_anything_is_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    Journal(path).write("start")
    before = path.read_bytes()
    with pytest.raises(TypeError):
        Journal(path).write("epoch", epoch=object())
    assert path.read_bytes() == before


def test_broken_and_foreign_lines_are_counted_and_blank_ones_are_not(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b'{"event": "start"}\n\n[1, 2]\n{"no": "event"}\n\xff\xfe\nnull\n{"event": 3}\n{"event": "stop", "x": NaN}\n'
    )
    rows, broken = journal.read_journal(path)
    assert [row["event"] for row in rows] == ["start", "stop"]
    assert rows[1]["x"] is None
    assert broken == 5


def test_a_run_that_never_started_has_no_rows(tmp_path):
    assert journal.read_journal(tmp_path / "none.jsonl") == ([], 0)


def test_the_last_word_on_a_repeated_epoch_counts():
    rows = [
        {"event": "epoch", "epoch": 2, "train_loss": 9.0},
        {"event": "epoch", "epoch": 1},
        {"event": "epoch"},
        {"event": "epoch", "epoch": None},
        {"event": "epoch", "epoch": True},
        {"event": "start", "epoch": 3},
        {"event": "epoch", "epoch": 2, "train_loss": 1.0},
    ]
    assert [(row["epoch"], row.get("train_loss")) for row in journal.epochs(rows)] == [(1, None), (2, 1.0)]
