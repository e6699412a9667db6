"""Compose configuration groups and overrides into one checked Config, once at submission; jobs compose nothing."""

from __future__ import annotations

import copy
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
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runyard.config import schema
from runyard.config.fields import format_literal
from runyard.config.overrides import (
    MAX_POINTS,
    TIME_SETTING,
    TIMEOUT_SETTING,
    as_typed,
    in_mapping,
    minutes_of,
    name_of,
    parse_override,
    points,
    translate_time,
)
from runyard.config.schema import Config
from runyard.config.secrets import refuse_secrets
from runyard.config.yaml_texts import restore_texts
from runyard.errors import UserError
from runyard.installation import CONFIGS, cluster_profiles, own_configs


@dataclass(frozen=True)
class Composed:
    """A configuration and the overrides that it was made from, with ``experiment=auto`` replaced by the choice.

    ``choice`` says what that is and why; "" without ``experiment=auto``. ``references`` are the values that refer to
    other settings.
    """

    config: Config
    values: dict[str, Any]
    overrides: list[str]
    choice: str = ""
    references: str = ""


def compose(overrides: list[str]) -> Composed:
    """Compose and check the configuration with these overrides.

    Raises:
        UserError: an unknown setting or group option, a wrong type or value, or settings that conflict.
    """
    override_values = {o.partition("=")[0]: o.partition("=")[2] for o in overrides}
    refuse_secrets(override_values, override_values, os.environ)  # before any message can contain a value
    overrides = [
        o for o in map(_checked_override, translate_time(overrides)) if o != "experiment=null"
    ]  # null is the default
    if "experiment=auto" in overrides:
        other_overrides = [o for o in overrides if not o.startswith("experiment=")]
        picked, reason = pick_recipe(compose(other_overrides).config.cluster)
        given = {name.lstrip("+") for name in override_values}
        picked = [o for o in picked if o.partition("=")[0] == "experiment" or o.partition("=")[0] not in given]
        choice = f"experiment=auto is {' '.join(picked)} here: {reason}"
        return dataclasses.replace(compose([*picked, *other_overrides]), choice=choice)
    try:
        composed = _compose_files([o for o in overrides if name_of(o) in config_groups()])
        for override in overrides:
            if name_of(override) not in config_groups():
                _update(composed, override)
        unresolved = OmegaConf.to_container(composed)
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        problem = f"{error.full_key}: {str(error).splitlines()[0]}"
        raise UserError(problem, f"give it a value: {error.full_key}=VALUE") from None
    except HydraException as error:
        raise UserError(" ".join(str(error).split())) from None
    except RecursionError:
        raise UserError("a setting's brackets are too deeply nested", "give it a plain value") from None
    assert isinstance(values, dict)
    assert isinstance(unresolved, dict)
    resolved = {str(k): v for k, v in values.items()}
    refuse_secrets({str(k): v for k, v in unresolved.items()}, resolved, os.environ)
    _time_of_profile(resolved, {name_of(override) for override in overrides})
    config = schema.config_from_dict(resolved)
    _check_model(config.model)
    return Composed(config, resolved, overrides, references=_references(unresolved))


def expand(overrides: list[str]) -> list[list[str]]:
    """Return every point of the grid that comma-separated values span; the last setting varies fastest.

    Raises:
        UserError: an override cannot be parsed.
    """
    dimensions = [points(override) for override in map(_named, overrides)]
    if (count := math.prod(map(len, dimensions))) > MAX_POINTS:
        raise UserError(f"a grid of {count:,} points: expected {MAX_POINTS:,} at most", "submit it in parts")
    return [list(point) for point in itertools.product(*dimensions)]


def compose_grid(overrides: list[str]) -> list[Composed]:
    """Compose every point of the grid, in the order of ``expand``.

    Those that differ from the first in plain settings alone are made from it, which is ten times as fast.

    Raises:
        UserError: as ``compose`` and ``expand`` do.
    """
    grid = expand(overrides)
    first = compose(grid[0])
    return [first, *(_varied(first, grid[0], point) for point in grid[1:])]


def _varied(first: Composed, first_point: list[str], point: list[str]) -> Composed:
    """Return what ``compose(point)`` returns, made from ``first`` where a plain setting is all that differs."""
    values, overrides = copy.deepcopy(first.values), first.overrides
    for old, new in zip(first_point, point, strict=True):
        if old == new:
            continue
        *groups, leaf = (name := name_of(new)).split(".")
        if name not in schema.SETTINGS or groups == ["cluster"] or leaf in first.references or "$" in new:
            return compose(point)
        parsed = parse_override(new)
        value, typed = parsed.value(), as_typed(new, parsed)
        refuse_secrets({name: value}, {name: value}, os.environ)
        functools.reduce(dict.__getitem__, groups, values)[leaf] = value
        overrides = [typed if name_of(override) == name else override for override in overrides]
    return dataclasses.replace(first, config=schema.config_from_dict(values), values=values, overrides=overrides)


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
    groups = {g.name: sorted(p.stem for p in g.glob("*.yaml")) for g in sorted(CONFIGS.iterdir()) if g.is_dir()}
    return groups | {"cluster": sorted({file.stem for file in cluster_profiles()})}


