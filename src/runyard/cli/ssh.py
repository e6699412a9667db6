"""``runyard --on HOST COMMAND``: sends the project over the user's own ssh, runs the command there, brings files back.

Who may log in and how is ssh's business, with its own configuration, keys and agent. Its first connection serves the
others for ``PERSIST``, unless the user's configuration has a ControlPath of its own.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from runyard.errors import UserError
from runyard.installation import IN_CHECKOUT, SCRIPTS
from runyard.ownership import per_user_name, private_folder

# Commands that compose a configuration or run code: the project is sent first.
SENDING = ("prepare", "submit", "sweep", "resume", "create", "doctor", "settings", "profile")
READING = ("status", "logs", "cancel", "report", "compare", "leaderboard", "export", "slurm")
# Options by command that name a file or folder to write: it is written there, and brought here.
OUTPUTS = {"compare": ("--html", "--png"), "export": ("--to",)}
PERSIST = "10m"
SSH_FAILED = 255
MAX_MB = 200
SENT = ".runyard-sent"  # on the host: the files that were sent, so that those deleted here are deleted there
RESULTS = ".runyard-results"
# Not part of a project that git does not tell about.
LEFT_OUT = ("data", "runs", "build", "wandb", "export")
# A login shell's profile may print; its lines are not the command's.
LOGIN = "exec 3>&1 4>&2 >/dev/null 2>&1; exec bash -lc {}"
RESTORED = "exec 1>&3 2>&4 3>&- 4>&-; "


@dataclass(frozen=True)
class Host:
    """Where a command runs: ``[USER@]HOST[:PATH]``.

    Attributes:
        name: As ssh takes it.
        path: The project's folder there, relative to the home directory unless it is absolute.
    """

    name: str
    path: str

    @classmethod
    def parse(cls, text: str, project: Path) -> Host:
        """Parse what ``--on`` is given; without a PATH it is the name of the project's folder.

        Raises:
            UserError: it names no host.
        """
        name, _, path = text.partition(":")
        if not re.fullmatch(r"[A-Za-z0-9_][\w.@%+-]*", name):
            raise UserError(f"--on {text}: no name of a host", "give HOST, USER@HOST or HOST:PATH, as ssh takes them")
        return cls(name, path.removeprefix("~/") or project.name)

    @cached_property
    def options(self) -> list[str]:
        """ssh's options: one connection for all, by the user's own ControlPath if there is one."""
        configured = _run(["ssh", "-G", self.name]).stdout.decode(errors="replace")
        if re.search(r"^controlpath (?!none$)", configured, re.M):
            return []
        for parent in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"):
            folder = Path(parent or "/nowhere") / per_user_name("runyard-ssh")
            if len(os.fsencode(folder)) > 48 or not folder.parent.is_dir():  # ssh adds 58 bytes; Linux takes 107
                continue
            try:
                private_folder(folder)
            except OSError:
                continue
            return ["-oControlMaster=auto", f"-oControlPath={folder}/%C", f"-oControlPersist={PERSIST}"]
        return []

    def command(self, script: str, *, terminal: bool = False) -> list[str]:
        """Return the ssh command that runs a bash ``script`` in a login shell on the host."""
        there = LOGIN.format(shlex.quote(RESTORED + script))
        return ["ssh", *self.options, "-t" if terminal else "-T", "--", self.name, f"exec bash -c {shlex.quote(there)}"]

    def ask(self, script: str, stdin: bytes = b"") -> bytes:
        """Run a script and return its output.

        Raises:
            UserError: ssh failed, or the script did.
        """
        done = _run(self.command(script), stdin)
        if done.returncode:
            raise self.failed(done)
        return done.stdout

    def failed(self, done: subprocess.CompletedProcess[bytes]) -> UserError:
        said = (done.stderr or b"").decode(errors="replace").strip().splitlines()
        because = f" ({said[-1]})" if said else ""
        fix = (
            f"first make this work: ssh {self.name}" if done.returncode == SSH_FAILED else f"on {self.name}, mend that"
        )
        return UserError(f"--on {self.name}: {done.args[0]} failed{because}", fix)


def run_there(on: str, command: str, argv: list[str]) -> int:
    """Run ``runyard ARGV`` in the project's folder on a host, and return its exit code.

    Args:
        on: The host, as ``Host.parse`` takes it.
        command: The command in ``argv``.
        argv: The command line without ``--on``.

    Raises:
        UserError: the command is of no use there, or ssh cannot reach the host.
    """
    if command not in SENDING + READING:
        raise UserError(f"--on {on}: not with runyard {command}", f"it takes {', '.join(SENDING + READING)}")
    if shutil.which("ssh") is None:
        raise UserError("--on: no ssh on this machine", "install it, as with: apt-get install openssh-client")
    project = project_folder()
    host = Host.parse(on, project)
    if command in SENDING:
        send(host, project)
    results = f"{RESULTS}/{secrets.token_hex(4)}"
    words, wanted = _redirected(command, argv, results)
    made = f"mkdir -p {results};" if wanted else ""
    script = f"cd -- {_place(host)} || exit 2; {_find_runyard(host)} {made} exec runyard {shlex.join(words)}"
    terminal = command != "report" and all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))
    sys.stdout.flush()
    done = subprocess.run(
        host.command(script, terminal=terminal),
        stdin=None if terminal else subprocess.DEVNULL,
        stdout=subprocess.PIPE if command == "report" else None,
    )
    if done.returncode == SSH_FAILED:
        raise UserError(f"--on {host.name}: ssh failed", f"first make this work: ssh {host.name}")
    if command == "report" and done.returncode == 0:
        _bring_report(host, done.stdout.decode(errors="surrogateescape").strip())
    if wanted:
        packed = host.ask(f"cd -- {_place(host)} && tar -C {results} -cz . && rm -r {results}")
        _unpack(host, packed, wanted)
    return done.returncode if done.returncode >= 0 else 128 - done.returncode


def project_folder() -> Path:
    """Return the folder that is sent: the checkout of this program in which it is called, else the working directory.

    Raises:
        UserError: that is the home directory or the root of the disk.
    """
    here = Path.cwd()
    if IN_CHECKOUT and here.is_relative_to(SCRIPTS.parent):
        return SCRIPTS.parent
    if here in (Path.home(), Path("/")):
        raise UserError(f"--on: {here} is no project, and all of it would be sent", "call it in the project's folder")
    return here


def project_files(project: Path) -> list[str]:
    """Return the paths of the files to send: what git does not ignore, and ``configs/local``, a person's own settings.

    Raises:
        UserError: they are too large to be a project's code and configuration.
    """
    listed = _run(["git", "-C", str(project), "ls-files", "-z", "--cached", "--others", "--exclude-standard"])
    if listed.returncode == 0:
        names = listed.stdout.decode(errors="surrogateescape").split("\0")
        names += [str(path.relative_to(project)) for path in (project / "configs" / "local").rglob("*")]
    else:
        names = [
            os.path.relpath(os.path.join(folder, name), project)
            for folder, folders, files in os.walk(project)
            if _keep(folders, at_top=folder == str(project))
            for name in [*files, *(d for d in folders if os.path.islink(os.path.join(folder, d)))]
        ]
    paths = {name: project / name for name in sorted(set(names)) if name and "\n" not in name}
    sizes = {n: path.lstat().st_size for n, path in paths.items() if path.is_symlink() or path.is_file()}
    if sum(sizes.values()) > MAX_MB * 1e6:
        largest = max(sizes, key=lambda name: sizes[name])
        raise UserError(
            f"--on: {project} holds {sum(sizes.values()) / 1e6:,.0f} MB, {largest} the largest of it; expected a "
            f"project's code and configuration, at most {MAX_MB} MB",
            "call it in the project's folder, or name what is no part of it in .gitignore",
        )
    return list(sizes)


def _keep(folders: list[str], *, at_top: bool) -> bool:
    """Take out of ``folders``, into which os.walk goes next, those that hold no code."""
    left_out = (*LEFT_OUT, "__pycache__") if at_top else ("__pycache__",)
    folders[:] = [name for name in folders if name not in left_out and not name.startswith(".")]
    return True


def send(host: Host, project: Path) -> None:
    """Make the project's folder on ``host`` like this one: by rsync where both have it, else by tar.

    Data, runs and the environment there stay.
    """
    names = project_files(project)
    listing = "".join(f"{name}\n" for name in names).encode(errors="surrogateescape")
    prepared = host.ask(
        f"mkdir -p -- {_place(host)} && cd -- {_place(host)} && "
        f"{{ command -v rsync >/dev/null && echo rsync || echo tar; pwd -P; cat >{SENT}.new; }}",
        listing,
    )
    program, _, folder = prepared.decode(errors="surrogateescape").strip().partition("\n")
    if program == "rsync" and shutil.which("rsync") and re.fullmatch(r"[\w./@%+,=-]+", folder):
        ssh = shlex.join(["ssh", *host.options])
        target = f"{host.name}:{folder}/"
        done = _run(["rsync", "-a", "--checksum", "--files-from=-", "-e", ssh, f"{project}/", target], listing)
        if done.returncode:
            raise host.failed(done)
    else:
        packed = _run(["tar", "-C", str(project), "-cz", "--no-recursion", "--verbatim-files-from", "-T", "-"], listing)
        if packed.returncode:
            raise host.failed(packed)
        host.ask(f"cd -- {_place(host)} && tar -xz", packed.stdout)
    # grep: the files that were sent last time, and are no longer among those of today
    host.ask(
        f"cd -- {_place(host)} && {{ [ ! -f {SENT} ] || grep -vxFf {SENT}.new {SENT} | "
        f'while IFS= read -r name; do rm -f -- "$name"; done; }}; mv {SENT}.new {SENT}'
    )


def _place(host: Host) -> str:
    """Return the folder as a word of a script there."""
    return shlex.quote(host.path) if host.path.startswith("/") else f'"$HOME"/{shlex.quote(host.path)}'


def _find_runyard(host: Host) -> str:
    """Return the commands after which a script finds the project's own runyard, else the host's."""
    missing = (
        f"runyard: no runyard in {host.path} on {host.name}, nor on PATH there; once, in that folder there: make setup "
        "(or: pip install runyard)"
    )
    return (
        'export PATH="$PWD/.venv/bin:$PATH"; '
        f"command -v runyard >/dev/null || {{ echo {shlex.quote(missing)} >&2; exit 2; }};"
    )


def _redirected(command: str, argv: list[str], results: str) -> tuple[list[str], dict[str, Path]]:
    """Replace the files and folders that ``argv`` says to write by ones in ``results``.

    Returns the new command line, and by the name in ``results`` where each is wanted here.
    """
    known = OUTPUTS.get(command, ())
    words: list[str] = []
    wanted: dict[str, Path] = {}
    for word in argv:
        option, equals, value = word.partition("=")
        if words and words[-1] in known:
            option, value = words.pop(), word
        elif not equals or option not in known:
            words.append(word)
            continue
        if "://" in value:  # such as MLflow's address
            words.append(f"{option}={value}")
            continue
        name = f"{len(wanted)}{Path(value).suffix}"
        wanted[name] = Path(value)
        words.append(f"{option}={results}/{name}")
    return words, wanted


def _unpack(host: Host, packed: bytes, wanted: dict[str, Path]) -> None:
    """Put each file or folder of an archive where it is wanted."""
    with tempfile.TemporaryDirectory(prefix="runyard-") as scratch:
        unpacked = _run(["tar", "-C", scratch, "-xz"], packed)
        if unpacked.returncode:
            raise host.failed(unpacked)
        for name, here in wanted.items():
            written = Path(scratch, name)
            if not written.exists():  # the command failed first, and has said why
                continue
            here.parent.mkdir(parents=True, exist_ok=True)
            if written.is_dir():
                shutil.copytree(written, here, dirs_exist_ok=True)
            else:
                shutil.copyfile(written, here)
            print(f"runyard: from {host.name}: {here}", file=sys.stderr)


def _bring_report(host: Host, printed: str) -> None:
    """Bring the report's folder, and print as the command did, but with the page's path here."""
    answer = json.loads(printed) if printed.startswith("{") else {"report": printed}
    folder = os.path.dirname(answer["report"])
    run = answer.get("run", os.path.basename(os.path.dirname(folder)))
    here = Path(f"report-{run}")
    packed = host.ask(f"cd -- {_place(host)} && tar -C {shlex.quote(os.path.dirname(folder))} -cz report")
    _unpack(host, packed, {"report": here})
    page = str(here / "index.html")
    print(json.dumps(answer | {"report": page}) if printed.startswith("{") else page)


def _run(command: list[str], stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(command, input=stdin, capture_output=True)
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 127, b"", f"no {command[0]} on this machine".encode())
