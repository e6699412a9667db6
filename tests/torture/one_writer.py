"""Row 6: one process at a time writes a run, however many want to; and one job is on the queue for it."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from runyard.runs import journal
from runyard.runs.journal import Journal
from runyard.runs.run import Run
from tests.support.fake_slurm import SBATCH, FakeSlurm
from tests.support.settings import PATIENCE_S
from tests.support.zygote import First
from tests.torture.ground import Ground, discard, epochs, until
from tests.torture.promise import Attacker, Broken, Promise, hold


def contend(run_dir: str, go: str, seed: str, control: str) -> None:
    """In a process: want the lease at once with others, write while it is held, and hold a mark meanwhile.

    The mark is a file that only one can create: two at a time would be seen whatever the lease says.
    """
    from runyard.errors import UserError
    from runyard.runs import lease as lease_module
    from runyard.runs.journal import Journal
    from runyard.runs.lease import LeaseLost

    rng = random.Random(seed)
    lease_module.LEASE_POLL_S = 0.01
    if control:  # the mechanism switched off: whoever asks gets it
        lease_module._gate = lambda folder: contextlib.nullcontext(True)  # type: ignore[assignment]
        lease_module.decide_lease = lambda *_: lease_module.LeaseDecision.TAKE  # type: ignore[assignment]
    run = Run.open(run_dir)
    while not Path(go).exists():
        time.sleep(0.0005)
    for _ in range(rng.randint(1, 4)):
        try:
            lease = run.acquire_lease()
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
    _, broken = journal.read_journal(run.journal_path)
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
    hold(codes[1] == 0 and run.is_finished, f"the successor ended with {codes[1]}: {second.said}")
    rows, broken = journal.read_journal(run.journal_path)
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


HASTY = ("tests.torture.one_writer:hasty",)


def hasty() -> None:
    """In a command."""
    from runyard.cluster.monitor import cancel

    cancel.CANCEL_POLL_S = 0.05


class Queue:
    """A login node, whose SLURM is the stand-in of tests/cluster, and a run of it that stopped."""

    def __init__(self, ground: Ground) -> None:
        self.ground, self.slurm = ground, FakeSlurm(ground.scratch() / "slurm")
        self.run = ground.run("cluster=slurm", "cluster.cpus_per_task=1")
        Journal(self.run.journal_path).write("stop", reason="interrupted", message="", cause="TERM")

    def commands(self, *verbs: str, first: First = ()) -> list[tuple[int, str]]:
        """These at once, on the one run: how each ended, and its last line."""
        lines = [[verb, *(["--wait-s", "0"] if verb == "cancel" else []), str(self.run.path)] for verb in verbs]
        ended = self.ground.commands(lines, {"PATH": self.slurm.path}, [HASTY, *first])
        for verb, (_, said) in zip(verbs, ended, strict=True):
            hold("Traceback" not in said, f"{verb}: a traceback: {said.strip().splitlines()[-1:]}")
        return [(code, (said.strip().splitlines() or [""])[-1]) for code, said in ended]

    @property
    def known(self) -> list[str]:
        """The jobs of the run's record."""
        return [str(job["id"]) for job in Run.open(self.run.path).record["jobs"]]

    @property
    def waiting(self) -> list[str]:
        """The jobs on the queue."""
        queue = self.slurm.folder / "queue"
        return [line.partition("|")[0] for line in queue.read_text().splitlines()] if queue.exists() else []

    def has_one(self, what: str) -> None:
        """The run has one job, and knows it."""
        hold(len(self.waiting) == 1, f"{what}: {len(self.waiting)} jobs wait")
        hold(self.waiting == self.known[-1:], f"{what}: job {self.waiting} waits, the record knows {self.known}")

    def is_cancelled(self, what: str) -> None:
        """A `cancel` that comes last leaves none."""
        ((code, said),) = self.commands("cancel")
        hold(not self.waiting, f"{what}: cancel ended with {code}, and {len(self.waiting)} jobs wait: {said}")


