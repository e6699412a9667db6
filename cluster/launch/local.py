"""Jobs on this machine: submitit's local executor, with runyard's own controller (``job.controller``)."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import submitit
from submitit.local.local import LocalJob

from runyard.installation import IMPORT_ROOT
from runyard.runs.run import Run
from runyard.training.stop_signals import STOP_SIGNALS

CONTROLLER_SCRIPT = Path(__file__).resolve().parents[1] / "job" / "controller.py"


class LocalExecutor(submitit.LocalExecutor):
    """Starts a job as submitit does, but with runyard's controller over its tasks."""

    def _submit_command(self, command: str) -> LocalJob[str]:  # type: ignore[override]
        parameters = self.parameters
        gpus = parameters["visible_gpus"][: parameters["gpus_per_node"]] or range(parameters["gpus_per_node"])
        # The controller runs this program's code, as sbatch is the cluster's own; its tasks run what was submitted.
        tasks = f"env PYTHONPATH={shlex.quote(os.environ.get('PYTHONPATH', ''))} {command}"
        env = os.environ | {
            "PYTHONPATH": str(IMPORT_ROOT),
            "SUBMITIT_LOCAL_NTASKS": str(parameters["tasks_per_node"]),
            "SUBMITIT_LOCAL_COMMAND": tasks,
            "SUBMITIT_LOCAL_TIMEOUT_S": str(60 * parameters["timeout_min"]),
            "SUBMITIT_LOCAL_SIGNAL_DELAY_S": str(parameters["signal_delay_s"]),
            "SUBMITIT_LOCAL_NODEID": "0",
            "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
            "SUBMITIT_EXECUTOR": "local",
            "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus)),
        }
        process = subprocess.Popen([sys.executable, str(CONTROLLER_SCRIPT), str(self.folder)], env=env)
        return LocalJob(self.folder, str(process.pid), range(parameters["tasks_per_node"]), process)


@contextlib.contextmanager
def job_environment(run: Run) -> Iterator[None]:
    """Set up what a local job inherits: the code snapshot, a log for submitit's messages, no Ctrl-C and no hang-up.

    Signals that ask to stop are blocked until the job can answer them. Ctrl-C reaches a terminal's whole process group,
    but only the attached command may act on it, by asking the job to save. A job that kept the command's output open
    would keep ``$(runyard submit --detach --json)`` waiting for its end.
    """
    saved_env = dict(os.environ)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(run.code_path), saved_env.get("PYTHONPATH")]))
    os.environ["PYTHONSAFEPATH"] = "1"  # else `python -m` would find the checkout in the working directory first
    handlers = {s: signal.signal(s, signal.SIG_IGN) for s in (signal.SIGINT, signal.SIGHUP)}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    outputs = {number: os.dup(number) for number in (0, 1, 2)}
    with open(os.devnull) as null, open(run.path / "slurm" / "controller.log", "a") as log:
        sys.stdout.flush()
        os.dup2(null.fileno(), 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        for number, saved_output in outputs.items():
            os.dup2(saved_output, number)
            os.close(saved_output)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.environ.clear()
        os.environ.update(saved_env)
