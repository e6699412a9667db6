"""Augmentation on the CPU: an image is read once, changed in scratch memory that fits into the L1 cache, and written.

Flip, crop and rotation are one gather: each output pixel looks up one source pixel (nearest) or four (bilinear). Color
changes use float32 planes and truncate to whole levels after each change, as torchvision does between transforms of
uint8 tensors. The loops are written so that LLVM vectorizes them, and they do not hold the interpreter lock.
"""

from __future__ import annotations

import math

import numpy as np

from runyard.data.augment.params import BRIGHTNESS, COLOR_ORDERS, CONTRAST, HUE, SATURATION, AugmentParams, draw_params
from runyard.data.compiled import jit

GRAY_R, GRAY_G, GRAY_B = np.float32(0.2989), np.float32(0.587), np.float32(0.114)  # torchvision's
ZERO, ONE, TWO, MAX_LEVEL = np.float32(0), np.float32(1), np.float32(2), np.float32(255)
SIX, SIXTH = np.float32(6), np.float32(1 / 6)
FLOAT_TO_LEVEL_F32 = np.float32(255.999 / 255)  # as torchvision converts float back to uint8


@jit
def augment_batch(images, rows, samples, seed, epoch, s: AugmentParams, out):  # type: ignore[no-untyped-def]
    """Augment ``images[rows]`` into ``out``.

    Args:
        images: uint8 [n, S, S, 3], C-contiguous.
        rows: int64 [b], the position of each image in ``images``.
        samples: int64 [b], positions in the split. With seed and epoch they determine all random draws.
        out: uint8 [b, S, S, 3], C-contiguous; the result.
    """
    size = images.shape[1]
    pixels = size * size
    packed = np.zeros(pixels + 1, np.uint32)  # one pixel each; the last stays black
    source_index, weight = np.empty(pixels, np.uint32), np.empty(pixels, np.float32)
    r, g, b = np.empty(pixels, np.float32), np.empty(pixels, np.float32), np.empty(pixels, np.float32)
    moves = s.flip != 0 or s.padding > 0 or s.rotation > 0
    colors = s.brightness > 0 or s.contrast > 0 or s.saturation > 0 or s.hue > 0
    for i in range(len(rows)):
        source, target = images[rows[i]].reshape(3 * pixels), out[i].reshape(3 * pixels)
        if not (moves or colors or s.cutout > 0):
            target[:] = source
            continue
        d = draw_params(seed, epoch, samples[i], s)
        pack(source, packed, pixels)
        if s.rotation > 0 and s.bilinear:
            rotate_bilinear(packed, source_index, weight, d.flip, d.crop_y, d.crop_x, d.angle, s, size, r, g, b)
        else:
            if s.rotation > 0:
                source_indices_rotated(source_index, d.flip, d.crop_y, d.crop_x, d.angle, s, size)
            else:
                source_indices(source_index, d.flip, d.crop_y, d.crop_x, s, size)
            unpack_pixels(packed, source_index, r, g, b)
        if colors:
            for k in range(4):
                change = COLOR_ORDERS[d.order, k]
                if change == BRIGHTNESS and s.brightness > 0:
                    brightness(r, g, b, np.float32(d.brightness))
                elif change == CONTRAST and s.contrast > 0:
                    contrast(r, g, b, d.contrast)
                elif change == SATURATION and s.saturation > 0:
                    saturation(r, g, b, d.saturation)
                elif change == HUE and s.hue > 0:
                    shift_hue(r, g, b, d.hue)
        if s.cutout > 0:
            cutout(r, g, b, d.cutout_y, d.cutout_x, s, size)
        store(r, g, b, target)
    return out


@jit
def draw_params_all(samples, seed, epoch, s: AugmentParams):  # type: ignore[no-untyped-def]
    """Return the ``AugmentDraws`` of each of ``samples`` as float64 [fields of AugmentDraws, b]."""
    table = np.empty((11, len(samples)), np.float64)
    for i in range(len(samples)):
        d = draw_params(seed, epoch, samples[i], s)
        table[0, i], table[1, i], table[2, i], table[3, i] = d.flip, d.crop_y, d.crop_x, d.angle
        table[4, i], table[5, i], table[6, i], table[7, i] = d.brightness, d.contrast, d.saturation, d.hue
        table[8, i], table[9, i], table[10, i] = d.order, d.cutout_y, d.cutout_x
    return table


@jit
def pack(source, packed, pixels):  # type: ignore[no-untyped-def]
    for p in range(pixels):
        packed[p] = np.uint32(source[3 * p]) | np.uint32(source[3 * p + 1]) << 8 | np.uint32(source[3 * p + 2]) << 16


