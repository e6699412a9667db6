"""How a task's process begins: ``python -m runyard.cluster.job.task ARGUMENTS`` becomes ``python ARGUMENTS``.

In a session of its own, since W&B's helper process, its child, must not hear a terminal's Ctrl-C. And with requests to
stop held back until training can answer them by saving: while Python still imports, they would end the process.
"""

from __future__ import annotations

import os
import signal
import sys

from runyard.training.stop_signals import STOP_SIGNALS

if __name__ == "__main__":
    if os.getpgrp() != os.getpid():  # SLURM's tasks lead groups of their own already
        os.setsid()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
