"""Cluster settings to submitit's parameters, the batch script that comes of them, and jobs on SLURM's queue."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import submitit
from submitit.slurm.slurm import _make_sbatch_string

from cluster.job import TrainJob
from runyard.config import ClusterConfig
from runyard.errors import UserError
from runyard.ownership import UMASK, UMASK_WITH_GROUP
from runyard.run import Run

CHECKOUT = Path(__file__).resolve().parents[1]
PYTHON = CHECKOUT / "slurm" / "python.sh"
# sbatch's variables that go by another name than the option which they override.
VARIABLES = {
    "time": ("TIMELIMIT",),
    "mem": ("MEM_PER_NODE", "MEM_PER_CPU", "MEM_PER_GPU"),
    "array": ("ARRAY_INX",),
    "requeue": ("REQUEUE", "NO_REQUEUE"),
    "no-requeue": ("REQUEUE", "NO_REQUEUE"),
}
OF_OTHER_JOBS = ("WAIT", "ARRAY_INX", "TEST_ONLY")  # what no submission of ours is, whatever the environment says
ANSWER_TIMEOUT_S = 60  # of sbatch on a busy controller


class Batch:
    """One submission: a run, or the points of a sweep as one array, and the batch script that starts them.

    Args:
        name: The job's name in SLURM: the run's id, or the sweep's.
        folder: Where submitit puts its files, the script and the tasks' logs.
        runs: What is trained, in the order of the array's elements.
        after: Number of a job that must have ended well before this one starts.
    """

    def __init__(self, name: str, folder: Path, runs: list[Run], after: str | None = None) -> None:
        self.name, self.folder, self.runs = name, folder, runs
        self.cluster = runs[0].config.cluster
        self.parameters = _parameters(self.cluster, after) | {
            "job_name": name,
            "setup": self._setup(),
            "teardown": self._teardown(),
        }

    def script(self) -> str:
        """The exact text that sbatch will be given.

        Raises:
            UserError: a setting would change the script's structure.
        """
        if "%" in str(self.folder):
            raise UserError(f"runs_dir: SLURM would expand the % in {self.folder}, where logs go; set one without it")
        if odd := next((c for c in str(self.folder) if c in "'\"\\" or not c.isprintable()), None):
            raise UserError(f"runs_dir: sbatch would misread the {odd!r} in {self.folder}; set one without it")
        count = len(self.runs) if len(self.runs) > 1 else None
        command = f"{self._start} -u -m submitit.core._submit {shlex.quote(str(self.folder))}"
        text = str(_make_sbatch_string(command, self.folder, map_count=count, **self.parameters))
        _check_script(text, self._expected_lines())
        return text

    def submit(self) -> list[str]:
        """Put the job on the queue. Returns one id per run: ``12``, or ``12_0``, ``12_1``, ... of an array.

        Raises:
            UserError: sbatch refused it. Nothing is on the queue then.
        """
        wanted = self.script()
        try:
            return self._to_sbatch(wanted)
        except BaseException:  # it may be on the queue all the same: sbatch can lose the answer, or a person patience
            self.take_back()
            raise

    def take_back(self) -> None:
        """Cancel what may be on the queue of this, after an error; that error is the one to be told."""
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(["scancel", f"--name={self.name}"], capture_output=True, timeout=ANSWER_TIMEOUT_S)

    def _to_sbatch(self, wanted: str) -> list[str]:
        self._list_runs()
        executor = submitit.AutoExecutor(self.folder, cluster="slurm", slurm_python=self._start)
        executor.update_parameters(**{f"slurm_{name}": value for name, value in self.parameters.items()})
        try:
            with _saying_only(wanted), contextlib.redirect_stderr(io.StringIO()), executor.batch():
                jobs = [executor.submit(TrainJob(str(run.path))) for run in self.runs]
        except submitit.core.utils.FailedJobError as error:
            raise UserError(f"sbatch refused the job: {_in_one_line(str(error))}") from None
        except submitit.core.utils.FailedSubmissionError as error:
            raise UserError(f"sbatch named no job, so it was cancelled: {_in_one_line(str(error))}") from None
        ids = [str(job.job_id) for job in jobs]
        number = ids[0].partition("_")[0]
        submitted = (self.folder / f"{number}_submission.sh").read_text()
        named = _ask("squeue", "--noheader", "--states=all", f"--name={self.name}", "--format=%F").split()
        if submitted != wanted or number not in named:
            raise UserError(
                f"sbatch answered with job {number}, which is not what was submitted ({self.name}): it was cancelled; "
                "look at what sbatch prints besides, and try again"
            )
        return ids

    @property
    def _start(self) -> str:
        return f"{self._python} -m cluster.task"

    @property
    def _python(self) -> str:
        return shlex.quote(self.cluster.python or str(self._scripts / "python.sh"))

    @property
    def _scripts(self) -> Path:
        """The snapshot's, as the rest of the code; the checkout's for a run from before these were part of it."""
        code = self.runs[0].code
        kept = not code.exists() or (code / "slurm" / "begin.sh").exists()
        return code / "slurm" if kept else CHECKOUT / "slurm"

    def _setup(self) -> list[str]:
        code = shlex.quote(str(self.runs[0].code))
        # The snapshot of the code that was taken when the run was created, and not what lies in the checkout by now.
        snapshot = f'export PYTHONPATH={code}"${{PYTHONPATH:+:$PYTHONPATH}}" PYTHONSAFEPATH=1'
        root = f"export RUNYARD_ROOT={shlex.quote(str(CHECKOUT))}"  # by it the snapshot's python.sh finds .venv
        # What a job writes is its user's alone. Who can write runs_dir may have put code of their own there meanwhile.
        config = self.runs[0].config
        private = f"umask {UMASK_WITH_GROUP if config.runs_group_readable else UMASK:03o}"
        whose = f"case $(stat -c %u {code} 2>/dev/null) in {self._owner}|'') ;; *)"
        mine = f"{whose} echo runyard: not run, another user owns it now: {code} >&2; exit 2 ;; esac"
        # set +e: where a line of env_setup set it, the script would end with srun and requeue nothing.
        begin = f". {shlex.quote(str(self._scripts / 'begin.sh'))}"
        return [*self.cluster.env_setup, "set +e", private, mine, snapshot, root, begin]

    @property
    def _owner(self) -> int:
        """User id of whoever owns the code now, when a person has it run."""
        code = self.runs[0].code
        return code.stat().st_uid if code.exists() else os.getuid()

    def _teardown(self) -> list[str]:
        """After srun, whatever ended it: put the job back into the queue where the run can go on; say how it ended."""
        run = shlex.quote(str(self.runs[0].path))
        if len(self.runs) > 1:
            run = f'"$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {shlex.quote(str(self.folder / "runs.txt"))})"'
        return [f"ended=$?; exec {shlex.quote(str(self._scripts / 'requeue.sh'))} {self._python} {run} $ended"]

    def _list_runs(self) -> None:
        if len(self.runs) > 1:
            (self.folder / "runs.txt").write_text("".join(f"{run.path}\n" for run in self.runs))

    def _expected_lines(self) -> list[str]:
        own = {"setup", "teardown", "signal_delay_s", "array_parallelism", "additional_parameters", "srun_args"}
        given = {k: v for k, v in self.parameters.items() if k not in own} | self.parameters["additional_parameters"]
        lines = [f"#SBATCH --{name.replace('_', '-')}" for name in given]
        return [*lines, f"#SBATCH --signal=USR2@{self.cluster.signal_delay_s}"]


def tasks_per_node(cluster: ClusterConfig) -> int:
    """One task per GPU, or one, where the settings do not say."""
    return cluster.tasks_per_node or cluster.gpus_per_node or 1


def require_sbatch() -> None:
    """Refuse what needs SLURM where it is not.

    Raises:
        UserError: no sbatch, or no srun, on PATH.
    """
    if lacking := [name for name in ("sbatch", "srun") if shutil.which(name) is None]:
        raise UserError(
            f"no {' and no '.join(lacking)} on this machine: submit from a cluster's login node, or train here with "
            "cluster=local; --dry-run shows the script without SLURM"
        )


def _parameters(cluster: ClusterConfig, after: str | None) -> dict[str, Any]:
    """What sbatch is asked for, by submitit's names, which are sbatch's."""
    same = ("account", "partition", "qos", "constraint", "comment", "exclude", "nodelist", "mail_user", "mail_type")
    gpus: dict[str, Any] = {"gres": cluster.gres} if cluster.gres else {"gpus_per_node": cluster.gpus_per_node or None}
    given: dict[str, Any] = {
        **{name: getattr(cluster, name) for name in same},
        **gpus,
        "nodes": cluster.nodes,
        "ntasks_per_node": tasks_per_node(cluster),
        "cpus_per_task": cluster.cpus_per_task,
        "mem": f"{cluster.mem_gb}GB" if cluster.mem_gb else None,
        "time": cluster.timeout_min,
        "dependency": f"afterok:{after}" if after else None,
    }
    # Kill on a bad exit: without its dead rank a job would hang. CPUs again: since SLURM 22.05 srun inherits none.
    srun = ["--kill-on-bad-exit=1", "--open-mode=append"]
    srun += [f"--cpus-per-task={cluster.cpus_per_task}"] if cluster.cpus_per_task else []
    return {name: value for name, value in given.items() if value is not None} | {
        "wckey": "",
        "signal_delay_s": cluster.signal_delay_s,
        "array_parallelism": cluster.array_parallelism,
        "srun_args": srun,
        "additional_parameters": {"requeue" if cluster.requeue else "no-requeue": True, "kill-on-invalid-dep": "yes"},
    }


def _check_script(text: str, expected: list[str]) -> None:
    """All that is asked of sbatch stands before the first command: a line that is none would end what sbatch reads."""
    head = []
    for line in text.splitlines():
        if line and not line.startswith("#"):
            break
        head.append(line)
    for wanted in expected:
        if not any(line == wanted or line.startswith(wanted + "=") for line in head):
            raise UserError(f"the batch script lacks {wanted!r} before its first command: a setting broke it")


@contextlib.contextmanager
def _saying_only(script: str) -> Iterator[None]:
    """What sbatch reads in its environment overrides its script: an allocation we are in, SBATCH_TIMELIMIT, ...

    A user's SBATCH_ACCOUNT and the like still fill what ``script`` leaves open.
    """
    before = dict(os.environ)
    options = re.findall(r"^#SBATCH --([\w-]+)", script, flags=re.MULTILINE)
    given = [name for o in options for name in VARIABLES.get(o, (o.replace("-", "_").upper(),))]
    for name in (*given, *OF_OTHER_JOBS):
        os.environ.pop(f"SBATCH_{name}", None)
    if "SLURM_JOB_ID" in before:
        for name in [name for name in before if name.startswith("SLURM_") and name != "SLURM_CONF"]:
            del os.environ[name]
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _ask(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise UserError(f"{command[0]} does not answer within {ANSWER_TIMEOUT_S} s: is the controller down?") from None
    if done.returncode:
        raise UserError(f"{command[0]}: {_in_one_line(done.stderr)}")
    return done.stdout


def _in_one_line(said: str) -> str:
    """A plugin's reasons stand before sbatch's last line, which may say no more than that it failed."""
    lines = [re.sub(r"^\w+: (error: )?", "", line) for line in said.strip().splitlines() if line.strip()]
    return "; ".join(lines) or "it said nothing"
