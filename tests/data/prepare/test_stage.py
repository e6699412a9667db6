"""The node's own copy of the data: made once however many tasks ask, verified, and never in the way."""

from __future__ import annotations

import dataclasses
import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from runyard.config.schema import Config
from runyard.data import manifest
from runyard.data.prepare import stage as staging
from runyard.data.prepare.stage import stage_data
from runyard.files import sha256
from tests.support.settings import SMALL_DATA


@pytest.fixture(scope="module")
def config(data_root: Path, make_config: Callable[..., Config]) -> Config:
    return make_config(*SMALL_DATA, f"data.root={data_root}")


def staged(config: Config, disk: Path | str, loader: str = "ffcv", start: str = "first") -> tuple[Path, str | None]:
    asked = dataclasses.replace(
        config, loader=loader, cluster=dataclasses.replace(config.cluster, stage_data=str(disk))
    )
    folder = manifest.dataset_dir(config.data)
    return stage_data(asked, manifest.load_manifest(folder), folder, start)


def _in_a_process(config: Config, disk: Path) -> tuple[Path, str | None]:
    return staged(config, disk)


@pytest.mark.parametrize("loader", ["ffcv", "torch", "resident"])
def test_what_the_loader_reads_is_copied_and_equal(config: Config, tmp_path: Path, loader: str) -> None:
    copy, warning = staged(config, tmp_path / "disk", loader)
    assert warning is None
    assert copy.parent == tmp_path / "disk"
    names = {p.name for p in copy.iterdir()} - {"lock", "verified-first"}
    assert any(name.endswith(".beton") for name in names) == (loader == "ffcv")
    assert len(names) == (2 if loader == "ffcv" else 4)
    for name in names:
        assert (copy / name).read_bytes() == (manifest.dataset_dir(config.data) / name).read_bytes()


def test_nothing_is_copied_unless_asked(config: Config) -> None:
    folder = manifest.dataset_dir(config.data)
    assert stage_data(config, manifest.load_manifest(folder), folder, "first") == (folder, None)


def test_tasks_that_ask_at_once_share_one_copy(config: Config, tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(3) as tasks:
        found = tasks.starmap(_in_a_process, [(config, tmp_path)] * 3)
    assert len(set(found)) == 1
    inodes = {p.name: p.stat().st_ino for p in found[0][0].glob("*.beton")}
    staged(config, tmp_path, start="second")
    assert {p.name: p.stat().st_ino for p in found[0][0].glob("*.beton")} == inodes, "a right copy is used again"


def test_what_one_task_verified_the_others_of_its_start_do_not_read_again(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr(staging, "sha256", lambda path: read.append(path.name) or sha256(path))
    for start, files in (("first", 2), ("first", 0), ("second", 2), ("second", 0)):
        copy, warning = staged(config, tmp_path, start=start)
        assert (len(read), warning) == (files, None)
        read.clear()
    next(copy.glob("*train*.beton")).unlink()
    staged(config, tmp_path, start="second")
    assert len(read) == 2, "what is gone is not trusted"


def test_a_copy_that_is_damaged_is_made_anew(config: Config, tmp_path: Path) -> None:
    copy, _ = staged(config, tmp_path)
    (beton,) = copy.glob("*train*.beton")
    whole = beton.read_bytes()
    beton.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert staged(config, tmp_path, start="second") == (copy, None)
    assert beton.read_bytes() == whole


def test_a_source_that_reads_differently_than_prepared_is_not_used_from_the_copy(
    config: Config, tmp_path: Path
) -> None:
    root = tmp_path / "data"
    shutil.copytree(config.data.root, root)
    other = dataclasses.replace(config, data=dataclasses.replace(config.data, root=str(root)))
    folder = manifest.dataset_dir(other.data)
    (beton,) = folder.glob("*train*.beton")
    beton.write_bytes(beton.read_bytes()[:-1] + b"!")
    found, warning = staged(other, tmp_path / "disk")
    assert found == folder
    assert warning is not None
    assert "reads back differently" in warning


def test_a_node_without_such_a_disk_reads_where_the_data_is(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLURM_TMPDIR", raising=False)
    folder = manifest.dataset_dir(config.data)
    found, warning = staged(config, "$SLURM_TMPDIR")
    assert (found, warning) == (folder, f"cluster.stage_data=$SLURM_TMPDIR: not set on this node; reading {folder}")
    (tmp_path / "file").touch()
    found, warning = staged(config, tmp_path / "file")
    assert found == folder
    assert warning is not None
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    found, warning = staged(config, tmp_path / "disk")
    assert found == folder
    assert warning is not None
    assert "0.0 GB free" in warning
    assert not list((tmp_path / "disk").rglob("*.beton"))


def test_a_device_in_place_of_the_data_is_not_copied_for_ever(config: Config, tmp_path: Path, data_root: Path) -> None:
    root = Path(shutil.copytree(data_root, tmp_path / "data"))
    mine = dataclasses.replace(config, data=dataclasses.replace(config.data, root=str(root)))
    (manifest.dataset_dir(mine.data) / "train.beton").unlink()
    (manifest.dataset_dir(mine.data) / "train.beton").symlink_to("/dev/zero")
    found, warning = staged(mine, tmp_path / "disk")
    assert found == manifest.dataset_dir(mine.data)
    assert "a device, not a regular file" in str(warning)
