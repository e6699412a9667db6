"""Augmentation as tensor operations on any device, which loader=resident runs on a GPU.

The random draws are those of the CPU kernels, computed on the host (0.1 us per image). The pixels are the same, too,
up to one level where float32 sums round differently. It is fast because it uses few, large operations: give it
thousands of images at a time. Nothing here waits for the device.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from runyard.data.augment.kernels import draw_params_all
from runyard.data.augment.params import COLOR_ORDERS, CONTRAST, HUE, SATURATION, AugmentDraws, AugmentParams
from runyard.data.sampler import Indices

GRAY = (0.2989, 0.587, 0.114)  # torchvision's
FLOAT_TO_LEVEL = 255.999 / 255  # as torchvision converts float back to uint8
HUE_POSITION = np.argmax(COLOR_ORDERS == HUE, axis=1)  # [24], the position, 0 to 3, of the hue change in each order
# [24, 3], the three other changes, in order
OTHER_POSITIONS = COLOR_ORDERS[COLOR_ORDERS != HUE].reshape(24, 3).astype(np.int64)


def augment_on_device(images: Tensor, samples: Indices, seed: int, epoch: int, s: AugmentParams) -> Tensor:
    """Augment ``images[samples]``.

    Args:
        images: uint8 [N, S, S, 3], the complete split, on the device.
        samples: int64 [b], on the host: positions in the split. With seed and epoch they determine all random draws.

    Returns:
        uint8 [b, S, S, 3] on the device, in the order of ``samples``.
    """
    count, size, device = len(samples), s.size, images.device
    table = draw_params_all(samples, seed, epoch, s)
    hue_position = HUE_POSITION[AugmentDraws(*table).order.astype(np.int64)]
    # Images with the same position of the hue change are grouped: it is expensive, and each image needs only one.
    by_position = np.argsort(hue_position, kind="stable")
    edges = np.searchsorted(hue_position[by_position], np.arange(5)).tolist()
    # one transfer; float64 is exact for positions up to 2**53
    sent = to_device(np.concatenate([table[:, by_position], samples[None, by_position], by_position[None]]), device)
    chosen, positions = sent[-2].to(torch.int64), sent[-1].to(torch.int64)
    d = AugmentDraws(*sent[:-2])
    pixels = gather_pixels(images, chosen, d, s)  # uint8 [b, S * S, 3]
    colors = s.brightness > 0 or s.contrast > 0 or s.saturation > 0 or s.hue > 0
    if colors or s.cutout > 0:
        planes = pixels.movedim(2, 0).to(torch.float32, memory_format=torch.contiguous_format)  # [3, b, S * S]
        if colors:
            jitter_colors(planes, d, edges, s)
        if s.cutout > 0:
            cutout_tensor(planes, d, s)
        pixels = planes.movedim(0, 2).to(torch.uint8, memory_format=torch.contiguous_format)
    out = torch.empty((count, size * size, 3), dtype=torch.uint8, device=device)
    return out.index_copy_(0, positions, pixels).view(count, size, size, 3)


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy an array to the device; to a GPU from pinned memory, so that the host does not wait for queued work."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def gather_pixels(images: Tensor, samples: Tensor, d: AugmentDraws[Tensor], s: AugmentParams) -> Tensor:
    """Flip, crop and rotate with one gather operation: uint8 [b, S * S, 3]."""
    count, size, device = len(samples), s.size, images.device
    flat = images.reshape(-1, 3)
    base = (samples * (size * size)).view(-1, 1, 1)
    if s.flip == 0 and s.padding == 0 and s.rotation == 0:
        return images.index_select(0, samples).view(count, size * size, 3)
    coordinate = torch.arange(size, device=device)
    if s.rotation == 0:
        index, inside = source_pixels(coordinate.view(1, -1, 1), coordinate.view(1, 1, -1), d, s)
        return gather_or_black(flat, base + index, inside)
    y, x = rotated(d.angle, s)
    if not s.bilinear:
        index, inside = source_pixels(y.round_().to(torch.int64), x.round_().to(torch.int64), d, s)
        return gather_or_black(flat, base + index, inside)
    top, left = y.floor(), x.floor()
    down, right = y - top, x - left
    total = torch.zeros((count, size * size, 3), device=device)
    for dy in (0, 1):
        for dx in (0, 1):
            index, inside = source_pixels(top.to(torch.int64) + dy, left.to(torch.int64) + dx, d, s)
            weight = (down if dy else 1 - down) * (right if dx else 1 - right)
            total += gather_or_black(flat, base + index, inside) * weight.view(count, -1, 1)
    return total.round_().to(torch.uint8)


def rotated(angle: Tensor, s: AugmentParams) -> tuple[Tensor, Tensor]:
    """Return the position of each output pixel before the rotation, in px: y and x, float32 [b, S, S]."""
    half = 0.5 * s.size
    cos, sin = ((f(angle).to(torch.float32) / half).view(-1, 1, 1) for f in (torch.cos, torch.sin))
    coordinate = torch.arange(s.size, device=angle.device, dtype=torch.float32) - 0.5 * (s.size - 1)
    dy, dx = coordinate.view(1, -1, 1), coordinate.view(1, 1, -1)
    return ((dx * sin + dy * cos + 1) * s.size - 1) / 2, ((dx * cos - dy * sin + 1) * s.size - 1) / 2


def source_pixels(y: Tensor, x: Tensor, d: AugmentDraws[Tensor], s: AugmentParams) -> tuple[Tensor, Tensor]:
    """Return the source index of pixel (y, x) of the flipped and cropped image, and whether it exists: [b, S, S]."""
    last = s.size - 1
    v = y + (d.crop_y.to(torch.int64) - s.padding).view(-1, 1, 1)
    u = x + (d.crop_x.to(torch.int64) - s.padding).view(-1, 1, 1)
    if s.reflect:
        v, u = last - (last - v.abs()).abs(), last - (last - u.abs()).abs()
    inside = (y >= 0) & (y <= last) & (x >= 0) & (x <= last) & (v >= 0) & (v <= last) & (u >= 0) & (u <= last)
    u = torch.where(d.flip.view(-1, 1, 1) > 0, last - u, u)
    return (v * s.size + u).clamp_(0, last * s.size + last), inside


def gather_or_black(flat: Tensor, index: Tensor, inside: Tensor) -> Tensor:
    count = len(index)
    return flat[index.view(count, -1)] * inside.view(count, -1, 1)


def jitter_colors(planes: Tensor, d: AugmentDraws[Tensor], edges: list[int], s: AugmentParams) -> None:
    """Apply the four color changes in each image's own order, in place.

    The images ``edges[k]:edges[k + 1]`` change their hue at position k of that order.
    Brightness, contrast and saturation are one formula, keep * x + added, where nothing, a mean or a gray is added.
    """
    others = to_device(OTHER_POSITIONS, planes.device)[d.order.to(torch.int64)]  # [b, 3]
    factors = torch.stack([d.brightness, d.contrast, d.saturation], 1).to(torch.float32)  # [b, 3]
    for position in range(4):
        group = slice(edges[position], edges[position + 1])
        if s.hue > 0 and group.start < group.stop:
            planes[:, group] = shift_hue_tensor(planes[:, group], d.hue[group])
        if position < 3:
            change = others[:, position : position + 1]
            keep = factors.gather(1, change)
            rest = 1 - keep
            grays = torch.floor(GRAY[0] * planes[0] + GRAY[1] * planes[1] + GRAY[2] * planes[2])  # [b, S * S]
            mean = grays.mean(1, keepdim=True)
            added = grays.mul_(rest * (change == SATURATION)).add_(mean * rest * (change == CONTRAST))
            planes.mul_(keep).add_(added).clamp_(0, 255).floor_()


def shift_hue_tensor(planes: Tensor, turns: Tensor) -> Tensor:
    """Shift the hue of float32 [3, b, S * S] by ``turns`` [b], as the CPU kernel ``shift_hue`` does."""
    red, green, blue = planes
    largest, smallest = planes.amax(0), planes.amin(0)
    chroma = largest - smallest
    inverse = torch.where(chroma > 0, chroma, 1).reciprocal_()
    angle = torch.where(
        largest == red,
        (green - blue) * inverse,
        torch.where(largest == green, 2 + (blue - red) * inverse, 4 + (red - green) * inverse),
    )
    angle += (6 * turns).to(torch.float32).view(-1, 1)
    angle -= 6 * torch.floor(angle * (1 / 6))
    tents = torch.stack([(angle - 3).abs_().sub_(1), 2 - (angle - 2).abs_(), 2 - (angle - 4).abs_()])
    return tents.clamp_(0, 1).mul_(chroma).add_(smallest).mul_(FLOAT_TO_LEVEL).clamp_(0, 255).floor_()


def cutout_tensor(planes: Tensor, d: AugmentDraws[Tensor], s: AugmentParams) -> None:
    coordinate = torch.arange(s.size, device=planes.device)
    rows = (coordinate >= d.cutout_y.view(-1, 1)) & (coordinate < d.cutout_y.view(-1, 1) + s.cutout)
    columns = (coordinate >= d.cutout_x.view(-1, 1)) & (coordinate < d.cutout_x.view(-1, 1) + s.cutout)
    square = (rows.view(-1, s.size, 1) & columns.view(-1, 1, s.size)).flatten(1)
    for plane, fill in zip(planes, (s.fill_r, s.fill_g, s.fill_b), strict=True):
        plane.masked_fill_(square, fill)
