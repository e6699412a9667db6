"""What the stand-in for W&B's server answers to W&B's public API: who reads runs and writes reports, not who logs."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.support.wandb_server import ServedRun, WandbServer

Json = dict[str, Any]


class PublicAnswers:
    """One function for each GraphQL operation that the public API was seen to send."""

    @staticmethod
    def GetDefaultEntity(server: WandbServer, v: Json) -> Json:  # noqa: N802
        return {"viewer": {"id": "viewer", "entity": server.entity}}

    @staticmethod
    def Runs(server: WandbServer, v: Json) -> Json:  # noqa: N802
        named = [run for run in server.runs.values() if run.attributes.get("project") == v["project"]]
        if not named:
            return {"project": None}
        per_page = v.get("perPage") or 50
        first = int(v.get("cursor") or 0)
        page = list(enumerate(named))[first : first + per_page]
        edges = [{"node": _node(run), "cursor": str(at + 1)} for at, run in page]
        more = first + per_page < len(named)
        return {"project": {"internalId": "1", "runCount": len(named), "readOnly": False,
                            "runs": {"edges": edges, "pageInfo": {"endCursor": str(first + len(page)),
                                                                  "hasNextPage": more}}}}  # fmt: skip

    @staticmethod
    def RunFiles(server: WandbServer, v: Json) -> Json:  # noqa: N802
        run = server.runs[v["name"]]
        files = [name for name in run.files if not v["fileNames"] or name in v["fileNames"]]
        edges = [{"cursor": name, "node": {
            "id": name, "name": name, "url": f"{server.url}/download/{run.name}/{name}",
            "directUrl": f"{server.url}/download/{run.name}/{name}", "sizeBytes": len(run.files[name]),
            "mimetype": "", "updatedAt": _when(), "md5": ""}} for name in files]  # fmt: skip
        return {"project": {"internalId": "1", "run": {
            "fileCount": len(run.files),
            "files": {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}}}}  # fmt: skip

    @staticmethod
    def ProjectInternalId(server: WandbServer, v: Json) -> Json:  # noqa: N802
        return {"project": {"internalId": "UHJvamVjdEludGVybmFsSWQ6MQ=="}}

    @staticmethod
    def GetProjects(server: WandbServer, v: Json) -> Json:  # noqa: N802
        names = dict.fromkeys(run.attributes.get("project") for run in server.runs.values())
        edges = [{"node": {"__typename": "Project", "id": name, "name": name, "entityName": server.entity,
                           "createdAt": _when(), "isBenchmark": False, "user": None}} for name in names]  # fmt: skip
        return {"models": {"edges": edges, "pageInfo": {"__typename": "PageInfo", "endCursor": None,
                                                        "hasNextPage": False}}}  # fmt: skip

    @staticmethod
    def upsertView(server: WandbServer, v: Json) -> Json:  # noqa: N802
        server.reports.append(v)
        project = {"id": "1", "name": v["projectName"], "entityName": v["entityName"]}
        view = {"id": f"report{len(server.reports)}", "type": v["type"], "name": v["name"],
                "displayName": v["displayName"], "description": v["description"], "project": project,
                "spec": v["spec"], "createdAt": _when(), "updatedAt": _when()}  # fmt: skip
        return {"upsertView": {"view": view, "inserted": True}}


def _node(run: ServedRun) -> Json:
    return {"id": f"id-{run.name}", "tags": run.attributes.get("tags") or [], "name": run.name,
            "displayName": run.name, "sweepName": None, "state": "finished" if run.ends else "running",
            "group": run.attributes.get("groupName"), "jobType": run.attributes.get("jobType"), "commit": None,
            "readOnly": False, "createdAt": _when(), "heartbeatAt": f"{run.heard_of}", "description": "", "notes": "",
            "config": json.dumps(run.config), "summaryMetrics": json.dumps(run.summary), "systemMetrics": "{}",
            "historyLineCount": len(run.streams["history"]), "historyKeys": None,
            "user": {"name": "Somebody", "username": "somebody"}}  # fmt: skip


def _when() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
