"""Whether Weights & Biases can be reached from here, asked within a time limit and what it holds of a run."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import netrc
import os
import socket
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from runyard.errors import UserError
from runyard.runs.run import Run
from runyard.tracking.wandb.agent import clear_agent_environment

PORTS = {"http": 80, "https": 443}
REACH_TIMEOUT_S, ANSWER_TIMEOUT_S = 3.0, 20.0
DEFAULT_HOST = "api.wandb.ai"  # what W&B's own servers of other names read a netrc's entry under as well
# what W&B's client asks when it resumes a run, so far as it is needed here
RESUME_QUERY = """query RunResumeStatus($project: String, $entity: String, $name: String!) {
  model(name: $project, entityName: $entity) {
    bucket(name: $name, missingOk: true) { historyLineCount summaryMetrics }
  }
}"""


def connection_problem() -> str | None:
    """Why this machine cannot send to W&B: no address, no key (environment or netrc), or no answer. None if it can."""
    url = base_url()
    try:
        host, port = first_stop(url)
    except (ValueError, KeyError):
        return f"WANDB_BASE_URL={url} is no address: expected https://HOST or http://HOST:PORT"
    if api_key() is None:
        return f"there is no key for {url}: run `wandb login`, or set WANDB_API_KEY"
    if not _can_connect(host, port):
        way = "the proxy before it" if _proxy(url) else url
        return f"{way} does not answer within {REACH_TIMEOUT_S:g} s: try again from a machine with a network"
    return None


def first_stop(url: str) -> tuple[str, int]:
    """Host and port that a request to ``url`` goes to first: the proxy's, where there is one.

    Raises:
        ValueError, KeyError: it is no address.
    """
    parts = urlsplit(url)
    there = parts.hostname or "", parts.port or PORTS[parts.scheme]
    if (through := _proxy(url)) is None:
        return there
    proxy = urlsplit(through)
    return proxy.hostname or "", proxy.port or PORTS.get(proxy.scheme, 1080)


def _proxy(url: str) -> str | None:
    """The proxy that HTTPS_PROXY, HTTP_PROXY and NO_PROXY name for it; none for this machine itself, as in W&B's
    client, whose Go library leaves loopback out."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    named = urllib.request.getproxies().get(parts.scheme)
    here = host == "localhost" or host.startswith("127.") or host == "::1"
    if not named or here or urllib.request.proxy_bypass(parts.netloc):
        return None
    return named if "://" in named else f"http://{named}"


def base_url() -> str:
    """The server that W&B's client talks to: by the environment, its settings file, or its own default."""
    clear_agent_environment()
    if url := os.environ.get("WANDB_BASE_URL"):
        return url.rstrip("/")
    import wandb

    return str(wandb.setup().settings.base_url)


def api_key() -> str | None:
    """The user's key. It goes into nothing but a request's header."""
    netloc = urlsplit(base_url()).netloc
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    names = [netloc] + [DEFAULT_HOST] * netloc.endswith((".coreweave.com", ".wandb.ai"))
    try:
        entries = netrc.netrc(str(path))
    except (OSError, netrc.NetrcParseError):
        entries = None
    found = [entry[2] for name in names if entries is not None and (entry := entries.authenticators(name)) is not None]
    return os.environ.get("WANDB_API_KEY") or next(iter(found), None)


@dataclass(frozen=True)
class ServerState:
    """What the server has of a run: points of its history, the status it was last told, and how many failures."""

    points: int = 0
    status: str | None = None
    failures: int = 0


def server_state(run: Run) -> ServerState:
    """Ask the server.

    Raises:
        UserError: no key, no answer, or an answer that helps nobody.
    """
    if (why := connection_problem()) is not None:
        raise UserError(f"W&B: {why}")
    tracking, url = run.config.tracking, base_url()
    asked = {
        "query": RESUME_QUERY,
        "variables": {"project": tracking.project, "entity": tracking.entity, "name": run.wandb_id},
    }
    login = base64.b64encode(f"api:{api_key()}".encode()).decode()
    headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
    try:
        request = urllib.request.Request(f"{url}/graphql", json.dumps(asked).encode(), headers)
        through = _proxy(url)
        proxies = urllib.request.ProxyHandler({urlsplit(url).scheme: through} if through else {})
        with urllib.request.build_opener(proxies).open(request, timeout=ANSWER_TIMEOUT_S) as answer:
            said = json.load(answer)
        bucket = ((said["data"] or {}).get("model") or {}).get("bucket")
        if bucket is None:
            return ServerState()
        summary = json.loads(bucket.get("summaryMetrics") or "{}")
        return ServerState(int(bucket["historyLineCount"]), summary.get("status"), int(summary.get("failures", 0)))
    except urllib.error.HTTPError as error:
        hint = "; is the key right? `wandb login` sets it" if error.code in (401, 403) else ""
        raise UserError(f"W&B: {url} answered {error.code} {error.reason}{hint}") from None
    except (OSError, http.client.HTTPException) as error:  # TimeoutError is one
        raise UserError(f"W&B: no answer from {url} ({error}): try again later; nothing is lost") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"W&B: {url} gave an answer that is none of W&B's; check WANDB_BASE_URL") from None


def _can_connect(host: str, port: int) -> bool:
    """Whether something listens there. In a thread that may be left behind: no time limit holds for finding a name."""
    answered = threading.Event()

    def knock() -> None:
        with contextlib.suppress(OSError):
            socket.create_connection((host, port), timeout=REACH_TIMEOUT_S).close()
            answered.set()

    knocking = threading.Thread(target=knock, daemon=True)
    knocking.start()
    knocking.join(REACH_TIMEOUT_S)
    return answered.is_set()
