"""``runyard slurm``: a throwaway SLURM on this machine that stays up, to learn submit, status, logs and cancel."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import TYPE_CHECKING

from runyard.errors import ExitCode, UserError

if TYPE_CHECKING:
    from runyard.cluster.rehearsal.playground import Playground

HELP = "keep a throwaway SLURM on this machine, to try submit, status, logs and cancel"
EXAMPLE = "runyard slurm up    (then: runyard slurm shell -- runyard submit data=synthetic cluster=slurm)"
SLURM_DETAILS = """
up starts it, one for each user; it survives the terminal. shell opens your shell with SLURM's commands set to it, or
runs the command after `--` so. status says whether it is up. down ends it and its jobs, without time to save.
Its nodes share this machine's cores and have no GPU that works.
Exit code: 0; status 1 if it is not up; shell that of the command; 2 a wrong command, or no SLURM installed."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = f"{HELP}\n{SLURM_DETAILS}"
    parser.add_argument("action", choices=["up", "down", "shell", "status"])
    parser.add_argument("words", nargs="*", metavar="COMMAND", help="with shell, after `--`: run this and return")
    parser.add_argument("--nodes", type=int, metavar="N", help="with up: how many nodes (default: 2)")
    parser.add_argument("--json", action="store_true", help="with up, down and status: print the answer as JSON")


def run(args: argparse.Namespace) -> int:
    from runyard.cluster.rehearsal import playground

    command = args.argv[args.argv.index("--") + 1 :] if "--" in args.argv else []
    if args.words and (args.action != "shell" or not command):
        raise UserError(
            f"{args.words[0]}: runyard slurm {args.action} takes no such argument",
            "a command for its shell: runyard slurm shell -- COMMAND",
        )
    if args.nodes is not None and (args.action != "up" or not 1 <= args.nodes <= 64):
        raise UserError(f"--nodes {args.nodes}: expected 1 to 64", f"give it to up: {playground.UP}")
    if args.action == "shell":
        return _shell(command, playground.require_up().environment)
    started = ended = False
    if args.action == "up":
        found, started = playground.up(args.nodes or 2)
        message = _described(found) if started else f"it is up already: {_described(found)}"
        message += "; use it: runyard slurm shell; end it: runyard slurm down"
        if args.nodes not in (None, len(found.nodes)):
            raise UserError(f"--nodes {args.nodes}: it is up with {len(found.nodes)} nodes", "runyard slurm down first")
    elif args.action == "down":
        ended = playground.down()
        message = "SLURM is down" if ended else "no SLURM of yours was up"
    else:
        up = playground.find()
        message = f"{_described(up)}; {_jobs(up)}" if up else f"no SLURM of yours is up; start one: {playground.UP}"
    current = playground.find()
    if args.json:
        answer = {"up": current is not None, "started": started, "ended": ended}
        details = {} if current is None else {"nodes": current.nodes, "pid": current.pid, "since": current.since}
        conf = {} if current is None else {"slurm_conf": current.environment["SLURM_CONF"]}
        print(json.dumps(answer | details | conf))
    else:
        print(message)
    return ExitCode.FAILED if args.action == "status" and current is None else ExitCode.DONE


def _described(found: Playground) -> str:
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(found.since))
    return f"a SLURM of {len(found.nodes)} nodes, up since {since} (process {found.pid})"


def _jobs(up: Playground) -> str:
    states = up.sandbox.run("squeue", "--noheader", "--array", "--format=%T", check=False).split()
    return f"{states.count('RUNNING')} jobs running, {states.count('PENDING')} waiting"


def _shell(command: list[str], environment: dict[str, str]) -> int:
    """Become the user's shell, or ``command``, in ``environment``."""
    shell = os.environ.get("SHELL") or "/bin/sh"
    if not command:
        print(
            f"runyard: {shell} on a throwaway SLURM: sinfo, squeue, runyard submit ... cluster=slurm, runyard status; "
            "exit leaves it up",
            file=sys.stderr,
            flush=True,
        )
    words = command or [shell]
    try:
        os.execvpe(words[0], words, environment)
    except OSError as error:
        raise UserError(f"{words[0]}: {error.strerror}", "name a program that is on PATH") from None
