"""`runyard --on HOST` from a laptop to a real SLURM, by an ssh server on loopback."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.lab import Cluster
from tests.support.settings import PATIENCE_S, ROOT, SMALL
from tests.support.sshd import HOST, server
from tests.support.waiting import until

pytestmark = pytest.mark.slow


def test_a_run_is_submitted_watched_compared_and_cancelled_from_the_laptop(
    slurm: Cluster, data_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("s")
    variables = {name: slurm.sandbox.environment[name] for name in ("SLURM_CONF", "OMP_NUM_THREADS", "RUNYARD_PYTHON")}
    with server(folder, **variables) as host:
        there = host.programs / "runyard"  # of the checkout that was sent
        there.write_text(f'#!/bin/sh\nPYTHONPATH="$PWD/src" exec {sys.executable} -m runyard "$@"\n')
        there.chmod(0o755)

        def runyard(*words: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "runyard", "--on", f"{HOST}:project", *words]
            own = host.environment | {"PYTHONPATH": str(ROOT / "src")}
            return subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, timeout=PATIENCE_S)

        settings = [*SMALL, f"data.root={data_root}", "cluster=rehearsal", "experiment=null", "epochs=100000"]
        submitted = runyard("submit", "--json", *settings)
        assert submitted.returncode == 0, submitted.stderr
        run = json.loads(submitted.stdout)["run"]
        runs = host.home / "project" / "runs"
        assert (runs / run).is_dir()
        until(lambda: "epoch " in runyard("logs", run).stdout, lambda: runyard("logs", run))
        assert json.loads(runyard("status", "--json", run).stdout)[0]["state"] == "running"
        page = folder / "page.html"
        assert runyard("compare", run, "--html", str(page)).returncode == 0
        assert page.read_text().startswith("<!doctype html>")
        assert runyard("cancel", run).returncode == 0
        assert json.loads(runyard("status", "--json", run).stdout)[0]["state"] == "interrupted"
        refused = runyard("resume", run, "optim.lr=1")
        assert (refused.returncode, "would learn something else" in refused.stderr) == (2, True)
