"""Runs SLURM commands in a clean environment and tells an unavailable controller from a rejected request."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from runyard.errors import ExplainedError

COMMAND_TIMEOUT_S = 30.0  # limit of one command; without a controller most commands give up earlier by themselves
RETRY_TIMEOUT_S = 120.0  # how long commands that change the queue wait for an unavailable controller
RETRY_INTERVAL_S = 5.0
# Personal preferences of a user: they hide jobs, change the output format, or ask before canceling.
USER_PREFERENCE_PREFIXES = ("SQUEUE_", "SACCT_", "SINFO_", "SCANCEL_", "SCONTROL_", "SLURM_TIME_FORMAT")
UNAVAILABLE_MESSAGES = ("timed out", "Unable to contact")
JOB_ENDED_MESSAGES = ("Invalid job id", "already completing")


class QueryError(ExplainedError):
    """A SLURM command could not be run, or gave no usable answer. The message is one line."""


class SlurmUnavailable(QueryError):
    """The controller is unavailable or too busy to answer; a retry may succeed."""


class SlurmRejected(QueryError):
    """The controller answered, and rejected the request."""


class JobEnded(SlurmRejected):
    """The request was about a job that has ended or is just ending."""


def clean_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return ``environment`` without variables that change SLURM commands: user preferences, allocation.

    Args:
        environment: This process's if None.
    """
    environment = os.environ if environment is None else environment
    excluded_prefixes = (
        (*USER_PREFERENCE_PREFIXES, "SLURM_") if "SLURM_JOB_ID" in environment else USER_PREFERENCE_PREFIXES
    )  # SLURM_*: of the allocation that this process runs in
    return {k: v for k, v in environment.items() if k == "SLURM_CONF" or not k.startswith(excluded_prefixes)}


def run_query(
    *command: str, timeout_s: float | None = None, stdin: str = "", env: dict[str, str] | None = None,
    keep_open: Sequence[int] = (), with_stderr: bool = False,
) -> str:  # fmt: skip
    """Run a SLURM command and return its standard output.

    Args:
        timeout_s: Time limit in seconds, ``COMMAND_TIMEOUT_S`` if None.
        env: Its environment, ``clean_environment()`` if None.
        with_stderr: Also return its error output, where sbatch --test-only prints its answer.
        keep_open: Descriptors that it keeps open as long as it runs, even if this process ends first.

    Raises:
        SlurmUnavailable: it did not answer in time, or failed while the controller was unavailable.
        SlurmRejected: it failed although the controller was up; the message is the command's own.
        JobEnded: the same, because of a job that it does not know any more.
        QueryError: there is no such command on this machine.
    """
    env = clean_environment() if env is None else env
    timeout_s = COMMAND_TIMEOUT_S if timeout_s is None else timeout_s
    deadline = time.monotonic() + timeout_s
    try:
        result = subprocess.run(command, env=env, input=stdin, capture_output=True, text=True, errors="replace",
                                timeout=timeout_s, pass_fds=keep_open)  # fmt: skip
    except FileNotFoundError:
        raise QueryError(f"no {command[0]} on this machine: ask on the cluster's login node") from None
    except subprocess.TimeoutExpired:
        raise SlurmUnavailable(f"{command[0]} did not answer within {timeout_s:g} s") from None
    if result.returncode:
        message = error_line(result.stderr or result.stdout)
        if any(text in message for text in UNAVAILABLE_MESSAGES) or not _controller_is_up(env, deadline):
            raise SlurmUnavailable(f"{command[0]}: {message}")
        raise JobEnded(message) if any(text in message for text in JOB_ENDED_MESSAGES) else SlurmRejected(message)
    return result.stdout + result.stderr if with_stderr else result.stdout


def run_with_retry(
    *command: str, wait_s: float | None = None, timeout_s: float | None = None, env: dict[str, str] | None = None
) -> str:
    """Run a SLURM command as ``run_query`` does, but retry while the controller is unavailable, and print that it does.

    It retries for ``wait_s`` seconds, ``RETRY_TIMEOUT_S`` if None.
    """
    wait_s = RETRY_TIMEOUT_S if wait_s is None else wait_s
    start_time, reported = time.monotonic(), False
    while True:
        try:
            return run_query(*command, timeout_s=timeout_s, env=env)
        except SlurmUnavailable as error:
            if time.monotonic() - start_time + RETRY_INTERVAL_S > wait_s:
                raise
            if not reported:
                print(f"runyard: SLURM does not answer ({error}): retrying for {wait_s:g} s", file=sys.stderr)
                reported = True
            time.sleep(RETRY_INTERVAL_S)


def error_line(output: str) -> str:
    """Return the error output of a SLURM command as one line, without the command's name before each line."""
    prefix = re.compile(r"^(s[a-z_]+( error)?: )?((error|fatal|allocation failure): )?")
    lines = [prefix.sub("", line.strip()) for line in output.splitlines()]
    return ", ".join(dict.fromkeys(filter(None, lines))) or "no error message"


def _controller_is_up(env: dict[str, str], deadline: float) -> bool:
    """Ask the controller itself: when it is down, commands give many different errors, not all of which say so."""
    left_s = max(1.0, deadline - time.monotonic())
    try:
        result = subprocess.run(["scontrol", "ping"], env=env, capture_output=True, text=True, timeout=left_s)
    except FileNotFoundError:  # without scontrol it cannot be known
        return True
    except subprocess.TimeoutExpired:
        return False
    return "is UP" in result.stdout
