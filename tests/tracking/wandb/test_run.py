"""The W&B record is a copy of the journal: one history over all restarts, and no training's business when W&B fails.

All but the tests without a server run the real client and its helper process against a stand-in server over loopback.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runyard.runs import journal
from runyard.runs.events import StopEvent, parse_event
from runyard.runs.run import Run
from runyard.tracking.recorder import Recorder
from runyard.tracking.wandb import live as wandb_run
from runyard.tracking.wandb import record
from tests.support.life import FAILED, FINISHED, INTERRUPTED, KEY, begin, epochs, live, write
from tests.support.settings import PATIENCE_S, ROOT
from tests.support.waiting import until
from tests.support.wandb_server import WandbServer, is_one_history

MakeRun = Callable[..., Run]
pytestmark = pytest.mark.usefixtures("nobody_home")


def warnings(run: Run) -> list[str]:
    return [row["message"] for row in journal.read_journal(run.journal_path)[0] if row["event"] == "warning"]


@pytest.mark.slow
def test_online_a_run_is_what_its_users_expect(server: WandbServer, make_run: MakeRun) -> None:
    run = make_run("experiment=starter", "tracking.mode=online", "tracking.tags=[a,b]", "epochs=4", code=True)
    live(run, begin(), *epochs(1, 4), *FINISHED)
    assert warnings(run) == []
    served = server.runs[run.id]
    is_one_history(served, 4)
    at = served.attributes
    assert (at["project"], at["groupName"], at["jobType"]) == ("runyard", "starter", "train")
    assert sorted(at["tags"]) == ["a", "b"]
    assert served.ends == [0]
    assert served.config["optim"]["value"]["lr"] == run.config.optim.lr
    assert served.config["machine"]["value"]["device_name"] == "abacus"
    assert not [key for key in keys(served.config) if "." in key and key != "_wandb"]
    assert served.values("images") == [8 * n * run.config.batch_size for n in (1, 2, 3, 4)]
    assert served.values("clock_s") == [1.5, 3.0, 4.5, 6.0]
    rows, _ = journal.read_journal(run.journal_path)
    assert served.values("_timestamp")[:4] == [row["t"] for row in rows if row["event"] == "epoch"]
    assert served.summary["test/top1"] == {"max": 0.8, "last": 0.6}
    assert served.summary["test/loss"] == {"min": 0.25, "last": 0.25}
    assert (served.summary["top1_best"], served.summary["best_epoch"], served.summary["restarts"]) == (0.8, 2, 0)
    last = served.history[-1]
    assert last["per_class"]["nrows"] == 2
    assert last["confusion_matrix_table"]["nrows"] == 4
    assert (run.path / "config.yaml").read_bytes() == served.files["runyard/config.yaml"]
    (code,) = [artifact for artifact in server.artifacts if artifact.given["artifactTypeName"] == "code"]
    assert code.committed
    assert "runyard/training/trainer.py" in code.files
    assert "epoch 4/4" in served.output
    assert not [artifact for artifact in server.artifacts if artifact.given["artifactTypeName"] == "model"], "asked for"


def keys(values: Any) -> list[str]:
    return [k for key, value in values.items() for k in (key, *keys(value))] if isinstance(values, dict) else []


@pytest.mark.slow
def test_after_a_requeue_the_same_record_goes_on_and_its_best_is_not_forgotten(
    server: WandbServer, make_run: MakeRun
) -> None:
    run = make_run("tracking.mode=online", code=True)
    live(run, begin(), *epochs(1, 2), INTERRUPTED)
    served = server.runs[run.id]
    assert (served.preempting > 0, served.ends) == (True, [1])
    live(run, begin(2), *epochs(3, 4), *FINISHED)
    is_one_history(served, 4)
    assert served.summary["test/top1"] == {"max": 0.8, "last": 0.6}, "the client alone would begin its best again"
    assert (served.summary["restarts"], served.ends) == (1, [1, 0])
    assert len([a for a in server.artifacts if a.given["artifactTypeName"] == "code"]) == 1
    assert warnings(run) == []


@pytest.mark.slow
def test_a_client_that_counts_otherwise_than_its_server_sends_nothing_rather_than_twice(
    server: WandbServer, make_run: MakeRun
) -> None:
    run = make_run("tracking.mode=online")
    live(run, begin(), *epochs(1, 2), INTERRUPTED)
    del server.runs[run.id].config["_wandb"]  # by which the client knows that there is something to resume
    live(run, begin(2), *epochs(3, 4), *FINISHED)
    assert len(server.runs[run.id].history) == 2
    assert "the server has 2 points" in warnings(run)[0]


KILLED = """
import os, sys, time
from runyard.runs.run import Run
from runyard.tracking.recorder import Recorder
from tests.support.life import begin, epochs
recorder = Recorder(Run.open(sys.argv[1]), active=True)
for event, fields in [begin(), *epochs(1, 3)]:
    recorder.log_event(event, **fields)
    if event == "start":
        recorder.open_wandb(fields)
