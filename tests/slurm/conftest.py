"""Real SLURMs for the session, with accounting and two fake GPUs a node. Skipped, saying why, where the programs lack.

One that does not start fails the tests. Of two workers each has its own clusters; ``TOGETHER`` in tests/conftest.py
says which files one of them takes whole, so that nothing is trained twice.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runyard.runs.run import Run
from tests.support.lab import Cluster, cluster_of
from tests.support.slurm_runs import RARE, Runs, until_finished


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes, for what looks at the cluster itself."""
    with cluster_of(3, tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Ten nodes: room for runs side by side, each struck on nodes of its own."""
    with cluster_of(10, tmp_path_factory.mktemp("wide")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def runs(wide: Cluster, data_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """All in one folder: they share one snapshot of the code, and what Python compiled of it."""
    return Runs(wide, data_root, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def undisturbed(runs: Runs) -> Callable[[int], Run]:
    """A run that nothing interrupted, on two nodes of so many tasks, trained when it is first asked for."""

    @functools.cache
    def trained(tasks_per_node: int) -> Run:
        run = runs.submit(*RARE, f"cluster.tasks_per_node={tasks_per_node}")
        until_finished(run)
        return run

    return trained


@pytest.fixture  # for each test: so the stories of its module are told meanwhile
def whole(undisturbed: Callable[[int], Run]) -> Run:
    return undisturbed(1)


@pytest.fixture
def whole_of_four(undisturbed: Callable[[int], Run]) -> Run:
    return undisturbed(2)
