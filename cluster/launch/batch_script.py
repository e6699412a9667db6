"""Turns cluster settings into an sbatch script with submitit, and submits it."""

from __future__ import annotations

import dataclasses
import os
import re
import secrets
import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.slurm.slurm import _make_sbatch_string

from runyard import slurm_client
from runyard.cluster.job import chain
from runyard.cluster.job.pack_job import PackJob
from runyard.cluster.job.train_job import TrainJob, tasks_per_node
from runyard.cluster.launch.job_environment import bind_line, checked_lines, container_options, journal_command
from runyard.cluster.launch.refusals import LATER, SubmissionDelayed, refusal
from runyard.cluster.slurm.queue import RUN_SEPARATOR
from runyard.cluster.slurm.submission import script_name
from runyard.config.sbatch_options import given_options
from runyard.config.schema import ClusterConfig
from runyard.config.setting import settings_of
from runyard.errors import UserError
from runyard.installation import SCRIPTS, find_python_line
from runyard.ownership import UMASK, UMASK_WITH_GROUP
from runyard.runs.run import Run
from runyard.slurm_client import (
    RETRY_INTERVAL_S,
    QueryError,
    SlurmUnavailable,
    clean_environment,
    error_line,
    run_query,
    run_with_retry,
)

# sbatch's environment variables that have another name than the option that they override.
SBATCH_VARIABLES = {
    "time": ("TIMELIMIT",),
    "mem": ("MEM_PER_NODE", "MEM_PER_CPU", "MEM_PER_GPU"),
    "array": ("ARRAY_INX",),
    "mem-per-cpu": ("MEM_PER_NODE", "MEM_PER_CPU", "MEM_PER_GPU"),
    "mem-per-gpu": ("MEM_PER_NODE", "MEM_PER_CPU", "MEM_PER_GPU"),
    "bb": ("BURST_BUFFER",),
    "cpu-freq": ("CPU_FREQ_REQ",),
    "requeue": ("REQUEUE", "NO_REQUEUE"),
    "no-requeue": ("REQUEUE", "NO_REQUEUE"),
}
# Removed from sbatch's environment always: runyard submits nothing that they would ask for.
FOREIGN_SBATCH_VARIABLES = ("WAIT", "ARRAY_INX", "TEST_ONLY")
KILL_ON_BAD_EXIT = "--kill-on-bad-exit=1"  # of a rank, without which the others would hang
SBATCH_SUBMIT_TIMEOUT_S = 60.0  # for sbatch, which a busy controller keeps waiting


class SubmissionUnknown(UserError):
    """It is not known whether a job is on the queue, so that the files which the job needs must stay."""


