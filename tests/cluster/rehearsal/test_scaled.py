"""What a rehearsal makes of an experiment: as many tasks as this machine carries, and a word where that is fewer."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from runyard.cluster.rehearsal import scaled as module
from runyard.cluster.rehearsal.rehearse import temporary_folder
from runyard.cluster.rehearsal.scaled import max_tasks, scale_down
from runyard.errors import UserError


@pytest.fixture(autouse=True)
def carries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "max_tasks", lambda: 8)


@pytest.mark.parametrize(("asked", "nodes", "tasks", "words"), [
    ("cluster.nodes=2 cluster.tasks_per_node=4", 2, 4, ""),
    ("cluster.nodes=2 cluster.gpus_per_node=4", 2, 4,
     "asked for: 2 nodes of 4 tasks, 4 GPUs each; rehearsed: 2 nodes of 4 tasks each, without GPUs"),
    ("cluster.nodes=2 cluster.gpus_per_node=4 cluster.gres=gpu:h200:4", 2, 4, "asked for: 2 nodes of 4 tasks, 4 GPUs"),
    ("cluster.nodes=4 cluster.tasks_per_node=4", 4, 2, "asked for: 4 nodes of 4 tasks each; rehearsed: 4 nodes of 2"),
    ("cluster.nodes=40 cluster.tasks_per_node=8", 8, 1, "asked for: 40 nodes of 8 tasks each; rehearsed: 8 nodes of 1"),
    ("cluster.tasks_per_node=40", 1, 8, "(this machine carries 8 tasks)"),
    ("cluster.nodes=2", 2, 2, "rehearsed: 2 nodes of 2 tasks each, without GPUs (three ranks show in what order"),
])  # fmt: skip
def test_a_gpu_becomes_a_task_and_no_more_are_started_than_the_machine_carries(
    asked: str, nodes: int, tasks: int, words: str
) -> None:
    said: list[str] = []
    config = scale_down(["experiment=starter", *asked.split()], said.append).config
    assert (config.cluster.nodes, config.cluster.tasks_per_node, config.cluster.gpus_per_node) == (nodes, tasks, 0)
    assert config.batch_size == nodes * tasks * config.accumulate * module.IMAGES_PER_TASK
    assert len(said) == bool(words)
    assert words in "".join(said)


def test_what_a_machine_carries_is_three_tasks_at_least() -> None:
    assert 3 <= max_tasks() <= 4 * 1024


@pytest.mark.parametrize(("asked", "said"), [
    ("cluster=nyu_torch", "cluster=nyu_torch: a rehearsal has a temporary cluster of its own"),
    ("cluster.partition=gpu", "cluster.partition=gpu: the temporary cluster has main, low, high"),
    ("cluster.account=physics", "cluster.account=physics: the temporary cluster has no such name"),
    ("cluster.constraint=h200", "cluster.constraint=h200: "),
    ("cluster.nodelist=gpu7", "cluster.nodelist=gpu7: "),
    ("cluster.requeue=false", "cluster.requeue=false: a rehearsal tests that"),
    ("cluster.cpus_per_task=33 cluster.tasks_per_node=2", "cluster.cpus_per_task=33: with 3 tasks more than the 64"),
    ("cluster.mem_gb=300", "cluster.mem_gb=300: a node of the temporary cluster has 250"),
])  # fmt: skip
def test_what_the_temporary_cluster_cannot_give_is_refused_before_there_is_one(asked: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        scale_down(["experiment=starter", *asked.split()], lambda said: None)
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize("folder", ["a b", "per%cent", "it's", "long" * 20])
def test_a_folder_in_which_no_slurm_could_live_is_refused_by_its_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    (tmp_path / folder).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / folder))
    with pytest.raises(UserError, match=r"^TMPDIR=.*; try TMPDIR=/tmp$"), temporary_folder():
        pytest.fail("there is one")
    assert list((tmp_path / folder).iterdir()) == []
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    with temporary_folder() as taken:
        assert taken.is_dir(), "the control"


def test_a_rehearsal_never_speaks_to_wandb() -> None:
    config = scale_down(["experiment=starter", "tracking=online", "tracking.mode=online", "tracking.entity=me"],
                        lambda said: None).config  # fmt: skip
    assert (config.tracking.mode, config.tracking.entity) == ("none", None)


def test_what_the_temporary_cluster_has_is_taken() -> None:
    assert (
        scale_down(["experiment=starter", "cluster.partition=low"], lambda said: None).config.cluster.partition == "low"
    )
