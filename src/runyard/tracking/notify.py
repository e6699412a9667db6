"""Tells people how a run ended: by a webhook that Slack, Discord or ntfy take, and by a command of the user's.

Whoever knows the run's end calls ``notify_end``: the batch script on SLURM, the controller on this machine, else the
training. The webhook's address is a secret, as whoever has it can write there: a configuration names only where it is,
and no message of this module contains it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from runyard.errors import UserError
from runyard.files import file_fix, open_regular
from runyard.runs.events import EpochEvent, Event, NotifiedEvent, RequeueEvent, StartEvent, StopEvent
from runyard.runs.journal import Journal, read_events
from runyard.runs.narrative import format_duration
from runyard.runs.run import Run
from runyard.runs.state import JournalState
from runyard.tracking.route import route_to

if TYPE_CHECKING:
    from runyard.config.schema import NotifyConfig

NOTIFY_TIMEOUT_S = 5.0  # for webhook and command together: the job holds its nodes meanwhile
TEXT_LENGTH = 1500  # characters at most; Discord takes 2000
PREFIX = "RUN_"  # of the variables that a command gets


def webhook_url(notify: NotifyConfig, env: Mapping[str, str], run_dirs: Path) -> str | None:
    """Return the webhook's address, None if the configuration names none.

    Args:
        run_dirs: The folder in which the file with the address must not lie, as what is there is shared and uploaded.

    Raises:
        UserError: the variable or the file that is named does not hold one, or others can read the file.
    """
    if notify.url_env is not None:
        name, url = f"notify.url_env={notify.url_env}", env.get(notify.url_env, "").strip()
        if not url:
            raise UserError(f"{name}: this variable is not set", f"export {notify.url_env}=https://…")
    elif notify.url_file is not None:
        name, url = f"notify.url_file={notify.url_file}", _read_secret(notify.url_file, run_dirs)
    else:
        return None
    try:
        route_to(url)
    except ValueError:
        raise UserError(f"{name}: does not hold an address", "expected https://HOST/… and nothing else") from None
    return url


def _read_secret(name: str, run_dirs: Path) -> str:
    path = os.path.expanduser(name)
    if Path(os.path.realpath(path)).is_relative_to(os.path.realpath(run_dirs)):
        raise UserError(f"notify.url_file={name}: lies in runs_dir, whose files are shared", "keep it in your home")
    try:
        with open_regular(path) as file:
            status = os.fstat(file.fileno())
            if status.st_mode & 0o077 or status.st_uid != os.getuid():
                raise UserError(
                    f"notify.url_file={name}: not yours alone to read",
                    f"chmod 600 {shlex.quote(os.path.expanduser(name))}",
                )
            return file.readline(4096).decode().strip()
    except OSError as error:
        raise UserError(f"notify.url_file={name}: {error.strerror}", file_fix(error)) from None
    except ValueError:
        raise UserError(f"notify.url_file={name}: not text") from None


def notify_end(run: Run, message: str = "", state: str = "failed") -> None:
    """Tell how ``run`` ended, once, within seconds. What fails becomes one warning in the journal.

    Args:
        message, state: Why and how it ended, if its journal does not say.
    """
    notify = run.config.notify
    if (notify.url_env, notify.url_file, notify.command) == (None, None, None):
        return
    events = read_events(run.journal_path)
    if _was_told(events):
        return
    facts = _end_facts(run, events, message, state)
    journal = Journal(run.journal_path)
    with contextlib.suppress(OSError):  # the disk may be full
        journal.write("notified", state=facts["state"])
        if problems := _tell(run, facts):
            warning = f"not everybody was told that the run has ended: {'; '.join(problems)}"
            print(f"runyard: {warning}", file=sys.stderr, flush=True)
            journal.write("warning", message=warning)


def _was_told(events: list[Event]) -> bool:
    """Return whether the end of the newest start was told."""
    for event in reversed(events):
        if isinstance(event, NotifiedEvent):
            return True
        if isinstance(event, (StartEvent, RequeueEvent)):
            return False
    return False


def _end_facts(run: Run, events: list[Event], message: str, state: str) -> dict[str, str | int | float]:
    """Return what is told of a run's end: ``text``, a sentence, and the facts in it by their names."""
    journal = JournalState.of(events)
    stop = journal.last if isinstance(journal.last, StopEvent) else None
    state = state if stop is None else _end_word(stop)
    message = (stop.message if stop is not None else "") or ("" if state == "finished" else message)
    newest = next((event for event in reversed(events) if isinstance(event, EpochEvent)), None)
    final = journal.final if state == "finished" else None
    known: dict[str, str | int | float | None] = {
        "id": run.id,
        "name": run.config.name,
        "state": state,
        "message": message[:TEXT_LENGTH],
        "epoch": newest.epoch if newest is not None else 0,
        "epochs": run.config.epochs,
        "top1": None if final is None else final.number("top1"),
        "clock_s": None if final is None else final.number("clock_s"),
        "job": os.environ.get("SLURM_JOB_ID") or (journal.starts[-1].job_id if journal.starts else None),
        "host": socket.gethostname(),
        "directory": str(run.path),
    }
    facts = {name: value for name, value in known.items() if value is not None}
    return {"text": _sentence(facts)[:TEXT_LENGTH], **facts}


