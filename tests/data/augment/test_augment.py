"""The augmentation, held to torchvision's own transforms on uint8 tensors with the same parameters."""

import math

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from runyard.config.schema import AugmentConfig
from runyard.data.augment import device, kernels, params
from runyard.data.augment.params import AugmentDraws, AugmentParams

NOTHING = AugmentParams(
    flip=params.NO_FLIP,
    padding=0,
    reflect=False,
    rotation=0.0,
    bilinear=False,
    brightness=0.0,
    contrast=0.0,
    saturation=0.0,
    hue=0.0,
    cutout=0,
    size=32,
    fill_r=125,
    fill_g=123,
    fill_b=114,
)
FLIP = NOTHING._replace(flip=params.RANDOM_FLIP)
CROP = NOTHING._replace(padding=4)
REFLECT = NOTHING._replace(padding=4, reflect=True)
ROTATION = NOTHING._replace(rotation=math.radians(15))
BILINEAR = ROTATION._replace(bilinear=True)
BRIGHTNESS, CONTRAST = NOTHING._replace(brightness=0.4), NOTHING._replace(contrast=0.4)
SATURATION, HUE = NOTHING._replace(saturation=0.4), NOTHING._replace(hue=0.5)
CUTOUT = NOTHING._replace(cutout=9)
GEOMETRY = NOTHING._replace(flip=params.RANDOM_FLIP, padding=4, rotation=math.radians(15))
PAPER = GEOMETRY._replace(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def pictures(n: int, size: int = 32) -> np.ndarray:
    """uint8 [n, size, size, 3]: smooth colours with some noise, some pictures gray, some black or white."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:size, 0:size] / size
    down, across = rng.uniform(0, 9, (2, n, 1, 1, 3))
    waves = np.sin(across * x[None, :, :, None] + down * y[None, :, :, None])
    images = (128 + 110 * waves + rng.normal(0, 12, (n, size, size, 3))).clip(0, 255).astype(np.uint8)
    images[::16] = images[::16, :, :, :1]
    images[1], images[2] = 0, 255
    return images


def ours(images: np.ndarray, s: AugmentParams, seed: int = 5, epoch: int = 1) -> tuple[np.ndarray, list[AugmentDraws]]:
    samples = np.arange(len(images))
    out = kernels.augment_batch(images, samples, samples, seed, epoch, s, np.empty_like(images))
    return out, [AugmentDraws(*column) for column in kernels.draw_params_all(samples, seed, epoch, s).T]


def torchvisions(image: np.ndarray, d: AugmentDraws, s: AugmentParams) -> np.ndarray:
    """One image through torchvision's functions, one after the other on uint8, as a v2.Compose of them would."""
    t = torch.from_numpy(image).permute(2, 0, 1)
    t = tv.horizontal_flip(t) if d.flip else t
    if s.padding:
        t = tv.pad(t, [s.padding] * 4, padding_mode="reflect" if s.reflect else "constant")
        t = tv.crop(t, int(d.crop_y), int(d.crop_x), s.size, s.size)
    if s.rotation:
        how = InterpolationMode.BILINEAR if s.bilinear else InterpolationMode.NEAREST
        t = tv.rotate(t, math.degrees(d.angle), how)
    for change in params.COLOR_ORDERS[int(d.order)]:
        if change == params.BRIGHTNESS and s.brightness:
            t = tv.adjust_brightness(t, d.brightness)
        elif change == params.CONTRAST and s.contrast:
            t = tv.adjust_contrast(t, d.contrast)
        elif change == params.SATURATION and s.saturation:
            t = tv.adjust_saturation(t, d.saturation)
        elif change == params.HUE and s.hue:
            t = tv.adjust_hue(t, d.hue)
    return t.permute(1, 2, 0).numpy()


def differences(images: np.ndarray, s: AugmentParams, change: dict[str, float] | None = None) -> np.ndarray:
    """Levels between ours and torchvision's; ``change`` replaces draws on torchvision's side only."""
    out, drawn = ours(images, s)
    assert (out != images).any(), "nothing changed: torchvision would agree with no kernel at all"
    drawn = [d._replace(**(change or {})) for d in drawn]
    theirs = np.stack([torchvisions(image, d, s) for image, d in zip(images, drawn, strict=True)])
    return np.abs(out.astype(int) - theirs)


@pytest.mark.parametrize(
    "s",
    [FLIP, CROP, REFLECT, CROP._replace(flip=params.RANDOM_FLIP), BRIGHTNESS],
    ids=["flip", "crop", "reflect", "flip and crop", "brightness"],
)
@pytest.mark.parametrize("size", [32, 17])
def test_what_moves_whole_pixels_or_needs_no_sum_equals_torchvision_exactly(s: AugmentParams, size: int) -> None:
    assert differences(pictures(96, size), s._replace(size=size)).max() == 0


@pytest.mark.parametrize("s", [ROTATION, GEOMETRY], ids=["rotation", "flip, crop and rotation in one gather"])
@pytest.mark.parametrize("size", [32, 17])
def test_nearest_rotation_equals_torchvision_up_to_ties_between_two_pixels(s: AugmentParams, size: int) -> None:
    # measured: no pixel differs; one may where a source coordinate rounds to just another side of a half
    assert (differences(pictures(96, size), s._replace(size=size)) > 0).mean() < 1e-4


@pytest.mark.parametrize(
    ("s", "share"),
    [(BILINEAR, 1e-3), (CONTRAST, 1e-3), (SATURATION, 5e-3), (HUE, 1e-3)],
    ids=["bilinear", "contrast", "saturation", "hue"],
)
def test_what_sums_in_float_is_within_one_level_of_torchvision_and_rarely_off(s: AugmentParams, share: float) -> None:
    # measured on this set: 1e-5, 0, 1e-3 (gray pixels, where the sum lies on a whole level) and 5e-6 of the values
    levels = differences(pictures(256), s)
    assert levels.max() <= 1
    assert (levels > 0).mean() < share


def test_the_papers_whole_set_equals_torchvisions_sequence_but_for_rare_levels() -> None:
    levels = differences(pictures(256), PAPER)  # measured: 6e-4 of the values differ, at most by 3 after four changes
    assert levels.max() <= 4
    assert (levels > 0).mean() < 5e-3


@pytest.mark.parametrize(
    ("s", "change"),
    [
        (ROTATION, {"angle": 0.05}),
        (CROP, {"crop_x": 3}),
        (FLIP, {"flip": 0}),
        (BRIGHTNESS, {"brightness": 1.01}),
        (CONTRAST, {"contrast": 1.05}),
        (SATURATION, {"saturation": 0.95}),
        (HUE, {"hue": 0.02}),
        (PAPER, {"order": 7}),
    ],
    ids=["rotation", "crop", "flip", "brightness", "contrast", "saturation", "hue", "order"],
)
def test_the_comparison_with_torchvision_sees_another_parameter(s: AugmentParams, change: dict[str, float]) -> None:
    levels = differences(pictures(64), s, change)
    assert (levels > 0).mean() > 0.01


def test_cutout_fills_its_square_with_the_mean_and_nothing_else() -> None:
    images = pictures(64)
    out, drawn = ours(images, CUTOUT)
    for image, got, d in zip(images, out, drawn, strict=True):
        top, left = int(d.cutout_y), int(d.cutout_x)
        wanted = image.copy()
        wanted[max(top, 0) : max(top + 9, 0), max(left, 0) : max(left + 9, 0)] = (125, 123, 114)
        np.testing.assert_array_equal(got, wanted)
    assert {(d.cutout_y < 0, d.cutout_y + 9 > 32) for d in drawn} == {(False, False), (True, False), (False, True)}


def test_without_settings_an_image_stays_as_it_is() -> None:
    images = pictures(8)
    np.testing.assert_array_equal(ours(images, NOTHING)[0], images)


@pytest.mark.parametrize("where", DEVICES)
@pytest.mark.parametrize(
    "s",
    [NOTHING, FLIP, CROP, REFLECT, ROTATION, GEOMETRY, BRIGHTNESS, CUTOUT],
    ids=["nothing", "flip", "crop", "reflect", "rotation", "geometry", "brightness", "cutout"],
)
def test_tensor_form_gives_the_kernels_pixels_exactly(s: AugmentParams, where: str) -> None:
    images = pictures(96)
    got = device.augment_on_device(torch.from_numpy(images).to(where), np.arange(96), 5, 1, s).cpu().numpy()
    assert (got != ours(images, s)[0]).mean() < 1e-5  # a rotation's cosine may differ in its last bit on a GPU


@pytest.mark.parametrize("where", DEVICES)
@pytest.mark.parametrize("s", [BILINEAR, CONTRAST, SATURATION, HUE], ids=["bilinear", "contrast", "saturation", "hue"])
def test_tensor_form_is_within_one_level_of_the_kernels(s: AugmentParams, where: str) -> None:
    images = pictures(96)
    got = device.augment_on_device(torch.from_numpy(images).to(where), np.arange(96), 5, 1, s).cpu().numpy()
    levels = np.abs(got.astype(int) - ours(images, s)[0])
    assert levels.max() <= 1
    assert (levels > 0).mean() < 5e-3


@pytest.mark.parametrize("where", DEVICES)
def test_tensor_form_of_the_whole_set_follows_any_order_of_samples(where: str) -> None:
    images, s = pictures(128), PAPER._replace(cutout=6)
    samples = np.random.default_rng(3).permutation(128)[:77]
    wanted = kernels.augment_batch(images, samples, samples, 5, 1, s, np.empty_like(images[:77]))
    got = device.augment_on_device(torch.from_numpy(images).to(where), samples, 5, 1, s).cpu().numpy()
    levels = np.abs(got.astype(int) - wanted)
    assert levels.max() <= 4
    assert (levels > 0).mean() < 5e-3
    shuffled = device.augment_on_device(torch.from_numpy(images).to(where), samples[::-1].copy(), 5, 1, s).cpu().numpy()
    np.testing.assert_array_equal(shuffled[::-1], got)


def test_configuration_becomes_numbers_in_the_kernels_units() -> None:
    config = AugmentConfig(
        flip="alternating",
        crop_padding_px=4,
        crop_fill="reflect",
        rotation_deg=90.0,
        rotation_interpolation="bilinear",
        brightness=0.1,
        contrast=0.2,
        saturation=0.3,
        hue=0.4,
        cutout_px=8,
    )
    assert params.augment_params(config, 32, (0.5, 0.25, 1.0)) == AugmentParams(
        params.ALTERNATING_FLIP, 4, True, math.pi / 2, True, 0.1, 0.2, 0.3, 0.4, 8, 32, 128, 64, 255
    )
