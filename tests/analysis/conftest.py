"""Made runs to compare, and a browser that shows the page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.browser import Browser
from tests.support.comparing import compare, make, recipe, runs_dir

__all__ = ["compare", "make", "recipe", "runs_dir"]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """For the tests of the page: one headless Chromium for all of them."""
    made = Browser()
    yield made
    made.close()
