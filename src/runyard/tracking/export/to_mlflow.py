"""Exports runs to MLflow: settings as params, epochs as metrics, metadata as tags, config.yaml as an artifact."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from runyard.errors import UserError
from runyard.files import read_within
from runyard.runs.results.history import RunHistory
from runyard.tracking.export.rows import created_time, export_metadata, export_metrics, format_value, outcome, points

METRICS_AT_ONCE, PARAMS_AT_ONCE = 1000, 100  # MLflow's limits for one call
MLFLOW_STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
ID = "runyard.run_id"
HTTP_LIMITS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}  # MLflow's own are minutes


class MlflowStore:
    """A tracking store: any MLflow URI, or a folder, which gets an SQLite file with the artifacts beside it.

    Raises:
        UserError: it cannot be opened.
    """

    def __init__(self, to: str) -> None:
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        logging.getLogger("alembic").setLevel(logging.ERROR)
        self._artifacts: str | None = None
        self.uri = self._to = to
        if "://" not in to:
            folder = Path(to).absolute()
            folder.mkdir(parents=True, exist_ok=True)
            self.uri, self._artifacts = f"sqlite:///{folder / 'mlflow.db'}", (folder / "artifacts").as_uri()
        for name, value in HTTP_LIMITS.items():
            os.environ.setdefault(name, value)
        try:
            if (problem := _sqlite_problem(self.uri)) is not None:
                raise UserError(f"--to {to}: cannot be written ({problem})", "give another folder")
            self._client = MlflowClient(tracking_uri=self.uri)
            self._client.search_experiments(max_results=1)
        except (MlflowException, SQLAlchemyError, OSError) as error:
            problem = f"--to {to}: MLflow cannot open it ({str(error).splitlines()[0]})"
            raise UserError(problem, "give another folder or address") from None

    def export(self, run: RunHistory) -> str:
        """Log ``run`` to the experiment of its name and replace an earlier export of it. Returns MLflow's run id.

        Raises:
            UserError: MLflow refused it, or its server is gone. The next export replaces what was written.
        """
        try:
            return self._export(run)
        except (MlflowException, SQLAlchemyError) as error:
            reason = (str(error).splitlines() or ["?"])[0]
            raise UserError(
                f"--to {self._to}: MLflow did not accept run {run.id} ({reason})", "run the same command again"
            ) from None

    def _export(self, run: RunHistory) -> str:
        experiment = self._experiment(run.name)
        previous_runs = self._client.search_runs([experiment], filter_string=f"tags.`{ID}` = '{run.id}'")
        times, steps = points(run)
        end_ms = int(1000 * (times[-1] if times else created_time(run)))
        tags = {ID: run.id} | {f"runyard.{name}": value for name, value in export_metadata(run).items()}
        created = self._client.create_run(
            experiment, start_time=int(1000 * created_time(run)), run_name=run.id, tags=tags
        )
        log = self._client.log_batch
        params = [Param(name, format_value(value)) for name, value in run.settings.items()]
        for start in range(0, len(params), PARAMS_AT_ONCE):
            log(created.info.run_id, params=params[start : start + PARAMS_AT_ONCE])
        metrics = [
            Metric(name, value, int(1000 * t), step)
            for name, values in export_metrics(run).items()
            for t, step, value in zip(times, steps, values.tolist(), strict=True)
            if value == value
        ]
        last = steps[-1] if steps else 0
        metrics += [Metric(f"result/{name}", value, end_ms, last) for name, value in outcome(run).items()]
        for start in range(0, len(metrics), METRICS_AT_ONCE):
            log(created.info.run_id, metrics=metrics[start : start + METRICS_AT_ONCE])
        with contextlib.suppress(FileNotFoundError):
            text = read_within(run.directory, "config.yaml").decode(errors="replace")
            self._client.log_text(created.info.run_id, text, "config.yaml")
        self._client.set_terminated(created.info.run_id, MLFLOW_STATUS.get(run.state, "RUNNING"), end_ms)
        for previous in previous_runs:  # only now that the new one is complete
            self._client.delete_run(previous.info.run_id)
        return str(created.info.run_id)

    def _experiment(self, name: str) -> str:
        existing = self._client.get_experiment_by_name(name)
        if existing is not None:
            return str(existing.experiment_id)
        location = None if self._artifacts is None else f"{self._artifacts}/{name}"
        return str(self._client.create_experiment(name, artifact_location=location))


def _sqlite_problem(uri: str) -> str | None:
    """Return why no SQLite file can be there, None if one can. MLflow itself would retry for two minutes."""
    if not uri.startswith("sqlite:") or (name := make_url(uri).database) in (None, "", ":memory:"):
        return None
    file = Path(name).absolute()
    if not file.parent.is_dir():
        return f"{file.parent} is not a folder"
    if file.is_dir():
        return f"{file} is a folder"
    read_only = [str(path) for path in (file.parent, file) if path.exists() and not os.access(path, os.W_OK)]
    return f"{read_only[0]} is read-only" if read_only else None
