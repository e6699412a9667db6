"""One small prepared data set that the tests of this folder share, and copy before they damage it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from runyard.config.schema import DataConfig
from runyard.data import manifest
from runyard.data.prepare.pipeline import prepare_dataset
from tests.support.prepared import data_config


@pytest.fixture(scope="session")
def settings() -> Callable[..., DataConfig]:
    return data_config


@pytest.fixture(scope="session")
def prepared_root(shared: Path) -> Path:
    """A root in which the small synthetic set is prepared. Not to be changed: take ``root``."""
    root = shared / "tiny"
    root.mkdir(exist_ok=True)
    prepare_dataset(data_config(root=str(root)), progress=False)
    return root


@pytest.fixture
def root(prepared_root: Path, tmp_path: Path) -> Path:
    """A copy of ``prepared_root`` to do harm to."""
    return Path(shutil.copytree(prepared_root, tmp_path / "data", ignore=shutil.ignore_patterns("*.making")))


@pytest.fixture
def folder(root: Path) -> Path:
    """The prepared folder in ``root``."""
    return manifest.dataset_dir(data_config(root=str(root)))
