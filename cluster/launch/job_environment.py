"""What a job does before Python: the user's own commands (``cluster.env_setup``), and what a container is shown."""

from __future__ import annotations

import os
import shlex
import sys

from runyard.config.schema import Config
from runyard.errors import UserError
from runyard.installation import IN_CHECKOUT, SCRIPTS

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
    """Return the ``record`` that writes the message into the journals of ``run``, a word of bash with tabs between.

    A run that has finished keeps its end: an earlier start of its job, or of its chain, finished it.
    """
    row = '\\n{"event": "stop", "t": %s, "reason": "failed", "user_error": true, "retry": false, "message": "%s"}\\n'
    escape = 'setup_message=${setup_message//\\\\/\\\\\\\\}; setup_message=${setup_message//\\"/\\\\\\"}'
    unfinished = """! grep -qs '^{"event": "stop".*"reason": "finished"' "$run/metrics.jsonl\""""
    write = f'printf {shlex.quote(row)} $(date +%s.%N) "$setup_message" >>"$run/metrics.jsonl"'
    return f"{escape}; tr '\\t' '\\n' <<<{run} | while IFS= read -r run; do if {unfinished}; then {write}; fi; done"


def bound_folders(config: Config) -> list[str]:
    """Return the folders that a task in a container must see: the program's, the runs', the data's, node-local ones.

    Each is given by its name and, where links are on the way, by the place that it leads to. ``cluster.stage_data`` may
    begin with a variable, which only the node knows.
    """
    program = str(SCRIPTS.parent) if IN_CHECKOUT else sys.prefix
    named = [os.path.abspath(folder) for folder in (program, config.runs_dir, config.data.root)]
    stage = [config.cluster.stage_data] if config.cluster.stage_data else []
    return list(dict.fromkeys([*named, *map(os.path.realpath, named), *stage]))


def bind_line(config: Config, *more: str) -> str:
    """Return the line after which ``slurm/python.sh`` binds these folders, and ``more``, in an Apptainer container."""
    words = [f'"{f}"' if f.startswith("$") else shlex.quote(f) for f in [*bound_folders(config), *more]]
    return f"export RUNYARD_BIND={':'.join(words)}"


def container_options(config: Config) -> list[str]:
    """Return srun's options of pyxis for ``cluster.container_image``; none without it.

    Raises:
        UserError: a folder cannot be mounted by its name.
    """
    if config.cluster.container_image is None:
        return []
    folders = bound_folders(config)
    if odd := next((f for f in folders if f.startswith("$") or {",", ":"} & set(f)), None):
        raise UserError(
            f"cluster.container_image: {odd} cannot be mounted by that name", "name a path without $ , and :"
        )
    return [
        f"--container-image={config.cluster.container_image}",
        f"--container-mounts={','.join(f'{f}:{f}' for f in folders)}",
    ]
