"""Row 11: whatever W&B does, the training learns the same, and after `sync` W&B has each metric once."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from runyard.runs import journal
from runyard.runs.run import Run
from tests.support.life import KEY
from tests.support.wandb_server import WandbServer, is_one_history
from tests.torture.ground import EPOCHS, Ranks, discard, epochs, until
from tests.torture.promise import Attacker, Promise, hold

TROUBLES = (
    "500", "429", "1 byte/s", "swallowing", "silence", "refused", "takes no more", "client killed",
    "500 from the first", "behind a proxy", "behind a proxy that dies", "behind a proxy that is not there",
)  # fmt: skip
EVENTS = {"500": "fail", "429": "fail", "1 byte/s": "drip", "swallowing": "swallow", "silence": "stall",
          "behind a proxy that dies": "hang_up"}  # fmt: skip
BEHIND = "http://wandb.invalid"  # which only the proxy finds
NOBODY = "http://127.0.0.1:9"  # the discard port: nobody listens
LIMITS_S = {"FINISH_TIMEOUT_S": 5.0, "INTERRUPTED_TIMEOUT_S": 5.0}  # of the client's end, in place of a minute
ENDS_WITHIN_S = 60.0  # of its last step, with a limit of 5 s: the rest is for machines that are slow


def strike(a: Attacker, *, send_the_rest: bool = True) -> str:
    """A run of one rank is logged to a server on loopback that fails it on its way; then the server is well again."""
    trouble = TROUBLES[a.number % len(TROUBLES)]
    run, place = a.ground.run("tracking=online"), a.ground.scratch()
    with served() as server:
        env = variables(server.url, str(place)) | behind(server, trouble)
        if trouble == "500 from the first":
            server.fail.set()
        if trouble == "429":
            server.failure = 429
        if trouble == "takes no more":
            server.most_history_lines = 1
        ranks = a.ground.start(run, 1, {0: [("tests.torture.tracking_trouble:hasty",)]}, env=env)
        after = a.rng.randint(1, EPOCHS)
        worry = threading.Thread(target=make_trouble, args=(trouble, server, ranks, after))
        worry.start()
        codes = ranks.wait()
        took = time.time() - journal.epochs(journal.read_journal(run.journal_path)[0])[-1]["t"]
        worry.join()
        hold(codes == [0], f"{trouble}: the training ended with {codes}: {ranks.said[-300:]}")
        hold(run.is_finished, f"{trouble}: it did not finish")
        hold(took <= ENDS_WITHIN_S, f"{trouble}: it ended {took:.0f} s after its last step")
        other = a.ground.undisturbed(1).differences(run)
        hold(not other, f"{trouble}: it learned something else: {other}")
        server.be_well()
        through = bool(server.asked_as_proxy)
        hold(through or trouble != "behind a proxy", f"{trouble}: nothing went through the proxy")
        if not through:
            server.gives = server.url
        if send_the_rest:
            sync(a, run, env if through else variables(server.url, str(place)), trouble)
        once(server, run, trouble)
    discard(run)
    return trouble


def behind(server: WandbServer, trouble: str) -> dict[str, str]:
    """Where W&B is, and what leads there."""
    if not trouble.startswith("behind"):
        return {"WANDB_BASE_URL": NOBODY if trouble == "refused" else server.url}
    server.gives = BEHIND
    proxy = NOBODY if trouble.endswith("not there") else server.url
    return {"WANDB_BASE_URL": BEHIND, "HTTP_PROXY": proxy, "http_proxy": proxy, "NO_PROXY": "", "no_proxy": ""}


@contextlib.contextmanager
def served() -> Iterator[WandbServer]:
    server = WandbServer()
    try:
        yield server
    finally:
        server.close()


def variables(url: str, home: str) -> dict[str, str]:
    return {"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY, "HOME": home} | own_files(Path(home))


def own_files(home: Path) -> dict[str, str]:
    names = ("NETRC", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")
    return {name: f"{home}/{name.lower()}" for name in names}


def make_trouble(trouble: str, server: WandbServer, ranks: Ranks, after: int) -> None:
    """Once so many epochs are done."""
    until(lambda: epochs(ranks.run) >= after or not ranks.alive(), "an epoch")
    if trouble in EVENTS:
        getattr(server, EVENTS[trouble]).set()
    elif trouble == "client killed":
        with contextlib.suppress(OSError):  # it has ended
            for pid in helpers(ranks.pids[0]):
                os.kill(pid, signal.SIGKILL)


def helpers(rank: int) -> list[int]:
    """W&B's own processes, which are the rank's children."""
    children = Path(f"/proc/{rank}/task/{rank}/children").read_text().split()
    return [int(pid) for pid in children if b"wandb-core" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def hasty() -> None:
    """In the rank."""
    from runyard.tracking.wandb import live

    for name, seconds in LIMITS_S.items():
        setattr(live, name, seconds)


def sync(a: Attacker, run: Run, env: dict[str, str], trouble: str) -> None:
    code, said = a.ground.command("sync", str(run.path), env=env)
    hold(code == 0, f"{trouble}: sync ended with {code}: {said[-300:]}")


def once(server: WandbServer, run: Run, trouble: str) -> None:
    hold(run.id in server.runs, f"{trouble}: W&B knows nothing of the run")
    served = server.runs[run.id]
    try:
        is_one_history(served, EPOCHS)
    except AssertionError:
        numbers = [row.get("epoch") for row in served.history]
        said = f"{served.rewritten} sent twice, {served.holes} missing"
        hold(False, f"{trouble}: W&B has epochs {numbers}, {said}")


without_sync = functools.partial(strike, send_the_rest=False)

PROMISE = Promise(
    number=11,
    promise="Whatever W&B does, the training comes to the same bits and ends within a minute of its last step; after "
    "`sync` W&B has each metric once.",
    attack="A server on loopback that answers 500 (from the first, or from some epoch on) or 429, a byte a second, or "
    "200 and keeps nothing, falls silent, refuses connections, or takes no more; reached through a proxy alone, which "
    "dies on the way or is not there; the client's own process killed.",
    at_least=36,
    short=1,
    strike=strike,
    control=lambda a: without_sync(Attacker(a.ground, a.rng, TROUBLES.index("500 from the first"))),
    switched_off="what was not sent is not sent later",
)
