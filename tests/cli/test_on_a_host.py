"""`runyard --on HOST`: the project goes there, the command runs there, its output, exit code and files come back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runyard.cli.main import main
from tests.support.settings import PATIENCE_S, ROOT
from tests.support.sshd import HOST, Server, server

Done = subprocess.CompletedProcess[str]
Runyard = Callable[..., Done]
# Stands for the host's runyard: says where it is and what it is asked, and writes what --html names.
STUB = """\
#!/usr/bin/env python3
import json, os, sys
sys.argv[1] == "report" or print(json.dumps({"folder": os.getcwd(), "words": sys.argv[1:]}))
print("to stderr", file=sys.stderr)
for word in sys.argv[1:]:
    option, _, value = word.partition("=")
    if option == "--html":
        open(value, "w").write("the page")
    if option == "--png":
        os.mkdir(value)
        open(value + "/curves.png", "w").write("a figure")
if sys.argv[1] == "report":
    os.makedirs("runs/A/report", exist_ok=True)
    open("runs/A/report/index.html", "w").write("the report")
    print("runs/A/report/index.html")
sys.exit(7 if "fails" in sys.argv else 0)
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with server(tmp_path_factory.mktemp("s")) as found:
        (found.programs / "runyard").write_text(STUB)
        (found.programs / "runyard").chmod(0o755)
        yield found


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small one, with what is no part of it beside: data, runs, and what git ignores."""
    folder = tmp_path / "my project"
    for name in ("configs/experiment/mine.yaml", "data/large.bin", "runs/A/run.json", "pkg/data/code.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


@pytest.fixture
def runyard(host: Server, project: Path) -> Runyard:
    def command(*words: str, **variables: str) -> Done:
        arguments = [sys.executable, "-m", "runyard", "--on", *words]
        own = host.environment | {"PYTHONPATH": str(ROOT / "src")} | variables
        return subprocess.run(arguments, cwd=project, env=own, capture_output=True, text=True, timeout=PATIENCE_S)

    return command


def there(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def without(program: str, host: Server, folder: Path) -> dict[str, str]:
    """A PATH here on which ``program`` does not exist."""
    folder.mkdir()
    for name in ("ssh", "git", "tar", "gzip", "sh", "env"):
        if name != program:
            (folder / name).symlink_to(shutil.which(name, path=host.environment["PATH"]) or "nowhere")
    return {"PATH": str(folder)}


def test_a_submission_takes_the_project_along_and_runs_in_its_folder(host: Server, runyard: Runyard) -> None:
    done = runyard(HOST, "submit", "cluster=slurm", "tracking.tags=['a b']")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)  # and no word of the profile's
    assert said["folder"] == str(host.home / "my project")
    assert said["words"] == ["submit", "cluster=slurm", "tracking.tags=['a b']"]
    assert done.stderr == "to stderr\n"
    assert there(host.home / "my project") == [".runyard-sent", "configs/experiment/mine.yaml", "pkg/data/code.py"]


@pytest.mark.parametrize("program", ["rsync", "nothing"])
def test_what_was_deleted_and_changed_here_is_there_too_and_data_and_runs_there_stay(
    program: str, host: Server, runyard: Runyard, project: Path, tmp_path: Path
) -> None:
    place, own = f"way of {program}", without(program, host, tmp_path / "bin") if program == "rsync" else {}
    assert runyard(f"{HOST}:{place}", "submit", **own).returncode == 0
    kept = host.home / place / "runs" / "B"
    kept.mkdir(parents=True)
    (kept / "run.json").write_text("a run of the cluster")
    (project / "pkg" / "data" / "code.py").unlink()
    (project / "configs" / "experiment" / "mine.yaml").write_text("configs/experiment/MINE.yaml")  # as long as before
    assert runyard(f"{HOST}:{place}", "submit", **own).returncode == 0
    assert there(host.home / place) == [".runyard-sent", "configs/experiment/mine.yaml", "runs/B/run.json"]
    assert (host.home / place / "configs/experiment/mine.yaml").read_text() == "configs/experiment/MINE.yaml"


def test_what_git_ignores_stays_here_but_a_persons_own_settings_go(
    host: Server, runyard: Runyard, project: Path
) -> None:
    subprocess.run(["git", "init", "-q", project], check=True)
    (project / ".gitignore").write_text("/data/\n/runs/\nsecret\n/configs/local/\n")
    (project / "secret").write_text("")
    (project / "configs" / "local").mkdir()
    (project / "configs" / "local" / "me.yaml").write_text("")
    assert runyard(f"{HOST}:by-git", "submit").returncode == 0
    sent = there(host.home / "by-git")
    assert "configs/local/me.yaml" in sent
    assert not {"secret", "data/large.bin", "runs/A/run.json"} & set(sent)


def test_a_command_that_only_reads_sends_nothing_and_its_exit_code_comes_back(host: Server, runyard: Runyard) -> None:
    (host.home / "elsewhere").mkdir()
    done = runyard(f"{HOST}:{host.home}/elsewhere", "status", "fails")
    assert done.returncode == 7, done.stderr
    assert there(host.home / "elsewhere") == []


def test_the_pages_that_are_asked_for_come_back_and_nothing_of_them_stays(
    host: Server, runyard: Runyard, project: Path
) -> None:
    (host.home / "my project").mkdir(exist_ok=True)
    done = runyard(HOST, "compare", "--all", "--html", "pages/page.html", "--png=figures")
    assert done.returncode == 0, done.stderr
    assert (project / "pages" / "page.html").read_text() == "the page"
    assert (project / "figures" / "curves.png").read_text() == "a figure"
    assert list((host.home / "my project" / ".runyard-results").iterdir()) == []
    assert runyard(HOST, "report", "A").stdout == "report-A/index.html\n"
    assert (project / "report-A" / "index.html").read_text() == "the report"


def test_one_connection_serves_all_and_only_this_user_can_use_it(host: Server, runyard: Runyard) -> None:
    (host.home / "my project").mkdir(exist_ok=True)
    assert runyard(HOST, "status").returncode == 0
    folder = Path(host.environment["XDG_RUNTIME_DIR"]) / f"runyard-ssh-{os.getuid()}"
    (control,) = folder.iterdir()
    assert control.is_socket()
    assert folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["gone", "status"], "first make this work: ssh gone"),
        (["gone", "submit"], "first make this work: ssh gone"),
        ([HOST, "completion", "bash"], "not with runyard completion"),
        ([f"{HOST}:nowhere", "status"], "nowhere"),
    ],
)
def test_what_cannot_be_is_said_with_what_to_do(words: list[str], why: str, runyard: Runyard) -> None:
    done = runyard(*words)
    assert done.returncode == 2
    assert why in done.stderr.splitlines()[-1]


def test_an_option_of_sshs_is_no_host(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("ssh was asked"))
    assert main(["--on=-oProxyCommand=false", "status"]) == 2
    assert "no name of a host" in capsys.readouterr().err


def test_a_host_without_runyard_says_how_to_get_it_there(host: Server, runyard: Runyard) -> None:
    (host.programs / "runyard").rename(host.programs / "away")
    try:
        done = runyard(HOST, "submit")
    finally:
        (host.programs / "away").rename(host.programs / "runyard")
    assert done.returncode == 2
    assert "no runyard in my project on cluster" in done.stderr
    assert "make setup" in done.stderr


def test_a_home_directory_is_not_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(["--on", HOST, "submit"]) == 2
    assert "no project" in capsys.readouterr().err
