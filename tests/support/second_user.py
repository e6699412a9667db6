"""A second user of this machine, for tests of what one user may do to another. Only root can be somebody else."""

from __future__ import annotations

import os
import shutil
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

NOBODY = 65534
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can be a second user; CI is")


def as_nobody(action: Callable[[], object], *, umask: int = 0o022) -> str:
    """What ``action`` gives, as text, done by a child that is the second user; or the error that it ends with.

    A child and not a program of its own: what Python is made of may lie where only root can read. So ``action`` imports
    nothing that is not imported yet.
    """
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads: the child uses none of theirs
        child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            os.umask(umask)
            said = str(action())
        except BaseException:
            said = traceback.format_exc()
        os.write(writing, said.encode()[-60_000:])
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    return said


@pytest.fixture
def shared_place() -> Iterator[Path]:
    """A directory like /tmp: everybody may make files there, and only their own may they remove."""
    folder = Path(tempfile.mkdtemp(prefix="runyard-test-"))
    folder.chmod(0o1777)
    yield folder
    shutil.rmtree(folder)
