"""Damaged or missing data costs one line that names the file, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runyard.cli.main import main
from runyard.data import manifest
from tests.support.commands import Refused

Damage = Callable[[Path], Any]


def noted(**changed: Any) -> Damage:
    """Change entries of the manifest."""
    return lambda folder: (folder / "manifest.json").write_text(
        json.dumps(json.loads((folder / "manifest.json").read_text()) | changed)
    )


DAMAGES: dict[str, tuple[Damage, str]] = {
    "truncated": (lambda f: os.truncate(f / "train.beton", 1000), "train.beton: "),
    "empty": (lambda f: os.truncate(f / "train.beton", 0), "train.beton: "),
    "foreign": (lambda f: (f / "train.beton").write_bytes(bytes(5000)), "train.beton: "),
    "another": (lambda f: shutil.copy(f / "test.beton", f / "train.beton"), "train.beton: "),
    "missing": (lambda f: (f / "train.beton").unlink(), "train.beton: "),
    "array": (lambda f: os.truncate(f / "train_images.npy", 1000), "train_images.npy: "),
    "array of another size": (lambda f: np.save(f / "train_labels.npy", np.zeros(9, int)), "train_labels.npy: "),
    "no JSON": (lambda f: (f / "manifest.json").write_text("{"), "manifest.json: "),
    "a list": (lambda f: (f / "manifest.json").write_text("[]"), "manifest.json: "),
    "a folder": (lambda f: ((f / "manifest.json").unlink(), (f / "manifest.json").mkdir()), "manifest.json: "),
    "no parts": (noted(splits={}), "manifest.json: damaged (classes, channels"),
    "std 0": (noted(std=[0, 0, 0]), "manifest.json: damaged (a mean or std"),
    "mean NaN": (noted(mean=[float("nan")] * 3), "manifest.json: damaged (a mean or std"),
    "size as text": (noted(image_size="16"), "manifest.json: damaged (image_size"),
    "too few classes": (noted(classes=["a"]), "manifest.json: damaged (it was changed"),
    "a stranger": (noted(more=1), "manifest.json: damaged"),
}


@pytest.mark.parametrize("what", DAMAGES)
@pytest.mark.parametrize("verb", ["submit", "prepare"])
def test_damaged_data_is_refused_with_the_file_named(
    refused: Refused, small: list[str], data_root: Path, tmp_path: Path, verb: str, what: str
) -> None:
    damage, message = DAMAGES[what]
    (folder,) = (p for p in data_root.iterdir() if p.is_dir())
    shutil.copytree(folder, tmp_path / "mine" / folder.name)
    damage(tmp_path / "mine" / folder.name)
    said = refused(verb, *small, f"data.root={tmp_path / 'mine'}")
    assert message in said
    assert str(tmp_path / "mine") in said
    assert "runyard prepare" in said


@pytest.mark.parametrize("cluster", ["local", "slurm"])
def test_a_dry_run_refuses_damaged_data_and_not_data_that_are_still_to_come(
    refused: Refused, small: list[str], data_root: Path, tmp_path: Path, cluster: str
) -> None:
    (folder,) = (p for p in data_root.iterdir() if p.is_dir())
    mine = shutil.copytree(folder, tmp_path / "mine" / folder.name)
    (mine / "manifest.json").write_text("{")
    dry_run = ["submit", "--dry-run", *small, f"cluster={cluster}"]
    assert "manifest.json: damaged (not JSON)" in refused(*dry_run, f"data.root={tmp_path / 'mine'}")
    assert main([*dry_run, f"data.root={tmp_path / 'to come'}"]) == 0, "the control"


def test_whole_data_is_not_refused(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", *small, "--json"]) == 0
    assert manifest.manifest_from_dict(json.loads(capsys.readouterr().out)).splits["train"].samples == 256


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ("data.root=/proc/x", "data.root=/proc/x: "),
        ("data.root=/dev/null", "data.root=/dev/null: "),
        ("data.samples=[100000000000,5]", "data.root="),
        ("data.validation_fraction=0.999", "data.validation_fraction=0.999: "),
        ("data.validation_fraction=1e-9", "data.validation_fraction=1e-09: "),
    ],
)
def test_what_cannot_be_prepared_leaves_nothing(
    refused: Refused, small: list[str], tmp_path: Path, overrides: str, named: str
) -> None:
    assert named in refused("prepare", *small, f"data.root={tmp_path / 'new'}", overrides)


def test_prepare_says_how_many_files_were_converted_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = manifest.Manifest(
        "d",
        "imagefolder",
        "s",
        ("a",),
        16,
        (0.5,) * 3,
        (0.2,) * 3,
        {},
        {
            "converted": {"files": 3, "kinds": {"grayscale": 2, "CMYK": 1}, "first": []},
            "skipped": {"files": 1, "kinds": {"not an image": 1}, "first": []},
        },
        True,
    )
    monkeypatch.setattr("runyard.data.prepare.pipeline.prepare_dataset", lambda *_, **__: made)
    assert main(["prepare", "data=imagefolder", "data.path=x"]) == 0
    assert capsys.readouterr().out.endswith("verified; 3 converted (2 grayscale, 1 CMYK); 1 skipped (1 not an image)\n")
