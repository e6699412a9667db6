"""Rendezvous: rank 0 opens a TCP store at an address that other nodes can reach, and gloo gets its network interface.

Host names are not reliable: on Debian a machine's own name resolves to 127.0.1.1, and on some clusters a node's name
resolves nowhere. Rank 0 writes all its addresses, and the others try these in turn until one has the same secret.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import os
import secrets
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist

from runyard.files import write_atomic
from runyard.training.distributed.peer_failure import PeerFailure, reported_end

CONNECT_TIMEOUT_S = 3.0  # for one address: packets to a private network elsewhere are often dropped silently
LISTEN_BACKLOG = 2048  # connections that wait to be accepted, as many as TCPStore's own
SIOCGIFADDR = 0x8915  # Linux: an interface's IPv4 address


def open_store(address_file: Path, *, one_node: bool, timeout_s: float) -> dist.TCPStore:
    """Open rank 0's store on a free port, and write its address and secret to a file that only this user can read.

    TCPStore does not authenticate its clients. On one node it listens only on loopback, out of reach of other machines.
    """
    timeout = datetime.timedelta(seconds=timeout_s)
    port, listen_fd = 0, None
    if one_node:  # by default TCPStore listens on every network of this node
        loopback = socket.create_server(("127.0.0.1", 0), backlog=LISTEN_BACKLOG)
        port, listen_fd = loopback.getsockname()[1], loopback.detach()
    store = dist.TCPStore("127.0.0.1", port, None, True, timeout, wait_for_workers=False, master_listen_fd=listen_fd)
    secret = secrets.token_hex(16)
    store.set("secret", secret)
    hosts = ["127.0.0.1"] if one_node else _own_addresses()
    write_atomic(address_file, json.dumps({"hosts": hosts, "port": store.port, "secret": secret}), mode=0o600)
    return store


def connect_store(address_file: Path, ended_file: Path, *, timeout_s: float) -> dist.TCPStore:
    """Connect another rank to rank 0's store. The controller writes ended ranks to ``ended_file``.

    Raises:
        PeerFailure: a rank has ended, rank 0 wrote no address in time, or it cannot be reached at any of its addresses.
            Another start may succeed if rank 0 was only slow.
    """
    deadline, address = time.monotonic() + timeout_s, dict[str, Any](hosts=[])
    while time.monotonic() < deadline:
        if not address["hosts"] and address_file.exists():
            address = json.loads(address_file.read_text())
        if (peer_failure := reported_end(ended_file)) is not None:
            raise peer_failure
        for host in address["hosts"]:
            if store := _connect(host, address["port"], address["secret"]):
                store.set_timeout(datetime.timedelta(seconds=timeout_s))
                return store
        time.sleep(0.05)
    if not address["hosts"]:
        raise PeerFailure(f"rank 0 opened no rendezvous at {address_file} within {timeout_s:g} s: look into its log")
    raise PeerFailure(
        f"rank 0 is reached at none of {', '.join(address['hosts'])}, port {address['port']}, within {timeout_s:g} s: "
        "check that the nodes' firewalls let each other's jobs through"
    )


def _connect(host: str, port: int, secret: str) -> dist.TCPStore | None:
    timeout = datetime.timedelta(seconds=CONNECT_TIMEOUT_S)
    with contextlib.suppress(OSError, dist.DistError):
        socket.create_connection((host, port), CONNECT_TIMEOUT_S).close()  # the store itself would try for a long time
        store = dist.TCPStore(host, port, None, is_master=False, timeout=timeout, wait_for_workers=False)
        store.wait(["secret"], timeout)
        if store.get("secret").decode() == secret:  # else it is another run's, at the same address on this node
            return store
    return None


def select_interface(store: dist.Store, hostnames: list[str], host: str, port: int) -> None:
    """Make gloo use the network on which another node reaches rank 0 at ``host``; all ranks call this.

    By default gloo uses the address that the host's own name resolves to, which other nodes may not reach. On rank 0's
    node the interface is the one at which another node has reached it.
    """
    if "GLOO_SOCKET_IFNAME" in os.environ:
        return
    if len(set(hostnames)) == 1:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        return
    if socket.gethostname() != hostnames[0]:
        with socket.create_connection((host, port), CONNECT_TIMEOUT_S) as route:
            own_address, reached = route.getsockname()[0], route.getpeername()[0]
        store.set("reached", reached)
    else:
        own_address = store.get("reached").decode()
    if own_address.startswith("127."):  # several nodes on one machine, as in a rehearsal
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    elif name := next((name for name, address in _interfaces() if address == own_address), None):
        os.environ["GLOO_SOCKET_IFNAME"] = name


def _own_addresses() -> list[str]:
    """Return this host's names, the network that the administrator chose, then its IPv4 addresses, loopback last."""
    names = [os.environ.get("SLURMD_NODENAME", ""), socket.gethostname()]
    addresses = sorted((address for _, address in _interfaces()), key=lambda a: a.startswith("127."))
    return list(dict.fromkeys(filter(None, [*names, *addresses])))


def _interfaces() -> Iterator[tuple[str, str]]:
    """Yield name and IPv4 address of each network interface that has one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe_socket:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(probe_socket, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                yield name, socket.inet_ntoa(answer[20:24])
