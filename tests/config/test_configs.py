"""Every shipped setting can be composed, and every composition passes the schema."""

from __future__ import annotations

import itertools
import typing
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from runyard import models
from runyard.config.schema import Config, config_from_dict, config_to_dict, read_dataclass
from runyard.errors import UserError
from tests.support.settings import ROOT

CONFIGS = ROOT / "configs"
EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
GROUPS = sorted(path.name for path in CONFIGS.iterdir() if path.is_dir() and path.name != "experiment")
OPTIONS = [(group, path.stem) for group in GROUPS for path in sorted((CONFIGS / group).glob("*.yaml"))]
SECTIONS = typing.get_type_hints(Config)


def composed(*overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        values = OmegaConf.to_container(compose("train", list(overrides)), resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def checked(*overrides: str) -> Config:
    """The composed configuration after every check that needs no data: schema, rules, and the network itself."""
    config = config_from_dict(composed(*overrides))
    models.build(config.model, 10, config.data.image_size)
    return config


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_passes(experiment: str) -> None:
    config = checked(f"experiment={experiment}")
    assert config.name == experiment
    assert config_from_dict(config_to_dict(config)) == config


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=lambda value: value)
def test_every_option_of_every_group_composes_and_passes(group: str, option: str) -> None:
    checked(f"{group}={option}")


@pytest.mark.parametrize("schedule", [option for group, option in OPTIONS if group == "schedule"])
@pytest.mark.parametrize("optim", [option for group, option in OPTIONS if group == "optim"])
def test_every_optimiser_goes_with_every_schedule(optim: str, schedule: str) -> None:
    checked(f"optim={optim}", f"schedule={schedule}")


def test_a_broken_experiment_would_be_caught() -> None:
    with pytest.raises(UserError, match="unknown setting epohcs"):
        config_from_dict(composed("+epohcs=3"))
    with pytest.raises(UserError, match=r"optim\.lr=-1"):
        config_from_dict(composed("optim.lr=-1"))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiments_header_says_accuracy_time_hardware_and_command(experiment: str) -> None:
    lines = (CONFIGS / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    header = "\n".join(itertools.takewhile(lambda line: line.startswith("#"), lines))
    for word in ("accuracy", "time", "GPU", f"experiment={experiment}"):
        assert word in header


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=lambda value: value)
def test_a_group_holds_every_setting_of_its_section_and_no_more(group: str, option: str) -> None:
    """An option that builds on another (``defaults``) is completed by it; any other can be read alone."""
    values = yaml.safe_load((CONFIGS / group / f"{option}.yaml").read_text())
    if "defaults" not in values:
        read_dataclass(SECTIONS[group], values)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("schedule=one_cycle schedule.warmup_epochs=1", "one_cycle has a warm-up of its own"),
        ("schedule=constant schedule.final_lr_fraction=0.5", "has no descent"),
        ("schedule=cosine schedule.period_epochs=3", "belongs to schedule=cosine_restarts"),
        ("schedule=cosine schedule.peak_fraction=0.3", "belongs to schedule=one_cycle"),
        ("optim=sgd optim.betas=[0.9,0.9]", "belongs to optim=adamw"),
        ("optim=adamw optim.momentum=0.9", "belongs to optim=sgd"),
    ],
)
def test_a_setting_that_another_makes_meaningless_is_refused(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config_from_dict(composed(*override.split()))
