"""Table of the known causes of a failed start: the pattern, whether a retry can help, and the fix. Imports no torch.

An exception is classified once, on the rank that raised it. From there on only the name of its cause is passed on, and
no other code parses messages. A failure that matches no row is reported with its own message; no cause is guessed.
"""

from __future__ import annotations

import enum
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass

from runyard.errors import UserError

OUT_OF_MEMORY = "OutOfMemory"  # the exit description when the kernel or SLURM reports it
SINGLE_VALUE = "one value to normalize"  # in a batch norm, for want of images
MAX_MESSAGE_CHARACTERS = 400  # longer messages are cut: a person reads one line
# From here on a message of torch is about its own C++ code, and about how to debug it.
TORCH_FRAMES = re.compile(
    r"\n?\s*(Exception raised from |frame #\d|C\+\+ CapturedTraceback|CUDA kernel errors might be async|"
    r"For debugging consider passing|Compile with `TORCH_USE_CUDA_DSA`|Search for `cuda\w+' in https)"
)
# Such as [../third_party/gloo/gloo/transport/tcp/pair.cc:534], or [enforce fail at .../device.cc:84]
SOURCE_LOCATION = re.compile(r"\[(?:enforce fail at )?[^\]\s]*\.(?:cc|cpp|cu|h|hpp):\d+\]\s*")


class RetryAdvice(enum.Enum):
    """Whether another start can help."""

    ELSEWHERE = "on another node"  # this node is at fault
    ONCE_ELSEWHERE = "once, on another node"  # if it fails there too, no node is at fault
    AGAIN = "anywhere"
    NO = "not before it is fixed"


@dataclass(frozen=True)
class Cause:
    """A known cause.

    Attributes:
        name: The name in the journal and in messages.
        retry: Whether another start can help.
        fix: What the user can do about it, in one line.
        pattern: Searched for in ``TypeName: message``.
    """

    name: str
    retry: RetryAdvice
    fix: str
    pattern: re.Pattern[str]


def _cause(name: str, retry: RetryAdvice, fix: str, pattern: str) -> Cause:
    return Cause(name, retry, fix, re.compile(pattern, re.IGNORECASE))