time.sleep(float(sys.argv[2]))
os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
def test_what_a_killed_process_had_not_sent_is_sent_by_the_next(server: WandbServer, make_run: MakeRun) -> None:
    run = make_run("tracking.mode=online")
    done = subprocess.run([sys.executable, "-c", KILLED, str(run.path), "0.1"], cwd=ROOT, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    time.sleep(2)  # its helper ends by itself when it is alone
    assert len(server.run(run.id).history) < 3, "it had sent everything: the test shows nothing"
    live(run, begin(3), *epochs(4, 4), *FINISHED)
    is_one_history(server.runs[run.id], 4)
    assert server.runs[run.id].ends == [0]


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGUSR2, signal.SIGTERM, signal.SIGKILL])
def test_signals_to_a_whole_step_leave_a_record_that_is_finished_well(
    server: WandbServer, make_run: MakeRun, sent: signal.Signals
) -> None:
    run = make_run("tracking.mode=online")
    with_a_signal(run, server, sent)
    served = server.runs[run.id]
    is_one_history(served, 4)
    assert served.ends == [0]
    assert warnings(run) == []


@pytest.mark.slow
def test_without_another_helper_a_term_would_leave_the_record_unfinished(
    server: WandbServer, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_run, "MAX_HELPERS", 1)
    run = make_run("tracking.mode=online")
    with_a_signal(run, server, signal.SIGTERM)
    assert server.runs[run.id].ends == []
    assert "`runyard sync" in warnings(run)[0]


