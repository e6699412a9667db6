"""How a request goes from this machine to a server, directly or through a proxy, and whether anything answers there.

The proxy is the one that ``requests`` takes by HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY. A check that opened a
connection of its own would refuse where a proxy is the only way out, and would accept a proxy that lets nothing pass.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import ipaddress
import os
import socket
import threading
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from urllib.parse import SplitResult, unquote, urlsplit

PORTS = {"http": 80, "https": 443}
REACH_TIMEOUT_S = 3.0
# What a proxy answers itself: it wants a password, or does not reach the server.
PROXY_REFUSALS = (407, 502, 503, 504)


@dataclass(frozen=True)
class Route:
    """The way of a request.

    Attributes:
        url: The server's address.
        proxy: The proxy's address, which may hold a password; None for a direct connection.
        variable: The environment variable that names the proxy.
    """

    url: str
    proxy: str | None = None
    variable: str = ""

    @cached_property
    def _proxy(self) -> SplitResult:
        return urlsplit(self.proxy or "")

    @property
    def proxy_text(self) -> str:
        """The proxy without its password, and the variable that names it."""
        return f"the proxy {self._proxy.scheme}://{self._proxy.netloc.rpartition('@')[2]} ({self.variable})"

    @property
    def text(self) -> str:
        return "directly" if self.proxy is None else f"through {self.proxy_text}"

    def opener(self) -> urllib.request.OpenerDirector:
        """Return what opens a request by this way."""
        scheme = urlsplit(self.url).scheme
        return urllib.request.build_opener(urllib.request.ProxyHandler({scheme: self.proxy} if self.proxy else {}))

    def obstacle(self) -> str | None:
        """Return why nothing that is sent this way arrives, None if something answers there within the time limit."""
        parts = urlsplit(self.url)
        host, port = _host_and_port(parts)
        if self.proxy is None:
            answer = _within_limit(lambda: _connect(host, port))
            return None if answer == "" else f"{self.url} does not answer within {REACH_TIMEOUT_S:g} s"
        try:
            _host_and_port(self._proxy)
        except ValueError:
            return f"{self.variable} is not an address: expected http://HOST:PORT"
        if self._proxy.scheme not in PORTS:
            return (
                f"{self.proxy_text}: {self._proxy.scheme} proxies are not supported; "
                f"set {parts.scheme.upper()}_PROXY to an HTTP proxy, or add {host} to NO_PROXY"
            )
        answer = _within_limit(lambda: self._ask_proxy(parts))
        if answer == "":
            return None
        problem = f"{self.proxy_text} {answer or f'does not answer within {REACH_TIMEOUT_S:g} s'}"
        if _within_limit(lambda: _connect(host, port)) == "":
            return f"{problem}, while {self.url} answers without it: unset {self.variable}, or add {host} to NO_PROXY"
        return problem

    def _ask_proxy(self, parts: SplitResult) -> str:
        """Return what the proxy says when it is asked for the server; "" if it lets requests pass.

        Raises:
            OSError, http.client.HTTPException: the proxy does not answer.
        """
        host, port = _host_and_port(parts)
        proxy_host, proxy_port = _host_and_port(self._proxy)
        if self._proxy.scheme == "https":  # asked within TLS, by W&B's client; here it is enough that it listens
            return _connect(proxy_host, proxy_port)
        connection = http.client.HTTPConnection(proxy_host, proxy_port, timeout=REACH_TIMEOUT_S)
        with contextlib.closing(connection):
            connection.connect()
            is_tunnel = parts.scheme == "https"
            headers = {"Host": f"{host}:{port}"} | self._login()
            target = f"{host}:{port}" if is_tunnel else f"http://{parts.netloc}/"
            connection.request("CONNECT" if is_tunnel else "HEAD", target, headers=headers)
            response = connection.getresponse()
            passed = response.status == 200 if is_tunnel else response.status not in PROXY_REFUSALS
            return "" if passed else f"does not let requests to {host} pass: {response.status} {response.reason}"

    def _login(self) -> dict[str, str]:
        if self._proxy.username is None:
            return {}
        login = f"{unquote(self._proxy.username)}:{unquote(self._proxy.password or '')}"
        return {"Proxy-Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}


def route_to(url: str) -> Route:
    """Return the way of a request to ``url``.

    This machine itself is reached directly, as by W&B's client, whose Go library never uses a proxy for loopback.

    Raises:
        ValueError: it is not an address of http or https.
    """
    parts = urlsplit(url)
    host, _ = _host_and_port(parts)
    if not host or parts.scheme not in PORTS:
        raise ValueError(url)
    proxies = urllib.request.getproxies()
    kind = parts.scheme if parts.scheme in proxies else "all"
    proxy = proxies.get(kind)
    is_loopback = host == "localhost" or host.startswith("127.") or host == "::1"
    if not proxy or is_loopback or urllib.request.proxy_bypass(parts.netloc) or _in_excepted_network(host):
        return Route(url)
    lower = f"{kind}_proxy"
    return Route(url, proxy if "://" in proxy else f"http://{proxy}", lower if lower in os.environ else lower.upper())


def export_all_proxy() -> None:
    """Set HTTP_PROXY and HTTPS_PROXY to ALL_PROXY where they are not set: W&B's Go library does not read ALL_PROXY."""
    proxies = urllib.request.getproxies()
    if every := proxies.get("all"):
        os.environ.update({f"{scheme.upper()}_PROXY": every for scheme in PORTS if scheme not in proxies})


def _in_excepted_network(host: str) -> bool:
    """Return whether NO_PROXY names a network, as 10.0.0.0/8, that holds this address."""
    excepted = urllib.request.getproxies().get("no", "")
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(host)
        for network in excepted.replace(" ", "").split(","):
            with contextlib.suppress(ValueError):
                if "/" in network and address in ipaddress.ip_network(network, strict=False):
                    return True
    return False


def _host_and_port(parts: SplitResult) -> tuple[str, int]:
    return parts.hostname or "", parts.port or PORTS.get(parts.scheme, 0)


def _connect(host: str, port: int) -> str:
    socket.create_connection((host, port), timeout=REACH_TIMEOUT_S).close()
    return ""


def _within_limit(ask: Callable[[], str]) -> str | None:
    """Return the answer, None if there is none in time. The thread may be left: name resolution knows no time limit."""
    answers: list[str] = []

    def work() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            answers.append(ask())

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(REACH_TIMEOUT_S)
    return next(iter(answers), None)
