"""Compiled kernels are found again on disk: by several ranks at once, and from a run's own copy of the code."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import runyard
from tests.support.settings import PATIENCE_S

USE = """
import numpy as np
from runyard.data.augment import params as draws; from runyard.data.augment import kernels
s = draws.AugmentParams(1, 4, False, 0.2, False, 0.2, 0.2, 0.2, 0.1, 0, 32, 0, 0, 0)
assert kernels.draw_params_all(np.arange(2), 0, 0, s).shape == (11, 2)
print(kernels.__file__, sum(kernels.draw_params_all.stats.cache_hits.values()))
"""


def start(cache: Path, code: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(code)}
    return subprocess.Popen([sys.executable, "-c", USE], env=environment, stdout=subprocess.PIPE, text=True)


def result(process: subprocess.Popen[str]) -> list[str]:
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    return out.split()


def test_ranks_compile_at_once_and_a_copy_of_the_code_finds_their_kernels_until_it_changes(tmp_path: Path) -> None:
    source, cache = Path(runyard.__file__).parents[1], tmp_path / "cache"
    for process in [start(cache, source) for _ in range(2)]:
        result(process)
    copy = tmp_path / "code"
    shutil.copytree(source / "runyard", copy / "runyard", ignore=shutil.ignore_patterns("__pycache__"))
    assert result(start(cache, copy)) == [str(copy / "runyard/data/augment/kernels.py"), "1"]
    with open(copy / "runyard/data/augment/philox.py", "a") as f:
        f.write("# a change in what a kernel inlines\n")
    assert result(start(cache, copy))[1] == "0"
