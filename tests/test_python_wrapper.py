"""slurm/python.sh: the same Python from a virtual environment or a container, with nothing between it and a signal."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.settings import ROOT

WRAPPER = str(ROOT / "slurm" / "python.sh")


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"]} | environment
    return subprocess.run([WRAPPER, *arguments], env=environment, capture_output=True, text=True)


def image_and_runner(folder: Path) -> dict[str, str]:
    """An image, and an apptainer on PATH that prints what it was asked to do."""
    image = folder / "an image.sif"
    image.touch()
    runner = folder / "apptainer"
    runner.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\necho "PYTHONPATH=$PYTHONPATH"\n')
    runner.chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin", "RUNYARD_CONTAINER": str(image)}


def test_it_becomes_python_itself_so_that_signals_arrive() -> None:
    with subprocess.Popen(
        [WRAPPER, "-c", "import os; print(os.getpid())"],
        stdout=subprocess.PIPE,
        text=True,
        env={"PATH": os.environ["PATH"], "RUNYARD_PYTHON": sys.executable},
    ) as process:
        assert process.communicate()[0] == f"{process.pid}\n"


def test_a_copy_of_it_finds_the_environment_of_the_checkout(tmp_path: Path) -> None:
    copy = Path(shutil.copy2(WRAPPER, tmp_path / "python.sh"))
    (tmp_path / "checkout" / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / "checkout" / ".venv" / "bin" / "python").symlink_to(sys.executable)
    for root, code in ((tmp_path / "checkout", 0), (tmp_path, 127)):
        done = subprocess.run([copy, "-c", ""], env={"RUNYARD_ROOT": str(root)}, capture_output=True, text=True)
        assert done.returncode == code, done.stderr


def test_without_an_environment_it_says_how_to_make_one() -> None:
    done = run("-V", RUNYARD_PYTHON="/nowhere/python")
    assert done.returncode == 127, "what a shell says of a command that is not there"
    assert done.stderr.count("\n") == 1
    assert "make setup" in done.stderr


def test_a_container_gets_the_checkout_behind_what_pythonpath_already_holds(tmp_path: Path) -> None:
    done = run("-m", "runyard", "--help", **image_and_runner(tmp_path), PYTHONPATH="/run/code")
    *call, path = [line for line in done.stdout.splitlines() if line != "--nv"]
    assert call == [
        "exec",
        "--bind",
        str(ROOT),
        str(tmp_path / "an image.sif"),
        "/opt/runyard/.venv/bin/python",
        "-m",
        "runyard",
        "--help",
    ]
    assert path == f"PYTHONPATH=/run/code:{ROOT}/src"


def test_within_the_container_it_starts_no_other(tmp_path: Path) -> None:
    there = image_and_runner(tmp_path) | {"RUNYARD_PYTHON": sys.executable}
    assert run("-c", "print('here')", **there, APPTAINER_CONTAINER=there["RUNYARD_CONTAINER"]).stdout == "here\n"
    assert "exec\n" in run("-c", "print('here')", **there).stdout, "the control"


def test_an_overlay_is_opened_read_only(tmp_path: Path) -> None:
    overlay = tmp_path / "env.ext3"
    overlay.touch()
    done = run("-V", **image_and_runner(tmp_path), RUNYARD_OVERLAY=str(overlay), RUNYARD_PYTHON="/ext3/bin/python")
    assert f"--overlay\n{overlay}:ro\n" in done.stdout
    assert "\n/ext3/bin/python\n-V\n" in done.stdout


def test_an_image_overlay_or_runner_that_is_not_there_is_named(tmp_path: Path) -> None:
    there = image_and_runner(tmp_path)
    for changed, code, words in (
        ({"RUNYARD_CONTAINER": "/no/image.sif"}, 127, "RUNYARD_CONTAINER=/no/image.sif: no such image"),
        ({"RUNYARD_OVERLAY": "/no/overlay"}, 127, "RUNYARD_OVERLAY=/no/overlay: no such overlay"),
        ({"PATH": "/usr/bin:/bin"}, 127, "neither apptainer nor singularity"),
        ({"RUNYARD_CONTAINER": "", "RUNYARD_OVERLAY": "/an/overlay"}, 2, "needs RUNYARD_CONTAINER"),
    ):
        done = run("-V", **there | changed)
        assert (done.returncode, done.stderr.count("\n")) == (code, 1)
        assert words in done.stderr


def test_a_container_sees_the_folders_that_the_run_needs_and_that_are_there(tmp_path: Path) -> None:
    runs, data = tmp_path / "my runs", tmp_path / "data"
    runs.mkdir()
    data.mkdir()
    named = f"{runs}:{data}:/nowhere:relative::{tmp_path / 'an image.sif'}"
    done = run("-V", **image_and_runner(tmp_path), RUNYARD_BIND=named)
    words = done.stdout.splitlines()
    assert words[0] == "exec", done.stderr
    bound = [after for word, after in itertools.pairwise(words) if word == "--bind"]
    assert sorted(bound) == sorted([str(runs), str(data), str(ROOT)])
    assert "\n-V\n" in done.stdout
