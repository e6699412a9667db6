"""An HTTP proxy on loopback: passes CONNECT and whole addresses on to the hosts that it alone knows."""

from __future__ import annotations

import contextlib
import http.client
import select
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

NAME = "wandb.invalid"  # which no resolver knows


class Proxy:
    """``asked`` has the request line's words and the login of each request. ``refusal`` is answered to all, if set."""

    def __init__(self, hosts: dict[str, int]) -> None:
        self.hosts = hosts  # name -> port on loopback
        self.asked: list[tuple[str, str, str | None]] = []
        self.refusal: tuple[int, str] | None = None
        handler = type("Bound", (_Handler,), {"proxy": self})
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._http.daemon_threads = True
        self.port = self._http.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._http.serve_forever, daemon=True, name="proxy").start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy

    def log_message(self, *args: Any) -> None:
        pass

    def _port(self, host: str) -> int | None:
        self.proxy.asked.append((self.command, self.path, self.headers.get("Proxy-Authorization")))
        if self.proxy.refusal is not None:
            self.send_error(*self.proxy.refusal)
        elif host not in self.proxy.hosts:
            self.send_error(502, "Bad Gateway")
        else:
            return self.proxy.hosts[host]
        return None

    def do_CONNECT(self) -> None:
        if (port := self._port(self.path.partition(":")[0])) is None:
            return
        with socket.create_connection(("127.0.0.1", port)) as server:
            self.send_response(200, "Connection established")
            self.end_headers()
            pair = {server: self.connection, self.connection: server}
            while readable := select.select(list(pair), [], [], 10)[0]:
                for end in readable:
                    if not (data := end.recv(65536)):
                        return
                    pair[end].sendall(data)

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if (port := self._port(parts.hostname or "")) is None:
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
            headers = {name: value for name, value in self.headers.items() if name.lower() != "proxy-authorization"}
            connection.request(self.command, f"{parts.path}?{parts.query}".rstrip("?"), body, headers)
            response = connection.getresponse()
            content = response.read()
            self.send_response(response.status, response.reason)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    do_POST = do_PUT = do_HEAD = do_GET  # noqa: N815


@contextlib.contextmanager
def a_proxy(hosts: dict[str, int]) -> Iterator[Proxy]:
    proxy = Proxy(hosts)
    try:
        yield proxy
    finally:
        proxy.close()
