"""Runs a short job on a compute node to find out what cannot be seen from the login node."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from runyard.cluster.launch.checks.check import CheckContext
from runyard.cluster.launch.checks.node_probe import OUTPUT_PREFIX
from runyard.cluster.launch.checks.preflight import nearest_existing_dir
from runyard.cluster.launch.job_environment import bind_line, checked_lines, container_options
from runyard.cluster.launch.refusals import refusal
from runyard.config.cluster_validation import gres_counts
from runyard.config.sbatch_options import PLACE_AND_PAYER, given_options
from runyard.config.setting import settings_of
from runyard.data import manifest
from runyard.errors import UserError
from runyard.installation import IMPORT_ROOT, SCRIPTS, find_python_line
from runyard.slurm_client import QueryError, clean_environment, error_line, run_query

MAX_MEM_GB = 8  # enough to import everything; a smaller job starts sooner
TIMEOUT_MIN = 2  # the first import of the libraries from a busy network disk may take a minute
SRUN_GRACE_S = 60  # by which srun may exceed these times before it is stopped


class NodeJob:
    """Runs ``node_probe`` once, when its report is first needed: by srun with the run's own settings, or here.

    Args:
        wait_s: How long the job may wait for a node.
    """

    def __init__(self, context: CheckContext, wait_s: float) -> None:
        self._context, self._wait_s = context, wait_s

    @cached_property
    def _outcome(self) -> dict[str, Any] | UserError | QueryError:
        try:
            with _shared_folder(Path(self._context.config.runs_dir)) as folder:
                return self._run(folder) | {"here": _login_node_report(folder)}
        except (UserError, QueryError) as error:
            return error

    def report(self) -> dict[str, Any]:
        """Return the probe's report, with ``ahead_s``, the lead of the node's clock, and ``here``, this machine's part.

        Raises:
            UserError: SLURM refused the job, or it failed before Python started.
            QueryError: no node was free in time.
        """
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    def report_or_unknown(self) -> dict[str, Any]:
        """Return the same for further checks: only the first one shows why the job failed.

        Raises:
            QueryError: there is no report.
        """
        if isinstance(self._outcome, Exception):
            raise QueryError("the job on a node reported nothing")
        return self._outcome

    def _run(self, folder: Path | None) -> dict[str, Any]:
        config = self._context.config
        needs_wandb = config.tracking.mode in ("auto", "online")
        data, stage = str(manifest.dataset_dir(config.data).absolute()), config.cluster.stage_data
        shared_folder = folder and str(folder)
        request = json.dumps({"shared_folder": shared_folder, "data": data, "wandb": needs_wandb, "stage": stage})
        name = f"runyard-doctor-{secrets.token_hex(4)}"
        probe = ["-m", "runyard.cluster.launch.checks.node_probe", request]
        command = self._srun(name, probe) if config.cluster.launcher == "slurm" else [sys.executable, *probe]
        with tempfile.TemporaryFile("w+") as stderr_file, subprocess.Popen(
            command, cwd=IMPORT_ROOT, env=_with_pythonpath(clean_environment()), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=stderr_file, text=True, start_new_session=True,
        ) as job:  # fmt: skip
            deadline = threading.Timer(self._wait_s + TIMEOUT_MIN * 60 + SRUN_GRACE_S, _end, (job, name))
            try:
                deadline.start()  # an interrupt may come here, too, and this process would wait for the timer
                report = _read_report(job)
                job.wait()
            except BaseException:
                _end(job, name)
                raise
            finally:
                deadline.cancel()
            stderr_file.seek(0)
            errors = stderr_file.read()
        if report is None:
            raise self._failure(job.returncode, errors)
        return report

    def _srun(self, name: str, probe: list[str]) -> list[str]:
        config, c = self._context.config, self._context.config.cluster
        same = {name: getattr(c, name) for name, known in settings_of(type(c)).items() if known.sbatch == "all"}
        same |= {name: value for name, value in given_options(c.extra).items() if name in PLACE_AND_PAYER}
        options = [f"--{name.replace('_', '-')}={value}" for name, value in same.items() if value is not None]
        if c.gpus_per_node:
            kind = gres_counts(c.gres)["gpu"][0] if c.gres else ""
            options += [f"--gres=gpu:{kind}:1" if kind else "--gres=gpu:1" if c.gres else "--gpus-per-node=1"]
        options += [f"--mem={min(c.mem_gb, MAX_MEM_GB)}G"] if c.mem_gb else []
        options += [f"--time={TIMEOUT_MIN}", f"--immediate={max(1, round(self._wait_s))}", f"--job-name={name}"]
        options += container_options(config)
        command = shlex.join([c.python or str(SCRIPTS / "python.sh"), *probe])
        runs_dir = str(nearest_existing_dir(Path(config.runs_dir)).absolute())
        begin = [*checked_lines(c.env_setup), find_python_line(), bind_line(config, runs_dir)]
        script = "\n".join(filter(None, [*begin, f"exec {command}"]))
        return ["srun", "--quiet", "--nodes=1", "--ntasks=1", *options, f"--chdir={IMPORT_ROOT}", "bash", "-c", script]

    def _failure(self, code: int, errors: str) -> Exception:
        error = error_line(errors)
        if self._context.config.cluster.launcher == "local":
            return UserError(f"{sys.executable} ended with {code}: {error[-300:]}", "make setup")
        if "busy" in error or "Immediate" in error:
            return QueryError(
                f"no node was free within {self._wait_s:g} s", "give it longer (--wait-s), or leave it out (--no-job)"
            )
        if "Unable to allocate resources" in error:
            return refusal(self._context.config.cluster, error)
        if shutil.which("srun") is None:
            return QueryError("no srun on this machine")
        return UserError(
            f"the job ended with {code}: {error[-300:]}",
            "fix cluster.python or cluster.env_setup, or run `make setup` where nodes can read it",
        )


def _read_report(job: subprocess.Popen[str]) -> dict[str, Any] | None:
    """Return the report in the probe's line, None without one. Adds ``ahead_s``, the lead of the node's clock."""
    assert job.stdout is not None
    report: dict[str, Any] | None = None
    for line in job.stdout:
        if line.startswith(OUTPUT_PREFIX):
            now = time.time()
            report = json.loads(line.removeprefix(OUTPUT_PREFIX))
            report["ahead_s"] = report["time"] - now
    return report


def _end(job: subprocess.Popen[str], name: str) -> None:
    """End the job and leave nothing on the queue: srun may still be waiting for its node."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(job.pid, signal.SIGTERM)
    if shutil.which("scancel"):
        with contextlib.suppress(QueryError):
            run_query("scancel", f"--name={name}", timeout_s=10)
    try:
        job.wait(5)
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()


def _with_pythonpath(env: dict[str, str]) -> dict[str, str]:
    path = [str(IMPORT_ROOT), env.get("PYTHONPATH", "")]
    return env | {"PYTHONPATH": os.pathsep.join(filter(None, path))}


@contextlib.contextmanager
def _shared_folder(runs_dir: Path) -> Iterator[Path | None]:
    """Create a folder where runs will be, in which both nodes leave a file. Yields None if it cannot be created."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=".runyard-doctor-", dir=nearest_existing_dir(runs_dir)))
    except OSError:
        yield None
        return
    try:
        (folder / "login").touch()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _login_node_report(folder: Path | None) -> dict[str, object]:
    """Return what the login node sees in the shared folder: the node's file, and the file server's clock."""
    if folder is None:
        return {"node_seen": None, "server_ahead_s": None}
    start_time = time.time()
    (folder / "here").touch()
    ahead_s = (folder / "here").stat().st_mtime - start_time
    return {"node_seen": (folder / "node").exists(), "server_ahead_s": ahead_s}
