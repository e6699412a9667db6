"""`runyard slurm` where there is none, and `submit cluster=slurm` where there is no SLURM: one line that says how."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from runyard.cli.main import main
from runyard.cluster.rehearsal import playground


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / f"runyard-slurm-{os.getuid()}"


def test_up_says_how_slurm_is_installed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("runyard.cluster.rehearsal.supervisor.search_path", lambda: "")
    assert main(["slurm", "up"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no munged, slurmctld" in error
    assert "apt-get install slurm-wlm" in error


@pytest.mark.parametrize("data", ["data=synthetic", "data=cifar10"])
def test_submit_without_sbatch_names_the_slurm_that_can_be_had_here(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    assert main(["submit", "experiment=null", "cluster=slurm", data, "data.root=nothing"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("runyard: no sbatch and no srun on this machine")
    assert error.count("\n") == 1
    assert "`runyard slurm up`" in error


def test_a_dry_run_needs_no_sbatch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("runyard.cluster.launch.batch_script.require_sbatch", lambda: pytest.fail("asked"))
    assert main(["submit", "--dry-run", "experiment=null", "cluster=slurm", "data=synthetic"]) == 0
    assert "#SBATCH" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["shell"], ["shell", "--", "true"]])
def test_a_shell_without_one_says_how_to_start_it(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["slurm", *words]) == 2
    assert capsys.readouterr().err == "runyard: no SLURM of yours is up on this machine; start one: runyard slurm up\n"


@pytest.mark.parametrize(
    "words",
    [["down", "now"], ["up", "--", "true"], ["shell", "sinfo"], ["up", "--nodes", "0"], ["down", "--nodes", "2"]],
)
def test_what_an_action_does_not_take_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["slurm", *words]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_record_counts_as_long_as_its_very_process_lives(folder: Path) -> None:
    playground.state_folder()
    with subprocess.Popen(["sleep", "900"]) as process:
        ticks = playground.start_ticks(process.pid)
        record = {"pid": process.pid, "start_ticks": ticks, "nodes": ["node1"], "since": 0.0, "folder": "slurm-1"}
        (folder / playground.RECORD).write_text(json.dumps(record))
        assert playground.find() is not None
        (folder / playground.RECORD).write_text(json.dumps(record | {"start_ticks": 1}))
        assert playground.find() is None, "another process has got its id"
        assert not playground.down()
        assert process.poll() is None, "down ends what up started alone"
        (folder / playground.RECORD).write_text(json.dumps(record))
        process.kill()
    assert playground.find() is None


def test_another_users_folder_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    assert main(["slurm", "status"]) == 2
    assert "others can write" in capsys.readouterr().err
