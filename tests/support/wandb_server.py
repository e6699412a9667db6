"""A stand-in for a W&B server on loopback: answers what the installed client asks, and keeps what it is sent.

Only the part of the HTTP API that the client uses for runs and sweeps: GraphQL under /graphql, a run's stream of
history, system metrics, summary and log lines under /files/ENTITY/PROJECT/RUN/file_stream, and uploads to addresses it
gave out.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.settings import PATIENCE_S
from tests.support.wandb_public import PublicAnswers

ENTITY = "a-team"
STREAMS = {"wandb-history.jsonl": "history", "wandb-events.jsonl": "events", "output.log": "output"}


@dataclass
class ServedRun:
    """What the server knows of one run. ``history`` and the other streams are lists of lines, by their offsets."""

    name: str
    attributes: dict[str, Any] = field(default_factory=dict)  # of UpsertBucket: groupName, jobType, tags, ...
    sweep: str | None = None
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    streams: dict[str, list[str]] = field(default_factory=lambda: {name: [] for name in STREAMS.values()})
    rewritten: int = 0  # history lines sent to an offset that held one already
    holes: int = 0  # history lines sent beyond the end
    ends: list[int] = field(default_factory=list)  # exit codes, one for each time the client finished the run
    preempting: int = 0
    heard_of: int = 0  # requests about it, which stand for the time of its last heartbeat
    files: dict[str, bytes] = field(default_factory=dict)
    alerts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def history(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.streams["history"]]

    @property
    def output(self) -> str:
        return "\n".join(self.streams["output"])

    def values(self, key: str) -> list[Any]:
        """One column of the history, where it is filled."""
        return [row[key] for row in self.history if key in row]

    def receive(self, file: str, offset: int, lines: list[str]) -> None:
        if file == "wandb-summary.json":
            self.summary = json.loads(lines[-1])
            return
        held = self.streams[STREAMS[file]]
        if file == "wandb-history.jsonl":
            self.rewritten += max(0, min(len(held), offset + len(lines)) - offset)
            self.holes += max(0, offset - len(held))
        held += [""] * (offset + len(lines) - len(held))
        held[offset : offset + len(lines)] = lines


@dataclass
class ServedArtifact:
    """``given`` is what the client said of it: artifactTypeName, artifactCollectionName, aliases, runName, digest."""

    given: dict[str, Any]
    files: dict[str, bytes] = field(default_factory=dict)
    committed: bool = False

    @property
    def aliases(self) -> set[str]:
        return {alias["alias"] for alias in self.given["aliases"]}


@dataclass
class ServedSweep:
    """``draws`` are handed out one after the other, settings by their dotted names; a preempted run comes first."""

    name: str
    config: str  # YAML, as the client sent it
    draws: list[dict[str, Any]] = field(default_factory=list)
    agents: list[str] = field(default_factory=list)
    handed: dict[str, dict[str, Any]] = field(default_factory=dict)  # run -> what was drawn for it
    waiting: list[str] = field(default_factory=list)  # runs to hand out again
    stop: set[str] = field(default_factory=set)  # runs that an agent is told to stop

    def command(self) -> dict[str, Any] | None:
        """What an agent without a run is told to do; None once nothing is left to draw."""
        if self.waiting:
            name, kind = self.waiting.pop(0), "resume"
        elif self.draws:
            name, kind = f"{self.name}r{len(self.handed)}", "run"
            self.handed[name] = self.draws.pop(0)
        else:
            return None
        args = {key: {"value": value} for key, value in self.handed[name].items()}
        return {"type": kind, "run_id": name, "program": "runyard", "args": args}


class WandbServer:
    """``url`` is where it listens. It is its own proxy as well: a request for a whole address is one for it.

    ``stall`` makes it take requests and not answer; ``fail`` answers ``failure``; ``drip`` answers a byte a second;
    ``swallow`` answers 200 to a run's stream and keeps nothing of it; ``hang_up`` closes each connection.
    """

    def __init__(self) -> None:
        self.entity = ENTITY  # the key's own
        self.runs: dict[str, ServedRun] = {}
        self.artifacts: list[ServedArtifact] = []
        self.reports: list[dict[str, Any]] = []  # of upsertView: displayName, projectName, spec, ...
        self.sweeps: dict[str, ServedSweep] = {}
        self.operations: list[str] = []
        self.keys: set[str] = set()
        self.stall = threading.Event()
        self.fail, self.failure = threading.Event(), 500
        self.drip, self.swallow, self.hang_up = threading.Event(), threading.Event(), threading.Event()
        self.asked_as_proxy = 0
        self.received: list[bytes] = []  # path, headers and body of each request, but for its Authorization
        self.most_history_lines: int | None = None  # of a run: the server takes no more, and says so
        self.lock = threading.Lock()
        handler = type("Bound", (_Handler,), {"served": self})
        self._http = _Http(("127.0.0.1", 0), handler)
        self.url = self.gives = f"http://127.0.0.1:{self._http.server_port}"  # gives: where it tells to send files
        threading.Thread(target=self._http.serve_forever, daemon=True, name="wandb stand-in").start()

    def be_well(self) -> None:
        """From now on nothing is wrong with it."""
        for trouble in (self.stall, self.fail, self.drip, self.swallow, self.hang_up):
            trouble.clear()
        self.most_history_lines = None

    def close(self) -> None:
        self.be_well()
        self._http.shutdown()
        self._http.server_close()

    def run(self, name: str) -> ServedRun:
        found = self.runs.setdefault(name, ServedRun(name))
        found.heard_of += 1
        return found

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data of a GraphQL answer."""
        operation = query.split("(")[0].split("{")[0].split()[-1]
        self.operations.append(operation)
        known = getattr(_Answers, operation, None)
        return {} if known is None else known(self, variables)


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *args: Any) -> None:
        """A client that goes away is no error."""


