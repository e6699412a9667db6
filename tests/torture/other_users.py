"""Row 18: what another user plants in a shared folder is not run, not followed, not overwritten, and hangs nobody."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from runyard.run import Run
from tests.compare.fabricate import fabricate
from tests.torture.ground import First
from tests.torture.promise import Attacker, Promise, Unable, hold
from tests.torture.tracking_trouble import served, variables

OTHER = 65534  # nobody's uid
SECRET = b"this is the victim's own"
ESCAPE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x9b\u202e]")  # but tab and newline


class Share:
    """A folder that everybody may write, and a file of the victim's outside of it."""

    def __init__(self, a: Attacker) -> None:
        self.a, self.place = a, a.ground.scratch()
        self.shared = self.place / "shared"
        self.shared.mkdir()
        self.shared.chmod(0o1777)
        self.private = self.place / "private"
        self.private.write_bytes(SECRET)
        self.mark = self.place / "ran"

    def says(self, *words: str, first: First = (), **variables: str) -> tuple[int, str]:
        """A command of the victim's: its exit code and all it prints."""
        env = {"HOME": str(self.place), "COLUMNS": "200"} | variables
        code, said = self.a.ground.command(*words, env=env, first=first)
        hold("Traceback" not in said, f"{words[0]}: a traceback: {said.strip().splitlines()[-1:]}")
        return code, said

    def run(self, name: str = "20260901-000000-theirs-ab12") -> Path:
        """A run of the other user's in the shared folder, which anybody may read."""
        return fabricate(self.shared, self.a.ground.config("tracking=none"), name, test_images=20)

    def theirs(self, *paths: Path) -> None:
        """All of it belongs to the other user."""
        for path in paths:
            for each in (path, *path.rglob("*")):
                os.chown(each, OTHER, OTHER, follow_symlinks=False)

    def unharmed(self, what: str) -> None:
        hold(self.private.read_bytes() == SECRET, f"{what}: a file of the victim's was overwritten")
        hold(not self.mark.exists(), f"{what}: what was planted ran")


def planted_code(s: Share, first: First = ()) -> str:
    """The folder that a submission would take for its snapshot is there already, with other code in it."""
    honest = s.a.ground.run().code
    for store in {honest.parent.name, ".code"}:
        planted = s.shared / store / honest.name
        shutil.copytree(honest, planted)
        for file in ("cluster/task.py", "runyard/__init__.py"):
            (planted / file).write_text(f"import os; os.mkdir({str(s.mark)!r})\n")
        s.theirs(s.shared / store)
    code, said = s.says("create", *s.a.ground.words(f"runs_dir={s.shared}"), first=first)
    if code == 0:
        run = Run.open(said.strip().splitlines()[-1])
        strange = [p for p in (run.code, *run.code.rglob("*.py")) if p.stat().st_uid == OTHER]
        hold(not strange, f"planted code: the new run's code is another user's: {strange[:1]}")
    s.unharmed("planted code")
    return "planted code"


def planted_data(s: Share) -> str:
    """Where a node's copy of the data would go there is a folder with links, notes and other images."""
    from runyard.data import manifest

    config = s.a.ground.config()
    folder = manifest.folder(config.data)
    data = manifest.load(folder)
    for name in (f"runyard-{data.sha256[:16]}", f"runyard-{os.getuid()}", f"runyard-{os.getuid()}-{data.sha256[:16]}"):
        copy = s.shared / name
        copy.mkdir()
        files = {n: d for part in data.splits.values() for n, d in part.arrays_sha256.items()}
        for n, file in enumerate(files):
            if n % 2:
                (copy / file).symlink_to(s.private)
            else:
                shutil.copy(folder / file, copy / file)
                with open(copy / file, "r+b") as f:
                    f.seek(-64, 2)
                    f.write(bytes(64))
            (copy / file).with_suffix(".making").symlink_to(s.private)
        (copy / "lock").symlink_to(s.private)
        for start in ("alone", "0", "1"):
            (copy / f"verified-{start}").write_text(json.dumps(files))
        s.theirs(copy)
    run = s.a.ground.run("cluster=slurm", f"cluster.stage_data={s.shared}")
    ranks = s.a.ground.start(run, 1)
    codes = ranks.wait()
    hold(codes == [0] or "Traceback" not in ranks.said, f"planted data: a traceback: {ranks.said[-200:]}")
    if codes == [0]:
        other = s.a.ground.undisturbed(1).differences(run)
        hold(not other, f"planted data: learned from it; {other} differ")
    s.unharmed("planted data")
    return "planted data"


def links(s: Share) -> str:
    """Files and folders of a run lead out of it; verbs that read or write there must not follow."""
    run, rng = s.run(), s.a.rng
    name = rng.choice((".sync-lock", "report", "predictions.npz", "metrics.jsonl", "data.json", "progress.json"))
    path = run / name
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    outside = s.place / "outside"
    outside.mkdir()
    (outside / "index.html").write_bytes(SECRET)
    path.symlink_to(outside if name == "report" else s.private)
    s.theirs(run)
    for verb in ("report", "status", "logs", "export csv", "compare"):
        words = verb.split()
        s.says(*words, str(run), *(["--runs-dir", str(s.shared)] if verb != "export csv" else []))
    hold((outside / "index.html").read_bytes() == SECRET, f"{name}: a file behind the link was overwritten")
    s.unharmed(f"{name} as a link")
    return "links out of a run"


