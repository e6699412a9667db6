"""The networks, one per file. ``model.name`` is the name of the file; to add a network, add a file.

A file has ``Options`` (a dataclass of the settings next to ``name``) and ``build(options, num_classes, image_size)``.
A network takes normalized float images [b, 3, S, S] and returns logits [b, num_classes]. It may have
``init_from_data(images)``, which is called once before the first step with some thousand normalized training images,
and a ``description``, which is told at each start.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil

from torch import nn

from runyard.config.schema import ModelConfig, read_dataclass
from runyard.errors import UserError


def model_names() -> list[str]:
    """Return the names of all networks, without importing any."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "summary" and not m.ispkg)


def build(config: ModelConfig, num_classes: int, image_size: int) -> nn.Module:
    """Build the network that ``config`` names on the default device, with initial weights from torch's generator.

    Raises:
        UserError: an unknown name or option, an option out of range, or more parameters than ``max_parameters``.
    """
    if config.name not in model_names():
        suggestions = difflib.get_close_matches(config.name, model_names(), n=1, cutoff=0.5)
        hint = f"did you mean {suggestions[0]}?" if suggestions else f"known: {', '.join(model_names())}"
        raise UserError(f"model.name={config.name}: there is no such file in runyard/models", hint)
    module = importlib.import_module(f"runyard.models.{config.name}")
    options = read_dataclass(module.Options, config.options, "model.")
    try:
        network: nn.Module = module.build(options, num_classes, image_size)
    except (RuntimeError, MemoryError) as error:  # torch raises RuntimeError if it cannot allocate memory
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        raise UserError(
            f"model.name={config.name}: these settings make a network that does not fit into memory",
            f"make it smaller ({', '.join(f'model.{name}' for name in config.options)})",
        ) from None
    count = trainable_parameters(network)
    if config.max_parameters is not None and count > config.max_parameters:
        raise UserError(
            f"model.name={config.name} has {count:,} trainable parameters, but model.max_parameters="
            f"{config.max_parameters:,}",
            "make the network smaller, or raise model.max_parameters",
        )
    return network


def trainable_parameters(network: nn.Module) -> int:
    """Return the number of trainable parameters."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
