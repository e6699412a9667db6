"""A small whitened convolutional network, for machines without a GPU.

Based on airbench (KellerJordan/cifar10-airbench): a frozen first convolution that whitens image patches, pooling before
the norm, max-pooled features, a scaled linear head. It learns in a few epochs what a plain network needs many for.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from runyard.config.setting import recipe
from runyard.errors import UserError


@dataclass(frozen=True)
class Options:
    """The settings next to ``model.name``."""

    stem_kernel: int = recipe("Side of the patches that the frozen first layer whitens, px", minimum=1, maximum=8)
    stem_stride: int = recipe("Step between those patches, px; 2 quarters the first stage's cost", minimum=1, maximum=8)
    stem_filters: int = recipe("Principal directions kept of a patch; two channels each, of either sign", minimum=1)
    widths: list[int] = recipe("Channels of each stage; each stage halves the resolution")
    convs: int = recipe("Convolutions in a stage", minimum=1)
    head_scale: float = recipe("Factor on the logits", exclusive_minimum=0)


class Starter(nn.Module):
    """The network: images [b, 3, S, S] to logits [b, num_classes]."""

    def __init__(self, options: Options, num_classes: int) -> None:
        super().__init__()
        channels = 2 * options.stem_filters
        self.whiten = nn.Conv2d(
            3,
            channels,
            options.stem_kernel,
            stride=options.stem_stride,
            bias=False,
            padding=(options.stem_kernel - options.stem_stride) // 2,
        )
        self.whiten.weight.requires_grad_(False)
        layers: list[nn.Module] = [nn.ReLU(inplace=True)]
        for width in options.widths:
            for i in range(options.convs):
                layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=False))
                if i == 0:
                    layers.append(nn.MaxPool2d(2))  # before the norm, which then does a quarter of the work
                layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                channels = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels, num_classes, bias=False)
        self.head_scale = options.head_scale

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(self.whiten(x))
        return self.head(torch.flatten(F.adaptive_max_pool2d(x, 1), 1)) * self.head_scale  # type: ignore[no-any-return]

    @torch.no_grad()
    def init_from_data(self, images: Tensor) -> None:
        """Set the first layer to whiten the patches of ``images``, normalized float32 [n, 3, S, S].

        It is computed in float64 on the CPU, so that it does not depend on the device.
        """
        kernel = self.whiten.kernel_size[0]
        size = 3 * kernel * kernel
        moment, mean, count = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64), 0
        for chunk in images.cpu().split(256):
            patches = F.unfold(chunk, kernel, stride=self.whiten.stride[0]).transpose(1, 2).reshape(-1, size).double()
            moment += patches.T @ patches
            mean += patches.sum(0)
            count += len(patches)
        covariance = moment / count - torch.outer(mean, mean) / count**2
        values, vectors = torch.linalg.eigh(covariance)  # ascending
        keep = self.whiten.out_channels // 2
        scaled = vectors[:, -keep:] / (values[-keep:] + 5e-4).sqrt()  # airbench's floor: noise is not amplified
        filters = scaled.T.reshape(keep, 3, kernel, kernel)
        self.whiten.weight.copy_(torch.cat([filters, -filters]))


def build(options: Options, num_classes: int, image_size: int) -> nn.Module:
    """Build the network, for images large enough to be halved once per stage.

    Raises:
        UserError: a setting is out of range, or the images are too small.
    """
    if not options.widths or min(options.widths) < 1:
        raise UserError(f"model.widths={options.widths}: expected whole numbers of at least 1, as [64,128,256]")
    if options.stem_stride > options.stem_kernel:
        raise UserError(
            f"model.stem_stride={options.stem_stride}: expected at most model.stem_kernel="
            f"{options.stem_kernel}, or pixels are never seen"
        )
    maximum = 3 * options.stem_kernel**2
    if options.stem_filters > maximum:
        raise UserError(
            f"model.stem_filters={options.stem_filters}: expected at most {maximum}, the numbers in a patch "
            f"of side model.stem_kernel={options.stem_kernel}"
        )
    network = Starter(options, num_classes)
    side = network.whiten(torch.zeros(1, 3, image_size, image_size)).shape[-1]
    if side < 2 ** len(options.widths):
        raise UserError(
            f"data.image_size={image_size}: the first layer leaves {side} px, too few to be halved in each "
            f"of {len(options.widths)} stages",
            "shorten model.widths",
        )
    return network
