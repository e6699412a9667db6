"""The one way in which this program calls SLURM's commands: in a clean environment, and an error alone is no answer."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence

COMMAND_TIMEOUT_S = 30.0  # that a command may take; where the controller is away most give up by themselves before
RETRY_TIMEOUT_S = 120.0  # for which what changes the queue waits for a controller that is away
RETRY_INTERVAL_S = 5.0
# What people set for their own eyes or hands: it hides jobs, changes the form of answers, asks before it cancels.
USER_PREFERENCE_PREFIXES = ("SQUEUE_", "SACCT_", "SINFO_", "SCANCEL_", "SCONTROL_", "SLURM_TIME_FORMAT")
UNAVAILABLE_MESSAGES = ("timed out", "Unable to contact")


class QueryError(Exception):
    """A question that could not be asked, or got no answer. The message is one line."""


class SlurmUnavailable(QueryError):
    """The command was asked, and the controller is away or too busy to answer: another time it may."""


class SlurmRejected(QueryError):
    """The command was asked, and its answer was no."""


def clean_environment() -> dict[str, str]:
    """This process's, without what its user's habits or an allocation would add to what SLURM's commands are asked."""
    others = (
        (*USER_PREFERENCE_PREFIXES, "SLURM_") if "SLURM_JOB_ID" in os.environ else USER_PREFERENCE_PREFIXES
    )  # of the allocation we are in
    return {k: v for k, v in os.environ.items() if k == "SLURM_CONF" or not k.startswith(others)}


def run_query(
    *command: str, timeout_s: float | None = None, stdin: str = "", env: dict[str, str] | None = None,
    keep_open: Sequence[int] = (),
) -> str:  # fmt: skip
    """What the command printed on standard output.

    Args:
        timeout_s: How long it may take, ``ANSWER_S`` if None.
        env: What it gets for its environment, ``environment()`` if None.
        keep: Open files that it holds as long as it runs, also where this process ends before it.

    Raises:
        NoAnswer: it did not answer in time, or failed while the controller was away.
        Refused: it failed, and the controller was there; the message is what it said.
        CannotTell: there is no such command here.
    """
    env = clean_environment() if env is None else env
    timeout_s = COMMAND_TIMEOUT_S if timeout_s is None else timeout_s
    try:
        done = subprocess.run(command, env=env, input=stdin, capture_output=True, text=True, errors="replace",
                              timeout=timeout_s, pass_fds=keep_open)  # fmt: skip
    except FileNotFoundError:
        raise QueryError(f"no {command[0]} on this machine: ask on the cluster's login node") from None
    except subprocess.TimeoutExpired:
        raise SlurmUnavailable(f"{command[0]} did not answer within {timeout_s:g} s") from None
    if done.returncode:
        said = error_line(done.stderr or done.stdout)
        away = any(words in said for words in UNAVAILABLE_MESSAGES) or not _controller_is_up(env)
        raise SlurmUnavailable(f"{command[0]}: {said}") if away else SlurmRejected(said)
    return done.stdout


def run_with_retry(*command: str, wait_s: float | None = None, env: dict[str, str] | None = None) -> str:
    """As ``ask``, but while nobody answers again, for ``wait_s`` (``RETRY_TIMEOUT_S`` if None); a person is told so."""
    wait_s = RETRY_TIMEOUT_S if wait_s is None else wait_s
    began, told = time.monotonic(), False
    while True:
        try:
            return run_query(*command, env=env)
        except SlurmUnavailable as error:
            if time.monotonic() - began + RETRY_INTERVAL_S > wait_s:
                raise
            if not told:
                print(f"runyard: SLURM does not answer ({error}): asking again for {wait_s:g} s", file=sys.stderr)
                told = True
            time.sleep(RETRY_INTERVAL_S)


def error_line(said: str) -> str:
    """What a command of SLURM's says on standard error, without its own name before each line."""
    own = re.compile(r"^(s[a-z_]+( error)?: )?((error|fatal|allocation failure): )?")
    lines = [own.sub("", line.strip()) for line in said.splitlines()]
    return ", ".join(dict.fromkeys(filter(None, lines))) or "it said nothing"


def _controller_is_up(env: dict[str, str]) -> bool:
    """Of one that is away, commands say many things: scontrol requeue, "Unexpected message received"."""
    try:
        done = subprocess.run(["scontrol", "ping"], env=env, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S)
    except FileNotFoundError:  # nobody can tell
        return True
    except subprocess.TimeoutExpired:
        return False
    return "is UP" in done.stdout
