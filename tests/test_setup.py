"""Set-up of a bare machine, on machines that are faked: a PATH of stand-ins that note how they were called."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.second_user import needs_root
from tests.support.settings import ROOT

REAL_TOOLS = [
    "cat",
    "chmod",
    "cp",
    "dirname",
    "env",
    "find",
    "flock",
    "make",
    "mkdir",
    "mv",
    "rm",
    "sed",
    "sh",
    "sha256sum",
    "tail",
]

# Each stand-in notes its arguments in $FAKES/calls; a file $FAKES/lacks/NAME says that the machine has no NAME.
STAND_INS = {
    "id": '[ -e "$FAKES/lacks/root" ] && echo 1000 || echo 0',
    "pkg-config": 'echo "pkg-config $*" >>"$FAKES/calls"; [ ! -e "$FAKES/lacks/$2" ]',
    "c++": "exit 0",
    "sudo": 'echo "sudo $*" >>"$FAKES/calls"; [ "$1" != -n ] || shift; "$@"',
    "python3": """case "$*" in
        *Python.h*) [ ! -e "$FAKES/lacks/headers" ] ;;
        *"pip --version"*) [ ! -e "$FAKES/lacks/pip" ] ;;
        *ensurepip*) [ ! -e "$FAKES/lacks/venv" ] ;;
        *sys.exit*) [ ! -e "$FAKES/lacks/python" ] ;;
        *"-m pip install"*|*"-m venv"*) echo "python3 $*" >>"$FAKES/calls"
            mkdir -p build/uv/bin; cp "$FAKES/python3" build/uv/bin/python; cp "$FAKES/uv" build/uv/bin/uv ;;
        *) echo 3.11 ;;
    esac""",
    "apt-get": """echo "apt-get $*" >>"$FAKES/calls"
        if [ -e "$FAKES/lacks/network" ]; then for i in 1 2 3 4; do echo "E: wall of text"; done; exit 100; fi
        case "$*" in *slurm-wlm*) cat "$POLICY_RC_D" >"$FAKES/policy" 2>/dev/null ;; esac
        [ "$1" != install ] || for got in opencv4 libturbojpeg headers venv; do rm -f "$FAKES/lacks/$got"; done""",
    "uv": """case "$1" in --version) exit 0 ;; esac
        echo "uv $*" >>"$FAKES/calls"
        case "$*" in
            venv*) mkdir -p .venv/bin; cp "$FAKES/venv-python" .venv/bin/python; cp "$FAKES/runyard" .venv/bin ;;
            "pip sync"*) [ ! -e "$FAKES/killed" ] || kill -9 $PPID ;;
            "cache clean"*) rm -f "$FAKES/lacks/libopencv.so" ;;
        esac""",
    "venv-python": '[ ! -e "$FAKES/lacks/libopencv.so" ]',
    "runyard": 'echo "runyard $*" >>"$FAKES/calls"; [ ! -e "$FAKES/lacks/data" ] || exit 2',
}


class Machine:
    """A checkout and a PATH of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bin, self.fakes = folder / "checkout", folder / "bin", folder / "fakes"
        for made in (self.folder / "slurm", self.bin, self.fakes / "lacks"):
            made.mkdir(parents=True)
        for name in ("Makefile", "pyproject.toml", "requirements.lock", "slurm/setup.sh"):
            shutil.copy(ROOT / name, self.folder / name)
        for name in REAL_TOOLS:
            (self.bin / name).symlink_to(str(shutil.which(name)))
        for name, body in STAND_INS.items():
            (self.fakes / name).write_text(f"#!/bin/sh\n{body}\n")
            (self.fakes / name).chmod(0o755)
            if name not in ("venv-python", "runyard"):
                (self.bin / name).symlink_to(self.fakes / name)

    def lacks(self, *names: str) -> Machine:
        for name in names:
            if (self.bin / name).is_symlink():
                (self.bin / name).unlink()
            else:
                (self.fakes / "lacks" / name).touch()
        return self

    def gains(self, name: str) -> None:
        (self.fakes / "lacks" / name).unlink()

    def make(self, target: str = "setup", *before: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run ``make``, as the argument of the program ``before`` if there is one."""
        (self.fakes / "calls").write_text("")
        environment = {
            "PATH": str(self.bin),
            "HOME": str(self.folder),
            "FAKES": str(self.fakes),
            "POLICY_RC_D": str(self.fakes / "policy-rc.d"),
            **variables,
        }
        return subprocess.run(
            [*before, self.bin / "make", target],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    def calls(self, tool: str) -> list[str]:
        lines = (self.fakes / "calls").read_text().splitlines()
        return [line.removeprefix(tool + " ") for line in lines if line.startswith(tool + " ")]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_complete_machine_gets_the_hash_checked_environment_without_root(machine: Machine) -> None:
    done = machine.lacks("root", "sudo").make()
    assert done.returncode == 0, done.stderr
    venv, sync, project = machine.calls("uv")
    assert venv.startswith("venv ")
    assert sync.startswith("pip sync ")
    assert "--require-hashes" in sync
    assert sync.endswith(" requirements.lock")
    assert "--no-deps" in project
    assert project.endswith("-e .")
    assert machine.calls("apt-get") == []


def test_without_root_and_libraries_it_stops_at_once_and_names_every_remedy(machine: Machine) -> None:
    done = machine.lacks("root", "sudo", "uv", "pip", "venv", "pkg-config", "c++", "headers").make()
    assert done.returncode == 2
    for words in (
        "OpenCV",
        "TurboJPEG",
        "C++ compiler",
        "Python.h",
        "uv",
        "slurm/environment.yml",
        "slurm/runyard.def",
        "opencv libjpeg-turbo pkg-config compilers",
        "pkg-config libopencv-dev libturbojpeg0-dev build-essential python3.11-dev python3.11-venv",
    ):
        assert words in done.stderr
    assert len(done.stderr.splitlines()) <= 7  # make adds one
    assert machine.calls("uv") + machine.calls("apt-get") + machine.calls("python3") == []
    assert not (machine.folder / ".venv").exists()


@pytest.mark.parametrize(
    ("lacking", "package"),
    [
        ("opencv4", "libopencv-dev"),
        ("libturbojpeg", "libturbojpeg0-dev"),
        ("c++", "build-essential"),
        ("headers", "python3.11-dev"),
    ],
)
def test_one_missing_library_is_named_alone(machine: Machine, lacking: str, package: str) -> None:
    done = machine.lacks("root", "sudo", lacking).make()
    assert done.returncode == 2
    assert f"--no-install-recommends {package}\n" in done.stderr


def test_root_gets_what_is_missing_and_nothing_else(machine: Machine) -> None:
    assert machine.lacks("opencv4", "headers").make().returncode == 0
    assert machine.calls("apt-get") == ["update", "install -y --no-install-recommends libopencv-dev python3.11-dev"]
    assert machine.calls("sudo") == []


def test_sudo_is_asked_where_one_is_not_root_and_without_a_terminal_waits_for_no_password(machine: Machine) -> None:
    assert machine.lacks("root", "opencv4").make().returncode == 0
    assert [call.split()[0] for call in machine.calls("sudo")] == ["-n", "-n"]
    assert len(machine.calls("apt-get")) == 2


def test_a_failing_apt_get_ends_in_the_short_message_too(machine: Machine) -> None:
    done = machine.lacks("network", "opencv4").make()
    assert done.returncode == 2
    assert "libopencv-dev" in done.stderr
    assert done.stderr.count("wall of text") == 1
    assert machine.calls("uv") == []


def test_no_python_in_range_is_said_before_anything_else(machine: Machine) -> None:
    done = machine.lacks("python").make()
    assert done.returncode == 2
    assert "no Python 3.11, 3.12 or 3.13 found" in done.stderr


def test_the_second_call_installs_nothing(machine: Machine) -> None:
    machine.make()
    for path in machine.folder.rglob("*"):
        os.utime(path)  # as in a fresh clone, file times tell nothing
    done = machine.lacks("pkg-config", "c++").make()  # what only the build needed may go
    assert done.returncode == 0
    assert machine.calls("uv") == machine.calls("apt-get") == machine.calls("pkg-config") == []


@pytest.mark.parametrize(
    ("name", "old", "new", "again"),
    [
        ("requirements.lock", "numba==", "numba==9", True),
        ("pyproject.toml", '"runyard.cli.main:main"', '"runyard.cli.main:other"', True),
        ("pyproject.toml", "line-length = ", "line-length = 9", False),  # .venv may be in use
    ],
)
def test_a_changed_lock_or_project_is_installed(machine: Machine, name: str, old: str, new: str, again: bool) -> None:
    machine.make()
    path = machine.folder / name
    before = path.stat()
    path.write_text(path.read_text().replace(old, new))
    os.utime(path, (before.st_atime, before.st_mtime))  # told by content, so an old time does not hide it
    machine.make()
    assert [call.split()[0] for call in machine.calls("uv")] == (["venv", "pip", "pip"] if again else [])


def test_a_checkout_that_moved_is_installed_again(machine: Machine) -> None:
    machine.make()
    machine.folder = machine.folder.rename(machine.folder.with_name("elsewhere"))
    machine.make()
    assert len(machine.calls("uv")) == 3


def test_an_install_that_was_killed_is_begun_anew_from_an_empty_environment(machine: Machine) -> None:
    (machine.fakes / "killed").touch()
    assert machine.make().returncode != 0
    (machine.folder / ".venv" / "half-written").touch()
    (machine.fakes / "killed").unlink()
    assert machine.make().returncode == 0
    assert len(machine.calls("uv")) == 3
    assert not (machine.folder / ".venv" / "half-written").exists()


def test_an_update_that_was_killed_does_not_pass_for_the_environment_before_it(machine: Machine) -> None:
    lock = machine.folder / "requirements.lock"
    old = lock.read_text()
    machine.make()
    (machine.fakes / "killed").touch()
    lock.write_text(old + "# newer\n")
    assert machine.make().returncode != 0
    (machine.fakes / "killed").unlink()
    lock.write_text(old)
    machine.make()
    assert len(machine.calls("uv")) == 3


def test_ffcv_built_against_other_os_libraries_is_built_again(machine: Machine) -> None:
    machine.make()
    done = machine.lacks("libopencv.so").make()
    assert done.returncode == 0, done.stderr
    assert any(call.startswith("cache clean") and call.endswith("ffcv") for call in machine.calls("uv"))
    assert any("--reinstall-package ffcv" in call for call in machine.calls("uv"))


@pytest.mark.parametrize(
    ("lacking", "way"),
    [((), "-m pip install -q --disable-pip-version-check --target build/uv uv"), (("pip",), "-m venv build/uv")],
)
def test_uv_comes_by_pip_or_in_a_venv_where_it_is_missing(machine: Machine, lacking: tuple[str, ...], way: str) -> None:
    done = machine.lacks("root", "sudo", "uv", *lacking).make()
    assert done.returncode == 0, done.stderr
    assert machine.calls("python3")[0] == way
    assert len(machine.calls("uv")) == 3


def test_slurms_packages_come_alone_and_start_no_service(machine: Machine) -> None:
    done = machine.make("rehearsal-tools")
    assert done.returncode == 0, done.stderr
    assert machine.calls("apt-get") == [
        "update",
        "install -y --no-install-recommends --no-remove slurm-wlm munge slurmdbd mariadb-server-core openssh-server "
        "rsync",
    ]
    assert machine.calls("uv") == []
    assert "exit 101" in (machine.fakes / "policy").read_text()  # as the packages found it
    assert not (machine.fakes / "policy-rc.d").exists()


def test_where_slurm_cannot_be_had_it_is_said_and_no_error(machine: Machine) -> None:
    done = machine.lacks("root", "sudo").make("rehearsal-tools")
    assert done.returncode == 0, done.stderr
    assert "tests that rehearse on it are skipped" in done.stderr
    assert machine.calls("apt-get") == []


def test_npm_is_installed_only_where_the_other_sources_failed(machine: Machine) -> None:
    assert machine.make("data").returncode == 0
    assert machine.calls("runyard") == ["prepare data=cifar10"]
    assert machine.calls("apt-get") == []
    assert machine.lacks("data").make("data").returncode == 2
    assert machine.calls("apt-get") == ["update", "install -y --no-install-recommends npm"]
    assert machine.calls("runyard") == ["prepare data=cifar10"] * 2


def test_only_one_set_up_at_a_time_works_on_a_checkout(machine: Machine) -> None:
    (machine.folder / "build").mkdir()
    lock = str(machine.folder / "build" / "setup.lock")
    holder = subprocess.Popen(
        ["flock", lock, "sh", "-c", "echo held; read line"], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin and holder.stdout  # noqa: PT018  for the type checker
    holder.stdout.readline()
    (machine.fakes / "calls").write_text("")
    environment = {"PATH": str(machine.bin), "FAKES": str(machine.fakes)}
    second = subprocess.Popen(
        [machine.bin / "make", "setup"], cwd=machine.folder, env=environment, text=True, stderr=subprocess.PIPE
    )
    assert second.stderr
    assert "waiting for another set-up" in second.stderr.readline()
    assert machine.calls("uv") == []
    holder.communicate("\n")
    second.communicate()
    assert len(machine.calls("uv")) == 3


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_set_up_with_a_warning(machine: Machine, no_locks: Path, number: int) -> None:
    done = machine.make("data", LD_PRELOAD=str(no_locks), NO_LOCKS=str(number))
    assert done.returncode == 0, done.stderr
    assert "setup: warning: this disk has no file locks" in done.stderr
    assert "waiting" not in done.stderr
    assert machine.calls("runyard") == ["prepare data=cifar10"]
    assert "no file locks" not in machine.make("data").stderr  # the control: with locks


@needs_root
@pytest.mark.parametrize("complete", [True, False])
def test_a_checkout_that_cannot_be_written_is_enough_if_it_has_everything(machine: Machine, complete: bool) -> None:
    if complete:
        machine.make()
    mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && cd "$0" && exec "$@"'
    mounted = [str(shutil.which("unshare")), "--mount", str(shutil.which("sh")), "-c", mount, str(machine.folder)]
    done = machine.make("data", *mounted, PATH=f"{machine.bin}:{os.environ['PATH']}")
    assert machine.calls("uv") == []
    if complete:
        assert (done.returncode, machine.calls("runyard")) == (0, ["prepare data=cifar10"]), done.stderr
    else:
        assert done.returncode == 2
        assert f"not set up, and {machine.folder} cannot be written" in done.stderr
