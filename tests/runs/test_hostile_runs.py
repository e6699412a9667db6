"""A run's directory that another user filled: links, pipes and devices in it, and characters that steer a terminal."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from runyard import files
from runyard.analysis.report.page import write_report
from runyard.cli.main import main
from runyard.cluster.monitor.logs import Logs
from runyard.cluster.slurm import submission
from runyard.cluster.slurm.queue import JobAnswer
from runyard.config.schema import Config
from runyard.errors import UserError
from runyard.file_lock import exclusive_lock
from runyard.runs import journal, store
from runyard.runs.code import snapshot
from runyard.runs.journal import Journal
from runyard.runs.lease import Lease
from runyard.runs.run import Run
from runyard.runs.summary import RunSummary
from runyard.tracking.wandb import files as wandb_files
from runyard.tracking.wandb import sync
from tests.support.second_user import NOBODY, as_nobody, needs_root

HANGS_S = 600  # after which a test that waits for a pipe is given up
SECRET = "what only this user can read"
STEER = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e"


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    signal.alarm(HANGS_S)
    yield
    signal.alarm(0)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    (folder := tmp_path / "private").mkdir()
    (folder / "id_rsa").write_text(SECRET)
    return folder / "id_rsa"


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory, make_config: Callable[..., Config]) -> Path:
    """Two runs of two epochs that were stopped, each with a log."""
    runs_dir = tmp_path_factory.mktemp("made") / "runs"
    config = make_config("experiment=starter", f"runs_dir={runs_dir}", "epochs=4", "tracking.mode=offline")
    for _ in range(2):
        made = Run.create(config, [])
        book = Journal(made.journal_path)
        book.write("start", step=0, world_size=1, nodes=1, device="cpu", hostname="node1", resumed_from=None)
        for number in (1, 2):
            book.write("epoch", epoch=number, step=10 * number, train_loss=1.0, test_loss=1.0, test_top1=0.5, lr=0.1,
                       images_per_s=1.0, data_wait_pct=0.0, clock_s=1.0, val_top1=None)  # fmt: skip
        book.write("stop", reason="interrupted", message="", cause="TERM")
        made.add_job({"id": "12", "launcher": "local", "submitted": 1.0, "logs": "slurm", "tasks": 1})
        (made.path / "slurm" / "12_0_log.out").write_text("hello\n")
    return runs_dir


@pytest.fixture
def run(tmp_path: Path, made_once: Path) -> Run:
    """One to be spoilt, and beside it one that stays in order."""
    shutil.copytree(made_once, tmp_path / "runs", symlinks=True)
    return Run.open(max((tmp_path / "runs").glob("[!.]*")))


@pytest.fixture
def says(run: Run, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """``says("status")``: all that the command prints about the folder of the runs."""

    def command(*words: str) -> str:
        main([*words, "--runs-dir", str(run.path.parent)])
        return "".join(capsys.readouterr())

    return command


def link(place: Path, target: Path) -> None:
    place.unlink(missing_ok=True)
    place.symlink_to(target)


class Sent(SimpleNamespace):
    """In the place of W&B's record: keeps what it is given to send."""

    def __init__(self, folder: Path) -> None:
        super().__init__(dir=str(folder), code=[])

    def save(self, path: str, **_: object) -> None: ...

    def log_code(self, root: str, *, include_fn: Callable[[str, str], bool], **_: object) -> None:
        self.code += sorted(str(path) for path in Path(root).rglob("*") if include_fn(str(path), root))


@pytest.mark.parametrize("name", wandb_files.RUN_FILES)
def test_sync_sends_no_file_that_a_link_leads_to(
    run: Run, secret: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    link(run.path / name, secret)
    (folder := tmp_path / "sent").mkdir()

    def sent() -> str:
        return "".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())

    with pytest.raises(OSError, match="symbolic link"):
        wandb_files.save_directory(run, Sent(folder))
    assert SECRET not in sent()
    monkeypatch.setattr(wandb_files, "open_within", lambda place, name: (place / name).open("rb"))  # the control
    wandb_files.save_directory(run, Sent(folder))
    assert SECRET in sent()