class _Answers(PublicAnswers):
    """One function for each GraphQL operation the client was seen to send, beside those of the public API."""

    @staticmethod
    def ServerFeaturesQuery(server: WandbServer, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"serverInfo": {"features": []}}

    @staticmethod
    def Viewer(server: WandbServer, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"viewer": {"id": "viewer", "entity": ENTITY, "username": "somebody", "email": "", "flags": "{}",
                           "teams": {"edges": []}}}  # fmt: skip

    @staticmethod
    def RunResumeStatus(server: WandbServer, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        project = {"id": "project", "name": v["project"], "entity": {"id": "entity", "name": ENTITY}}
        run = server.runs.get(v["name"])
        if run is None:
            return {"model": {**project, "bucket": None}}
        tails = {f"{name}Tail": json.dumps(run.streams[name][-1:]) for name in ("history", "events")}
        counts = {"logLineCount": len(run.streams["output"]), "historyLineCount": len(run.streams["history"]),
                  "eventsLineCount": len(run.streams["events"])}  # fmt: skip
        client = run.config.get("_wandb", {}).get("value", {}).get("t")  # without it the client takes the run for new
        bucket = {"id": f"id-{run.name}", "name": run.name, "summaryMetrics": json.dumps(run.summary),
                  "displayName": run.attributes.get("displayName"), "config": json.dumps(run.config),
                  "tags": run.attributes.get("tags") or [], "notes": "",
                  "wandbConfig": json.dumps({"t": client} if client else {})}  # fmt: skip
        return {"model": {**project, "bucket": bucket | tails | counts}}

    @staticmethod
    def UpsertBucket(server: WandbServer, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        name = v.get("name") or str(v["id"]).removeprefix("id-")
        inserted = name not in server.runs
        run = server.run(name)
        run.attributes |= {key: value for key, value in v.items() if value is not None}
        if v.get("config"):
            run.config |= json.loads(v["config"])
        if v.get("summaryMetrics"):
            run.summary |= json.loads(v["summaryMetrics"])
        run.sweep = v.get("sweep") or run.sweep
        project = {"id": "project", "name": v.get("project"), "entity": {"id": "entity", "name": ENTITY}}
        bucket = {"id": f"id-{name}", "name": name, "displayName": v.get("displayName") or name, "description": "",
                  "config": json.dumps(run.config), "sweepName": run.sweep, "project": project,
                  "historyLineCount": len(run.streams["history"])}  # fmt: skip
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    @staticmethod
    def UpsertSweep(server: WandbServer, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        sweep = ServedSweep(f"sweep{len(server.sweeps)}", v["config"])
        server.sweeps[sweep.name] = sweep
        project = {"id": "project", "name": v["projectName"], "entity": {"id": "entity", "name": ENTITY}}
        return {"upsertSweep": {"sweep": {"name": sweep.name, "project": project}, "configValidationWarnings": []}}

    @staticmethod
    def SweepWithRuns(server: WandbServer, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        sweep = server.sweeps[v["sweep"]]
        said = {"id": sweep.name, "name": sweep.name, "state": "RUNNING", "config": sweep.config, "runs": {"edges": []}}
        return {"project": {"sweep": said}}

    @staticmethod
    def CreateAgent(server: WandbServer, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        agents = server.sweeps[v["sweep"]].agents
        agents.append(f"{v['sweep']}/{len(agents)}")
        return {"createAgent": {"agent": {"id": agents[-1]}}}

    @staticmethod
    def Heartbeat(server: WandbServer, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        sweep, busy = server.sweeps[v["id"].partition("/")[0]], json.loads(v["runState"])
        commands = [{"type": "stop", "run_id": name} for name in busy if name in sweep.stop]
        if not busy:
            command = sweep.command()
            if command is not None:  # the run exists from here on, before any client has said a word of it
                run = server.run(command["run_id"])
                run.sweep, run.config = sweep.name, run.config or dict(command["args"])
            commands = [command or {"type": "exit"}]
        return {"agentHeartbeat": {"agent": {"id": v["id"]}, "commands": json.dumps(commands)}}

    @staticmethod
    def CreateRunFiles(server: WandbServer, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        files = [{"name": name, "uploadUrl": f"{server.gives}/upload/run/{v['run']}/{name}"} for name in v["files"]]
        return {"createRunFiles": {"runID": f"id-{v['run']}", "uploadHeaders": [], "files": files}}

    @staticmethod
    def ArtifactType(server: WandbServer, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"project": {"artifact": None}}

    @staticmethod
    def CreateArtifact(server: WandbServer, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        same = [a for a in server.artifacts if a.given["digest"] == v["input"]["digest"] and a.committed]
        if not same:
            server.artifacts.append(ServedArtifact(v["input"]))
        at = server.artifacts.index(same[0]) if same else len(server.artifacts) - 1
        artifact = {"id": f"artifact-{at}", "state": "COMMITTED" if same else "PENDING",
                    "artifactSequence": {"id": "sequence", "latestArtifact": None}}  # fmt: skip
        return {"createArtifact": {"artifact": artifact}}

    @staticmethod
    def CreateArtifactManifest(server: WandbServer, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        url = f"{server.gives}/upload/artifact/{v['artifactID'].split('-')[1]}/{v['name']}"
        file = {"id": "file", "uploadUrl": url, "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": f"manifest-{v['artifactID']}", "file": file}}}

    UpdateArtifactManifest = CreateArtifactManifest

    @staticmethod
    def CreateArtifactFiles(server: WandbServer, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        edges = []
        for file in v["input"]["artifactFiles"]:
            at, name = file["artifactID"].split("-")[1], file["name"]
            node = {"id": f"{at}/{name}", "name": name, "displayName": name, "storagePath": f"{at}/{name}",
                    "uploadUrl": f"{server.gives}/upload/artifact/{at}/{name}", "uploadHeaders": [],
                    "uploadMultipartUrls": None, "artifact": {"id": file["artifactID"]}}  # fmt: skip
            edges.append({"node": node})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    @staticmethod
    def CommitArtifact(server: WandbServer, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        server.artifacts[int(v["artifactID"].split("-")[1])].committed = True
        return {"commitArtifact": {"artifact": {"id": v["artifactID"], "digest": "digest"}}}

    @staticmethod
    def NotifyScriptableRunAlert(server: WandbServer, v: dict[str, Any]) -> dict[str, Any]:  # noqa: N802
        server.run(v["runName"]).alerts.append(v)
        return {"notifyScriptableRunAlert": {"success": True}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: WandbServer

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PUT = do_GET  # noqa: N815

    def _serve(self) -> None:
        if "://" in self.path:
            self.served.asked_as_proxy += 1
            self.path = "/" + self.path.split("/", 3)[3]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        headers = [f"{name}: {value}" for name, value in self.headers.items() if name != "Authorization"]
        self.served.received.append("\n".join([self.path, *headers, ""]).encode() + body)
        while self.served.stall.is_set():
            time.sleep(0.05)
        if self.served.hang_up.is_set():
            self.close_connection = True
            return
        if key := self.headers.get("Authorization"):
            self.served.keys.add(key)
        status, answer, content = 200, {}, None
        with self.served.lock:
            if self.served.fail.is_set():
                status = self.served.failure
            elif self.path == "/graphql":
                asked = json.loads(body)
                answer = {"data": self.served.answer(asked["query"], asked.get("variables") or {})}
            elif self.path.endswith("/file_stream") and self.served.swallow.is_set():
                pass
            elif self.path.endswith("/file_stream"):
                status = self._stream(json.loads(body))
            elif self.path.startswith("/download/"):
                _, _, name, path = self.path.split("/", 3)
                content = self.served.runs[name].files[path]
            elif self.path.startswith("/upload/run/"):
                _, _, _, name, path = self.path.split("/", 4)
                self.served.run(name).files[path] = body
            elif self.path.startswith("/upload/artifact/"):
                _, _, _, at, path = self.path.split("/", 4)
                self.served.artifacts[int(at)].files[path] = body
        content = json.dumps(answer).encode() if content is None else content
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        while content and self.served.drip.is_set():
            self.wfile.write(content[:1])
            content = content[1:]
            time.sleep(1)
        self.wfile.write(content)

    def _stream(self, sent: dict[str, Any]) -> int:
        run = self.served.run(self.path.split("/")[4])
        for file, part in (sent.get("files") or {}).items():
            most = self.served.most_history_lines
            if most is not None and file == "wandb-history.jsonl":
                held = run.streams["history"]
                held += part["content"][len(held) - part["offset"] : max(0, most - part["offset"])]
                return 500  # the client will try the same again and again
            run.receive(file, part["offset"], part["content"])
        run.preempting += bool(sent.get("preempting"))
        if sent.get("complete"):
            run.ends.append(sent["exitcode"])
        return 200


def is_one_history(served: ServedRun, last: int) -> None:
    """Every epoch once and in order, under W&B's own steps 0, 1, 2, ..., and no line was ever sent twice."""
    numbers = [row["epoch"] for row in served.history if "train/loss" in row]
    assert numbers == list(range(1, last + 1))
    assert [row["_step"] for row in served.history] == list(range(len(served.history)))
    assert (served.rewritten, served.holes) == (0, 0)


def sync(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "runyard", "sync", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == code, done.stderr
    return done


def synced(*words: str) -> list[dict[str, Any]]:
    return json.loads(sync(*words, "--json").stdout)["runs"]  # type: ignore[no-any-return]
