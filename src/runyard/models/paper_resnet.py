"""The paper's residual network: 4,693,962 parameters and 1.17 G multiply-adds at 32 px with its own settings.

Weights are initialized by torch's layers (kaiming uniform with a=sqrt(5); norms at 1 and 0), since the paper names no
other initialization. Two stem norms, 3x3 shortcuts and no shortcut in stage 2 give the paper's parameter count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from runyard.config.setting import recipe
from runyard.errors import UserError


@dataclass(frozen=True)
class Options:
    """The settings next to ``model.name``."""

    widths: list[int] = recipe("Channels of each stage; a stage that changes them halves the resolution")
    blocks: list[int] = recipe("Residual blocks in each stage")
    shortcut: Literal["conv3x3", "conv1x1"] = recipe("Convolution on a shortcut whose shape changes")
    dropout: float = recipe("Dropout before the last layer", minimum=0, exclusive_maximum=1)
    zero_init_residual: bool = recipe("Start each block as its shortcut: the last norm's scale at 0")


class Block(nn.Module):
    """conv3x3, norm, ReLU, conv3x3, norm; plus the shortcut; ReLU. [b, inputs, H, W] to [b, width, H/s, W/s]."""

    def __init__(self, inputs: int, width: int, stride: int, shortcut_kernel: int) -> None:
        super().__init__()
        self.conv1 = conv(inputs, width, 3, stride)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, 1)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != width:
            self.shortcut = nn.Sequential(conv(inputs, width, shortcut_kernel, stride), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.norm2(self.conv2(y))
        y += self.shortcut(x)
        return F.relu(y, inplace=True)


class PaperResNet(nn.Module):
    """Two-convolution stem, stages of ``Block``, average pool, dropout, linear."""

    def __init__(self, options: Options, num_classes: int) -> None:
        super().__init__()
        width = options.widths[0]
        self.stem = nn.Sequential(
            conv(3, width, 3, 1),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            conv(width, width, 3, 1),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        kernel = 3 if options.shortcut == "conv3x3" else 1
        stages, inputs = [], width
        for width, count in zip(options.widths, options.blocks, strict=True):
            stride = 1 if width == inputs else 2
            stages.append(
                nn.Sequential(
                    Block(inputs, width, stride, kernel), *(Block(width, width, 1, kernel) for _ in range(count - 1))
                )
            )
            inputs = width
        self.stages = nn.Sequential(*stages)
        self.dropout = nn.Dropout(options.dropout)
        self.head = nn.Linear(inputs, num_classes)
        if options.zero_init_residual:
            for module in self.modules():
                if isinstance(module, Block):
                    nn.init.zeros_(module.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(self.stem(x))
        return self.head(self.dropout(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)))  # type: ignore[no-any-return]


def conv(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)


def build(options: Options, num_classes: int, image_size: int) -> nn.Module:
    """Build the network, for images of any size.

    Raises:
        UserError: a setting is out of range.
    """
    if not options.widths or len(options.widths) != len(options.blocks):
        raise UserError(f"model.widths={options.widths}, model.blocks={options.blocks}: expected lists of one length")
    for name, values in (("widths", options.widths), ("blocks", options.blocks)):
        if min(values) < 1:
            raise UserError(f"model.{name}={values}: expected whole numbers of at least 1")
    return PaperResNet(options, num_classes)
