"""Row 18: what another user plants in a shared folder is not run, not followed, not overwritten, and hangs nobody."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from runyard.runs.run import Run
from tests.support.fake_slurm import NUMBER, FakeSlurm
from tests.support.second_user import as_nobody
from tests.support.zygote import First
from tests.torture.one_writer import stopped
from tests.torture.promise import Attacker, Promise, Unable, hold
from tests.torture.shared_folder import OTHER, SECRET, Share
from tests.torture.tracking_trouble import served, variables

ESCAPE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x9b\u202e]")  # but tab and newline


def planted_code(s: Share, first: First = ()) -> str:
    """The folder that a submission would take for its snapshot is there already, with other code in it."""
    honest = s.a.ground.run().code_path
    for store in {honest.parent.name, ".code"}:
        planted = s.shared / store / honest.name
        shutil.copytree(honest, planted)
        for file in ("runyard/cluster/job/task.py", "runyard/__init__.py"):
            (planted / file).write_text(f"import os; os.mkdir({str(s.mark)!r})\n")
        s.theirs(s.shared / store)
    code, said = s.says("create", *s.a.ground.words(f"runs_dir={s.shared}"), first=first)
    if code == 0:
        run = Run.open(said.strip().splitlines()[-1])
        strange = [p for p in (run.code_path, *run.code_path.rglob("*.py")) if p.stat().st_uid == OTHER]
        hold(not strange, f"planted code: the new run's code is another user's: {strange[:1]}")
    s.unharmed("planted code")
    return "planted code"


def planted_data(s: Share) -> str:
    """Where a node's copy of the data would go there is a folder with links, notes and other images."""
    from runyard.data import manifest

    config = s.a.ground.config()
    folder = manifest.dataset_dir(config.data)
    data = manifest.load_manifest(folder)
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
    trusts = rng.random() < 0.5  # a person has said that the report may be written there
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
        where = ["--runs-dir", str(s.shared)] if verb != "export csv" else []
        s.says(*words, str(run), *where, *(["--trust"] if verb == "report" and trusts else []))
    hold((outside / "index.html").read_bytes() == SECRET, f"{name}: a file behind the link was overwritten")
    s.unharmed(f"{name} as a link")
    return "links out of a run"


def links_sent(s: Share) -> str:
    """`sync` of a run whose files are links sends nothing of what they lead to."""
    run, outside = s.run(), s.place / "outside"
    outside.mkdir()
    (outside / "id_rsa").write_bytes(SECRET)
    for name, target in (("predictions.npz", s.private), ("code", outside), ("data.json", s.private),
                         (".sync-lock", s.private)):  # fmt: skip
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(target)
    s.theirs(run)
    with served() as server:
        trusted = ["--trust"] * s.a.rng.randint(0, 1)
        s.says("sync", str(run), *trusted, **variables(server.url, str(s.place)))
        sent = server.received
    hold(not any(SECRET in content for content in sent), "sync sent a file that a link leads to")
    hold(bool(sent) == bool(trusted), f"sync {' '.join(trusted)} sent {len(sent)} requests for another user's run")
    s.unharmed("links that are sent")
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


def foreign_jobs(s: Share) -> str:
    """`cancel` of a run whose record names a job of the victim's own, by number, by name or as an array, ends none."""
    slurm, rng = FakeSlurm(s.place / "slurm"), s.a.rng
    slurm.says("queue", f"{NUMBER}|unrelated||{s.place}/unrelated.sh\n")
    run = s.run("20260901-000000-theirs-ab12", "cluster=slurm", end="")
    record = json.loads((run / "run.json").read_text())
    job = {"launcher": "slurm", "cluster": "x", "logs": "slurm", "submitted": 1.0, "nodes": 1, "name": "unrelated"}
    record["jobs"] = [job | {"id": rng.choice((NUMBER, f"{NUMBER}_0", f"{NUMBER},{NUMBER}", "--me", "--user=root"))}]
    record |= rng.choice(({}, {"id": "unrelated"}, {"sweep": "unrelated"}))
    (run / "run.json").write_text(json.dumps(record))
    s.theirs(run)
    for verb in ("cancel", "status"):
        wait = ["--wait-s", "0"] if verb == "cancel" else []
        s.says(verb, *wait, str(run), "--runs-dir", str(s.shared), PATH=slurm.path)
    hold(slurm.queue == ["unrelated"], "cancel ended a job that is none of its run's")
    hold(not slurm.calls("scancel"), f"cancel of another's record called {slurm.calls('scancel')}")
    return "foreign jobs"