def commands(a: Attacker, *, control: bool = False) -> str:
    """Two to eight commands for one run at the same time: all of them `resume`, or `cancel` among them."""
    q, mixed = Queue(a.ground), not control and a.number % 2 == 1
    verbs = ["resume", "resume", *a.rng.choices(("resume", "cancel") if mixed else ("resume",), k=a.rng.randint(0, 6))]
    a.rng.shuffle(verbs)
    if control:  # the first waits for another, so that they meet
        q.slurm.program("sbatch", SBATCH.replace("number=", f"{MEETS}number="))
    ended = q.commands(*verbs, first=[("tests.torture.one_writer:lock_nothing",)] * control)
    submitted = len(q.slurm.submissions)
    accepted = sum(verb == "resume" and code == 0 for verb, (code, _) in zip(verbs, ended, strict=True))
    hold(submitted == accepted, f"{submitted} jobs were submitted, {accepted} commands say so")
    for verb, (code, said) in zip(verbs, ended, strict=True):
        refused = "is waiting already" if verb == "resume" else "nothing to cancel"
        hold(code == 0 or refused in said or (verb, code) == ("cancel", 1), f"{verb} ended with {code}: {said}")
    if "cancel" not in verbs:
        hold(accepted == 1, f"{len(verbs)} commands at once: {accepted} were accepted")
    if "cancel" not in verbs or q.waiting:
        q.has_one(f"{', '.join(verbs)} at once")
    q.is_cancelled(f"after {', '.join(verbs)} at once")
    discard(q.run)
    return "commands, cancel among them" if "cancel" in verbs else "commands"


MEETS = 'until [ "$(grep -c "^sbatch /" "$here/calls")" -ge 2 ]; do /bin/sleep 0.05; done; '
# What sbatch does as its command is killed with SIGKILL.
KILLED = {
    "before sbatch": "case $1 in --*) exit ;; esac; kill -KILL $PPID; exit 1\n",
    "within sbatch": f"case $1 in --*) exit ;; esac; kill -KILL $PPID; /bin/sleep 0.3\n{SBATCH}",
    "after sbatch": SBATCH.replace("exit ;; esac", "exit ;; esac; trap 'kill -KILL $PPID' EXIT", 1),
}


def killed(a: Attacker) -> str:
    """A command that submits is killed, at sbatch or at any call; the next one adopts its job, or cancels it."""
    q, way = Queue(a.ground), (*KILLED, "any call", "any call", "any call")[a.number % 6]
    first: First = ()
    if way in KILLED:
        q.slurm.program("sbatch", KILLED[way])
    else:
        call = a.rng.randint(1, calls(a.ground))
        first = [("tests.torture.moments:signal_at_any_call", call, signal.SIGKILL)]
    ((code, said),) = q.commands("resume", first=first)
    hold(code == -signal.SIGKILL or way not in KILLED, f"{way}: the command was to be killed: {code}, {said}")
    q.slurm.program("sbatch", SBATCH)
    if a.rng.random() < 0.5:
        ((code, said),) = q.commands("resume")
        hold(code == 0 or "is waiting already" in said, f"killed {way}; resume ended with {code}: {said}")
        q.has_one(f"killed {way}, resumed")
    q.is_cancelled(f"killed {way}")
    discard(q.run)
    return f"submission killed, {way}"


@functools.cache
def calls(ground: Ground) -> int:
    """How many functions an undisturbed `resume` calls."""
    q, file = Queue(ground), ground.scratch() / "calls"
    q.commands("resume", first=[("tests.torture.moments:count_calls", str(file))])
    discard(q.run)
    return int(file.read_text())


def lock_nothing() -> None:
    """In a command: it does not wait for others, nor look what they did."""
    from runyard.cluster.launch import submit

    @contextlib.contextmanager
    def at_once(run: Path, reference: str) -> Iterator[int | None]:
        yield None

    submit.submission_lock = at_once
    submit.require_first_job = lambda *_: None


WAYS = (race, commands, killed, orphan)  # no longer than promise.short: each is in the short form


def strike(a: Attacker) -> str:
    """Of each way the attacks are numbered from 0."""
    return WAYS[a.number % len(WAYS)](Attacker(a.ground, a.rng, a.number // len(WAYS)))


def everybody_takes_it(a: Attacker) -> str:
    """Of the two mechanisms one after the other: that a race shows the lease's absence, and commands their lock's."""
    with contextlib.suppress(Broken):
        race(a, control=True)
        return "race"
    return commands(a, control=True)


PROMISE = Promise(
    number=6,
    promise="One process at a time writes a run, and one that wakes late writes nothing; a run has one job, which its "
    "record knows, whoever submits it at once and whenever a command is killed.",
    attack="Races of 2 to 8 processes for the lease; a start that is held still, succeeded by another, and wakes while "
    "that trains; 2 to 8 `resume` and `cancel` of one run at once, against a stand-in for SLURM; `resume` killed "
    "before, within and after sbatch and at any call, then `resume` and `cancel`.",
    at_least=120,
    short=4,
    strike=strike,
    control=everybody_takes_it,
    switched_off="whoever asks for the lease gets it, and commands wait for no other",
)
