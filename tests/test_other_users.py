"""What another user puts into a place that both share is neither run, nor read as ours, nor written through."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from runyard import ownership
from runyard.cli import main as main_module
from runyard.config.schema import Config
from runyard.data import compiled, manifest
from runyard.data.prepare.stage import stage_data
from runyard.errors import UserError
from runyard.ownership import per_user_name, private_folder
from runyard.runs import run as run_module
from runyard.runs.code import snapshot
from runyard.runs.run import Run
from tests.support.commands import environment
from tests.support.second_user import NOBODY, as_nobody, needs_root, shared_place
from tests.support.settings import SMALL_DATA

__all__ = ["shared_place"]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def plant(folder: Path, *files: str) -> None:
    """``dataset_dir`` as another user made it, with these files in it."""
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).write_text("raise SystemExit('another user was here')")
    for path in (folder, *folder.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
        path.chmod(0o777 if path.is_dir() else 0o666)


def plant_link(place: Path, target: Path) -> None:
    place.symlink_to(target)
    os.chown(place, NOBODY, NOBODY, follow_symlinks=False)


@pytest.fixture
def create(shared_place: Path, make_config: Callable[..., Config]) -> Callable[..., Run]:
    """``create()``: a run in a folder of runs that everybody can write."""
    return lambda *overrides: Run.create(
        make_config("experiment=starter", f"runs_dir={shared_place}", *overrides), list(overrides)
    )


@needs_root
def test_code_that_another_put_into_a_shared_folder_of_runs_is_never_taken(
    create: Callable[..., Run], shared_place: Path
) -> None:
    first = create()
    store = shared_place / per_user_name(".code")
    assert first.code_path.parent == store
    assert mode(store) == 0o700
    for path in sorted(store.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    store.rmdir()
    plant(store / first.code_path.name)
    os.chown(store, NOBODY, NOBODY)
    with pytest.raises(UserError, match=rf"{store} belongs to nobody; choose another place"):
        create()
    (store / first.code_path.name).rmdir()
    store.rmdir()
    plant_link(store, shared_place)
    with pytest.raises(UserError, match="is a link or a file, not a directory"):
        create()


@needs_root
def test_two_users_share_a_folder_of_runs(
    create: Callable[..., Run], shared_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, store = create(), shared_place / f".code-{NOBODY}"
    installed = shared_place / "installed"  # where both can read the program: this checkout may lie where only root can
    sources = {name: installed / name for name in snapshot.checkout_files()}
    shutil.copytree(mine.code_path, installed)
    for path in (installed, *installed.rglob("*")):
        path.chmod(0o755)
    monkeypatch.setattr(snapshot, "checkout_files", lambda: sources)

    def make() -> Path:
        run_module.CODE_STORE = store.name  # it is of whoever started the program
        return Run.create(mine.config, []).path

    theirs = Path(as_nobody(make, umask=0))
    assert (theirs / "code").resolve().parent == store
    assert store.lstat().st_uid == theirs.lstat().st_uid == NOBODY
    assert [mode(path) for path in (theirs, store)] == [0o700, 0o700]
    assert "PermissionError" in as_nobody(lambda: list(mine.path.iterdir()))


def test_a_snapshot_whose_content_is_not_what_its_name_says_is_not_used(create: Callable[..., Run]) -> None:
    code = create().code_path
    (code / "runyard" / "cluster" / "job" / "task.py").write_text("raise SystemExit('changed')")
    with pytest.raises(UserError, match=f"the code in {code} is not what was submitted.*move that directory away"):
        create()


def test_a_folder_of_runs_in_which_everybody_can_exchange_directories_is_refused(
    create: Callable[..., Run], shared_place: Path
) -> None:
    shared_place.chmod(0o777)
    with pytest.raises(UserError, match=rf"any user can replace the files in {shared_place}.*chmod \+t"):
        create()
    (ours := shared_place / "ours").mkdir()
    with pytest.raises(OSError, match=rf"any user can replace the files in {shared_place};"):
        private_folder(ours / "below")
    shared_place.chmod(0o1777)
    create()
    private_folder(ours / "below")


@needs_root
@pytest.mark.parametrize("planted", ["directory", "link"])
def test_data_is_staged_into_a_directory_of_our_own_alone(
    data_root: Path, make_config: Callable[..., Config], shared_place: Path, tmp_path: Path, planted: str
) -> None:
    config = make_config(*SMALL_DATA, f"data.root={data_root}", "cluster=slurm", f"cluster.stage_data={shared_place}")
    folder = manifest.dataset_dir(config.data)
    known = manifest.load_manifest(folder)
    copy, warning = stage_data(config, known, folder, "1")
    assert (copy, warning) == (shared_place / per_user_name(f"runyard-{known.sha256[:16]}"), None)
    assert mode(copy) == 0o700
    copy.rename(tmp_path / "aside")
    (victim := tmp_path / "victim").mkdir()
    if planted == "directory":
        plant(copy, "verified-1", next(folder.glob("*train*.beton")).name)
    else:
        plant_link(copy, victim)
    found, warning = stage_data(config, known, folder, "1")
    assert found == folder
    said = "belongs to nobody" if planted == "directory" else "is a link or a file, not a directory"
    assert said in str(warning)
    assert not list(victim.iterdir())


@needs_root
def test_kernels_that_another_compiled_are_not_loaded(shared_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(shared_place))
    compiled.cache_folder.cache_clear()
    ours = compiled.cache_folder()
    assert ours is not None
    assert (ours.parent.parent, mode(ours.parent)) == (shared_place, 0o700)
    ours.rmdir()
    ours.parent.rmdir()
    plant(ours.parent, "kernels.draw_all-1.py311.1.nbc")
    compiled.cache_folder.cache_clear()
    assert compiled.cache_folder() not in (ours, None)
    monkeypatch.undo()
    compiled.cache_folder.cache_clear()


@needs_root
def test_a_compiler_cache_that_another_made_is_not_used(shared_place: Path) -> None:
    ours = ownership.compiler_cache(shared_place, "inductor", "2")
    assert (ours.parent, mode(ours.parent)) == (shared_place / per_user_name("runyard-inductor"), 0o700)
    ours.rmdir()
    ours.parent.rmdir()
    plant(ours.parent, "graph.pkl")
    with pytest.raises(OSError, match="belongs to nobody"):
        ownership.compiler_cache(shared_place, "inductor", "2")


def test_compiled_code_that_was_not_used_for_long_is_deleted(tmp_path: Path) -> None:
    old, used, recent = (ownership.compiler_cache(tmp_path, "kernels", version) for version in ("old", "used", "new"))
    for folder in (old, used):
        (folder / "code").touch()
        os.utime(folder, (0, time.time() - 31 * ownership.DAY_S))
    assert ownership.compiler_cache(tmp_path, "kernels", "used") == used
    assert {path.name for path in used.parent.iterdir()} == {"used", "new"}
    assert (used / "code").exists()
    assert recent.exists()


@pytest.mark.parametrize(("umask", "group_writes"), [(0o000, True), (0o002, True), (0o022, False)])
def test_data_that_is_prepared_for_sharing_is_writable_by_nobody_outside_the_group(
    tmp_path: Path, umask: int, group_writes: bool
) -> None:
    words = ("prepare", *SMALL_DATA, f"data.root={tmp_path}/data")
    subprocess.run([sys.executable, "-m", "runyard", *words], env=environment(), check=True, umask=umask)
    modes = {mode(path) for path in (tmp_path / "data").rglob("*")}
    assert not any(found & stat.S_IWOTH for found in modes)
    assert all(bool(found & stat.S_IWGRP) is group_writes for found in modes), "the rest of the umask is the user's"
    assert all(found & stat.S_IROTH for found in modes), "others read it"


def test_without_that_an_open_umask_would_let_anybody_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main_module, "keep_others_from_writing", lambda: None)
    before = os.umask(0)
    try:
        assert main_module.main(["prepare", *SMALL_DATA, f"data.root={tmp_path}/data"]) == 0
    finally:
        os.umask(before)
    assert mode(manifest_of(tmp_path / "data")) == 0o666


def manifest_of(root: Path) -> Path:
    (found,) = root.glob("*/manifest.json")
    return found


def test_a_private_folder_is_0700_whatever_the_umask(shared_place: Path) -> None:
    for number, umask in enumerate((0o000, 0o022, 0o077)):
        before = os.umask(umask)
        try:
            assert mode(private_folder(shared_place / f"{number}")) == 0o700
            assert mode(private_folder(shared_place / f"{number}", group_reads=True)) == 0o750
        finally:
            os.umask(before)


def test_a_folder_of_ours_that_others_can_write_is_refused(shared_place: Path) -> None:
    (folder := shared_place / "mine").mkdir()
    folder.chmod(0o770)
    with pytest.raises(OSError, match="others can write"):
        private_folder(folder)
