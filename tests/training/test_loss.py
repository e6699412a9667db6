"""The loss, and the mixing of images: equal to the textbook's, and the same on any number of ranks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from runyard.config.schema import LossConfig
from runyard.training.loss import Loss, Targets, cutmix_box, mix_batch

MIXUP = LossConfig(label_smoothing=0.0, mixup_alpha=0.8, cutmix_alpha=0.0)
CUTMIX = LossConfig(label_smoothing=0.0, mixup_alpha=0.0, cutmix_alpha=1.0)
BOTH = LossConfig(label_smoothing=0.0, mixup_alpha=0.8, cutmix_alpha=1.0)

Mixer = Callable[[Tensor, Tensor, LossConfig, int, int], tuple[Tensor, Targets]]


def batch(size: int = 16) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(size, 8, 12, 3, generator=rng).permute(0, 3, 1, 2)  # channels last in memory, as the loader's
    return images, torch.randint(10, (size,), generator=rng)


def soft(targets: Targets, classes: int = 10) -> Tensor:
    """Targets as a table of shares, the textbook's form."""
    out = F.one_hot(targets.labels, classes) * targets.label_weight
    return (
        out
        if targets.partner_labels is None
        else out + F.one_hot(targets.partner_labels, classes) * (1 - targets.label_weight)
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.05, 0.2])
def test_the_loss_is_torchs_label_smoothed_cross_entropy(smoothing: float) -> None:
    logits, labels = torch.randn(16, 10), batch()[1]
    ours = Loss(LossConfig(label_smoothing=smoothing, mixup_alpha=0.0, cutmix_alpha=0.0))
    assert torch.equal(ours(logits, labels), F.cross_entropy(logits, labels, label_smoothing=smoothing))
    assert torch.equal(ours(logits, Targets(labels)), ours(logits, labels))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_of_mixed_targets_is_torchs_with_soft_targets(smoothing: float) -> None:
    images, labels = batch()
    logits, targets = torch.randn(16, 10), mix_batch(images, labels, MIXUP, 0, 3)[1]
    assert 0.02 < targets.label_weight < 0.98
    wanted = F.cross_entropy(logits, soft(targets), label_smoothing=smoothing)
    ours = Loss(LossConfig(label_smoothing=smoothing, mixup_alpha=0.0, cutmix_alpha=0.0))
    torch.testing.assert_close(ours(logits, targets), wanted)


def test_the_loss_is_computed_in_float32() -> None:
    logits, labels = torch.randn(16, 10).bfloat16(), batch()[1]
    assert Loss(MIXUP)(logits, labels).dtype == torch.float32


def test_with_nothing_to_mix_the_images_come_back_untouched() -> None:
    images, labels = batch()
    mixed, targets = mix_batch(images, labels, LossConfig(label_smoothing=0.2, mixup_alpha=0.0, cutmix_alpha=0.0), 0, 3)
    assert mixed is images
    assert targets == Targets(labels)


def test_mixup_blends_each_image_with_its_neighbour() -> None:
    images, labels = batch()
    mixed, targets = mix_batch(images, labels, MIXUP, 0, 3)
    order = torch.arange(16) ^ 1
    torch.testing.assert_close(mixed, targets.label_weight * images + (1 - targets.label_weight) * images[order])
    assert targets.partner_labels is not None
    assert torch.equal(targets.partner_labels, labels[order])


def test_cutmix_pastes_a_box_of_the_neighbour_and_weighs_it_by_its_real_area() -> None:
    images, labels = batch()
    order, areas = torch.arange(16) ^ 1, set()
    for step in range(40):
        mixed, targets = mix_batch(images, labels, CUTMIX, 0, step)
        own, other = (mixed == images).all(1), (mixed == images[order]).all(1)
        assert bool((own ^ other).all())
        assert bool((own == own[0]).all()), "one box for the whole batch"
        assert targets.label_weight == pytest.approx(float(own.float().mean()), abs=1e-6)
        rows, columns = other[0].any(1).nonzero(), other[0].any(0).nonzero()
        if len(rows):
            assert int(other[0].sum()) == (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1), "one rectangle"
        areas.add(targets.label_weight)
    assert len(areas) > 20


