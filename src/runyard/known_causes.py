"""Known causes of a failed start: what is recognised, whether going on can help, and the fix. A table; no torch.

An exception is classified once, on the rank that raised it: from there on its cause travels by name, and nothing else
reads a message's text. What is in no row of the table is told as it was said, and never guessed.
"""

from __future__ import annotations

import enum
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runyard.errors import UserError

OUT_OF_MEMORY = "OutOfMemory"  # how a process ended, where the kernel or SLURM says so
MAX_MESSAGE_CHARACTERS = 400  # of a message: a person reads one line
# From here on torch speaks of its own C++ code, and of how to debug it.
TORCH_FRAMES = re.compile(
    r"\n?\s*(Exception raised from |frame #\d|C\+\+ CapturedTraceback|CUDA kernel errors might be async|"
    r"For debugging consider passing|Compile with `TORCH_USE_CUDA_DSA`|Search for `cuda\w+' in https)"
)
SOURCE_LOCATION = re.compile(
    r"\[[^\]\s]*\.(?:cc|cpp|cu|h|hpp):\d+\]\s*"
)  # [../third_party/gloo/gloo/transport/tcp/pair.cc:534]


class RetryAdvice(enum.Enum):
    """Whether another start can help."""

    ELSEWHERE = "on another node"  # this one is at fault
    ONCE_ELSEWHERE = "once, on another node"  # if it fails there too, no node is at fault
    AGAIN = "anywhere"
    NO = "not before it is mended"


@dataclass(frozen=True)
class Cause:
    """A known cause.

    Attributes:
        name: As the journal has it, and as a person reads it.
        help: Whether another start can help.
        fix: What mends it, in one line.
        pattern: Of ``TypeName: message``.
    """

    name: str
    retry: RetryAdvice
    fix: str
    pattern: re.Pattern[str]


def _cause(name: str, help_: RetryAdvice, fix: str, pattern: str) -> Cause:
    return Cause(name, help_, fix, re.compile(pattern, re.IGNORECASE))


# The first that fits counts: the particular ones stand before the general ones.
KNOWN_CAUSES: tuple[Cause, ...] = (
    _cause("failed health check", RetryAdvice.ELSEWHERE, "tell the administrators which node it is",
           r"^HealthError\b"),
    _cause("CUDA out of memory", RetryAdvice.AGAIN,
           "a smaller batch_size or model, or accumulate; `nvidia-smi` on the node shows who else uses the GPU",
           r"OutOfMemoryError|CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED"),
    _cause("GPU fault", RetryAdvice.ELSEWHERE, "tell the administrators: `dmesg` on the node shows the Xid",
           r"uncorrectable ECC|\bECC error|\bXid\b|fallen off the bus|GPU (is|was) lost|device is lost|"
           r"hardware stack error|unspecified launch failure|no CUDA-capable device|No CUDA GPUs are available|"
           r"CUDA unknown error|"
           r"nvml.*(Unknown Error|GPU is lost)|system not yet initialized|(CUDA|cuDNN) driver (initialization|error)|"
           r"devices? unavailable|devices?\(s\) is/are busy|NVLink error|memory page retirement|row remap"),
    _cause("error in a GPU kernel", RetryAdvice.AGAIN,
           "CUDA_LAUNCH_BLOCKING=1 in cluster.env_setup names the operation; a label out of range is the usual cause",
           r"device-side assert|illegal memory access|misaligned address|illegal instruction|"
           r"CUBLAS_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR)|CUDNN_STATUS_(EXECUTION_FAILED|INTERNAL_ERROR)"),
    _cause("GPU not supported", RetryAdvice.NO, "set cluster.gres or cluster.constraint to a GPU that this torch knows",
           r"no kernel image is available|driver .*(too old|insufficient)|insufficient for CUDA runtime|"
           r"Torch not compiled with CUDA"),
    _cause("NCCL time-out", RetryAdvice.AGAIN, "it names the collective; if it repeats, look at the nodes' network",
           r"Watchdog caught collective operation timeout|NCCL.*\btimed? ?out|collective operation timeout"),
    _cause("NCCL error", RetryAdvice.AGAIN,
           "NCCL_DEBUG=INFO says more, NCCL_SOCKET_IFNAME sets the network (cluster.env_setup)",
           r"\bNCCL\b|nccl\w*Error"),
    _cause("quota exceeded", RetryAdvice.NO, "make room in your quota, or set runs_dir to another disk",
           r"Errno 122\b|Disk quota exceeded"),
    _cause("shared memory full", RetryAdvice.ONCE_ELSEWHERE,
           "loader=ffcv, fewer workers, or a container's larger /dev/shm",
           r"/dev/shm|out of shared memory|unable to (allocate|open|mmap) shared memory|"
           r"torch_\d+_\d+_\d+.*No space left"),
    _cause("disk full", RetryAdvice.NO, "make room on that disk, or set runs_dir to another",
           r"Errno 28\b|No space left on device"),
    _cause("host out of memory", RetryAdvice.AGAIN, "ask for more (cluster.mem_gb), or take less (workers, loader)",
           r"^MemoryError|Cannot allocate memory|DefaultCPUAllocator: (can't|not enough)|\bOut Of Memory\b|"
           r"oom[-_]kill|^OutOfMemory"),
    _cause("file or disk not readable", RetryAdvice.ELSEWHERE,
           "is that disk mounted on this node? tell the administrators",
           r"Errno (5|107|108|112|116|121)\b|Input/output error|Stale file handle|Transport endpoint|Remote I/O error|"
           r"Host is down"),
    _cause("no Python", RetryAdvice.ONCE_ELSEWHERE, "`make setup` where every node sees it, or set cluster.python",
           r"^exit code (126|127)\b"),
    _cause("import error", RetryAdvice.ONCE_ELSEWHERE,
           "`make setup`; if only this node fails, a disk is not mounted there",
           r"^(ModuleNotFoundError|ImportError)\b|cannot open shared object file|undefined symbol"),
    _cause("damaged data", RetryAdvice.NO, "`runyard prepare` writes it anew",
           r"^(DataError|BadSample|UnpicklingError|zlib\.error)\b|\bsample \d+\b.*(damaged|decode|truncated|corrupt)"),
    _cause("connection lost", RetryAdvice.AGAIN, "another rank or its node ended: the ranks' logs say of what",
           r"Connection (closed by peer|reset by peer|refused)|Broken pipe|DistNetworkError|DistStoreError|"
           r"Socket Timeout|unexpected EOF|gloo.*(timed? ?out|closed)"),
    _cause("bus error", RetryAdvice.AGAIN,
           "a mapped data file shrank (`runyard prepare` writes it anew), or /dev/shm is full",
           r"^SIGBUS\b"),
    _cause("crash in native code", RetryAdvice.AGAIN, "the rank's log has the Python stack; if it repeats, report it",
           r"^(SIGSEGV|SIGABRT|SIGILL|SIGFPE)\b"),
    _cause("killed from outside", RetryAdvice.AGAIN, "`dmesg` on the node, or its administrators, know who did it",
           r"^SIGKILL\b"),
)  # fmt: skip
BY_NAME = {cause.name: cause for cause in KNOWN_CAUSES}