def links_sent(s: Share) -> str:
    """`sync` of a run whose files are links sends nothing of what they lead to."""
    run, outside = s.run(), s.place / "outside"
    outside.mkdir()
    (outside / "id_rsa").write_bytes(SECRET)
    for name, target in (("predictions.npz", s.private), ("code", outside), ("data.json", s.private)):
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(target)
    s.theirs(run)
    with served() as server:
        s.says("sync", str(run), **variables(server.url, str(s.place)))
        sent = [content for each in (*server.runs.values(), *server.artifacts) for content in each.files.values()]
    hold(not any(SECRET in content for content in sent), "sync sent a file that a link leads to")
    return "links that are sent"


def odd_files(s: Share) -> str:
    """A FIFO or a device where a file is expected: no command waits for it or reads for ever."""
    run, rng = s.run(), s.a.rng
    path = run / rng.choice(("metrics.jsonl", "run.json", "config.yaml", "progress.json", "predictions.npz", "lease"))
    path.unlink(missing_ok=True)
    if rng.random() < 0.5:
        os.mkfifo(path)
    else:
        path.symlink_to(rng.choice(("/dev/zero", "/dev/tty", "/dev/stdin")))
    s.theirs(run)
    for words in (["status"], ["status", str(run)], ["compare"], ["logs", str(run)]):
        s.says(*words, "--runs-dir", str(s.shared))
    return "FIFO and devices"


def escapes(s: Share) -> str:
    """Control characters in whatever a record, a journal or a log holds do not reach the terminal."""
    run, bad = s.run(), "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e"
    record = json.loads((run / "run.json").read_text())
    record["name"] = f"x{bad}"
    record["jobs"] = [{"id": "12", "launcher": "slurm", "cluster": bad, "logs": "slurm", "submitted": 1.0, "nodes": 1}]
    (run / "run.json").write_text(json.dumps(record))
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"event": "start", "t": 2e9, "hostname": bad, "nodelist": bad, "step": 0, "epoch": 0}))
        file.write("\n" + json.dumps({"event": "stop", "t": 2e9 + 1, "reason": "failed", "message": bad}) + "\n")
    s.theirs(run)
    for words in (["status"], ["compare"], ["logs", str(run)]):
        _, said = s.says(*words, "--runs-dir", str(s.shared))
        found = ESCAPE.findall(said)
        hold(not found, f"{words[0]}: {found[:3]} reach the terminal")
    return "terminal escapes"


def paths_in_records(s: Share) -> str:
    """A record that names a folder elsewhere: its files are not shown."""
    run = s.run()
    logs = s.place / "logs"
    logs.mkdir()
    (logs / "12_0_log.out").write_bytes(SECRET)
    record = json.loads((run / "run.json").read_text())
    where = s.a.rng.choice((str(logs), "../../logs", str(s.place)))
    record["jobs"] = [{"id": "12", "launcher": "slurm", "cluster": "x", "logs": where, "submitted": 1.0, "nodes": 1}]
    (run / "run.json").write_text(json.dumps(record))
    s.theirs(run)
    _, said = s.says("logs", str(run))
    hold(SECRET.decode() not in said, f"logs={where}: a file outside of the run is shown")
    return "paths in records"


def secrets_in_settings(s: Share) -> str:
    """A configuration that would expand a key into what is kept is refused."""
    key = "5ec7e7" * 6
    setting = s.a.rng.choice(("tracking.project", "cluster.comment", "name", "tracking.group"))
    words = s.a.ground.words(f"runs_dir={s.shared}", f"{setting}=${{oc.env:TORTURE_API_KEY}}")
    s.says("create", *words, TORTURE_API_KEY=key)
    held = [p for p in s.shared.rglob("*") if p.is_file() and key.encode() in p.read_bytes()]
    hold(not held, f"{setting}: the key is frozen into {held[:1]}")
    return "secrets in settings"


WAYS: tuple[Callable[[Share], str], ...] = (
    planted_code, planted_data, links, odd_files, escapes, paths_in_records, secrets_in_settings, links_sent,
    links, odd_files,
)  # fmt: skip


def strike(a: Attacker) -> str:
    if os.getuid() != 0:
        raise Unable("another user's files can be made by root alone")
    share = Share(a)
    where = WAYS[a.number % len(WAYS)](share)
    shutil.rmtree(share.place, ignore_errors=True)
    return where


def trusting(a: Attacker) -> str:
    """Nobody asks whose a folder is, nor what is in it."""
    if os.getuid() != 0:
        raise Unable("another user's files can be made by root alone")
    return planted_code(Share(a), first=[("tests.torture.other_users:trust_everything",)])


def trust_everything() -> None:
    """In the victim's process."""
    from runyard import snapshot

    snapshot.private_folder = lambda folder, **_: folder  # type: ignore[attr-defined]
    snapshot.verify = lambda *_, **__: None  # type: ignore[attr-defined]


PROMISE = Promise(
    number=18,
    promise="What another user plants in a shared folder is not run, not followed, not overwritten, shows no file of "
    "one's own, steers no terminal and hangs no command.",
    attack="Code, data and notes under the names that a run would use; links out of a run, FIFOs and devices in place "
    "of its files, paths and control characters in its records, settings that expand a key; all owned by another uid.",
    at_least=50,
    short=10,
    strike=strike,
    control=trusting,
    switched_off="nobody asks whose code it is",
)

