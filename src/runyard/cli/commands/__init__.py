"""One file per verb of the command line: HELP, EXAMPLE, ``arguments(parser)`` and ``run(args) -> exit code``.

A verb imports what it needs inside ``run``: `runyard --help` reads all these files.
"""

from __future__ import annotations

COMMANDS = (  # in the order of `runyard --help`
    "prepare",
    "submit",
    "sweep",
    "status",
    "logs",
    "cancel",
    "resume",
    "train",
    "create",
    "report",
    "compare",
    "leaderboard",
    "sync",
    "export",
    "rehearse",
    "doctor",
    "predict",
    "inspect",
    "settings",
    "completion",
)
SHARED_OUTPUT_COMMANDS = (
    "prepare",
    "predict",
    "export",
    "compare",
    "leaderboard",
)  # write what one may share, by the user's umask
