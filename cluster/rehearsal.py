"""A throwaway SLURM on this machine: a controller and several nodes, to try submissions and failures in seconds.

Each node is a pid, mount and host-name namespace of its own, whose first process is its slurmd: it has a name that
the other nodes resolve, and killing it is a power cut that nothing on it survives. All listen on 127.0.0.1 only, on
free ports, so that any number of clusters run side by side.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType

from cluster import accounting
from runyard.errors import UserError

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "unshare", "setpriv")
CONTROLLER = "controller"
START_TIMEOUT_S, END_TIMEOUT_S = 30.0, 3.0
SOCKET_PATH_BYTES = 100  # Linux takes 107, and a name follows

PREEMPT_SIGNAL = "SlurmctldParameters=preempt_send_user_signal\n"

# cred_expire, KillWait: a job is requeued cred_expire + 1 s after its end, and the old srun must be gone by then.
CONFIGURATION = """\
ClusterName=rehearsal
SlurmctldHost={controller}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=8
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
JobRequeue=1
KillWait=2
SlurmdTimeout=10
SlurmctldTimeout=30
MessageTimeout=10
BatchStartTimeout=10
MinJobAge=3600
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=2
JobAcctGatherType=jobacct_gather/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=OFF
PartitionName=low Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
NODE = "NodeName={name} NodeHostname={name} NodeAddr=127.0.0.1 Port={port} CPUs=64 RealMemory=256000 Gres=gpu:2\n"
# Two "GPUs" a node: SLURM wants device files, counts them, and never opens them.
GRES = "Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n"


