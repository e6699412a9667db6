"""The short form of ``make torture``: some attacks on each promise, and each control, from one seed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.torture.ground import Ground
from tests.torture.harness import Harness
from tests.torture.promise import Promise
from tests.torture.promises import PROMISES

pytestmark = pytest.mark.slow
SEED = 1


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """One for all promises that a worker takes: they share the process that forks, and undisturbed runs."""
    with Ground(tmp_path_factory.mktemp("torture")) as ground:
        yield ground


IN_SHORT = [promise for promise in PROMISES if promise.short]  # what is attacked on SLURM tests/slurm attacks as well


@pytest.mark.parametrize("promise", IN_SHORT, ids=lambda promise: f"promise-{promise.number}")
def test_a_promise_holds_under_attack_and_its_control_fails(promise: Promise, ground: Ground) -> None:
    harness = Harness([promise], ground, SEED)
    harness.run({promise.number: promise.short}, minutes=60)
    row = harness.rows[promise.number]
    if row.unable:
        pytest.skip(row.unable)
    assert not row.failures
    assert row.holds
