"""The errors whose message is the explanation, and the exit codes. Nothing else reads a message of ours."""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """How a command, a task of a job or a batch script ends. docs/states.md says what each means to whom."""

    DONE = 0
    FAILED = 1
    USER_ERROR = 2
    REQUEUE = 75  # the job goes back into the queue (sysexits.h calls it a temporary failure)
    INTERRUPTED = 130  # as a shell reports SIGINT


class ExplainedError(Exception):
    """An error that the command line prints as one line, without a traceback. The message is "problem; fix".

    It is always printable: characters that cannot be printed are escaped.

    Attributes:
        problem: The setting or file, what was given, and what is wrong with it.
        fix: What to give instead, or the command or setting that fixes it; "" if ``problem`` says it all.
        exit_code: What the process that it ends returns.
    """

    exit_code = ExitCode.FAILED

    def __init__(self, problem: str, fix: str = "") -> None:
        self.problem, self.fix = _printable(problem), _printable(fix)
        super().__init__(f"{self.problem}; {self.fix}" if fix else self.problem)


class UserError(ExplainedError):
    """An error that the user can fix."""

    exit_code = ExitCode.USER_ERROR


class TrainingFailed(ExplainedError):
    """The training cannot go on here, and what was saved is still good."""


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
