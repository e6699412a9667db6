"""Checks across the data settings. A setting without effect is refused, not ignored. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runyard.config.fields import format_literal
from runyard.errors import UserError

if TYPE_CHECKING:
    from runyard.config.schema import DataConfig

CIFAR_SIZE = 32


def check_data(data: DataConfig) -> None:
    """Refuse settings that conflict with each other.

    Raises:
        UserError: a setting is refused; the message names it.
    """
    kind, is_imagefolder = f"data.kind={data.kind}", data.kind == "imagefolder"
    if (data.jpeg_quality is not None) != (data.write_mode == "jpg"):
        raise UserError(
            f"data.jpeg_quality={format_literal(data.jpeg_quality)}: data.write_mode={data.write_mode}",
            "jpg needs a quality from 1 to 100, raw needs null",
        )
    if data.kind.startswith("cifar") and data.image_size != CIFAR_SIZE:
        raise UserError(f"data.image_size={data.image_size}: {kind} has images of {CIFAR_SIZE} px", f"set {CIFAR_SIZE}")
    if data.max_resolution is not None and not is_imagefolder:
        raise UserError(
            f"data.max_resolution={data.max_resolution}: belongs to data.kind=imagefolder, and {kind}",
            "set data.max_resolution=null",
        )
    if data.max_resolution is not None and data.max_resolution < data.image_size:
        raise UserError(
            f"data.max_resolution={data.max_resolution}: below data.image_size={data.image_size}",
            "raise it, or set null",
        )
    for name, value in (("odd_images", data.odd_images), ("broken_images", data.broken_images)):
        if value != "refuse" and not is_imagefolder:
            raise UserError(
                f"data.{name}={value}: belongs to data.kind=imagefolder, and {kind}", f"set data.{name}=refuse"
            )
    if data.test_fraction and not is_imagefolder:
        raise UserError(
            f"data.test_fraction={data.test_fraction}: belongs to data.kind=imagefolder, and {kind} has a test split",
            "set data.test_fraction=0",
        )
    if data.split_seed and not data.validation_fraction and not data.test_fraction:
        raise UserError(
            f"data.split_seed={data.split_seed}: nothing is held out, because data.validation_fraction=0",
            "raise that, or set data.split_seed=0",
        )
    _check_source(data, kind)


def _check_source(data: DataConfig, kind: str) -> None:
    allowed = {
        "cifar10": ["disk", "torchvision", "npm"],
        "cifar100": ["disk", "torchvision"],
        "imagefolder": ["disk"],
        "synthetic": [],
    }[data.kind]
    for source in data.sources:
        if source not in allowed:
            raise UserError(
                f"data.sources: {source} is not a source of {kind}", f"expected {', '.join(allowed) or 'none: []'}"
            )
    if allowed and not data.sources:
        raise UserError(f"data.sources=[]: {kind} needs at least one of {', '.join(allowed)}")
    if data.path is not None and "disk" not in data.sources:
        raise UserError(
            f"data.path={data.path}: read by the source disk only, which is not in data.sources={data.sources}",
            "set data.path=null",
        )
    synthetic = data.kind == "synthetic"
    for name, value in (("samples", data.samples), ("num_classes", data.num_classes)):
        if value is None and synthetic:
            raise UserError(f"data.{name}=null: data.kind=synthetic needs this number", "set it")
        if value is not None and not synthetic:
            raise UserError(f"data.{name}={value}: belongs to data.kind=synthetic, and {kind}", f"set data.{name}=null")
    if data.samples is not None and data.num_classes is not None:
        if len(data.samples) != 2 or min(data.samples) < 1:
            raise UserError(
                f"data.samples={data.samples}: expected two whole numbers of at least 1, training and "
                "test, such as [512,256]"
            )
        if data.samples[0] < data.num_classes:
            raise UserError(
                f"data.samples={data.samples}: fewer training images than data.num_classes={data.num_classes}",
                "raise one or lower the other",
            )
