"""Three ranks, each a process of its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runyard.training.distributed.launcher import RankInfo
from tests.support.ranks import RANKS, Together, as_rank
from tests.support.settings import PATIENCE_S


@pytest.fixture
def together(tmp_path: Path) -> Together:
    """``together(work, 3)``: what ``work`` gives, or raises, on each of three ranks, of which so many have a say."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "tests.support.ranks"])

    def run(work: Callable[[RankInfo], Any], speakers: int, begin: Callable[..., None] = as_rank) -> list[Any]:
        said = context.Queue()
        ranks = [context.Process(target=begin, args=(r, tmp_path, work, said)) for r in range(RANKS)]
        for process in ranks:
            process.start()
        if speakers < RANKS:
            ranks[-1].join(PATIENCE_S)  # reaped at once, as a launcher does
        answers = sorted(said.get(timeout=PATIENCE_S) for _ in range(speakers))
        for process in ranks:
            process.join(PATIENCE_S)
        return [answer for _, answer in answers]

    return run