class SbatchJob:
    """One submission: a run, or the points of a sweep as one array, and the batch script that starts them.

    The jobs of a run with ``cluster.chain`` are an array, too, of which one runs at a time. With
    ``cluster.runs_per_task`` each job trains several of the runs, each in a task of its own.

    Args:
        name: The job's name in SLURM: the run's id, or the sweep's.
        folder: Where submitit puts its files, the script and the tasks' logs.
        runs: The runs to train, in the order of the array's elements and of their tasks.
        after: Number of a job that must have succeeded before this one starts; or "afterany:" or "afternotok:" and a
            number, for one that must have ended, or failed.
        token: The unique name of this submission; random if None.

    Attributes:
        path: The batch script. It identifies the job, as SLURM says which script each job runs.
        packs: The runs of each job.
    """

    def __init__(
        self, name: str, folder: Path, runs: list[Run], after: str | None = None, token: str | None = None
    ) -> None:
        self.name, self.folder, self.runs = name, folder, runs
        self.token = secrets.token_hex(4) if token is None else token
        self.path = folder / script_name(self.token)
        self.cluster = runs[0].config.cluster
        size = self.cluster.runs_per_task
        self.packs = [runs[k : k + size] for k in range(0, len(runs), size)]
        # A run may have been moved, or be resumed in another working directory: what counts is where it lies.
        self._config = dataclasses.replace(runs[0].config, runs_dir=str(runs[0].path.parent))
        self.parameters = _parameters(self.cluster, after) | {
            "job_name": name,
            "setup": self._setup(),
            "teardown": self._teardown(),
        }
        self.parameters["srun_args"] += container_options(self._config)
        if self._is_packed:
            self._use_tasks_of_their_own()

    def script(self) -> str:
        """Return the exact text that sbatch will be given.

        Raises:
            UserError: a setting would change the script's structure.
        """
        if "%" in str(self.folder):
            raise UserError(f"runs_dir: SLURM would expand the % in {self.folder}, where logs go", "set one without it")
        if character := next((c for c in str(self.folder) if c in "'\"\\" or not c.isprintable()), None):
            raise UserError(f"runs_dir: sbatch would misread the {character!r} in {self.folder}", "set one without it")
        count = max(len(self.packs), self.cluster.chain)
        command = (
            f"{self._python} -m runyard.cluster.job.task -u -m submitit.core._submit {shlex.quote(str(self.folder))}"
        )
        text = str(_make_sbatch_string(command, self.folder, map_count=count if count > 1 else None, **self.parameters))
        _check_script(text, self._required_directives())
        return text

    def submit(self, held_locks: Sequence[int] = ()) -> list[str]:
        """Put the job on the queue. Returns a job's id for each run: ``12``, or ``12_0``, ``12_1``, ... of an array.

        Args:
            held_locks: Descriptors of open lock files that sbatch holds as well, for it may outlive this command.

        Raises:
            SubmissionDelayed: the same, for a reason that passes by itself.
            UserError: sbatch refused it. Nothing is on the queue then.
            SubmissionUnknown: it may be on the queue, and SLURM does not say.
        """
        script = self.script()
        for runs, pickle in zip(self.packs, self._pickles, strict=True):
            paths = [str(run.path) for run in runs]
            task = submitit.core.utils.DelayedSubmission(PackJob(paths) if self._is_packed else TrainJob(*paths))
            task.set_timeout(self.cluster.timeout_min, max_num_timeout=0)
            task.dump(pickle)
        if self.folder != self.runs[0].path / "slurm":
            lines = [RUN_SEPARATOR.join(str(run.path) for run in runs) for runs in self.packs]
            (self.folder / "runs.txt").write_text("".join(f"{line}\n" for line in lines))
        self.path.write_text(script)
        try:
            number = self._run_sbatch(held_locks)
        except QueryError as error:
            self.cancel_submission(error)
            raise SubmissionDelayed(f"SLURM does not answer ({error}): nothing was submitted", LATER) from None
        except BaseException as error:  # such as Ctrl-C: the job may be on the queue all the same
            self.cancel_submission(error)
            raise
        ids = [f"{number}_{k}" for k in range(len(self.packs))] if len(self.packs) > 1 else [number]
        return [job_id for job_id, runs in zip(ids, self.packs, strict=True) for _ in runs]

    def cancel_submission(self, because: BaseException) -> None:
        """Cancel the jobs of this submission that are on the queue, and no others.

        Args:
            because: The error for which they are cancelled. After a QueryError SLURM is asked once, without retries.

        Raises:
            SubmissionUnknown: SLURM does not say whether there are any.
        """
        try:
            if numbers := self._queued_job_ids(wait_s=0 if isinstance(because, QueryError) else None):
                run_with_retry("scancel", *numbers)
            for path in (self.path, *self._pickles):
                path.unlink(missing_ok=True)
        except QueryError as error:
            prefix = f"{because}; " if isinstance(because, UserError) else ""
            raise SubmissionUnknown(
                f"{prefix}a job of {self.name} may be on the queue, and SLURM does not say ({error}): look with "
                f"`runyard status` once it does, and end it with `runyard cancel`"
            ) from because

    def _run_sbatch(self, held_locks: Sequence[int]) -> str:
        """Submit and return the job's number by the queue: sbatch may print other numbers, too, or lose the answer."""
        env, deadline = _environment(self.path.read_text()), time.monotonic() + slurm_client.RETRY_TIMEOUT_S
        while True:
            output, failure = "", None
            try:
                output = run_query(
                    "sbatch", str(self.path), timeout_s=SBATCH_SUBMIT_TIMEOUT_S, env=env, keep_open=held_locks
                )
            except QueryError as error:
                failure = error
            if numbers := self._queued_job_ids():
                if len(numbers) > 1:  # SLURM took the script twice
                    run_with_retry("scancel", *numbers[1:])
                return numbers[0]
            if failure is None:
                raise UserError(
                    f"sbatch printed {error_line(output)!r}, but no job of this submission is on the queue: check "
                    "which program sbatch is on this machine, and try again"
                )
            if not isinstance(failure, SlurmUnavailable):
                raise refusal(self.cluster, str(failure)) from None
            if time.monotonic() + RETRY_INTERVAL_S > deadline:
                raise SubmissionDelayed(f"SLURM does not answer ({failure}): nothing was submitted", LATER) from None
            time.sleep(RETRY_INTERVAL_S)

    def _queued_job_ids(self, wait_s: float | None = None) -> list[str]:
        """Return the numbers of the jobs that run this submission's script; normally there is one at most."""
        output = run_with_retry("squeue", "--me", "--noheader", "--states=all", "--format=%F %o", wait_s=wait_s)
        lines = [line.strip().partition(" ") for line in output.splitlines()]
        return sorted({number for number, _, command in lines if command == str(self.path)}, key=int)

    @property
    def _pickles(self) -> list[Path]:
        elements = [f"_{k}" for k in range(len(self.packs))] if len(self.packs) > 1 else [""]
        return [self.path.with_name(f"{self.path.stem}{element}.pkl") for element in elements]

    @property
    def _python(self) -> str:
        return shlex.quote(self.cluster.python or str(self._scripts / "python.sh"))

    @property
    def _scripts(self) -> Path:
        """The folder of the shell scripts: the snapshot's, or this program's if an older snapshot has none."""
        code = self.runs[0].code_path
        in_snapshot = not code.exists() or (code / "slurm" / "begin.sh").exists()
        return code / "slurm" if in_snapshot else SCRIPTS

    def _setup(self) -> list[str]:
        code = shlex.quote(str(self.runs[0].code_path))
        # The job runs the code snapshot from when the run was created, and not what is in the checkout by now.
        snapshot = f'export PYTHONPATH={code}"${{PYTHONPATH:+:$PYTHONPATH}}" PYTHONSAFEPATH=1'
        # A job's files are its user's alone. Others who can write runs_dir may have put their own code there since.
        config = self.runs[0].config
        private = f"umask {UMASK_WITH_GROUP if config.runs_group_readable else UMASK:03o}"
        owner_case = f"case $(stat -c %u {code} 2>/dev/null) in {self._code_owner_uid}|'') ;; *)"
        owner_check = f"{owner_case} echo runyard: not run, another user owns it now: {code} >&2; exit 2 ;; esac"
        # set +e: if a line of env_setup set -e, the script would end with srun, and requeue nothing.
        begin = f". {shlex.quote(str(self._scripts / 'begin.sh'))}"
        # Each task reads its pickle by the job's number, which is not known before sbatch answers, if it does.
        element = "" if self.cluster.chain > 1 else '"${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"'
        pickle = f'ln -sf {self.path.stem}{element}.pkl {shlex.quote(str(self.folder))}/"$job"_submitted.pkl'
        env_setup = checked_lines(self.cluster.env_setup, f"{private}; {journal_command(self._run)}")
        binds = bind_line(self._config)
        return [
            *env_setup, "set +e", private, owner_check, snapshot, find_python_line(), binds, begin, pickle,
            *self._chain_lines(),
        ]  # fmt: skip

    @property
    def _is_packed(self) -> bool:
        return len(self.packs[0]) > 1

    def _use_tasks_of_their_own(self) -> None:
        """Have the job start a task for each run, of which none ends with another; its own output is not in theirs."""
        self.parameters["ntasks_per_node"] = len(self.packs[0])
        srun_args = self.parameters["srun_args"]
        srun_args[srun_args.index(KILL_ON_BAD_EXIT)] = "--kill-on-bad-exit=0"
        srun_args.append("--wait=0")  # slurm.conf's WaitTime would end the others some time after the first
        job = f"{self.folder}/%{'A_%a' if len(self.packs) > 1 else 'j'}_job"
        self.parameters["additional_parameters"] |= {"output": f"{job}.out", "error": f"{job}.err"}

    def _chain_lines(self) -> list[str]:
        """Return the lines with which a later job of a chain ends at once if the run is over."""
        if self.cluster.chain == 1:
            return []
        exports, python = self._python_outside
        over = f'[ "$SLURM_ARRAY_TASK_ID" -gt 0 ] && {python} -m runyard.cluster.job.chain {self._run}'
        return [f'export {chain.VARIABLE}="$SLURM_ARRAY_JOB_ID"', f"{exports}if {over}; then exit 0; fi"]

    @property
    def _code_owner_uid(self) -> int:
        """User id of the code's owner at the time of the submission, which the user has approved."""
        code = self.runs[0].code_path
        return code.stat().st_uid if code.exists() else os.getuid()

    def _teardown(self) -> list[str]:
        """Return the lines after srun: they requeue the job if the run can continue, and report how it ended."""
        exports, python = self._python_outside
        requeue = shlex.quote(str(self._scripts / "requeue.sh"))
        return [f"ended=$?; {exports}exec {requeue} {python} {self._run} $ended"]

    @property
    def _python_outside(self) -> tuple[str, str]:
        """What the batch script's shell, which is outside of the job's image, exports for Python, and calls it by."""
        if not (options := container_options(self._config)):
            return "", self._python
        image, mounts = (shlex.quote(option.partition("=")[2]) for option in options)
        exports = f"export RUNYARD_TASK_PYTHON={self._python} RUNYARD_IMAGE={image} RUNYARD_MOUNTS={mounts}; "
        return exports, shlex.quote(str(self._scripts / "in_container.sh"))

    @property
    def _run(self) -> str:
        """The run's directory, or several with tabs between, as a word of bash: a job finds its own in a list."""
        if len(self.runs) == 1:
            return shlex.quote(str(self.runs[0].path))
        return f'"$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {shlex.quote(str(self.folder / "runs.txt"))})"'

    def _required_directives(self) -> list[str]:
        own = {"setup", "teardown", "signal_delay_s", "array_parallelism", "additional_parameters", "srun_args"}
        names = {k: v for k, v in self.parameters.items() if k not in own and v is not None}
        names |= self.parameters["additional_parameters"]
        lines = [f"#SBATCH --{name.replace('_', '-')}" for name in names]
        return [*lines, f"#SBATCH --signal=USR2@{self.cluster.signal_delay_s}"]


