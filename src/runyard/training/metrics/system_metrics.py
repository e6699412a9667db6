"""How busy the machines were from one ``epoch`` row to the next: GPUs as NVML samples them, nodes by /proc."""

from __future__ import annotations

import os
import socket
import statistics
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from runyard.training.distributed.process_group import RankInfo

SAMPLE_EVERY_S = 1.0  # NVML's own answer is about the last sixth of a second to a second


@dataclass(frozen=True)
class RankMetrics:
    """What one rank measured since its last.

    Attributes:
        gpu_util_pct: Mean utilisation of this rank's GPU; None without one, and where it is not known.
        gpu_memory_mb: Memory used on this GPU now, by whomever; None without one, and where nodes are not asked for.
        cpu_pct: Busy part of the node's processors; None but on one rank of each, and where nodes are not asked for.
        memory_mb: Memory used on the node now; None where ``cpu_pct`` is.
        problem: Why utilisation is not known, where there is a GPU.
    """

    node: str
    gpu_util_pct: float | None = None
    gpu_memory_mb: float | None = None
    cpu_pct: float | None = None
    memory_mb: float | None = None
    problem: str | None = None


class SystemMetrics:
    """This rank's measures, and those of all on rank 0. ``warn`` hears, once, why utilisation is not known."""

    def __init__(self, rank_info: RankInfo, *, all_nodes: bool, warn: Callable[[str], None]) -> None:
        self._device, self._all_nodes, self._warn = rank_info.device, all_nodes, warn
        self._node = node_name()
        self._sampler = GpuSampler(rank_info.device) if rank_info.device.type == "cuda" else None
        self._processors = CpuMeter() if all_nodes and rank_info.local_rank == 0 else None

    def start(self) -> None:
        """Measure from now on."""
        if self._sampler is not None:
            self._sampler.start()
        if self._processors is not None:
            self._processors.read()

    def read(self) -> dict[str, Any]:
        """The ``epoch`` row's ``gpu_util_pct`` (mean over the GPUs that tell it, else None) and, if asked for,
        ``nodes``; since the last call or ``begin``. A collective call, whose answer is whole on rank 0."""
        if self._sampler is None and not self._all_nodes:
            return {"gpu_util_pct": None}
        reports = gather_metrics(self._report())
        if problem := next((f"{r.node}: {r.problem}" for r in reports if r.problem is not None), None):
            self._warn(f"gpu_util_pct is not measured on every GPU ({problem})")
            self._warn = lambda _: None
        found = {"gpu_util_pct": _mean(report.gpu_util_pct for report in reports)}
        return found | ({"nodes": metrics_by_node(reports)} if self._all_nodes else {})

    def close(self) -> None:
        if self._sampler is not None:
            self._sampler.stop()

    def _report(self) -> RankMetrics:
        gpu, node = self._sampler, self._processors
        free, total = torch.cuda.mem_get_info(self._device) if gpu is not None and self._all_nodes else (0, 0)
        return RankMetrics(
            self._node,
            gpu_util_pct=gpu.read() if gpu is not None else None,
            gpu_memory_mb=(total - free) / 1e6 if total else None,
            cpu_pct=node.read() if node is not None else None,
            memory_mb=memory_mb() if node is not None else None,
            problem=gpu.problem if gpu is not None else None,
        )


class GpuSampler:
    """Asks NVML for a GPU's utilisation about once a second, in a thread that nobody waits for.

    The first failure (no NVML, a MIG slice, a GPU that fell off) ends it: ``problem`` says why, and what would be a
    mean over a part of the time is None.
    """

    def __init__(self, device: torch.device) -> None:
        self.problem: str | None = None
        self._device = device
        self._samples: list[float] = []
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="GPU utilisation", daemon=True)

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
            except Exception as error:  # NVML's, or torch's about a lack of it: no measure is worth a training
                self.problem = (str(error).splitlines() or [""])[0] or type(error).__name__
                return
            with self._lock:
                self._samples.append(sample)


class CpuMeter:
    """CPU time of the whole machine, whoever uses it."""

    def __init__(self) -> None:
        self._busy_ticks, self._total_ticks = 0, 0

    def read(self) -> float | None:
        """Busy part of all processors' time since the last call, %; None within one tick of the clock."""
        busy, everything = cpu_ticks()
        spent, passed = busy - self._busy_ticks, everything - self._total_ticks
        self._busy_ticks, self._total_ticks = busy, everything
        return 100 * spent / passed if passed else None


def cpu_ticks(stat: str = "/proc/stat") -> tuple[int, int]:
    """Ticks that the processors were busy, and all ticks, since the machine started."""
    with open(stat) as file:
        user, nice, system, idle, iowait, irq, softirq, steal = map(int, file.readline().split()[1:9])
    busy = user + nice + system + irq + softirq + steal  # guests' time is in user and nice
    return busy, busy + idle + iowait


def memory_mb(meminfo: str = "/proc/meminfo") -> float:
    """Memory of the machine that could not be had for something else, MB."""
    with open(meminfo) as file:
        kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in file)}
    return (kib["MemTotal"] - kib["MemAvailable"]) * 1024 / 1e6


def node_name() -> str:
    """SLURM's name for this node, else the host's, without its domain: W&B takes a dot for a level of nesting."""
    return (os.environ.get("SLURMD_NODENAME") or socket.gethostname()).partition(".")[0]


def gather_metrics(report: RankMetrics) -> list[RankMetrics]:
    """The reports of all ranks, in their order, on rank 0; elsewhere none. A collective call."""
    if not dist.is_initialized():
        return [report]
    reports: list[Any] | None = [None] * dist.get_world_size() if dist.get_rank() == 0 else None
    dist.gather_object(report, reports)
    return reports or []


def metrics_by_node(reports: Sequence[RankMetrics]) -> list[dict[str, Any]]:
    """One entry a node, in the order of their first ranks: of its GPUs mean utilisation and memory in all."""
    nodes = []
    for name in dict.fromkeys(report.node for report in reports):
        here = [report for report in reports if report.node == name]
        measured = next((report for report in here if report.memory_mb is not None), RankMetrics(name))
        entry: dict[str, Any] = {"node": name, "cpu_pct": measured.cpu_pct, "memory_mb": measured.memory_mb}
        if memory := [mb for report in here if (mb := report.gpu_memory_mb) is not None]:
            entry |= {"gpu_util_pct": _mean(report.gpu_util_pct for report in here), "gpu_memory_mb": sum(memory)}
        nodes.append(entry)
    return nodes


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