# The first match counts, so specific patterns come before general ones.
KNOWN_CAUSES: tuple[Cause, ...] = (
    _cause("failed health check", RetryAdvice.ELSEWHERE, "tell the administrators which node it is",
           r"^HealthError\b"),
    _cause("CUDA out of memory", RetryAdvice.AGAIN,
           "set a smaller batch_size or model, or raise accumulate; `nvidia-smi` on the node shows other users",
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
    _cause("NCCL time-out", RetryAdvice.AGAIN,
           "the message names the collective; if it repeats, check the nodes' network",
           r"Watchdog caught collective operation timeout|NCCL.*\btimed? ?out|collective operation timeout"),
    _cause("NCCL error", RetryAdvice.AGAIN,
           "NCCL_DEBUG=INFO says more, NCCL_SOCKET_IFNAME sets the network (cluster.env_setup)",
           r"\bNCCL\b|nccl\w*Error"),
    _cause("quota exceeded", RetryAdvice.NO, "make room in your quota, or set runs_dir to another disk",
           r"Errno 122\b|Disk quota exceeded"),
    _cause("shared memory full", RetryAdvice.ONCE_ELSEWHERE,
           "set loader=ffcv or fewer workers, or give the container a larger /dev/shm",
           r"/dev/shm|out of shared memory|unable to (allocate|open|mmap) shared memory|"
           r"torch_\d+_\d+_\d+.*No space left"),
    _cause("disk full", RetryAdvice.NO, "make room on that disk, or set runs_dir to another",
           r"Errno 28\b|No space left on device"),
    _cause("host out of memory", RetryAdvice.AGAIN,
           "request more memory (cluster.mem_gb), or use less (fewer workers, another loader)",
           r"^MemoryError|Cannot allocate memory|DefaultCPUAllocator: (can't|not enough)|\bOut Of Memory\b|"
           r"oom[-_]kill|^OutOfMemory"),
    _cause("file or disk not readable", RetryAdvice.ELSEWHERE,
           "check whether that disk is mounted on this node, and tell the administrators",
           r"Errno (5|107|108|112|116|121)\b|Input/output error|Stale file handle|Transport endpoint|Remote I/O error|"
           r"Host is down"),
    _cause("no Python", RetryAdvice.ONCE_ELSEWHERE,
           "run `make setup` on a disk that every node sees, or set cluster.python",
           r"^exit code (126|127)\b"),
    _cause("import error", RetryAdvice.ONCE_ELSEWHERE,
           "run `make setup`; if only this node fails, a disk is not mounted there",
           r"^(ModuleNotFoundError|ImportError)\b|cannot open shared object file|undefined symbol"),
    _cause(SINGLE_VALUE, RetryAdvice.NO, "set a larger batch_size, or fewer ranks or micro-batches",
           r"Expected more than 1 value per channel"),
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
    _cause("no network interface", RetryAdvice.ONCE_ELSEWHERE,
           "unset GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME, or name an interface that every node has (`ip addr`)",
           r"unable to find (address for|interface)|no socket interface found"),
    _cause("killed from outside", RetryAdvice.AGAIN,
           "`dmesg` on the node, or its administrators, can tell what killed it",
           r"^SIGKILL\b"),
)  # fmt: skip
BY_NAME = {cause.name: cause for cause in KNOWN_CAUSES}


def classify(exception: str | None, message: str) -> Cause | None:
    """Return the known cause of an exception, a signal or an exit code; None if no row of the table matches.

    An exception is given by the name of its type and its message; a signal by its name (``SIGBUS``) and an exit code as
    ``exit code 127``, both as the message.
    """
    text = f"{exception}: {message}" if exception else message
    return next((cause for cause in KNOWN_CAUSES if cause.pattern.search(text)), None)


def cause_of(failure: Mapping[str, object]) -> Cause | None:
    """Return the known cause of a failure record of the journal, or None."""
    return BY_NAME.get(str(failure.get("cause")))


def retry_can_help(failure: Mapping[str, object]) -> bool:
    """Return whether another start can help. A failure of unknown cause is retried, too."""
    cause = cause_of(failure)
    return cause is None or cause.retry is not RetryAdvice.NO


def describe_failure(failure: Mapping[str, object]) -> str:
    """Return a failure as text: its message, the node, the step, and the fix if its cause is known."""
    message = str(failure.get("message") or "without a message")
    node, cause = failure.get("node"), cause_of(failure)
    where = [f"on {node}"] if node and not re.search(rf"\b{re.escape(str(node))}\b", message) else []
    where += [f"at step {failure['step']}"] if failure.get("step") is not None else []
    return message + (f" ({', '.join(where)})" if where else "") + (f"; {cause.fix}" if cause else "")


def error_text(error: BaseException) -> str:
    """Return the message of an exception as one line."""
    if isinstance(error, UserError):
        return str(error)
    return one_line(str(error)) or type(error).__name__


def one_line(message: str) -> str:
    """Return a message as one line, without torch's C++ frames, source locations and advice on debugging."""
    if (frames := TORCH_FRAMES.search(message)) is not None:
        message = message[: frames.start()]
    line = " ".join(SOURCE_LOCATION.sub("", message).split())
    return line if len(line) <= MAX_MESSAGE_CHARACTERS else line[: MAX_MESSAGE_CHARACTERS - 1] + "…"


def describe_exit(code: int) -> str:
    """Return how a process ended, from its ``subprocess`` return code: ``exit code 3``, or a signal's name.

    A shell reports 128 + n when signal n ended the program that it started.
    """
    number = -code if code < 0 else code - 128
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"exit code {code}" if code >= 0 else f"signal {number}"


def exit_text(exit_description: str) -> str:
    """Return the result of ``describe_exit``, or ``OUT_OF_MEMORY``, as text: ``killed by SIGKILL (signal 9)``."""
    if exit_description == OUT_OF_MEMORY:
        return "killed by the kernel's out-of-memory killer"
    number = getattr(signal, exit_description, None) if exit_description.startswith("SIG") else None
    return f"killed by {exit_description} (signal {number:d})" if number is not None else exit_description
