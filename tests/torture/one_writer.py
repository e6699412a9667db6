"""Row 6: one process at a time writes a run, however many want to; and one job is on the queue for it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from runyard.run import Run
from runyard.tracking import journal
from tests.conftest import PATIENCE_S
from tests.torture.ground import discard, epochs, until
from tests.torture.promise import Attacker, Promise, hold


def contend(run_dir: str, go: str, seed: str, control: str) -> None:
    """In a process: want the lease at once with others, write while it is held, and hold a mark meanwhile.

    The mark is a file that only one can create: two at a time would be seen whatever the lease says.
    """
    from runyard import lease as lease_module
    from runyard.errors import UserError
    from runyard.lease import LeaseLost
    from runyard.tracking.journal import Journal

    rng = random.Random(seed)
    lease_module.POLL_S = 0.01
    if control:  # the mechanism switched off: whoever asks gets it
        lease_module._gate = lambda folder: contextlib.nullcontext(True)  # type: ignore[assignment]
        lease_module.judge = lambda *_: lease_module.Verdict.TAKE  # type: ignore[assignment]
    run = Run.open(run_dir)
    while not Path(go).exists():
        time.sleep(0.0005)
    for _ in range(rng.randint(1, 4)):
        try:
            lease = run.lease()
        except UserError:
            time.sleep(rng.uniform(0, 0.02))
            continue
        mark = os.open(f"{run_dir}/writing", os.O_CREAT | os.O_EXCL)
        book = Journal(run.journal_path, lease.check)
        try:
            for _ in range(rng.randint(1, 5)):
                book.write("warning", message=f"by {os.getpid()}")
                time.sleep(rng.uniform(0, 0.01))
        except LeaseLost:
            sys.exit(3)
        os.close(mark)
        os.unlink(f"{run_dir}/writing")
        lease.release()


def race(a: Attacker, *, control: bool = False) -> str:
    """Two to eight processes want the lease again and again at the same time."""
    run, count = a.ground.run(), a.rng.randint(2, 8)
    go, said = run.path / "go", run.path / "slurm" / "contenders.log"
    pids = [
        a.ground.zygote.start(
            said, ("tests.torture.one_writer:contend", str(run.path), str(go), str(a.rng.random()), "x" * control)
        )
        for _ in range(count)
    ]  # fmt: skip
    go.touch()
    codes = [a.ground.zygote.wait(pid) for pid in pids]
    hold(codes == [0] * count, f"{count} processes ended with {codes}: {last_line(said)}")
    _, broken = journal.read(run.journal_path)
    hold(broken == 0, f"{broken} lines of the journal are broken")
    discard(run)
    return "race"


def last_line(file: Path) -> str:
    return (file.read_text().strip().splitlines() or ["nothing was said"])[-1]


def orphan(a: Attacker) -> str:
    """A start is stopped in the middle, another takes the run over, and the first wakes while that trains on."""
    run = a.ground.run("epochs=6")
    first = a.ground.start(run, 1)
    wanted = a.rng.randint(1, 3)
    until(lambda: epochs(run) >= wanted or not first.alive(), f"epoch {wanted}")
    first.signal(0, signal.SIGSTOP)
    if not stopped(first.pids[0]):
        discard(run)
        return "orphan that was done"
    silence(run)
    second = a.ground.start(run, 1)
    before = epochs(run)
    until(lambda: epochs(run) > before or not second.alive(), "the successor's first epoch")
    first.signal(0, signal.SIGCONT)
    codes = [*first.wait(), *second.wait()]
    hold(codes[1] == 0 and run.finished, f"the successor ended with {codes[1]}: {second.said}")
    rows, broken = journal.read(run.journal_path)
    starts = [row for row in rows if row["event"] == "start"]
    after = rows[rows.index(starts[-1]) :]
    hold(broken == 0 and sum(row["event"] == "stop" for row in after) == 1, "the orphan wrote into the journal")
    other = a.ground.undisturbed(1, "epochs=6").differences(run)
    hold(not other, f"{other} differ after an orphan woke")
    discard(run)
    return "orphan"


def silence(run: Run) -> None:
    """As if the holder were of another node and had not been heard of for long: nobody can know that it lives."""
    path = run.path / "lease"
    holder = json.loads(path.read_text())
    path.write_text(json.dumps(holder | {"host": "elsewhere", "boot": "another"}))
    os.utime(path, (time.time() - 3600,) * 2)


def stopped(pid: int) -> bool:
    """Whether it is held still by now; False if it ended first."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        if status in "TZ":
            return status == "T"
        time.sleep(0.001)
    return False


def strike(a: Attacker) -> str:
    return orphan(a) if a.number % 4 == 3 else race(a)


def everybody_takes_it(a: Attacker) -> str:
    return race(a, control=True)


PROMISE = Promise(
    number=6,
    promise="One process at a time writes a run, and one that wakes late writes nothing.",
    attack="Races of 2 to 8 processes for the lease; a start that is held still, succeeded by another, and wakes while "
    "that trains.",
    at_least=100,
    short=4,
    strike=strike,
    control=everybody_takes_it,
    switched_off="whoever asks for the lease gets it",
)
