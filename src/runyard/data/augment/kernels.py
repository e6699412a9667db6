"""Augmentation on the CPU: an image is read once, changed in scratch memory the nearest cache holds, and written once.

Flip, crop and rotation are one gather: each output pixel looks up its one source pixel (nearest) or four (bilinear).
Colour works on float32 planes and cuts to whole levels after each change, as torchvision does between its transforms on
uint8 tensors. The loops are written so that LLVM turns them into vector code; they hold no interpreter lock.
"""

from __future__ import annotations

import math

import numpy as np

from runyard.data.augment.params import BRIGHTNESS, COLOR_ORDERS, CONTRAST, HUE, SATURATION, AugmentParams, draw_params
from runyard.data.compiled import jit

GRAY_R, GRAY_G, GRAY_B = np.float32(0.2989), np.float32(0.587), np.float32(0.114)  # torchvision's
ZERO, ONE, TWO, MAX_LEVEL = np.float32(0), np.float32(1), np.float32(2), np.float32(255)
SIX, SIXTH = np.float32(6), np.float32(1 / 6)
FLOAT_TO_LEVEL_F32 = np.float32(255.999 / 255)  # torchvision's way from float back to uint8


@jit
def augment_batch(images, rows, samples, seed, epoch, s: AugmentParams, out):  # type: ignore[no-untyped-def]
    """Augment ``images[rows]`` into ``out``.

    Args:
        images: uint8 [n, S, S, 3], C-contiguous; rows: int64 [b], where each image stands in it.
        samples: int64 [b], positions in the split: with seed and epoch they decide every draw.
        out: uint8 [b, S, S, 3], C-contiguous, written.
    """
    size = images.shape[1]
    pixels = size * size
    packed = np.zeros(pixels + 1, np.uint32)  # one pixel each; the last stays black
    where, weight = np.empty(pixels, np.uint32), np.empty(pixels, np.float32)
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
            rotate_bilinear(packed, where, weight, d.flip, d.crop_y, d.crop_x, d.angle, s, size, r, g, b)
        else:
            if s.rotation > 0:
                source_indices_rotated(where, d.flip, d.crop_y, d.crop_x, d.angle, s, size)
            else:
                source_indices(where, d.flip, d.crop_y, d.crop_x, s, size)
            unpack_pixels(packed, where, r, g, b)
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
    """The ``Draws`` of each of ``samples`` as float64 [fields of Draws, b]."""
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
    """Index of the source pixel under (y, x) of the flipped and cropped image, or size * size for black; all int32."""
    last = size - np.int32(1)
    inside = (y >= 0) & (y <= last) & (x >= 0) & (x <= last)
    v, u = y + crop_y - padding, x + crop_x - padding
    if reflect:
        v, u = last - abs(last - abs(v)), last - abs(last - abs(u))
    inside &= (v >= 0) & (v <= last) & (u >= 0) & (u <= last)
    u = last - u if flip else u
    return np.uint32(v * size + u) if inside else np.uint32(size * size)


@jit
def source_indices(where, flip, crop_y, crop_x, s, size):  # type: ignore[no-untyped-def]
    n, top, left, padding = np.int32(size), np.int32(crop_y), np.int32(crop_x), np.int32(s.padding)
    for y in range(size):
        row = where[y * size : (y + 1) * size]
        for x in range(size):
            row[x] = source_pixel(np.int32(y), np.int32(x), flip, top, left, padding, s.reflect, n)


@jit
def source_indices_rotated(where, flip, crop_y, crop_x, angle, s, size):  # type: ignore[no-untyped-def]
    """As torchvision's rotate: coordinates in [-1, 1] about the centre, in float32, rounded half to even."""
    n, top, left, padding = np.int32(size), np.int32(crop_y), np.int32(crop_x), np.int32(s.padding)
    cos, sin, middle, side = rotation(angle, size)
    for y in range(size):
        row = where[y * size : (y + 1) * size]
        dy = np.float32(y) - middle
        for x in range(size):
            dx = np.float32(x) - middle
            source_x = ((dx * cos - dy * sin + ONE) * side - ONE) / TWO
            source_y = ((dx * sin + dy * cos + ONE) * side - ONE) / TWO
            row[x] = source_pixel(
                np.int32(np.rint(source_y)), np.int32(np.rint(source_x)), flip, top, left, padding, s.reflect, n
            )


