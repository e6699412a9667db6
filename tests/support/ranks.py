"""Ranks in processes of their own that form a real process group, and what each of them says."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runyard.training.distributed import process_group
from runyard.training.distributed.launcher import RankInfo
from runyard.training.distributed.process_group import joined_process_group
from tests.support.settings import PATIENCE_S

RANKS = 3


def place(rank: int, world_size: int, job: str = "test") -> RankInfo:
    return RankInfo(rank, world_size, rank, world_size, "submitit, local", job)


def as_rank_that_prepares(rank: int, folder: Path, work: Callable[[RankInfo], Any], said: Any) -> None:
    process_group.JOIN_TIMEOUT_S = 4
    me = place(rank, RANKS)
    try:
        with joined_process_group(me, folder, lambda: work(me)) as prepared:
            said.put((rank, prepared))
            (folder / f"joined-{rank}").touch()  # rank 0, which hosts the store, may not leave before all have come
            while not all((folder / f"joined-{other}").exists() for other in range(RANKS)):
                time.sleep(0.05)
    except BaseException as error:
        said.put((rank, (type(error).__name__, str(error))))


def as_rank(rank: int, folder: Path, work: Callable[[RankInfo], Any], said: Any) -> None:
    process_group.JOIN_TIMEOUT_S = 10 * PATIENCE_S  # nobody may wait for that when a rank is lost
    me = place(rank, RANKS)
    try:
        with joined_process_group(me, folder):
            said.put((rank, work(me)))
    except Exception as error:
        said.put((rank, (type(error).__name__, str(error))))


Together = Callable[..., list[Any]]
