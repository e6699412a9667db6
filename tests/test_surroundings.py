"""A process makes do with what it is given: no passwd entry, no HOME, no TMPDIR or a long one, foreign packages."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from runyard import surroundings
from runyard.cluster.slurm import cluster_info
from runyard.errors import UserError
from tests.support.settings import ROOT

SHORT = Path("/tmp")


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ``settle`` sets is undone."""
    for name in ("TMPDIR", "HOME", "LOGNAME", "USER", "PYTHONPATH", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
        if not os.environ[name]:
            monkeypatch.delenv(name)
    monkeypatch.setattr(tempfile, "tempdir", tempfile.tempdir)
    monkeypatch.setattr(sys, "path", sys.path)


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user that passwd does not know."""

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "LOGNAME", "USER"):
        monkeypatch.delenv(name, raising=False)


def test_a_user_without_a_passwd_entry_gets_a_name_and_a_home(
    nobody: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surroundings, "MAX_TMPDIR_BYTES", 1000)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert not surroundings.has_home()
    assert surroundings.cache_home() is None, "and no folder of the name ~"
    surroundings.settle()
    assert surroundings.user_name() == os.environ["LOGNAME"] == f"uid-{os.getuid()}"
    assert Path(os.environ["HOME"]).parent == tmp_path
    assert Path(os.environ["HOME"]).stat().st_mode & 0o777 == 0o700


def test_accounting_is_asked_by_the_user_id_where_there_is_no_name(nobody: None) -> None:
    cluster_info.ClusterInfo()


GONE = ["/nowhere/tmp", "/proc/1", "/dev/null"]


@pytest.mark.parametrize("gone", GONE)
def test_a_tmpdir_that_cannot_be_used_is_replaced_for_all_that_this_process_starts(
    gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", gone)
    surroundings.settle(needs_tmpdir=True)
    assert os.environ["TMPDIR"] == tempfile.gettempdir() == "/tmp"


def test_a_tmpdir_too_long_for_sockets_gives_way_to_a_short_one_of_this_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 70)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    surroundings.settle()
    assert os.environ["TMPDIR"] == f"/tmp/runyard-tmp-{os.getuid()}"
    assert Path(os.environ["TMPDIR"]).stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("TMPDIR", "/var/tmp")
    surroundings.settle()
    assert os.environ["TMPDIR"] == "/var/tmp", "the control"


def test_where_no_folder_is_left_a_task_says_which_variable_to_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(surroundings, "TEMPORARY_FOLDERS", ("/nowhere",))
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nowhere"])
    monkeypatch.setenv("TMPDIR", "/nowhere")
    surroundings.settle()  # a command that needs none goes on
    with pytest.raises(UserError, match=r"no temporary folder can be written .* set TMPDIR to a folder with room"):
        surroundings.settle(needs_tmpdir=True)


def test_the_working_directory_is_no_temporary_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path)])
    monkeypatch.setenv("TMPDIR", "/nowhere")
    surroundings.settle(needs_tmpdir=True)
    assert os.environ["TMPDIR"] == f"/tmp/runyard-tmp-{os.getuid()}"


def command(*arguments: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT / 'src'}"} | variables
    return subprocess.run([sys.executable, "-m", "runyard", *arguments], env=env, cwd=ROOT, capture_output=True)


def test_another_environments_numpy_on_pythonpath_is_left_out_and_named(tmp_path: Path) -> None:
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy" / "__init__.py").write_text("raise ImportError('a numpy of another Python')\n")
    path = f"{tmp_path}:{ROOT / 'src'}"
    done = command("submit", "--dry-run", "experiment=starter", "cluster=slurm", PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.decode() == f"runyard: warning: PYTHONPATH: {tmp_path} is left out: it holds another numpy\n"
    (tmp_path / "numpy").rename(tmp_path / "another_package")
    (tmp_path / "numpy.py").write_text("")
    assert b" is left out: it holds another numpy\n" in command("completion", "bash", PYTHONPATH=path).stderr
    (tmp_path / "numpy.py").unlink()
    assert command("settings", "seed", PYTHONPATH=path).stderr == b"", "the control"


@pytest.mark.parametrize("variables", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0",
                                        "PYTHONCOERCECLOCALE": "0"}, {"LANG": "C"}])  # fmt: skip
def test_what_a_terminal_cannot_show_is_escaped(variables: dict[str, str]) -> None:
    done = command("settings", "no_such_sétting", **variables)
    assert done.returncode == 2
    assert done.stderr.startswith(b"runyard: ")
    assert b"Traceback" not in done.stderr


def with_streams(redirection: str, *arguments: str, **variables: str) -> tuple[int, str, str]:
    done = subprocess.run(["bash", "-c", f'exec "$@" {redirection}', "_", sys.executable, "-m", "runyard", *arguments],
                          env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT / 'src'}"} | variables, cwd=ROOT,
                          capture_output=True, text=True)  # fmt: skip
    return done.returncode, done.stdout, done.stderr


FULL = "runyard: the standard output cannot be written (No space left on device); send it elsewhere\n"


@pytest.mark.parametrize("arguments", [("completion", "bash"), ("--help",)])
def test_an_output_on_a_full_disk_costs_a_line(arguments: tuple[str, ...]) -> None:
    assert with_streams("> /dev/full", *arguments) == (2, "", FULL)
    assert with_streams("2> /dev/full", *arguments)[::2] == (0, "")
    assert with_streams("", *arguments)[::2] == (0, ""), "the control"


def test_so_does_one_of_a_python_that_does_not_buffer() -> None:
    assert with_streams("> /dev/full", "completion", "bash", PYTHONUNBUFFERED="1") == (2, "", FULL)


def test_closed_streams_are_as_good_as_dev_null() -> None:
    assert with_streams(">&-", "completion", "bash") == (0, "", "")
    assert with_streams("<&- >&- 2>&-", "profile", "new", "x y") == (2, "", "")
