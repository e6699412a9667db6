"""A mistake at the command line costs one line: what was given, what was expected, what mends it. Nothing is left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runyard.cli.main import main
from runyard.runs.journal import Journal
from runyard.runs.run import Run
from tests.support.commands import Refused

OF_A_RUN = [("report",), ("train",), ("resume",), ("predict", "--images", "x.npy", "--out", "o.csv")]


SETTINGS = [
    "epohcs=3", "lr=3", "widths=3", "optim.lrr=3", "+new.thing=1", "++zzz=1", "hydra.run.dir=x", "config.epochs=3",
    "modle=starter", "model.options={}", "optim=adam", "experiment=nope", "experiment=[starter,stater]", "optim=",
    "optim=null", "data@x=cifar10", "~data", "epochs", "=3", "", "epochs=[1", "epochs==3", "name=it's",
    "data.path=/a (1)/b", "epochs=1,2", "epochs=range(1,3)", "epochs=${nope}", "epochs=???", 'name="a\nb"',
    "name='a b'", "name=../x", "runs_dir=", "data.root=", "data.name=../x", "epochs=0", "epochs=-1", "epochs=abc",
    "epochs=1.5", "epochs=null", "epochs=true", "epochs=nan", "epochs=9007199254740993", "seed=99999999999999999999",
    "workers=100000", "optim.lr=nan", "optim.lr=-inf", "optim.lr=1e400", "optim.lr=0", "optim.lr='1'",
    "optim.betas=[0.9]", "optim.betas=[0.9,1]", "optim.betas=null", "optim.momentum=0.9", "schedule.period_epochs=3",
    "schedule.warmup_epochs=1", "accumulate=3", "precision=fp64", "compile=true", "tracking=wandb",
    "tracking.tags=[a]", "loss=5", "augment.cutout_px=17", "data.validation_fraction=1", "data.split_seed=3",
    "data.samples=[3,2]", "data.jpeg_quality=90", "data.path=/x", "data.arrays=false", "model=resnet",
    "model.name=foo", "model.name=paper_resnet", "model.dropout=0.5", "model.widht=[1]", "model.widths=16",
    "model.widths=[16.5]", "model.head_scale=nan", "model.max_parameters=0",
]  # fmt: skip


@pytest.mark.parametrize("override", SETTINGS, ids=repr)
def test_a_wrong_setting_is_named_before_anything_is_made(refused: Refused, small: list[str], override: str) -> None:
    assert override.lstrip("+").partition("=")[0] in refused("create", *small, override)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["+epochs=2"],
        ["++optim.lr=0.1"],
        ["+experiment=starter"],
        ["experiment=null"],
        ["name='quoted'"],
        ["model.head_scale=1"],
        ["optim={lr:0.5}"],
        ["model=paper_resnet", "model.widths=[8,8]", "model.blocks=[1,1]"],
        ["seed=${epochs}"],
        ["tracking=offline", "tracking.tags=[a]"],
    ],
    ids=str,
)
def test_what_is_right_is_taken(small: list[str], overrides: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [o for o in small if not (overrides[:1] == ["model=paper_resnet"] and "widths" in o)] + overrides
    assert main(["create", *overrides]) == 0
    assert Run.open(capsys.readouterr().out.strip()).config.data.num_classes == 4


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["inspect", "model=torchvision", "model.arch=resnt18"], "has no such classifier; did you mean resnet18?"),
        (["inspect", "model.widths=[0]", "model.blocks=[1]"], "model.widths=[0]: expected whole numbers of at least 1"),
        (["inspect", "model.max_parameters=10"], "model.max_parameters=10"),
        (["inspect", "model.widths=[1000000]", "model.blocks=[1]"], "a network that does not fit into memory"),
        (["inspect", "data=imagefolder"], "no prepared data there"),
    ],
)
def test_a_wrong_command_is_refused_with_an_example(refused: Refused, argv: list[str], message: str) -> None:
    assert message in refused(*argv)


def test_options_may_stand_between_settings(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", small[0], "--cfg", "job", *small[1:]]) == 0
    assert "samples:\n  - 256\n" in capsys.readouterr().out


def test_a_submission_that_cannot_work_creates_no_run(refused: Refused, small: list[str]) -> None:
    assert "runs_dir=/proc/runs: " in refused("submit", *small, "runs_dir=/proc/runs")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a" * 300, "File name too long"),
        ("file", "not a directory"),
        ("file/runs", "Not a directory"),
        ("loop", "Too many levels of symbolic links"),
        ("dangling", "a link that leads nowhere"),
    ],
)
def test_a_dry_run_too_refuses_a_place_where_no_run_can_be_created(
    refused: Refused, small: list[str], tmp_path: Path, name: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    dry_run = ["submit", "--dry-run", *small, "experiment=null", "cluster=slurm"]
    said = refused(*dry_run, f"runs_dir={tmp_path / name}")
    assert said.endswith(f": cannot create a run there ({reason}); set runs_dir to a folder you can write")
    assert main([*dry_run, f"runs_dir={tmp_path / 'new' / 'runs'}"]) == 0, "the control"
    assert "nothing was submitted" in capsys.readouterr().out


def test_data_that_is_not_prepared_is_answered_with_the_command_that_prepares_it(
    refused: Refused, small: list[str], tmp_path: Path
) -> None:
    said = refused("submit", *small, "data.root=elsewhere")
    command = said.partition("make it: ")[2]
    assert command.startswith("runyard prepare ")
    assert "'data.samples=[256,100]'" in command
    assert command.endswith("data.root=elsewhere")
    assert "batch_size" not in command


@pytest.mark.parametrize("verb", OF_A_RUN, ids=lambda verb: verb[0])
@pytest.mark.parametrize(
    ("reference", "named"),
    [("@last", " @last "), ("nosuch", " nosuch "), ("a\nb", r" a\nb "), ("/", "/: "), ("", "RUN ")],
)
def test_a_run_that_is_none_is_refused_by_every_verb(
    refused: Refused, verb: tuple[str, ...], reference: str, named: str
) -> None:
    assert named in refused(*verb, reference)


@pytest.mark.parametrize("verb", OF_A_RUN, ids=lambda verb: verb[0])
def test_a_damaged_run_is_refused_by_every_verb(refused: Refused, run: Path, verb: tuple[str, ...]) -> None:
    (run / "config.yaml").write_text("epochs: many\n")
    assert f"{run}/config.yaml: " in refused(*verb, str(run))
    (run / "run.json").write_text("{")
    assert f"{run}/run.json: damaged" in refused(*verb, str(run))


def test_a_finished_run_is_not_resumed(refused: Refused, run: Path) -> None:
    Journal(run / "metrics.jsonl").write("epoch", epoch=1)
    Journal(run / "metrics.jsonl").write("stop", reason="finished")
    assert f"run {run.name} is finished" in refused("resume", str(run))


def test_a_run_that_another_process_writes_is_not_resumed(refused: Refused, run: Path) -> None:
    lease = Run.open(run).acquire_lease()
    assert f"is being written by process {os.getpid()}" in refused("resume", str(run))
    lease.release()


def test_a_run_that_was_never_trained_can_be_reported_but_not_used(
    refused: Refused, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused("predict", str(run), "--images", str(tmp_path), "--out", str(tmp_path / "o.csv"))
    assert said.startswith(f"run {run.name} has not been trained")
    assert main(["report", str(run)]) == 0
    assert Path(capsys.readouterr().out.strip()).is_file()


@pytest.mark.parametrize("out", ["/dev/null", "/dev/full", ".", "nosuch/o.csv", ""])
def test_predict_writes_no_file_over_a_device_or_a_folder(refused: Refused, run: Path, out: str) -> None:
    assert "--out " in refused("predict", str(run), "--images", "x.npy", "--out", out)
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("columns", ["a", "a,b,c", ",", "a,a"])
def test_predict_takes_two_names_for_two_columns(refused: Refused, run: Path, columns: str) -> None:
    assert "--columns " in refused("predict", str(run), "--images", "x", "--out", "o.csv", "--columns", columns)


TRAIN_ON_A_FULL_DISK = """
import errno, sys
from runyard.cli.main import main
from runyard.training import checkpoint

def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")

checkpoint.write_checkpoint = full
sys.exit(main(["train", sys.argv[1]]))
"""


@pytest.mark.slow
def test_a_disk_that_fills_in_training_is_said_in_one_line(run: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", TRAIN_ON_A_FULL_DISK, str(run)], capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr == (
        f"runyard: {run}/checkpoints: No space left on device; fix that, then continue with: runyard resume {run}\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "model.max_parameters=10",
            "21,056 trainable parameters, but model.max_parameters=10; make the network smaller",
        ),
        ("model.widths=[16,0]", "model.widths=[16, 0]: expected whole numbers of at least 1"),
    ],
)
def test_what_only_the_job_can_find_out_reaches_the_user_in_one_line(
    small: list[str], override: str, message: str
) -> None:
    command = [sys.executable, "-m", "runyard", "submit", "experiment=starter", *small, override]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert message in ended.stderr
    assert "Traceback" not in ended.stdout
