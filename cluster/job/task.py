"""Starts a task's process: ``python -m runyard.cluster.job.task ARGUMENTS`` becomes ``python ARGUMENTS``.

The process gets a session of its own, because its child, W&B's helper process, must not receive a terminal's Ctrl-C.
Signals that ask it to stop stay blocked until training can answer them by saving: they would end the process while
Python still imports. A module (``-m MODULE``) is run by ``runyard.quick_exit``.
"""

from __future__ import annotations

import os
import signal
import sys

from runyard.surroundings import settle
from runyard.training.stop_signals import STOP_SIGNALS

if __name__ == "__main__":
    if os.getpgrp() != os.getpid():  # SLURM's tasks already lead groups of their own
        os.setsid()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    settle()
    arguments = sys.argv[1:]
    if "-m" in arguments:
        arguments.insert(arguments.index("-m") + 1, "runyard.quick_exit")
    os.execv(sys.executable, [sys.executable, *arguments])
