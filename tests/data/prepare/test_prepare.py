"""``prepare`` gives whole, verified files or nothing, and never hangs."""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from runyard.config.schema import DataConfig
from runyard.data import beton, manifest
from runyard.data.datasets import synthetic
from runyard.data.prepare import beton_writer, gather
from runyard.data.prepare.pipeline import prepare_dataset
from runyard.errors import UserError
from tests.support.second_user import as_nobody, needs_root, shared_place
from tests.support.settings import PATIENCE_S, ROOT

__all__ = ["shared_place"]
Settings = Callable[..., DataConfig]
PREPARE = """
import sys
from tests.support.prepared import data_config
from runyard.data.prepare.pipeline import prepare_dataset
print(prepare_dataset(data_config(root=sys.argv[1]), progress=True).sha256)
"""


def names(root: Path) -> list[str]:
    """What lies in a root, but for the lock files."""
    return sorted(p.name for p in root.iterdir() if not p.name.endswith(".lock"))


def descendants(pid: int) -> list[int]:
    """Processes that ``pid`` started, and those that they started."""
    own = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return own + [far for child in own for far in descendants(child)]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def refused(data: DataConfig) -> str:
    with pytest.raises(UserError) as error:
        prepare_dataset(data, progress=False)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def no_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(jobs: object, tell: object) -> None:
        raise AssertionError("something is written that need not be")

    monkeypatch.setattr(beton_writer, "write_betons", write)


def test_the_files_hold_the_source_and_nothing_else_is_left(folder: Path) -> None:
    made = manifest.load_manifest(folder)
    for part, samples in (("train", 300), ("test", 40)):
        images, labels = synthetic.make_split(part, samples, 4, 16)
        np.testing.assert_array_equal(np.load(folder / f"{part}_images.npy"), images)
        np.testing.assert_array_equal(np.load(folder / f"{part}_labels.npy"), labels)
        np.testing.assert_array_equal(beton.inspect_beton(folder / f"{part}.beton").labels, labels)
    assert {name for name in names(folder.parent) if not name.startswith("tiny-300+40")} == set()
    ends = (".beton", "_images.npy", "_labels.npy")
    wanted = {"manifest.json"} | {f"{part}{end}" for part in ("train", "test") for end in ends}
    assert {p.name for p in folder.iterdir()} == wanted
    pixels = np.load(folder / "train_images.npy").reshape(-1, 3) / 255
    np.testing.assert_allclose((made.mean, made.std), (pixels.mean(0), pixels.std(0)), rtol=1e-9)
    assert made.fixed_size


@pytest.mark.usefixtures("no_writer")
def test_a_second_call_verifies_and_writes_nothing(root: Path, folder: Path, settings: Settings) -> None:
    before = {p: p.stat().st_mtime_ns for p in folder.iterdir()}
    assert prepare_dataset(settings(root=str(root)), progress=True) == manifest.load_manifest(folder)
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == before


@needs_root
@pytest.mark.usefixtures("no_writer")
def test_a_share_that_this_user_cannot_write_is_verified_and_used(
    folder: Path, settings: Settings, shared_place: Path
) -> None:
    share = Path(shutil.copytree(folder.parent, shared_place / "share"))
    for path in (share, *share.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    for lock in share.glob(".*.lock"):
        lock.unlink()
    data = settings(root=str(share))
    assert as_nobody(lambda: prepare_dataset(data, progress=False).sha256) == manifest.load_manifest(folder).sha256
    assert list(share.glob(".*")) == []
    other = settings(root=str(share), name="other")  # the control: what is missing has to be written
    assert "Permission denied" in as_nobody(lambda: prepare_dataset(other, progress=False))


@pytest.mark.usefixtures("no_writer")
def test_a_second_call_sees_a_changed_byte(root: Path, folder: Path, settings: Settings) -> None:
    with open(folder / "train.beton", "r+b") as f:
        f.seek(2_200_000)
        f.write(b"\xa5\x5a")
    assert f"{folder}/train.beton: its sha256" in refused(settings(root=str(root)))


@pytest.mark.usefixtures("no_writer")
def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path, settings: Settings) -> None:
    data = settings(root=str(tmp_path))
    manifest.dataset_dir(data).mkdir()
    (manifest.dataset_dir(data) / "thesis.txt").write_text("precious")
    assert "was not made by runyard prepare" in refused(data)
    assert (manifest.dataset_dir(data) / "thesis.txt").read_text() == "precious"


