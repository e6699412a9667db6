"""Compose configuration groups and overrides into one checked Config, once at submission; jobs compose nothing."""

from __future__ import annotations

import dataclasses
import difflib
import functools
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
from runyard.installation import CONFIGS


@dataclass(frozen=True)
class Composed:
    """A configuration and the overrides that it was made from, with ``experiment=auto`` replaced by the choice.

    ``choice`` says what that is and why; "" without ``experiment=auto``.
    """

    config: Config
    values: dict[str, Any]
    overrides: list[str]
    choice: str = ""


def compose(overrides: list[str]) -> Composed:
    """Compose and check the configuration with these overrides.

    Raises:
        UserError: an unknown setting or group option, a wrong type or value, or settings that conflict.
    """
    override_values = {o.partition("=")[0]: o.partition("=")[2] for o in overrides}
    refuse_secrets(override_values, override_values, os.environ)  # before any message can contain a value
    overrides = [o for o in map(_checked_override, overrides) if o != "experiment=null"]  # null is the default
    if "experiment=auto" in overrides:
        other_overrides = [o for o in overrides if not o.startswith("experiment=")]
        picked, reason = pick_recipe(compose(other_overrides).config.cluster)
        given = {name.lstrip("+") for name in override_values}
        picked = [o for o in picked if o.partition("=")[0] == "experiment" or o.partition("=")[0] not in given]
        choice = f"experiment=auto is {' '.join(picked)} here: {reason}"
        return dataclasses.replace(compose([*picked, *other_overrides]), choice=choice)
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            composed = hydra_compose("train", overrides=overrides)
            unresolved = OmegaConf.to_container(composed)
            values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        problem = f"{error.full_key}: {str(error).splitlines()[0]}"
        raise UserError(problem, f"give it a value: {error.full_key}=VALUE") from None
    except HydraException as error:
        raise UserError(*_hydra_message(str(error))) from None
    assert isinstance(values, dict)
    assert isinstance(unresolved, dict)
    resolved = {str(k): v for k, v in values.items()}
    refuse_secrets({str(k): v for k, v in unresolved.items()}, resolved, os.environ)
    config = schema.config_from_dict(resolved)
    _check_model(config.model)
    return Composed(config, resolved, overrides)


def expand(overrides: list[str]) -> list[list[str]]:
    """Return every point of the grid that comma-separated values span; the last setting varies fastest.

    Raises:
        UserError: an override cannot be parsed.
    """
    return [list(point) for point in itertools.product(*map(_sweep_values, overrides))]


def pick_recipe(cluster: schema.ClusterConfig) -> tuple[list[str], str]:
    """Return the overrides that ``experiment=auto`` stands for where the run will train, and why."""
    on_slurm = cluster.launcher == "slurm"
    if cluster.gpus_per_node if on_slurm else gpu_count():
        return ["experiment=paper"], "the run has a GPU"
    if on_slurm or cpu_computes_bf16():
        return ["experiment=starter"], "the run has no GPU"
    return ["experiment=starter", "precision=fp32"], "no GPU, and a CPU without bf16 instructions: fp32 is faster"


