"""System metrics per epoch: GPU utilization from NVML, CPU and memory of each node from psutil."""

from __future__ import annotations

import os
import socket
import statistics
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import psutil
import torch
import torch.distributed as dist

from runyard.training.distributed.launcher import RankInfo

SAMPLE_EVERY_S = 1.0  # NVML itself averages over the last sixth of a second to a second


@dataclass(frozen=True)
class RankMetrics:
    """What one rank measured since its last report.

    Attributes:
        gpu_util_pct: Mean utilization of this rank's GPU, %; None without a GPU, or if it is not known.
        gpu_memory_mb: Memory used on this GPU now, by all processes, MB; None without a GPU, or if nodes are not
            measured.
        cpu_pct: Utilization of the node's CPUs, %; only on one rank of each node, and only if nodes are measured.
        memory_mb: Memory used on the node now, MB; None where ``cpu_pct`` is.
        problem: Why the utilization of the GPU is not known.
    """

    node: str
    gpu_util_pct: float | None = None
    gpu_memory_mb: float | None = None
    cpu_pct: float | None = None
    memory_mb: float | None = None
    problem: str | None = None


class SystemMetrics:
    """Measures this rank, and gathers all ranks' metrics on rank 0.

    ``warn`` is called once if the utilization of a GPU is not known.
    """

    def __init__(self, rank_info: RankInfo, *, all_nodes: bool, warn: Callable[[str], None]) -> None:
        self._device, self._all_nodes, self._warn = rank_info.device, all_nodes, warn
        self._node = node_name()
        self._sampler = GpuSampler(rank_info.device) if rank_info.device.type == "cuda" else None
        self._reports_node = all_nodes and rank_info.local_rank == 0

    def start(self) -> None:
        """Measure from now on."""
        if self._sampler is not None:
            self._sampler.start()
        psutil.cpu_percent()  # the next call measures from here on

    def read(self) -> dict[str, object]:
        """Return the ``epoch`` row's ``gpu_util_pct`` and, if nodes are measured, ``nodes``, since the last call.

        ``gpu_util_pct`` is the mean over the GPUs for which it is known, else None. A collective call; the result is
        complete on rank 0.
        """
        if self._sampler is None and not self._all_nodes:
            return {"gpu_util_pct": None}
        reports = gather_metrics(self._report())
        if problem := next((f"{r.node}: {r.problem}" for r in reports if r.problem is not None), None):
            self._warn(f"gpu_util_pct is not measured on every GPU ({problem})")
            self._warn = lambda _: None
        fields: dict[str, object] = {"gpu_util_pct": _mean(report.gpu_util_pct for report in reports)}
        return fields | ({"nodes": metrics_by_node(reports)} if self._all_nodes else {})

    def close(self) -> None:
        if self._sampler is not None:
            self._sampler.stop()

    def _report(self) -> RankMetrics:
        gpu, memory = self._sampler, psutil.virtual_memory()
        free, total = torch.cuda.mem_get_info(self._device) if gpu is not None and self._all_nodes else (0, 0)
        return RankMetrics(
            self._node,
            gpu_util_pct=gpu.read() if gpu is not None else None,
            gpu_memory_mb=(total - free) / 1e6 if total else None,
            cpu_pct=psutil.cpu_percent() if self._reports_node else None,
            memory_mb=(memory.total - memory.available) / 1e6 if self._reports_node else None,
            problem=gpu.problem if gpu is not None else None,
        )


class GpuSampler:
    """Asks NVML for a GPU's utilization about once a second, in a daemon thread.

    The first failure (no NVML, a MIG slice, a GPU that fell off the bus) ends it: ``problem`` says why, and the mean is
    None, since it would cover only part of the time.
    """

    def __init__(self, device: torch.device) -> None:
        self.problem: str | None = None
        self._device = device
        self._samples: list[float] = []
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="GPU utilization", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def read(self) -> float | None:
        """Mean of the samples since the last call, %; None without any."""
        with self._lock:
            samples, self._samples = self._samples, []
        return _mean(samples) if self.problem is None else None

    def stop(self) -> None:
        self._ended.set()

    def _work(self) -> None:
        while not self._ended.wait(SAMPLE_EVERY_S):
            try:
                sample = float(torch.cuda.utilization(self._device))
            except Exception as error:  # from NVML, or from torch without NVML: no metric may end a training
                self.problem = (str(error).splitlines() or [""])[0] or type(error).__name__
                return
            with self._lock:
                self._samples.append(sample)


def node_name() -> str:
    """Return SLURM's name of this node, else the host name, without its domain: W&B splits names at dots."""
    return (os.environ.get("SLURMD_NODENAME") or socket.gethostname()).partition(".")[0]


def gather_metrics(report: RankMetrics) -> list[RankMetrics]:
    """Return the reports of all ranks, in their order, on rank 0; an empty list elsewhere. A collective call."""
    if not dist.is_initialized():
        return [report]
    reports: list[RankMetrics | None] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(report, reports)
    return [report for report in reports or [] if report is not None]


def metrics_by_node(reports: Sequence[RankMetrics]) -> list[dict[str, object]]:
    """Return one entry per node, in the order of their first ranks, with mean utilization and memory of its GPUs."""
    nodes = []
    for name in dict.fromkeys(report.node for report in reports):
        on_node = [report for report in reports if report.node == name]
        measured = next((report for report in on_node if report.memory_mb is not None), RankMetrics(name))
        entry: dict[str, object] = {"node": name, "cpu_pct": measured.cpu_pct, "memory_mb": measured.memory_mb}
        if memory := [mb for report in on_node if (mb := report.gpu_memory_mb) is not None]:
            entry |= {"gpu_util_pct": _mean(report.gpu_util_pct for report in on_node), "gpu_memory_mb": sum(memory)}
        nodes.append(entry)
    return nodes


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