def _end_word(stop: StopEvent) -> str:
    if stop.given_up:
        return "given up"
    if stop.reason == "interrupted":
        return "cancelled" if stop.cause == "TERM" else "interrupted"
    return stop.reason


def _sentence(facts: Mapping[str, str | int | float]) -> str:
    text = f"runyard: {facts['id']} {facts['state']}, {facts['epoch']} of {facts['epochs']} epochs"
    if "top1" in facts:
        text += f", top-1 {facts['top1']:.2%}"
    if "clock_s" in facts:
        text += f", trained in {format_duration(float(facts['clock_s']))}"
    where = f" (job {facts['job']} on {facts['host']})" if "job" in facts else f" (on {facts['host']})"
    message = str(facts["message"]).removeprefix("given up: ")
    return text + where + (f": {message}" if message else "")


def _tell(run: Run, facts: Mapping[str, str | int | float]) -> list[str]:
    """Tell by every way that is set. Returns what went wrong, a line for each way."""
    notify, deadline = run.config.notify, time.monotonic() + NOTIFY_TIMEOUT_S
    problems: list[str] = []
    command = _start_command(notify.command, facts, problems) if notify.command is not None else None
    try:
        if (url := webhook_url(notify, os.environ, run.path.parent)) is not None:
            problems += _post(url, facts)
    except UserError as error:
        problems.append(str(error))
    if command is not None:
        try:
            if code := command.wait(max(0.1, deadline - time.monotonic())):
                problems.append(f"notify.command ended with {code}")
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(command.pid, signal.SIGKILL)
            problems.append(f"notify.command did not end within {NOTIFY_TIMEOUT_S:g} s, and was ended")
    return problems


def _start_command(
    command: str, facts: Mapping[str, str | int | float], problems: list[str]
) -> subprocess.Popen[bytes] | None:
    env = os.environ | {PREFIX + name.upper(): str(value) for name, value in facts.items()}
    try:
        return subprocess.Popen(
            ["/bin/sh", "-c", command], env=env, stdin=subprocess.DEVNULL, stdout=2, start_new_session=True
        )
    except OSError as error:
        problems.append(f"notify.command: {error.strerror}")
        return None


def _post(url: str, facts: Mapping[str, str | int | float]) -> list[str]:
    """Post to the webhook. The thread may be left behind: name resolution knows no time limit."""
    text = facts["text"]  # under the name that Slack reads, and the one that Discord does
    run = {name: value for name, value in facts.items() if name != "text"}
    body = json.dumps({"text": text, "content": text, "run": run}).encode()
    outcome: list[str | None] = []

    def work() -> None:
        try:
            headers = {"Content-Type": "application/json", "User-Agent": "runyard"}
            request = urllib.request.Request(url, body, headers)
            with route_to(url).opener().open(request, timeout=NOTIFY_TIMEOUT_S):
                outcome.append(None)
        except urllib.error.HTTPError as error:
            outcome.append(f"answered {error.code} {error.reason}")
        except urllib.error.URLError as error:
            outcome.append(f"was not reached ({error.reason})")
        except TimeoutError:
            pass
        except (OSError, http.client.HTTPException) as error:  # whose own words may contain the address
            outcome.append(f"was not reached ({type(error).__name__})")

    thread = threading.Thread(target=work, name="webhook", daemon=True)
    thread.start()
    thread.join(NOTIFY_TIMEOUT_S)
    problem = outcome[0] if outcome else f"did not answer within {NOTIFY_TIMEOUT_S:g} s"
    return [] if problem is None else [f"the webhook at {urlsplit(url).hostname} {problem}, {route_to(url).text}"]
