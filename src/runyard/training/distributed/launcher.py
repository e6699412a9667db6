"""Rank, world size and device of this task, from the variables of the launcher that really started it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from runyard.errors import UserError

# SLURM_STEP_ID of salloc's shell and of a batch script, which srun has not started
NON_SRUN_STEP_IDS = ("4294967290", "4294967291")
SHELLS = ("sh", "bash", "dash", "ash", "zsh", "ksh", "tcsh", "csh", "fish")


class Launcher(NamedTuple):
    """A launcher's variables: those that only it sets, so that nobody else's are taken for its own, and what it says.

    Attributes:
        mark: Variables of which it sets at least one.
        rank, world_size, local_rank, local_world_size: The names of these.
        more: What else is needed where there are several ranks.
    """

    name: str
    mark: tuple[str, ...]
    rank: str
    world_size: str
    local_rank: str
    local_world_size: str
    more: tuple[str, ...] = ()


# The innermost comes first: torchrun's agents are tasks of a step, and a local job may be started within one.
LOCAL = Launcher(
    "submitit, local",
    ("SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_NTASKS", "SUBMITIT_LOCAL_LOCALID"),
    "SUBMITIT_LOCAL_GLOBALID",
    "SUBMITIT_LOCAL_NTASKS",
    "SUBMITIT_LOCAL_LOCALID",
    "SUBMITIT_LOCAL_NTASKS",
)
TORCHRUN = Launcher(
    "torchrun",
    ("TORCHELASTIC_RUN_ID",),
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    ("MASTER_ADDR", "MASTER_PORT"),  # the address that its agent has chosen
)
SLURM = Launcher(
    "SLURM", ("SLURM_STEP_ID",), "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"
)


@dataclass(frozen=True)
class RankInfo:
    """The rank of a task among the tasks of its run.

    The rendezvous address is not part of it: rank 0 chooses it in ``joined_process_group``, or torchrun's agent has
    chosen it (MASTER_ADDR, MASTER_PORT). The names of the nodes are in the journal's start row.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    launcher: str
    start_id: str
    cpus_per_task: int | None = None  # from SLURM, whether or not it binds the task to these CPUs

    @property
    def device(self) -> torch.device:
        """This task's GPU (the only one it sees, or the one of its local rank), else the CPU."""
        count = torch.cuda.device_count()
        if count == 0:
            return torch.device("cpu")
        return torch.device("cuda", self.local_rank % count)

    @property
    def threads(self) -> int:
        """CPUs that this task may use: its allocated ones, divided among the local tasks if they share one CPU mask."""
        cpus = len(os.sched_getaffinity(0))
        shared = self.launcher != "SLURM" or cpus == os.cpu_count()  # if srun binds, each task has CPUs of its own
        own = cpus // self.local_world_size if shared else cpus
        return max(1, min(own, self.cpus_per_task or own))


def from_environment(env: Mapping[str, str], expected_tasks: int | None = None) -> RankInfo:
    """Read the variables of the launcher that started this task. If none did, this is the only task.

    Others may have set variables of the same names: RANK, WORLD_SIZE and their like are set by enroot's hook in every
    task of srun, and are left behind in shells. They count only where torchrun has left its own mark.

    Args:
        expected_tasks: How many tasks the job was submitted with, None if that is not known.

    Raises:
        UserError: only some of the launcher's variables are set, or they are not numbers; or its tasks are not as many
            as expected; or this is not a task but a command in a shell that is one.
    """
    launcher = _launcher(env)
    if launcher is None:
        _require_alone(env)
        rank_info, variable = RankInfo(0, 1, 0, 1, "none", str(os.getpid())), "SLURM_STEP_ID is not set"
    else:
        rank_info = _rank_info(launcher, env)
        variable = f"{launcher.world_size}={rank_info.world_size}"
    if expected_tasks is not None and rank_info.world_size != expected_tasks:
        raise UserError(
            f"{variable}: this is a task of {rank_info.world_size}, and the run was submitted for {expected_tasks}",
            "find what changes that variable in the tasks: cluster.env_setup, cluster.python, or a prolog of the site",
        )
    return rank_info


def _launcher(env: Mapping[str, str]) -> Launcher | None:
    """Return the innermost launcher that has left its mark; None if there is none."""
    # outside a step SLURM's variables describe the whole job
    in_step = env.get("SLURM_STEP_ID", NON_SRUN_STEP_IDS[0]) not in NON_SRUN_STEP_IDS
    submitted_to_slurm = env.get("SUBMITIT_EXECUTOR") == "slurm"  # and perhaps from within a local job
    if not submitted_to_slurm:
        if any(env.get(name) for name in LOCAL.mark):
            return LOCAL
        if any(env.get(name) for name in TORCHRUN.mark):
            return TORCHRUN
    return SLURM if in_step else None


