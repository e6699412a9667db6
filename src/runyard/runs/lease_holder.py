"""Decides whether a process may take over a run's lease. The files are handled by ``lease``."""

from __future__ import annotations

import enum
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from runyard.slurm_client import JobEnded, QueryError, run_query

# a silent holder counts as gone after this long if nothing else is known of it: several heartbeats, and a slow disk
LEASE_TIMEOUT_S = 60.0
SQUEUE_TIMEOUT_S = 10.0  # how long a controller may take to answer
# squeue's states of a job that should have no running process; a start that was requeued is PENDING
NOT_RUNNING_STATES = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "COMPLETED", "CANCELLED", "FAILED",
                      "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY"}  # fmt: skip
SUSPENDED_STATES = {"SUSPENDED", "STOPPED"}  # silent, but will continue


@dataclass(frozen=True)
class LeaseHolder:
    """The holder of a lease, as its file names it. All fields keep their defaults if the file has another format."""

    token: str = ""
    host: str = ""
    boot: str = ""  # the kernel's boot id: hosts may share a name
    pid: int = 0
    cluster: str | None = None
    job: str | None = None  # "12", or "12_4" in an array; None outside SLURM
    restarts: int = 0
    locked: bool = False  # whether the holder could lock the file

    @classmethod
    def this_process(cls, env: Mapping[str, str]) -> LeaseHolder:
        array = env.get("SLURM_ARRAY_JOB_ID")
        return cls(
            token=secrets.token_hex(8),
            host=os.uname().nodename,
            boot=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            pid=os.getpid(),
            cluster=env.get("SLURM_CLUSTER_NAME"),
            job=f"{array}_{env['SLURM_ARRAY_TASK_ID']}" if array else env.get("SLURM_JOB_ID"),
            restarts=int(env.get("SLURM_RESTART_COUNT", "0")),
        )

    @classmethod
    def from_bytes(cls, content: bytes) -> LeaseHolder:
        try:
            return cls(**json.loads(content))
        except (ValueError, TypeError):
            return cls()

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @property
    def description(self) -> str:
        restart = f", restart {self.restarts}" if self.restarts else ""
        job = f" (job {self.job}{restart})" if self.job else ""
        return f"process {self.pid} on {self.host}{job}" if self.token else "another process"

    def same_job(self, other: LeaseHolder) -> bool:
        return self.job is not None and (self.job, self.cluster) == (other.job, other.cluster)


@dataclass(frozen=True)
class ObservedLease:
    """A lease as it was read. Its age is by the file system's time, since the clocks of two nodes may differ."""

    holder: LeaseHolder
    mtime: float
    lock_is_free: bool

    def age_s(self, now: float) -> float:
        return max(now - self.mtime, 0.0)

    def last_seen_text(self, now: float) -> str:
        return f"{self.holder.description}, last seen {self.age_s(now):.0f} s ago"

    def on_this_node(self, me: LeaseHolder) -> bool:
        """Return whether the holder is on this node and locked the file: then the lock shows whether it is alive."""
        return self.holder.locked and (self.holder.host, self.holder.boot) == (me.host, me.boot)

    def holder_died(self, me: LeaseHolder) -> bool:
        return self.on_this_node(me) and self.lock_is_free


class LeaseDecision(enum.Enum):
    TAKE = enum.auto()
    REFUSE = enum.auto()
    WAIT = enum.auto()


def decide_lease(
    observed: ObservedLease | None, first: ObservedLease | None, me: LeaseHolder, now: float
) -> LeaseDecision:
    """Decide whether ``me`` may take the ``observed`` lease. ``first`` is the lease as it was when the wait began."""
    if observed is None or observed.holder_died(me):
        return LeaseDecision.TAKE
    other, silent = observed.holder, observed.age_s(now) > LEASE_TIMEOUT_S
    if other.same_job(me) and other.restarts != me.restarts:  # SLURM restarts a job only when its earlier start is over
        return LeaseDecision.TAKE if other.restarts < me.restarts else LeaseDecision.REFUSE
    if other.job is not None and not other.same_job(me) and me.cluster in (None, other.cluster):
        state = job_state(other.job)
        if state == "" or (state is not None and silent and state not in SUSPENDED_STATES):
            return LeaseDecision.TAKE
        if state is not None:
            return LeaseDecision.WAIT if state == "COMPLETING" else LeaseDecision.REFUSE
    if observed.on_this_node(me):
        return LeaseDecision.REFUSE
    if silent:
        return LeaseDecision.TAKE
    heartbeat_moved = first is None or (first.holder, first.mtime) != (observed.holder, observed.mtime)
    return LeaseDecision.REFUSE if heartbeat_moved else LeaseDecision.WAIT


def job_state(job: str) -> str | None:
    """Return SLURM's state of a job: "" if none of its processes should be running, None if SLURM does not answer."""
    try:
        output = run_query(
            "squeue", "--noheader", f"--jobs={job}", "--states=all", "--format=%T", timeout_s=SQUEUE_TIMEOUT_S
        )
    except JobEnded:
        return ""
    except QueryError:
        return None
    return next((state for state in output.split() if state not in NOT_RUNNING_STATES), "")
