"""``python -m runyard.quick_exit MODULE ARGUMENTS`` is ``python -m MODULE ARGUMENTS``, without Python's teardown.

Once a rank has loaded torch, tearing the interpreter and its libraries down costs a CPU second: on a busy node a minute
of the time that a preemption leaves. A library's thread that still runs may also abort the process in it, or hang.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import runpy
import sys
from collections.abc import Callable


def run_without_teardown(program: Callable[[], object]) -> None:
    """Run ``program``. Once this process has done all that Python promises at an exit, it ends with the same exit code.

    That is: threads that are not daemons have ended, exit handlers have run, and output is flushed. Handlers that were
    registered before this call do not run.
    """
    exit_codes: list[int] = []

    @atexit.register  # the first to be registered is the last to run
    def end() -> None:
        for code in exit_codes:
            with contextlib.suppress(OSError, ValueError):  # output that cannot be written: Python itself says so
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

    try:
        program()
        exit_codes.append(0)
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            exit_codes.append(error.code or 0)
        raise
    except Exception:  # Python prints it before it calls the handlers
        exit_codes.append(1)
        raise


if __name__ == "__main__":
    del sys.argv[0]
    run_without_teardown(lambda: runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True))
