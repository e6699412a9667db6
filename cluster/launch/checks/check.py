"""A check: a question about a submission, and its answer. ``submit`` stops at a no, ``doctor`` shows all answers."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from runyard.cluster.slurm.cluster_info import ClusterInfo, Partition
from runyard.config.schema import Config
from runyard.errors import UserError
from runyard.slurm_client import QueryError


@dataclass(frozen=True)
class CheckContext:
    """A submission to be checked.

    Attributes:
        config: Of the run, or of a sweep's first point.
        tasks_per_node: Processes on each machine.
        prepare: The command that would prepare its data.
        needs_data: Whether the data has to be there by now.
        points: Runs in the sweep; 1 without one.
        script: Makes the exact batch script, but for names that do not exist yet; None without SLURM.
        after: Number of the job that has to end well before this one starts.
    """

    config: Config
    tasks_per_node: int
    prepare_command: str
    needs_data: bool = True
    sweep_size: int = 1
    script: Callable[[], str] | None = None
    after: str | None = None

    @cached_property
    def site(self) -> ClusterInfo:
        return ClusterInfo()

    @property
    def asked_partitions(self) -> list[str]:
        named = self.config.cluster.partition
        return [] if named is None else named.split(",")

    @property
    def partitions(self) -> list[Partition]:
        """Those that are asked for. Without a name all: which one the cluster chooses may depend on the job."""
        there, asked = self.site.partitions, self.asked_partitions
        return [there[name] for name in asked if name in there] if asked else list(there.values())

    @property
    def place_text(self) -> str:
        """``partitions`` in words."""
        return f"partition {self.config.cluster.partition}" if self.asked_partitions else "this cluster"


# Returns what was found where all is well. Raises UserError, as "what was found; its mend", or CannotTell.
Question = Callable[[CheckContext], str]


@dataclass(frozen=True)
class Check:
    """One answered question, as ``doctor`` shows it."""

    name: str
    state: Literal["passed", "failed", "unknown"]
    result: str
    fix: str = ""


def run_check(name: str, question: Question, context: CheckContext) -> Check:
    """Ask, and say what came of it."""
    try:
        return Check(name, "passed", question(context))
    except UserError as error:
        found, _, fix = str(error).partition("; ")
        return Check(name, "failed", found, fix)
    except QueryError as error:
        found, _, fix = str(error).partition("; ")
        return Check(name, "unknown", found, fix)


def suggestion(name: str, known: Iterable[str]) -> str:
    """The known name that ``name`` was perhaps to be, as the beginning of a mend."""
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"did you mean {found[0]}? " if found else ""
