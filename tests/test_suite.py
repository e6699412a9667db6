"""What holds for the test suite itself."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from runyard.config.schema import Config
from tests.support.settings import ROOT

SKIPPED = "import pytest\ndef test_skipped():\n    pytest.skip('no such library')\n"
PASSED = "def test_passed():\n    assert True\n"
EXPECTED_FAILURE = "import pytest\n@pytest.mark.xfail\ndef test_known():\n    assert False\n"


def outcome(folder: Path, text: str, ci: str) -> int:
    """Exit code of a suite that holds ``text`` beside this suite's own conftest."""
    shutil.copy(Path(__file__).with_name("conftest.py"), folder)
    (folder / "test_it.py").write_text(text)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", folder, folder],
        env=os.environ | {"CI": ci, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        cwd=folder,
    ).returncode


@pytest.mark.parametrize("text", [SKIPPED, PASSED + SKIPPED, "import pytest\npytest.importorskip('no_such_module')\n"])
def test_in_continuous_integration_a_skip_fails_the_run(tmp_path: Path, text: str) -> None:
    assert outcome(tmp_path, text, ci="true") == 1


@pytest.mark.parametrize(("text", "ci"), [(SKIPPED, ""), (PASSED, "true"), (EXPECTED_FAILURE, "true")])
def test_elsewhere_a_skip_is_a_skip_and_a_pass_is_a_pass_everywhere(tmp_path: Path, text: str, ci: str) -> None:
    assert outcome(tmp_path, text, ci) == 0


@pytest.mark.parametrize("module", ["runyard.data.prepare.pipeline", "runyard.cluster.launch.submit"])
def test_a_warning_from_our_own_code_is_an_error(module: str) -> None:
    with pytest.raises(UserWarning, match="ours"):
        warnings.warn_explicit("ours", UserWarning, "file.py", 1, module=module)


def test_a_warning_from_elsewhere_is_not() -> None:
    with pytest.warns(UserWarning, match="theirs"):
        warnings.warn_explicit("theirs", UserWarning, "file.py", 1, module="torch.nn")


def test_make_config_is_what_a_submission_would_freeze(make_config: Callable[..., Config]) -> None:
    config = make_config("experiment=paper", "epochs=3")
    assert (config.epochs, config.batch_size, config.model.max_parameters) == (3, 128, 5_000_000)
