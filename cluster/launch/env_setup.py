"""The user's own shell commands in a job (``cluster.env_setup``): one that fails ends it, and what follows says why."""

from __future__ import annotations

import shlex

SETUP_FAILED = 2  # the batch script's exit code: a mistake that the output names


def checked_lines(lines: list[str], record: str = "") -> list[str]:
    """Return the lines of bash that run ``lines``, each in the script's own shell.

    A line that fails or exits is printed with its exit code. One that may fail says so itself: ``LINE || true``.

    Args:
        record: A command that also records this; it finds the message in ``$setup_message``.
    """
    if not lines:
        return []
    message = 'setup_message="cluster.env_setup ended the job with exit code $?: $setup_line"'
    failed = "; ".join(filter(None, [message, 'echo "runyard: $setup_message" >&2', record, f"exit {SETUP_FAILED}"]))
    script = [f"setup_failed() {{ {failed}; }}", "setup_ended() { [ $1 -eq 0 ] || exit $1; }"]
    script += ["trap setup_failed EXIT", "trap 'trap - EXIT; exit 143' TERM  # cancelled"]
    for line in lines:
        script += [f"setup_line={shlex.quote(line)}", line, "setup_ended $?"]
    return [*script, "trap - EXIT TERM"]


def journal_command(run: str) -> str:
    """Return the ``record`` that writes the message into the journal of ``run``, a word of bash."""
    row = '\\n{"event": "stop", "t": %s, "reason": "failed", "user_error": true, "retry": false, "message": "%s"}\\n'
    escape = 'setup_message=${setup_message//\\\\/\\\\\\\\}; setup_message=${setup_message//\\"/\\\\\\"}'
    return f'{escape}; printf {shlex.quote(row)} $(date +%s.%N) "$setup_message" >>{run}/metrics.jsonl'
