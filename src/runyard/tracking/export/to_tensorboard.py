"""Exports runs to TensorBoard event files: curves by step and time, settings and results for its HParams page."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.text import metadata as text
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from runyard.errors import UserError
from runyard.runs.results.history import RunHistory
from runyard.tracking.export.rows import created_time, export_metrics, format_value, outcome, points

EVENTS = "tfevents"  # in the name of each file of an export
HPARAMS_STATUS = {"finished": api_pb2.STATUS_SUCCESS, "failed": api_pb2.STATUS_FAILURE}


def export_tensorboard(run: RunHistory, folder: Path) -> Path:
    """Write the folder ``folder/ID`` and replace an earlier export there. Returns its path.

    Raises:
        UserError: something else is there, such as the run itself.
    """
    target, tmp_dir = folder / run.id, folder / f".making-{run.id}"
    if foreign := [path.name for path in target.glob("*") if EVENTS not in path.name]:
        raise UserError(f"--to {folder}: {target} holds {foreign[0]}, which no export wrote", "give another folder")
    shutil.rmtree(tmp_dir, ignore_errors=True)
    tmp_dir.mkdir(parents=True)
    writer = EventFileWriter(str(tmp_dir))
    try:
        _write(run, writer)
    finally:
        writer.close()
    shutil.rmtree(target, ignore_errors=True)
    os.replace(tmp_dir, target)
    return target


def _write(run: RunHistory, writer: EventFileWriter) -> None:
    def add(summary: Summary, t: float, step: int = 0) -> None:
        writer.add_event(Event(wall_time=t, step=step, summary=summary))

    created, (times, steps) = created_time(run), points(run)
    settings = {name: _plain(value) for name, value in run.settings.items()}
    add(hparams_pb(settings, trial_id=run.id, start_time_secs=created), created)
    config_text = "\n".join(f"    {name}: {format_value(value)}" for name, value in run.settings.items())
    tensor = TensorProto(dtype=DT_STRING, string_val=[config_text.encode()])
    summary_metadata = text.create_summary_metadata("config", "")
    add(Summary(value=[Summary.Value(tag="config/text_summary", metadata=summary_metadata, tensor=tensor)]), created)
    for name, values in export_metrics(run).items():
        for t, step, value in zip(times, steps, values, strict=True):
            if value == value:
                add(Summary(value=[Summary.Value(tag=name, simple_value=value)]), t, step)
    end, last_step = (times[-1], steps[-1]) if times else (created, 0)
    for name, value in outcome(run).items():
        add(Summary(value=[Summary.Value(tag=f"result/{name}", simple_value=value)]), end, last_step)
    end_info = SessionEndInfo(status=HPARAMS_STATUS.get(run.state, api_pb2.STATUS_RUNNING), end_time_secs=end)
    summary_metadata = metadata.create_summary_metadata(HParamsPluginData(session_end_info=end_info))
    session_end = Summary.Value(
        tag=metadata.SESSION_END_INFO_TAG, metadata=summary_metadata, tensor=metadata.NULL_TENSOR
    )
    add(Summary(value=[session_end]), end)


def _plain(value: object) -> object:
    """Return the value as HParams accepts it: a number, a boolean or text."""
    return value if isinstance(value, (bool, int, float, str)) else format_value(value)
