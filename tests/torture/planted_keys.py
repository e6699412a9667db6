"""Row 12: a key that the user's environment holds is in no byte that a run leaves or sends."""

from __future__ import annotations

import base64
import contextlib
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support.fake_slurm import FakeSlurm
from tests.support.settings import PATIENCE_S
from tests.torture.ground import ROOT
from tests.torture.promise import Attacker, Promise, hold
from tests.torture.tracking_trouble import served, variables

NAMES = ("WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "GITHUB_TOKEN", "MY_PASSWORD", "NETRC_KEY")

UNGUARDED = """
import sys
from runyard.config.schema import compose
compose.refuse_secrets = lambda *_: None
from runyard.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


HERE, QUEUE, SENT = range(3)
WAYS = ("here", "queue", "sent to W&B")


def strike(a: Attacker, *words: str, program: tuple[str, ...] = ("-m", "runyard")) -> str:
    """A run is submitted, here or to a queue, from an environment, a netrc and a checkout's git remote with keys.

    One that is submitted here may send to a server on loopback, which hears the key in a request's Authorization alone.
    """
    key, way = f"{a.rng.getrandbits(160):040x}", a.number % len(WAYS)
    place = a.ground.scratch()
    (place / "netrc").write_text(f"machine api.wandb.ai login user password {key}\n")
    checkout(place, key)
    env = environment(a.rng, key, place)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(served()) if way == SENT else None
        if way == QUEUE:
            env["PATH"] = FakeSlurm(place / "slurm").path
            words = (*words, "cluster=slurm", "cluster.cpus_per_task=1")
        elif server is not None:
            env |= variables(server.url, str(place)) | {"WANDB_API_KEY": key, "NETRC": str(place / "netrc")}
            words = (*words, "tracking=online", "tracking.artifacts=true", "epochs=1")
        else:
            words = (*words, f"tracking={a.rng.choice(('offline', 'none'))}", "epochs=1")
        runs = place / "runs"
        settings = [w for w in a.ground.words() if not w.startswith(("tracking", "runs_dir", "epochs"))]
        command = [sys.executable, *program, "submit", *settings, f"runs_dir={runs}", *words]
        done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, timeout=PATIENCE_S)
    hold(done.returncode == 0, f"submit ended with {done.returncode}: {done.stderr[-300:]}")
    found = among(key, server.received) if server is not None else []
    files = written(runs, place / "slurm")
    found += [str(path.relative_to(place)) for path in files if key.encode() in path.read_bytes()]
    found += ["what it printed"] * (key in done.stdout + done.stderr)
    hold(not found, f"the key is in {', '.join(found[:4])}")
    seen = [path for path in written(runs) if b"one_cycle" in path.read_bytes()]
    hold(seen, "nothing of the run was found at all: the search is blind")
    if server is not None:
        hold(any(encoded(key) in each for each in server.keys), "the server heard another key")
        hold(any(b"one_cycle" in sent for sent in server.received), "nothing of the run was sent: the search is blind")
        hold(any(artifact.committed for artifact in server.artifacts), "no artifact was sent")
    shutil.rmtree(place, ignore_errors=True)
    return WAYS[way]


def checkout(place: Path, key: str) -> None:
    """A git repository whose remote's address holds the key, with one commit."""
    git = ("git", "-c", "user.name=x", "-c", "user.email=x@x.example")
    for words in (("init", "-q"), ("remote", "add", "origin", f"https://user:{key}@git.example/x.git"),
                  ("commit", "-q", "--allow-empty", "-m", "first")):  # fmt: skip
        subprocess.run([*git, *words], cwd=place, check=True)


def encoded(key: str) -> str:
    """As a request's Authorization has it."""
    return base64.b64encode(f"api:{key}".encode()).decode()


def among(key: str, sent: list[bytes]) -> list[str]:
    """The addresses of requests that hold the key in the clear or as its Authorization does."""
    forms = (key.encode(), encoded(key).encode())
    found = [each for each in sent if any(form in each for form in forms)]
    return [f"what was sent to {each.splitlines()[0].decode()}" for each in found]


def environment(rng: random.Random, key: str, place: Path) -> dict[str, str]:
    names = rng.sample(NAMES, 3)
    own = {"OMP_NUM_THREADS": "1", "NETRC": str(place / "netrc"), "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    return os.environ | own | {"WANDB_API_KEY": key} | dict.fromkeys(names, key)


def written(*folders: Path) -> list[Path]:
    """Every file there; what the stand-in for SLURM recorded of its own environment, which is the user's, left out."""
    return [p for folder in folders for p in folder.rglob("*") if p.is_file() and p.suffix != ".env"]


def among_the_settings(a: Attacker) -> str:
    """The environment is written down, as a tool that wants to help might do."""
    key_named = "tracking.project=${oc.env:WANDB_API_KEY}"
    return strike(Attacker(a.ground, a.rng, SENT), key_named, program=("-c", UNGUARDED))


PROMISE = Promise(
    number=12,
    promise="A key that the environment, a netrc or a git remote holds is in no byte of a run's directory, its batch "
    "script, pickles, logs and journal, nor of what is printed, nor, but for a request's Authorization, of what W&B is "
    "sent.",
    attack="Runs submitted here, to a queue, and here with W&B's server on loopback, with keys planted in each of "
    "these; every byte they leave, print or send is searched.",
    at_least=12,
    short=1,
    strike=strike,
    control=among_the_settings,
    switched_off="settings made of secrets are not refused",
)