class Rehearsal:
    """``with Rehearsal(folder, nodes=3) as lab: lab.run("sbatch", ...)``: up on entry, gone without a trace on exit.

    Args:
        folder: Made for the cluster and deleted with it: configuration, key, state and logs.
        nodes: How many nodes, named node1, node2, ...; each claims 64 CPUs, 256 GB and two GPUs that need not be there.
        accounting: With slurmdbd and its database: sacct and sacctmgr answer, and accounts and QOS are checked.
        preempt_signal: Whether a preempted job gets the signal that it asked for with --signal before its end.

    Attributes:
        environment: What a command needs in its environment to speak to this cluster and to no other.

    Raises:
        UserError: SLURM's programs are missing, the folder exists, or a part of the cluster did not start.
    """

    def __init__(
        self, folder: Path, nodes: int = 2, accounting: bool = False, preempt_signal: bool = False
    ) -> None:
        self.folder = folder.absolute()
        self.nodes = [f"node{k}" for k in range(1, nodes + 1)]
        ours = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
        self.environment = ours | {"SLURM_CONF": str(self.folder / "slurm.conf")}
        self._accounting, self._preempt_signal = accounting, preempt_signal
        self._user = pwd.getpwuid(os.getuid()).pw_name
        self._frozen: set[str] = set()
        self._parts: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Rehearsal:
        if reason := missing(self._accounting):
            raise UserError(reason)
        if self.folder.exists() or len(str(self.folder)) > SOCKET_PATH_BYTES:
            raise UserError(
                f"{self.folder}: expected a folder that does not exist yet, of a path of at most "
                f"{SOCKET_PATH_BYTES} characters; name another"
            )
        self._terminate = _raise_on_terminate()
        try:
            self._write_files()
            self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            for name in reversed(list(self._parts)):
                self._end(name)
            shutil.rmtree(self.folder, ignore_errors=True)
            if self._terminate is not None:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)

    def run(self, *command: str, check: bool = True, timeout_s: float = 30) -> str:
        """What ``command``, one of SLURM's, printed.

        Raises:
            subprocess.CalledProcessError: it failed, and ``check``.
        """
        errors = None if check else subprocess.STDOUT
        return subprocess.run(
            command, env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True,
            timeout=timeout_s, check=check,
        ).stdout  # fmt: skip

    def power_off(self, node: str) -> None:
        """Cut a node's power: all its processes are gone at once, and nobody is told."""
        self._frozen.discard(node)
        self._end(node)

    def power_on(self, node: str) -> None:
        """Start a node again; back when SLURM has heard from it."""
        before = self._node(node)
        self._begin_node(node)
        self._wait_until(node, lambda: self._node(node)["SlurmdStartTime"] != before["SlurmdStartTime"])

    def freeze(self, node: str) -> None:
        """Stop all of a node's processes where they are: for all others its link is cut, and its tasks still exist."""
        self._frozen.add(node)
        while running := [pid for pid in self._processes(node) if _state(pid) not in "TZ"]:
            for pid in running:  # parents first, and again for children made meanwhile
                _signal(pid, signal.SIGSTOP)

    def thaw(self, node: str) -> None:
        """Let a frozen node's processes go on, as if the time between had not been."""
        self._frozen.discard(node)
        for pid in self._processes(node):
            _signal(pid, signal.SIGCONT)

    def restart_controller(self) -> None:
        """Kill slurmctld as a crash would, and start it on the state that it left."""
        self._end(CONTROLLER)
        self._begin_controller()
        self._wait_until(CONTROLLER, self._answers)

    def signal_preempted(self, wanted: bool) -> None:
        """Whether jobs that are preempted from now on get the signal that they asked for."""
        self._preempt_signal = wanted
        self._write_configuration()
        self.run("scontrol", "reconfigure")

    def mend(self) -> None:
        """Undo all faults: every node is in service, for what is still there of jobs on it or for new ones."""
        for node in list(self._frozen):
            self.thaw(node)
        for node in self.nodes:
            if node not in self._parts:
                self.power_on(node)

    def _write_files(self) -> None:
        self.folder.mkdir(parents=True)
        for name in ("state", "log", "spool"):
            (self.folder / name).mkdir()
        self._ports = _free_ports(2 + len(self.nodes))
        self._write_configuration()
        if self._accounting:
            accounting.write_files(self.folder, self._ports[1], self._user)
        (self.folder / "gres.conf").write_text(GRES)
        names = f"{CONTROLLER} {accounting.ACCOUNTING} {' '.join(self.nodes)}"
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost {names}\n")
        key = os.open(self.folder / "munge.key", os.O_WRONLY | os.O_CREAT, 0o600)
        os.write(key, secrets.token_bytes(128))
        os.close(key)

    def _write_configuration(self) -> None:
        text = CONFIGURATION.format(controller=CONTROLLER, port=self._ports[0], folder=self.folder, user=self._user)
        for node, port in zip(self.nodes, self._ports[2:], strict=True):
            text += NODE.format(name=node, port=port)
        if self._accounting:
            text += accounting.SETTINGS.format(folder=self.folder, port=self._ports[1])
        if self._preempt_signal:
            text += PREEMPT_SIGNAL
        (self.folder / "slurm.conf").write_text(text)

    def _start(self) -> None:
        f = self.folder
        own = {"key-file": "munge.key", "socket": "munge.sock", "seed-file": "munge.seed", "log-file": "log/munged.log"}
        files = [f"--{option}={f}/{name}" for option, name in ({"pid-file": "munged.pid"} | own).items()]
        self._begin("munged", ["munged", "--foreground", "--force", *files])
        if self._accounting:
            self._start_accounting()
        self._wait_until("munged", (f / "munge.sock").exists)
        self._begin_controller()
        for node in self.nodes:
            self._begin_node(node)
        self._wait_until(CONTROLLER, self._answers)
        if self._accounting:  # only now: slurmctld made the cluster's entry, and hears of what is added to it
            for arguments in accounting.accounts(self._user):
                self.run("sacctmgr", "--immediate", *arguments)
        self._wait_until(CONTROLLER, self._all_idle)

    def _start_accounting(self) -> None:
        self._begin_alone(accounting.DATABASE, accounting.database_command(self.folder))
        self._wait_until(accounting.DATABASE, accounting.database_socket(self.folder).exists)
        self.environment["MYSQL_UNIX_PORT"] = str(accounting.database_socket(self.folder))
        self._begin_alone(accounting.ACCOUNTING, "slurmdbd -D")
        self._wait_until(accounting.ACCOUNTING, lambda: _listens(self._ports[1]))

    def _begin_controller(self) -> None:
        self._begin_alone(CONTROLLER, f"slurmctld -D -f {shlex.quote(f'{self.folder}/slurm.conf')}")

    def _begin_node(self, node: str) -> None:
        self._begin_alone(node, f"slurmd -D -N {node} -f {shlex.quote(f'{self.folder}/slurm.conf')}")

    def _node(self, name: str) -> dict[str, str]:
        shown = self.run("scontrol", "--oneliner", "show", "node", name)
        return dict(word.partition("=")[::2] for word in shown.split())

    def _processes(self, name: str) -> list[int]:
        """A part's processes but for unshare, parents before children."""
        found = [self._parts[name].pid]
        for pid in found:
            found += _children(pid)
        return found[1:]

    def _answers(self) -> bool:
        return "UP" in self.run("scontrol", "ping", check=False)

    def _all_idle(self) -> bool:
        states = self.run("sinfo", "--noheader", "--Node", "--partition=main", "--format=%t", check=False).split()
        return states == ["idle"] * len(self.nodes)

    def _begin_alone(self, name: str, command: str) -> None:
        """Start a part in namespaces of its own, where names resolve as the cluster's administrator would have it."""
        setup = f"hostname {name} && mount --bind {shlex.quote(f'{self.folder}/hosts')} /etc/hosts && exec "
        namespaces = ["unshare", "--pid", "--mount", "--uts", "--mount-proc", "--fork", "--kill-child"]
        if os.getuid() != 0:  # root inside to set the node up, then oneself again
            namespaces.append("--map-root-user")
            setup += f"unshare --user --map-user={os.getuid()} --map-group={os.getgid()} "
        self._begin(name, [*namespaces, "sh", "-c", setup + command])

    def _begin(self, name: str, command: list[str]) -> None:
        """Start a part that the kernel ends should this process die without a chance to."""
        with open(self.folder / "log" / f"{name}.out", "wb") as log:
            self._parts[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                env=self.environment | {"PATH": _path()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # the terminal's Ctrl-C is for this process alone
            )

    def _end(self, name: str) -> None:
        part = self._parts.pop(name)
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            if name != "munged":  # the first process of its namespace: all others go with it
                for child in _children(part.pid):
                    os.kill(child, signal.SIGKILL)
            else:
                part.terminate()
            part.wait(END_TIMEOUT_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(part.pid, signal.SIGKILL)
        part.wait()

    def _wait_until(self, name: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            dead = [n for n, part in self._parts.items() if part.poll() is not None]
            if dead or ready():
                break
            time.sleep(0.05)
        else:
            dead = [name]
        if dead:
            said = (self.folder / "log" / f"{dead[0]}.out").read_text(errors="replace").strip().splitlines()
            raise UserError(f"{dead[0]} did not start: {said[-1] if said else 'it said nothing'}")


def missing(with_accounting: bool = True) -> str | None:
    """What this machine lacks for a rehearsal, in one line with its mend; None where nothing is."""
    programs = PROGRAMS + (accounting.PROGRAMS if with_accounting else ())
    if lacking := [name for name in programs if shutil.which(name, path=_path()) is None]:
        return f"no {', '.join(lacking)} on this machine: `make rehearsal-tools` installs SLURM and its accounting"
    return None


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*"):  # every thread may have made some
        with contextlib.suppress(OSError):
            found += map(int, (task / "children").read_text().split())
    return found


def _state(pid: int) -> str:
    """A process's state as /proc has it, in one letter; Z, as of a dead one, where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return "Z"


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _path() -> str:
    """Where daemons lie is on few ordinary users' PATH."""
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _raise_on_terminate() -> object:
    """Make SIGTERM unwind the stack, unless the program has its own plans for it. None where nothing was changed."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        return None

    def unwind(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    return signal.signal(signal.SIGTERM, unwind)
