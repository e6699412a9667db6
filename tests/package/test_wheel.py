"""The built package holds all that the checkout's program needs, and works without the checkout.

It is built and installed without a network: by setuptools of this environment, whose other libraries the new one
borrows. A borrowed folder's own ``.pth`` files are not followed, so the editable ``runyard`` does not come along.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.fake_slurm import FakeSlurm
from tests.support.settings import PATIENCE_S, SMALL, SMALL_DATA

ROOT = Path(__file__).resolve().parents[2]
PARTS = {"src/runyard": "runyard", "cluster": "runyard/cluster", "configs": "runyard/configs", "slurm": "runyard/slurm"}
LINKS = ("cluster", "configs", "slurm")
BUILD = "import sys; from setuptools import build_meta as b; getattr(b, 'build_' + sys.argv[1])(sys.argv[2])"
TINY = (
    *SMALL_DATA,
    "experiment=starter",
    "epochs=2",
    "batch_size=64",
    "model.widths=[4,8]",
    "cluster.tasks_per_node=2",
    "tracking=none",
)


def copy_sources(target: Path) -> Path:
    """Copy what a clone of the checkout would hold of the package, links included, and nothing that was built."""
    target.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target)
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "local")
    for name in ("src", *LINKS):
        shutil.copytree(ROOT / name, target / name, symlinks=True, ignore=ignored)
    return target


def build(sources: Path, kind: str, out: Path) -> Path:
    """Build the ``wheel`` or the ``sdist`` of these sources."""
    out.mkdir()
    command = [sys.executable, "-c", BUILD, kind, str(out)]
    built = subprocess.run(command, cwd=sources, env=os.environ, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return next(out.iterdir())


def expected(sources: Path) -> set[str]:
    """The files that a wheel of these sources must hold."""
    return {
        f"{target}/{path.relative_to(sources / part)}"
        for part, target in PARTS.items()
        for path in (sources / part).rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def missing(sources: Path, wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return expected(sources) - set(archive.namelist())


def test_the_wheel_holds_every_module_configuration_and_script(tmp_path: Path) -> None:
    sources = copy_sources(tmp_path / "sources")
    wheel = build(sources, "wheel", tmp_path / "wheel")
    assert missing(sources, wheel) == set()
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.partition("/")[0] for name in archive.namelist()}
        executable = {name for name in archive.namelist() if archive.getinfo(name).external_attr >> 16 & 0o100}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"runyard"}
    assert {"runyard/slurm/python.sh", "runyard/slurm/requeue.sh"} <= executable


def test_a_wheel_built_from_the_source_archive_is_whole_too(tmp_path: Path) -> None:
    sources = copy_sources(tmp_path / "sources")
    archive = build(sources, "sdist", tmp_path / "sdist")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    wheel = build(tmp_path / archive.name.removesuffix(".tar.gz"), "wheel", tmp_path / "wheel")
    assert missing(sources, wheel) == set()


def test_a_wheel_without_a_linked_folder_is_seen(tmp_path: Path) -> None:
    sources = copy_sources(tmp_path / "sources")
    (sources / "src" / "runyard" / "configs").unlink()
    assert "runyard/configs/train.yaml" in missing(sources, build(sources, "wheel", tmp_path / "wheel"))


@dataclass
class Installed:
    """The wheel in an environment of its own, and a person's folder in which its commands are typed."""

    environment: Path
    folder: Path

    def run(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "SUBMITIT", "RUNYARD", "VIRTUAL"))}
        command = [str(self.environment / "bin" / words[0]), *words[1:]]
        env = clean | {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"} | variables
        return subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, timeout=PATIENCE_S)

    def say(self, *words: str) -> str:
        """Run a command of runyard that must succeed, and return what it printed."""
        done = self.run("runyard", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @property
    def site_packages(self) -> Path:
        return next(self.environment.glob("lib/python*/site-packages"))

    def files(self) -> dict[str, int]:
        """Every file of the environment but Python's own caches, with the time of its last change."""
        paths = [path for path in self.environment.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        return {str(path): path.stat().st_mtime_ns for path in paths}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    base = tmp_path_factory.mktemp("installed")
    wheel = build(copy_sources(base / "sources"), "wheel", base / "wheel")
    uv = shutil.which("uv", path=f"{ROOT}/build/uv/bin:{os.environ['PATH']}")
    assert uv, "make setup brings it"
    made = Installed(base / "environment", base / "folder")
    made.folder.mkdir()
    venv.create(made.environment, symlinks=True)
    command = [uv, "pip", "install", "--quiet", "--offline", "--no-deps", "--python", str(made.environment), str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(base / "sources")
    (made.site_packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return made


@pytest.mark.slow
def test_an_installed_package_prepares_trains_and_compares_outside_the_checkout(installed: Installed) -> None:
    where = installed.run("python", "-c", "import runyard; print(runyard.__file__)").stdout.strip()
    assert Path(where) == installed.site_packages / "runyard" / "__init__.py"
    before = installed.files()

    installed.say("prepare", *SMALL_DATA)
    for seed in (0, 1):
        installed.say("submit", *TINY, f"seed={seed}")
    runs = sorted(path for path in (installed.folder / "runs").iterdir() if (path / "run.json").exists())
    assert len(runs) == 2
    for run in runs:
        epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [event["world_size"] for event in epochs if event["event"] == "start"] == [2]
        assert [event["epoch"] for event in epochs if event["event"] == "epoch"] == [1, 2]
        assert (run / "report" / "index.html").exists()
        assert (run / "code" / "runyard" / "cluster" / "job" / "task.py").exists()
        assert (run / "code" / "slurm" / "python.sh").stat().st_mode & 0o100
        assert not [line for line in (run / "config.yaml").read_text().splitlines() if str(ROOT) in line]
    assert len(re.findall(r"^2\S+ +finished +8/8", installed.say("status"), re.M)) == 2
    assert "finished" in installed.say("status", runs[0].name)
    assert re.search(r"^starter +2 ", installed.say("compare", "--all"), re.M), "one row of two seeds"
    installed.say("report", "@last")
    script = installed.say("submit", *TINY, "cluster=slurm", "cluster.nodes=2", "--dry-run")
    assert str(installed.environment / "bin" / "python") in script

    slurm = FakeSlurm(installed.folder.parent / "slurm")
    done = installed.run("runyard", "profile", "new", "mine", PATH=slurm.path)
    assert done.returncode == 0, done.stderr
    script = installed.say("submit", *TINY, "cluster=mine", "cluster.gpus_per_node=2", "--dry-run")
    assert "#SBATCH --gres=gpu:h200:2\n" in script

    assert installed.files() == before, "nothing is written into the environment"


@pytest.mark.slow
def test_a_run_of_an_installed_package_continues_with_its_own_code(installed: Installed) -> None:
    """After an upgrade of the package the run's snapshot is used, as after a change of a checkout."""
    installed.say("prepare", *SMALL_DATA)
    run = installed.say("create", *TINY).strip()
    snapshot = json.loads((installed.folder / run / "run.json").read_text())["code_sha256"]
    module = installed.site_packages / "runyard" / "models" / "starter.py"
    old = module.read_text()
    try:
        module.write_text(old + "\n# a later version\n")
        done = installed.run("runyard", "train", run)
    finally:
        module.write_text(old)
    assert done.returncode == 0, done.stderr
    assert "using its own" in done.stderr
    assert json.loads((installed.folder / run / "run.json").read_text())["code_sha256"] == snapshot


@pytest.mark.slow
def test_a_run_that_an_installed_package_rehearses_ends_with_the_undisturbed_ones_weights(
    installed: Installed, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if not any(shutil.which("slurmctld", path=path) for path in (os.environ["PATH"], "/usr/sbin")):
        pytest.skip("no SLURM on this machine: make rehearsal-tools")
    installed.say("prepare", *SMALL_DATA)
    before, folder = installed.files(), tmp_path_factory.mktemp("r")  # sockets lie in it: its path is short
    command = ("runyard", "rehearse", "--json", "experiment=null", *SMALL, "cluster.nodes=3")
    done = installed.run(*command, TMPDIR=str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    assert installed.files() == before
    told = json.loads(done.stdout)
    assert told["equal"]
    limit, killed, power = told["interruptions"]
    assert (limit["what"], limit["requeued_by"], limit["lost_steps"]) == ("time limit", "its script", 0)
    assert (killed["what"], killed["requeued_by"]) == ("rank 2 killed", "its script")
    assert (power["what"], power["requeued_by"]) == ("node without power", "SLURM")
    assert 0 < limit["resumed_at"] < killed["resumed_at"] < power["resumed_at"]
    assert list(folder.iterdir()) == []
