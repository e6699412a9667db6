"""A run's directory: whole or absent, found by what a person types, written by one process, and its code its own."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runyard.config.schema import Config, config_to_dict
from runyard.errors import UserError
from runyard.ownership import per_user_name
from runyard.runs import record as record_module
from runyard.runs.journal import Journal
from runyard.runs.run import Run
from tests.support.settings import ROOT


@pytest.fixture
def create(tmp_path: Path, make_config: Callable[..., Config]) -> Callable[..., Run]:
    """``create("epochs=2")``: a run under ``tmp_path/runs``."""
    return lambda *overrides: Run.create(
        make_config("experiment=starter", f"runs_dir={tmp_path / 'runs'}", *overrides), list(overrides)
    )


def left(folder: Path) -> list[str]:
    """Everything below ``folder`` but the store of code, and what is half-made in that."""
    found = [p for p in folder.rglob("*") if per_user_name(".code") not in p.parts or ".making" in p.name]
    return sorted(str(p.relative_to(folder)) for p in found)


def test_what_was_created_is_what_is_opened(create: Callable[..., Run]) -> None:
    made = create("epochs=7")
    opened = Run.open(made.path)
    assert opened.config == made.config
    assert opened.record == made.record
    assert opened.record["overrides"] == ["epochs=7"]
    assert (opened.code_path / "runyard" / "runs" / "run.py").is_file()
    assert not opened.config_edited


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("runyard.runs.run", "write_atomic"),
        ("runyard.runs.run", "take_snapshot"),
        ("shutil", "copyfile"),
        ("pathlib.Path", "rename"),
    ],
)
def test_a_disk_that_fills_while_a_run_is_made_leaves_nothing(
    create: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str
) -> None:
    monkeypatch.setattr(f"{module}.{name}", full)
    with pytest.raises(UserError, match=r"runs_dir=.*No space left on device"):
        create()
    assert left(tmp_path / "runs") == []
    monkeypatch.undo()
    create()
    assert left(tmp_path / "runs") != []


def test_a_run_goes_by_its_id_the_beginning_of_it_last_or_its_path(create: Callable[..., Run], tmp_path: Path) -> None:
    older, newer = create("name=older"), create("name=newer")
    runs = tmp_path / "runs"
    last = max(older.id, newer.id)
    assert Run.find(older.id, runs).id == older.id
    assert Run.find(older.id[:-1], runs).id == older.id
    assert Run.find("@last", runs).id == last
    assert Run.find(str(newer.path)).id == newer.id


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("", "RUN"),
        ("20", "20 "),
        ("nosuch", " nosuch "),
        ("./nosuch", "nosuch: "),
        ("x" * 5000, " xxx"),
        ("/" + "x" * 5000, "/xxx"),
        (".code", r" \.code "),
        ("\0", r"\\x00"),
        (f"{ROOT}/tests", f"{ROOT}/tests: "),
    ],
)
def test_a_reference_that_names_no_run_or_several_is_refused(
    create: Callable[..., Run], tmp_path: Path, reference: str, message: str
) -> None:
    create("name=a")
    create("name=b")
    with pytest.raises(UserError, match=message):
        Run.find(reference, tmp_path / "runs")


def test_without_runs_there_is_no_last(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="@last"):
        Run.find("@last", tmp_path)


def test_a_run_in_the_making_is_not_found(create: Callable[..., Run], tmp_path: Path) -> None:
    made = create()
    made.path.rename(made.path.with_name(f".making-{made.id}"))
    with pytest.raises(UserError, match="@last"):
        Run.find("@last", tmp_path / "runs")


def record(**values: Any) -> str:
    return json.dumps({"format": "runyard-run-1", "id": "x", "jobs": []} | values)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("run.json", None, "no run directory"),
        ("run.json", "", "run.json: damaged"),
        ("run.json", "[]", "no mapping"),
        ("run.json", '{"format": "other"}', "format 'other'"),
        ("run.json", '{"format": "runyard-run-1"}', "no plain name"),
        ("run.json", record(id="../victim"), r"run.json: damaged \(id '../victim': no plain name\)"),
        ("run.json", record(id=".code"), "no plain name"),
        ("run.json", record(id=""), "no plain name"),
        ("run.json", record(id="a\0"), "no plain name"),
        ("run.json", record(jobs={}), r"damaged \(id or jobs\)"),
        ("run.json", record(jobs=[1]), r"damaged \(jobs: 1: no mapping with an id\)"),
        ("run.json", record(jobs=[{"launcher": "slurm"}]), "no mapping with an id"),
        ("run.json", record(jobs=[{"id": "abc", "launcher": "slurm"}]), "'abc' is no job id"),
        ("run.json", record(jobs=[{"id": "7", "submitted": "noon"}]), "7: submitted='noon'"),
        ("run.json", "[" * 100_000, "run.json: damaged"),
        ("config.yaml", None, "lacks config.yaml"),
        ("config.yaml", "", "no mapping"),
        ("config.yaml", "a: [1", "config.yaml: damaged"),
        ("config.yaml", "a: !!python/object/apply:os.getcwd []", "damaged"),
        ("config.yaml", "epohcs: 3", "config.yaml: unknown setting epohcs"),
        ("config.yaml", "seed: 1", "is missing"),
    ],
)
def test_a_damaged_run_is_refused_with_the_file_named(
    create: Callable[..., Run], file: str, content: str | None, message: str
) -> None:
    path = create().path
    if content is None:
        (path / file).unlink()
    else:
        (path / file).write_text(content)
    with pytest.raises(UserError, match=message) as refusal:
        Run.open(path)
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize("jobs", [
    [], [{"id": "12", "launcher": "slurm", "submitted": 1.5, "logs": "slurm", "nodes": 2}],
    [{"id": "12_3", "launcher": "slurm"}], [{"id": "4711", "launcher": "local"}],
])  # fmt: skip
def test_a_record_in_order_is_taken_as_it_is(create: Callable[..., Run], jobs: list[Any]) -> None:
    path = create().path
    (path / "run.json").write_text(record(id="2026.a-b_c ü", jobs=jobs))
    assert Run.open(path).record["jobs"] == jobs


def test_a_configuration_changed_by_hand_is_known(create: Callable[..., Run]) -> None:
    path = create("epochs=3").path
    text = (path / "config.yaml").read_text()
    (path / "config.yaml").write_text(text.replace("epochs: 3\n", "epochs: 4\n"))
    assert Run.open(path).config_edited
    assert Run.open(path).config.epochs == 4


def test_a_run_is_finished_when_its_journal_says_so_for_all_its_epochs(create: Callable[..., Run]) -> None:
    run = create("epochs=2")
    journal = Journal(run.journal_path)
    assert not run.is_finished
    journal.write("epoch", epoch=1)
    journal.write("stop", reason="interrupted")
    assert not run.is_finished
    journal.write("epoch", epoch=2)
    assert not run.is_finished
    journal.write("stop", reason="finished")
    assert run.is_finished
    longer = Run(run.path, create("epochs=3").config, run.record)
    assert not longer.is_finished


HOLD = """
import sys
from runyard.runs.run import Run
lease = Run.open(sys.argv[1]).acquire_lease()
print("held", flush=True)
sys.stdin.read()
"""


def test_one_process_at_a_time_writes_a_run_and_its_death_frees_it(create: Callable[..., Run]) -> None:
    run = create()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"is being written by process {holder.pid} on "):
        run.acquire_lease()
    holder.kill()
    holder.communicate()
    run.acquire_lease().release()
    run.acquire_lease().release()


def test_a_submission_is_noted_whole_or_not_at_all(create: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    run = create()
    run.add_job({"id": "1"})
    monkeypatch.setattr(record_module, "write_atomic", full)
    with pytest.raises(UserError, match="No space left on device; fix that, then continue with: runyard resume"):
        run.add_job({"id": "2"})
    assert Run.open(run.path).record["jobs"] == [{"id": "1"}]


def test_other_errors_of_the_disk_stay_what_they_are(create: Callable[..., Run]) -> None:
    run = create()
    with pytest.raises(InterruptedError), run.reporting_write_errors():
        raise InterruptedError(errno.EINTR, "interrupted")


CREATE = """
import json, sys
from runyard.config.schema import config_from_dict
from runyard.runs.run import Run
print(Run.create(config_from_dict(json.loads(sys.argv[1])), []).path)
"""


def says(code: str, python_path: Path, *args: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(python_path), "PYTHONSAFEPATH": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *args], env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_editing_the_checkout_after_creation_does_not_change_what_a_run_imports(
    tmp_path: Path, make_config: Callable[..., Config]
) -> None:
    for folder in ("src/runyard", "cluster"):
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    settings: dict[str, Any] = config_to_dict(make_config("experiment=starter", f"runs_dir={tmp_path / 'runs'}"))
    first, second = (Run.open(says(CREATE, tmp_path / "src", json.dumps(settings))) for _ in range(2))
    assert first.code_path == second.code_path
    edited = tmp_path / "src" / "runyard" / "__init__.py"
    edited.write_text(edited.read_text() + "\nEDITED = True\n")
    (tmp_path / "cluster" / "job" / "train_job.py").unlink()
    ask = "import runyard.cluster; print(hasattr(runyard, 'EDITED'), runyard.__file__, runyard.cluster.__file__)"
    assert (
        says(ask, first.code_path)
        == f"False {first.code_path}/runyard/__init__.py {first.code_path}/runyard/cluster/__init__.py"
    )
    assert (first.code_path / "runyard" / "cluster" / "job" / "train_job.py").is_file()
    assert says(ask, tmp_path / "src").startswith("True ")
    third = Run.open(says(CREATE, tmp_path / "src", json.dumps(settings)))
    assert third.record["code_sha256"] != first.record["code_sha256"]
    assert says(ask, third.code_path).startswith(f"True {third.code_path}/")