@pytest.mark.slow
def test_a_killed_prepare_leaves_nothing_that_looks_finished(
    tmp_path: Path, prepared_root: Path, settings: Settings
) -> None:
    data = settings(root=str(tmp_path))
    target = manifest.dataset_dir(data)
    half_made = target.with_name(f".{target.name}.making")
    process = subprocess.Popen([sys.executable, "-c", PREPARE, str(tmp_path)], cwd=ROOT, stderr=subprocess.DEVNULL)
    children: list[int] = []
    while not (half_made / "train.beton").exists() or len(children) < 3:  # the writer, its worker, a resource tracker
        assert process.poll() is None
        children = descendants(process.pid)
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + PATIENCE_S
    while any(alive(child) for child in children):
        assert time.monotonic() < deadline, "its children outlive it"
        time.sleep(0.01)
    assert names(tmp_path) == [half_made.name]
    with pytest.raises(UserError, match="no prepared data"):
        manifest.load_manifest(target)
    assert not (half_made / "manifest.json").exists()

    made = prepare_dataset(
        data, progress=False
    )  # goes through, removes the remains, and writes the same bytes as another did
    assert names(tmp_path) == [target.name]
    assert made == manifest.load_manifest(manifest.dataset_dir(settings(root=str(prepared_root))))


@pytest.mark.usefixtures("no_writer")
def test_a_prepare_waits_for_another_and_does_not_touch_its_work(root: Path, folder: Path, settings: Settings) -> None:
    work = folder.with_name(f".{folder.name}.making")
    work.mkdir()
    folder.rename(work / "nearly ready")
    with open(folder.with_name(f".{folder.name}.lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = threading.Thread(target=prepare_dataset, args=(settings(root=str(root)),), kwargs={"progress": False})
        second.start()
        second.join(0.5)
        assert second.is_alive()
        (work / "nearly ready").rename(folder)
    second.join(PATIENCE_S)  # the lock is free, so its owner is gone, and what it left is removed
    assert not second.is_alive()
    assert not work.exists()


@pytest.mark.parametrize("problem", [UserError("no"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_whatever_stops_it_leaves_nothing(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch, problem: BaseException
) -> None:
    def write(jobs: list[beton_writer.WriteJob], tell: object) -> None:
        Path(jobs[0].beton).write_bytes(b"half")
        raise problem

    monkeypatch.setattr(beton_writer, "write_betons", write)
    with pytest.raises((UserError, KeyboardInterrupt)) as error:
        prepare_dataset(settings(root=str(tmp_path)), progress=False)
    assert names(tmp_path) == []
    if isinstance(problem, OSError):
        assert isinstance(error.value, UserError)
        assert error.value.fix.startswith("free some space, or set data.root")


def test_a_root_that_cannot_be_written_is_named(tmp_path: Path, settings: Settings) -> None:
    (tmp_path / "file").write_text("")
    assert refused(settings(root=str(tmp_path / "file"))).startswith(f"data.root={tmp_path}/file: cannot write")


def test_too_small_a_disk_is_seen_before_writing(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 1 << 20))  # type: ignore[attr-defined]
    assert "are needed and 1 MB are free" in refused(settings(root=str(tmp_path)))
    assert names(tmp_path) == []


def test_the_held_out_part_is_stratified_seeded_and_leaves_out_nothing() -> None:
    labels = np.repeat([0, 1, 2], [100, 50, 10])
    kept, held = gather.hold_out(labels, 0.1, 7)
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, held])), np.arange(160))
    np.testing.assert_array_equal(np.bincount(labels[held]), [10, 5, 1])
    np.testing.assert_array_equal(gather.hold_out(labels, 0.1, 7)[1], held)
    assert not np.array_equal(gather.hold_out(labels, 0.1, 8)[1], held)
    np.testing.assert_array_equal(held, np.sort(held))