def classify(exception: str | None, message: str) -> Cause | None:
    """The cause of an exception by its type's name and its text, of a signal by its name (``SIGBUS``), of an exit code
    (``exit code 127``); None where the table has none."""
    text = f"{exception}: {message}" if exception else message
    return next((cause for cause in KNOWN_CAUSES if cause.pattern.search(text)), None)


def cause_of(failure: Mapping[str, Any]) -> Cause | None:
    """The known cause of a failure that the journal tells of."""
    return BY_NAME.get(str(failure.get("cause")))


def retry_can_help(failure: Mapping[str, Any]) -> bool:
    """Whether another start can help against a failure: of one whose cause nobody knows it is tried."""
    cause = cause_of(failure)
    return cause is None or cause.retry is not RetryAdvice.NO


def describe_failure(failure: Mapping[str, Any]) -> str:
    """A failure for a person: what was said, where, at which step, and what mends it."""
    where = [f"on {failure['node']}"] if failure.get("node") else []
    where += [f"at step {failure['step']}"] if failure.get("step") is not None else []
    cause = cause_of(failure)
    message = str(failure.get("message") or "without a message")
    return message + (f" ({', '.join(where)})" if where else "") + (f"; {cause.fix}" if cause else "")


def error_text(error: BaseException) -> str:
    """What an exception says, in one line that a person reads."""
    if isinstance(error, UserError):
        return str(error)
    return one_line(str(error)) or type(error).__name__


def one_line(message: str) -> str:
    """A message in one line, without torch's C++ frames, source places and advice on debugging."""
    if (frames := TORCH_FRAMES.search(message)) is not None:
        message = message[: frames.start()]
    line = " ".join(SOURCE_LOCATION.sub("", message).split())
    return line if len(line) <= MAX_MESSAGE_CHARACTERS else line[: MAX_MESSAGE_CHARACTERS - 1] + "…"


def describe_exit(code: int) -> str:
    """How a process ended, by the code that `subprocess` gives it: ``exit code 3``, or a signal's name, ``SIGKILL``.

    A shell makes 128 + n of the signal n that ended what it had started.
    """
    number = -code if code < 0 else code - 128
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"exit code {code}" if code >= 0 else f"signal {number}"


def exit_text(how: str) -> str:
    """An ``end``, or ``OUT_OF_MEMORY``, for a person: by the signal alone where that is all that is known."""
    if how == OUT_OF_MEMORY:
        return "killed by the kernel's out-of-memory killer"
    number = getattr(signal, how, None) if how.startswith("SIG") else None
    return f"killed by {how} (signal {number:d})" if number is not None else how
