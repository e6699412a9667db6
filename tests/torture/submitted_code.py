"""Row 14: what was submitted is what runs, whatever becomes of the checkout it was submitted from."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from runyard.run import Run
from tests.conftest import PATIENCE_S
from tests.torture.ground import ROOT, Ground, discard
from tests.torture.promise import Attacker, Promise, hold
from tests.training.conftest import final_state, same

SETTINGS = ("epochs=1", "checkpoint.keep_best=false")
EDITS = {  # of the network, of the loss's weight, of the schedule: each would learn something else
    "model": ("src/runyard/models/starter.py", "nn.ReLU", "nn.Sigmoid"),
    "optimizer": ("src/runyard/training/optimiser.py", "nesterov=True", "nesterov=False"),
    "learner": ("src/runyard/training/learner.py", "loss / count", "loss * 2 / count"),
}


def strike(a: Attacker, *, isolated: bool = True) -> str:
    """A run is created from a copy of the checkout, that copy is edited, moved or deleted, and the run is trained."""
    whole = reference(a.ground)
    checkout = copied(a.ground.scratch())
    run = created(a.ground, checkout)
    way = "edited" if not isolated else ("edited", "deleted", "moved")[a.number % 3]
    if way == "edited":
        edit(checkout, list(EDITS.values())[a.number // 3 % len(EDITS)] if isolated else EDITS["model"])
    elif way == "deleted":
        shutil.rmtree(checkout)
    else:
        checkout.rename(checkout.with_name("moved"))
    code = run.code if isolated else checkout / "src"
    said = train(run, code, checkout if checkout.exists() else run.path)
    hold(run.finished, f"{way}: it did not finish: {said[-300:]}")
    hold(same(final_state(run), whole), f"{way}: it learned something else")
    discard(run)
    shutil.rmtree(checkout.parent)
    return way


def reference(ground: Ground) -> object:
    """What a run learns that is trained from an untouched copy, in processes of its own as those are."""
    if not hasattr(ground, "submitted_code"):
        checkout = copied(ground.scratch())
        run = created(ground, checkout)
        train(run, run.code, checkout)
        ground.submitted_code = final_state(run)  # type: ignore[attr-defined]
    return ground.submitted_code  # type: ignore[attr-defined]


def copied(folder: Path) -> Path:
    """The parts of the checkout that a submission needs."""
    checkout = folder / "checkout"
    for part in ("src", "cluster", "configs", "slurm"):
        shutil.copytree(ROOT / part, checkout / part, ignore=shutil.ignore_patterns("__pycache__"))
    return checkout


def created(ground: Ground, checkout: Path) -> Run:
    settings = ground.config(*SETTINGS)  # prepares the data
    from tests.torture.ground import SETTINGS as SMALL

    runs_dir = checkout.parent / "runs"
    words = ["create", "experiment=null", *SMALL, *SETTINGS, f"data.root={settings.data.root}", f"runs_dir={runs_dir}"]
    done = subprocess.run([sys.executable, "-m", "runyard", *words], cwd=checkout, capture_output=True, text=True,
                          env=environment(checkout / "src", checkout), timeout=PATIENCE_S)  # fmt: skip
    hold(done.returncode == 0, done.stderr)
    return Run.open(done.stdout.strip())


def train(run: Run, code: Path, cwd: Path) -> str:
    """As a job does: the run's code before everything else, whatever lies in the working directory."""
    done = subprocess.run([sys.executable, "-m", "runyard", "train", str(run.path)], cwd=cwd, text=True,
                          env=environment(code) | {"PYTHONSAFEPATH": "1"}, timeout=PATIENCE_S,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    return done.stdout


def environment(*paths: Path) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, paths))}


def edit(checkout: Path, change: tuple[str, str, str]) -> None:
    path, old, new = checkout / change[0], change[1], change[2]
    text = path.read_text()
    assert old in text, f"{change[0]} has no {old} any more: give this attack another edit"
    path.write_text(text.replace(old, new))


def from_the_checkout(a: Attacker) -> str:
    return strike(a, isolated=False)


PROMISE = Promise(
    number=14,
    promise="What was submitted is what runs, whatever is done to the checkout afterwards.",
    attack="A checkout from which a run was created is edited (network, optimizer, loss), deleted or moved; then the "
    "run is trained.",
    at_least=10,
    short=1,
    strike=strike,
    control=from_the_checkout,
    switched_off="the job imports the checkout's code",
)
