"""Where this program's own files are: in a checkout, or in an installed package outside of any."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
IMPORT_ROOT = PACKAGE.parent  # what PYTHONPATH must hold for `import runyard`
CONFIGS = PACKAGE / "configs"
SCRIPTS = (PACKAGE / "slurm").resolve()  # a link in a checkout, a folder in an installed package
IN_CHECKOUT = SCRIPTS.parent != PACKAGE


def own_configs() -> Path | None:
    """Return ``configs/`` of the working folder, where it is not this program's own: its cluster profiles count, too.

    An installed package may be read-only, and the next version replaces it.
    """
    folder = Path.cwd() / "configs"
    return folder if folder.is_dir() and folder.resolve() != CONFIGS.resolve() else None


def cluster_profiles() -> list[Path]:
    """Return the files of all cluster profiles. Of two with one name the first counts: this program's own."""
    folders = [CONFIGS, *filter(None, [own_configs()])]
    return [file for folder in folders for file in sorted((folder / "cluster").glob("*.yaml"))]


def new_profile_path(name: str) -> Path:
    """Return where a new cluster profile belongs: into a checkout that may be written, else into the working folder."""
    in_checkout = IN_CHECKOUT and os.access(CONFIGS / "cluster", os.W_OK)
    return (CONFIGS.resolve() if in_checkout else Path.cwd() / "configs") / "cluster" / f"{name}.yaml"


def find_python_line() -> str:
    """Return the line of a job's bash script after which ``slurm/python.sh`` finds this program's Python.

    In a checkout that is ``.venv`` there. An installed package's Python is the one that runs now, unless the user's
    own variables name another one or a container.
    """
    if IN_CHECKOUT:
        return f"export RUNYARD_ROOT={shlex.quote(str(SCRIPTS.parent))}"
    default = shlex.quote(sys.executable)
    return f'[ -n "${{RUNYARD_CONTAINER:-}}" ] || export RUNYARD_PYTHON=${{RUNYARD_PYTHON:-{default}}}'
