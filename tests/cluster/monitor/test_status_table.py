"""`runyard status` as a person meets it: which runs it shows, how wide, how long, and what it refuses."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
from rich.cells import cell_len

from runyard.cli.main import main
from runyard.cluster.monitor.run_status import unique_prefixes
from runyard.cluster.monitor.status import SLURM_TIMEOUT_S, StatusView, status_table
from runyard.errors import UserError
from runyard.runs.lease import Lease
from tests.support.fabricated import BEGAN, Folder, epoch, row, runs, start, stop
from tests.support.settings import PATIENCE_S


def test_finished_runs_need_no_slurm_and_a_thousand_others_a_call_or_two_of_each(folder: Folder, status: Any) -> None:
    for _ in range(3):
        folder.run(start(1), stop(9, "finished"))
    assert status()[0] == 0
    assert folder.slurm.calls() == []
    for number in range(1000):
        folder.run(job=str(100 + number))
    assert status("--all")[0] == 0
    asked = [call.split()[0] for call in folder.slurm.calls()]
    assert asked == ["squeue", "squeue", "sacct"], "one's own jobs, and those of others"


def test_figures_are_the_journals_and_of_a_running_one_its_progress(folder: Folder, status: Any) -> None:
    progress = {"step": 250, "steps": 400, "epochs": 4, "images_per_s": 77.0, "eta_s": 61.0, "data_wait_pct": 9.0}
    rows = [start(1), epoch(5, 1, 0.6), epoch(6, 2, 0.5), start(7), start(8)]
    folder.run(*rows, progress=progress)
    (stopped,) = json.loads(status("--json")[1])
    assert (stopped["step"], stopped["steps"], stopped["top1_last"], stopped["top1_best"]) == (250, 400, 0.5, 0.6)
    assert (stopped["images_per_s"], stopped["data_wait_pct"], stopped["eta_s"]) == (2000.0, 2.5, None)
    assert (stopped["restarts"], stopped["nodes"], stopped["nodelist"]) == (2, 2, ["node1", "node2"])
    folder.queue("12|RUNNING|None|3:05|57:00|2026-09-21T00:00:00|node1|@")
    (running,) = json.loads(status("--json")[1])
    assert [running[key] for key in ("state", "images_per_s", "data_wait_pct", "eta_s")] == ["running", 77, 9, 61]


def test_a_finished_runs_best_is_its_own_final_word(folder: Folder, status: Any) -> None:
    final = row("final", 8, top1=0.7, top1_best=0.9)
    folder.run(start(1), epoch(5, 1, 0.95), epoch(6, 2, 0.7), final, stop(9, "finished"))
    (run,) = json.loads(status("--json")[1])
    assert (run["top1_last"], run["top1_best"], run["epoch"]) == (0.7, 0.9, 2)


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_no_line_is_wider_than_the_terminal(folder: Folder, status: Any, width: int) -> None:
    big = {"step": 123456, "steps": 456789, "epochs": 4, "images_per_s": 123456.0, "eta_s": 40000.0}
    for name in ("paper", "a-very-long-name-for-an-experiment"):
        folder.run(start(1), epoch(5, 1, 1.0), name=name, progress=big)
        folder.run(start(1), stop(9, "failed", message="word " * 60), name=name)
    folder.queue("12|PENDING|DependencyNeverSatisfied|0:00|9:00|N/A||@")
    lines = status(width=width)[1].splitlines()
    assert max(map(cell_len, lines)) <= width
    assert sum(line.startswith("20260921-0000") for line in lines) == 4


def test_names_are_cut_to_what_still_tells_runs_apart() -> None:
    ids = ["20260921-101112-paper-ab12", "20260921-101112-paper-ab34", "20260922-000000-paper-cd00"]
    short = unique_prefixes(ids, ids)
    assert list(short.values()) == ["20260921-101112-paper-ab1", "20260921-101112-paper-ab3", "20260922-000000"]
    assert all(sum(other.startswith(cut) for other in ids) == 1 for cut in short.values())


def test_what_runs_is_shown_however_old_and_the_rest_is_counted(folder: Folder, status: Any) -> None:
    folder.run()
    folder.queue("12|PENDING|Priority|0:00|9:00|N/A||@")
    for _ in range(50):
        folder.run(start(1), stop(9, "finished"))
    out = status()[1]
    assert "20260921-000000" in out
    assert "20260921-000050" in out
    assert out.splitlines()[-1].startswith("31 older ones: runyard status --all")
    assert len(json.loads(status("--json")[1])) == 51


def test_where_accounting_does_not_answer_a_job_that_is_gone_is_unknown(folder: Folder, status: Any) -> None:
    folder.run(start(1))
    folder.queue()
    assert json.loads(status("--json")[1])[0]["state"] == "killed", "the control"
    folder.slurm.program("sacct", 'echo "sacct: error: Problem talking to the database" >&2; exit 1\n')
    code, out, err = status("--json")
    (run,) = json.loads(out)
    assert (code, run["state"]) == (2, "unknown")
    assert "memory" not in run["message"]
    assert "Problem talking to the database" in run["message"]
    assert "Problem talking to the database" in err


def test_a_sweep_is_shown_alone(folder: Folder, status: Any) -> None:
    for sweep in ("20260921-a", "20260921-b", None):
        folder.run(start(1), stop(9, "finished"), sweep=sweep)
    assert [run["sweep"] for run in json.loads(status("--sweep", "20260921-b", "--json")[1])] == ["20260921-b"]
    assert [run["sweep"] for run in json.loads(status("--sweep", "@last", "--json")[1])] == ["20260921-b"]
    folder.run(start(1), stop(9, "finished"), sweep="20260922-grid")
    folder.run(start(1), stop(9, "finished"), sweep="named", created=BEGAN - 86400)
    assert [run["sweep"] for run in json.loads(status("--sweep", "@last", "--json")[1])] == ["20260922-grid"]
    code, _, err = status("--sweep", "20260921")
    assert (code, err.count("\n")) == (2, 1)
    assert "--sweep 20260921: " in err


def test_a_named_run_that_failed_gives_exit_code_1_and_the_table_of_all_does_not(folder: Folder, status: Any) -> None:
    failed = folder.run(start(1), stop(9, "failed", message="no"))
    assert status()[0] == 0
    assert status(failed.name[:16])[0] == 1
    assert status(str(folder.run(start(1), stop(9, "finished"))))[0] == 0


def test_where_slurm_does_not_answer_the_rest_is_shown_and_the_exit_code_says_so(
    folder: Folder, status: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.run(start(1), stop(9, "finished"))
    folder.run(start(1))
    monkeypatch.setenv("PATH", "/nowhere")
    code, out, err = status()
    assert code == 2
    assert "finished" in out
    assert "unknown" in out
    assert err == "runyard: no squeue on this machine: ask on the cluster's login node\n"


@pytest.mark.parametrize(("hanging", "error"), [
    ("squeue", "squeue did not answer within 0.2 s"),
    ("sacct", "sacct did not answer within 0.2 s"),
    ("nothing", ""),  # the control
])  # fmt: skip
def test_a_slurm_that_hangs_is_given_seconds_since_a_person_waits(
    folder: Folder, status: Any, monkeypatch: pytest.MonkeyPatch, hanging: str, error: str
) -> None:
    assert SLURM_TIMEOUT_S < 10
    monkeypatch.setattr("runyard.cluster.monitor.status.SLURM_TIMEOUT_S", 0.2 if error else 60.0)
    folder.run(start(1))
    folder.slurm.program(hanging, "exec sleep 60\n")
    began = time.monotonic()
    code, _, err = status()
    assert time.monotonic() - began < 30
    assert (code, err) == ((2, f"runyard: {error}\n") if error else (0, ""))


@pytest.mark.parametrize(("end", "state"), [
    (stop(9, "failed", message="a rank died", retry=True), "unknown"),
    (stop(9, "interrupted", cause="time limit"), "unknown"),
    (stop(9, "failed", message="the control", retry=False), "failed"),
    (stop(9, "failed", message="the control", retry=True, given_up=True), "failed"),
])  # fmt: skip
def test_what_its_batch_script_may_requeue_is_unknown_while_slurm_does_not_answer(
    folder: Folder, status: Any, capsys: pytest.CaptureFixture[str], end: dict[str, Any], state: str
) -> None:
    run = folder.run(start(1), end)
    folder.queue()
    assert json.loads(status("--json")[1])[0]["state"] != "unknown", "the control: SLURM answers, and has no job"
    folder.slurm.program("squeue", 'echo "squeue: error: Invalid user" >&2; exit 1\n')
    (shown,) = json.loads(status("--json")[1])
    assert shown["state"] == state
    assert main(["cancel", str(run)]) == 2
    said = capsys.readouterr().err
    assert ("nothing to cancel" in said) is (state == "failed")
    assert ("Invalid user" in said) is (state == "unknown")


def test_watching_goes_on_where_a_run_is_removed(folder: Folder) -> None:
    goes, stays = (folder.run(start(1, job_id=job), job=job) for job in ("12", "13"))
    line = "{}|RUNNING|None|1:00|9:00|N/A|node1|{}{}\n"
    running = [line.format(job, run.name, runs(run)) for job, run in (("12", goes), ("13", stays))]
    folder.slurm.says("squeue.txt", "".join(running))
    view = StatusView(folder.path)
    assert [s.active for s in view.statuses] == [True, True]
    shutil.rmtree(goes)
    view.refresh_files()
    assert [s.run.path for s in view.statuses] == [stays]
    view = StatusView(folder.path, [stays])
    shutil.rmtree(stays)
    with pytest.raises(UserError, match="no run directory"):
        view.refresh()  # of one that was named it is said


def test_the_points_of_a_sweep_leave_room_for_the_time_that_is_left(folder: Folder) -> None:
    going, running = {"step": 150, "steps": 39000, "eta_s": 7505.0}, ""
    ids = ["20261125-120000-paper-a7ba", "20261125-120000-paper-b8cb"]
    for job, name in zip(("12", "13"), ids, strict=True):
        rows = start(time.time() - BEGAN, job_id=job), epoch(5, 1, 0.5)
        run = folder.run(*rows, job=job, progress=going, id=name)
        running += f"{job}|RUNNING|None|1:00|9:00|N/A|node1|{name}{runs(run)}\n"
    folder.slurm.says("squeue.txt", running)
    shown = status_table(StatusView(folder.path).statuses, ids, 80).plain
    assert shown.count("2:05:05") == 2, shown


@pytest.mark.parametrize("terminal", [True, False])
def test_watching_shows_what_comes_until_ctrl_c(folder: Folder, terminal: bool) -> None:
    run = folder.run(start(1, job_id=None), job=None, progress={"step": 1, "steps": 400})
    held = Lease(run, run.name)
    ours, theirs = pty.openpty() if terminal else os.pipe()
    watching = subprocess.Popen(
        [sys.executable, "-m", "runyard", "status", "-w", "--runs-dir", str(folder.path)],
        env=os.environ | {"COLUMNS": "80", "LINES": "24", "TERM": "xterm"}, stdin=subprocess.DEVNULL, stdout=theirs,
    )  # fmt: skip
    os.close(theirs)
    seen = b""

    def until(text: bytes) -> None:
        nonlocal seen
        while text not in seen:
            seen += os.read(ours, 65536)
        assert b"\\x1b" not in seen, "what Rich writes to a terminal is not made printable"

    until(b"1/400")
    if terminal:  # elsewhere it looks again too seldom for a test
        (run / "progress.json").write_text(json.dumps({"step": 77, "steps": 400}))
        until(b"77/400")
    watching.send_signal(signal.SIGINT)
    try:
        assert watching.wait(PATIENCE_S) == 0
    finally:
        watching.kill()
        watching.wait()
        os.close(ours)
        held.release()


@pytest.mark.parametrize(
    "argv",
    [["nothing"], ["--json", "-w"], ["--all", "@last"], ["--sweep", "x"], ["--wide"]],
    ids=" ".join,
)
def test_mistakes_cost_a_line(folder: Folder, status: Any, argv: list[str]) -> None:
    folder.run(start(1), stop(9, "finished"))
    code, out, err = status(*argv)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert argv[0] in err


def test_no_runs_at_all_cost_a_line(folder: Folder, status: Any) -> None:
    assert status()[0] == 2
    folder.path.mkdir()
    code, out, err = status("--json")
    assert (code, out) == (2, "")
    assert "`runyard submit`" in err


@pytest.mark.parametrize("record", [
    "{", "[]", '{"format": "runyard-run-1", "id": "x", "jobs": [1]}',
    '{"format": "runyard-run-1", "id": "x", "jobs": [{"id": "abc", "launcher": "slurm"}]}',
    '{"format": "runyard-run-1", "id": "../x", "jobs": []}',
])  # fmt: skip
def test_a_damaged_run_is_named_and_the_others_are_shown(folder: Folder, status: Any, record: str) -> None:
    folder.run(start(1), stop(9, "finished"))
    damaged = folder.run()
    (damaged / "run.json").write_text(record)
    torn = folder.run(start(1), stop(9, "finished"))
    with open(torn / "metrics.jsonl", "a") as journal:
        journal.write('{"event": "st')
    code, out, err = status()
    assert code == 0
    assert out.count("finished") == 4
    assert str(damaged) in err