def test_sync_sends_no_code_but_what_was_submitted(run: Run, secret: Path, tmp_path: Path) -> None:
    submitted = sorted(map(str, snapshot.snapshot_files(run.code_path).values()))
    (run.code_path / "beside.py").write_text(SECRET)
    wandb_files.save_code(run, right := Sent(tmp_path))
    assert right.code == submitted
    (secret.parent / "secret.py").write_text(SECRET)
    link(run.path / "code", secret.parent)
    nothing = hashlib.sha256().hexdigest()  # the hash of a folder without sources, which anyone can write
    for code_hash in (run.record["code_sha256"], nothing, None):
        run.record["code_sha256"] = code_hash
        wandb_files.save_code(run, wrong := Sent(tmp_path))
        assert wrong.code == []


def test_a_file_that_cannot_be_sent_keeps_none_of_the_others_back(run: Run, secret: Path, tmp_path: Path) -> None:
    link(run.path / "config.yaml", secret)
    (folder := tmp_path / "sent").mkdir()
    with pytest.raises(OSError, match=r"config\.yaml: a symbolic link"):
        wandb_files.save_directory(run, Sent(folder))
    assert {path.name for path in folder.rglob("*.json*")} >= {"run.json", "metrics.jsonl"}


def test_a_journal_that_is_a_link_is_not_written(run: Run, secret: Path) -> None:
    link(run.journal_path, secret)
    with pytest.raises(OSError, match="symbolic link"):
        Journal(run.journal_path).write("stop")
    assert secret.read_text() == SECRET


def test_a_job_id_that_leads_out_of_proc_costs_that_run_alone(
    run: Run, says: Callable[..., str], tmp_path: Path
) -> None:
    (other,) = {path.parent.name for path in run.path.parent.glob("[!.]*/run.json")} - {run.id}
    (tmp_path / "process").mkdir()
    fifo(tmp_path / "process" / "cmdline")
    run.journal_path.write_text("")
    job = {"launcher": "local", "id": str(tmp_path / "process"), "submitted": 1.0}
    (run.path / "run.json").write_text(json.dumps(run.record | {"jobs": [job]}))
    said = says("status")
    assert "is no job id" in said
    assert other in said


def test_sync_sends_no_checkpoint_that_a_link_leads_to(run: Run, secret: Path) -> None:
    (step := run.checkpoints / "step_00000001").mkdir()
    said = {"sha256": files.sha256(secret), "score": None, "step": 1}
    (step / "manifest.json").write_text(json.dumps(said))
    link(step / "state.pt", secret)
    assert wandb_files._checkpoint(step) is None
    (step / "state.pt").unlink()
    (step / "state.pt").write_text(SECRET)
    assert wandb_files._checkpoint(step) == (step, said)
    step.rename(secret.parent / "step")
    link(step, secret.parent / "step")
    assert wandb_files._checkpoint(step) is None


def test_a_lock_or_a_report_that_is_a_link_leads_nowhere(run: Run, secret: Path) -> None:
    link(run.path / ".sync-lock", secret)
    with sync._sync_lock(run):
        assert secret.read_text() == SECRET
    link(run.path / "report", secret.parent)
    refusal = r"report: cannot write the report there \(a symbolic link, not a directory\); move it away"
    with pytest.raises(UserError, match=refusal):
        write_report(run)
    assert os.listdir(secret.parent) == ["id_rsa"]


def test_a_file_that_is_written_whole_replaces_a_link_and_passes_by_one_in_the_place_of_its_beginning(
    secret: Path, tmp_path: Path
) -> None:
    link(tmp_path / "page", secret)
    link(tmp_path / f".page.{os.getpid()}.tmp", secret)
    files.write_atomic(tmp_path / "page", "new")
    assert ((tmp_path / "page").read_text(), secret.read_text()) == ("new", SECRET)


@pytest.mark.parametrize("logs", ["/etc", "../../private", "..", "", "slurm/../../../private", "a/./../b"])
def test_logs_are_only_looked_for_in_the_run_or_beside_it(run: Run, says: Callable[..., str], logs: str) -> None:
    assert says("logs", run.id) == "hello\n"
    run.record["jobs"][0]["logs"] = logs
    (run.path / "run.json").write_text(json.dumps(run.record))
    assert "neither in the run nor beside it" in says("logs", run.id)


