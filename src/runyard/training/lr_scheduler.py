"""The learning rate as a pure function of the step: there is no state to save, lose or restore."""

from __future__ import annotations

import math

from runyard.config.schema import Config


def learning_rate(config: Config, step: int, steps_per_epoch: int) -> float:
    """The learning rate of optimiser step ``step``, counted from 0 over the whole training.

    Every curve moves a little at each step. The cosines equal torch's ``CosineAnnealingLR`` and
    ``CosineAnnealingWarmRestarts`` wherever those, stepped once per epoch, change theirs: where an epoch begins.
    A rise counts from the step before the first, so that step 0 already learns; a descent ends with the step after
    the last, so that the last still does.
    """
    c = config.schedule
    total = config.epochs * steps_per_epoch
    warm = min(round(c.warmup_epochs * steps_per_epoch), total - 1)
    if step < warm:
        return config.optim.lr * (step + 1) / (warm + 1)
    done, length = step - warm, total - warm
    if c.name == "constant":
        part = 1.0
    elif c.name == "cosine":
        part = _cosine(done / length)
    elif c.name == "cosine_restarts":
        assert c.period_epochs is not None
        period = max(1, round(c.period_epochs * steps_per_epoch))
        part = _cosine(done % period / period)
    else:
        assert c.peak_fraction is not None
        peak = min(round(c.peak_fraction * length), length - 1)
        if done < peak:
            return config.optim.lr * (done + 1) / (peak + 1)
        part = 1 - (done - peak) / (length - peak)
    return config.optim.lr * (c.final_lr_fraction + (1 - c.final_lr_fraction) * part)


def _cosine(done: float) -> float:
    return (1 + math.cos(math.pi * done)) / 2
