"""Checks within a time limit whether W&B's server can be reached from this machine, and asks what it has of a run."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import netrc
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from runyard.config.secrets import SECRET_NAME
from runyard.errors import UserError
from runyard.runs.run import Run
from runyard.tracking.route import route_to
from runyard.tracking.wandb.agent import prepare_environment

ANSWER_TIMEOUT_S = 20.0
DEFAULT_HOST = "api.wandb.ai"  # W&B's client reads this netrc entry for W&B's servers of other names, too
# The part of the query by which W&B's client resumes a run that is needed here.
RESUME_QUERY = """query RunResumeStatus($project: String, $entity: String, $name: String!) {
  model(name: $project, entityName: $entity) {
    bucket(name: $name, missingOk: true) { historyLineCount summaryMetrics }
  }
}"""


def connection_problem() -> str | None:
    """Return why this machine cannot send to W&B: no address, no key, or no answer by the way taken. None if it can."""
    try:
        url = base_url()
    except ServerError as error:
        return str(error)
    try:
        route = route_to(url)
    except ValueError:
        return f"WANDB_BASE_URL={url} is not an address: expected https://HOST or http://HOST:PORT"
    if api_key() is None:
        return f"there is no key for {url}: run `wandb login`, or set WANDB_API_KEY"
    return route.obstacle()


def base_url() -> str:
    """Return the server that W&B's client uses, by the environment, its settings file, or its default.

    Raises:
        ServerError: the client refuses one of its settings.
    """
    prepare_environment()
    if url := os.environ.get("WANDB_BASE_URL"):
        return url.rstrip("/")
    import wandb

    with naming_refused_settings():
        return str(wandb.setup().settings.base_url)


def api_key() -> str | None:
    """Return the user's key, from the environment or netrc. It is used in the header of a request and nowhere else."""
    netloc = urlsplit(base_url()).netloc
    path = os.path.expanduser(os.environ.get("NETRC", "~/.netrc"))
    names = [netloc] + [DEFAULT_HOST] * netloc.endswith((".coreweave.com", ".wandb.ai"))
    try:
        entries = netrc.netrc(path)
    except (OSError, netrc.NetrcParseError):
        entries = None
    keys = [entry[2] for name in names if entries is not None and (entry := entries.authenticators(name)) is not None]
    return os.environ.get("WANDB_API_KEY") or next(iter(keys), None)


@dataclass(frozen=True)
class ServerState:
    """What the server has of a run: the points of its history, its last status, and the number of its failures."""

    points: int = 0
    status: str | None = None
    failures: int = 0


class ServerError(UserError):
    """W&B's server cannot be asked, or does not answer: no run can be sent."""


@contextlib.contextmanager
def naming_refused_settings() -> Iterator[None]:
    """Name the variable or setting that W&B's client refuses, such as an empty WANDB_MODE.

    Raises:
        ServerError: it does.
    """
    from pydantic import ValidationError

    try:
        yield
    except ValidationError as error:
        refused = error.errors()[0]
        name = "_".join(map(str, refused["loc"]))
        variable = f"WANDB_{name.upper()}"
        value = "..." if SECRET_NAME.search(variable) else os.environ.get(variable)
        given = f"{variable}={value}" if variable in os.environ else f"W&B's setting {name}"
        fix = f"unset {variable}" if variable in os.environ else "see its settings file (`wandb status`)"
        raise ServerError(f"{given}: W&B's client refuses it ({refused['msg']})", fix) from None


def server_state(run: Run) -> ServerState:
    """Ask the server what it has of ``run``.

    Raises:
        ServerError: there is no key, no answer, or an answer that cannot be read.
    """
    if (problem := connection_problem()) is not None:
        raise ServerError(f"W&B: {problem}")
    tracking, url = run.config.tracking, base_url()
    body = {
        "query": RESUME_QUERY,
        "variables": {"project": tracking.project, "entity": tracking.entity, "name": run.wandb_id},
    }
    login = base64.b64encode(f"api:{api_key()}".encode()).decode()
    headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
    try:
        request = urllib.request.Request(f"{url}/graphql", json.dumps(body).encode(), headers)
        with route_to(url).opener().open(request, timeout=ANSWER_TIMEOUT_S) as response:
            reply = json.load(response)
        bucket = ((reply["data"] or {}).get("model") or {}).get("bucket")
        if bucket is None:
            return ServerState()
        summary = json.loads(bucket.get("summaryMetrics") or "{}")
        return ServerState(int(bucket["historyLineCount"]), summary.get("status"), int(summary.get("failures", 0)))
    except urllib.error.HTTPError as error:
        hint = "is the key right? `wandb login` sets it" if error.code in (401, 403) else ""
        raise ServerError(f"W&B: {url} answered {error.code} {error.reason}", hint) from None
    except (OSError, http.client.HTTPException) as error:  # TimeoutError is one
        raise ServerError(f"W&B: no answer from {url} ({error}): try again later", "nothing is lost") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ServerError(f"W&B: {url} gave an answer that does not look like W&B's", "check WANDB_BASE_URL") from None
