"""What every test may count on: where the checkout is, the settings of a small run, how long to wait at most."""

from __future__ import annotations

from pathlib import Path

from runyard.config.schema import Config

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
    """The configuration that ``runyard submit OVERRIDES`` would freeze."""
    from runyard.config.compose import compose as composed

    return composed(list(overrides)).config
