"""Configuration groups and overrides to one checked Config: composed once, here, and never again by a job."""

from __future__ import annotations

import difflib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from runyard import config as schema
from runyard.config import Config
from runyard.errors import UserError

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


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
    overrides = [f"experiment={pick_experiment()}" if o == "experiment=auto" else o for o in overrides]
    overrides = [o for o in overrides if o != "experiment=null"]  # none, as by default; Hydra cannot be told so
    for override in overrides:
        if "=" not in override and not override.startswith("~"):
            raise UserError(f"{override}: expected SETTING=VALUE, as epochs=10 or model=starter")
        _check_name(override)
    try:
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            values = OmegaConf.to_container(
                hydra_compose("train", overrides=overrides), resolve=True, throw_on_missing=True
            )
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(" ".join(str(error).split())) from None
    assert isinstance(values, dict)
    known = {str(k): v for k, v in values.items()}
    _check_model_types(known, overrides)
    return Composed(schema.from_dict(known), known, overrides)


def pick_experiment() -> str:
    """``paper`` where there is an NVIDIA GPU, else ``starter``."""
    return "paper" if gpu_count() else "starter"


def gpu_count() -> int:
    """GPUs that this process may use. Asked of the driver's files: torch is not for login nodes."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = len(list(Path("/dev").glob("nvidia[0-9]*"))) if shutil.which("nvidia-smi") else 0
    return there if visible is None else min(there, len([d for d in visible.split(",") if d.strip()]))


def groups() -> dict[str, list[str]]:
    """Each configuration group and its options."""
    return {g.name: sorted(p.stem for p in g.glob("*.yaml")) for g in sorted(CONFIGS.iterdir()) if g.is_dir()}


def _check_name(override: str) -> None:
    """Refuse a name that nothing reads, with the nearest that exists; better told here than by Hydra."""
    name = override.partition("=")[0].lstrip("+~").partition("@")[0]
    options = groups()
    if name in options:
        value = override.partition("=")[2]
        if value and value not in options[name] and not value.startswith(("[", "{")):
            near = difflib.get_close_matches(value, options[name], n=1, cutoff=0.5)
            hint = f"did you mean {name}={near[0]}?" if near else f"there are {', '.join(options[name])}"
            raise UserError(f"{name}={value}: no such file under configs/{name}; {hint}")
        return
    known = schema.names(schema.Config) + list(options)
    if name.startswith("model.") and name not in known:
        known += [f"model.{key}" for p in (CONFIGS / "model").glob("*.yaml") for key in _settings_of(p)]
    if name not in known:
        raise UserError(schema.unknown(name, [k for k in known if k != "model.options"]))


def _check_model_types(values: dict[str, Any], overrides: list[str]) -> None:
    """A network's own settings keep the type that its file in configs/model gives them."""
    name = values["model"]["name"]
    path = CONFIGS / "model" / f"{name}.yaml"
    if not path.exists():
        return
    for key, default in _settings_of(path).items():
        given = values["model"].get(key)
        same = type(given) is type(default) or (isinstance(default, float) and type(given) is int)
        if default is not None and not same:
            raise UserError(
                f"model.{key}={given}: expected a value like {default}, its default in configs/model/{name}.yaml"
            )


def _settings_of(path: Path) -> dict[str, Any]:
    values = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}
