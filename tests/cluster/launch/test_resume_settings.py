"""``runyard resume RUN SETTING=VALUE``: where and how a run goes on may change, what it learns may not."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import pytest
import yaml

from runyard.analysis.compare.groups import group_runs
from runyard.cli.main import main
from runyard.config.compose import compose
from runyard.config.schema import SETTINGS
from runyard.runs.code import snapshot
from runyard.runs.journal import Journal
from runyard.runs.results.reading import load_history
from runyard.runs.run import Run
from tests.support.fake_slurm import NUMBER, FakeSlurm


@pytest.fixture
def run(small: list[str]) -> Run:
    """One that stopped."""
    return begun(small, "cluster=slurm", "cluster.partition=short", "cluster.nodes=2")


def begun(small: list[str], *overrides: str) -> Run:
    overrides = ("experiment=null", *small, *overrides)
    run = Run.create(compose(list(overrides)).config, [o for o in overrides if not o.startswith("runs_dir=")])
    Journal(run.journal_path).write("stop", reason="interrupted", message="", cause="TERM")
    return run


def contents(run: Run) -> dict[Path, bytes]:
    """But for the locks, which hold nothing."""
    files = [path for path in run.path.rglob("*") if path.is_file() and not path.name.endswith("-lock")]
    return {path: path.read_bytes() for path in files}


SAFE = {
    "cluster.nodes=1": ("cluster", "nodes", 1),
    "cluster.timeout_min=600": ("cluster", "timeout_min", 600),
    "checkpoint.every_s=60": ("checkpoint", "every_s", 60.0),
    "tracking=offline": ("tracking", "mode", "offline"),
    "workers=4": (None, "workers", 4),
    "loader=torch": (None, "loader", "torch"),
    "eval_batch_size=50": (None, "eval_batch_size", 50),
    "report=true": (None, "report", True),
}


@pytest.mark.parametrize("override", SAFE)
def test_a_setting_that_changes_no_weights_is_taken_and_noted(run: Run, slurm: FakeSlurm, override: str) -> None:
    before = yaml.safe_load((run.path / "config.yaml").read_text())
    assert main(["resume", str(run.path), override]) == 0
    now = Run.open(run.path)
    section, name, value = SAFE[override]
    assert getattr(getattr(now.config, section) if section else now.config, name) == value
    assert [amended["overrides"] for amended in now.record["amended"]] == [[override]]
    assert now.record["overrides"] == [*run.record["overrides"], override]
    assert not now.config_edited, "it was not edited by hand"
    assert [job["id"] for job in now.record["jobs"]] == [NUMBER]
    after = yaml.safe_load((run.path / "config.yaml").read_text())
    for values in (before, after):
        (values[section] if section else values).pop(name)
        values.pop("tracking") if section == "tracking" else None
    assert after == before, "nothing else changed"


@pytest.mark.parametrize("override", [o for o in SAFE if o != "cluster.nodes=1"])
def test_a_run_that_goes_on_in_another_way_stays_with_its_seeds_in_a_comparison(
    small: list[str], slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch, override: str
) -> None:
    runs = [begun(small, "cluster=slurm", f"seed={seed}") for seed in (0, 1)]
    assert main(["resume", str(runs[0].path), override]) == 0
    assert [group.seed_count for group in group_runs(load_history(run.path) for run in runs)] == [2]
    section, name, _ = SAFE[override]
    dotted = f"{section}.{name}" if section else name
    monkeypatch.setitem(SETTINGS, dotted, dataclasses.replace(SETTINGS[dotted], kind="recipe"))
    assert len(group_runs(load_history(run.path) for run in runs)) == 2, "the control"


def test_another_number_of_nodes_sets_a_run_apart_since_its_sums_are_rounded_otherwise(
    small: list[str], slurm: FakeSlurm
) -> None:
    runs = [begun(small, "cluster=slurm", "cluster.nodes=2", f"seed={seed}") for seed in (0, 1)]
    assert main(["resume", str(runs[0].path), "cluster.nodes=1"]) == 0
    assert len(group_runs(load_history(run.path) for run in runs)) == 2


def test_without_settings_the_configuration_stays_byte_for_byte(run: Run, slurm: FakeSlurm) -> None:
    before = (run.path / "config.yaml").read_bytes()
    assert main(["resume", str(run.path)]) == 0
    assert (run.path / "config.yaml").read_bytes() == before
    assert "amended" not in Run.open(run.path).record
    (slurm.folder / "queue").unlink()
    assert main(["resume", str(run.path), "cluster.nodes=2"]) == 0, "said again, and as it is"
    assert (run.path / "config.yaml").read_bytes() == before


UNSAFE = {
    "optim.lr=0.5": "optim.lr=0.5: run {id} was begun with 0.05,",
    "batch_size=64": "batch_size=64: run {id} was begun with 32,",
    "epochs=9": "epochs=9: run {id} was begun with 3,",
    "seed=1": "seed=1: run {id} was begun with 0,",
    "precision=fp32": "precision=fp32: run {id} was begun with bf16,",
    "model=paper_resnet": "model.name=paper_resnet: run {id} was begun with starter,",
    "model.widths=[8,8]": "model.widths=[8, 8]: run {id} was begun with [16, 32],",
    "data.split_seed=3 data.validation_fraction=0.1": "data.validation_fraction=0.1: run {id} was begun with 0.0,",
    "data.num_classes=5": "data.num_classes=5: run {id} was begun with 4,",
    "schedule=constant": "schedule.name=constant: run {id} was begun with one_cycle,",
    "augment.flip=none": "augment.flip=none: run {id} was begun with random,",
    "accumulate=2": "accumulate=2: run {id} was begun with 1,",
    "runs_dir=/elsewhere": "runs_dir=/elsewhere: run {id} was begun with runs,",
}


@pytest.mark.parametrize("overrides", UNSAFE)
def test_a_setting_that_changes_what_is_learned_is_refused_with_both_values(
    run: Run, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str], overrides: str
) -> None:
    before = contents(run)
    assert main(["resume", str(run.path), "cluster.nodes=1", *overrides.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("runyard: " + UNSAFE[overrides].format(id=run.id))
    assert line.endswith("data.path, checkpoint, tracking, notify, cluster; start a new run for the rest")
    assert contents(run) == before
    assert slurm.submissions == []


def test_what_does_not_fit_together_is_refused_with_nothing_changed(
    run: Run, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(run)
    for overrides in (["cluster.nodes=3"], ["cluster.partition='a b'"], ["nodes=1"], ["data.root=/nowhere"]):
        assert main(["resume", str(run.path), *overrides]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert contents(run) == before
    assert slurm.submissions == []


def test_what_sbatch_refuses_leaves_the_run_as_it_was(
    run: Run, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [(run.path / name).read_bytes() for name in ("config.yaml", "run.json")]
    slurm.says("refusal", "sbatch: error: Batch job submission failed: Job violates policy\n")
    assert main(["resume", str(run.path), "cluster.nodes=1"]) == 2
    assert "Job violates policy" in capsys.readouterr().err
    assert [(run.path / name).read_bytes() for name in ("config.yaml", "run.json")] == before
    (slurm.folder / "refusal").unlink()
    assert main(["resume", str(run.path), "cluster.nodes=1"]) == 0, "the control"
    assert Run.open(run.path).config.cluster.nodes == 1


def test_without_slurm_nothing_changes(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "bash").symlink_to("/bin/bash")
    before = contents(run)
    assert main(["resume", str(run.path), "cluster.nodes=1"]) == 2
    assert contents(run) == before


@pytest.mark.parametrize("plus", ["", "++"])
def test_another_cluster_takes_the_place_of_the_first_and_of_what_was_said_of_it(
    run: Run, slurm: FakeSlurm, plus: str
) -> None:
    assert main(["resume", str(run.path), f"{plus}cluster=nyu_torch", "cluster.account=pr_1"]) == 0
    now = Run.open(run.path)
    assert (now.config.cluster.name, now.config.cluster.nodes) == ("nyu_torch", 1)
    assert now.config.cluster.partition is None, "short is a partition of the cluster before"
    (slurm.folder / "queue").unlink()
    assert main(["resume", str(run.path), "cluster.nodes=2"]) == 0
    again = Run.open(run.path)
    cluster = again.config.cluster
    assert (cluster.name, cluster.account, cluster.nodes) == ("nyu_torch", "pr_1", 2)
    assert len(again.record["amended"]) == 2


def test_an_edit_by_hand_outlives_a_resume_with_settings(run: Run, slurm: FakeSlurm) -> None:
    values = yaml.safe_load((run.path / "config.yaml").read_text())
    values["optim"]["lr"] = 0.07
    (run.path / "config.yaml").write_text(yaml.safe_dump(values))
    assert main(["resume", str(run.path), "cluster.nodes=1"]) == 0
    assert (Run.open(run.path).config.optim.lr, Run.open(run.path).config.cluster.nodes) == (0.07, 1)


def test_a_finished_run_has_nothing_to_go_on_with(
    run: Run, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    Journal(run.journal_path).write("epoch", epoch=3)
    Journal(run.journal_path).write("stop", reason="finished")
    before = contents(run)
    assert main(["resume", str(run.path), "cluster.nodes=1"]) == 2
    assert f"run {run.id} is finished" in capsys.readouterr().err
    assert contents(run) == before


def test_a_run_of_the_layout_before_0_2_is_refused_with_the_command_that_goes_on_with_it(
    run: Run, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    """Then ``cluster`` lay beside ``runyard``, and a job's tasks were started by its module."""
    code = run.path / "code"
    target = code.resolve()
    code.unlink()
    shutil.copytree(target, code)
    (code / "runyard" / "cluster").rename(code / "cluster")
    with run.editing_record() as record:
        record["code_sha256"] = snapshot.content_hash(snapshot.snapshot_files(code))
    before = contents(run)
    assert main(["resume", str(run.path)]) == 2
    said = capsys.readouterr().err
    assert f"continue it here with `runyard train {run.path}`" in said
    assert said.count("\n") == 1
    assert contents(run) == before


def test_a_run_that_is_being_written_is_left_alone(
    run: Run, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    lease = run.acquire_lease()
    before = contents(run)
    assert main(["resume", str(run.path), "cluster.nodes=1"]) == 2
    assert f"run {run.id} is being written by process {os.getpid()}" in capsys.readouterr().err
    assert contents(run) == before
    assert slurm.submissions == []
    lease.release()
    assert main(["resume", str(run.path), "cluster.nodes=1"]) == 0, "the control"
