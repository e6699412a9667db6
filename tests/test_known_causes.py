"""Known causes by what torch, NCCL, Python and the kernel really say; what nobody knows is not guessed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runyard import known_causes, out_of_memory
from runyard.known_causes import KNOWN_CAUSES, RetryAdvice

ASYNC = (
    "\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be "
    "incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\n"
    "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n"
)
FRAMES = (
    "\nException raised from c10_cuda_check_implementation at /pytorch/c10/cuda/CUDAException.cpp:43 (most recent call "
    "first):\nframe #0: c10::Error::Error(c10::SourceLocation, std::string) + 0x80 (0x7f in /x/libc10.so)\n"
)
# The type of an exception and its text, or how a process ended; its cause, None for none that is known.
EXAMPLES: list[tuple[str, str, str | None]] = [
    ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.10 GiB of "
     "which 4.00 MiB is free.", "CUDA out of memory"),
    ("AcceleratorError", "CUDA error: out of memory" + ASYNC, "CUDA out of memory"),
    ("RuntimeError", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`", "CUDA out of memory"),
    ("AcceleratorError", "CUDA error: uncorrectable ECC error encountered" + ASYNC + FRAMES, "GPU fault"),
    ("RuntimeError", "CUDA error: the launch timed out and was terminated", None),
    ("AcceleratorError", "CUDA error: unspecified launch failure" + ASYNC, "GPU fault"),
    ("RuntimeError", "No CUDA GPUs are available", "GPU fault"),
    ("RuntimeError", "CUDA error: no CUDA-capable device is detected", "GPU fault"),
    ("RuntimeError", "Unable to determine the device handle for GPU0000:3B:00.0: GPU is lost.  Reboot the system to "
     "recover this GPU", "GPU fault"),
    ("RuntimeError", "NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, GPU has fallen off the bus.", "GPU fault"),
    ("DistBackendError", "NCCL error in: /pytorch/torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:94, unhandled cuda "
     "error (run with NCCL_DEBUG=INFO for details), NCCL version 2.27.5\nncclUnhandledCudaError: Call to CUDA function "
     "failed.\nLast error:\nCuda failure 214 'uncorrectable ECC error encountered'", "GPU fault"),
    ("AcceleratorError", "CUDA error: device-side assert triggered" + ASYNC, "error in a GPU kernel"),
    ("AcceleratorError", "CUDA error: an illegal memory access was encountered" + ASYNC, "error in a GPU kernel"),
    ("RuntimeError", "CUDA error: no kernel image is available for execution on the device", "GPU not supported"),
    ("RuntimeError", "The NVIDIA driver on your system is too old (found version 11040).", "GPU not supported"),
    ("DistBackendError", "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=12, OpType=ALLRE, "
     "Timeout(ms)=180000) ran for 180012 milliseconds before timing out.", "NCCL time-out"),
    ("DistBackendError", "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.hpp:26, unhandled system err, "
     "NCCL version 2.27.5\nncclSystemError: System call (e.g. socket, malloc) or external library call failed.",
     "NCCL error"),
    ("OSError", "[Errno 28] No space left on device: '/scratch/runs/x'", "disk full"),
    ("OSError", "[Errno 122] Disk quota exceeded", "quota exceeded"),
    ("RuntimeError", "unable to open shared memory object </torch_12_34_5> in read-write mode: No space left on device "
     "(28)", "shared memory full"),
    ("OSError", "3.00 MB are free in /dev/shm, but loader=torch needs 60.00 MB there", "shared memory full"),
    ("ValueError", "Expected more than 1 value per channel when training, got input size torch.Size([1, 512, 1, 1])",
     "one value to normalize"),
    ("MemoryError", "", "host out of memory"),
    ("OSError", "[Errno 12] Cannot allocate memory", "host out of memory"),
    ("RuntimeError", "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you "
     "tried to allocate 8 bytes. Error code 12 (Cannot allocate memory)", "host out of memory"),
    ("OutOfMemory", "", "host out of memory"),
    ("OSError", "[Errno 5] Input/output error: '/data/train.beton'", "file or disk not readable"),
    ("OSError", "[Errno 116] Stale file handle", "file or disk not readable"),
    ("OSError", "[Errno 107] Transport endpoint is not connected: '/scratch'", "file or disk not readable"),
    ("ModuleNotFoundError", "No module named 'torch'", "import error"),
    ("ImportError", "libturbojpeg.so.0: cannot open shared object file: No such file or directory", "import error"),
    ("exit code 127", "", "no Python"),
    ("exit code 126", "", "no Python"),
    ("RuntimeError", "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4242",
     "connection lost"),
    ("RuntimeError", "[enforce fail at /gloo/transport/tcp/device.cc:84] ifa != nullptr. Unable to find address for: "
     "nonet0", "no network interface"),
    ("HealthError", "3 of 4 matrix products on cuda:0 are wrong (bfloat16)", "failed health check"),
    ("SIGBUS", "", "bus error"),
    ("SIGSEGV", "", "crash in native code"),
    ("SIGKILL", "", "killed from outside"),
    ("SIGTERM", "", None),
    ("exit code 3", "", None),
    ("ZeroDivisionError", "division by zero", None),
    ("KeyError", "'oomph'", None),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "cause"), EXAMPLES, ids=lambda value: str(value)[:40])
def test_a_cause_is_told_from_what_is_really_said(kind: str, text: str, cause: str | None) -> None:
    found = known_causes.classify(kind, text)
    assert (found and found.name) == cause


def test_every_cause_has_an_example_a_fix_and_a_name_of_its_own() -> None:
    shown = {cause for _, _, cause in EXAMPLES}
    assert [cause.name for cause in KNOWN_CAUSES if cause.name not in shown | {"damaged data"}] == []
    assert len({cause.name for cause in KNOWN_CAUSES}) == len(KNOWN_CAUSES)
    assert all(cause.fix for cause in KNOWN_CAUSES)


def test_only_what_can_be_another_node_next_time_is_tried_elsewhere() -> None:
    elsewhere = {cause.name for cause in KNOWN_CAUSES if cause.retry is RetryAdvice.ELSEWHERE}
    assert elsewhere == {"failed health check", "GPU fault", "file or disk not readable"}


def test_torchs_own_frames_and_advice_are_folded_away() -> None:
    said = "[../aten/src/x/CUDAContext.cpp:12] CUDA error: uncorrectable ECC error encountered" + ASYNC + FRAMES
    assert known_causes.one_line(said) == "CUDA error: uncorrectable ECC error encountered"
    said = "[enforce fail at /gloo/transport/tcp/device.cc:84] ifa != nullptr. Unable to find address for: nonet0"
    assert known_causes.one_line(said) == "ifa != nullptr. Unable to find address for: nonet0"
    assert known_causes.error_text(ValueError("one\n  two")) == "one two"
    assert known_causes.error_text(ValueError()) == "ValueError"
    assert len(known_causes.one_line("x" * 9999)) == known_causes.MAX_MESSAGE_CHARACTERS


def test_the_node_is_named_once() -> None:
    named = {"message": "rank 1 does not answer, on node2", "node": "node2", "step": 4}
    assert known_causes.describe_failure(named) == "rank 1 does not answer, on node2 (at step 4)"
    assert known_causes.describe_failure(named | {"node": "node"}) == (
        "rank 1 does not answer, on node2 (on node, at step 4)"
    )


def test_a_process_that_a_signal_ended_is_told_of_by_that_signal_alone() -> None:
    ends = [subprocess.run([sys.executable, "-c", f"import os; os.kill(os.getpid(), {number})"]).returncode
            for number in (signal.SIGKILL, signal.SIGTERM)]  # fmt: skip
    assert [known_causes.exit_text(known_causes.describe_exit(code)) for code in (*ends, 137, 3)] == [
        "killed by SIGKILL (signal 9)", "killed by SIGTERM (signal 15)", "killed by SIGKILL (signal 9)", "exit code 3",
    ]  # fmt: skip


GROUPS = {
    "version 2, in a job": ("0::/slurm/job_12/step_0/task_1\n", "slurm/job_12/memory.events"),
    "version 1, in a job": ("4:memory:/slurm/uid_0/job_12/step_0\n0::/\n",
                            "memory/slurm/uid_0/job_12/memory.oom_control"),
    "version 2, in a container": ("0::/outside/it\n", "memory.events"),
}  # fmt: skip


@pytest.mark.parametrize(("own", "file"), GROUPS.values(), ids=GROUPS)
def test_memory_is_named_only_where_the_kernel_has_counted_a_kill(
    own: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own").write_text(own)
    count = tmp_path / "groups" / file
    count.parent.mkdir(parents=True)
    count.write_text("oom 4\noom_kill 1\noom_group_kill 0\n")
    monkeypatch.setattr(out_of_memory.oom_kill_count, "__defaults__", (tmp_path / "own", tmp_path / "groups"))
    watch = out_of_memory.OomMonitor()
    assert watch.message() is None, "an earlier kill is none of ours"
    count.write_text("oom 5\noom_kill 2\n")
    assert watch.message() == "the kernel's out-of-memory killer struck"
    count.unlink()
    assert watch.message() is None, "where nobody counts"