def test_a_log_that_is_a_link_is_not_shown(run: Run, says: Callable[..., str], secret: Path) -> None:
    link(run.path / "slurm" / "12_0_log.out", secret)
    assert SECRET not in says("logs", run.id)
    (run.path / "slurm" / "12_0_log.out").unlink()
    (run.path / "slurm").rename(run.path / "away")
    (run.path / "away" / "12_0_log.out").write_text(SECRET)
    assert SECRET not in says("logs", run.id)
    link(run.path / "slurm", run.path / "away")
    assert SECRET not in says("logs", run.id)


def fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def device(path: Path) -> None:
    link(path, Path("/dev/zero"))


def directory(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def unix_socket(path: Path) -> None:
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as made:
        here = os.getcwd()
        os.chdir(path.parent)  # a socket's whole name has room for a hundred characters
        made.bind(path.name)
        os.chdir(here)


def endless(path: Path) -> None:
    path.unlink(missing_ok=True)
    with open(path, "wb") as file:
        file.truncate(2**40)


@pytest.mark.parametrize("plant", [fifo, device, directory, unix_socket, endless])
@pytest.mark.parametrize(
    "name", ["run.json", "config.yaml", "metrics.jsonl", "progress.json", "lease", "data.json", "predictions.npz"]
)
def test_what_is_no_file_of_a_run_costs_that_run_alone(
    run: Run, says: Callable[..., str], tmp_path: Path, name: str, plant: Callable[[Path], None]
) -> None:
    (other,) = {path.parent.name for path in run.path.parent.glob("[!.]*/run.json")} - {run.id}
    if (run.path / name).is_dir():
        (run.path / name).rmdir()
    plant(run.path / name)
    said = says("status")
    assert other in said
    if name in ("run.json", "metrics.jsonl"):
        assert f"{name}: cannot read it (" in said
    compared = says("compare", "--all", "--by-run")
    assert other in compared
    if name in ("run.json", "config.yaml", "metrics.jsonl"):
        assert f"skipped {run.path}/{name}: cannot read it (" in compared
    assert other in says("export", "csv", "--all", "--to", str(tmp_path / "out"), "--json")
    assert "Traceback" not in says("logs", run.id) + says("sync", run.id, "--dry-run")


def test_nothing_in_a_run_steers_the_terminal(
    run: Run, says: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In no line of any verb; the control is the same without what makes lines printable."""
    record = run.record | {"name": STEER, "sweep": STEER, "overrides": [STEER], "code_sha256": STEER}
    (run.path / "run.json").write_text(json.dumps(record))
    config = (run.path / "config.yaml").read_text().replace("name: starter", f"name: {json.dumps(STEER)}")
    (run.path / "config.yaml").write_text(config)
    rows = [{"event": event, "t": 2e9, "message": STEER, "reason": "failed", "cause": STEER, "hostname": STEER,
             "nodelist": STEER, "job_id": STEER, "device_name": STEER, "epoch": 3, "step": 1, "classes": [STEER]}
            for event in ("start", "warning", "epoch", "final", "stop")]  # fmt: skip
    with open(run.journal_path, "a") as book:
        book.writelines(json.dumps(row) + "\n" for row in rows)
    (run.path / "slurm" / "12_0_log.out").write_text(STEER)
    (run.path.parent / f"{STEER}a").mkdir()
    (run.path.parent / f"{STEER}a" / "run.json").write_text(STEER)

    def all_of_it() -> str:
        verbs = (["status"], ["status", run.id], ["logs", run.id], ["logs", "--err", run.id], ["cancel", run.id],
                 ["compare", "--all"], ["compare", "--all", "--by-run", "--md"], ["leaderboard", "--all"],
                 ["export", "csv", "--all", "--to", str(run.path.parents[1] / "out")], ["sync", "--dry-run", "--all"],
                 ["report", run.id], ["resume", run.id])  # fmt: skip
        return "".join(says(*words) for words in verbs)

    steering = set(STEER) - set("]0;owned[2J31m")
    said = all_of_it()
    assert {c for c in said if c in steering} == set()
    assert "\\x1b]0;owned" in said
    for place in ("runyard.printable.printable", "runyard.cluster.monitor.status.printable"):
        monkeypatch.setattr(place, lambda text: text)
    assert {c for c in all_of_it() if c in steering} != set()


@pytest.mark.parametrize("line", [
    "submitit INFO (99-99,000) - Starting with Job, hostname=x",
    "submitit INFO (999999999-1-1 1:1:1,0) - Starting with Job hostname=x",
])  # fmt: skip
def test_a_line_that_only_looks_like_submitits_is_shown_as_it_is(run: Run, says: Callable[..., str], line: str) -> None:
    (run.path / "slurm" / "12_0_log.out").write_text(line + "\n")
    assert line in says("logs", run.id)


def test_an_endless_line_of_a_log_needs_little_memory(run: Run) -> None:
    with open(run.path / "slurm" / "12_0_log.out", "r+b") as file:
        file.truncate(2**28)
    reader = Logs(RunSummary(run.path), None, "out")
    tracemalloc.start()
    shown = deque(reader.read_new(), 2)
    assert tracemalloc.get_traced_memory()[1] < 2**25
    tracemalloc.stop()
    assert [len(line.text) for line in shown] == [2**20, 2**20 - len("hello\n")]
    assert list(reader.read_new()) == []


def test_a_report_of_what_is_no_journal_is_refused_in_one_line(run: Run, says: Callable[..., str]) -> None:
    fifo(run.journal_path)
    said = says("report", run.id)
    assert (said.count("\n"), "metrics.jsonl: cannot read it (a FIFO" in said) == (1, True)


def test_status_waits_for_no_lock_of_anothers_run(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    record = json.loads((run.path / "run.json").read_text())
    pending = {"submission": {"token": "a", "submitted": 1.0}, "jobs": []}
    (run.path / "run.json").write_text(json.dumps(record | pending))
    before = (run.path / "run.json").read_bytes()
    monkeypatch.setattr(submission, "foreign_owner", lambda path: "nobody")
    with exclusive_lock(run.path / ".record-lock"):
        submission.resolve_pending(run.path, JobAnswer({}), [])
    assert (run.path / "run.json").read_bytes() == before
    monkeypatch.undo()
    submission.resolve_pending(run.path, JobAnswer({}), [])
    assert "submission" not in json.loads((run.path / "run.json").read_text()), (
        "the control: of one's own it is concluded"
    )


def test_a_lease_that_is_a_link_to_anothers_file_names_no_process(run: Run, tmp_path: Path) -> None:
    (run.path / "lease").unlink(missing_ok=True)
    held = Lease(run.path, run.id)
    assert RunSummary(run.path).local_pid() == os.getpid(), "the control"
    os.link(run.path / "lease", tmp_path / "link")
    assert RunSummary(run.path).local_pid() is None
    held.release()


@needs_root
def test_a_folder_that_may_not_be_read_is_not_called_empty(run: Run) -> None:
    run.path.parent.chmod(0o700)
    said = as_nobody(lambda: store.run_dirs(run.path.parent))
    assert "cannot read it (Permission denied)" in said


@needs_root
def test_sync_report_resume_and_train_ask_whose_directory_it_is(
    run: Run, says: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sync, "plan_sync", lambda run: pytest.fail("looked into it"))
    os.chown(run.path, NOBODY, -1)
    for verb in ("sync", "report", "resume", "train"):
        said = says(verb, run.id)
        assert said.count("\n") == 1
        assert said.startswith(f"runyard: run {run.id} belongs to nobody; ")
        assert ("--trust" in said) is (verb != "train")
    assert not (run.path / "report").exists()
    said = says("report", run.id, "--out", str(tmp_path / "mine"))
    assert str(tmp_path / "mine" / "index.html") in said
    assert not (run.path / "report").exists()
    says("report", run.id, "--trust")
    assert (run.path / "report" / "index.html").exists()


def test_a_journal_is_read_as_before(run: Run) -> None:
    rows, broken = journal.read_journal(run.journal_path)
    assert ([row["event"] for row in rows], broken) == (["start", "epoch", "epoch", "stop"], 0)
    assert np.isfinite([row["t"] for row in rows]).all()
