"""Run metadata for the journal: host, devices, versions."""

from __future__ import annotations

import os
import platform
import resource
import socket
from collections.abc import Mapping

import torch
import torch.distributed as dist

from runyard.config.schema import Config
from runyard.errors import UserError
from runyard.runs.run import Run
from runyard.training.train_state import TrainState


def check_device_settings(config: Config, device: torch.device) -> None:
    """Refuse settings that this device does not support.

    Raises:
        UserError: the message names the setting.
    """
    if config.precision == "fp16" and device.type == "cpu":
        raise UserError("precision=fp16 needs a GPU, and this task has none", "set precision=bf16 or fp32")


def ignored_settings(config: Config, device: torch.device) -> list[str]:
    """Return warnings about settings that have no effect on this device."""
    if config.workers is not None and config.loader == "resident" and device.type == "cuda":
        return [f"workers={config.workers} is ignored: loader=resident on a GPU has no workers"]
    return []


def use_deterministic_kernels() -> None:
    """Make torch use deterministic kernels from now on, and raise RuntimeError if an operation has none."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first matrix product on a GPU
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # nothing reads it
    torch.backends.cudnn.benchmark = False


def run_metadata(run: Run, train_state: TrainState, resumed_from: str | None) -> dict[str, object]:
    """Return the fields of the journal's ``start`` event."""
    rank_info, cuda = train_state.rank_info, train_state.device.type == "cuda"
    return {
        "job": rank_info.start_id,
        "job_id": slurm_job_id(os.environ),
        "restarts": int(os.environ.get("SLURM_RESTART_COUNT", 0)),
        "nodelist": os.environ.get("SLURM_JOB_NODELIST", socket.gethostname()),
        "launcher": rank_info.launcher,
        "world_size": rank_info.world_size,
        "nodes": -(-rank_info.world_size // rank_info.local_world_size),
        "device": train_state.device.type,
        "device_name": torch.cuda.get_device_name(train_state.device) if cuda else _cpu_name(),
        "cpus": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "hostname": socket.gethostname(),
        "step": train_state.step,
        "epoch": train_state.epochs_done,
        "resumed_from": resumed_from,
        "network": getattr(train_state.network, "description", run.config.model.name),
        "parameters": train_state.parameters,
        "precision": run.config.precision,
        "loader": run.config.loader,
    }


def slurm_job_id(env: Mapping[str, str]) -> str | None:
    """Return this job's id as squeue and scancel accept it, 12 or 12_3 in an array; None outside SLURM."""
    if array := env.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{env['SLURM_ARRAY_TASK_ID']}"
    return env.get("SLURM_JOB_ID")


def peak_memory_mb(device: torch.device) -> float:
    """Return the largest memory that any rank has used so far, in MB: GPU memory if it has a GPU, else resident memory.

    A collective call.
    """
    used_bytes = (
        torch.cuda.max_memory_allocated(device)
        if device.type == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )
    maximum = torch.tensor(used_bytes / 1e6, dtype=torch.float64, device=device)
    if dist.is_initialized():
        dist.all_reduce(maximum, dist.ReduceOp.MAX)
    return float(maximum)


def _cpu_name() -> str:
    with open("/proc/cpuinfo") as f:
        names = [line.partition(":")[2].strip() for line in f if line.startswith("model name")]
    return f"{names[0]} x{len(names)}" if names else platform.machine()
