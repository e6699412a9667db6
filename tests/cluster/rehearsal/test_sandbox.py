"""What the throwaway SLURM is told is told with the environment of the one client of SLURM's commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from runyard.cluster.rehearsal.sandbox import SlurmSandbox


def test_its_commands_do_not_take_up_personal_preferences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SINFO_PARTITION", "low")
    sandbox = SlurmSandbox(tmp_path / "lab")
    environment = sandbox.run("env").splitlines()
    assert f"SLURM_CONF={tmp_path / 'lab' / 'slurm.conf'}" in environment
    assert "SINFO_PARTITION=low" not in environment
    assert sandbox.environment["SINFO_PARTITION"] == "low", "a person's shell in it keeps them"