def resumed(s: Share) -> str:
    """`resume` of another user's run does not run the code in it; nor does `predict`."""
    run = s.run(end="interrupted")
    (run / "code").unlink(missing_ok=True)
    honest = s.a.ground.run().code_path
    shutil.copytree(honest, run / "code")
    for file in ("runyard/cluster/job/task.py", "runyard/__init__.py", "runyard/predict.py"):
        (run / "code" / file).write_text(f"import os; os.mkdir({str(s.mark)!r})\n")
    s.theirs(run)
    code, said = s.says("resume", "--detach", str(run))
    hold(code == 2 and "belongs to" in said, f"resume of another user's run ended with {code}: {said[-200:]}")
    code, said = s.says("predict", str(run), "--images", str(s.place), "--out", str(s.place / "labels.csv"))
    hold(code == 2, f"predict with another user's run ended with {code}: {said[-200:]}")
    s.unharmed("resume")
    return "resume"


def planted_kernels(s: Share) -> str:
    """Machine code for augmentation, and compiled graphs, under the names that this user's caches have in /tmp."""
    for name in ("runyard-kernels", "runyard-inductor"):
        planted = s.shared / f"{name}-{os.getuid()}"
        if s.a.rng.random() < 0.3:
            planted.symlink_to(s.place)
            os.chown(planted, OTHER, OTHER, follow_symlinks=False)
            continue
        planted.mkdir(mode=0o777)
        (planted / "kernels.nbi").write_bytes(b"planted")
        s.theirs(planted)
    where = s.place / "chosen"
    env = {"TMPDIR": str(s.shared), "NUMBA_CACHE_DIR": "", "HOME": "/dev/null"}
    first = [("tests.torture.other_users:write_caches", str(where))]
    s.says("status", "--runs-dir", str(s.shared), first=first, **env)
    for folder in where.read_text().split():
        ours = not Path(folder).is_symlink() and Path(folder).stat().st_uid == os.getuid()
        hold(ours, f"{folder} is used as a cache")
    return "planted caches"


def write_caches(file: str) -> None:
    """In the victim's process: which folders it takes compiled code from."""
    import tempfile

    from runyard.data import compiled
    from runyard.ownership import compiler_cache

    tempfile.tempdir = None  # found anew, by this environment
    compiled.cache_folder.cache_clear()
    chosen = [str(compiled.cache_folder() or "")]
    with contextlib.suppress(OSError):
        chosen.append(str(compiler_cache(Path(tempfile.gettempdir()), "inductor", "2")))
    Path(file).write_text(" ".join(chosen))


def open_to_all(s: Share) -> str:
    """Submitted with a umask of 000: no file of the run may be written by others, and none is reached by them."""
    slurm = FakeSlurm(s.place / "slurm")
    words = s.a.ground.words(f"runs_dir={s.shared}", "cluster=slurm", "cluster.cpus_per_task=1")
    code, said = s.says("submit", "--json", *words, first=[("os:umask", 0)], PATH=slurm.path)
    hold(code == 0, f"submit under umask 000 ended with {code}: {said[-200:]}")
    own = [p for p in s.shared.iterdir() if p.lstat().st_uid == os.getuid()]
    files = [p for top in own for p in (top, *top.rglob("*")) if not p.is_symlink()]
    hold(any(p.suffix == ".pkl" for p in files), "no pickle was found: the search is blind")
    loose = [str(p.relative_to(s.shared)) for p in files if p.stat().st_mode & 0o022]
    hold(not loose, f"under umask 000 others can write {loose[:3]}")
    for top in own:
        said = as_nobody(lambda top=top: os.listdir(top))  # type: ignore[misc]
        hold(not top.is_dir() or "PermissionError" in said, f"under umask 000 others can look into {top.name}")
    return "umask 000"