def cpu_computes_bf16() -> bool:
    """Return whether this CPU has bf16 instructions. Without them a step in bf16 takes ten times as long as in fp32."""
    try:
        flags = re.search(r"^(?:flags|Features)\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return False
    return flags is not None and not {"amx_bf16", "avx512_bf16", "bf16"}.isdisjoint(flags[1].split())


def gpu_count() -> int:
    """Count the GPUs that this process may use, from the driver's files: login nodes should not import torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    present = len(list(Path("/dev").glob("nvidia[0-9]*"))) if shutil.which("nvidia-smi") else 0
    return present if visible is None else min(present, len([d for d in visible.split(",") if d.strip()]))


def visible_gpus() -> tuple[int, ...]:
    """Return the GPU numbers in CUDA_VISIBLE_DEVICES; empty if it is unset or holds no numbers.

    In a SLURM job that shares its node they may not start at 0.
    """
    device_ids = [d.strip() for d in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d.strip()]
    return tuple(map(int, device_ids)) if all(d.isdigit() for d in device_ids) else ()


@functools.cache
def config_groups() -> dict[str, list[str]]:
    """Return each configuration group with its options."""
    return {g.name: sorted(p.stem for p in g.glob("*.yaml")) for g in sorted(CONFIGS.iterdir()) if g.is_dir()}


def network_settings() -> list[str]:
    """Return the settings of all network files in configs/model, such as model.widths."""
    files = sorted((CONFIGS / "model").glob("*.yaml"))
    return list(dict.fromkeys(f"model.{key}" for file in files for key in _settings_of(file)))


def _checked_override(override: str) -> str:
    """Return the override as Hydra will read it. An unknown one is refused here, with a better message than Hydra's.

    Hydra wants ``+`` or ``++`` before a new setting. All settings exist already, so these prefixes are dropped.
    """
    name, equals, _ = override.lstrip("+").partition("=")
    if name.startswith("~"):
        raise UserError(
            f"{override}: no setting can be removed", f"give it a value, such as {name[1:] or 'epochs'}=VALUE"
        )
    if not name or not equals:
        raise UserError(f"{override or repr(override)}: expected SETTING=VALUE, as epochs=10 or model=starter")
    if name not in (known := _known_names()):
        raise UserError(schema.unknown_name_message(name, known))
    try:
        parsed = OverridesParser.create().parse_override(override.lstrip("+"))
    except HydraException:
        raise UserError(
            f"{override}: cannot be read",
            f"put a value with special characters into two kinds of quotes, such as '{name}=\"/a (1)/b\"'",
        ) from None
    if parsed.is_sweep_override():
        raise UserError(
            f"{override}: expected one value",
            "a list is written [a,b], text with a comma in quotes, and a sweep over values begins with -m",
        )
    if name in config_groups():
        return _check_options(name, parsed.value(), override.lstrip("+"))
    return override.lstrip("+")


def _sweep_values(override: str) -> list[str]:
    name = override.lstrip("+").partition("=")[0]
    try:
        parsed = OverridesParser.create().parse_override(override.lstrip("+"))
    except HydraException:
        return [_checked_override(override)]  # raises an error that says what is wrong
    if not parsed.is_sweep_override():
        return [override]
    if isinstance(parsed.value(), Glob):
        raise UserError(f"{override}: expected the values themselves, such as {name}=A,B", "glob() is not supported")
    return [f"{name}={value}" for value in parsed.sweep_string_iterator()]


@functools.cache  # every override asks
def _known_names() -> list[str]:
    known = [*schema.setting_names(schema.Config), *config_groups(), *network_settings()]
    known.remove("model.options")  # the schema's field for the settings that a network's file adds
    return known


def _check_options(group: str, value: object, override: str) -> str:
    """Return the override of a group, or refuse it if there is no such option."""
    options = config_groups().get(group, [])
    if group == "experiment":
        options = ["auto", *options]
        if value is None:
            return "experiment=null"
    for option in value if isinstance(value, list) else [value]:
        if not isinstance(option, dict) and option not in options:
            suggestions = difflib.get_close_matches(str(option), options, n=1, cutoff=0.5)
            hint = f"did you mean {group}={suggestions[0]}?" if suggestions else f"expected one of {', '.join(options)}"
            raise UserError(f"{override}: no such file under configs/{group}", hint)
    return override


def _hydra_message(message: str) -> tuple[str, str]:
    """Return Hydra's message as one line and the fix; for a setting of another network, these name that network."""
    match = re.match(r"Could not override 'model\.(\w+)'", message)
    if match is None:
        return " ".join(message.split()), ""
    owners = [p.stem for p in sorted((CONFIGS / "model").glob("*.yaml")) if match[1] in _settings_of(p)]
    return f"model.{match[1]}: the chosen network has no such setting", f"it belongs to model={' and '.join(owners)}"


def _check_model(model: schema.ModelConfig) -> None:
    """Check that a network's own settings are those of its file in configs/model, with the same types.

    Their ranges are checked by the network itself, because that needs torch.
    """
    options = config_groups()["model"]
    if model.name not in options:
        suggestions = difflib.get_close_matches(model.name, options, n=1, cutoff=0.5)
        hint = f"did you mean model={suggestions[0]}?" if suggestions else f"expected one of {', '.join(options)}"
        raise UserError(f"model.name={model.name}: no such file under configs/model", hint)
    shared = {f.name for f in dataclasses.fields(model)}
    defaults = {k: v for k, v in _settings_of(CONFIGS / "model" / f"{model.name}.yaml").items() if k not in shared}
    if model.options.keys() != defaults.keys():
        raise UserError(
            f"model.name={model.name}: the other model settings belong to another network", f"set model={model.name}"
        )
    for key, default in defaults.items():
        if not _same_type(default, value := model.options[key]):
            raise UserError(
                f"model.{key}={format_literal(value)}: expected a value like {format_literal(default)}, "
                f"its default in configs/model/{model.name}.yaml"
            )


def _same_type(default: object, value: object) -> bool:
    if isinstance(default, list) and default and isinstance(value, list):
        return all(_same_type(default[0], item) for item in value)
    if isinstance(default, float) and isinstance(value, (int, float)) and not isinstance(value, bool):
        return math.isfinite(value)
    return default is None or type(value) is type(default)


def _settings_of(path: Path) -> dict[str, object]:
    values = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}
