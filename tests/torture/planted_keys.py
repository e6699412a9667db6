"""Row 12: a key that the user's environment holds is in no byte that a run leaves or sends."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

from tests.cluster.fake_slurm import FakeSlurm
from tests.conftest import PATIENCE_S
from tests.torture.ground import ROOT
from tests.torture.promise import Attacker, Promise, hold

NAMES = ("WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "GITHUB_TOKEN", "MY_PASSWORD", "NETRC_KEY")

UNGUARDED = """
import sys
from cluster import compose
compose.refuse_secrets = lambda *_: None
from runyard.cli import main
sys.exit(main(sys.argv[1:]))
"""


def strike(a: Attacker, *words: str, program: tuple[str, ...] = ("-m", "runyard")) -> str:
    """A run is submitted, here or to a queue, from an environment, a netrc and a checkout's git remote with keys."""
    key = f"{a.rng.getrandbits(160):040x}"
    place = a.ground.scratch()
    (place / "netrc").write_text(f"machine api.wandb.ai login user password {key}\n")
    git = place / ".git"
    git.mkdir()
    (git / "config").write_text(f'[remote "origin"]\n\turl = https://user:{key}@git.example/x.git\n')
    slurm = a.number % 2 == 1
    env = environment(a.rng, key, place)
    if slurm:
        fake = FakeSlurm(place / "slurm")
        env["PATH"] = fake.path
        words = (*words, "cluster=slurm", "cluster.cpus_per_task=1")
    else:
        words = (*words, f"tracking={a.rng.choice(('offline', 'none'))}", "epochs=1")
    runs = place / "runs"
    settings = [w for w in a.ground.words() if not w.startswith(("tracking", "runs_dir", "epochs"))]
    command = [sys.executable, *program, "submit", *settings, f"runs_dir={runs}", *words]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=PATIENCE_S)
    hold(done.returncode == 0, f"submit ended with {done.returncode}: {done.stderr[-300:]}")
    files = written(runs, place / "slurm")
    found = [str(path.relative_to(place)) for path in files if key.encode() in path.read_bytes()]
    found += ["what it printed"] * (key in done.stdout + done.stderr)
    hold(not found, f"the key is in {', '.join(found[:4])}")
    seen = [path for path in written(runs) if b"one_cycle" in path.read_bytes()]
    hold(seen, "nothing of the run was found at all: the search is blind")
    return "queue" if slurm else "here"


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
    return strike(Attacker(a.ground, a.rng, 0), key_named, program=("-c", UNGUARDED))


PROMISE = Promise(
    number=12,
    promise="A key that the environment, a netrc or a git remote holds is in no byte of a run's directory, its batch "
    "script, pickles, logs and journal, nor of what is printed.",
    attack="Runs submitted here and to a queue with keys planted in each of these; every byte they leave is searched.",
    at_least=10,
    short=1,
    strike=strike,
    control=among_the_settings,
    switched_off="settings made of secrets are not refused",
)
