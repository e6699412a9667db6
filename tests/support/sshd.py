"""An ssh server of the tests' own: on an unprivileged port of loopback, with its own keys, home and known host."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.settings import PATIENCE_S

HOST = "cluster"
SERVER = """\
ListenAddress 127.0.0.1:{port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
StrictModes no
UsePAM no
PermitRootLogin yes
PasswordAuthentication no
KbdInteractiveAuthentication no
SetEnv HOME={home} PATH={path} {variables}
"""
CLIENT = """\
Host cluster
    HostName 127.0.0.1
    Port {port}
    User {user}
    IdentityFile {folder}/key
    IdentitiesOnly yes
    BatchMode yes
    UserKnownHostsFile {folder}/known_hosts
    StrictHostKeyChecking yes
Host gone
    HostName 127.0.0.1
    Port 1
    BatchMode yes
"""


@dataclass(frozen=True)
class Server:
    """What a command finds there and here.

    Attributes:
        home: The home directory on the host.
        programs: Comes first on the host's PATH.
        environment: In which ``ssh cluster`` reaches it: an ``ssh`` with this configuration comes first on PATH.
    """

    home: Path
    programs: Path
    environment: dict[str, str]


@contextlib.contextmanager
def server(folder: Path, **variables: str) -> Iterator[Server]:
    """Sessions have ``variables`` in their environment. Skips the test, saying why, where there is no sshd."""
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if sshd is None or shutil.which("ssh") is None:
        pytest.skip("no sshd on this machine: make rehearsal-tools")
    home, programs, here = folder / "home", folder / "programs", folder / "here"
    for made in (home, programs, here):
        made.mkdir()
    for key in ("key", "host_key"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {(folder / 'host_key.pub').read_text()}")
    path = f"{programs}:/usr/local/bin:/usr/bin:/bin:/usr/sbin"
    own = " ".join(f"{name}={value}" for name, value in variables.items())
    (folder / "sshd_config").write_text(SERVER.format(port=port, folder=folder, home=home, path=path, variables=own))
    (folder / "config").write_text(CLIENT.format(port=port, folder=folder, user=getpass.getuser()))
    # A profile on many clusters prints, and sets PATH.
    (home / ".bash_profile").write_text(f"echo Welcome; echo Welcome >&2\nPATH={path}\n")
    ssh = here / "ssh"
    ssh.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {folder}/config "$@"\n')
    ssh.chmod(0o755)
    if os.getuid() == 0:  # as its service does at each boot
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    running = subprocess.Popen(
        [sshd, "-D", "-e", "-f", folder / "sshd_config"],
        stderr=open(folder / "said", "w"),  # noqa: SIM115
    )
    sockets = tempfile.TemporaryDirectory()  # a short path
    environment = os.environ | {"PATH": f"{here}:{os.environ['PATH']}", "XDG_RUNTIME_DIR": sockets.name}
    try:
        deadline = time.monotonic() + PATIENCE_S
        while subprocess.run([ssh, HOST, "true"], env=environment, capture_output=True).returncode:
            assert running.poll() is None, (folder / "said").read_text()
            assert time.monotonic() < deadline, (folder / "said").read_text()
            time.sleep(0.1)
        yield Server(home, programs, environment)
    finally:
        for control in Path(sockets.name).glob("*/*"):
            subprocess.run([ssh, "-O", "exit", f"-oControlPath={control}", HOST], capture_output=True)
        running.terminate()
        running.wait()
        sockets.cleanup()