@jit
def source_pixel(y, x, flip, crop_y, crop_x, padding, reflect, size):  # type: ignore[no-untyped-def]
    """Return the source index of pixel (y, x) of the flipped and cropped image, or size * size for black. All int32."""
    last = size - np.int32(1)
    inside = (y >= 0) & (y <= last) & (x >= 0) & (x <= last)
    v, u = y + crop_y - padding, x + crop_x - padding
    if reflect:
        v, u = last - abs(last - abs(v)), last - abs(last - abs(u))
    inside &= (v >= 0) & (v <= last) & (u >= 0) & (u <= last)
    u = last - u if flip else u
    return np.uint32(v * size + u) if inside else np.uint32(size * size)


@jit
def source_indices(source_index, flip, crop_y, crop_x, s, size):  # type: ignore[no-untyped-def]
    n, top, left, padding = np.int32(size), np.int32(crop_y), np.int32(crop_x), np.int32(s.padding)
    for y in range(size):
        row = source_index[y * size : (y + 1) * size]
        for x in range(size):
            row[x] = source_pixel(np.int32(y), np.int32(x), flip, top, left, padding, s.reflect, n)


@jit
def source_indices_rotated(source_index, flip, crop_y, crop_x, angle, s, size):  # type: ignore[no-untyped-def]
    """As torchvision's rotate: float32 coordinates in [-1, 1] around the center, rounded half to even."""
    n, top, left, padding = np.int32(size), np.int32(crop_y), np.int32(crop_x), np.int32(s.padding)
    cos, sin, center, side = rotation(angle, size)
    for y in range(size):
        row = source_index[y * size : (y + 1) * size]
        dy = np.float32(y) - center
        for x in range(size):
            dx = np.float32(x) - center
            source_x = ((dx * cos - dy * sin + ONE) * side - ONE) / TWO
            source_y = ((dx * sin + dy * cos + ONE) * side - ONE) / TWO
            row[x] = source_pixel(
                np.int32(np.rint(source_y)), np.int32(np.rint(source_x)), flip, top, left, padding, s.reflect, n
            )


@jit
def unpack_pixels(packed, source_index, r, g, b):  # type: ignore[no-untyped-def]
    for p in range(source_index.size):
        pixel = packed[source_index[p]]
        r[p] = np.float32(np.int32(pixel & 255))
        g[p] = np.float32(np.int32((pixel >> 8) & 255))
        b[p] = np.float32(np.int32((pixel >> 16) & 255))


@jit
def rotate_bilinear(packed, source_index, weight, flip, crop_y, crop_x, angle, s, size, r, g, b):  # type: ignore[no-untyped-def]
    """As torchvision's functional rotate with fill=None: pixels outside are black; the result is rounded to levels."""
    r[:], g[:], b[:] = ZERO, ZERO, ZERO
    for tap in range(4):
        source_indices_tap(
            source_index, weight, np.int32(tap >> 1), np.int32(tap & 1), flip, crop_y, crop_x, angle, s, size
        )
        for p in range(source_index.size):
            pixel, tap_weight = packed[source_index[p]], weight[p]
            r[p] += tap_weight * np.float32(np.int32(pixel & 255))
            g[p] += tap_weight * np.float32(np.int32((pixel >> 8) & 255))
            b[p] += tap_weight * np.float32(np.int32((pixel >> 16) & 255))
    for p in range(source_index.size):
        r[p], g[p], b[p] = np.rint(r[p]), np.rint(g[p]), np.rint(b[p])


@jit
def source_indices_tap(source_index, weight, down, right, flip, crop_y, crop_x, angle, s, size):  # type: ignore[no-untyped-def]
    """Compute one of the four source neighbors of each rotated pixel, and its weight."""
    n, top, left, padding = np.int32(size), np.int32(crop_y), np.int32(crop_x), np.int32(s.padding)
    cos, sin, center, side = rotation(angle, size)
    for y in range(size):
        row, tap_weights = source_index[y * size : (y + 1) * size], weight[y * size : (y + 1) * size]
        dy = np.float32(y) - center
        for x in range(size):
            dx = np.float32(x) - center
            source_x = ((dx * cos - dy * sin + ONE) * side - ONE) / TWO
            source_y = ((dx * sin + dy * cos + ONE) * side - ONE) / TWO
            x0, y0 = np.floor(source_x), np.floor(source_y)
            fx, fy = source_x - x0, source_y - y0
            tap_weights[x] = (fy if down else ONE - fy) * (fx if right else ONE - fx)
            row[x] = source_pixel(np.int32(y0) + down, np.int32(x0) + right, flip, top, left, padding, s.reflect, n)


