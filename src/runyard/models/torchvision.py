"""Any classifier of torchvision by name, without pretrained weights: ``model.arch=resnet18``."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import torch
from torch import nn

from runyard.config.setting import recipe
from runyard.errors import UserError

SMALL_BELOW_PX = 64  # torchvision's first layers leave 2 x 2 of 64 px at the end


@dataclass(frozen=True)
class Options:
    """The settings next to ``model.name``."""

    arch: str = recipe("torchvision's name of the network")
    stem: Literal["auto", "imagenet", "small"] = recipe(
        "torchvision's own first layers, or a 3x3 of stride 1 and no pooling; auto: small for ResNets below 64 px"
    )


def build(options: Options, num_classes: int, image_size: int) -> nn.Module:
    """Build the network and run it once on an empty image.

    Raises:
        UserError: there is no such network, it has no such stem, or it does not accept the image size.
    """
    models = _torchvision_models()
    known = models.list_models(module=models)
    if options.arch not in known:
        suggestions = difflib.get_close_matches(options.arch, known, n=1, cutoff=0.4)
        hint = f"did you mean {suggestions[0]}?" if suggestions else f"as {', '.join(known[:4])}"
        raise UserError(f"model.arch={options.arch}: torchvision {_version()} has no such classifier", hint)
    network = _build(models, options, num_classes, image_size)
    by_size = isinstance(network, models.ResNet) and image_size < SMALL_BELOW_PX
    if options.stem == "small" or (options.stem == "auto" and by_size):
        if not isinstance(network, models.ResNet):
            raise UserError(
                f"model.stem=small: defined for resnet, resnext and wide_resnet, not for model.arch={options.arch}",
                "use model.stem=imagenet",
            )
        network.conv1 = nn.Conv2d(3, network.conv1.out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision does
        network.maxpool = nn.Identity()
        network.description = f"{options.arch} with a small stem"  # type: ignore[assignment]
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, 3, image_size, image_size))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise _size_error(options, image_size, error) from None
    return network.train()


def _build(models: ModuleType, options: Options, num_classes: int, image_size: int) -> nn.Module:
    extra: dict[str, object] = {}
    if options.arch.startswith("vit_"):
        extra["image_size"] = image_size
    elif options.arch.startswith("maxvit"):
        extra["input_size"] = (image_size, image_size)
    elif options.arch in ("googlenet", "inception_v3"):
        extra.update(aux_logits=False, init_weights=True)  # one output, like every other network
    try:
        network: nn.Module = models.get_model(options.arch, weights=None, num_classes=num_classes, **extra)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise _size_error(options, image_size, error) from None
    return network


def _size_error(options: Options, image_size: int, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:160]
    return UserError(
        f"model.arch={options.arch} cannot take data.image_size={image_size} ({reason})",
        "use larger images, or another model.arch",
    )


def _torchvision_models() -> ModuleType:
    try:
        import torchvision.models
    except (ImportError, RuntimeError) as error:  # RuntimeError: made for another torch, "nms does not exist"
        raise UserError(
            f"model.name=torchvision: torchvision cannot be imported ({error})",
            f"install the one made for torch {torch.__version__}",
        ) from None
    return torchvision.models


def _version() -> str:
    import torchvision

    return str(torchvision.__version__)
