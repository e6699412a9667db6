"""Two seconds before the first step: does this node compute correctly, reach its peers, and have what it needs?

If a rank finds its node unfit, all ranks report that rank and its node, and the next start excludes the node.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil
import torch
import torch.distributed as dist

from runyard import known_causes
from runyard.config.schema import Config
from runyard.data.loading.loaders import default_workers
from runyard.data.manifest import Manifest
from runyard.errors import TrainingFailed, UserError
from runyard.files import open_regular
from runyard.runs.run import Run
from runyard.training.distributed.launcher import RankInfo
from runyard.training.distributed.peer_failure import PeerFailure, failure_record

MATRIX_SIDE = 256  # sums of so many ones are exact in fp32, tf32, fp16 and bf16
MATRIX_COUNT = {"cuda": 64, "cpu": 4}  # enough that every part of a large GPU computes one
MIN_FREE_BYTES = {"cuda": 1 << 30, "cpu": 256 << 20}  # with less, other processes fill the node
CHECKPOINT_BYTES_PER_PARAMETER = 16  # weights, two moments and an average, in fp32
READ_BYTES = 1 << 16  # at the beginning and at the end of each file


class HealthError(TrainingFailed):
    """This node is unfit for training; another may work."""


def check_node(run: Run, rank_info: RankInfo, data: Manifest, folder: Path, parameters: int) -> None:
    """Check this rank's node and exchange the results with all ranks. Collective.

    Args:
        folder: Where the data is read from.
        parameters: The network's number of parameters, to estimate a checkpoint's size.

    Raises:
        HealthError: a matrix product is wrong, memory is full, or a sum over all ranks is wrong on this rank.
        OSError: the data cannot be read here, or /dev/shm has no room for the loader's batches.
        UserError: the run's disk has no room for a checkpoint.
        PeerFailure: one of these errors was raised on another rank.
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


def _gather_errors(rank_info: RankInfo, own_error: Exception | None) -> list[dict[str, object]]:
    """Return the failures of all ranks that have one, in the order of the ranks."""
    if rank_info.world_size == 1:
        return []
    own_failure = own_error and failure_record(own_error, rank_info.rank) | {
        "message": known_causes.error_text(own_error),
        "user_error": isinstance(own_error, UserError),
    }
    failures: list[dict[str, object] | None] = [None] * rank_info.world_size
    dist.all_gather_object(failures, own_failure)
    return [failure for failure in failures if failure is not None]


def _check_matmul(device: torch.device) -> None:
    """Compare products of matrices of -1, 0 and 1 with the CPU's exactly: no sum in them is rounded.

    The CPU computes only A (B x) in float64. If an element of the device's A B is wrong, then A (B x) = (A B) x holds
    for almost no x (Freivalds' check).
    """
    generator = torch.Generator().manual_seed(0)
    shape = (MATRIX_COUNT[device.type], MATRIX_SIDE, MATRIX_SIDE)
    a, b = (torch.randint(-1, 2, shape, generator=generator, dtype=torch.int8) for _ in range(2))
    x = torch.randint(-1024, 1025, (*shape[:2], 1), generator=generator).double()
    expected = a.double() @ (b.double() @ x)
    for dtype in (torch.float32, torch.bfloat16) if device.type == "cuda" else (torch.float32,):
        actual = (a.to(device, dtype) @ b.to(device, dtype)).cpu().double() @ x
        if wrong := int((actual != expected).any(dim=(1, 2)).sum()):
            raise HealthError(f"{wrong} of {shape[0]} matrix products on {device} are wrong ({str(dtype)[6:]})")


def _check_free_memory(device: torch.device) -> None:
    free_by_kind = {"cpu": psutil.virtual_memory().available} | (
        {"cuda": torch.cuda.mem_get_info(device)[0]} if device.type == "cuda" else {}
    )
    for kind, free_bytes in free_by_kind.items():
        if free_bytes < MIN_FREE_BYTES[kind]:
            owner = f"of {device}" if kind == "cuda" else "of the node"
            raise HealthError(
                f"{free_bytes >> 20} MB of the memory {owner} are free, expected {MIN_FREE_BYTES[kind] >> 20} MB at "
                "least: other processes fill it"
            )


def _check_data_readable(config: Config, data: Manifest, folder: Path) -> None:
    """Read the beginning and the end of each data file that the loader uses."""
    names = [(s.beton,) if config.loader == "ffcv" else (s.images, s.labels) for s in data.splits.values()]
    for name in {name for names_of_split in names for name in names_of_split if name}:
        with open_regular(folder / name) as file:
            file.read(READ_BYTES)
            file.seek(-min(READ_BYTES, file.seek(0, 2)), 2)
            file.read(READ_BYTES)


def _check_shared_memory(config: Config, data: Manifest, rank_info: RankInfo) -> None:
    """Verify that /dev/shm has room for the batches that the workers of loader=torch pass to the trainer."""
    if config.loader != "torch":
        return
    workers = default_workers() if config.workers is None else config.workers
    batch_bytes = config.batch_size // rank_info.world_size // config.accumulate * data.image_size**2 * 3
    required_mb, free_mb = 2 * workers * batch_bytes / 1e6, shutil.disk_usage("/dev/shm").free / 1e6
    if free_mb < required_mb:
        raise OSError(f"{free_mb:.2f} MB are free in /dev/shm, but loader=torch needs {required_mb:.2f} MB there")


def _check_disk_space(run: Run, parameters: int) -> None:
    required_mb, free_mb = parameters * CHECKPOINT_BYTES_PER_PARAMETER / 1e6, shutil.disk_usage(run.path).free / 1e6
    if free_mb < required_mb:
        raise UserError(
            f"{run.path}: {free_mb:.2f} MB are free, but a checkpoint needs about {required_mb:.2f} MB",
            f"make room, then continue with: runyard resume {run.cli_reference}",
        )


def _check_all_reduce(rank_info: RankInfo) -> None:
    """Verify a sum over all ranks, whose result is known beforehand."""
    if rank_info.world_size == 1:
        return
    sums = torch.full((1 << 16,), rank_info.rank + 1.0, device=rank_info.device)
    dist.all_reduce(sums)
    expected = rank_info.world_size * (rank_info.world_size + 1) / 2
    if wrong := int((sums != expected).sum()):
        raise HealthError(f"{wrong} of {len(sums)} sums over all ranks are wrong on this one")
