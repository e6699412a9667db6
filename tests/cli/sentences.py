"""tests/cli/sentences.txt: what each mistake is answered with. Written by: python -m tests.cli.sentences

A sentence is asserted there and nowhere else; other tests name the setting, the error's class or the exit code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import os
import re
import shlex
import shutil
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np

from runyard.cli.main import main
from runyard.cluster.launch.refusals import refusal
from runyard.data.prepare.pipeline import prepare_dataset
from runyard.errors import ExitCode
from runyard.runs.code import snapshot
from runyard.runs.lease import Lease
from runyard.slurm_client import error_line
from tests.support.fake_runs import STEPS, FakeRun, fabricate
from tests.support.fake_slurm import FakeSlurm
from tests.support.settings import ROOT, SMALL, SMALL_DATA, compose

PAGE = Path(__file__).with_name("sentences.txt")
HEAD = """\
What runyard answers to a mistake: the command, what it prints ("problem; fix"), its exit code if that is not 2.
A test provokes each (tests/cli/test_sentences.py). Written by: python -m tests.cli.sentences
SMALL is the settings of a small run, RUN the id of a run, DATA a folder of prepared data, HERE the working directory.
"""
RUN = "20260921-000000-small-ab12"
RUN_PATH = f"runs/{RUN}"
Preparation = Callable[[Path], object]


@dataclass(frozen=True)
class Section:
    """Mistakes of one kind: each is what follows ``command``, alone or with what is there before: in words, and made.

    ``before`` is what is there before all others.
    """

    title: str
    command: str
    mistakes: tuple[str | tuple[str, str, Preparation], ...]
    before: Preparation = lambda here: None


def fake_run(here: Path, **settings: object) -> FakeRun:
    """A run that has not begun, with the code of this checkout."""
    overrides = [*SMALL, *(f"{name}={value}" for name, value in settings.items())]
    return FakeRun(here / RUN_PATH, compose(*SMALL), settings=settings, code_sha256=_code_sha256(), overrides=overrides)


@functools.cache
def _code_sha256() -> str:
    return snapshot.content_hash(snapshot.checkout_files())


def run_without_code(here: Path) -> None:
    FakeRun(here / RUN_PATH, compose(*SMALL))


def begun_run(here: Path, *, checkpoint: bool = True) -> None:
    """After two epochs, with its code and its data. If it saved a ``checkpoint``, that is gone."""
    store = here / "runs" / snapshot.CODE_STORE
    store.mkdir(parents=True)
    snapshot.take_snapshot(store)
    run = fake_run(here, **{"data.root": str((here.parent / "data").resolve())}).train(done=2)
    if checkpoint:
        run.append({"event": "checkpoint", "step": 2 * STEPS, "name": f"step_{2 * STEPS:08d}"})
    (run.path / "code").symlink_to(Path("..") / snapshot.CODE_STORE / _code_sha256()[:16])


def finished_run(here: Path) -> None:
    fake_run(here).train().finish()


def run_with_data(here: Path) -> None:
    fake_run(here).describe_data()


def two_runs(here: Path) -> None:
    for number, lr in enumerate((0.1, 0.2)):
        fabricate(
            here / "runs",
            compose(*SMALL),
            f"2026092{number}-000000-small-ab12",
            settings={"optim.lr": lr},
            sweep="wide",
        )


def write(path: str, content: str | bytes = "", first: Preparation = lambda here: None) -> Preparation:
    def prepare(here: Path) -> None:
        first(here)
        (here / path).parent.mkdir(parents=True, exist_ok=True)
        (here / path).write_bytes(content.encode() if isinstance(content, str) else content)

    return prepare


def images(shape: tuple[int, ...], dtype: type = np.uint8) -> Preparation:
    def prepare(here: Path) -> None:
        run_with_data(here)
        np.save(here / "x.npy", np.zeros(shape, dtype))

    return prepare


def photographs(*files: str) -> Preparation:
    """Empty files below mine/."""
    return lambda here: [write(f"mine/{file}")(here) for file in files]


def config_as_folder(here: Path) -> None:
    path = fake_run(here).path / "config.yaml"
    path.unlink()
    path.mkdir()


def run_that_another_writes(here: Path) -> Lease:
    return fake_run(here).run.acquire_lease()


def damaged(damage: Callable[[Path], object]) -> Preparation:
    """A copy of the prepared data in mine/, and its folder after ``damage``."""

    def prepare(here: Path) -> None:
        shutil.copytree(here.parent / "data", here / "mine")
        damage(next((here / "mine").glob("*/manifest.json")).parent)

    return prepare


FOLDER = "data=imagefolder data.path=mine data.root=new"
SECTIONS = (
    Section("The command line", "", (
        "", "sumbit", "submit --epochs=3", "train x -m", "submit --js", "submit --cfg hydra", "submit --cfg job -m",
        "resume", "resume --failed", "report a b", "predict @last", "completion fish", "settings zzz", "sync",
        "compare", "status -w --json", "status x --all", "cancel x --wait-s=-1", "logs x --lines=-1",
        "slurm down --nodes 2", "leaderboard --top 0", "compare --all --report x",
    )),
    Section("A name of a setting", "create SMALL", (
        "epohcs=3", "lr=3", "+new.thing=1", "modle=starter", "optim=adam", "experiment=nope", "optim=", "'~data'",
        "epochs", "''", "epochs=[1", '"name=it\'s"', "epochs=1,2", "'epochs=${nope}'", "'epochs=???'", "loss=5",
        "model=resnet", "model.name=foo", "model.name=paper_resnet", "model.dropout=0.5", "model.widht=[1]",
    )),
    Section("A value of a setting", "create SMALL", (
        "epochs=0", "epochs=abc", "epochs=9007199254740993", "optim.lr=nan", "optim.lr=0", "precision=fp64",
        "name='a b'", "runs_dir=", "tracking.tags=5", "model.widths=16", "model.head_scale=nan",
        "data.validation_fraction=1", "deterministic=maybe",
    )),
    Section("Settings that do not fit each other", "create SMALL", (
        "optim.momentum=null", "optim.betas=[0.9,1]", "schedule.period_epochs=3", "schedule.warmup_epochs=1",
        "schedule=constant schedule.final_lr_fraction=0.5", "accumulate=3",
        "augment.crop_padding_px=16", "augment.cutout_px=17", "augment.crop_padding_px=0 augment.crop_fill=reflect",
        "data.arrays=false",
    )),
    Section("Settings of the data", "create", (
        "SMALL data.split_seed=3", "SMALL data.samples=[3,2]", "SMALL data.samples=[3]",
        "SMALL data.jpeg_quality=90", "SMALL data.path=/x", "SMALL data.odd_images=convert",
        "data=cifar10 data.image_size=16", "data=cifar10 data.sources=[]",
        "data=cifar10 data.sources=[nowhere]", "data=imagefolder data.max_resolution=8",
    )),
    Section("Settings of SLURM", "create SMALL cluster=slurm", (
        "cluster.account='a b'", "cluster.mail_type=SOON", "cluster.mail_user=ada",
        """'cluster.env_setup=["# x"]'""", """'cluster.env_setup=["echo \\"a"]'""",
        """'cluster.env_setup=["cat <<X"]'""", """'cluster.env_setup=["exec bash"]'""",
        "+cluster.extra.gpu=1", "+cluster.extra.job-name=x",
        "cluster.gres=gpu:2 cluster.gpus_per_node=1", "cluster.gpus_per_node=4 cluster.tasks_per_node=6",
        "cluster.timeout_min=2 cluster.signal_delay_s=100", "cluster=local cluster.partition=gpu",
    )),
    Section("A submission on this machine", "submit experiment=null SMALL", (
        "batch_size=33", "batch_size=512", "loss.mixup_alpha=0.2 batch_size=30", "precision=fp16",
        "cluster.gpus_per_node=1", "cluster.nodes=2", "runs_dir=/dev/null/runs", "data.root=elsewhere", "--after 12",
        "--detach -m seed=1,2", "-m 'epochs=glob(*)'", "-m 'epochs=range(3,1)'",
    )),
    Section("A submission to SLURM", "submit experiment=null SMALL cluster=slurm", (
        "cluster.partition=mian", "cluster.constraint=h100", "cluster.gres=tmpdisk:1", "cluster.cpus_per_task=200",
        "cluster.mem_gb=9000", "cluster.nodes=8 cluster.gpus_per_node=9 batch_size=72", "--after 99", "runs_dir=a%b",
        "-m cluster.nodes=1,2", ("a run that is not on SLURM", "--after @last", fake_run),
        ("sbatch: error: Batch job submission failed: Access denied", "",
         write("../slurm/refusal", "sbatch: error: Batch job submission failed: Access denied")),
    )),
    Section("What sbatch refuses", "sbatch: error:", (
        "AssocMaxSubmitJobLimit", "QOSMaxSubmitJobPerUserLimit", "QOSMaxWallDurationPerJobLimit",
        "AssocGrpCPUMinutesLimit", "QOSMaxCpuMinutesPerJobLimit", "AssocMaxNodePerJobLimit", "QOSMaxGRESPerUser",
        "AssocMaxCpuPerNode", "QOSMaxMemoryPerJob", "QOSMinGRES", "InvalidAccount", "InvalidQOS", "PartitionTimeLimit",
        "PartitionNodeLimit", "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)",
        "Invalid wckey specification", "Requested reservation is invalid", "Invalid license specification",
        "Job can not start due to maintenance reservation.", "Requested time limit is invalid",
        "Invalid account or account/partition combination specified",
        "User's group not permitted to use this partition",
        "Requested account has breached requested QOS usage threshold", "Node count specification invalid",
        "Invalid feature specification", "Invalid generic resource (gres) specification", "Invalid node name specified",
        "More processors requested than permitted", "Job dependency problem", "Invalid job array specification",
        "Unable to create job record, try again", "unrecognized option '--licenses=a:1'", "Batch job denied",
    )),
    Section("A run", "report", (
        "@last", "/", "''",
        ("two runs", "nosuch", two_runs), ("two runs", "2026", two_runs),
        ("run.json is damaged", "@last", write(f"{RUN_PATH}/run.json", "{", fake_run)),
        ("run.json is of another version", "@last", write(
            f"{RUN_PATH}/run.json", '{"format": "runyard-run-9"}', fake_run)),
        ("config.yaml is no YAML", "@last", write(f"{RUN_PATH}/config.yaml", "epochs: [", fake_run)),
        ("config.yaml is damaged", "@last", lambda here: fake_run(here, epochs="many")),
        ("config.yaml is a folder", "@last", config_as_folder),
    )),
    Section("A run to continue, follow, cancel or export", "", (
        ("a finished run", "resume @last", finished_run), ("a finished run", "cancel @last", finished_run),
        ("another process writes the run", "resume @last", run_that_another_writes),
        ("a run whose code is gone", "resume @last", run_without_code),
        ("a run that has begun", "resume @last optim.lr=3", lambda here: begun_run(here, checkpoint=False)),
        ("all checkpoints are gone", "resume @last", begun_run),
        ("a run that waits", "logs @last", fake_run), ("no run", "status", lambda here: None),
        ("a sweep", "status --sweep other", two_runs), ("no sweep", "status --sweep other", fake_run),
        ("no run", "export csv @last", lambda here: None), ("a run", "leaderboard", fake_run),
    )),
    Section("Images to predict", "predict @last --out o.csv --images", (
        ("a run that was not trained", "x.npy", fake_run), ("no such file", "x.npy", run_with_data),
        ("a text", "x.txt", write("x.txt", "no", run_with_data)),
        ("a damaged array", "x.npy", write("x.npy", b"\x93NUMPY", run_with_data)),
        ("numbers", "x.npy", images((3,), float)), ("no image", "x.npy", images((0, 16, 16, 3))),
        ("two axes", "x.npy", images((3, 4))), ("larger images", "x.npy", images((1, 32, 32, 3))),
        ("a pickled text", "x.pkl", write("x.pkl", b"\x80\x04\x8c\x01a.", run_with_data)),
        ("an empty folder", "x", lambda here: (run_with_data(here), (here / "x").mkdir())),
        ("no checkpoint", "x.npy", images((1, 16, 16, 3))),
        ("a run", "x.npy --out nosuch/o.csv", fake_run), ("a run", "x.npy --columns a", fake_run),
    )),
    Section("Data to prepare", "prepare", (
        "SMALL data.root=/dev/null", "SMALL data.samples=[100000000000,5]",
        "SMALL data.root=new data.validation_fraction=0.999",
        "data=imagefolder data.path=nosuch", "data=cifar10 data.sources=[disk] data.path=nosuch",
        "data=cifar10 data.sources=[disk] data.root=new",
        ("no test/", FOLDER, photographs("train/cat/a.jpg", "train/dog/a.jpg")),
        ("one class", FOLDER, photographs("train/cat/a.jpg", "test/cat/a.jpg")),
        ("no file in dog/", FOLDER, lambda here: (
            photographs("train/cat/a.jpg", "test/cat/a.jpg")(here), (here / "mine/train/dog").mkdir())),
        ("damaged files", FOLDER, photographs(*(f"{s}/{c}/a.jpg" for s in ("train", "test") for c in ("cat", "dog")))),
    )),
    Section("Prepared data that is damaged", "prepare SMALL data.root=mine", (
        ("train.beton is cut", "", damaged(lambda data: os.truncate(data / "train.beton", 1000))),
        ("train.beton is gone", "", damaged(lambda data: (data / "train.beton").unlink())),
        ("train.beton is another's", "", damaged(lambda data: (data / "train.beton").write_bytes(bytes(5000)))),
        ("train_images.npy is cut", "", damaged(lambda data: os.truncate(data / "train_images.npy", 1000))),
        ("manifest.json is no JSON", "", damaged(lambda data: (data / "manifest.json").write_text("{"))),
        ("manifest.json is another's", "", damaged(lambda data: (data / "manifest.json").write_text("[]"))),
    )),
    Section("Runs to compare (two runs)", "compare", (
        "--all @last", "--all --where 'optim.lr<0.01'", "--all --where optim.lr", "--all --where nope=1",
        "--all --where 'name<1'", "--all --sort nope", "--all --baseline nope", "--all --target fast", "--all --tag x",
        "--sweep other", "--all --runs-dir elsewhere",
        ("a run that has not started", "--all --runs-dir new",
         lambda here: FakeRun(here / f"new/{RUN}", compose(*SMALL))),
    ), two_runs),
    Section("A search", "sweep", (
        "", "SMALL", "SMALL 'optim.lr=log(1,0.1)'", "SMALL 'optim.lr=log(0,1)'", "SMALL 'optim.lr=log(1)'",
        "SMALL 'epochs=int(1,4,2)'", "SMALL 'batch_size=choice(32)'", "SMALL 'cluster.nodes=int(1,2)'",
        "SMALL 'epochs=int(1,2)' epochs=3", "SMALL --name 'a b' 'epochs=int(1,2)'", "--name nosuch",
        "SMALL 'epochs=int(1,2)' --trials 0",
    )),
)  # fmt: skip


def _sbatch_refuses(message: str) -> str:
    settings = {"account": "lab", "qos": "short", "timeout_min": 10, "nodes": 2, "gpus_per_node": 4, "partition": "gpu"}
    extra = {"reservation": "course", "wckey": "w", "licenses": "a:1"}
    return str(refusal(dataclasses.replace(compose("cluster=slurm").cluster, **settings, extra=extra), message))


def provoke(section: Section, folder: Path, data_root: Path) -> str:
    """Make each mistake of ``section`` in an own folder below ``folder``, and return its part of the page."""
    parts = [f"\n# {section.title}\n"]
    for number, mistake in enumerate(section.mistakes):
        note, words, before = ("", mistake, section.before) if isinstance(mistake, str) else mistake
        command = f"{section.command} {words}".strip()
        if section.command.startswith("sbatch"):
            sentence, code = _sbatch_refuses(error_line(command)), ExitCode.USER_ERROR
        else:
            here = folder / f"{number}" / "here"
            here.mkdir(parents=True)
            sentence, code = _answer(command, here, data_root, before)
            command = f"runyard {command}".strip()
        parts.append(
            f"\n{command}"
            + f"    ({note})" * bool(note)
            + f"\n    {sentence}\n"
            + f"    exit code {code}\n" * (code != 2)
        )
    return "".join(parts)


def _answer(command: str, here: Path, data_root: Path, before: Preparation) -> tuple[str, int]:
    small = [*SMALL, f"data.root={data_root}", f"runs_dir={here / 'runs'}"]
    argv = [word for part in shlex.split(command) for word in (small if part == "SMALL" else [part])]
    slurm = FakeSlurm(here.parent / "slurm")
    (here.parent / "data").symlink_to(data_root)
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(here),
        mock.patch.dict(os.environ, PATH=slurm.path, COLUMNS="80"),
        mock.patch("runyard.cluster.launch.submit.gpu_count", return_value=0),
        contextlib.ExitStack() as held,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        if isinstance(lease := before(here), Lease):
            held.callback(lease.release)
        existing = {*here.rglob("*")}
        code = main(argv)
    left = [path for path in {*here.rglob("*")} - existing if path.is_file() and not _may_stay(path)]
    lines = err.getvalue().splitlines()
    assert (out.getvalue(), len(lines), left) == ("", 1, []), (command, code, out.getvalue(), lines, left)
    return _masked(lines[0].removeprefix("runyard: "), here, data_root), code


def _may_stay(path: Path) -> bool:
    return path.name.endswith("lock") or snapshot.CODE_STORE in path.parts


def _masked(sentence: str, here: Path, data_root: Path) -> str:
    """Without what differs from one machine, hour or version of Python to another."""
    for path, name in ((here, "HERE"), (data_root, "DATA"), (ROOT, "CHECKOUT")):
        sentence = sentence.replace(str(path), name)
    for pattern, text in (
        (r"\b20\d{6}-\d{6}-small-[0-9a-f]{4}", "RUN"),
        (r"\.code-\d+", ".code-UID"),
        (
            rf"process {os.getpid()} on {re.escape(socket.gethostname())}, last seen \d+ s ago",
            "process PID on HOST, last seen N s ago",
        ),
        (r"and \d+ MB are free", "and N MB are free"),
    ):
        sentence = re.sub(pattern, text, sentence)
    return re.sub(r"\(choose from .*?\)", lambda choices: choices[0].replace("'", ""), sentence)  # as 3.13 has it


def render() -> str:
    """The page."""
    with tempfile.TemporaryDirectory() as folder:
        data_root = Path(folder) / "data"
        data_root.mkdir()
        prepare_dataset(compose(*SMALL_DATA, f"data.root={data_root}").data, progress=False)
        parts = [provoke(section, Path(folder) / f"{n}", data_root) for n, section in enumerate(SECTIONS)]
        return HEAD + "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(render())
