"""Configuration groups and overrides to one checked Config: composed once, here, and never again by a job."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runyard.config import schema
from runyard.config.fields import format_literal
from runyard.config.schema import Config
from runyard.config.secrets import refuse_secrets
from runyard.errors import UserError

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


@dataclass(frozen=True)
class Composed:
    """A configuration and the overrides that made it, ``experiment=auto`` replaced by what it picked."""

    config: Config
    values: dict[str, Any]
    overrides: list[str]


def compose(overrides: list[str]) -> Composed:
    """Compose and check.

    Raises:
        UserError: an unknown setting or group option, a wrong type or value, or settings at odds.
    """
    given = {o.partition("=")[0]: o.partition("=")[2] for o in overrides}
    refuse_secrets(given, given, os.environ)  # before anything can say what they are
    overrides = [
        o for o in map(_checked_override, overrides) if o != "experiment=null"
    ]  # none is what there is by default
    if "experiment=auto" in overrides:
        others = [o for o in overrides if not o.startswith("experiment=")]
        picked = f"experiment={pick_experiment(compose(others).config.cluster)}"
        overrides = [picked if o == "experiment=auto" else o for o in overrides]
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            composed = hydra_compose("train", overrides=overrides)
            asked = OmegaConf.to_container(composed)
            values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from None
    except HydraException as error:
        raise UserError(_hydra_message(str(error))) from None
    assert isinstance(values, dict)
    assert isinstance(asked, dict)
    known = {str(k): v for k, v in values.items()}
    refuse_secrets({str(k): v for k, v in asked.items()}, known, os.environ)
    config = schema.config_from_dict(known)
    _check_model(config.model)
    return Composed(config, known, overrides)


def expand(overrides: list[str]) -> list[list[str]]:
    """Every point of the grid that comma-separated values span, in the order of writing, the last setting fastest.

    Raises:
        UserError: an override that cannot be read.
    """
    return [list(point) for point in itertools.product(*map(_sweep_values, overrides))]


def pick_experiment(cluster: schema.ClusterConfig) -> str:
    """``paper`` where there will be an NVIDIA GPU, else ``starter``."""
    gpus = cluster.gpus_per_node if cluster.launcher == "slurm" else gpu_count()
    return "paper" if gpus else "starter"


def gpu_count() -> int:
    """GPUs that this process may use. Asked of the driver's files: torch is not for login nodes."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = len(list(Path("/dev").glob("nvidia[0-9]*"))) if shutil.which("nvidia-smi") else 0
    return there if visible is None else min(there, len([d for d in visible.split(",") if d.strip()]))


def visible_gpus() -> tuple[int, ...]:
    """Their numbers, where CUDA_VISIBLE_DEVICES has numbers: in a SLURM job that shares its node they may not begin
    at 0. Empty where nothing is said."""
    named = [d.strip() for d in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d.strip()]
    return tuple(map(int, named)) if all(d.isdigit() for d in named) else ()


def config_groups() -> dict[str, list[str]]:
    """Each configuration group and its options."""
    return {g.name: sorted(p.stem for p in g.glob("*.yaml")) for g in sorted(CONFIGS.iterdir()) if g.is_dir()}


def network_settings() -> list[str]:
    """The settings of every network's file, as model.widths; each file says which are its own."""
    files = sorted((CONFIGS / "model").glob("*.yaml"))
    return list(dict.fromkeys(f"model.{key}" for file in files for key in _settings_of(file)))


