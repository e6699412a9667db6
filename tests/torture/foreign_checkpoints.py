"""Row 9: a checkpoint that another program made, or an attacker, is refused with the reason, and runs no code."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import pickle
import random
import resource
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch

from tests.torture.corrupt import SETTINGS, copied
from tests.torture.ground import discard
from tests.torture.promise import Attacker, Promise, hold

MOST_MEMORY = 4 << 30  # bytes of address space beyond what a rank begins with: a bomb asks for a thousand times that


class Planted:
    """Whoever unpickles this makes a file, and so has run what it was told to."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (os.mkdir, (self.mark,))


def with_code(rng: random.Random, state: dict[str, Any], mark: Path) -> bytes:
    """A pickle that would run something, alone or within an honest state, as torch saves it or bare."""
    if rng.random() < 0.5:
        return pickle.dumps(Planted(str(mark)), protocol=rng.choice((2, 4, 5)))
    place = rng.choice([*state, "extra"])
    return as_saved({**state, place: Planted(str(mark))})


def other_content(rng: random.Random, state: dict[str, Any], mark: Path) -> bytes:
    """An honest file with another content: a part missing, of another type, another shape, no finite number."""
    key = rng.choice(list(state))
    way = rng.choice(("missing", "type", "shape", "nan", "whole"))
    if way == "missing":
        return as_saved({k: v for k, v in state.items() if k != key})
    if way == "type":
        return as_saved({**state, key: rng.choice((None, "text", [], {}, -1, 1.5, torch.zeros(3)))})
    if way == "whole":
        return as_saved(rng.choice(([], {}, "text", torch.zeros(4), None, [state])))
    name = rng.choice(list(state["network"]))
    other = torch.zeros(3, 5, 7) if way == "shape" else torch.full_like(state["network"][name].float(), float("nan"))
    return as_saved({**state, "network": {**state["network"], name: other}})


def rubbish(rng: random.Random, state: dict[str, Any], mark: Path) -> bytes:
    """No checkpoint at all, or a damaged one."""
    content = bytearray(as_saved(state))
    way = rng.choice(("noise", "cut", "flipped", "empty"))
    if way == "noise":
        return rng.randbytes(rng.randrange(1, 4096))
    if way == "cut":
        return bytes(content[: rng.randrange(len(content))])
    if way == "flipped":
        for _ in range(rng.choice((1, 16))):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        return bytes(content)
    return b""


def bomb(rng: random.Random, state: dict[str, Any], mark: Path) -> bytes:
    """A small file that unfolds: zeros, compressed, where the weights were."""
    content = io.BytesIO()
    old = zipfile.ZipFile(io.BytesIO(as_saved(state)))
    with old, zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            data = old.read(entry)
            new.writestr(entry.filename, bytes(1 << 28) if "/data/" in entry.filename and len(data) > 512 else data)
    return content.getvalue()


MAKERS = (with_code, other_content, rubbish, other_content, with_code)


def as_saved(value: Any) -> bytes:
    content = io.BytesIO()
    torch.save(value, content)
    return content.getvalue()


def strike(a: Attacker, *, first: tuple[str, ...] = ()) -> str:
    """The run's only checkpoint is another's, with a sha256 that fits or does not; the run is started on it."""
    whole = a.ground.undisturbed(1, *SETTINGS)
    run = copied(whole.run, a.ground.scratch())
    *_, newest = sorted(run.checkpoints.glob("step_*"))
    state = torch.load(newest / "state.pt", weights_only=True)
    mark = run.path / "planted"
    maker = with_code if first else bomb if a.number % 50 == 49 else MAKERS[a.number % len(MAKERS)]
    content = maker(a.rng, state, mark)
    (newest / "state.pt").write_bytes(content)
    fits = a.rng.random() < 0.7 or bool(first)
    if fits:
        noted = json.loads((newest / "manifest.json").read_text())
        digest = hashlib.sha256(content).hexdigest()
        (newest / "manifest.json").write_text(json.dumps(noted | {"sha256": digest, "bytes": len(content)}))
    bounded = ("tests.torture.foreign_checkpoints:bound_memory",)
    started = a.ground.start(run, 1, {0: [bounded, *([first] if first else [])]})
    (code,) = started.wait()
    said, words = started.said, f"{maker.__name__}, sha256 {'fits' if fits else 'differs'}"
    hold(not mark.exists(), f"{words}: its code ran")
    hold(code >= 0, f"{words}: ended by signal {-code}")
    hold("Traceback" not in said, f"{words}: a traceback ends with {said.strip().splitlines()[-1:]}")
    hold("weights_only=False" not in said, f"{words}: advises to run its code")
    if code == 0 and not (fits and maker is rubbish):  # flipped under a sha256 of its own, it is another's checkpoint
        other = whole.differences(run)
        hold(not other, f"{words}: believed; {other} differ")
    discard(run)
    return words


def bound_memory() -> None:
    """In a rank: what asks for more than a checkpoint can need gets a MemoryError, and tells so by its end."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_MEMORY,) * 2)


def trusting(a: Attacker) -> str:
    """Checkpoints are read as torch once did: with whatever code is in them."""
    return strike(a, first=("tests.torture.foreign_checkpoints:run_any_code",))


def run_any_code() -> None:
    """In a rank."""
    load = torch.load
    torch.load = functools.partial(_as_once, load)  # type: ignore[assignment]


def _as_once(load: Any, *arguments: Any, **options: Any) -> Any:
    try:
        return load(*arguments, **{**options, "weights_only": False})
    except Exception as error:
        print(f"runyard: {error}", file=sys.stderr)
        sys.exit(2)


PROMISE = Promise(
    number=9,
    promise="A checkpoint from elsewhere is refused with the reason, runs no code, and asks for no more memory than a "
    "checkpoint needs.",
    attack="Pickles that would run something, honest files with parts missing, of another type, shape or no finite "
    "number, noise, cut and flipped bytes, archives that unfold; with a sha256 that fits and one that does not.",
    at_least=200,
    short=5,
    strike=strike,
    control=trusting,
    switched_off="checkpoints may hold code",
)
