"""A mistake at the command line costs one line: what was given, what was expected, what mends it. Nothing is left."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runyard.cli.commands import COMMANDS
from runyard.cli.completion import completions
from runyard.cli.main import main
from runyard.data import manifest
from runyard.runs.journal import Journal
from runyard.runs.run import Run
from tests.support.settings import SMALL_DATA

SMALL = (
    *SMALL_DATA,
    "model=starter",
    "model.widths=[16,32]",
    "loader=resident",
    "epochs=1",
    "batch_size=32",
    "tracking=none",
)
OF_A_RUN = [("report",), ("train",), ("resume",), ("predict", "--images", "x.npy", "--out", "o.csv")]

Refused = Callable[..., str]


@pytest.fixture
def small(data_root: Path, tmp_path: Path) -> list[str]:
    """Overrides that make a small run which would work."""
    return [*SMALL, f"data.root={data_root}", f"runs_dir={tmp_path / 'runs'}"]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """``refused("create", "epochs=0")``: the one line it says. Fails unless that is all it does."""
    monkeypatch.chdir(tmp_path)

    def check(*argv: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        code = main(list(argv))
        out, err = capsys.readouterr()
        lines = err.splitlines()
        assert (code, out, len(lines)) == (2, "", 1), (code, out, err)
        assert lines[0].startswith("runyard: ")
        left = [p for p in sorted(tmp_path.rglob("*")) if p not in before and not p.name.endswith("lock")]
        assert [p for p in left if p.is_file() or ".making" in p.name] == [], "something half-made was left"
        return lines[0].removeprefix("runyard: ")

    return check


@pytest.fixture
def run(small: list[str], capsys: pytest.CaptureFixture[str]) -> Path:
    """A run that has not been trained."""
    assert main(["create", *small]) == 0
    return Path(capsys.readouterr().out.strip())


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
        (["inspect", "model.max_parameters=10"], "4,693,962 trainable parameters, and model.max_parameters=10"),
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


Damage = Callable[[Path], Any]


def noted(**changed: Any) -> Damage:
    """Change entries of the manifest."""
    return lambda folder: (folder / "manifest.json").write_text(
        json.dumps(json.loads((folder / "manifest.json").read_text()) | changed)
    )


DAMAGES: dict[str, tuple[Damage, str]] = {
    "truncated": (lambda f: os.truncate(f / "train.beton", 1000), "train.beton: truncated"),
    "empty": (lambda f: os.truncate(f / "train.beton", 0), "train.beton: the file is empty"),
    "foreign": (lambda f: (f / "train.beton").write_bytes(bytes(5000)), "train.beton: not an FFCV file"),
    "another": (lambda f: shutil.copy(f / "test.beton", f / "train.beton"), "train.beton: 100 samples in"),
    "missing": (lambda f: (f / "train.beton").unlink(), "train.beton: cannot read it (No such file"),
    "array": (lambda f: os.truncate(f / "train_images.npy", 1000), "train_images.npy: truncated"),
    "array of another size": (lambda f: np.save(f / "train_labels.npy", np.zeros(9, int)), "train_labels.npy: holds"),
    "no JSON": (lambda f: (f / "manifest.json").write_text("{"), "manifest.json: damaged (not JSON)"),
    "a list": (lambda f: (f / "manifest.json").write_text("[]"), "manifest.json: not a manifest of this program"),
    "a folder": (
        lambda f: ((f / "manifest.json").unlink(), (f / "manifest.json").mkdir()),
        "cannot read it (a directory, not",
    ),
    "no parts": (noted(splits={}), "manifest.json: damaged (classes, channels"),
    "std 0": (noted(std=[0, 0, 0]), "manifest.json: damaged (a mean or std"),
    "mean NaN": (noted(mean=[float("nan")] * 3), "manifest.json: damaged (a mean or std"),
    "size as text": (noted(image_size="16"), "manifest.json: damaged (image_size"),
    "too few classes": (noted(classes=["a"]), "manifest.json: damaged (it was changed"),
    "a stranger": (noted(more=1), "manifest.json: damaged"),
}


@pytest.mark.parametrize("what", DAMAGES)
@pytest.mark.parametrize("verb", ["submit", "prepare"])
def test_damaged_data_is_refused_with_the_file_named(
    refused: Refused, small: list[str], data_root: Path, tmp_path: Path, verb: str, what: str
) -> None:
    damage, message = DAMAGES[what]
    (folder,) = (p for p in data_root.iterdir() if p.is_dir())
    shutil.copytree(folder, tmp_path / "mine" / folder.name)
    damage(tmp_path / "mine" / folder.name)
    said = refused(verb, *small, f"data.root={tmp_path / 'mine'}")
    assert message in said
    assert str(tmp_path / "mine") in said
    assert "runyard prepare" in said


def test_whole_data_is_not_refused(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", *small, "--json"]) == 0
    assert manifest.manifest_from_dict(json.loads(capsys.readouterr().out)).splits["train"].samples == 256


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("data.root=/proc/x", "data.root=/proc/x: cannot write"),
        ("data.root=/dev/null", "data.root=/dev/null: cannot write"),
        ("data.samples=[100000000000,5]", "MB are needed and"),
        ("data.validation_fraction=0.999", "holds out 256 of 256 images"),
        ("data.validation_fraction=1e-9", "holds out 0 of 256 images"),
    ],
)
def test_what_cannot_be_prepared_leaves_nothing(
    refused: Refused, small: list[str], tmp_path: Path, overrides: str, message: str
) -> None:
    assert message in refused("prepare", *small, f"data.root={tmp_path / 'new'}", overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("data=imagefolder", "data.path=null: data.kind=imagefolder reads a folder"),
        ("data=imagefolder data.path=nosuch", "data.path=nosuch: there is no folder train/ in it"),
        ("data=cifar10 data.sources=[disk] data.path=nosuch", "data.path=nosuch: there is no such file or folder"),
        ("data=cifar10 data.sources=[disk]", "no source has it"),
    ],
)
def test_a_source_that_is_not_there_is_refused(refused: Refused, overrides: str, message: str) -> None:
    assert message in refused("prepare", *overrides.split())


def test_prepare_says_how_many_files_were_converted_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = manifest.Manifest(
        "d",
        "imagefolder",
        "s",
        ("a",),
        16,
        (0.5,) * 3,
        (0.2,) * 3,
        {},
        {
            "converted": {"files": 3, "kinds": {"grayscale": 2, "CMYK": 1}, "first": []},
            "skipped": {"files": 1, "kinds": {"not an image": 1}, "first": []},
        },
        True,
    )
    monkeypatch.setattr("runyard.data.prepare.pipeline.prepare_dataset", lambda *_, **__: made)
    assert main(["prepare", "data=imagefolder", "data.path=x"]) == 0
    assert capsys.readouterr().out.endswith("verified; 3 converted (2 grayscale, 1 CMYK); 1 skipped (1 not an image)\n")


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_verbs_help_has_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([verb, "--help"])
    assert re.search(rf"^example: .*\b{verb}\b", capsys.readouterr().out, re.MULTILINE)


def test_help_imports_neither_torch_nor_hydra() -> None:
    ask = (
        "import sys, runyard.cli.main\ntry: runyard.cli.main.main(['--help'])\nexcept SystemExit: pass\n"
        "print('loaded', sorted({'torch', 'numpy', 'hydra', 'submitit'} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", ask], check=True, capture_output=True, text=True).stdout
    assert said.endswith("loaded []\n")


def test_json_is_all_that_is_said_where_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings", "optim", "--json"]) == 0
    assert "optim.lr" in [row["name"] for row in json.loads(capsys.readouterr().out)]
    assert main(["inspect", "model=paper_resnet", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == 4_693_962


ASK = 'eval "$(runyard completion bash)"; COMP_LINE=$1 COMP_POINT=${#1}; _runyard 2>/dev/null; echo "${COMPREPLY[@]}"'


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("runyard rep", "report"),
        ("runyard submit optim=a", "adamw"),
        ("runyard submit compile=d", "default"),
        ("runyard submit experiment=a", "auto"),
        ("runyard inspect model.wid", "model.widths="),
        ("runyard settings optim.l", "optim.lr"),
        ("runyard completion ", "bash zsh"),
        ("runyard report @", "@last"),
        ("runyard predict @last --images ", ""),
        ("runyard submit zzz", ""),
    ],
)
def test_the_tab_key_completes_in_bash(line: str, words: str) -> None:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    said = subprocess.run(["bash", "-c", ASK, "bash", line], env=environment, capture_output=True, text=True)
    assert said.stdout.strip() == words


def test_completion_knows_every_verb() -> None:
    assert completions("runyard ") == list(COMMANDS)


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
            "21,056 trainable parameters, and model.max_parameters=10: make the network smaller",
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
