"""What a run's tasks printed: whole, over restarts and later jobs, and followed to the run's end and no further."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runyard.cli.main import main
from runyard.cluster.monitor import logs
from runyard.cluster.monitor.logs import Logs, Printer
from runyard.runs.summary import RunSummary
from tests.support.fabricated import BEGAN, Folder, row, start, stop
from tests.support.settings import PATIENCE_S

RUNS = "12|RUNNING|None|3:05|57:00|2026-09-21T00:00:00|node1|@"
WAITS = "12|PENDING|BeginTime|0:00|57:00|N/A||@"


@pytest.fixture
def shown(folder: Folder, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """``shown("--rank", "1")``: exit code, stdout and stderr of `runyard logs` of the newest run."""

    def run(*argv: str) -> tuple[int, str, str]:
        code = main(["logs", "--runs-dir", str(folder.path), *argv])
        return code, *capsys.readouterr()

    return run


def begin(at_s: float, host: str = "node1") -> str:
    """The line that submitit begins a task's output with."""
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(BEGAN + at_s))
    return f"submitit INFO ({at},123) - Starting with JobEnvironment(job_id=12, hostname={host}, global_rank=0(4))\n"


def mark(what: str, at_s: float, host: str = "node1") -> str:
    return f"── {what} of job 12 on {host}, {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(BEGAN + at_s))} ──"


def write(run: Path, text: str, name: str = "12_0_log.out") -> None:
    with open(run / "slurm" / name, "a") as log:
        log.write(text)


def test_restarts_are_marked_with_their_cause(folder: Folder, shown: Any) -> None:
    causes = [row("requeue", 20, cause="preemption", step=5), row("requeue", 40, cause="time limit", step=9)]
    run = folder.run(start(1), *causes, stop(90, "finished"))
    write(run, begin(1) + "one\n" + begin(30, "node2") + "two\n" + begin(50) + "three\n" + begin(80) + "four\n")
    assert shown("@last")[1].splitlines() == [
        mark("start", 1), "one", mark("restart 1 after preemption", 30, "node2"), "two",
        mark("restart 2 after time limit", 50), "three", mark("restart 3", 80), "four",
    ]  # fmt: skip


def test_a_later_job_of_the_run_follows(folder: Folder, shown: Any) -> None:
    jobs = [{"id": number, "launcher": "slurm", "submitted": BEGAN, "nodes": 1, "tasks_per_node": 1, "logs": "slurm"}
            for number in ("9", "12")]  # fmt: skip
    run = folder.run(jobs=jobs)
    write(run, "later\n")
    write(run, "earlier\n", "9_0_log.out")
    write(run, "not of this run\n", "123_0_log.out")
    assert shown("@last")[1].splitlines() == ["earlier", "later"]


def test_the_points_of_a_sweep_share_a_folder_and_no_lines(folder: Folder, shown: Any) -> None:
    shared = folder.path / ".sweeps" / "s"
    shared.mkdir(parents=True)
    for number in range(2):
        job = {"id": f"12_{number}", "launcher": "slurm", "submitted": BEGAN, "logs": "../.sweeps/s"}
        folder.run(jobs=[job])
        (shared / f"12_{number}_0_log.out").write_text(f"point {number}\n")
    assert shown("@last")[1] == "point 1\n"


def test_a_ranks_errors_and_all_ranks_output(folder: Folder, shown: Any) -> None:
    run = folder.run(start(1))
    for rank in (0, 1, 3):
        write(run, f"I am {rank}\n", f"12_{rank}_log.out")
    write(run, "oh\n", "12_3_log.err")
    assert shown("@last", "--rank", "3")[1] == "I am 3\n"
    assert shown("@last", "--rank", "3", "--err")[1].splitlines()[-1] == "oh"
    assert shown("@last", "--all-ranks")[1].splitlines() == ["[0] I am 0", "[1] I am 1", "[3] I am 3"]


def test_the_last_lines_alone_and_as_json(folder: Folder, shown: Any) -> None:
    run = folder.run(start(1))
    write(run, begin(1) + "one\ntwo\nthree, not yet whole")
    assert shown("@last", "-n", "2")[1] == "two\nthree, not yet whole\n"
    assert shown("@last", "-n", "0")[1] == ""
    first, second, *_ = (json.loads(line) for line in shown("@last", "--json")[1].splitlines())
    assert first == {"job": "12", "rank": 0, "mark": mark("start", 1).strip("─ ")}
    assert second == {"job": "12", "rank": 0, "line": "one"}