@jit
def rotation(angle, size):  # type: ignore[no-untyped-def]
    """Return cosine and sine per px for coordinates in [-1, 1], the image's center in px, and its side. All float32."""
    half = np.float32(0.5 * size)
    return (
        np.float32(math.cos(angle)) / half,
        np.float32(math.sin(angle)) / half,
        np.float32(0.5 * (size - 1)),
        np.float32(size),
    )


@jit
def clamp_level(value):  # type: ignore[no-untyped-def]
    """Truncate to a whole level in 0 .. 255."""
    return np.floor(min(max(value, ZERO), MAX_LEVEL))


@jit
def gray(red, green, blue):  # type: ignore[no-untyped-def]
    return np.floor(red * GRAY_R + green * GRAY_G + blue * GRAY_B)


@jit
def brightness(r, g, b, factor):  # type: ignore[no-untyped-def]
    for p in range(r.size):
        r[p], g[p], b[p] = clamp_level(r[p] * factor), clamp_level(g[p] * factor), clamp_level(b[p] * factor)


@jit(reorder_sums=True)
def mean_gray(r, g, b):  # type: ignore[no-untyped-def]
    """The mean gray level. Reordering is safe: the terms are whole, so their sum is exact up to 256 x 256 px."""
    total = ZERO
    for p in range(r.size):
        total += gray(r[p], g[p], b[p])
    return total / np.float32(r.size)


@jit
def contrast(r, g, b, factor):  # type: ignore[no-untyped-def]
    keep, rest = np.float32(factor), np.float32(1 - factor)
    added = rest * mean_gray(r, g, b)
    for p in range(r.size):
        r[p], g[p], b[p] = (
            clamp_level(r[p] * keep + added),
            clamp_level(g[p] * keep + added),
            clamp_level(b[p] * keep + added),
        )


@jit
def saturation(r, g, b, factor):  # type: ignore[no-untyped-def]
    keep, rest = np.float32(factor), np.float32(1 - factor)
    for p in range(r.size):
        red, green, blue = r[p], g[p], b[p]
        added = rest * gray(red, green, blue)
        r[p], g[p], b[p] = (
            clamp_level(red * keep + added),
            clamp_level(green * keep + added),
            clamp_level(blue * keep + added),
        )


@jit
def shift_hue(r, g, b, turns):  # type: ignore[no-untyped-def]
    """Shift the hue as torchvision's conversion to HSV and back does, but without HSV.

    The largest and the smallest value of a pixel stay; each channel is a tent function of the shifted hue between them.
    """
    shift = np.float32(6 * turns)
    for p in range(r.size):
        red, green, blue = r[p], g[p], b[p]
        largest, smallest = max(max(red, green), blue), min(min(red, green), blue)
        chroma = largest - smallest
        inverse = ONE / (chroma if chroma > ZERO else ONE)
        angle = np.float32(4) + (red - green) * inverse
        angle = TWO + (blue - red) * inverse if largest == green else angle
        angle = (green - blue) * inverse if largest == red else angle
        angle += shift
        angle -= SIX * np.floor(angle * SIXTH)
        r[p] = clamp_level((smallest + chroma * clamp_unit(abs(angle - np.float32(3)) - ONE)) * FLOAT_TO_LEVEL_F32)
        g[p] = clamp_level((smallest + chroma * clamp_unit(TWO - abs(angle - TWO))) * FLOAT_TO_LEVEL_F32)
        b[p] = clamp_level((smallest + chroma * clamp_unit(TWO - abs(angle - np.float32(4)))) * FLOAT_TO_LEVEL_F32)


@jit
def clamp_unit(value):  # type: ignore[no-untyped-def]
    return min(max(value, ZERO), ONE)


@jit
def cutout(r, g, b, top, left, s, size):  # type: ignore[no-untyped-def]
    for y in range(max(top, 0), min(top + s.cutout, size)):
        for x in range(max(left, 0), min(left + s.cutout, size)):
            p = y * size + x
            r[p], g[p], b[p] = np.float32(s.fill_r), np.float32(s.fill_g), np.float32(s.fill_b)


@jit
def store(r, g, b, target):  # type: ignore[no-untyped-def]
    for p in range(r.size):
        target[3 * p] = np.uint8(np.int32(r[p]))
        target[3 * p + 1] = np.uint8(np.int32(g[p]))
        target[3 * p + 2] = np.uint8(np.int32(b[p]))
