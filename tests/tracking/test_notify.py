"""People are told once how a run ended, by a webhook and by a command, and neither holds the job or shows a secret."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from runyard.cluster.job import requeue
from runyard.config.compose import compose
from runyard.config.schema import Config
from runyard.errors import UserError
from runyard.runs.journal import read_journal
from runyard.runs.run import Run
from runyard.tracking import notify
from runyard.tracking.notify import notify_end, webhook_url
from tests.support.life import FAILED, FINISHED, INTERRUPTED, Event, begin, epochs, write

TOKEN = "T5ec7e7/B5ec7e7"
CANCELLED: Event = ("stop", {"reason": "interrupted", "cause": "TERM"})
CRASHED: Event = ("stop", {"reason": "failed", "message": "rank 1 ended without a word", "retry": True})
MakeRun = Callable[..., Run]


class Webhook:
    """Keeps what is posted to it. ``status`` is answered; with ``silent`` it never answers."""

    def __init__(self) -> None:
        self.posts: list[dict[str, Any]] = []
        self.status, self.silent = 200, threading.Event()
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                pass

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert self.headers["Content-Type"] == "application/json"
                while hook.silent.is_set():
                    time.sleep(0.05)
                hook.posts.append(json.loads(body))
                self.send_response(hook.status)
                self.end_headers()

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/services/{TOKEN}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.silent.clear()
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def webhook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    """One that the environment names, with time enough on a busy machine."""
    hook = Webhook()
    monkeypatch.setenv("MY_HOOK", hook.url)
    monkeypatch.setattr(notify, "NOTIFY_TIMEOUT_S", 60.0)
    yield hook
    hook.close()


@pytest.fixture
def make_run(tmp_path: Path, make_config: Callable[..., Config]) -> MakeRun:
    def make(*overrides: str) -> Run:
        config = make_config(f"runs_dir={tmp_path / 'runs'}", "data=synthetic", "epochs=4", *overrides)
        return Run.create(config, list(overrides))

    return make


def rows(run: Run, event: str) -> list[dict[str, Any]]:
    return [row for row in read_journal(run.journal_path)[0] if row["event"] == event]


def warnings(run: Run) -> list[str]:
    return [row["message"] for row in rows(run, "warning")]


@pytest.mark.parametrize(
    ("end", "state", "words"),
    [
        (FINISHED, "finished", ["4 of 4 epochs", "top-1 50.00%", "trained in 0:01"]),
        ([FAILED], "failed", ["4 of 4 epochs", ": the loss is not a finite number"]),
        ([CANCELLED], "cancelled", ["4 of 4 epochs"]),
        ([INTERRUPTED], "interrupted", []),
        ([("stop", {"reason": "failed", "message": "given up: 3 restarts", "given_up": True})], "given up",
         [" given up, 4 of 4", ": 3 restarts"]),
        ([], "failed", [": srun ended with 9"]),
    ],
)  # fmt: skip
def test_each_end_is_told_once_with_its_facts(
    webhook: Webhook, make_run: MakeRun, end: list[Event], state: str, words: list[str]
) -> None:
    run = make_run("notify.url_env=MY_HOOK")
    write(run, begin(), *epochs(1, 4), *end)
    notify_end(run, "srun ended with 9")
    notify_end(run, "srun ended with 9")
    (post,) = webhook.posts
    assert post["text"] == post["content"], "one is Slack's, the other Discord's"
    assert (post["run"]["id"], post["run"]["state"], post["run"]["epoch"]) == (run.id, state, 4)
    for word in [run.id, *words]:
        assert word in post["text"]
    assert warnings(run) == []
    write(run, begin(4), CANCELLED)
    notify_end(run)
    assert [post["run"]["state"] for post in webhook.posts] == [state, "cancelled"], "another end is another word"


def test_a_run_that_names_nobody_tells_nobody(webhook: Webhook, make_run: MakeRun) -> None:
    run = make_run()
    write(run, begin(), *FINISHED)
    notify_end(run)
    assert webhook.posts == []
    assert rows(run, "notified") == []


@pytest.mark.parametrize(
    ("requeues", "exit_code", "preempted", "overrides", "told"),
    [
        ([], 9, False, [], []),
        ([], 9, True, [], []),
        ([("requeue", {"cause": "crash", "step": 0})] * 3, 9, False, [], ["given up"]),
        ([], 9, False, ["cluster.requeue=false"], ["failed"]),
        ([begin(), CANCELLED], 130, False, [], ["cancelled"]),
        ([begin(), CANCELLED], 130, True, [], []),
        ([begin(), *FINISHED], 0, False, [], ["finished"]),
    ],
)
def test_the_batch_script_tells_an_end_and_no_requeue(
    webhook: Webhook, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch,
    requeues: list[Event], exit_code: int, preempted: bool, overrides: list[str], told: list[str],
) -> None:  # fmt: skip
    monkeypatch.delenv("RUNYARD_BEGAN", raising=False)
    run = make_run("notify.url_env=MY_HOOK", "tracking=none", "cluster=slurm", *overrides)
    write(run, *requeues)
    requeue.finish_job(str(run.path), exit_code, preempted=preempted)
    assert [post["run"]["state"] for post in webhook.posts] == told


def test_a_job_that_slurm_does_not_requeue_is_told(webhook: Webhook, make_run: MakeRun) -> None:
    run = make_run("notify.url_env=MY_HOOK", "tracking=none", "cluster=slurm")
    write(run, begin(), CRASHED)
    requeue.record_requeue_refusal(str(run.path), 1, "Requeue is disabled")
    (post,) = webhook.posts
    assert (post["run"]["state"], post["run"]["message"]) == ("failed", "rank 1 ended without a word")


@pytest.mark.parametrize("trouble", ["refuses", "silent", "gone", "unset"])
def test_a_webhook_that_fails_is_one_warning_without_its_address_and_holds_nothing(
    webhook: Webhook, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    trouble: str,
) -> None:  # fmt: skip
    run = make_run("notify.url_env=MY_HOOK")
    write(run, begin(), *FINISHED)
    match trouble:
        case "refuses":
            webhook.status = 404
        case "silent":
            monkeypatch.setattr(notify, "NOTIFY_TIMEOUT_S", 1.0)
            webhook.silent.set()
        case "gone":
            monkeypatch.setenv("MY_HOOK", f"http://127.0.0.1:9/services/{TOKEN}")
        case "unset":
            monkeypatch.delenv("MY_HOOK")
    notify_end(run)
    expected = {
        "refuses": "the webhook at 127.0.0.1 answered 404",
        "silent": "the webhook at 127.0.0.1 did not answer within 1 s, directly",
        "gone": "the webhook at 127.0.0.1 was not reached",
        "unset": "notify.url_env=MY_HOOK: this variable is not set",
    }[trouble]
    (warning,) = warnings(run)
    assert expected in warning
    assert capfd.readouterr().err.count("\n") == 1
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]
    assert [post["run"]["state"] for post in webhook.posts] == (["finished"] if trouble == "refuses" else [])


def test_a_command_gets_the_facts_and_its_failure_is_a_warning(
    tmp_path: Path, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "NOTIFY_TIMEOUT_S", 60.0)
    heard = tmp_path / "heard"
    run = make_run(f"notify.command='echo \"$RUN_ID|$RUN_STATE|$RUN_TEXT\" > {heard}'")
    write(run, begin(), *FINISHED)
    notify_end(run)
    assert heard.read_text().startswith(f"{run.id}|finished|runyard: {run.id} finished, 0 of 4 epochs")
    assert warnings(run) == []
    failing = make_run("notify.command='exit 3'")
    write(failing, begin(), *FINISHED)
    notify_end(failing)
    assert warnings(failing) == ["not everybody was told that the run has ended: notify.command ended with 3"]


def test_a_command_that_hangs_is_ended(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "NOTIFY_TIMEOUT_S", 1.0)
    run = make_run("notify.command='sleep 600 & sleep 600'")
    write(run, begin(), *FINISHED)
    began = time.monotonic()
    notify_end(run)
    assert time.monotonic() - began < 300
    assert warnings(run)[0].endswith("notify.command did not end within 1 s, and was ended")


def test_the_address_comes_from_a_file_that_nobody_else_can_read(tmp_path: Path, make_config: MakeRun) -> None:
    file, runs_dir = tmp_path / "my hook", tmp_path / "runs"
    settings: Any = make_config(f"notify.url_file='{file}'")
    file.write_text("https://hooks.example/T/B\n")
    file.chmod(0o640)
    with pytest.raises(UserError, match=f"not yours alone to read; chmod 600 '{file}'$"):
        webhook_url(settings.notify, {}, runs_dir)
    file.chmod(0o600)
    assert webhook_url(settings.notify, {}, runs_dir) == "https://hooks.example/T/B"
    with pytest.raises(UserError, match="lies in runs_dir"):
        webhook_url(settings.notify, {}, tmp_path)
    file.write_text(f"hooks.example/{TOKEN}\n")
    with pytest.raises(UserError, match="does not hold an address") as refused:
        webhook_url(settings.notify, {}, runs_dir)
    assert TOKEN not in str(refused.value)
    file.unlink()
    with pytest.raises(UserError, match="No such file"):
        webhook_url(settings.notify, {}, runs_dir)
    os.mkfifo(file, 0o600)  # to open one for reading waits for a writer
    with pytest.raises(UserError, match=r"a FIFO \(named pipe\), not a regular file"):
        webhook_url(settings.notify, {}, runs_dir)
    file.unlink()
    file.symlink_to(file.name)
    with pytest.raises(UserError, match="Too many levels of symbolic links"):
        webhook_url(settings.notify, {}, runs_dir)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["notify.url=https://hooks.example/T"], "notify.url"),
        (["notify.url_env='https://hooks.example/T'"], "expected the name of an environment variable"),
        (["notify.url_env=A", "notify.url_file=/b"], "leave one of them out"),
    ],
)
def test_an_address_is_refused_where_it_would_be_saved(overrides: list[str], told: str) -> None:
    with pytest.raises(UserError) as refused:
        compose(overrides)
    assert told in str(refused.value)
