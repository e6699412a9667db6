"""Checks across several settings. A setting without effect is refused, not ignored. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runyard.config.cluster_validation import check_cluster
from runyard.config.data_validation import check_data
from runyard.config.fields import format_literal
from runyard.errors import UserError

if TYPE_CHECKING:
    from runyard.config.schema import AugmentConfig, Config, OptimConfig, ScheduleConfig, TrackingConfig


def check_rules(config: Config) -> None:
    """Refuse settings that conflict with each other.

    Raises:
        UserError: a setting is refused; the message names it.
    """
    c = config
    check_data(c.data)
    check_cluster(c.cluster)
    _check_optim(c.optim)
    _check_schedule(c.schedule, c.epochs)
    _check_augment(c.augment, c.data.image_size)
    _check_tracking(c.tracking)
    if c.notify.url_file is not None and c.notify.url_env is not None:
        raise UserError(f"notify.url_file={c.notify.url_file}: notify.url_env is set, too; leave one of them out")
    if c.batch_size % c.accumulate:
        raise UserError(f"batch_size={c.batch_size} does not divide by accumulate={c.accumulate}", "change one of them")
    if c.loader != "ffcv" and not c.data.arrays:
        raise UserError(
            f"loader={c.loader} reads plain arrays, and data.arrays=false", "set data.arrays=true or loader=ffcv"
        )


def check_world_size(config: Config, world_size: int) -> None:
    """Refuse a global batch that does not divide among the ranks and their micro-batches."""
    pieces = world_size * config.accumulate
    if config.batch_size % pieces:
        low = config.batch_size // pieces * pieces
        nearest = ", ".join(str(b) for b in (low, low + pieces) if b)
        raise UserError(
            f"batch_size={config.batch_size} does not divide among {world_size} ranks x {config.accumulate} "
            "micro-batches",
            f"the nearest that do are {nearest}",
        )
    micro_batch = config.batch_size // pieces
    if (config.loss.mixup_alpha or config.loss.cutmix_alpha) and micro_batch % 2:
        raise UserError(
            f"batch_size={config.batch_size}: mixup and cutmix pair the {micro_batch} images of a micro-batch",
            f"set a multiple of {2 * pieces}, for an even number",
        )


def _check_optim(optim: OptimConfig) -> None:
    _check_belongs("optim", "betas", optim.betas, optim.name, "adamw")
    _check_belongs("optim", "momentum", optim.momentum, optim.name, "sgd")
    if optim.betas is not None and (len(optim.betas) != 2 or not all(0 <= b < 1 for b in optim.betas)):
        raise UserError(
            f"optim.betas={optim.betas}: expected two numbers of at least 0 and below 1, such as [0.9,0.999]"
        )


def _check_schedule(schedule: ScheduleConfig, epochs: int) -> None:
    s = schedule
    _check_belongs("schedule", "period_epochs", s.period_epochs, s.name, "cosine_restarts")
    _check_belongs("schedule", "peak_fraction", s.peak_fraction, s.name, "one_cycle")
    if s.warmup_epochs >= epochs:
        raise UserError(f"schedule.warmup_epochs={s.warmup_epochs:g}: expected below epochs={epochs}")
    if s.name == "one_cycle" and s.warmup_epochs:
        raise UserError(
            f"schedule.warmup_epochs={s.warmup_epochs:g}: one_cycle has a warm-up of its own",
            "set schedule.peak_fraction, and warmup_epochs=0",
        )
    if s.name == "constant" and s.final_lr_fraction != 1:
        raise UserError(
            f"schedule.final_lr_fraction={s.final_lr_fraction:g}: schedule=constant has no descent", "set 1"
        )


def _check_augment(augment: AugmentConfig, image_size: int) -> None:
    a = augment
    if a.crop_padding_px >= image_size:
        raise UserError(f"augment.crop_padding_px={a.crop_padding_px}: expected below data.image_size={image_size}")
    if a.cutout_px > image_size:
        raise UserError(f"augment.cutout_px={a.cutout_px}: expected at most data.image_size={image_size}")
    if a.crop_fill == "reflect" and a.crop_padding_px == 0:
        raise UserError(
            "augment.crop_fill=reflect: has no effect, because augment.crop_padding_px=0", "set crop_fill=black"
        )
    if a.rotation_interpolation == "bilinear" and a.rotation_deg == 0:
        raise UserError(
            "augment.rotation_interpolation=bilinear: has no effect, because augment.rotation_deg=0",
            "set rotation_interpolation=nearest",
        )


def _check_tracking(tracking: TrackingConfig) -> None:
    for name in ("entity", "group", "tags"):
        if tracking.mode == "none" and (value := getattr(tracking, name)):
            raise UserError(
                f"tracking.{name}={format_literal(value)}: only W&B uses it, and tracking.mode=none",
                f"set tracking=offline, or leave tracking.{name} out",
            )


def _check_belongs(group: str, name: str, value: object, chosen: str, owner: str) -> None:
    """Check that the setting ``name`` has a value if ``group.name`` is ``owner``, and is null otherwise."""
    if value is None and chosen == owner:
        raise UserError(
            f"{group}.{name}=null: {group}={owner} needs it", "leave it out for the default, or set a number"
        )
    if value is not None and chosen != owner:
        raise UserError(
            f"{group}.{name}={format_literal(value)}: belongs to {group}={owner}, and {group}.name={chosen}",
            f"leave it out, or set {group}={owner}",
        )
