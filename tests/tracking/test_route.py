"""The network is asked by the way that a request takes: a check that went another way would say the wrong thing."""

from __future__ import annotations

import base64
import os
import socket
from collections.abc import Iterator

import pytest

from runyard.tracking.route import Route, export_all_proxy, route_to
from tests.support.proxy import NAME, Proxy, a_proxy

SECRET = "5ec7e75ec7e7"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def listener() -> Iterator[int]:
    """A port on which something listens, and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def dead_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert isinstance(port, int)
    return port


@pytest.fixture
def proxy(listener: int) -> Iterator[Proxy]:
    with a_proxy({NAME: listener}) as proxy:
        yield proxy


PROXY = "http://proxy.example:3128"


@pytest.mark.parametrize(
    ("env", "url", "proxy"),
    [
        ({}, "https://wandb.example", None),
        ({"HTTPS_PROXY": PROXY}, "https://wandb.example", PROXY),
        ({"https_proxy": "proxy.example:3128"}, "https://wandb.example:8443", PROXY),
        ({"HTTPS_PROXY": PROXY}, "http://wandb.example", None),
        ({"HTTP_PROXY": PROXY}, "http://wandb.example", PROXY),
        ({"ALL_PROXY": PROXY}, "https://wandb.example", PROXY),
        ({"ALL_PROXY": "socks5://s.example", "HTTPS_PROXY": PROXY}, "https://wandb.example", PROXY),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "wandb.example"}, "https://wandb.example", None),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": ".example"}, "https://wandb.example", None),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "other.example"}, "https://wandb.example", PROXY),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "10.0.0.0/8"}, "https://10.1.2.3", None),
        ({"HTTPS_PROXY": PROXY, "NO_PROXY": "10.0.0.0/8"}, "https://11.1.2.3", PROXY),
        ({"HTTPS_PROXY": PROXY}, "https://localhost", None),
    ],
)
def test_the_proxy_is_the_one_that_the_environment_names_for_the_address(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], url: str, proxy: str | None
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    route = route_to(url)
    assert route.proxy == proxy
    assert proxy is None or env[route.variable].removeprefix("http://") == "proxy.example:3128"


def test_a_server_that_only_the_proxy_reaches_is_reached(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"https://{NAME}"
    assert "does not answer" in (route_to(url).obstacle() or ""), "the control: there is no other way"
    monkeypatch.setenv("HTTPS_PROXY", proxy.url)
    assert route_to(url).obstacle() is None
    assert route_to(url).text == f"through the proxy {proxy.url} (HTTPS_PROXY)"
    monkeypatch.setenv("NO_PROXY", NAME)
    assert route_to(url).text == "directly"


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        ((407, "Proxy Authentication Required"), "407 Proxy Authentication Required"),
        ((403, "Forbidden"), "403 Forbidden"),
    ],
)
def test_a_proxy_that_lets_nothing_pass_is_no_way_and_is_named_without_its_password(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, refusal: tuple[int, str], told: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy.url.replace("://", f"://me:{SECRET}@"))
    proxy.refusal = refusal
    said = route_to(f"https://{NAME}").obstacle() or ""
    assert said == f"the proxy {proxy.url} (HTTPS_PROXY) does not let requests to {NAME} pass: {told}"
    proxy.refusal = None
    assert route_to(f"https://{NAME}").obstacle() is None, "the control"
    login = f"Basic {base64.b64encode(f'me:{SECRET}'.encode()).decode()}"
    assert proxy.asked == [("CONNECT", f"{NAME}:443", login)] * 2


def test_a_dead_proxy_beside_a_working_direct_way_is_told_apart(
    listener: int, dead_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runyard.tracking.route.REACH_TIMEOUT_S", 20.0)
    dead = f"http://127.0.0.1:{dead_port}"
    alive = Route(f"https://127.0.0.1:{listener}", dead, "HTTPS_PROXY").obstacle() or ""
    assert f"the proxy {dead} (HTTPS_PROXY) does not answer" in alive
    assert "answers without it: unset HTTPS_PROXY, or add 127.0.0.1 to NO_PROXY" in alive
    gone = Route(f"https://127.0.0.1:{dead_port}", dead, "HTTPS_PROXY").obstacle() or ""
    assert f"the proxy {dead} (HTTPS_PROXY) does not answer" in gone
    assert "without it" not in gone


@pytest.mark.parametrize("proxy", ["socks5://s.example:1080", "socks5h://me:5ec7e75ec7e7@s.example"])
def test_socks_is_named_as_not_supported(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    said = route_to("https://wandb.example").obstacle() or ""
    assert "(ALL_PROXY): socks5" in said
    assert "not supported; set HTTPS_PROXY to an HTTP proxy" in said
    assert SECRET not in said


@pytest.mark.parametrize("proxy", ["http://proxy.example:notaport", "http://[::1"])
def test_a_proxy_that_is_no_address_is_said(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    assert "HTTPS_PROXY is not an address" in (route_to("https://wandb.example").obstacle() or "")


def test_what_all_proxy_says_is_said_to_wandbs_go_library_too(monkeypatch: pytest.MonkeyPatch) -> None:
    export_all_proxy()
    assert "HTTPS_PROXY" not in os.environ
    monkeypatch.setenv("HTTP_PROXY", "http://other.example")
    monkeypatch.setenv("HTTPS_PROXY", "")  # so that it is restored
    monkeypatch.setenv("ALL_PROXY", PROXY)
    export_all_proxy()
    assert (os.environ["HTTPS_PROXY"], os.environ["HTTP_PROXY"]) == (PROXY, "http://other.example")
