"""The learning rate as a pure function of the step: there is no state to save, lose or restore."""

from __future__ import annotations

import math

from runyard.config.schema import Config


def learning_rate(config: Config, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of optimizer step ``step``, counted from 0 over the whole training.

    A schedule changes at each step, not once per epoch. At the beginning of each epoch the cosines equal torch's
    ``CosineAnnealingLR`` and ``CosineAnnealingWarmRestarts``, stepped once per epoch. A rise starts from zero at the
    step before the first, so that step 0 already learns; a descent ends at the step after the last, so that the last
    step still learns.
    """
    c = config.schedule
    total = config.epochs * steps_per_epoch
    warmup_steps = min(round(c.warmup_epochs * steps_per_epoch), total - 1)
    if step < warmup_steps:
        return config.optim.lr * (step + 1) / (warmup_steps + 1)
    done, length = step - warmup_steps, total - warmup_steps
    if c.name == "constant":
        factor = 1.0
    elif c.name == "cosine":
        factor = _cosine(done / length)
    elif c.name == "cosine_restarts":
        assert c.period_epochs is not None
        period = max(1, round(c.period_epochs * steps_per_epoch))
        factor = _cosine(done % period / period)
    else:
        assert c.peak_fraction is not None
        peak = min(round(c.peak_fraction * length), length - 1)
        if done < peak:
            return config.optim.lr * (done + 1) / (peak + 1)
        factor = 1 - (done - peak) / (length - peak)
    return config.optim.lr * (c.final_lr_fraction + (1 - c.final_lr_fraction) * factor)


def _cosine(done: float) -> float:
    return (1 + math.cos(math.pi * done)) / 2
