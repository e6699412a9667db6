"""Row 10: whatever is typed, a mistake costs one line, seconds, and nothing outside the folder of runs."""

from __future__ import annotations

import os
import random
import resource
import shutil
import sys
from pathlib import Path

from tests.torture.promise import Attacker, Promise, hold

MOST_CPU_S = 5  # of the command's own work, beyond what a process needs to begin; a busy machine does not lengthen it
VERBS = ("create", "submit --dry-run", "submit --cfg job", "status", "logs", "cancel", "resume", "train", "report",
         "compare", "leaderboard", "sync", "export csv", "predict", "inspect", "settings", "completion")  # fmt: skip
NAMES = ("name", "seed", "epochs", "batch_size", "accumulate", "eval_batch_size", "loader", "workers", "precision",
         "ema_decay", "compile", "model", "model.widths", "optim", "optim.lr", "optim.betas", "schedule",
         "schedule.warmup_epochs", "loss.label_smoothing", "augment.flip", "augment.rotation_deg", "data.num_classes",
         "data.samples", "data.image_size", "data.name", "checkpoint.every_s", "checkpoint.keep_last", "tracking",
         "tracking.project", "tracking.tags", "cluster", "cluster.nodes", "cluster.timeout_min", "cluster.partition",
         "cluster.env_setup", "cluster.comment", "experiment", "hydra.run.dir", "data.kind", "epohcs", "")  # fmt: skip
VALUES = ("0", "-1", "1", "3", "1e3", "1e999", "nan", "inf", "null", "true", "[]", "[1]", "[1,2", "{}", "{a: 1}", "''",
          "'", '"', "\\", "$HOME", "${oc.env:HOME}", "${now:%s}", "${epochs}", "${", "a b", "a;b", "a\nb", "a\x00b"[:1],
          "\x1b[31m", "é", "\u202e", "x" * 300, "../../x", "a/b", ".", "..", "-", "--", "~", "%j", "1,2", "range(0,3)",
          "range(5,1)", "range(0,1,0)", "choice(1,2)", "9" * 400, "0x10", "0123", "1_000", "yes", "[[[[[[]]]]]]",
          "log(1e-3,1)", "starter", "paper", "adamw", "sgd", "resident", "fp16", "bf16", "#", "=", "=1")  # fmt: skip
RUNS = ("@last", "@first", "", ".", "..", "/", "nowhere", "../x", "2026", "x" * 300, "\x1b[2J", "a b", "-x", "é", "~")
OPTIONS = ("--json", "--all", "--sweep", "--detach", "--attach", "--after", "-m", "-w", "--out", "--images",
           "--nothing", "--to", "--wait-s", "-n", "--runs-dir", "--help", "--version", "-", "--")  # fmt: skip


def line(rng: random.Random) -> list[str]:
    """A command line: a verb, and up to six words that may belong to it."""
    verb = rng.choice(VERBS) if rng.random() < 0.95 else rng.choice(VALUES)
    words = []
    for _ in range(rng.randint(0, 6)):
        kind = rng.random()
        if kind < 0.6:
            words.append(rng.choice(("", "", "", "", "+", "++", "~")) + rng.choice(NAMES) + "=" + rng.choice(VALUES))
        elif kind < 0.75:
            words.append(rng.choice(RUNS))
        elif kind < 0.9:
            words += [rng.choice(OPTIONS), *([rng.choice(VALUES)] if rng.random() < 0.4 else [])]
        else:
            words.append(rng.choice(VALUES))
    return [*verb.split(" "), *(word for word in words if word not in ("-w", "--watch"))]


def strike(a: Attacker, *, first: tuple[str, ...] = ()) -> str:
    """One command line, in a folder that is watched."""
    words = ["create", "epochs=0"] if first else line(a.rng)
    place = a.ground.scratch()
    (place / "here" / "runs").mkdir(parents=True)
    settle = ("tests.torture.command_lines:settle", str(place / "here"))
    call = ("tests.torture.command_lines:say", str(place / "seconds"), *words)
    log = place / "said"
    env = {"HOME": str(place / "home"), "XDG_CACHE_HOME": str(a.ground.folder / "cache"), "WANDB_MODE": "offline"}
    pid = a.ground.zygote.start(log, call, env, [settle, *([first] if first else [])])
    code = a.ground.zygote.wait(pid)
    said, shown = log.read_text(errors="replace"), " ".join(map(repr, words))
    wrong = [text for text in said.splitlines() if text.startswith("runyard: ")]
    hold("Traceback" not in said, f"{shown}: a traceback: {said.strip().splitlines()[-1:]}")
    hold(code in (0, 1, 2), f"{shown}: ended with {code}")
    hold(code != 2 or len(wrong) == 1, f"{shown}: {len(wrong)} lines tell what is wrong")
    hold("\x1b[2J" not in said and "\x00" not in said, f"{shown}: control characters reach the terminal")
    took = float((place / "seconds").read_text() or 0)
    hold(took < MOST_CPU_S, f"{shown}: {took:.1f} s of CPU")
    left = [str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()]
    outside = [name for name in left if not name.startswith(("here/runs/", "home/", "said", "seconds"))]
    hold(not outside or "--out" in words, f"{shown}: wrote {outside[:3]}")
    shutil.rmtree(place)
    return "refused" if code == 2 else "done"


def settle(folder: str) -> None:
    """In the process: where the command is typed. What it may need of the machine is bounded."""
    os.chdir(folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 28,) * 2)


def say(file: str, *words: str) -> None:
    """In the process: the command line, and how many CPU seconds it took."""
    from runyard.cli.main import main

    began = resource.getrusage(resource.RUSAGE_SELF)
    Path(file).touch()
    try:
        code = main(list(words))
    except SystemExit as end:  # --help
        code = end.code if isinstance(end.code, int) else 1
    now = resource.getrusage(resource.RUSAGE_SELF)
    Path(file).write_text(str(now.ru_utime + now.ru_stime - began.ru_utime - began.ru_stime))
    sys.exit(code)


def in_the_raw(a: Attacker) -> str:
    """A mistake is not turned into a line."""
    return strike(a, first=("tests.torture.command_lines:turn_nothing_into_lines",))


def turn_nothing_into_lines() -> None:
    """In the process."""
    from runyard.cli import main as cli

    cli.ExplainedError = ZeroDivisionError  # type: ignore[misc,assignment]


PROMISE = Promise(
    number=10,
    promise="Whatever is typed, a mistake is answered in one line within seconds, without a traceback, and nothing is "
    "written outside the folder of runs.",
    attack="Command lines drawn from commands, settings, odd values (numbers, quotes, brackets, interpolations, paths, "
    "control characters, 300 letters, 400 digits), references and options.",
    at_least=1000,
    short=40,
    strike=strike,
    control=in_the_raw,
    switched_off="mistakes are not turned into lines",
)
