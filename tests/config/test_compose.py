"""Overrides become one checked configuration, and what this machine cannot carry is refused before anything is made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from runyard.cli.completion import completions
from runyard.cli.main import main
from runyard.cluster.launch import submit
from runyard.config import compose as composing
from runyard.config.compose import compose
from runyard.config.schema import Config
from runyard.errors import UserError
from tests.support.settings import SMALL


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """``gpus(4)``: this machine shows four."""

    def show(count: int) -> None:
        monkeypatch.setattr(composing, "gpu_count", lambda: count)
        monkeypatch.setattr(submit, "gpu_count", lambda: count)

    return show


@pytest.mark.parametrize(
    ("count", "cpu", "picked"),
    [
        (0, "flags\t: fpu amx_bf16", ["experiment=starter"]),
        (0, "flags\t: fpu avx512_bf16 avx2", ["experiment=starter"]),
        (0, "Features\t: fp asimd bf16", ["experiment=starter"]),
        (0, "flags\t: fpu avx2 avx512f\nbugs: amx_bf16", ["experiment=starter", "precision=fp32"]),
        (1, "flags\t: fpu avx2", ["experiment=paper"]),
        (8, "flags\t: fpu avx2", ["experiment=paper"]),
    ],
)
def test_auto_is_the_paper_with_a_gpu_and_without_the_starter_in_the_precision_that_the_cpu_computes(
    gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, count: int, cpu: str, picked: list[str]
) -> None:
    gpus(count)
    read = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda self, *a, **kw: cpu if str(self) == "/proc/cpuinfo" else read(self, *a, **kw)
    )
    composed = compose(["experiment=auto", "epochs=3"])
    assert composed.config == compose([*picked, "epochs=3"]).config
    assert composed.overrides == [*picked, "epochs=3"], "a run must say what auto picked"
    assert " ".join(picked) in composed.choice
    assert compose(["experiment=auto", "precision=bf16"]).config.precision == "bf16", "what a person asks for"


def test_gpus_are_counted_among_the_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composing.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter([Path("/dev/nvidia0"), Path("/dev/nvidia1")]))
    for visible, count in ((None, 2), ("1", 1), ("0,1,2", 2), ("", 0)):
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert composing.gpu_count() == count


@pytest.mark.parametrize(("said", "numbers"), [("2, 3", (2, 3)), ("", ()), (None, ()), ("GPU-5ec7,GPU-e75e", ())])
def test_a_job_that_was_given_the_second_half_of_a_node_trains_on_that(
    monkeypatch: pytest.MonkeyPatch, said: str | None, numbers: tuple[int, ...]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if said is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", said)
    assert composing.visible_gpus() == numbers


def test_no_experiment_can_be_said_in_words() -> None:
    assert compose(["experiment=null", "epochs=3"]).config == compose(["epochs=3"]).config


def test_the_printed_configuration_composes_back_to_itself(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ["experiment=starter", "optim.lr=0.3", "data=synthetic", "tracking.tags=[a,b]"]
    assert main(["submit", "--cfg", "job", *overrides]) == 0
    printed = capsys.readouterr().out
    values = yaml.safe_load(printed)
    assert values == compose(overrides).values
    groups = {name: values[name]["name"] for name in ("data", "model", "optim", "schedule")}
    named = {f"{group}.name" for group in groups}
    leaves = [f"{name}={json.dumps(value)}" for name, value in flat(values) if name not in named]
    again = compose([f"{group}={option}" for group, option in groups.items()] + leaves)
    assert again.values == values


def flat(values: dict[str, object], path: str = "") -> list[tuple[str, object]]:
    pairs = []
    for name, value in values.items():
        pairs += flat(value, f"{path}{name}.") if isinstance(value, dict) else [(path + name, value)]
    return pairs


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("runyard su", ["submit"]),
        ("runyard submit experiment=st", ["experiment=starter", "experiment=strong"]),
        ("runyard submit sched", ["schedule="]),
        ("runyard submit loader=r", ["loader=resident"]),
        ("runyard submit channels_last=", ["channels_last=true", "channels_last=false"]),
        ("runyard submit optim.grad", ["optim.grad_clip_norm="]),
        ("runyard submit nothing_such", []),
    ],
)
def test_tab_completes_verbs_groups_settings_and_values(line: str, wanted: list[str]) -> None:
    got = completions(line)
    assert [w for w in got if w in wanted] == wanted or (not wanted and not got)
    assert not wanted or all(g.startswith(line.rpartition(" ")[2]) for g in got)


def test_tab_completes_runs_newest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("20260101-a", "20260102-b", ".making-c"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "run.json").touch()
    assert completions("runyard resume ") == ["@last", "20260102-b", "20260101-a"]
    assert completions("runyard resume 20260101") == ["20260101-a"]


LOCAL = compose(["cluster=local"]).config.cluster


@pytest.mark.parametrize(
    ("there", "changed", "wanted"),
    [
        (0, {}, (2, 0)),
        (1, {}, (1, 1)),
        (4, {}, (4, 4)),
        (4, {"gpus_per_node": 2}, (2, 2)),
        (4, {"gpus_per_node": 0}, (2, 0)),
        (2, {"tasks_per_node": 4}, (4, 2)),
        (0, {"tasks_per_node": 1}, (1, 0)),
    ],
)
def test_there_is_one_task_per_gpu_or_two_without(
    gpus: Callable[[int], None], there: int, changed: dict[str, int], wanted: tuple[int, int]
) -> None:
    gpus(there)
    assert submit.tasks_and_gpus(replace(LOCAL, **changed)) == wanted


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"gpus_per_node": 3}, "gpus_per_node=3: "),
        ({"nodes": 2}, "nodes=2"),
        ({"tasks_per_node": 3}, "tasks_per_node=3: "),
    ],
)
def test_a_layout_this_machine_has_not_is_refused(
    gpus: Callable[[int], None], changed: dict[str, int], named: str
) -> None:
    gpus(2)
    with pytest.raises(UserError, match=named):
        submit.tasks_and_gpus(replace(LOCAL, **changed))


def test_a_time_limit_leaves_time_to_save() -> None:
    with pytest.raises(UserError, match=r"cluster\.timeout_min"):
        compose(["cluster.timeout_min=1"])


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (["batch_size=33"], "batch_size=33 "),
        (["batch_size=512"], "batch_size=512: "),
        (["precision=fp16"], "precision=fp16 needs a GPU"),
        (["data.samples=[256,99]"], "runyard prepare"),
        (["cluster.nodes=2"], "nodes=2"),
    ],
)
def test_what_cannot_train_is_refused_before_anything_is_made(
    gpus: Callable[[int], None], data_root: Path, tmp_path: Path, changed: list[str], named: str
) -> None:
    gpus(0)
    with pytest.raises(UserError, match=named):
        submit.plan_submission([*SMALL, f"data.root={data_root}", f"runs_dir={tmp_path / 'runs'}", *changed])
    assert not list(tmp_path.glob("runs/*"))


def test_a_truncated_data_set_is_refused_by_its_file(
    data_root: Path, tmp_path: Path, make_config: Callable[..., Config]
) -> None:
    copy = shutil.copytree(data_root, tmp_path / "data")
    beton = next(copy.glob("*/test.beton"))
    beton.write_bytes(beton.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"test\.beton"):
        submit.preflight(
            submit.check_context([make_config(*SMALL, f"data.root={copy}", f"runs_dir={tmp_path}")], "prepare")
        )


def test_a_full_disk_is_refused(
    data_root: Path, tmp_path: Path, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(*SMALL, f"data.root={data_root}", f"runs_dir={tmp_path}")
    submit.preflight(submit.check_context([config], "prepare"))
    usage = shutil.disk_usage(tmp_path)._replace(free=10**6)
    monkeypatch.setattr(submit.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match="1 MB free"):
        submit.preflight(submit.check_context([config], "prepare"))
