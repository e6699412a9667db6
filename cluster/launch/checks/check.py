"""A check of a submission and its result. ``submit`` stops at the first failure, ``doctor`` shows all results."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from runyard.cluster.slurm.cluster_info import ClusterInfo, Partition
from runyard.cluster.slurm.estimate import StartEstimate, estimate_start
from runyard.config.schema import Config
from runyard.errors import UserError
from runyard.files import file_fix
from runyard.slurm_client import QueryError


@dataclass(frozen=True)
class CheckContext:
    """A submission to be checked.

    Attributes:
        config: The configuration of the run, or of a sweep's first point.
        tasks_per_node: Processes of a run on each machine.
        prepare_command: The command that would prepare its data.
        needs_data: Whether the data must exist now.
        sweep_size: Runs in the sweep; 1 without one.
        script: Returns the batch script with stand-ins for names that do not exist yet; None without SLURM.
        after: The job that has to succeed before this one starts, or has to end or fail, as ``SbatchJob`` takes it.
    """

    config: Config
    tasks_per_node: int
    prepare_command: str
    needs_data: bool = True
    sweep_size: int = 1
    script: Callable[[], str] | None = None
    after: str | None = None

    @cached_property
    def cluster_info(self) -> ClusterInfo:
        return ClusterInfo()

    @cached_property
    def expected_start(self) -> StartEstimate | None:
        """When sbatch would start the script, None if it takes it and does not say.

        Raises:
            SlurmRejected: it would refuse the script.
            QueryError: there is no script, or no answer.
        """
        if self.script is None:
            raise QueryError("there is no batch script")
        return estimate_start(self.script())

    @property
    def tasks_on_node(self) -> int:
        """Processes of one job on each machine: of one run, or of several that share the job."""
        return self.tasks_per_node * min(self.sweep_size, self.config.cluster.runs_per_task)

    @property
    def asked_partitions(self) -> list[str]:
        named = self.config.cluster.partition
        return [] if named is None else named.split(",")

    @property
    def partitions(self) -> list[Partition]:
        """The requested partitions, or all if none is named: which one the cluster chooses may depend on the job."""
        existing, requested = self.cluster_info.partitions, self.asked_partitions
        return [existing[name] for name in requested if name in existing] if requested else list(existing.values())

    @property
    def place_text(self) -> str:
        """A phrase for ``partitions`` in messages."""
        return f"partition {self.config.cluster.partition}" if self.asked_partitions else "this cluster"


# Returns what was found if all is well. Raises UserError with what was found and how to fix it, or QueryError.
Question = Callable[[CheckContext], str]


@dataclass(frozen=True)
class Check:
    """The result of one check, as ``doctor`` shows it."""

    name: str
    state: Literal["passed", "failed", "unknown"]
    result: str
    fix: str = ""


def run_check(name: str, question: Question, context: CheckContext) -> Check:
    """Ask ``question`` and return its result."""
    try:
        return Check(name, "passed", question(context))
    except UserError as error:
        return Check(name, "failed", error.problem, error.fix)
    except QueryError as error:
        return Check(name, "unknown", error.problem, error.fix)
    except OSError as error:
        return Check(name, "failed", f"{error.filename or name}: {error.strerror}", file_fix(error))


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return the known name that is most like ``name``, as the first part of a fix; "" if there is none."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {matches[0]}? " if matches else ""
