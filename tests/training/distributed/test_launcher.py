"""Which launcher started a task: the one that left its own mark, whatever variables others have set."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from runyard.errors import UserError
from runyard.training.distributed.launcher import RankInfo, from_environment
from tests.support.settings import ROOT

SUBMITIT = {
    "SUBMITIT_LOCAL_GLOBALID": "1",
    "SUBMITIT_LOCAL_NTASKS": "2",
    "SUBMITIT_LOCAL_LOCALID": "1",
    "SUBMITIT_LOCAL_JOB_ID": "4711",
}
TORCHRUN = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "TORCHELASTIC_RUN_ID": "abc",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29400",
}
SLURM = {
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "4",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_STEP_ID": "0",
    "SLURM_JOB_ID": "99",
    "SLURM_RESTART_COUNT": "2",
}
ENROOT = {"RANK": "7", "WORLD_SIZE": "9", "LOCAL_RANK": "7", "MASTER_ADDR": "node7", "MASTER_PORT": "1"}  # its hook's
ONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


@pytest.mark.parametrize(
    ("env", "rank_info"),
    [
        (SUBMITIT, RankInfo(1, 2, 1, 2, "submitit, local", "4711")),
        (TORCHRUN, RankInfo(5, 8, 1, 4, "torchrun", "abc")),
        (SLURM, RankInfo(3, 4, 1, 2, "SLURM", "99-2-0")),
        (SLURM | SUBMITIT, RankInfo(1, 2, 1, 2, "submitit, local", "4711")),
        ({n: v for n, v in SLURM.items() if n != "SLURM_STEP_ID"}, RankInfo(0, 1, 0, 1, "none", str(os.getpid()))),
        (SLURM | {"SLURM_STEP_ID": "4294967290"}, RankInfo(0, 1, 0, 1, "none", str(os.getpid()))),
        (SLURM | {"WORLD_SIZE": "4", "MASTER_ADDR": "node1"}, RankInfo(3, 4, 1, 2, "SLURM", "99-2-0")),
        (ONE | {"TORCHELASTIC_RUN_ID": "abc"}, RankInfo(0, 1, 0, 1, "torchrun", "abc")),
        (TORCHRUN | SLURM, RankInfo(5, 8, 1, 4, "torchrun", "99-2-0")),
        (SLURM | ENROOT, RankInfo(3, 4, 1, 2, "SLURM", "99-2-0")),
        (SLURM | ONE, RankInfo(3, 4, 1, 2, "SLURM", "99-2-0")),
        (SLURM | SUBMITIT | {"SUBMITIT_EXECUTOR": "slurm"}, RankInfo(3, 4, 1, 2, "SLURM", "99-2-0")),
        (SUBMITIT | ENROOT, RankInfo(1, 2, 1, 2, "submitit, local", "4711")),
        (ONE | {"MASTER_ADDR": "node1"}, RankInfo(0, 1, 0, 1, "none", str(os.getpid()))),
        ({}, RankInfo(0, 1, 0, 1, "none", str(os.getpid()))),
    ],
    ids=[
        "submitit",
        "torchrun",
        "srun",
        "submitit within SLURM",
        "a batch script without srun",
        "salloc's shell",
        "srun in a script that exports torchrun's",
        "a torchrun of one",
        "torchrun's agents as tasks of srun",
        "srun with enroot's hook",
        "srun where somebody left the variables of one task in the shell",
        "srun in a job that was submitted from a local one",
        "submitit with the variables of a container's hook",
        "a shell with the variables of one task",
        "nothing",
    ],
)
def test_each_launcher_says_who_i_am(env: dict[str, str], rank_info: RankInfo) -> None:
    assert from_environment(env) == rank_info


@pytest.mark.parametrize(
    ("env", "bound", "threads"),
    [
        (SLURM, 4, 4),  # srun bound it: they are its own
        (SLURM, 16, 8),  # nobody did: shared with the task beside it
        (SLURM | {"SLURM_CPUS_PER_TASK": "3"}, 4, 3),  # bound to the job's, of which it was given a part
        (SLURM | {"SLURM_CPUS_PER_TASK": "3"}, 16, 3),
        (SLURM | {"SLURM_CPUS_PER_TASK": "3"} | SUBMITIT, 16, 8),  # a local run in a job shares the machine's
        (TORCHRUN, 16, 4),
        (TORCHRUN, 2, 1),
    ],
)
def test_a_task_computes_on_the_cpus_that_are_its_own(
    env: dict[str, str], bound: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(bound)))
    assert from_environment(env).threads == threads


@pytest.mark.parametrize(
    ("env", "missing"),
    [
        (SUBMITIT, "SUBMITIT_LOCAL_NTASKS"),
        (SUBMITIT, "SUBMITIT_LOCAL_GLOBALID"),
        (TORCHRUN, "LOCAL_RANK"),
        (TORCHRUN, "LOCAL_WORLD_SIZE"),
        (TORCHRUN, "RANK"),
        (TORCHRUN, "MASTER_ADDR"),
        (TORCHRUN, "MASTER_PORT"),
        (SLURM, "SLURM_LOCALID"),
        (SLURM, "SLURM_PROCID"),
    ],
)
def test_an_environment_set_in_part_is_refused_by_the_name_of_what_is_missing(
    env: dict[str, str], missing: str
) -> None:
    with pytest.raises(UserError, match=f"{missing}.* is not"):
        from_environment({n: v for n, v in env.items() if n != missing})


@pytest.mark.parametrize(("name", "value"), [("RANK", "eight"), ("RANK", "8"), ("RANK", "-1"), ("WORLD_SIZE", "")])
def test_a_rank_that_is_none_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(UserError, match=name):
        from_environment(TORCHRUN | {name: value})


@pytest.mark.parametrize("left", [ENROOT, {"RANK": "1"}, {"WORLD_SIZE": "4"}, {"LOCAL_RANK": "2", "WORLD_SIZE": "1"}])
def test_variables_of_several_tasks_without_a_launchers_mark_are_refused_by_name(left: dict[str, str]) -> None:
    name = next(iter(left))
    with pytest.raises(UserError, match=f"^{name}={left[name]} is set, and neither torchrun nor srun has started"):
        from_environment(left)
    assert from_environment(left | SLURM).rank == 3, "the control: srun has"


@pytest.mark.parametrize(
    ("env", "variable"), [(SLURM, "SLURM_NTASKS=4"), (TORCHRUN, "WORLD_SIZE=8"), ({}, "SLURM_STEP_ID is not set")]
)
def test_a_world_of_another_size_than_was_submitted_is_refused_with_both_numbers(
    env: dict[str, str], variable: str
) -> None:
    tasks = from_environment(env).world_size
    with pytest.raises(UserError, match=f"{variable}: this is a task of {tasks}, and the run was submitted for 6"):
        from_environment(env, expected_tasks=6)
    assert from_environment(env, expected_tasks=tasks).world_size == tasks, "the control"


WHO_AM_I = "import os; from runyard.training.distributed.launcher import from_environment as f; print(f(os.environ))"
TYPED = f"export SLURM_TASK_PID=$$; {sys.executable} -c '{WHO_AM_I}' 2>&1 | tail -n 1; true\n"


def typed(shell: list[str], line: str, **variables: str) -> str:
    """What a command says that is typed in the shell of a step of four tasks."""
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "src"), **SLURM, "SLURM_PTY_PORT": "1", **variables}
    return subprocess.run(shell, input=line, env=env, capture_output=True, text=True).stdout


def test_a_command_in_the_shell_of_a_step_is_told_how_to_start_the_steps_tasks() -> None:
    said = typed(["bash"], TYPED)
    assert "SLURM_NTASKS=4: this is the shell of step 0, and not one of 4 tasks; start them" in said, said
    assert "srun --overlap --ntasks=4 runyard train RUN" in said
    alone = typed(["bash"], TYPED.replace("export", "unset SLURM_STEP_ID; export"))
    assert "RankInfo(rank=0, world_size=1" in alone, "as the message says"


def test_a_script_that_starts_a_task_is_no_shell_that_somebody_types_in() -> None:
    assert "rank=3, world_size=4" in typed(["bash", "-c", TYPED], "")
    of_one = typed(["bash"], TYPED, SLURM_NTASKS="1", SLURM_PROCID="0", SLURM_LOCALID="0")
    assert "rank=0, world_size=1" in of_one, "the shell of a step of one task is that task"
