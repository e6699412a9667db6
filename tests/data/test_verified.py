"""Prepared files are hashed once for each content, and refused by name when they are another."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runyard.data import manifest, verified
from runyard.data.manifest import Manifest
from runyard.data.verified import VERIFIED_FILE, check_content
from runyard.errors import UserError
from tests.support.prepared import zero_labels


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path) -> list[str]:
    """Names of the files that were hashed, in order; and a set that was prepared some time ago."""
    names: list[str] = []
    hash_file = verified._stamp_and_sha256

    def counting(path: Path) -> Any:
        names.append(path.name)
        return hash_file(path)

    monkeypatch.setattr(verified, "_stamp_and_sha256", counting)
    monkeypatch.setattr(verified, "SETTLE_S", -1.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return names


def betons(data: Manifest) -> dict[str, str]:
    return {part.beton: part.beton_sha256 for part in data.splits.values()}


def check(folder: Path, **settings: Any) -> None:
    data = manifest.load_manifest(folder)
    check_content(folder, data, betons(data), **settings)


def test_labels_that_were_changed_are_refused_by_the_files_name(folder: Path, hashed: list[str]) -> None:
    zero_labels(folder / "train.beton")
    data = manifest.load_manifest(folder)
    manifest.verify_dataset(folder, data, data.splits, hash_files=False)  # the control: without the sha256 it passes
    with pytest.raises(UserError, match=r"train\.beton: its sha256 is not that of the prepared file.*runyard prepare"):
        check(folder)


def test_unchanged_files_are_hashed_once(folder: Path, hashed: list[str]) -> None:
    for _ in range(3):
        check(folder)
    assert hashed == ["train.beton", "test.beton"]
    assert (folder / VERIFIED_FILE).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("how", ["written", "written and its time set back", "replaced", "touched"])
def test_a_file_that_was_changed_is_hashed_again(folder: Path, hashed: list[str], how: str) -> None:
    check(folder)
    path, times = folder / "train.beton", (folder / "train.beton").stat()
    if how == "touched":
        path.touch()
        check(folder)
        assert hashed[2:] == ["train.beton"]
        return
    if how == "replaced":
        shutil.copy2(path, path.with_suffix(".new"))
        zero_labels(path.with_suffix(".new"))
        path.with_suffix(".new").rename(path)
    else:
        zero_labels(path)
    if "set back" in how:
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(UserError, match=r"train\.beton: its sha256"):
        check(folder)
    with pytest.raises(UserError, match=r"train\.beton: its sha256"):  # and is not taken for granted the next time
        check(folder)


def test_a_file_changed_within_the_last_seconds_is_not_remembered(
    folder: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified, "SETTLE_S", 1e6)
    check(folder)
    check(folder)
    assert len(hashed) == 4


def test_what_others_could_have_written_is_not_believed(folder: Path, hashed: list[str]) -> None:
    check(folder)
    (folder / VERIFIED_FILE).chmod(0o666)
    check(folder)
    assert len(hashed) == 4
    (folder / VERIFIED_FILE).rename(folder / "elsewhere")
    (folder / VERIFIED_FILE).symlink_to("elsewhere")
    check(folder)
    assert len(hashed) == 6


@pytest.mark.parametrize("rubbish", [b"", b"[1]", b"{", b'{"train.beton": 3}', b"[" * 100_000])
def test_a_damaged_note_costs_a_hash_and_no_more(folder: Path, hashed: list[str], rubbish: bytes) -> None:
    (folder / VERIFIED_FILE).write_bytes(rubbish)
    (folder / VERIFIED_FILE).chmod(0o600)
    check(folder)
    check(folder)
    assert len(hashed) == 2


def test_where_the_data_cannot_be_written_it_is_remembered_in_the_users_cache(
    folder: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    places = verified._cache_files
    monkeypatch.setattr(verified, "_cache_files", lambda folder: [Path("/proc/nothing"), *places(folder)[1:]])
    check(folder)
    check(folder)
    assert len(hashed) == 2
    (note,) = (tmp_path / "cache" / "runyard").iterdir()
    assert note.stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(verified, "_cache_files", lambda folder: [Path("/proc/nothing")])
    check(folder)  # nowhere to remember: hashed at each start
    assert len(hashed) == 4


def test_more_than_may_be_hashed_is_left_to_the_job(folder: Path, hashed: list[str]) -> None:
    check(folder, at_most_bytes=1000)
    assert hashed == []


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "cut": (cut, r"\d+ bytes, and \d+ were prepared"),
    "gone": (Path.unlink, "cannot read it"),
    "a FIFO": (fifo, "FIFO"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_that_is_gone_cut_short_or_no_file_is_refused_at_every_start(
    folder: Path, hashed: list[str], damage: str
) -> None:
    check(folder)
    change, words = DAMAGE[damage]
    change(folder / "train.beton")
    with pytest.raises(UserError, match=rf"train\.beton: .*{words}"):
        check(folder)
    assert len(hashed) == 2, "it is seen without a hash"
