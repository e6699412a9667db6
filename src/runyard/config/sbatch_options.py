"""sbatch's long options as ``cluster.extra`` takes them: which there are, and which another setting gives already."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from runyard.config import patterns
from runyard.config.fields import format_literal
from runyard.config.setting import settings_of
from runyard.errors import UserError

if TYPE_CHECKING:
    from runyard.config.schema import ClusterConfig

OptionValue = str | int | float | bool | None
# `sbatch --help` of SLURM 20.11 to 25.05, without those in OWNED.
OPTIONS = frozenset({
    "acctg-freq", "bb", "bbf", "begin", "cluster-constraint", "container", "container-id", "contiguous",
    "core-spec", "cores-per-socket", "cpu-freq", "cpus-per-gpu", "deadline", "delay-boot", "distribution",
    "exclusive", "export", "extra", "extra-node-info", "get-user-env", "gpu-bind", "gpu-freq", "gres-flags", "hint",
    "hold", "licenses", "mcs-label", "mem", "mem-bind", "mem-per-cpu", "mem-per-gpu", "mincpus", "network", "nice",
    "no-kill", "ntasks-per-core", "ntasks-per-socket", "oom-kill-step", "overcommit", "oversubscribe", "power",
    "prefer", "priority", "profile", "propagate", "reboot", "reservation", "resv-ports", "segment",
    "sockets-per-node", "spread-job", "stepmgr", "switches", "thread-spec", "threads-per-core", "time-min", "tmp",
    "tres-bind", "tres-per-task", "use-min-nodes", "wait-all-nodes", "wckey", "x11",
})  # fmt: skip
# Options that runyard gives, or that would undo how it starts and finds its jobs, and what to set in their place.
OWNED = {
    "array": "`runyard submit -m`",
    "batch": "cluster.constraint",
    "chdir": "runs_dir",
    "clusters": "a login node of that cluster",
    "dependency": "`runyard submit --after`",
    "error": "runs_dir",
    "export-file": "cluster.env_setup",
    "gid": "runs_group_readable",
    "gpus": "cluster.gpus_per_node",
    "gpus-per-node": "cluster.gpus_per_node",
    "gpus-per-socket": "cluster.gpus_per_node",
    "gpus-per-task": "cluster.gpus_per_node",
    "ignore-pbs": "cluster.extra for each option",
    "input": "cluster.env_setup",
    "job-name": "name",
    "kill-on-invalid-dep": "`runyard submit --after`",
    "no-requeue": "cluster.requeue",
    "nodefile": "cluster.nodelist",
    "ntasks": "cluster.tasks_per_node",
    "ntasks-per-gpu": "cluster.tasks_per_node",
    "ntasks-per-node": "cluster.tasks_per_node",
    "open-mode": "runs_dir",
    "output": "runs_dir",
    "parsable": "`runyard submit --json`",
    "requeue": "cluster.requeue",
    "signal": "cluster.signal_delay_s",
    "test-only": "`runyard doctor`",
    "time": "cluster.timeout_min",
    "tres-per-node": "cluster.gres",
    "uid": "a login of that user",
    "wait": "`runyard submit --attach`",
    "wrap": "cluster.env_setup",
}
# Settings without which these are free, for what the setting cannot say, such as a memory of 0: all of a node's.
OWNED_IF_SET = {"mem": "mem_gb", "mem-per-cpu": "mem_gb", "mem-per-gpu": "mem_gb", "cpus-per-gpu": "cpus_per_task"}
# What decides where a job may run and who pays: doctor's own job on a node takes these, and not what makes it large.
PLACE_AND_PAYER = frozenset({"mcs-label", "network", "reservation", "wckey"})


def given_options(extra: Mapping[str, OptionValue]) -> dict[str, str | bool]:
    """Return the options that are given to sbatch, with true for one without a value; null and false leave one out."""
    return {
        name: value if value is True else str(value)
        for name, value in extra.items()
        if value is not None and value is not False
    }


def check_extra(cluster: ClusterConfig) -> None:
    """Refuse what is no option of sbatch, what another setting gives, and values that a script's line cannot hold."""
    settings = {name.replace("_", "-"): name for name, s in settings_of(type(cluster)).items() if s.sbatch != "no"}
    for name, value in cluster.extra.items():
        entry = f"cluster.extra.{name}={format_literal(value)}"
        owner = OWNED.get(name) or (f"cluster.{settings[name]}" if name in settings else None)
        other = OWNED_IF_SET.get(name) if name in given_options({name: value}) else None
        if other is not None and getattr(cluster, other) is not None:
            raise UserError(
                f"{entry}: cluster.{other}={getattr(cluster, other)} says it already",
                f"leave one out: cluster.{other}=null, or cluster.extra.{name}=null",
            )
        if owner is not None:
            raise UserError(f"{entry}: not an extra option", f"use {owner} for it")
        if name not in OPTIONS:
            similar = difflib.get_close_matches(name.replace("_", "-"), [*OPTIONS, *OWNED, *settings], n=1, cutoff=0.6)
            hint = f"did you mean {similar[0]}?" if similar else "`man sbatch` lists them, without the dashes here"
            raise UserError(f"{entry}: sbatch has no option --{name}", hint)
        if not isinstance(value, OptionValue):
            raise UserError(f"{entry}: expected text, a number, true for an option without a value, or null for none")
        if isinstance(value, str) and not re.fullmatch(patterns.OPTION.regex, value):
            raise UserError(f"{entry}: expected {patterns.OPTION.expected}")
