"""Two learning rates of three seeds, of one sweep."""

from __future__ import annotations

import pytest

from tests.support.fake_runs import Make

SWEEP = "20260901-120000-grid-0001"


@pytest.fixture
def grid(make: Make) -> None:
    """Two learning rates x three seeds of one sweep, and a run that failed in it."""
    for seed in range(3):
        make(0.920 + 0.001 * seed, seed=seed, sweep=SWEEP, test_images=100)
        make(0.930 + 0.002 * seed, seed=seed, lr=3e-3, sweep=SWEEP, restarts=(4,), test_images=100)
    make(lr=1.0, sweep=SWEEP, done=2, end="failed", message="the loss is not a finite number")
    make(0.5, name="other", settings={"tracking.tags": ["mine"]})
