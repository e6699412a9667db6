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
    ("epohcs=3", "unknown setting epohcs: did you mean epochs?"),
    ("lr=3", "unknown setting lr: did you mean optim.lr?"),
    ("widths=3", "unknown setting widths: did you mean model.widths?"),
    ("optim.lrr=3", "unknown setting optim.lrr: did you mean optim.lr?"),
    ("+new.thing=1", "unknown setting new.thing"),
    ("++zzz=1", "unknown setting zzz: `runyard settings` lists all settings"),
    ("hydra.run.dir=x", "unknown setting hydra.run.dir"),
    ("config.epochs=3", "unknown setting config.epochs: did you mean epochs?"),
    ("modle=starter", "unknown setting modle: did you mean model?"),
    ("model.options={}", "unknown setting model.options"),
    ("optim=adam", "optim=adam: no such file under configs/optim; did you mean optim=adamw?"),
    ("experiment=nope", "experiment=nope: no such file under configs/experiment; expected one of auto, paper"),
    ("experiment=[starter,stater]", "did you mean experiment=starter?"),
    ("optim=", "optim=: no such file under configs/optim; expected one of adamw, sgd"),
    ("optim=null", "optim=null: no such file under configs/optim"),
    ("data@x=cifar10", "unknown setting data@x: did you mean data?"),
    ("~data", "~data: no setting can be removed; give it a value, such as data=VALUE"),
    ("epochs", "epochs: expected SETTING=VALUE"),
    ("=3", "=3: expected SETTING=VALUE"),
    ("", "'': expected SETTING=VALUE"),
    ("epochs=[1", "epochs=[1: cannot be read; put a value with special characters into two kinds of quotes"),
    ("epochs==3", "epochs==3: cannot be read"),
    ("name=it's", "name=it's: cannot be read"),
    ("data.path=/a (1)/b", "data.path=/a (1)/b: cannot be read"),
    ("epochs=1,2", "epochs=1,2: expected one value"),
    ("epochs=range(1,3)", "epochs=range(1,3): expected one value"),
    ("epochs=${nope}", "epochs: Interpolation key 'nope' not found"),
    ("epochs=???", "epochs: Missing mandatory value"),
    ('name="a\nb"', r"name='a\nb': expected text that is not empty and has no control characters"),
    ("name='a b'", "name='a b': expected letters, digits"),
    ("name=../x", "name='../x': expected letters, digits"),
    ("runs_dir=", "runs_dir='': expected text that is not empty"),
    ("data.root=", "data.root='': expected text that is not empty"),
    ("data.name=../x", "data.name='../x': expected letters, digits"),
    ("epochs=0", "epochs=0: expected a whole number at least 1"),
    ("epochs=-1", "epochs=-1: expected a whole number at least 1"),
    ("epochs=abc", "epochs=abc: expected a whole number"),
    ("epochs=1.5", "epochs=1.5: expected a whole number"),
    ("epochs=null", "epochs=null: expected a whole number"),
    ("epochs=true", "epochs=true: expected a whole number"),
    ("epochs=nan", "epochs=nan: expected a whole number"),
    (
        "epochs=9007199254740993",
        "epochs=9007199254740993: expected a whole number at least 1 and at most 9007199254740992",
    ),
    ("seed=99999999999999999999", "expected a whole number at least 0 and below 9223372036854775808"),
    ("workers=100000", "workers=100000: expected a whole number at least 1 and at most 1024"),
    ("optim.lr=nan", "optim.lr=nan: expected a finite number"),
    ("optim.lr=-inf", "optim.lr=-inf: expected a finite number"),
    ("optim.lr=1e400", "optim.lr=inf: expected a finite number"),
    ("optim.lr=0", "optim.lr=0.0: expected a number above 0"),
    ("optim.lr='1'", "optim.lr='1': expected a number"),
    ("optim.betas=[0.9]", "optim.betas=[0.9]: expected two numbers"),
    ("optim.betas=[0.9,1]", "optim.betas=[0.9, 1.0]: expected two numbers of at least 0 and below 1"),
    ("optim.betas=null", "optim.betas=null: optim=adamw needs it"),
    ("optim.momentum=0.9", "optim.momentum=0.9: belongs to optim=sgd, and optim.name=adamw"),
    ("schedule.period_epochs=3", "schedule.period_epochs=3.0: belongs to schedule=cosine_restarts"),
    ("schedule.warmup_epochs=1", "schedule.warmup_epochs=1: expected below epochs=1"),
    ("accumulate=3", "batch_size=32 does not divide by accumulate=3: change one of them"),
    ("precision=fp64", "precision=fp64: expected one of bf16, fp16, fp32"),
    ("compile=true", "compile=true: expected one of none, default"),
    ("tracking=wandb", "tracking=wandb: no such file under configs/tracking"),
    ("tracking.tags=[a]", "tracking.tags=[a]: only W&B uses it, and tracking.mode=none"),
    ("loss=5", "loss=5: expected a group of settings (loss.NAME=VALUE)"),
    ("augment.cutout_px=17", "augment.cutout_px=17: expected at most data.image_size=16"),
    ("data.validation_fraction=1", "data.validation_fraction=1.0: expected a number at least 0 and below 1"),
    ("data.split_seed=3", "data.split_seed=3: nothing is held out"),
    ("data.samples=[3,2]", "data.samples=[3, 2]: fewer training images than data.num_classes=4"),
    ("data.jpeg_quality=90", "data.jpeg_quality=90: data.write_mode=raw"),
    ("data.path=/x", "data.path=/x: read by the source disk only"),
    ("data.arrays=false", "loader=resident reads plain arrays, and data.arrays=false"),
    ("model=resnet", "model=resnet: no such file under configs/model; did you mean model=paper_resnet?"),
    ("model.name=foo", "model.name=foo: no such file under configs/model"),
    ("model.name=paper_resnet", "the other model settings belong to another network; set model=paper_resnet"),
    ("model.dropout=0.5", "model.dropout: the chosen network has no such setting; it belongs to model=paper_resnet"),
    ("model.widht=[1]", "unknown setting model.widht: did you mean model.widths?"),
    ("model.widths=16", "model.widths=16: expected a value like [64, 128], its default in configs/model/starter.yaml"),
    ("model.widths=[16.5]", "model.widths=[16.5]: expected a value like [64, 128]"),
    ("model.head_scale=nan", "model.head_scale=nan: expected a value like 0.3"),
    ("model.max_parameters=0", "model.max_parameters=0: expected a whole number at least 1"),
]