def store(s: Share) -> str:
    """While ranks meet and train on one node: they listen on loopback alone, and their secret is theirs."""
    run = s.a.ground.run()
    moments = (
        "runyard.training.distributed.process_group:_wait_for_all",
        "runyard.training.train_state:TrainState.train_step",
    )
    stops = [("tests.torture.moments:raise_at", name, 1, "before", signal.SIGSTOP) for name in moments]
    ranks = s.a.ground.start(run, 2, {0: stops})
    hold(stopped(ranks.pids[0]), f"rank 0 ended: {ranks.said[-200:]}")
    (address,) = (run.path / "slurm").glob("rendezvous-*.json")
    run.path.chmod(0o755)  # as if the folders above did not keep others out
    (run.path / "slurm").chmod(0o755)
    secret = as_nobody(address.read_text)
    ranks.signal(0, signal.SIGCONT)
    hold(stopped(ranks.pids[0]), f"rank 0 ended: {ranks.said[-200:]}")
    found = [host for pid in ranks.pids for host in listens_on(pid)]
    ranks.signal(0, signal.SIGCONT)
    hold(ranks.wait() == [0, 0], f"the ranks ended badly: {ranks.said[-200:]}")
    hold("PermissionError" in secret or "FileNotFoundError" in secret, f"another user reads {address.name}")
    hold(found, "no rank listens: the search is blind")
    hold(set(found) == {LOOPBACK}, f"ranks of one node listen on {sorted(set(found) - {LOOPBACK})}")
    return "store"


LOOPBACK = "0100007F"  # as /proc/net/tcp writes 127.0.0.1


def listens_on(pid: int) -> list[str]:
    """The addresses at which a process waits for TCP connections, as /proc/net/tcp and tcp6 write them."""
    files = [link for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
    sockets = {os.readlink(link).removeprefix("socket:[").rstrip("]") for link in files}
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return [words[1].partition(":")[0] for words in lines if words[3] == "0A" and words[9] in sockets]


def inline_scripts(s: Share) -> str:
    """What a record holds is no script on a page of a comparison or a report."""
    bad = "</script><script>planted()</script><img src=x onerror=planted()>"
    run = s.run("20260901-000000-theirs-ab12", end="failed")
    record = json.loads((run / "run.json").read_text())
    record |= {"name": bad, "overrides": [f"+x={bad}"]}
    (run / "run.json").write_text(json.dumps(record))
    (run / "config.yaml").write_text((run / "config.yaml").read_text().replace("name: starter", f"name: '{bad}'"))
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"event": "stop", "t": 2e9, "reason": "failed", "message": bad, "hostname": bad}) + "\n")
    s.theirs(run)
    s.says("compare", "--all", "--runs-dir", str(s.shared), "--html", str(s.place / "compare.html"))
    s.says("report", "--trust", str(run))
    pages = [p for p in (s.place / "compare.html", run / "report" / "index.html") if p.exists()]
    hold(pages, "no page was made: the search is blind")
    for page in pages:
        text = page.read_text()
        hold("<script>planted" not in text and "<img src=x" not in text, f"{page.name} has a record's markup")
        policy = text.partition('http-equiv="Content-Security-Policy" content="')[2].partition('"')[0]
        scripts = next((part for part in policy.split(";") if part.strip().startswith("script-src")), "none")
        hold("default-src 'none'" in policy and "unsafe-inline" not in scripts, f"{page.name} allows scripts: {policy}")
    return "scripts in records"


WAYS: tuple[Callable[[Share], str], ...] = (
    planted_code, planted_data, links, odd_files, escapes, paths_in_records, secrets_in_settings, links_sent,
    foreign_jobs, resumed, planted_kernels, open_to_all, store, inline_scripts, links, odd_files,
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
    from runyard.runs.code import snapshot

    snapshot.private_folder = lambda folder, **_: folder  # type: ignore[attr-defined]
    snapshot.verify_snapshot = lambda *_, **__: None  # type: ignore[attr-defined]


PROMISE = Promise(
    number=18,
    promise="What another user plants in a shared folder is not run, not followed, not overwritten, shows no file of "
    "one's own, steers no terminal and hangs no command.",
    attack="Code, data, caches and notes under the names that a run would use; links out of a run, FIFOs and devices "
    "in place of its files; paths, control characters, markup and other people's jobs in its records; settings that "
    "expand a key; all owned by another uid, who also looks into what umask 000 leaves open, and at what ranks listen "
    "on.",
    at_least=64,
    short=14,
    strike=strike,
    control=trusting,
    switched_off="nobody asks whose code it is",
)