def with_a_signal(run: Run, server: WandbServer, sent: signal.Signals) -> None:
    """A life in which W&B's helper gets a signal after epoch 2."""
    recorder = Recorder(run, active=True)
    for event, fields in [begin(), *epochs(1, 2)]:
        recorder.log_event(event, **fields)
        if event == "start":
            recorder.open_wandb(fields)
    until(lambda: run.id in server.runs and bool(record.helpers()))
    for helper in record.helpers():
        os.kill(helper, sent)
    time.sleep(0.5)
    for event, fields in [*epochs(3, 4), *FINISHED]:
        recorder.log_event(event, **fields)
    recorder.close()


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["stall", "fail", "frozen"])
def test_a_server_or_helper_that_hangs_costs_a_training_its_time_limit_and_no_more(
    server: WandbServer, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    monkeypatch.setattr(wandb_run, "FINISH_TIMEOUT_S", 2.0)
    run = make_run("tracking.mode=online")
    recorder = Recorder(run, active=True)
    recorder.log_event(*begin()[:1], **begin()[1])
    if trouble in ("stall", "fail"):
        getattr(server, trouble).set()
    recorder.open_wandb({})
    if trouble == "frozen":
        until(lambda: run.id in server.runs and bool(record.helpers()))
        for helper in record.helpers():
            os.kill(helper, signal.SIGSTOP)
    for event, fields in [*epochs(1, 4), *FINISHED]:
        recorder.log_event(event, **fields)
    closing = threading.Thread(target=recorder.close)
    closing.start()
    closing.join(PATIENCE_S)
    assert not closing.is_alive(), "a training would hang here"
    assert record.helpers() == [], "the end of the process would wait for it"
    rows, broken = journal.read_journal(run.journal_path)
    assert [row["event"] for row in rows if row["event"] != "warning"] == ["start", *["epoch"] * 4, "final", "stop"]
    assert broken == 0
    (warning,) = warnings(run)
    assert f"runyard sync {run.path}" in warning
    server.stall.clear()


def test_online_without_a_key_is_one_warning_that_says_what_to_do(make_run: MakeRun) -> None:
    run = make_run("tracking.mode=online")
    live(run, begin(), *epochs(1, 1), *FINISHED)
    (warning,) = warnings(run)
    assert "wandb login" in warning
    assert "\n" not in warning
    assert not (run.path / "wandb").exists()


def test_a_machine_without_wandb_is_a_warning(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    run = make_run("tracking.mode=offline")
    live(run, begin(), *epochs(1, 1))
    assert "W&B did not start" in warnings(run)[0]


def way(run: Run) -> list[str]:
    return [row["message"] for row in journal.read_journal(run.journal_path)[0] if row["event"] == "tracking"]


@pytest.mark.slow
def test_the_journal_says_which_way_auto_went_and_why(
    server: WandbServer, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run("tracking.mode=auto")
    live(run, begin(), *epochs(1, 1), INTERRUPTED)
    assert way(run) == [f"W&B online: {server.url} answers directly"]
    monkeypatch.setenv("WANDB_BASE_URL", "http://wandb.invalid")
    for name in ("HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    live(run, begin(1), *epochs(2, 4), *FINISHED)
    assert way(run)[1].startswith("W&B offline: the proxy http://127.0.0.1:9 (HTTP_PROXY) does not answer")
    assert f"`runyard sync {run.cli_reference}` sends the record" in way(run)[1]
    assert warnings(run) == []
    online = make_run("tracking.mode=online")
    live(online, begin(), *epochs(1, 1), INTERRUPTED)
    assert way(online) == [], "the control: it was told which way"
    assert len(warnings(online)) == 1


@pytest.mark.parametrize(("active", "mode"), [(False, "offline"), (True, "none")])
def test_only_rank_0_opens_a_record_and_only_where_it_is_wanted(make_run: MakeRun, active: bool, mode: str) -> None:
    run = make_run(f"tracking.mode={mode}")
    recorder = Recorder(run, active=active)
    recorder.open_wandb({})
    recorder.close()
    assert [thread.name for thread in threading.enumerate() if thread.name == "W&B"] == []
    assert not (run.path / "wandb").exists()


@pytest.mark.slow
def test_offline_each_start_writes_the_whole_history_so_that_none_lacks_what_another_has(make_run: MakeRun) -> None:
    run = make_run("tracking.mode=offline", "tracking.tags=[tagged]")
    live(run, begin(), *epochs(1, 2), INTERRUPTED)
    time.sleep(1)  # W&B names its folders by the second
    live(run, begin(2), *epochs(3, 4), *FINISHED)
    first, second = sorted((run.path / "wandb").glob(f"offline-run-*/run-{run.id}.wandb"))
    for word in (b"train/loss", b"abacus", b"tagged", b"confusion_matrix", b"top1_best", b"epoch 1/4"):
        assert word in second.read_bytes()
    assert b"confusion_matrix" not in first.read_bytes()
    assert warnings(run) == []


@pytest.mark.slow
def test_a_failure_is_told_once_by_an_alert_that_names_it(server: WandbServer, make_run: MakeRun) -> None:
    run = make_run("tracking.mode=online")
    live(run, begin(), *epochs(1, 1), FAILED)
    served = server.runs[run.id]
    ((alert),) = served.alerts
    assert (alert["title"], alert["severity"]) == (f"{run.config.name}: diverged", "ERROR")
    assert "not a finite number" in alert["text"]
    assert served.ends == [1]
    live(run, begin(1), *epochs(2, 4), *FINISHED)
    assert (len(served.alerts), served.ends) == (1, [1, 0])


@pytest.mark.slow
def test_a_process_whose_run_was_taken_over_says_nothing_more_to_wandb(server: WandbServer, make_run: MakeRun) -> None:
    run = make_run("tracking.mode=online")
    recorder = Recorder(run, active=True)
    for event, fields in [begin(), *epochs(1, 1)]:
        recorder.log_event(event, **fields)
        if event == "start":
            recorder.open_wandb(fields)
    until(lambda: run.id in server.runs)
    write(run, begin(1), *epochs(2, 2))
    recorder.close(failed=True)
    assert server.runs[run.id].ends == [], "the other process's record would read failed"


@pytest.mark.slow
def test_checkpoints_go_as_one_artifact_aliased_last_and_best_and_damaged_ones_stay(
    server: WandbServer, make_run: MakeRun
) -> None:
    from runyard.training import checkpoint

    run = make_run("tracking.mode=online", "tracking.artifacts=true")
    for step, score in ((8, 0.3), (16, 0.8), (32, 0.6)):
        checkpoint.write_checkpoint(run.checkpoints, {"step": step}, step, score)
    damaged = checkpoint.write_checkpoint(run.checkpoints, {"step": 40}, 40, 0.9)
    (damaged / "state.pt").write_bytes(b"\0")
    live(run, begin(), *epochs(1, 4), *FINISHED)
    models = [a for a in server.artifacts if a.given["artifactTypeName"] == "model"]
    assert {frozenset(a.aliases - {"latest"}) for a in models} == {
        frozenset({"best", "step_00000016"}),
        frozenset({"last", "step_00000032"}),
    }
    for artifact in models:
        (name,) = [alias for alias in artifact.aliases if alias.startswith("step_")]
        assert artifact.files["state.pt"] == (run.checkpoints / name / "state.pt").read_bytes()
        assert artifact.committed


@pytest.mark.slow
def test_the_key_is_in_no_file_argument_or_line(
    server: WandbServer, make_run: MakeRun, capfd: pytest.CaptureFixture[str]
) -> None:
    run = make_run("tracking.mode=online")
    recorder = Recorder(run, active=True)
    recorder.log_event(begin()[0], **begin()[1])
    recorder.open_wandb({})
    until(lambda: run.id in server.runs)
    for helper in record.helpers():
        assert KEY.encode() not in Path(f"/proc/{helper}/cmdline").read_bytes()
    for event, fields in [*epochs(1, 1), *FINISHED]:
        recorder.log_event(event, **fields)
    recorder.close()
    assert server.keys, "no request carried a key"
    said = capfd.readouterr()
    assert KEY not in said.out + said.err
    written = [path for path in run.path.parent.rglob("*") if path.is_file()]
    assert any("wandb" in path.parts for path in written)
    assert not [path for path in written if KEY.encode() in path.read_bytes()]
    told = [*server.runs[run.id].files.values(), repr(server.runs[run.id]).encode()]
    assert not [content for content in told if KEY.encode() in content]


def test_wandbs_stop_button_saves_and_stops_as_sigterm_does() -> None:
    got = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
    try:
        asked = threading.Thread(target=record.stop_this_training)
        asked.start()
        asked.join()
        until(lambda: bool(got))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert got == [signal.SIGTERM]


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"exception": "DivergenceError", "message": "the loss is not a finite number"}, "diverged"),
        ({"exception": "DivergenceError", "given_up": True}, "given up"),
        ({"exception": "RuntimeError", "message": "given up: the loss is not a finite number"}, "failed"),
    ],
)
def test_an_alerts_title_says_what_happened_and_is_short_enough_for_wandb(
    make_run: MakeRun, fields: dict[str, Any], what: str
) -> None:
    stop = parse_event({"event": "stop", "t": 1.0, "reason": "failed", **fields})
    assert isinstance(stop, StopEvent)
    assert record.alert_title(make_run("name=mine"), stop) == f"mine: {what}"
    assert len(record.alert_title(make_run(f"name={'n' * 90}"), stop)) <= 63