def _checked_override(override: str) -> str:
    """The override as Hydra shall read it, refused by name where nothing reads it; better told here than by Hydra.

    Every setting exists, so a ``+`` or ``++`` before one, as Hydra would have it for new ones, says nothing more.
    """
    name, equals, _ = override.lstrip("+").partition("=")
    if name.startswith("~"):
        raise UserError(f"{override}: no setting can be removed; give it a value, as {name[1:] or 'epochs'}=VALUE")
    if not name or not equals:
        raise UserError(f"{override or repr(override)}: expected SETTING=VALUE, as epochs=10 or model=starter")
    _check_name(name)
    try:
        read = OverridesParser.create().parse_override(override.lstrip("+"))
    except HydraException:
        raise UserError(
            f"{override}: cannot be read; put a value with special characters into two kinds of quotes, "
            f"as '{name}=\"/a (1)/b\"'"
        ) from None
    if read.is_sweep_override():
        raise UserError(
            f"{override}: expected one value; a list is written [a,b], text with a comma in quotes, "
            "and a sweep over values begins with -m"
        )
    if name in config_groups():
        return _check_options(name, read.value(), override.lstrip("+"))
    return override.lstrip("+")


def _sweep_values(override: str) -> list[str]:
    name = override.lstrip("+").partition("=")[0]
    try:
        read = OverridesParser.create().parse_override(override.lstrip("+"))
    except HydraException:
        return [_checked_override(override)]  # says what is wrong
    if not read.is_sweep_override():
        return [override]
    if isinstance(read.value(), Glob):
        raise UserError(f"{override}: expected the values, as {name}=A,B; glob() reads no folder here")
    return [f"{name}={value}" for value in read.sweep_string_iterator()]


def _check_name(name: str) -> None:
    known = [*schema.setting_names(schema.Config), *config_groups(), *network_settings()]
    known.remove("model.options")  # how the schema calls what a network's file may add
    if name not in known:
        raise UserError(schema.unknown_name_message(name, known))


def _check_options(group: str, value: Any, override: str) -> str:
    """A group's override, refused if there is no such option."""
    options = config_groups().get(group, [])
    if group == "experiment":
        options = ["auto", *options]
        if value is None:
            return "experiment=null"
    for option in value if isinstance(value, list) else [value]:
        if not isinstance(option, dict) and option not in options:
            near = difflib.get_close_matches(str(option), options, n=1, cutoff=0.5)
            hint = f"did you mean {group}={near[0]}?" if near else f"expected one of {', '.join(options)}"
            raise UserError(f"{override}: no such file under configs/{group}; {hint}")
    return override


def _hydra_message(message: str) -> str:
    """What Hydra says, in one line; of a setting that the chosen network lacks, which network has it."""
    lacking = re.match(r"Could not override 'model\.(\w+)'", message)
    if lacking is None:
        return " ".join(message.split())
    owners = [p.stem for p in sorted((CONFIGS / "model").glob("*.yaml")) if lacking[1] in _settings_of(p)]
    return f"model.{lacking[1]}: the network chosen has no such setting; it belongs to model={' and '.join(owners)}"


def _check_model(model: schema.ModelConfig) -> None:
    """A network's own settings are those of its file in configs/model, and of the types they have there.

    Their ranges are the network's own business, and it needs torch.
    """
    options = config_groups()["model"]
    if model.name not in options:
        near = difflib.get_close_matches(model.name, options, n=1, cutoff=0.5)
        hint = f"did you mean model={near[0]}?" if near else f"expected one of {', '.join(options)}"
        raise UserError(f"model.name={model.name}: no such file under configs/model; {hint}")
    shared = {f.name for f in dataclasses.fields(model)}
    defaults = {k: v for k, v in _settings_of(CONFIGS / "model" / f"{model.name}.yaml").items() if k not in shared}
    if model.options.keys() != defaults.keys():
        raise UserError(f"model.name={model.name}: the other model settings are not its own; set model={model.name}")
    for key, default in defaults.items():
        if not _same_type(default, given := model.options[key]):
            raise UserError(
                f"model.{key}={format_literal(given)}: expected a value like {format_literal(default)}, "
                f"its default in configs/model/{model.name}.yaml"
            )


def _same_type(default: Any, given: Any) -> bool:
    if isinstance(default, list) and default and isinstance(given, list):
        return all(_same_type(default[0], item) for item in given)
    if isinstance(default, float) and type(given) in (int, float):
        return math.isfinite(given)
    return default is None or type(given) is type(default)


def _settings_of(path: Path) -> dict[str, Any]:
    values = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}