@pytest.mark.parametrize(
    ("argv", "said"),
    [(["--rank", "4"], "--rank 4"), (["--rank", "-1"], "--rank -1"), ([], "waiting (BeginTime)"),
     (["-n", "-1"], "--lines -1"), (["--rank", "x"], "--rank"), (["--rank", "1", "--all-ranks"], "--all-ranks")],
)  # fmt: skip
def test_mistakes_cost_a_line(folder: Folder, shown: Any, argv: list[str], said: str) -> None:
    folder.run()
    folder.queue(WAITS)
    code, out, err = shown("@last", *argv)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


def test_a_run_that_another_command_started_has_its_output_elsewhere(folder: Folder, shown: Any) -> None:
    folder.run(start(1), job=None)
    assert "metrics.jsonl" in shown("@last")[2]


class Following:
    """``runyard logs -f`` in a thread, and what it has printed."""

    def __init__(self, run: Path) -> None:
        self.out, self.notes, self.ended = io.StringIO(), io.StringIO(), []
        book = Logs(RunSummary(run), 0, "out")
        self.thread = threading.Thread(
            target=lambda: self.ended.append(logs.follow_logs(book, Printer(self.out), self.notes)), daemon=True
        )
        self.thread.start()

    def until(self, text: str, where: io.StringIO | None = None) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while text not in (said := (where or self.out).getvalue()):
            assert time.monotonic() < deadline, said
            time.sleep(0.02)

    def end(self) -> str:
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()
        return str(self.ended[0].state)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOG_POLL_S", "LOGS_QUEUE_POLL_S", "CONFIRM_END_S"):
        monkeypatch.setattr(logs, name, 0.1)


@pytest.mark.usefixtures("quick")
def test_following_goes_on_over_a_requeue_and_ends_with_the_run(folder: Folder) -> None:
    run = folder.run(start(1))
    folder.queue(RUNS)
    write(run, begin(1) + "one\n")
    following = Following(run)
    following.until("one")
    folder.append(run, stop(20, "interrupted", cause="time limit"), row("requeue", 21, cause="time limit", step=5))
    folder.queue(WAITS)
    following.until("waiting to go on at step 5 (BeginTime)", following.notes)
    folder.queue(RUNS)
    write(run, begin(30) + "two\nthr")
    folder.append(run, start(31))
    following.until("two")
    assert "thr" not in following.out.getvalue(), "a line is shown when it is whole"
    write(run, "ee\n")
    folder.append(run, stop(60, "finished"))
    write(run, "the last, and not whole")
    assert following.end() == "finished"
    assert following.out.getvalue().splitlines() == [
        mark("start", 1), "one", mark("restart 1 after time limit", 30), "two", "three", "the last, and not whole",
    ]  # fmt: skip


@pytest.mark.usefixtures("quick")
def test_following_goes_on_into_a_job_that_resume_started(folder: Folder) -> None:
    run = folder.run(start(1))
    folder.queue(RUNS)
    write(run, "one\n")
    following = Following(run)
    following.until("one")
    record = json.loads((run / "run.json").read_text())
    record["jobs"].append(record["jobs"][0] | {"id": "13"})
    (run / "run.json").write_text(json.dumps(record))
    folder.queue("13|RUNNING|None|3:05|57:00|2026-09-21T00:00:00|node1|@")
    write(run, "two\n", "13_0_log.out")
    following.until("two")
    folder.append(run, stop(60, "finished"))
    assert following.end() == "finished"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("end", "state"), [(stop(9, "interrupted"), "interrupted"), (None, "killed")])
def test_following_ends_with_a_run_that_stopped_or_died(folder: Folder, end: Any, state: str) -> None:
    run = folder.run(start(1))
    folder.queue(RUNS)
    write(run, "one\n")
    following = Following(run)
    following.until("one")
    if end is not None:
        folder.append(run, end)
    time.sleep(0.5)
    assert following.thread.is_alive(), "its job still runs"
    folder.queue()
    assert following.end() == state


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("end", "code"), [(stop(9, "finished"), 0), (stop(9, "failed", message="no"), 1), (stop(9, "interrupted"), 130)]
)
def test_the_exit_code_of_following_is_the_runs(folder: Folder, shown: Any, end: Any, code: int) -> None:
    write(folder.run(start(1), end), "one\n")
    said = shown("@last", "-f")
    assert (said[0], said[1]) == (code, "one\n")
