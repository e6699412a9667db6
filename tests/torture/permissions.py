"""Row 13: a run is its user's alone whatever the umask; archives and code are hashed before they are used."""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
from io import BytesIO
from pathlib import Path

from runyard.runs.run import Run
from tests.torture.ground import discard
from tests.torture.promise import Attacker, Promise, hold

UMASKS = (0o000, 0o002, 0o022, 0o027, 0o077)


def strike(a: Attacker) -> str:
    return archive(a) if a.number % 4 == 3 else modes(a)


def modes(a: Attacker, *, opened: bool = False) -> str:
    """A run is created and trained by two ranks under some umask; nothing of it is another's to read or write."""
    umask = UMASKS[a.number % len(UMASKS)]
    first = [("tests.torture.permissions:take_umask", umask)]
    if opened:
        first.append(("tests.torture.permissions:leave_modes_alone",))
    code, said = a.ground.command("create", *a.ground.words("epochs=1"), first=first)
    hold(code == 0, f"create: {said}")
    run = Run.open(said.strip())
    a.ground.start(run, 2, {0: first, 1: first}, report=True).wait()
    hold(run.is_finished, "it was not finished")
    wrong = too_open(run.path)
    hold(not wrong, f"umask {umask:03o}: {', '.join(wrong[:3])}, {len(wrong)} in all")
    discard(run)
    return f"umask {umask:03o}"


def take_umask(umask: int) -> None:
    """In a rank."""
    os.umask(umask)


def leave_modes_alone() -> None:
    """In a rank: whatever narrows the modes of files does nothing, and files are made as open as can be."""
    os.umask(0)
    os.umask = lambda mask: 0  # type: ignore[assignment]
    os.chmod = os.fchmod = lambda *_, **__: None  # type: ignore[assignment]


def too_open(folder: Path) -> list[str]:
    """What of it the group or others may read, write or enter; links, which have no modes of their own, left out."""
    found = []
    for path in (folder, *folder.rglob("*")):
        mode = path.lstat().st_mode
        if not stat.S_ISLNK(mode) and mode & 0o077:
            found.append(f"{path.relative_to(folder.parent)} is {stat.S_IMODE(mode):03o}")
    return found


def archive(a: Attacker) -> str:
    """An archive as a data set's, whose members lead out of the folder, are links or devices, or have other bytes."""
    from runyard.data.datasets.cifar import decode10
    from runyard.errors import UserError

    folder = a.ground.scratch()
    path, outside = folder / "cifar-10-binary.tar.gz", folder / "outside"
    names = [f"data_batch_{n}.bin" for n in range(1, 6)] + ["test_batch.bin"]
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(a.rng.choice((f"../outside/{name}", f"{outside}/{name}", f"cifar/{name}", name)))
            member.type = a.rng.choice((tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE))
            member.linkname = a.rng.choice(("/etc/passwd", "../../etc/passwd", name))
            content = a.rng.randbytes(3073)
            member.size = len(content) if member.isreg() else 0
            tar.addfile(member, BytesIO(content) if member.isreg() else None)
    try:
        decode10(path)
    except UserError as error:
        hold("\n" not in str(error), "the refusal is of several lines")
        hold(str(path) in str(error), f"the refusal names no file: {error}")
    else:
        hold(False, "an archive of other bytes is taken for CIFAR-10")
    hold([p.name for p in folder.iterdir()] == [path.name], "it unpacked something")
    shutil.rmtree(folder)
    return "archive"


def as_open_as_can_be(a: Attacker) -> str:
    return modes(Attacker(a.ground, a.rng, 0), opened=True)


PROMISE = Promise(
    number=13,
    promise="A run's directory is its user's alone (0700, files 0600) whatever the umask, and an archive's content is "
    "hashed before it is used; none of its paths is followed.",
    attack="Runs created and trained under umasks from 000 to 077; archives with other bytes, with paths that lead "
    "out, with links and devices.",
    at_least=20,
    short=2,
    strike=strike,
    control=as_open_as_can_be,
    switched_off="modes are left as they come",
)
