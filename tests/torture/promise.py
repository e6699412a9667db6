"""What a promise is to the harness: a sentence, an attack on it, and the same attack where the mechanism is off."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.torture.ground import Ground


class Broken(Exception):
    """The promise did not hold. Says what was seen in its place."""


class Unable(Exception):
    """This machine cannot make the attack at all: it lacks a program or a right. Says which."""


def hold(held: object, otherwise: str) -> None:
    """Raise Broken, in these words, unless it ``held``."""
    if not held:
        raise Broken(otherwise)


@dataclass(frozen=True)
class Attacker:
    """What one attack is made with. Everything random comes from ``rng``, which the seed and ``number`` decide."""

    ground: Ground
    rng: random.Random
    number: int  # of this attack, from 0: those that go through a list take the item of that number


Attack = Callable[[Attacker], str]  # makes one, and says in a word or two where it struck; raises Broken


@dataclass(frozen=True)
class Promise:
    """One row of docs/guarantees.md.

    Attributes:
        number: As in the page's first column.
        promise, attack: A plain sentence each.
        at_least: Attacks of a full run.
        short: Attacks of the short form in ``make test``.
        strike: Makes one attack.
        control: Makes one with the mechanism switched off: Broken must come of it, or the attack could not see a fault.
        switched_off: The mechanism, in words.
    """

    number: int
    promise: str
    attack: str
    at_least: int
    short: int
    strike: Attack
    control: Attack
    switched_off: str
