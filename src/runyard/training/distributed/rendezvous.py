"""Where the ranks of one start meet: rank 0's store, by an address that the other nodes reach, and gloo's network.

No name is trusted: on Debian a machine's own name means 127.0.1.1, and on some clusters a node's name resolves nowhere.
Rank 0 writes down all that it may be reached by, and the others try these in turn until one has the same secret.
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

CONNECT_TIMEOUT_S = 3.0  # for one address: packets to another site's private network are often dropped in silence
LISTEN_BACKLOG = 2048  # connections that wait to be accepted, as TCPStore's own
SIOCGIFADDR = 0x8915  # Linux: an interface's IPv4 address


def open_store(address_file: Path, *, one_node: bool, timeout_s: float) -> dist.TCPStore:
    """Rank 0's part: a store on a free port, and the file that says where it is, which only this user can read.

    TCPStore asks nobody who they are. That of one node listens on loopback alone, which no other machine reaches.
    """
    timeout = datetime.timedelta(seconds=timeout_s)
    port, listen_options = 0, dict[str, Any]()
    if one_node:  # by itself TCPStore listens on every network of this node
        loopback = socket.create_server(("127.0.0.1", 0), backlog=LISTEN_BACKLOG)
        port, listen_options = loopback.getsockname()[1], {"master_listen_fd": loopback.detach()}
    store = dist.TCPStore("127.0.0.1", port, None, True, timeout, wait_for_workers=False, **listen_options)
    secret = secrets.token_hex(16)
    store.set("secret", secret)
    hosts = ["127.0.0.1"] if one_node else _own_addresses()
    write_atomic(address_file, json.dumps({"hosts": hosts, "port": store.port, "secret": secret}), mode=0o600)
    return store


def connect_store(address_file: Path, ended_file: Path, *, timeout_s: float) -> dist.TCPStore:
    """The other ranks' part. Who leads them puts into ``notes`` what rank has ended.

    Raises:
        RankLost: a rank has ended, rank 0 wrote no address in time, or none that it wrote leads to it. It may be slow:
            another start may mend that.
    """
    deadline, address = time.monotonic() + timeout_s, dict[str, Any](hosts=[])
    while time.monotonic() < deadline:
        if not address["hosts"] and address_file.exists():
            address = json.loads(address_file.read_text())
        if (lost := reported_end(ended_file)) is not None:
            raise lost
        for host in address["hosts"]:
            if store := _connect(host, address["port"], address["secret"]):
                store.set_timeout(datetime.timedelta(seconds=timeout_s))
                return store
        time.sleep(0.05)
    if not address["hosts"]:
        raise PeerFailure(
            f"rank 0 did not open the meeting at {address_file} within {timeout_s:g} s: look into its log"
        )
    raise PeerFailure(
        f"rank 0 is reached at none of {', '.join(address['hosts'])}, port {address['port']}, within {timeout_s:g} s: "
        "do the nodes' firewalls let each other's jobs through?"
    )


def _connect(host: str, port: int, secret: str) -> dist.TCPStore | None:
    timeout = datetime.timedelta(seconds=CONNECT_TIMEOUT_S)
    with contextlib.suppress(OSError, dist.DistError):
        socket.create_connection((host, port), CONNECT_TIMEOUT_S).close()  # the store itself would try for long
        store = dist.TCPStore(host, port, None, is_master=False, timeout=timeout, wait_for_workers=False)
        store.wait(["secret"], timeout)
        if store.get("secret").decode() == secret:  # else another run's, at the same address of this node
            return store
    return None


def select_interface(store: dist.Store, hostnames: list[str], host: str, port: int) -> None:
    """Have gloo use the network on which another node reaches rank 0 at ``host``; all ranks call this.

    By itself gloo takes the address that the host's own name means, which other nodes may not reach. The interfaces of
    rank 0's node are told from the address that another node has reached it at.
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
    if own_address.startswith("127."):  # several nodes on one machine: a rehearsal
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    elif name := next((name for name, address in _interfaces() if address == own_address), None):
        os.environ["GLOO_SOCKET_IFNAME"] = name


def _own_addresses() -> list[str]:
    """By name first, since that is the network the administrator chose; loopback last, for rehearsals."""
    names = [os.environ.get("SLURMD_NODENAME", ""), socket.gethostname()]
    numbers = sorted((address for _, address in _interfaces()), key=lambda a: a.startswith("127."))
    return list(dict.fromkeys(filter(None, [*names, *numbers])))


def _interfaces() -> Iterator[tuple[str, str]]:
    """Name and IPv4 address of each network interface that has one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe_socket:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(probe_socket, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                yield name, socket.inet_ntoa(answer[20:24])