def require_sbatch() -> None:
    """Refuse to continue without SLURM.

    Raises:
        UserError: no sbatch, or no srun, on PATH.
    """
    if missing := [name for name in ("sbatch", "srun") if shutil.which(name) is None]:
        raise UserError(
            f"no {' and no '.join(missing)} on this machine: submit from a cluster's login node, or train here with "
            "cluster=local",
            "--dry-run shows the script without SLURM, and `runyard slurm up` starts a throwaway SLURM here",
        )


def _parameters(cluster: ClusterConfig, after: str | None) -> dict[str, Any]:
    """Return submitit's parameters, most of which have the names of sbatch's options."""
    same = [name for name, known in settings_of(ClusterConfig).items() if known.sbatch != "no"]
    options: dict[str, object] = {name: getattr(cluster, name) for name in same} | {
        "gpus_per_node": None if cluster.gres else cluster.gpus_per_node or None,
        "ntasks_per_node": tasks_per_node(cluster),
        "mem": f"{cluster.mem_gb}GB" if cluster.mem_gb else None,
        "time": cluster.timeout_min,
        "dependency": ",".join(_dependencies(cluster, after)) or None,
    }
    # CPUs again: since SLURM 22.05 srun inherits none.
    srun_args = [KILL_ON_BAD_EXIT, "--open-mode=append"]
    srun_args += [f"--cpus-per-task={cluster.cpus_per_task}"] if cluster.cpus_per_task else []
    return {name: value for name, value in options.items() if value is not None} | {
        "wckey": None,  # submitit would give its own
        "signal_delay_s": cluster.signal_delay_s,
        "array_parallelism": cluster.array_parallelism if cluster.chain == 1 else 1,
        "srun_args": srun_args,
        "additional_parameters": {
            "requeue" if cluster.requeue else "no-requeue": True,
            "kill-on-invalid-dep": "yes",
            **given_options(cluster.extra),
        },
    }


