"""The run's Weights & Biases record: a copy of the journal, from rank 0, under the run's own id.

Offline needs no account and no network. Nothing W&B does can stop or hang a training: what fails becomes a warning.
"""

from __future__ import annotations

import contextlib
import netrc
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from runyard import config as schema
from runyard.run import Run

INIT_TIMEOUT_S = 60.0
FINISH_TIMEOUT_S = 60.0
REACH_TIMEOUT_S = 3.0
# W&B's own axes are chosen by name; a slash makes a section of the workspace
NAMES = {
    "train_loss": "train/loss",
    "train_top1": "train/top1",
    "test_loss": "test/loss",
    "test_top1": "test/top1",
    "val_loss": "val/loss",
    "val_top1": "val/top1",
    "lr": "train/lr",
    "images_per_s": "speed/images_per_s",
    "data_wait_pct": "speed/data_wait_pct",
    "train_s": "speed/train_s",
    "eval_s": "speed/eval_s",
    "peak_memory_mb": "speed/peak_memory_mb",
}
AXES = ("epoch", "step", "clock_s")


class WandbRun:
    """An open record. Made by ``begin``; after the first failure it is only closed."""

    def __init__(self, wandb: Any, record: Any, run: Run, warn: Callable[[str], None]) -> None:
        self._wandb, self._record, self._run, self._warn = wandb, record, run, warn
        self._broken = False

    @classmethod
    def begin(cls, run: Run, facts: dict[str, Any], warn: Callable[[str], None]) -> WandbRun | None:
        """Start the record, or go on with it after a restart. None, with a warning, if W&B cannot."""
        tracking = run.config.tracking
        online = tracking.mode == "online" or (tracking.mode == "auto" and can_go_online())
        try:
            import wandb

            record = wandb.init(
                project=tracking.project,
                entity=tracking.entity,
                id=run.id,
                name=run.id,
                dir=str(run.path),
                group=tracking.group or run.config.name,
                job_type="train",
                tags=tracking.tags,
                resume="allow" if online else None,
                mode="online" if online else "offline",
                config={**schema.to_dict(run.config), "machine": facts, "code_sha256": run.record["code_sha256"]},
                settings=wandb.Settings(
                    init_timeout=INIT_TIMEOUT_S,
                    finish_timeout=FINISH_TIMEOUT_S,
                    quiet=True,
                    disable_git=True,
                    save_code=False,
                ),
            )
            for axis in AXES:
                record.define_metric(axis)
            record.define_metric("*", step_metric="epoch")
            for name, best in (("test/top1", "max"), ("val/top1", "max"), ("test/loss", "min"), ("train/loss", "min")):
                record.define_metric(name, step_metric="epoch", summary=f"{best},last")
        except Exception as error:  # its own, the network's, its mailbox's: none is worth a training
            warn(f"W&B did not start ({_line(error)}): the run goes on without it; metrics.jsonl holds everything")
            return None
        return cls(wandb, record, run, warn)

    def log(self, event: str, fields: dict[str, Any]) -> None:
        """Copy a journal line: an epoch becomes a point of each curve, the end the summary and confusion matrix."""
        if self._broken:
            return
        if event == "epoch":
            self._attempt("lost a point", lambda: self._log_epoch(fields))
        elif event == "final":
            self._attempt("lost the summary", lambda: self._log_final(fields))

    def finish(self, failed: bool) -> None:
        """Close the record; gives up after a minute rather than hold the job."""
        self._attempt("did not finish", lambda: self._record.finish(exit_code=1 if failed else 0))

    def _attempt(self, what: str, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            self._broken = True
            self._warn(f"W&B {what} ({_line(error)}) and gets nothing more; metrics.jsonl holds everything")

    def _log_epoch(self, fields: dict[str, Any]) -> None:
        """One point. Never with step=: after a resume lower steps would be dropped."""
        points = {name: fields[key] for key, name in NAMES.items() if fields[key] is not None}
        self._record.log({axis: fields[axis] for axis in AXES} | points)

    def _log_final(self, fields: dict[str, Any]) -> None:
        truth = [i for i, row in enumerate(fields["confusion"]) for n in row for _ in range(n)]
        said = [j for row in fields["confusion"] for j, n in enumerate(row) for _ in range(n)]
        plot = self._wandb.plot.confusion_matrix(y_true=truth, preds=said, class_names=fields["classes"])
        self._record.log({"confusion_matrix": plot, "epoch": self._run.config.epochs})
        self._record.summary.update(
            {
                "top1": fields["top1"],
                "top1_best": fields["top1_best"],
                "best_epoch": fields["best_epoch"],
                "loss": fields["loss"],
                "parameters": fields["parameters"],
                "clock_s": fields["clock_s"],
            }
        )


def can_go_online() -> bool:
    """Whether there is a key (environment or netrc) and the server answers within three seconds."""
    url = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    host = url.hostname or ""
    if "WANDB_API_KEY" not in os.environ and not _in_netrc(host):
        return False
    return _answers(host, url.port or (443 if url.scheme == "https" else 80))


def _answers(host: str, port: int) -> bool:
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


def _in_netrc(host: str) -> bool:
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(str(path)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