@jit
def unpack_pixels(packed, where, r, g, b):  # type: ignore[no-untyped-def]
    for p in range(where.size):
        pixel = packed[where[p]]
        r[p] = np.float32(np.int32(pixel & 255))
        g[p] = np.float32(np.int32((pixel >> 8) & 255))
        b[p] = np.float32(np.int32((pixel >> 16) & 255))


@jit
def rotate_bilinear(packed, where, weight, flip, crop_y, crop_x, angle, s, size, r, g, b):  # type: ignore[no-untyped-def]
    """As torchvision's functional rotate with fill=None: what lies outside counts as black; rounded to whole levels."""
    r[:], g[:], b[:] = ZERO, ZERO, ZERO
    for tap in range(4):
        source_indices_tap(where, weight, np.int32(tap >> 1), np.int32(tap & 1), flip, crop_y, crop_x, angle, s, size)
        for p in range(where.size):
            pixel, share = packed[where[p]], weight[p]
            r[p] += share * np.float32(np.int32(pixel & 255))
            g[p] += share * np.float32(np.int32((pixel >> 8) & 255))
            b[p] += share * np.float32(np.int32((pixel >> 16) & 255))
    for p in range(where.size):
        r[p], g[p], b[p] = np.rint(r[p]), np.rint(g[p]), np.rint(b[p])


@jit
def source_indices_tap(where, weight, down, right, flip, crop_y, crop_x, angle, s, size):  # type: ignore[no-untyped-def]
    """One of the four neighbours of each rotated pixel, and its share in it."""
    n, top, left, padding = np.int32(size), np.int32(crop_y), np.int32(crop_x), np.int32(s.padding)
    cos, sin, middle, side = rotation(angle, size)
    for y in range(size):
        row, shares = where[y * size : (y + 1) * size], weight[y * size : (y + 1) * size]
        dy = np.float32(y) - middle
        for x in range(size):
            dx = np.float32(x) - middle
            source_x = ((dx * cos - dy * sin + ONE) * side - ONE) / TWO
            source_y = ((dx * sin + dy * cos + ONE) * side - ONE) / TWO
            x0, y0 = np.floor(source_x), np.floor(source_y)
            fx, fy = source_x - x0, source_y - y0
            shares[x] = (fy if down else ONE - fy) * (fx if right else ONE - fx)
            row[x] = source_pixel(np.int32(y0) + down, np.int32(x0) + right, flip, top, left, padding, s.reflect, n)


@jit
def rotation(angle, size):  # type: ignore[no-untyped-def]
    """Cosine and sine per px of coordinates from -1 to 1, the image's middle in px, and its side, all float32."""
    half = np.float32(0.5 * size)
    return (
        np.float32(math.cos(angle)) / half,
        np.float32(math.sin(angle)) / half,
        np.float32(0.5 * (size - 1)),
        np.float32(size),
    )


@jit
def clamp_level(value):  # type: ignore[no-untyped-def]
    """Cut to a whole level in 0 .. 255."""
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
    """Reordering is harmless: the terms are whole, and their sum is exact up to 256 x 256 px."""
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
    """torchvision's HSV round trip without HSV: the largest and smallest channel stay, and where the others lie between
    them is a tent function of the shifted hue."""
    shift = np.float32(6 * turns)
    for p in range(r.size):
        red, green, blue = r[p], g[p], b[p]
        most, least = max(max(red, green), blue), min(min(red, green), blue)
        chroma = most - least
        inverse = ONE / (chroma if chroma > ZERO else ONE)
        angle = np.float32(4) + (red - green) * inverse
        angle = TWO + (blue - red) * inverse if most == green else angle
        angle = (green - blue) * inverse if most == red else angle
        angle += shift
        angle -= SIX * np.floor(angle * SIXTH)
        r[p] = clamp_level((least + chroma * clamp_unit(abs(angle - np.float32(3)) - ONE)) * FLOAT_TO_LEVEL_F32)
        g[p] = clamp_level((least + chroma * clamp_unit(TWO - abs(angle - TWO))) * FLOAT_TO_LEVEL_F32)
        b[p] = clamp_level((least + chroma * clamp_unit(TWO - abs(angle - np.float32(4)))) * FLOAT_TO_LEVEL_F32)


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
