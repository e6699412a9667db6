"""Starts a job's tasks on this machine: ``python controller.py FOLDER`` starts one per rank, and ends when all have.

It does what SLURM's srun does with --kill-on-bad-exit: once a rank has failed, no rank that hangs is waited for without
end. The ranks read of the failure in FOLDER's ``ended-*.jsonl``, including those that have not joined the others yet.
``launch.local`` starts this program from the checkout; its tasks run the run's own snapshot of the code.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from runyard import known_causes, out_of_memory
from runyard.cluster.job.alert import tell_end
from runyard.cluster.job.task_ends import last_line
from runyard.errors import UserError
from runyard.runs import journal, lease
from runyard.runs.events import StopEvent
from runyard.runs.run import Run
from runyard.runs.state import JournalState

FORWARDED_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)  # each asks the tasks to save and stop
TASK_POLL_S = 0.05
FAILURE_GRACE_S = 30.0  # for the other ranks, once one has failed
CLOSE_TIMEOUT_S = 660.0  # for rank 0 once it has written the run's end: its W&B record may take that long to close
STACK_DUMP_S = 1.0  # for a task to print its stack
ERROR_TAIL_BYTES = 4096


class Controller:
    """The tasks of one job, whose job id is this process's id.

    Args:
        folder: The directory of the tasks' logs, in the run's directory.
        command: What each task runs.
        ranks: The number of tasks.
        limit_s: The job's time limit, in seconds.
        warning_s: Seconds before the time limit at which the tasks are sent SIGUSR2, as SLURM does.
    """

    def __init__(self, folder: Path, command: list[str], ranks: int, limit_s: float, warning_s: float) -> None:
        self._folder, self._command, self._ranks = folder, command, ranks
        self._limit_s, self._warning_s = limit_s, warning_s
        self._job, self._start, self._began = str(os.getpid()), secrets.token_hex(4), time.time()
        self._tasks: list[subprocess.Popen[bytes]] = []
        self._failures: dict[int, str] = {}  # by rank, how it failed
        self._killed: set[int] = set()  # ranks that did not end by themselves
        self._stop_signal: signal.Signals | None = None
        self._oom = out_of_memory.OomMonitor()
        self._reader, self._journal = journal.JournalReader(folder.parent / "metrics.jsonl"), JournalState()

    def run(self) -> None:
        """Start the tasks and wait until they have ended."""
        for number in FORWARDED_SIGNALS:
            signal.signal(number, self._forward_signal)
        for rank in range(self._ranks):
            self._tasks.append(self._start_task(rank))
        # Blocked until now, so that each task inherits the block and keeps it until it can answer by saving.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED_SIGNALS)
        self._watch()
        self._record_end()
        with contextlib.suppress(UserError):  # a damaged record: its next reader says so
            tell_end(Run.open(self._folder.parent), "; ".join(self._failures.values()), given_up=False)
        self._ended_file.unlink(missing_ok=True)

    def _start_task(self, rank: int) -> subprocess.Popen[bytes]:
        rank_text = str(rank)
        rank_variables = {
            "SUBMITIT_LOCAL_JOB_ID": self._job,
            "SUBMITIT_LOCAL_LOCALID": rank_text,
            "SUBMITIT_LOCAL_GLOBALID": rank_text,
        }
        env = os.environ | rank_variables | {"RUNYARD_START": self._start}
        with open(self._log(rank, "out"), "a") as out, open(self._log(rank, "err"), "a") as err:
            return subprocess.Popen(self._command, env=env, stdout=out, stderr=err)

    def _forward_signal(self, number: int, frame: FrameType | None) -> None:
        self._stop_signal = signal.Signals(number)
        self._send(self._stop_signal)

    def _send(self, number: signal.Signals) -> None:
        for task in self._tasks:
            with contextlib.suppress(ProcessLookupError):
                task.send_signal(number)

    def _watch(self) -> None:
        """Wait until all tasks have ended. Kill those that outlast a failed rank's grace time or the time limit."""
        start_time, failed_at, warned = time.monotonic(), 0.0, False
        while any(task.poll() is None for task in self._tasks):
            now = time.monotonic()
            self._note_ended()
            failed_at = failed_at or (now if self._failures else 0.0)
            if now - start_time > self._limit_s - self._warning_s and not warned:
                warned = True
                self._send(signal.SIGUSR2)
            closing = self._tasks[0].poll() is None and self._end_recorded()
            grace_over = failed_at and now - failed_at > (CLOSE_TIMEOUT_S if closing else FAILURE_GRACE_S)
            if grace_over or now - start_time > self._limit_s:
                self._kill_hung()
            time.sleep(TASK_POLL_S)
        self._note_ended()

    def _note_ended(self) -> None:
        for rank, task in enumerate(self._tasks):
            if (code := task.poll()) and rank not in self._failures:
                self._failures[rank] = self._exit_text(rank, code)
                with open(self._ended_file, "a") as ended_file:
                    ended_file.write(json.dumps({"rank": rank, "message": self._failures[rank]}) + "\n")

    def _exit_text(self, rank: int, code: int) -> str:
        if code < 0:
            oom_message = self._oom.message()
            exit_text = ", ".join(filter(None, [known_causes.exit_text(known_causes.describe_exit(code)), oom_message]))
            return f"of {self._ranks} ended without a word: {exit_text}"
        tail = self._tail(rank)
        errors = [line.removeprefix("runyard: ") for line in tail.splitlines() if line.startswith("runyard: ")]
        error = errors[-1] if errors else last_line(tail)
        return f"ended with {code}{error and ': ' + error}"

    def _kill_hung(self) -> None:
        """Have the remaining tasks print their stacks, then kill them. The kernel's view of them goes to their logs."""
        hung = [(rank, task) for rank, task in enumerate(self._tasks) if task.poll() is None]
        for _, task in hung:
            task.send_signal(signal.SIGQUIT)  # StopFlag has its stack printed
        time.sleep(STACK_DUMP_S)
        for rank, task in hung:
            self._failures = {rank: f"did not end, and was killed; it was {_process_state(task.pid)}"} | self._failures
            with open(self._log(rank, "err"), "a") as err:
                err.write(f"runyard: rank {rank} {self._failures[rank]}\n")
            self._killed.add(rank)
            task.kill()
            task.wait()

    def _record_end(self) -> None:
        """Record in the journal how the run ended, if its own rank 0 could not."""
        run = self._folder.parent
        if self._end_recorded() or not self._failures or lease.lease_holder(run) is not None:
            return
        failures = list(self._failures.items())
        rank, failure = failures[0]  # a rank that hung, else the first that failed
        if (first_end := next((end for end in failures if end[0] not in self._killed), None)) and self._killed:
            failure += f"; before that, rank {first_end[0]} {first_end[1]}"  # what hung may have waited for that rank
        stopped = self._stop_signal is signal.SIGTERM
        with contextlib.suppress(OSError):
            journal.Journal(run / "metrics.jsonl").write(
                "stop", reason="interrupted" if stopped else "failed", message=f"rank {rank} {failure}", rank=rank,
                **({"cause": "TERM"} if stopped else {"user_error": False, "retry": True}),
            )  # fmt: skip

    def _end_recorded(self) -> bool:
        for event in self._reader.new_events():
            self._journal.advance(event)
        last = self._journal.last
        return isinstance(last, StopEvent) and last.t >= self._began

    @property
    def _ended_file(self) -> Path:
        return self._folder / f"ended-{self._job}-{self._start}.jsonl"

    def _log(self, rank: int, kind: str) -> Path:
        return self._folder / f"{self._job}_{rank}_log.{kind}"  # as submitit names them

    def _tail(self, rank: int) -> str:
        with open(self._log(rank, "err"), "rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - ERROR_TAIL_BYTES))
            return log.read().decode(errors="replace")


def _process_state(pid: int) -> str:
    """Return a process's state as the kernel reports it, and the kernel function it waits in where that is readable.

    psutil knows no such function, which is what tells a hung network from a hung disk.
    """
    try:
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
        )
        wait_channel = Path(f"/proc/{pid}/wchan").read_text().strip("0\n")
    except OSError:
        return "already gone"
    return f"in state {status.get('State', '?').strip()}{', in ' + wait_channel if wait_channel else ''}"


if __name__ == "__main__":
    env = os.environ
    Controller(
        Path(sys.argv[1]),
        shlex.split(env["SUBMITIT_LOCAL_COMMAND"]),
        int(env["SUBMITIT_LOCAL_NTASKS"]),
        float(env["SUBMITIT_LOCAL_TIMEOUT_S"]),
        float(env["SUBMITIT_LOCAL_SIGNAL_DELAY_S"]),
    ).run()
