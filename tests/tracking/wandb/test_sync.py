"""`runyard sync` sends a run whole and once, however often it was interrupted. Tests start it as a user does."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from runyard.runs.run import Run
from tests.support.life import FAILED, FINISHED, INTERRUPTED, KEY, begin, epochs, live, write
from tests.support.proxy import NAME, a_proxy
from tests.support.settings import PATIENCE_S
from tests.support.waiting import until
from tests.support.wandb_server import WandbServer, is_one_history, sync, synced

MakeRun = Callable[..., Run]
pytestmark = [pytest.mark.usefixtures("nobody_home"), pytest.mark.slow]
IMPORTS = "import sys; from runyard.cli.main import main; code = main(sys.argv[1:]); " \
          "print(*({'torch', 'ffcv', 'torchvision'} & set(sys.modules)), file=sys.stderr); sys.exit(code)"  # fmt: skip


def refusal(*words: str) -> str:
    done = sync(*words, code=2)
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def restarted(make_run: MakeRun) -> Run:
    """A finished run with a restart, logged offline: none of it was sent."""
    run = make_run("tracking.mode=offline")
    write(run, begin(), *epochs(1, 2), INTERRUPTED, begin(2), *epochs(3, 4), *FINISHED)
    return run


def test_a_restarted_offline_run_arrives_whole_and_a_second_sync_sends_nothing(
    server: WandbServer, make_run: MakeRun
) -> None:
    run = restarted(make_run)
    (first,) = synced(str(run.path))
    assert (first["action"], first["sent"], first["points"], first["status"]) == ("sent", 5, 5, "finished")
    served = server.runs[run.id]
    is_one_history(served, 4)
    assert served.summary["test/top1"] == {"max": 0.8, "last": 0.6}
    assert (served.summary["status"], served.summary["restarts"], served.ends) == ("finished", 1, [0])
    assert served.config["machine"]["value"]["resumed_from"] == "step_00000016"
    assert served.values("_timestamp") == sorted(served.values("_timestamp"))
    assert not served.streams["events"], "this machine's load is not the run's"
    for line in ("epoch 1/4", "resuming at step 16", "final test top-1"):
        assert served.output.count(line) == 1
    before = (list(served.streams["history"]), list(served.ends))
    (second,) = synced(str(run.path))
    assert (second["action"], second["sent"]) == ("nothing to send", 0)
    assert (served.streams["history"], served.ends) == before
    assert not (run.path / "wandb").exists(), "nothing is left in the run's directory"


def test_a_sync_that_was_killed_goes_on_where_the_server_stands(server: WandbServer, make_run: MakeRun) -> None:
    run = restarted(make_run)
    server.most_history_lines = 2
    words = [sys.executable, "-m", "runyard", "sync", str(run.path)]
    first = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    until(lambda: run.id in server.runs and bool(server.runs[run.id].history))
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    time.sleep(0.5)
    served = server.runs[run.id]
    assert 0 < len(served.history) < 5, "all arrived: the test shows nothing"
    server.most_history_lines = None
    (second,) = synced(str(run.path))
    assert second["sent"] == 5 - second["there"] > 0
    is_one_history(served, 4)
    assert served.ends == [0]


def test_a_server_that_takes_no_more_half_way_is_told_in_one_line_and_nothing_is_lost(
    server: WandbServer, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = restarted(make_run)
    server.most_history_lines = 2
    code = (
        "import sys; from runyard.tracking.wandb import sync; from runyard.cli.main import main; "
        "sync.SEND_TIMEOUT_S = 3.0; sync.COUNT_TIMEOUT_S = 1.0; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run([sys.executable, "-c", code, "sync", str(run.path)], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("runyard: W&B: ")
    assert "run the same command again" in done.stderr
    server.most_history_lines = None
    synced(str(run.path))
    is_one_history(server.runs[run.id], 4)


def test_a_running_run_is_sent_up_to_now_and_the_rest_later(server: WandbServer, make_run: MakeRun) -> None:
    run = make_run("tracking.mode=offline")
    write(run, begin(), *epochs(1, 2))
    (first,) = synced(str(run.path))
    served = server.runs[run.id]
    assert (first["status"], first["sent"]) == ("running", 2)
    assert served.ends == [], "the server must not take it for finished"
    assert synced(str(run.path))[0]["action"] == "nothing to send"
    write(run, *epochs(3, 4), *FINISHED)
    assert synced(str(run.path))[0]["sent"] == 3
    is_one_history(served, 4)
    assert (served.ends, served.summary["status"]) == ([0], "finished")


def test_what_an_online_run_could_not_send_is_sent(server: WandbServer, make_run: MakeRun) -> None:
    run = make_run("tracking.mode=online")
    live(run, begin(), *epochs(1, 2), INTERRUPTED)
    write(run, begin(2), *epochs(3, 4), FAILED)
    assert synced(str(run.path))[0]["sent"] == 2
    served = server.runs[run.id]
    is_one_history(served, 4)
    assert (served.ends, len(served.alerts)) == ([1, 1], 1)
    synced(str(run.path))
    assert len(served.alerts) == 1


def test_a_run_that_sends_by_itself_is_left_alone(server: WandbServer, make_run: MakeRun) -> None:
    run = make_run("tracking.mode=online")
    lease = run.acquire_lease()
    try:
        live(run, begin(), *epochs(1, 2), INTERRUPTED)
        write(run, begin(2), *epochs(3, 3))
        assert "uploads itself" in sync(str(run.path)).stdout
        assert len(server.runs[run.id].history) == 2
    finally:
        lease.release()


def test_a_dry_run_says_what_would_go_and_sends_nothing(server: WandbServer, make_run: MakeRun) -> None:
    run = restarted(make_run)
    assert "would send 5 of 5 points" in sync(str(run.path), "--dry-run").stdout
    assert server.runs == {}


def test_all_takes_every_run_but_those_without_tracking_and_names_the_damaged(
    server: WandbServer, make_run: MakeRun
) -> None:
    run, silent, damaged = restarted(make_run), make_run("tracking.mode=none"), make_run("tracking.mode=offline")
    write(silent, begin(), *epochs(1, 1))
    (damaged.path / "config.yaml").write_text("- ")
    done = sync("--all", "--runs-dir", str(run.path.parent), code=1)
    assert f"{run.id}: sent 5 of 5 points" in done.stdout
    assert f"skipped: {damaged.path}/config.yaml" in done.stderr
    assert list(server.runs) == [run.id]


def test_a_run_that_fails_to_be_sent_does_not_end_the_others(server: WandbServer, make_run: MakeRun) -> None:
    first, second = sorted((restarted(make_run), restarted(make_run)), key=lambda run: run.id)
    with open(first.path / ".sync-lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = sync("--all", "--runs-dir", str(first.path.parent), "--json", code=1)
    said = json.loads(done.stdout)
    assert [run["run"] for run in said["runs"]] == [second.id]
    assert list(said["failed"]) == [first.id]
    assert done.stderr == f"runyard: not sent: {said['failed'][first.id]}\n"
    assert list(server.runs) == [second.id]


def test_a_journal_that_cannot_be_read_does_not_end_the_others(server: WandbServer, make_run: MakeRun) -> None:
    first, second = sorted((restarted(make_run), restarted(make_run)), key=lambda run: run.id)
    first.journal_path.unlink()
    first.journal_path.mkdir()  # root reads a file whatever its permissions
    done = sync("--all", "--runs-dir", str(first.path.parent), "--dry-run", code=1)
    assert f"{second.id}: would send 5 of 5 points" in done.stdout
    problem = f"{first.journal_path}: cannot read it (a directory, not a regular file)"
    assert done.stderr == f"runyard: not sent: {problem}; move it away\n"


def test_what_is_wrong_for_all_is_said_once(
    server: WandbServer, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = restarted(make_run)
    restarted(make_run)
    monkeypatch.delenv("WANDB_API_KEY")
    assert "wandb login" in refusal("--all", "--runs-dir", str(run.path.parent))


def test_a_run_that_failed_before_its_first_epoch_is_sent_with_its_failure(
    server: WandbServer, make_run: MakeRun
) -> None:
    run, unborn = make_run("tracking.mode=offline"), make_run("tracking.mode=offline")
    write(run, begin(), FAILED)
    (first,) = synced(str(run.path))
    assert (first["action"], first["points"], first["status"]) == ("sent", 0, "failed")
    served = server.runs[run.id]
    assert (served.summary["status"], served.ends, len(served.alerts)) == ("failed", [1], 1)
    assert served.config["machine"]["value"]["hostname"] == "node1"
    assert synced(str(run.path))[0]["action"] == "nothing to send"
    assert synced(str(unborn.path))[0]["action"] == "nothing to send"
    assert list(server.runs) == [run.id]


def test_a_broken_line_is_counted_and_the_rest_is_sent(server: WandbServer, make_run: MakeRun) -> None:
    run = restarted(make_run)
    content = run.journal_path.read_text().replace('"event": "epoch"', '"event": "epoch', 1)
    run.journal_path.write_text(content)
    assert "1 broken lines" in sync(str(run.path)).stdout
    assert server.runs[run.id].values("epoch") == [2, 3, 4, 4]


def test_it_needs_neither_torch_nor_the_data_and_shows_no_key(server: WandbServer, make_run: MakeRun) -> None:
    run = restarted(make_run)
    done = subprocess.run([sys.executable, "-c", IMPORTS, "sync", str(run.path)], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr.strip() == ""
    assert KEY not in done.stdout + done.stderr
    assert not [p for p in run.path.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()]


def test_without_a_server_a_key_or_a_sensible_answer_it_is_one_line(
    server: WandbServer, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = restarted(make_run)
    server.fail.set()
    assert "answered 500" in refusal(str(run.path))
    monkeypatch.delenv("WANDB_API_KEY")
    assert "wandb login" in refusal(str(run.path))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    assert "does not answer" in refusal(str(run.path))


@pytest.mark.parametrize("url", ["http://127.0.0.1:notaport", "http://[::1", "nonsense", "http://127.0.0.1:99999"])
def test_an_address_that_is_none_is_one_line(
    url: str, server: WandbServer, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = restarted(make_run)
    monkeypatch.setenv("WANDB_BASE_URL", url)
    assert f"WANDB_BASE_URL={url} is not an address" in refusal(str(run.path))
    monkeypatch.delenv("WANDB_API_KEY")
    assert f"WANDB_BASE_URL={url} is not an address" in refusal(str(run.path)), "the key is looked up by it"


@pytest.mark.parametrize(("name", "value"), [("WANDB_MODE", ""), ("WANDB_BASE_URL", "")])
def test_a_variable_that_wandbs_client_refuses_is_named_in_one_line(
    name: str, value: str, server: WandbServer, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = restarted(make_run)
    monkeypatch.setenv(name, value)
    said = refusal(str(run.path))
    assert f"{name}={value}: W&B's client refuses it" in said
    assert f"unset {name}" in said
    monkeypatch.delenv("WANDB_BASE_URL")  # the address is asked of the client, too
    monkeypatch.setenv(name, value)
    assert said.removeprefix("runyard: ") in refusal(str(run.path))


def test_a_server_that_never_answers_is_waited_for_within_a_limit(server: WandbServer, make_run: MakeRun) -> None:
    run = restarted(make_run)
    server.stall.set()
    code = (
        "import sys; from runyard.tracking.wandb import connection; from runyard.cli.main import main; "
        "connection.ANSWER_TIMEOUT_S = 1.0; sys.exit(main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", code, "sync", str(run.path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "no answer from" in done.stderr


def test_where_wandb_is_reached_through_a_proxy_alone_a_run_is_sent_through_it(
    server: WandbServer, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = restarted(make_run)
    server.gives = "http://wandb.invalid"  # a name that no resolver knows
    for name in ("no_proxy", "NO_PROXY", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", server.gives)
    assert "wandb.invalid does not answer" in refusal(str(run.path)), "the control"
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert "the proxy http://127.0.0.1:9 (HTTP_PROXY) does not answer" in refusal(str(run.path))
    monkeypatch.setenv("HTTP_PROXY", server.url)
    sync(str(run.path))
    is_one_history(server.runs[run.id], 4)
    assert server.asked_as_proxy == len(server.received) > 0
    assert "config.yaml" in " ".join(server.runs[run.id].files)
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    sync(str(run.path), "--dry-run")  # a server on this machine is not behind a proxy


def test_a_run_is_sent_through_a_proxy_that_all_proxy_names_and_that_wants_a_password(
    server: WandbServer, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = restarted(make_run)
    server.gives = f"http://{NAME}"
    for name in ("no_proxy", "NO_PROXY", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", server.gives)
    with a_proxy({NAME: urlsplit(server.url).port or 0}) as proxy:
        monkeypatch.setenv("ALL_PROXY", proxy.url.replace("://", f"://me:{KEY}@"))
        sync(str(run.path))
        assert len({login for _, _, login in proxy.asked}) == 1, "each request gives the login"
        assert len(proxy.asked) > len(server.received) > 0
        proxy.refusal = (407, "Proxy Authentication Required")
        said = refusal(str(run.path))
    assert f"the proxy {proxy.url} (ALL_PROXY) does not let requests to {NAME} pass: 407" in said
    assert KEY not in said
    is_one_history(server.runs[run.id], 4)
    assert not [p for p in run.path.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()]


@pytest.mark.parametrize("words", [[], ["--all", "@last"]])
def test_it_wants_runs_or_all(words: list[str]) -> None:
    assert "RUN… or --all" in refusal(*words)


def test_a_folder_without_runs_is_said(tmp_path: Path) -> None:
    assert f"no run in {tmp_path}" in refusal("--all", "--runs-dir", str(tmp_path))
