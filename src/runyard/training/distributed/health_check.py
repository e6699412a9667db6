"""Two seconds before the first step: does this node compute rightly, reach the others, and have what training needs?

A rank that finds its node unfit is named on all ranks, with the node, which the next start leaves out.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from runyard import known_causes
from runyard.config.schema import Config
from runyard.data.loading.loaders import default_workers
from runyard.data.manifest import Manifest
from runyard.errors import UserError
from runyard.files import open_regular
from runyard.runs.run import Run
from runyard.training.distributed.peer_failure import PeerFailure, failure_record
from runyard.training.distributed.process_group import RankInfo

MATRIX_SIDE = 256  # of the matrices: sums of so many ones are exact in fp32, tf32, fp16 and bf16
MATRIX_COUNT = {"cuda": 64, "cpu": 4}  # enough for every part of a large GPU to have one
MIN_FREE_BYTES = {"cuda": 1 << 30, "cpu": 256 << 20}  # bytes; below, something else fills the node
CHECKPOINT_BYTES_PER_PARAMETER = 16  # of a checkpoint per parameter: weights, two moments, an average, in fp32
READ_BYTES = 1 << 16  # at both ends of each file


class HealthError(Exception):
    """This node is unfit for training: another may do."""


def check_node(run: Run, rank_info: RankInfo, data: Manifest, folder: Path, parameters: int) -> None:
    """Check this rank's node, and hear of the others'. A collective call.

    Args:
        folder: Where the data is read from.
        parameters: How many the network has, by which a checkpoint's size is told.

    Raises:
        HealthError: a product is wrong, memory is full, or the sum over all ranks is wrong on this one.
        OSError: the data cannot be read here, or /dev/shm has no room for what the loader puts there.
        UserError: the run's disk has no room for a checkpoint.
        RankLost: another rank met one of these.
    """
    own_error: Exception | None = None
    try:
        _check_matmul(rank_info.device)
        _check_free_memory(rank_info.device)
        _check_data_readable(run.config, data, folder)
        _check_shared_memory(run.config, data, rank_info)
        if rank_info.rank == 0:
            _check_disk_space(run, parameters)
    except (HealthError, OSError, UserError) as error:
        own_error = error
    others = _gather_errors(rank_info, own_error)
    if own_error is not None:
        raise own_error
    for other in others:
        message = f"rank {other['rank']}: {other.pop('message')}"
        raise UserError(message) if other.pop("user_error") else PeerFailure(message, **other)
    _check_all_reduce(rank_info)


def _gather_errors(rank_info: RankInfo, own_error: Exception | None) -> list[dict[str, Any]]:
    """What the ranks found that found something, by rank."""
    if rank_info.world_size == 1:
        return []
    word = own_error and failure_record(own_error, rank_info.rank) | {
        "message": known_causes.error_text(own_error),
        "user_error": isinstance(own_error, UserError),
    }
    words: list[dict[str, Any] | None] = [None] * rank_info.world_size
    dist.all_gather_object(words, word)
    return [word for word in words if word is not None]


def _check_matmul(device: torch.device) -> None:
    """Products of matrices of -1, 0 and 1 must be those that the CPU comes to, exactly: no sum in them is rounded.

    The CPU need not make them itself, only A (B x) in float64, which is (A B) x for nearly no x if an element of A B is
    wrong (Freivalds' check).
    """
    drawn = torch.Generator().manual_seed(0)
    shape = (MATRIX_COUNT[device.type], MATRIX_SIDE, MATRIX_SIDE)
    a, b = (torch.randint(-1, 2, shape, generator=drawn, dtype=torch.int8) for _ in range(2))
    x = torch.randint(-1024, 1025, (*shape[:2], 1), generator=drawn).double()
    wanted = a.double() @ (b.double() @ x)
    for dtype in (torch.float32, torch.bfloat16) if device.type == "cuda" else (torch.float32,):
        found = (a.to(device, dtype) @ b.to(device, dtype)).cpu().double() @ x
        if wrong := int((found != wanted).any(dim=(1, 2)).sum()):
            raise HealthError(f"{wrong} of {shape[0]} matrix products on {device} are wrong ({str(dtype)[6:]})")


def _check_free_memory(device: torch.device) -> None:
    free = {"cpu": _available_memory_bytes()} | (
        {"cuda": torch.cuda.mem_get_info(device)[0]} if device.type == "cuda" else {}
    )
    for kind, free_bytes in free.items():
        if free_bytes < MIN_FREE_BYTES[kind]:
            what = f"of {device}" if kind == "cuda" else "of the node"
            raise HealthError(
                f"{free_bytes >> 20} MB of the memory {what} are free, expected {MIN_FREE_BYTES[kind] >> 20} MB at "
                "least: other processes fill it"
            )


def _available_memory_bytes() -> int:
    """Bytes of memory that programs can still have on this machine."""
    with open("/proc/meminfo") as file:
        found = next((line for line in file if line.startswith("MemAvailable:")), None)
    return int(found.split()[1]) << 10 if found else MIN_FREE_BYTES["cpu"]


def _check_data_readable(config: Config, data: Manifest, folder: Path) -> None:
    """Both ends of each file of the data that the loader reads."""
    names = [(s.beton,) if config.loader == "ffcv" else (s.images, s.labels) for s in data.splits.values()]
    for name in {name for names_of_split in names for name in names_of_split if name}:
        with open_regular(folder / name) as file:
            file.read(READ_BYTES)
            file.seek(-min(READ_BYTES, file.seek(0, 2)), 2)
            file.read(READ_BYTES)


def _check_shared_memory(config: Config, data: Manifest, rank_info: RankInfo) -> None:
    """Where the batches of loader=torch go from its workers to training."""
    if config.loader != "torch":
        return
    workers = default_workers() if config.workers is None else config.workers
    batch = config.batch_size // rank_info.world_size // config.accumulate * data.image_size**2 * 3
    need, free = 2 * workers * batch, shutil.disk_usage("/dev/shm").free
    if free < need:
        raise OSError(f"{free >> 20} MB are free in /dev/shm, and loader=torch needs {need >> 20} MB there")


def _check_disk_space(run: Run, parameters: int) -> None:
    need, free = parameters * CHECKPOINT_BYTES_PER_PARAMETER, shutil.disk_usage(run.path).free
    if free < need:
        raise UserError(
            f"{run.path}: {free >> 20} MB are free, and a checkpoint needs about {need >> 20} MB; make room, "
            f"then go on with: runyard resume {run.cli_reference}"
        )


def _check_all_reduce(rank_info: RankInfo) -> None:
    """A sum over all ranks that each knows beforehand."""
    if rank_info.world_size == 1:
        return
    numbers = torch.full((1 << 16,), rank_info.rank + 1.0, device=rank_info.device)
    dist.all_reduce(numbers)
    wanted = rank_info.world_size * (rank_info.world_size + 1) / 2
    if wrong := int((numbers != wanted).sum()):
        raise HealthError(f"{wrong} of {len(numbers)} sums over all ranks are wrong on this one")
