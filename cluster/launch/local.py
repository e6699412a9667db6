"""Jobs on this machine: submitit's local executor, with runyard's own controller (``job.controller``)."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import submitit
from submitit.local.local import LocalJob

from runyard.installation import IMPORT_ROOT

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
