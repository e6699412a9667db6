"""What is typed for a text setting stays text, here and in a profile; what cannot be read is one line."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from runyard import installation
from runyard.config import compose as composing
from runyard.config import yaml_texts
from runyard.config.compose import compose, compose_grid, expand
from runyard.errors import UserError
from runyard.installation import CONFIGS


@pytest.mark.parametrize("typed", ["2024_07", "007", "1e5", "true", "0123", "12", "1.50", "9" * 5000])
def test_text_is_what_was_typed_and_a_number_is_still_a_number(typed: str) -> None:
    made = compose(["cluster=slurm", f"name={typed}", f"cluster.account={typed}", f"tracking.tags=[{typed},b]"])
    assert (made.config.name, made.config.cluster.account, made.config.tracking.tags) == (typed, typed, [typed, "b"])
    again = compose(made.overrides).config
    assert again == made.config, "what is recorded is read the same"
    assert compose(["seed=1_0"]).config.seed == 10, "the control"
    assert compose(["cluster=slurm", "cluster.account=null"]).config.cluster.account is None


def test_text_in_a_grid_is_text() -> None:
    assert [p.config.name for p in compose_grid(["name=007,008,1e3"])] == ["007", "008", "1e3"]


@pytest.fixture
def profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """configs/ with a profile of one's own, cluster=mine."""
    configs = tmp_path / "configs"
    shutil.copytree(CONFIGS, configs)
    for module in (composing, yaml_texts, installation):
        monkeypatch.setattr(module, "CONFIGS", configs)
    composing.config_groups.cache_clear()
    mine = configs / "cluster" / "mine.yaml"
    mine.write_text("defaults: [slurm, _self_]\nname: mine\n")
    yield mine
    composing.config_groups.cache_clear()


def in_profile(profile: Path, lines: str, *overrides: str) -> Any:
    profile.write_text(f"defaults: [slurm, _self_]\nname: mine\n{lines}\n")
    return compose(["cluster=mine", *overrides]).config.cluster


def test_text_in_a_profile_is_what_stands_there(profile: Path) -> None:
    made = in_profile(
        profile, "account: 2024_07\nqos: 1e5\npartition: 0123\ncomment: on\nextra: {reservation: 0123, hold: on}"
    )
    assert (made.account, made.qos, made.partition, made.comment) == ("2024_07", "1e5", "0123", "on")
    assert made.extra == {"reservation": "0123", "hold": True}
    assert yaml.safe_load("0123") == 83, "the control"
    assert in_profile(profile, "account: 2024_07", "cluster.account=lab").account == "lab"
    other = profile.with_name("another.yaml")
    texts = "account: 0123\ntime: 1:30\nextra: {reservation: 0123}\n"
    other.write_text(f"defaults: [slurm, _self_]\nname: another\n{texts}")
    made = in_profile(profile, "account: 83\ntime: 90\nextra: {reservation: 83}")
    assert (made.account, made.timeout_min, made.extra) == ("83", 90, {"reservation": "83"}), "as this file has it"
    profile.write_text("defaults: [another, _self_]\nname: mine\nextra: {licenses: 1_0}\n")
    made = compose(["cluster=mine"]).config.cluster
    assert (made.account, made.timeout_min) == ("0123", 2), "as the one below it has it"
    assert made.extra == {"reservation": "0123", "licenses": "1_0"}


def test_a_time_limit_in_sbatchs_way_is_the_same_fact(profile: Path) -> None:
    for typed, minutes in (
        ("2-00:00:00", 2880),
        ("12:30:00", 750),
        ("90", 90),
        ("1-12", 2160),
        ("90:01", 91),
        ("1-0:5", 1445),
    ):
        assert compose(["cluster=slurm", f"cluster.time={typed}"]).config.cluster.timeout_min == minutes
    assert in_profile(profile, "time: 90:01").timeout_min == 91
    assert in_profile(profile, "time: 90:01", "cluster.timeout_min=7").timeout_min == 7, "the command line wins"
    assert compose(["cluster=slurm", "cluster.time=90", "cluster.timeout_min=90"]).config.cluster.timeout_min == 90
    with pytest.raises(
        UserError, match=r"cluster\.time=2-0: 2880 min, and cluster\.timeout_min=5: two time limits; leave"
    ):
        compose(["cluster=slurm", "cluster.time=2-0", "cluster.timeout_min=5"])
    with pytest.raises(UserError, match=r"mine\.yaml: time and timeout_min are two time limits"):
        in_profile(profile, "time: 2-0\ntimeout_min: 5")
    with pytest.raises(UserError, match="expected a time as sbatch's"):
        compose(["cluster=slurm", "cluster.time=UNLIMITED"])


@pytest.mark.parametrize(("override", "said"), [
    ("seed=range(5,1)", "holds no value; give one that does"),
    ("seed=range(0,1,0)", "holds no value"),
    ("seed=range(0,1,nan)", "holds no value"),
    ("seed=range(0,1000000000)", "holds 1,000,000,000 values; at most 10,000"),
    ("seed=shuffle(range(0,1000000000))", "holds 1,000,000,000 values"),
    ("optim.lr=range(0,1,1e-300)", "holds over 1,000,000,000,000 values; at most 10,000"),
    ("seed=interval(0,1)", "expected the values themselves"),
    ("seed=" + "9" * 5000, "(5005 characters): cannot be read; expected a shorter number"),
    ("tracking.tags=" + "[" * 3000, "cannot be read"),
    ("seed=(", "cannot be read; put a value with special characters"),
])  # fmt: skip
def test_a_grid_that_is_none_is_one_short_line(override: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        expand([override])
    assert said in str(error.value)
    assert len(str(error.value)) < 300


def test_what_is_nested_too_deeply_is_one_line() -> None:
    with pytest.raises(UserError, match="too deeply nested"):
        compose(["tracking.tags=" + "[" * 150 + "]" * 150])


def test_a_grid_of_more_points_than_a_person_can_mean_is_refused_at_once() -> None:
    with pytest.raises(UserError, match="a grid of 1,002,001 points: expected 10,000 at most"):
        expand(["seed=range(0,1001)", "epochs=range(1,1002)"])
    assert len(expand(["seed=range(0,1001)"])) == 1001, "the control"
    assert expand(["optim.lr=range(0.1,0.3,0.1)"]) == [["optim.lr=0.1"], ["optim.lr=0.2"]]


def test_the_points_of_a_grid_are_those_that_each_would_be_by_itself(profile: Path) -> None:
    """Only the first is composed by Hydra; not where a group changes, or what another setting refers to."""
    profile.write_text("defaults: [slurm, _self_]\nname: mine\nmem_gb: ${epochs}\n")
    for words in (
        ["experiment=auto", "seed=0,1", "optim.lr=1e-3,0.1", "name=007,x"],
        ["experiment=starter", "model.widths=[16,32],[8,16]", "tracking.tags=[a],[b,1]"],
        ["optim=sgd,adamw", "seed=3"],
        ["cluster=mine", "epochs=5,9"],
    ):
        assert compose_grid(words) == [compose(point) for point in expand(words)]
    with pytest.raises(UserError, match="epochs=0"):
        compose_grid(["epochs=1,0"])
