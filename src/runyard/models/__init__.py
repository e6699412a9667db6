"""The networks, one per file. The file's name is what ``model.name`` says; to add a network is to add a file.

A file holds ``Options`` (a dataclass: the settings beside ``name``) and ``build(options, num_classes, image_size)``.
A network takes normalised float images [b, 3, S, S] and returns logits [b, num_classes]. It may have
``init_from_data(images)``, called once before the first step with some thousand normalised training images.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil

from torch import nn

from runyard.config.schema import ModelConfig, read_dataclass
from runyard.errors import UserError


def model_names() -> list[str]:
    """Every network's name, found without importing one."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "summary" and not m.ispkg)


def build(config: ModelConfig, num_classes: int, image_size: int) -> nn.Module:
    """The network that ``config`` names, on the current default device, with fresh weights from torch's generator.

    Raises:
        UserError: an unknown name or option, an option out of range, or more parameters than ``max_parameters``.
    """
    if config.name not in model_names():
        near = difflib.get_close_matches(config.name, model_names(), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(model_names())}"
        raise UserError(f"model.name={config.name}: no such file under runyard/models; {hint}")
    module = importlib.import_module(f"runyard.models.{config.name}")
    options = read_dataclass(module.Options, config.options, "model.")
    try:
        network: nn.Module = module.build(options, num_classes, image_size)
    except (RuntimeError, MemoryError) as error:  # torch says the latter by the former
        if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
            raise
        raise UserError(
            f"model.name={config.name}: these settings make a network that does not fit into memory: "
            f"make it smaller ({', '.join(f'model.{name}' for name in config.options)})"
        ) from None
    count = trainable_parameters(network)
    if config.max_parameters is not None and count > config.max_parameters:
        raise UserError(
            f"model.name={config.name} has {count:,} trainable parameters, and model.max_parameters="
            f"{config.max_parameters:,}: make the network smaller, or raise model.max_parameters"
        )
    return network


def trainable_parameters(network: nn.Module) -> int:
    """How many numbers training changes."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)
