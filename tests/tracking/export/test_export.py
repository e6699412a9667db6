"""What other programs read of an export is what the journal says; a second export changes nothing."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from runyard.cli.main import main
from runyard.config.schema import Config
from runyard.runs import journal
from runyard.runs.results.reading import load_history
from runyard.tracking.export.to_mlflow import HTTP_LIMITS
from tests.support.fake_runs import fabricate

IDS = ("20260901-000000-paper-ab12", "20260901-000001-paper-ab12")


@pytest.fixture
def runs_dir(tmp_path: Path, make_config: Callable[..., Config]) -> Path:
    """A finished run with a restart and one with a broken line in its journal, of four epochs each."""
    for at, run_id in enumerate(IDS):
        fabricate(tmp_path / "runs", make_config("experiment=paper", "epochs=4"), run_id,
                  settings={"seed": at}, top1=0.9 - 0.01 * at, restarts=(2,) if at == 0 else ())  # fmt: skip
    path = tmp_path / "runs" / IDS[1] / "metrics.jsonl"
    path.write_text('{"event": "epo\n' + path.read_text())
    return tmp_path / "runs"


@pytest.fixture
def export(runs_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run(program: str, *options: str, code: int = 0) -> str:
        words = options or ("--all",)
        assert main(["export", program, *words, "--runs-dir", str(runs_dir), "--to", str(tmp_path / "to")]) == code
        said = capsys.readouterr()
        return said.err if code else said.out

    return run


def epochs(runs_dir: Path, run_id: str) -> list[dict[str, Any]]:
    return journal.epochs(journal.read_journal(runs_dir / run_id / "metrics.jsonl")[0])


def change(path: Path, **values: Any) -> None:
    """Other values in run.json; ``...`` leaves one out."""
    record = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in record.items() if value is not ...}))


@pytest.mark.parametrize("times", [1, 2])
def test_tensorboard_reads_the_journals_numbers_once(
    times: int, export: Callable[..., str], runs_dir: Path, tmp_path: Path
) -> None:
    for _ in range(times):
        export("tensorboard")
    for run_id in IDS:
        read = EventAccumulator(str(tmp_path / "to" / run_id))
        read.Reload()
        rows = epochs(runs_dir, run_id)
        points = read.Scalars("test/top1")
        assert [(point.step, point.wall_time) for point in points] == [(row["step"], row["t"]) for row in rows]
        assert [point.value for point in points] == pytest.approx([row["test_top1"] for row in rows], rel=1e-6)
        assert "val/top1" not in read.Tags()["scalars"], "it was never measured"
        (result,) = read.Scalars("result/top1")
        assert result.value == pytest.approx(rows[-1]["test_top1"], rel=1e-6)
        told = read.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
        hparams = metadata.parse_session_start_info_plugin_data(told).hparams
        assert hparams["seed"].number_value == IDS.index(run_id)
        assert hparams["model.name"].string_value == "paper_resnet"
        assert b"optim.lr: " in read.Tensors("config/text_summary")[0].tensor_proto.string_val[0]
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == sorted(IDS)


@pytest.mark.parametrize("times", [1, 2])
def test_mlflow_reads_the_journals_numbers_once(
    times: int, export: Callable[..., str], runs_dir: Path, tmp_path: Path
) -> None:
    for _ in range(times):
        export("mlflow")
    client = MlflowClient(f"sqlite:///{tmp_path / 'to' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("paper")
    assert experiment is not None
    found = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert len(client.search_runs([experiment.experiment_id])) == 2
    assert sorted(filter(None, found)) == sorted(IDS)
    for run_id in IDS:
        run, rows = found[run_id], epochs(runs_dir, run_id)
        history = client.get_metric_history(run.info.run_id, "test/top1")
        assert [(m.step, m.timestamp, m.value) for m in history] == [
            (row["step"], int(1000 * row["t"]), row["test_top1"]) for row in rows
        ]
        assert (run.data.params["seed"], run.data.params["model.name"]) == (str(IDS.index(run_id)), "paper_resnet")
        assert run.info.status == "FINISHED"
        assert run.data.tags["runyard.state"] == "finished"
        assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["config.yaml"]


@pytest.mark.parametrize("created", [..., "yesterday", 1e300])
@pytest.mark.parametrize("program", ["tensorboard", "mlflow", "csv"])
def test_what_has_no_time_or_step_keeps_its_place_and_stops_no_other(
    program: str, created: Any, export: Callable[..., str], runs_dir: Path, tmp_path: Path
) -> None:
    change(runs_dir / IDS[0] / "run.json", created=created)
    path = runs_dir / IDS[0] / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    first, second, third, _ = (row for row in rows if row["event"] == "epoch")
    del first["t"], second["step"]
    third |= {"t": 1e300, "step": 10**400}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with open(runs_dir / IDS[0] / "config.yaml", "a") as config:
        config.write("measured: 2026-01-01\nwhen: [2026-01-02]\n")
    assert "2 runs in" in export(program)
    exact = epochs(runs_dir, IDS[0])
    steps, times = [exact[0]["step"], 2, 3, exact[3]["step"]], [0, exact[1]["t"], 0, exact[3]["t"]]
    if program == "tensorboard":
        read = EventAccumulator(str(tmp_path / "to" / IDS[0]))
        read.Reload()
        assert [(e.step, e.wall_time) for e in read.Scalars("test/top1")] == list(zip(steps, times, strict=True))
        assert b'measured: "2026-01-01"' in read.Tensors("config/text_summary")[0].tensor_proto.string_val[0]
    if program == "mlflow":
        client = MlflowClient(f"sqlite:///{tmp_path / 'to' / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("paper")
        assert experiment is not None
        (run,) = client.search_runs([experiment.experiment_id], filter_string=f"run_name = '{IDS[0]}'")
        history = client.get_metric_history(run.info.run_id, "test/top1")
        assert {(m.step, m.timestamp) for m in history} == {
            (step, int(1000 * t)) for step, t in zip(steps, times, strict=True)
        }
        assert run.data.params["when"] == '["2026-01-02"]'


def test_csv_has_every_digit_of_the_journal(export: Callable[..., str], runs_dir: Path, tmp_path: Path) -> None:
    export("csv")
    for run_id in IDS:
        with open(tmp_path / "to" / f"{run_id}.csv", newline="") as file:
            lines = list(csv.DictReader(file))
        for line, row in zip(lines, epochs(runs_dir, run_id), strict=True):
            assert {key: float(line[key]) for key in ("test_top1", "train_loss", "lr", "t")} == {
                key: row[key] for key in ("test_top1", "train_loss", "lr", "t")
            }
            assert not line.get("val_top1"), "it was never measured"
    with open(tmp_path / "to" / "runs.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [(line["run"], line["seed"]) for line in table] == [(IDS[0], "0"), (IDS[1], "1")]
    assert float(table[0]["top1"]) == load_history(runs_dir / IDS[0]).last_top1


def test_a_line_that_cannot_be_read_is_named(
    export: Callable[..., str], runs_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "csv", "--all", "--runs-dir", str(runs_dir), "--to", str(tmp_path / "to"), "--json"]) == 0
    said = capsys.readouterr()
    assert IDS[1] in said.err
    assert "1" in said.err
    assert [Path(p).name for p in json.loads(said.out)["written"]] == [f"{i}.csv" for i in IDS] + ["runs.csv"]


@pytest.mark.parametrize("program", ["tensorboard", "csv"])
@pytest.mark.parametrize("place", ["../victim", "{}/victim"])
def test_an_id_leads_nowhere_else(
    program: str, place: str, export: Callable[..., str], runs_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "kept").write_text("mine")
    change(runs_dir / IDS[0] / "run.json", id=place.format(tmp_path))
    export(program)
    assert [path.name for path in (tmp_path / "victim").iterdir()] == ["kept"]
    assert not (tmp_path / "victim.csv").exists()
    assert [path.stem for path in (tmp_path / "to").glob("*-ab12*")] == [IDS[1]], "the other one is written"


def test_tensorboard_replaces_nothing_but_an_export(export: Callable[..., str], runs_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "to").symlink_to(runs_dir)
    before = sorted(path.name for path in (runs_dir / IDS[0]).iterdir())
    assert "which no export wrote; give another folder" in export("tensorboard", code=2)
    assert sorted(path.name for path in (runs_dir / IDS[0]).iterdir()) == before


@pytest.mark.parametrize("program", ["tensorboard", "mlflow", "csv"])
def test_of_two_runs_with_one_id_the_second_is_skipped_and_named(
    program: str, runs_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "elsewhere" / IDS[0]
    shutil.copytree(runs_dir / IDS[0], copy)
    (copy / "metrics.jsonl").write_text("")
    places = [str(runs_dir / IDS[0]), str(copy), str(runs_dir / IDS[1])]
    assert main(["export", program, *places, "--to", str(tmp_path / "to"), "--json"]) == 0
    said = capsys.readouterr()
    assert f"runyard: skipped {copy}: run {IDS[0]} is exported from {runs_dir / IDS[0]}\n" in said.err
    assert said.err.count("skipped ") == 1, "and no other"
    assert len(json.loads(said.out)["written"]) == 2 + (program == "csv")
    if program == "csv":
        assert len((tmp_path / "to" / f"{IDS[0]}.csv").read_text().splitlines()) == 5
        assert len((tmp_path / "to" / "runs.csv").read_text().splitlines()) == 3


def test_what_cannot_be_is_one_line(export: Callable[..., str], runs_dir: Path, tmp_path: Path) -> None:
    assert "--all" in export("csv", "--json", code=2)
    assert " 2020 " in export("csv", "2020", code=2)
    (tmp_path / "to").write_text("a file")
    assert "cannot be written" in export("csv", code=2)
    assert "cannot be written" in export("tensorboard", code=2)


def test_a_run_that_mlflow_does_not_take_is_one_line_and_the_next_export_is_whole(
    export: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MlflowException("the server is gone\nwith its trace")

    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, "log_batch", refuse)
        said = export("mlflow", code=2)
    assert said.count("\n") == 2, "its damaged line, and this"
    assert f"MLflow did not accept run {IDS[0]} (the server is gone); run the same command again" in said
    assert "pip install mlflow" in export("mlflow")
    client = MlflowClient(f"sqlite:///{tmp_path / 'to' / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'paper'")
    assert len(client.search_runs([experiment.experiment_id])) == 2


@pytest.mark.parametrize(("to", "told"), [
    ("sqlite:///{}/nowhere/e.db", "nowhere is not a folder"), ("sqlite:///{}/runs", "runs is a folder"),
    ("sqlite:///{}/text", "file is not a database"), ("http://127.0.0.1:9", "MLflow cannot open it"),
])  # fmt: skip
@pytest.mark.slow
def test_a_store_that_mlflow_cannot_open_is_one_line_within_seconds(
    to: str,
    told: str,
    runs_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in HTTP_LIMITS:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "text").write_text("no database, but long enough to be taken for the head of one" * 9)
    began = time.monotonic()
    assert main(["export", "mlflow", IDS[0], "--runs-dir", str(runs_dir), "--to", to.format(tmp_path)]) == 2
    assert time.monotonic() - began < 30, "MLflow's own patience is of minutes"
    said = capsys.readouterr().err
    assert f"--to {to.format(tmp_path)}: " in said
    assert told in said
    assert said.count("\n") == 1


def test_an_sqlite_file_beside_others_is_taken(runs_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # MLflow puts the artifacts here
    to = f"sqlite:///{tmp_path}/e.db"
    assert main(["export", "mlflow", IDS[0], "--runs-dir", str(runs_dir), "--to", to]) == 0
    assert MlflowClient(to).get_experiment_by_name("paper") is not None


@pytest.mark.parametrize("program", ["tensorboard", "mlflow"])
def test_a_library_that_is_missing_is_named_with_its_mend(
    program: str, export: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in sys.modules if n.split(".")[0] == program or n.startswith("runyard.tracking.export.to_")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(f"runyard.tracking.export.to_{program}", raising=False)
    monkeypatch.setitem(sys.modules, program, None)
    assert "pip install 'runyard[export]'" in export(program, code=2)


@pytest.mark.parametrize("program", ["tensorboard", "mlflow", "csv"])
def test_torch_is_not_imported(program: str, runs_dir: Path, tmp_path: Path) -> None:
    line = ("import sys; from runyard.cli.main import main; code = main(sys.argv[1:]); "
            "sys.exit(code or 99 * ('torch' in sys.modules or 'tensorflow' in sys.modules))")  # fmt: skip
    words = ["export", program, IDS[0], "--runs-dir", str(runs_dir), "--to", str(tmp_path / "to")]
    done = subprocess.run([sys.executable, "-c", line, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