def network_settings() -> list[str]:
    """Return the settings of all network files in configs/model, such as model.widths."""
    files = sorted((CONFIGS / "model").glob("*.yaml"))
    return list(dict.fromkeys(f"model.{key}" for file in files for key in _settings_of(file)))


def _compose_files(choices: list[str]) -> DictConfig:
    """Compose the files that the overrides of groups choose, by Hydra: again only after a file of configs changed."""
    files = [*CONFIGS.rglob("*.yaml"), *cluster_profiles()]
    versions = frozenset((file, (found := file.stat()).st_mtime_ns, found.st_size) for file in files)
    return copy.deepcopy(_composed_files((*_search_path(choices), *choices), versions))


@functools.lru_cache(maxsize=64)  # Hydra takes a tenth of a second
def _composed_files(choices: tuple[str, ...], versions: frozenset[tuple[Path, int, int]]) -> DictConfig:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        values = OmegaConf.to_container(hydra_compose("train", overrides=list(choices)))
        assert isinstance(values, dict)
        restore_texts(values, list(choices))
    return OmegaConf.create(values, flags={"struct": True})


def _update(composed: DictConfig, override: str) -> None:
    """Give a setting of ``composed`` the value of the override."""
    name = name_of(override)
    group, _, key = name.partition(".")
    if group == "model" and key not in composed.model:
        owners = [p.stem for p in sorted((CONFIGS / "model").glob("*.yaml")) if key in _settings_of(p)]
        problem = f"{name}: the chosen network has no such setting"
        raise UserError(problem, f"it belongs to model={' and '.join(owners)}")
    OmegaConf.update(composed, name, parse_override(override).value(), merge=True, force_add=in_mapping(name))


def _search_path(overrides: list[str]) -> list[str]:
    """Return the override that has Hydra look for a cluster profile in the working folder, too, where one is named."""
    own, names = own_configs(), [o.partition("=")[2] for o in overrides if o.startswith("cluster=")]
    if own is None or all((CONFIGS / "cluster" / f"{name}.yaml").exists() for name in names):
        return []
    quoted = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + "\\'" * bool(m[2]), f"file://{own}")
    return [f"hydra.searchpath=['{quoted}']"]


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
    if name not in (known := _known_names()) and not in_mapping(name):
        raise UserError(schema.unknown_name_message(name, known))
    parsed = parse_override(override)
    if parsed.is_sweep_override():
        raise UserError(
            f"{override}: expected one value",
            "a list is written [a,b], text with a comma in quotes, and a sweep over values begins with -m",
        )
    if name in config_groups():
        return _check_options(name, parsed.value(), override.lstrip("+"))
    return as_typed(override, parsed)


@functools.cache  # every override asks
def _known_names() -> list[str]:
    known = [*schema.setting_names(schema.Config), *config_groups(), *network_settings()]
    known.remove("model.options")  # the schema's field for the settings that a network's file adds
    return known


def _named(override: str) -> str:
    """Return the override if it gives a known name a value; else raise the error that says what is wrong."""
    name = name_of(override)
    known = name in _known_names() or name == TIME_SETTING or in_mapping(name)
    return override if known and "=" in override else _checked_override(override)


def _references(values: object) -> str:
    """Return all texts that refer to other settings, as one."""
    if isinstance(values, dict | list):
        return " ".join(filter(None, map(_references, values.values() if isinstance(values, dict) else values)))
    return values if isinstance(values, str) and "${" in values else ""


def _time_of_profile(values: dict[str, Any], overridden: set[str]) -> None:
    """Make ``cluster.timeout_min`` of a profile's ``time``, unless the command line gives a time limit.

    Raises:
        UserError: the profile gives both, and they differ.
    """
    time = values["cluster"].pop("time", None) if isinstance(values.get("cluster"), dict) else None
    if time is None or TIMEOUT_SETTING in overridden:
        return
    minutes = minutes_of(str(time), f"{TIME_SETTING}={time}")
    for file in cluster_profiles():
        given = _settings_of(file)
        if "time" in given and given.get("timeout_min", minutes) != minutes and values["cluster"]["name"] == file.stem:
            raise UserError(f"{file}: time and timeout_min are two time limits", "leave one out")
    values["cluster"]["timeout_min"] = minutes


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
                f"model.{key}={format_literal(value, is_text=False)}: expected a value like {format_literal(default)}, "
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
