"""Row 14: what was submitted is what runs, whatever becomes of the checkout it was submitted from."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from runyard.runs.run import Run
from tests.support.settings import PATIENCE_S
from tests.torture.ground import ROOT, Ground, discard
from tests.torture.promise import Attacker, Promise, hold

SETTINGS = ("epochs=1", "checkpoint.keep_best=false")
JOB = "import sys; from runyard.cluster.job.train_job import TrainJob; TrainJob(sys.argv[1])()"
EDITS = {  # each would learn something else
    "model": ("src/runyard/models/starter.py", "nn.ReLU(", "nn.LeakyReLU("),
    "optimizer": ("src/runyard/training/optimizer.py", "nesterov=config.momentum > 0", "nesterov=False"),
    "learner": ("src/runyard/training/train_state.py", "loss / count", "loss * 2 / count"),
}


def strike(a: Attacker, *, isolated: bool = True) -> str:
    """A run is created from a copy of the checkout, that copy is edited, moved or deleted, and the run is trained."""
    checkout = copied(a.ground.scratch())
    run = created(a.ground, checkout)
    way = "edited" if not isolated else ("edited", "deleted", "moved", "edited before predict")[a.number % 4]
    if way == "edited before predict":
        predicted(a, run, checkout)
    else:
        change(checkout, way, list(EDITS.values())[a.number // 4 % len(EDITS)])
        said = trained(run, (run.code_path,) if isolated else (checkout / "src", checkout))
        hold(run.is_finished, f"{way}: it did not finish: {said[-300:]}")
        other = a.ground.undisturbed(1, *SETTINGS).differences(run)
        hold(not other, f"{way}: it learned something else: {other} differ")
    discard(run)
    shutil.rmtree(checkout.parent)
    return way


def change(checkout: Path, way: str, edit: tuple[str, str, str]) -> None:
    if way == "deleted":
        shutil.rmtree(checkout)
    elif way == "moved":
        checkout.rename(checkout.with_name("moved"))
    else:
        path, old, new = checkout / edit[0], edit[1], edit[2]
        text = path.read_text()
        assert old in text, f"{edit[0]} has no {old} any more: give this attack another edit"
        path.write_text(text.replace(old, new))


def predicted(a: Attacker, run: Run, checkout: Path) -> None:
    """Labels that an edited checkout gives are those that the unedited one gave."""
    trained(run, (run.code_path,))
    images = checkout.parent / "images.npy"
    np.save(images, np.random.default_rng(a.rng.randrange(2**32)).integers(0, 256, (64, 16, 16, 3), np.uint8))
    labels = []
    for edited in (False, True):
        if edited:
            change(checkout, "edited", EDITS["model"])
        out = checkout.parent / f"labels-{edited}.csv"
        words = ("-m", "runyard", "predict", str(run.path), "--images", str(images), "--out", str(out))
        done = python(words, (checkout / "src", checkout), cwd=checkout)
        hold(done.returncode == 0, f"predict: {done.stdout[-300:]}")
        labels.append(out.read_text())
    hold(labels[0] == labels[1], "predict: an edit of the checkout's network gave other labels")


def copied(folder: Path) -> Path:
    """The parts of the checkout that a submission needs."""
    checkout = folder / "checkout"
    for part in ("src", "cluster", "configs", "slurm"):
        shutil.copytree(ROOT / part, checkout / part, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    return checkout


def created(ground: Ground, checkout: Path) -> Run:
    words = ("-m", "runyard", "create", *ground.words(*SETTINGS), f"runs_dir={checkout.parent / 'runs'}")
    done = python(words, (checkout / "src", checkout), cwd=checkout)
    hold(done.returncode == 0, done.stdout)
    return Run.open(done.stdout.strip())


def trained(run: Run, code: tuple[Path, ...]) -> str:
    """As a job does it, with this code before everything else."""
    return python(("-c", JOB, str(run.path)), code, cwd=run.path).stdout


def python(words: tuple[str, ...], code: tuple[Path, ...], cwd: Path) -> subprocess.CompletedProcess[str]:
    own = {"OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(map(str, code))}
    return subprocess.run([sys.executable, *words], cwd=cwd, env=os.environ | own, text=True, timeout=PATIENCE_S,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


def from_the_checkout(a: Attacker) -> str:
    return strike(a, isolated=False)


PROMISE = Promise(
    number=14,
    promise="What was submitted is what runs, and what labels, whatever is done to the checkout afterwards.",
    attack="A checkout from which a run was created is edited (network, optimizer, loss), deleted or moved; then the "
    "run is trained, or labels images.",
    at_least=10,
    short=1,
    strike=strike,
    control=from_the_checkout,
    switched_off="the job imports the checkout's code",
)