@pytest.mark.parametrize("fraction", [0.001, 0.99])
def test_a_fraction_that_leaves_a_part_empty_is_refused(fraction: float) -> None:
    with pytest.raises(UserError, match=r"data\.validation_fraction="):
        gather.hold_out(np.repeat([0, 1], 10), fraction, 0)


def test_mean_and_deviation_are_of_what_is_left_for_training(tmp_path: Path, settings: Settings) -> None:
    data = settings(root=str(tmp_path), validation_fraction=0.2, split_seed=3)
    found = gather.layout_arrays(data, tmp_path, tmp_path, lambda what, done, total: None)
    images = {part: np.load(tmp_path / f"{part}_images.npy") for part in ("train", "validation", "test")}
    assert {part: len(rows) for part, rows in images.items()} == {"train": 240, "validation": 60, "test": 40}
    whole = synthetic.make_split("train", 300, 4, 16)[0].reshape(300, -1)
    both = np.concatenate([images["train"], images["validation"]]).reshape(300, -1)
    assert sorted(row.tobytes() for row in both) == sorted(row.tobytes() for row in whole)
    pixels = images["train"].reshape(-1, 3) / 255
    np.testing.assert_allclose(gather.channel_mean_std(found.histogram), (pixels.mean(0), pixels.std(0)), rtol=1e-9)


def test_a_channel_that_never_changes_can_still_be_divided_by_its_deviation() -> None:
    _, std = gather.channel_mean_std(gather.histogram(np.full((2, 4, 4, 3), 9, np.uint8)))
    assert min(std) > 0


def test_synthetic_images_can_be_learned_and_are_always_the_same() -> None:
    images, labels = synthetic.make_split("train", 400, 4, 16)
    test_images, test_labels = synthetic.make_split("test", 100, 4, 16)
    np.testing.assert_array_equal(images, synthetic.make_split("train", 400, 4, 16)[0])
    np.testing.assert_array_equal(np.bincount(labels), [100] * 4)
    means = np.stack([images[labels == c].mean(0) for c in range(4)])
    nearest = ((test_images[:, None] - means[None]) ** 2).sum((2, 3, 4)).argmin(1)
    assert (nearest == test_labels).mean() > 0.9


@pytest.mark.data
def test_the_prepared_cifar10_is_the_published_one() -> None:
    folder = ROOT / "data" / "cifar10"
    if not folder.exists():
        pytest.skip("data/cifar10 is not prepared: runyard prepare data=cifar10")
    made = manifest.load_manifest(folder)
    manifest.verify_dataset(folder, made, made.splits, hash_files=True)
    assert made.mean == pytest.approx((0.49139968, 0.48215841, 0.44653091), abs=1e-8)
    assert made.std == pytest.approx((0.24703223, 0.24348513, 0.26158784), abs=1e-8)
    for part, each in (("train", 5000), ("test", 1000)):
        content, images = (
            beton.inspect_beton(folder / f"{part}.beton"),
            np.load(folder / f"{part}_images.npy", mmap_mode="r"),
        )
        np.testing.assert_array_equal(np.bincount(content.labels), [each] * 10)
        stored = np.memmap(folder / f"{part}.beton", np.uint8, "r")
        for i in range(0, len(images), 997):
            np.testing.assert_array_equal(stored[content.pointers[i] :][:3072], images[i].reshape(-1))