@pytest.mark.parametrize(("override", "message"), SETTINGS, ids=[repr(override) for override, _ in SETTINGS])
def test_a_wrong_setting_is_refused_before_anything_is_made(
    refused: Refused, small: list[str], override: str, message: str
) -> None:
    assert message in refused("create", *small, override)


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
        ([], "the following arguments are required: COMMAND; example: runyard submit"),
        (["sumbit"], "invalid choice: 'sumbit'"),
        (["submit", "--epochs=3"], "--epochs=3: runyard submit takes no such argument; see: runyard submit --help"),
        (["train", "x", "-m"], "-m: runyard train takes no such argument"),
        (["submit", "--js"], "--js: runyard submit takes no such argument"),
        (["submit", "--cfg", "hydra"], "argument --cfg: invalid choice: 'hydra'"),
        (["resume"], "the following arguments are required: RUN; example: runyard resume @last"),
        (["report", "a", "b"], "b: runyard report takes no such argument"),
        (["predict", "@last"], "required: --images, --out; example: runyard predict @last --images"),
        (["completion", "fish"], "invalid choice: 'fish'"),
        (["settings", "zzz"], "no setting begins with 'zzz'"),
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


SUBMISSIONS = [
    ("batch_size=33", "batch_size=33 does not divide among 2 ranks x 1 micro-batches: the nearest that do are 32, 34"),
    ("batch_size=512", "holds 256 training images; set at most that"),
    ("loss.mixup_alpha=0.2 batch_size=30", "each micro-batch must be even; it is 15"),
    ("precision=fp16", "precision=fp16 needs a GPU, and this machine shows none"),
    ("cluster.gpus_per_node=1", "cluster.gpus_per_node=1: this machine shows 0; ask for fewer"),
    ("cluster.nodes=2", "cluster.nodes=2: cluster=local is this one machine"),
    ("runs_dir=/proc/runs", "runs_dir=/proc/runs: "),
    ("runs_dir=/dev/null/runs", "runs_dir=/dev/null/runs: cannot create a run there (Not a directory)"),
]


