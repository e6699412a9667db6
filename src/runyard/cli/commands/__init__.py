"""One module per command: HELP, EXAMPLE, ``arguments(parser)`` and ``run(args)``, which returns the exit code.

A command imports its dependencies inside ``run``, because `runyard --help` imports every command module.
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
    "slurm",
    "profile",
    "doctor",
    "predict",
    "inspect",
    "settings",
    "completion",
)
# Commands whose output is for sharing: they keep the user's umask, but let nobody outside the group write.
SHARED_OUTPUT_COMMANDS = (
    "prepare",
    "predict",
    "export",
    "compare",
    "leaderboard",
    "profile",
    "slurm",  # a shell
)