def _rank_info(launcher: Launcher, env: Mapping[str, str]) -> RankInfo:
    if launcher is SLURM:
        env = {**env, launcher.local_world_size: _slurm_tasks_here(env)}
        _require_task_of_step(env)
    names = (launcher.rank, launcher.world_size, launcher.local_rank, launcher.local_world_size)
    required = names + (launcher.more if env.get(launcher.world_size) != "1" else ())
    if missing := list(dict.fromkeys(name for name in required if not env.get(name))):
        present = next(name for name in (*required, *launcher.mark) if env.get(name))
        raise UserError(
            f"{present}={env[present]} is set but {', '.join(missing)} is not: "
            f"the variables of {launcher.name} are incomplete",
            f"set all of {', '.join(dict.fromkeys(required))} or none",
        )
    try:
        rank, world_size, local_rank, local_world_size = (int(env[n]) for n in names)
    except ValueError as error:
        raise UserError(
            f"{', '.join(f'{n}={env.get(n)}' for n in names)}: expected whole numbers from {launcher.name} ({error})"
        ) from None
    if not 0 <= rank < world_size:
        raise UserError(f"{launcher.rank}={rank}: expected below {launcher.world_size}={world_size}")
    cpus = env.get("SLURM_CPUS_PER_TASK", "") if launcher is SLURM else ""
    cpus_per_task = int(cpus) if cpus.isdigit() else None
    return RankInfo(
        rank, world_size, local_rank, local_world_size, launcher.name, _start_id(launcher, env), cpus_per_task
    )


def _require_alone(env: Mapping[str, str]) -> None:
    """Refuse variables of several tasks that no launcher's mark explains: each task would count as the only one.

    Raises:
        UserError: there are some.
    """
    alone = {TORCHRUN.rank: "0", TORCHRUN.local_rank: "0", TORCHRUN.world_size: "1"}
    if foreign := {name: env[name] for name, value in alone.items() if env.get(name, value) not in ("", value)}:
        name, value = next(iter(foreign.items()))
        raise UserError(
            f"{name}={value} is set, and neither torchrun nor srun has started this process",
            f"start all tasks with one of these, or unset {' '.join(foreign)} to train alone",
        )


def _require_task_of_step(env: Mapping[str, str]) -> None:
    """Refuse to be rank 0 of several for a command that was typed in a shell: the other tasks would never come.

    Raises:
        UserError: this process is not the step's task itself, but was started in a terminal's shell, which is.
    """
    task, tasks = env.get("SLURM_TASK_PID", ""), env.get(SLURM.world_size, "1")
    if tasks == "1" or "SLURM_PTY_PORT" not in env or task == str(os.getpid()) or not task.isdigit():
        return
    try:
        shell, *arguments = Path(f"/proc/{task}/cmdline").read_text().rstrip("\0").split("\0")
    except OSError:  # a container has process ids of its own
        return
    is_shell = os.path.basename(shell).lstrip("-") in SHELLS
    if is_shell and all(argument.startswith("-") and argument != "-c" for argument in arguments):
        raise UserError(
            f"SLURM_NTASKS={tasks}: this is the shell of step {env['SLURM_STEP_ID']}, and not one of {tasks} tasks",
            f"start them from it with `srun --overlap --ntasks={tasks} runyard train RUN`, or train alone with "
            "`env -u SLURM_STEP_ID runyard train RUN`",
        )


def _slurm_tasks_here(env: Mapping[str, str]) -> str:
    """Return how many tasks of this step run on this node, from SLURM's list by node (``4(x2),3``); "" if unknown."""
    if "SLURM_STEP_TASKS_PER_NODE" not in env:
        return env.get("SLURM_NTASKS_PER_NODE", "")
    parts = re.findall(r"(\d+)(?:\(x(\d+)\))?", env["SLURM_STEP_TASKS_PER_NODE"])
    by_node = [tasks for tasks, times in parts for _ in range(int(times or 1))]
    return dict(enumerate(by_node)).get(int(env.get("SLURM_NODEID", "-1")), "")


def _start_id(launcher: Launcher, env: Mapping[str, str]) -> str:
    """Return a name that no earlier start of the same job had, so that no rank reads the address of a dead rank 0."""
    if launcher is LOCAL and "SUBMITIT_LOCAL_JOB_ID" in env:  # a process id, which may be reused, in a container soon
        return "-".join(filter(None, (env["SUBMITIT_LOCAL_JOB_ID"], env.get("RUNYARD_START"))))
    slurm = [env.get(n, "0") for n in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_STEP_ID")]
    return "-".join(slurm) if "SLURM_JOB_ID" in env else env.get("TORCHELASTIC_RUN_ID", "alone")
