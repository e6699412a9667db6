"""Who holds a run's lease, and whether another may take it: decisions, without the files (``lease`` has those)."""

from __future__ import annotations

import enum
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from runyard.slurm_client import QueryError, run_query

LEASE_TIMEOUT_S = (
    60.0  # after which a holder that nothing else is known of counts as gone: several beats, and a slow disk
)
SQUEUE_TIMEOUT_S = 10.0  # how long a controller may take to answer
# what squeue calls a job none of whose processes is meant to run; a start that was requeued is PENDING
NOT_RUNNING_STATES = {"PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "COMPLETED", "CANCELLED", "FAILED",
                      "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY"}  # fmt: skip
SUSPENDED_STATES = {"SUSPENDED", "STOPPED"}  # silent, and to go on


@dataclass(frozen=True)
class LeaseHolder:
    """Who holds a lease, as its file says. All is unknown of a file that no program of this version wrote."""

    token: str = ""
    host: str = ""
    boot: str = ""  # names one start of one kernel: hosts may share a name
    pid: int = 0
    cluster: str | None = None
    job: str | None = None  # "12"; "12_4" of an array; None outside SLURM
    restarts: int = 0
    locked: bool = False  # whether it could lock the file

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
    """A lease as it was found. Its age is by the file system's own time: the clocks of two nodes may differ."""

    holder: LeaseHolder
    mtime: float
    lock_is_free: bool

    def age_s(self, now: float) -> float:
        return max(now - self.mtime, 0.0)

    def last_seen_text(self, now: float) -> str:
        return f"{self.holder.description}, heard of {self.age_s(now):.0f} s ago"

    def on_this_node(self, me: LeaseHolder) -> bool:
        """On this node, and locked: then the kernel knows whether its holder lives."""
        return self.holder.locked and (self.holder.host, self.holder.boot) == (me.host, me.boot)

    def holder_died(self, me: LeaseHolder) -> bool:
        return self.on_this_node(me) and self.lock_is_free


class LeaseDecision(enum.Enum):
    TAKE = enum.auto()
    REFUSE = enum.auto()
    WAIT = enum.auto()


def decide_lease(
    found: ObservedLease | None, first: ObservedLease | None, me: LeaseHolder, now: float
) -> LeaseDecision:
    """Whether ``me`` may take the lease that was ``found``, ``first`` being what was there when the waiting began."""
    if found is None or found.holder_died(me):
        return LeaseDecision.TAKE
    other, silent = found.holder, found.age_s(now) > LEASE_TIMEOUT_S
    if other.same_job(me) and other.restarts != me.restarts:  # SLURM restarts a job only when its earlier start is over
        return LeaseDecision.TAKE if other.restarts < me.restarts else LeaseDecision.REFUSE
    if other.job is not None and not other.same_job(me) and me.cluster in (None, other.cluster):
        state = job_state(other.job)
        if state == "" or (state is not None and silent and state not in SUSPENDED_STATES):
            return LeaseDecision.TAKE
        if state is not None:
            return LeaseDecision.WAIT if state == "COMPLETING" else LeaseDecision.REFUSE
    if found.on_this_node(me):
        return LeaseDecision.REFUSE
    if silent:
        return LeaseDecision.TAKE
    heartbeat_moved = first is None or (first.holder, first.mtime) != (found.holder, found.mtime)
    return LeaseDecision.REFUSE if heartbeat_moved else LeaseDecision.WAIT


def job_state(job: str) -> str | None:
    """What SLURM calls a job: its state, "" if none of its processes is meant to run, None if SLURM does not answer."""
    try:
        said = run_query(
            "squeue", "--noheader", f"--jobs={job}", "--states=all", "--format=%T", timeout_s=SQUEUE_TIMEOUT_S
        )
    except QueryError as error:
        return "" if "Invalid job id" in str(error) else None
    return next((state for state in said.split() if state not in NOT_RUNNING_STATES), "")