@pytest.mark.parametrize("config", [MIXUP, CUTMIX], ids=["mixup", "cutmix"])
def test_mixing_keeps_the_memory_format_and_the_given_images(config: LossConfig) -> None:
    images, labels = batch()
    before = images.clone()
    mixed = mix_batch(images, labels, config, 0, 3)[0]
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, before)


def cutting_commutes(mixer: Mixer, config: LossConfig, pieces: int) -> bool:
    """Whether mixing the global batch and cutting it among ranks is cutting it and mixing the shares."""
    images, labels = batch()
    for step in range(6):
        mixed, targets = mixer(images, labels, config, 7, step)
        parts = [mixer(a, b, config, 7, step) for a, b in zip(images.chunk(pieces), labels.chunk(pieces), strict=True)]
        if not (
            torch.equal(torch.cat([part for part, _ in parts]), mixed)
            and torch.equal(torch.cat([soft(t) for _, t in parts]), soft(targets))
            and torch.equal(torch.cat([t.majority_labels for _, t in parts]), targets.majority_labels)
        ):
            return False
    return True


@pytest.mark.parametrize("config", [MIXUP, CUTMIX, BOTH], ids=["mixup", "cutmix", "both"])
@pytest.mark.parametrize("pieces", [2, 4, 8])
def test_mixing_does_not_depend_on_the_number_of_ranks(config: LossConfig, pieces: int) -> None:
    assert cutting_commutes(mix_batch, config, pieces)


def test_partners_from_the_far_end_of_the_batch_would_depend_on_the_number_of_ranks() -> None:
    def far(images: Tensor, labels: Tensor, config: LossConfig, seed: int, step: int) -> tuple[Tensor, Targets]:
        return images.lerp(images.flip(0), 0.3), Targets(labels, labels.flip(0), 0.7)

    assert not cutting_commutes(far, MIXUP, 2)


@pytest.mark.parametrize("config", [MIXUP, CUTMIX, BOTH], ids=["mixup", "cutmix", "both"])
def test_what_is_drawn_depends_on_seed_and_step_and_nothing_else(config: LossConfig) -> None:
    def draw(seed: int, step: int) -> Tensor:
        images, labels = batch()
        return mix_batch(images, labels, config, seed, step)[0]

    wanted = draw(1, 5)
    torch.rand(3)
    np.random.default_rng().random()
    assert torch.equal(draw(1, 5), wanted)
    assert not torch.equal(draw(1, 6), wanted)
    assert not torch.equal(draw(2, 5), wanted)
    draw(2**63 - 1, 10**9)


def test_with_both_set_about_half_of_the_steps_use_each() -> None:
    images, labels = batch(2)
    cuts = sum(
        bool(((m := mix_batch(images, labels, BOTH, 0, step)[0]) == images).any() or (m == images.flip(0)).any())
        for step in range(300)
    )
    assert 110 < cuts < 190


def test_top_1_counts_the_label_that_holds_the_larger_part() -> None:
    labels, partners = torch.tensor([1, 2]), torch.tensor([2, 1])
    assert torch.equal(Targets(labels).majority_labels, labels)
    assert torch.equal(Targets(labels, partners, 0.7).majority_labels, labels)
    assert torch.equal(Targets(labels, partners, 0.3).majority_labels, partners)


def test_a_box_stays_in_the_image_and_covers_what_it_should_when_it_fits() -> None:
    rng, fits = np.random.default_rng(0), 0
    for _ in range(300):
        weight = float(rng.random())
        top, bottom, left, right = cutmix_box(rng, weight, 32, 32)
        assert 0 <= top <= bottom <= 32
        assert 0 <= left <= right <= 32
        if min(top, left) > 0 and max(bottom, right) < 32:
            side = 32 * (1 - weight) ** 0.5
            assert (bottom - top, right - left) == (pytest.approx(side, abs=1.01), pytest.approx(side, abs=1.01))
            fits += 1
    assert fits > 30