@pytest.mark.parametrize(("overrides", "message"), SUBMISSIONS, ids=[overrides for overrides, _ in SUBMISSIONS])
def test_a_submission_that_cannot_work_creates_no_run(
    refused: Refused, small: list[str], monkeypatch: pytest.MonkeyPatch, overrides: str, message: str
) -> None:
    monkeypatch.setattr("runyard.cluster.launch.submit.gpu_count", lambda: 0)
    assert message in refused("submit", *small, *overrides.split())


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
    ("reference", "message"),
    [
        ("@last", "no run @last in runs: there are none there yet"),
        ("nosuch", "no run nosuch in runs"),
        ("a\nb", r"no run a\nb in runs"),
        ("/", "/: no run directory (it lacks run.json)"),
        ("", "RUN is empty"),
    ],
)
def test_a_run_that_is_none_is_refused_by_every_verb(
    refused: Refused, verb: tuple[str, ...], reference: str, message: str
) -> None:
    assert message in refused(*verb, reference)


@pytest.mark.parametrize("verb", OF_A_RUN, ids=lambda verb: verb[0])
def test_a_damaged_run_is_refused_by_every_verb(refused: Refused, run: Path, verb: tuple[str, ...]) -> None:
    (run / "config.yaml").write_text("epochs: many\n")
    assert f"{run}/config.yaml: " in refused(*verb, str(run))
    (run / "run.json").write_text("{")
    assert f"{run}/run.json: damaged" in refused(*verb, str(run))


def test_a_finished_run_is_not_resumed(refused: Refused, run: Path) -> None:
    Journal(run / "metrics.jsonl").write("epoch", epoch=1)
    Journal(run / "metrics.jsonl").write("stop", reason="finished")
    assert f"run {run.name} is finished: there is nothing to resume" in refused("resume", str(run))


def test_a_run_that_another_process_writes_is_not_resumed(refused: Refused, run: Path) -> None:
    lease = Run.open(run).acquire_lease()
    assert f"is being written by process {os.getpid()}" in refused("resume", str(run))
    lease.release()


def test_a_run_that_was_never_trained_can_be_reported_but_not_used(
    refused: Refused, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused("predict", str(run), "--images", str(tmp_path), "--out", str(tmp_path / "o.csv"))
    assert said == f"run {run.name} has not been trained (no data.json): runyard resume {run.name}"
    assert main(["report", str(run)]) == 0
    assert Path(capsys.readouterr().out.strip()).is_file()


@pytest.mark.parametrize("out", ["/dev/null", "/dev/full", ".", "nosuch/o.csv", ""])
def test_predict_writes_no_file_over_a_device_or_a_folder(refused: Refused, run: Path, out: str) -> None:
    assert "expected a file name in a folder that exists" in refused(
        "predict", str(run), "--images", "x.npy", "--out", out
    )
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("columns", ["a", "a,b,c", ",", "a,a"])
def test_predict_takes_two_names_for_two_columns(refused: Refused, run: Path, columns: str) -> None:
    assert "expected two different names" in refused(
        "predict", str(run), "--images", "x", "--out", "o.csv", "--columns", columns
    )


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
            "21,056 trainable parameters, but model.max_parameters=10: make the network smaller",
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