def _dependencies(cluster: ClusterConfig, after: str | None) -> list[str]:
    """Return what a job waits for: ``after``, and if it is of a chain, any other job of its run's name.

    Singleton does not keep the elements of one array from running at the same time (seen in SLURM 22.05): the array's
    own limit does.
    """
    earlier = [] if after is None else [after if ":" in after else f"afterok:{after}"]
    return earlier if cluster.chain == 1 else [*earlier, "singleton"]


def _check_script(text: str, expected: list[str]) -> None:
    """Check that all directives come before the first command, at which sbatch stops reading them."""
    header = []
    for line in text.splitlines():
        if line and not line.startswith("#"):
            break
        header.append(line)
    for directive in expected:
        if not any(line == directive or line.startswith(directive + "=") for line in header):
            raise UserError(f"the batch script lacks {directive!r} before its first command: a setting broke it")


def _environment(script: str) -> dict[str, str]:
    """Return sbatch's environment, without what would override ``script``, such as SBATCH_TIMELIMIT or an allocation.

    A user's SBATCH_ACCOUNT and the like still apply to what ``script`` leaves open.
    """
    options = re.findall(r"^#SBATCH --([\w-]+)", script, flags=re.MULTILINE)
    overridden = [name for o in options for name in SBATCH_VARIABLES.get(o, (o.replace("-", "_").upper(),))]
    removed = {f"SBATCH_{name}" for name in (*overridden, *FOREIGN_SBATCH_VARIABLES)}
    return {name: value for name, value in clean_environment().items() if name not in removed}
