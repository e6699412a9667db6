"""Only regular files are opened: nothing put in a file's place makes a command wait, or read for ever."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

import pytest

from runyard.files import FIXES, file_fix, open_regular, sha256, write_atomic

KINDS = ["FIFO", "device", "directory", "socket"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_regular_file_is_refused_at_once_by_its_kind(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "odd"
    with socket.socket(socket.AF_UNIX) as server:
        match kind:
            case "FIFO":
                os.mkfifo(path)
            case "device":
                path = Path("/dev/zero")
            case "directory":
                path.mkdir()
            case "socket":
                server.bind(str(path))
        before = len(os.listdir("/proc/self/fd"))
        for opens in (open_regular, sha256):
            with pytest.raises(OSError, match=f"{kind}.*, not a regular file") as refused:
                opens(path)
            assert refused.value.filename == str(path)
        assert len(os.listdir("/proc/self/fd")) == before, "none stays open"


def test_a_link_is_followed_only_where_it_may_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    with open_regular(tmp_path / "link") as file:
        assert file.read() == b"x"
    with pytest.raises(OSError, match="a symbolic link, not a regular file"):
        open_regular(tmp_path / "link", follow_links=False)
    with open_regular(tmp_path / "file", follow_links=False) as file:
        assert file.read() == b"x"


def test_a_file_written_for_oneself_is_that_from_its_first_byte(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write_atomic(tmp_path / "a", "x", mode=0o600)
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


def test_permissions_are_blamed_only_where_the_system_refused_them() -> None:
    """A faulty disk, a full one or one without locks has another cure."""
    blamed = {name for number, name in errno.errorcode.items() if "permission" in file_fix(OSError(number, ""))}
    assert blamed == {"EACCES", "EPERM"}


@pytest.mark.parametrize("number", [errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, None])
def test_an_error_that_may_pass_is_answered_with_try_again(number: int | None) -> None:
    assert file_fix(OSError(number, "")).startswith("try again; if that repeats, ")


def test_an_errno_has_one_fix() -> None:
    numbers = [number for numbers in FIXES.values() for number in numbers]
    assert len(numbers) == len(set(numbers))


@pytest.mark.parametrize("kind", [stat.S_IFIFO, stat.S_IFSOCK], ids=["FIFO", "socket"])
def test_what_is_no_file_is_not_replaced_by_one(kind: int, tmp_path: Path) -> None:
    os.mknod(tmp_path / "special", 0o600 | kind)
    with pytest.raises(OSError, match="not a regular file"):
        write_atomic(tmp_path / "special", "x")
    assert stat.S_IFMT((tmp_path / "special").lstat().st_mode) == kind
    assert [path.name for path in tmp_path.iterdir()] == ["special"]
    (tmp_path / "file").write_text("old")
    write_atomic(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new", "the control"
