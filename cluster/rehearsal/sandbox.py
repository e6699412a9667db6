"""A temporary SLURM cluster on this machine, with a controller and several nodes, to test submissions and failures.

Each node is a pid, mount and host-name namespace of its own, whose first process is its slurmd: it has a name that
the other nodes resolve, and killing it is a power cut that nothing on it survives. All daemons listen on free ports of
127.0.0.1 only, so that any number of clusters can run side by side.
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
from pathlib import Path
from types import FrameType, TracebackType

from runyard.cluster.rehearsal import accounting, slurm_conf, supervisor
from runyard.cluster.rehearsal.slurm_conf import CONTROLLER_HOST
from runyard.errors import UserError
from runyard.slurm_client import clean_environment

SLURM_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", *supervisor.NAMESPACE_PROGRAMS)
PACKAGES = "slurm-wlm munge slurmdbd mariadb-server-core"  # of those of slurm/setup.sh
SOCKET_PATH_BYTES = 78  # Linux takes 107, and a step's socket is /node1/node1_1234.4294967295
PORTS = range(12_000, 32_000)
CONTROLLER_SAVES_WITHIN_S = 5
ORPHAN_DELAY_S = 2  # a task was seen alive 25 s after its node's link was back


class SlurmSandbox:
    """A temporary SLURM cluster, started on entry and removed without a trace on exit.

    Use: ``with SlurmSandbox(folder, nodes=3) as sandbox: sandbox.run("sbatch", ...)``. Its partitions are ``main``, the
    default, and ``low``, whose jobs are preempted and requeued for jobs of ``high``.

    Args:
        folder: Created for the cluster and deleted with it: configuration, key, state and logs.
        nodes: How many nodes, named node1, node2, ...; each claims 64 CPUs, 256 GB and two GPUs that need not exist.
        accounting: Whether slurmdbd and its database run, so that sacct answers and accounts and QOS are checked.
        preempt_signal: Whether a preempted job gets the signal that it asked for, and time; see ``signal_preempted``.

    Attributes:
        environment: The environment in which a command uses this cluster and no other.

    Raises:
        UserError: SLURM's programs are missing, the folder exists, or a program of the cluster did not start.
    """

    def __init__(self, folder: Path, nodes: int = 2, accounting: bool = False, preempt_signal: bool = False) -> None:
        self.folder = folder.absolute()
        self.nodes = [f"node{k}" for k in range(1, nodes + 1)]
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
        # All nodes share this machine's cores: a thread that spins while it waits keeps others from working. And
        # torch's folder for compiled code, which it creates even if nothing is compiled, is to be deleted, too.
        jobs = {"OMP_WAIT_POLICY": "PASSIVE", "TORCHINDUCTOR_CACHE_DIR": str(self.folder / "inductor")}
        self.environment = jobs | inherited | {"SLURM_CONF": str(self.folder / "slurm.conf")}
        self._accounting, self._preempt_signal, self._preempt_signal_now = accounting, preempt_signal, preempt_signal
        try:
            self._user = pwd.getpwuid(os.getuid()).pw_name
        except KeyError:  # SLURM's daemons look it up
            raise UserError(
                f"user id {os.getuid()} has no passwd entry, and SLURM needs one", "rehearse elsewhere"
            ) from None
        self._supervisor = supervisor.Supervisor(self.folder, self.environment)
        self._frozen: set[str] = set()

    def __enter__(self) -> SlurmSandbox:
        if reason := missing_programs(self._accounting):
            raise UserError(reason)
        if self.folder.exists() or len(os.fsencode(self.folder)) > SOCKET_PATH_BYTES:
            raise UserError(
                f"{self.folder}: expected a folder that does not exist yet, of a path of at most "
                f"{SOCKET_PATH_BYTES} bytes",
                "name another",
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
        previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            self._supervisor.stop_all()
            if self._terminate is not None:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)

    def run(self, *command: str, check: bool = True, timeout_s: float = 30) -> str:
        """Run one of SLURM's commands and return its output; without ``check``, its errors are included.

        Raises:
            subprocess.CalledProcessError: it failed, and ``check`` is set.
            subprocess.TimeoutExpired: it took longer than ``timeout_s`` seconds.
        """
        errors = None if check else subprocess.STDOUT
        return subprocess.run(
            command, env=clean_environment(self.environment), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=errors, text=True, timeout=timeout_s, check=check,
        ).stdout  # fmt: skip

    def power_off(self, node: str) -> None:
        """Cut a node's power: all its processes end at once, without notice to SLURM."""
        self._frozen.discard(node)
        self._supervisor.stop(node)

    def power_on(self, node: str) -> None:
        """Start a node again. Returns when SLURM has heard from it; the jobs that ran on it are requeued.

        SLURM recognizes a rebooted machine by its uptime. Here all nodes share one uptime, so SLURM is told explicitly.
        """
        previous_start = self._slurmd_start_time(node)
        self.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=rebooted")
        self._begin_node(node)
        self._supervisor.wait_until(node, lambda: self._slurmd_start_time(node) != previous_start)

    def suspend_node(self, node: str) -> None:
        """Stop all processes of a node with SIGSTOP: to the others its link seems cut, and its tasks still exist."""
        self._frozen.add(node)
        self._supervisor.suspend(node)

    def resume_node(self, node: str) -> None:
        """Continue a suspended node: first its tasks, orphans if SLURM gave them up, then slurmd, which ends those."""
        self._frozen.discard(node)
        self._supervisor.resume(node, delay_first_s=ORPHAN_DELAY_S)

    def restart_controller(self) -> None:
        """Call ``kill_controller``, then ``start_controller``."""
        self.kill_controller()
        self.start_controller()

    def kill_controller(self) -> None:
        """Kill slurmctld as a crash would: nothing answers until it is started again.

        slurmctld saves its state, new jobs included, within five seconds. This waits for that first.
        """
        time.sleep(CONTROLLER_SAVES_WITHIN_S)
        self._supervisor.stop(CONTROLLER_HOST)

    def start_controller(self) -> None:
        """Start slurmctld from its saved state. Returns when it has heard from its nodes."""
        self._begin_controller()
        self._supervisor.wait_until(CONTROLLER_HOST, self._nodes_known)

    def signal_preempted(self, enabled: bool) -> None:
        """Set whether jobs that are preempted from now on get the signal that they asked for, and ten seconds.

        Without it a job gets what ``scancel`` sends: SIGTERM, and two seconds later SIGKILL.
        """
        self._preempt_signal_now = enabled
        self._write_configuration()
        self.run("scontrol", "reconfigure")

    def restore(self) -> None:
        """Undo all faults: each node is running and in service, and preemption is as it was at first."""
        if self._preempt_signal_now != self._preempt_signal:
            self.signal_preempted(self._preempt_signal)
        for node in list(self._frozen):
            self.resume_node(node)
        for node in self.nodes:
            if node not in self._supervisor:
                self.power_on(node)
        self._supervisor.wait_until(CONTROLLER_HOST, self._resumed)

    def _write_files(self) -> None:
        self.folder.mkdir(parents=True)
        self._supervisor.start_cleaner()
        for name in ("state", "log"):
            (self.folder / name).mkdir()
        self._ports = _free_ports(2 + len(self.nodes))
        self._write_configuration()
        if self._accounting:
            accounting.write_files(self.folder, self._ports[1], self._user)
        names = f"{CONTROLLER_HOST} {accounting.ACCOUNTING} {' '.join(self.nodes)}"
        (self.folder / "hosts").write_text(f"127.0.0.1 localhost {names}\n")
        key = os.open(self.folder / "munge.key", os.O_WRONLY | os.O_CREAT, 0o600)
        os.write(key, secrets.token_bytes(128))
        os.close(key)

    def _write_configuration(self) -> None:
        slurm_conf.write_slurm_conf(
            self.folder,
            user=self._user,
            controller_port=self._ports[0],
            nodes=dict(zip(self.nodes, self._ports[2:], strict=True)),
            accounting=accounting.SLURM_CONF_LINES.format(folder=self.folder, port=self._ports[1])
            if self._accounting
            else "",
            preempt_signal=self._preempt_signal_now,
        )

    def _start(self) -> None:
        folder = self.folder
        options = {
            "key-file": "munge.key",
            "socket": "munge.sock",
            "seed-file": "munge.seed",
            "log-file": "log/munged.log",
        }
        files = [f"--{option}={folder}/{name}" for option, name in ({"pid-file": "munged.pid"} | options).items()]
        self._supervisor.start("munged", ["munged", "--foreground", "--force", *files])
        if self._accounting:
            accounting.start_accounting(self._supervisor, folder, self._ports[1])
        self._supervisor.wait_until("munged", (folder / "munge.sock").exists)
        self._begin_controller()
        for node in self.nodes:
            self._begin_node(node)
        if self._accounting:  # only once slurmctld is up: it creates the cluster's entry and learns of additions
            self._supervisor.wait_until(CONTROLLER_HOST, lambda: "UP" in self.run("scontrol", "ping", check=False))
            for arguments in accounting.sacctmgr_commands(self._user):
                self.run("sacctmgr", "--immediate", *arguments)
        self._supervisor.wait_until(CONTROLLER_HOST, lambda: self._states() == ["idle"] * len(self.nodes))

    def _begin_controller(self) -> None:
        self._supervisor.start_isolated(CONTROLLER_HOST, f"slurmctld -D -f {shlex.quote(f'{self.folder}/slurm.conf')}")

    def _begin_node(self, node: str) -> None:
        self._supervisor.start_isolated(node, f"slurmd -D -N {node} -f {shlex.quote(f'{self.folder}/slurm.conf')}")

    def _states(self) -> list[str]:
        """Return the nodes' states as sinfo's %t; each is "unk" while slurmctld does not answer."""
        command = ("sinfo", "--noheader", "--Node", "--partition=main", "--format=%N=%t")
        states = dict(line.partition("=")[::2] for line in self.run(*command, check=False).split())
        return [states.get(node, "unk") for node in self.nodes]

    def _resumed(self) -> bool:
        """Resume the nodes that an administrator took out of service. Returns whether all are in service.

        SLURM refuses it to a node that is back by itself meanwhile, and may forget it while a node registers.
        """
        states = dict(zip(self.nodes, self._states(), strict=True))
        for node in (node for node, state in states.items() if state in ("down", "drain", "drng")):
            self.run("scontrol", "update", f"NodeName={node}", "State=RESUME", check=False)
        return set(states.values()) <= {"idle", "mix", "alloc", "comp"}

    def _nodes_known(self) -> bool:
        return not any(state.startswith("unk") for state in self._states())

    def _slurmd_start_time(self, node: str) -> str:
        """Return the start time of a node's slurmd, as slurmctld last heard it."""
        shown = self.run("scontrol", "--oneliner", "show", "node", node)
        return shown.partition("SlurmdStartTime=")[2].split()[0]


def missing_programs(with_accounting: bool = True) -> str | None:
    """Return which programs this machine lacks for a rehearsal and how to install them; None if there are all."""
    programs = SLURM_PROGRAMS + (accounting.ACCOUNTING_PROGRAMS if with_accounting else ())
    if missing := [name for name in programs if shutil.which(name, path=supervisor.search_path()) is None]:
        return (
            f"no {', '.join(missing)} on this machine: `make rehearsal-tools` installs SLURM and its accounting; or as "
            f"root: apt-get install {PACKAGES}"
        )
    return None


def _free_ports(count: int) -> list[int]:
    """Return free ports below those that the kernel assigns, which a connection could take before they are used."""
    ports: list[int] = []
    with contextlib.ExitStack() as sockets:
        while len(ports) < count:
            probe, port = sockets.enter_context(socket.socket()), PORTS.start + secrets.randbelow(len(PORTS))
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                ports.append(port)
    return ports


def _raise_on_terminate() -> object:
    """Make SIGTERM unwind the stack, unless the program handles it itself. Returns None if nothing was changed."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        return None

    def unwind(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    return signal.signal(signal.SIGTERM, unwind)
