"""Waits for what passes by itself before a job can be submitted, and says how long it has waited."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from runyard.cluster.launch.refusals import JobLimitReached, SubmissionDelayed

_T = TypeVar("_T")
TRY_INTERVAL_S = 30.0  # between two attempts: a limit on jobs passes in minutes, and sbatch costs the controller time
FIRST_REPORT_S, LONGEST_REPORT_S = 60.0, 3600.0


class Waiting:
    """A wait for a place on the queue. ``report`` gets a line at its start, and after 1, 2, 4, ... minutes."""

    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._start: float | None = None
        self._next_try = self._next_report = 0.0

    def until_accepted(self, attempt: Callable[[], _T]) -> _T:
        """Repeat ``attempt`` until it is not refused for a reason that passes, and return its result.

        Raises:
            UserError: it was refused for another reason.
        """
        while True:
            try:
                result = attempt()
            except SubmissionDelayed as error:
                self.refused(error)
                time.sleep(TRY_INTERVAL_S)
            else:
                self.accepted()
                return result

    @property
    def is_due(self) -> bool:
        """Whether it is time for another attempt."""
        return self._start is None or time.monotonic() >= self._next_try

    def refused(self, error: SubmissionDelayed) -> None:
        """Note that an attempt was refused."""
        now = time.monotonic()
        if self._start is None:
            self._start = self._next_report = now
        self._next_try = now + TRY_INTERVAL_S
        waited_s = now - self._start
        if now >= self._next_report:
            self._next_report = now + min(max(FIRST_REPORT_S, waited_s), LONGEST_REPORT_S)
            self._report(f"waiting ({round(waited_s / 60)} min so far): {error.problem}")

    def accepted(self) -> None:
        """Note that an attempt was accepted: the wait is over."""
        if self._start is not None:
            self._report(f"accepted after {round((time.monotonic() - self._start) / 60)} min")
        self._start = None


def in_parts(runs: slice, enqueue: Callable[[slice], Sequence[_T]]) -> Iterator[_T]:
    """Enqueue ``runs`` in as large parts as the queue takes now, and yield the jobs of each part once it is on it.

    Raises:
        SubmissionDelayed: it takes no more now.
        UserError: a part was refused for another reason.
    """
    done, size = runs.start, runs.stop - runs.start
    while done < runs.stop:
        part = slice(done, min(done + size, runs.stop))
        try:
            jobs = enqueue(part)
        except JobLimitReached:
            size = (part.stop - part.start) // 2
            if not size:
                raise
        else:
            done = part.stop
            yield from jobs
