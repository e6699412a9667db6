"""What every test may count on: where the checkout is, the settings of a small run, how long to wait at most."""

from __future__ import annotations

import functools
import json
from pathlib import Path

from runyard.config.schema import Config, config_from_dict

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 900.0  # guards against hangs alone: no test may depend on how fast the machine is
SMALL_DATA = ("data=synthetic", "data.samples=[256,100]", "data.num_classes=4", "data.image_size=16")
SMALL = (
    *SMALL_DATA,
    "model=starter",
    "model.widths=[16,32]",
    "optim=sgd",
    "optim.lr=0.05",
    "schedule=one_cycle",
    "augment.crop_padding_px=2",
    "loader=resident",
    "tracking=none",
    "epochs=3",
    "batch_size=32",
    "eval_batch_size=33",
    "report=false",
)


def compose(*overrides: str) -> Config:
    """The configuration that ``runyard submit OVERRIDES`` would freeze, made by Hydra itself and then checked."""
    return config_from_dict(json.loads(_composed(overrides)))


@functools.cache  # a sixth of a second, and many tests want the same
def _composed(overrides: tuple[str, ...]) -> str:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from omegaconf import OmegaConf

    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return json.dumps(OmegaConf.to_container(hydra_compose("train", overrides=list(overrides)), resolve=True))
