"""Where this program's own files are: in a checkout, or in an installed package outside of any."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
IMPORT_ROOT = PACKAGE.parent  # what PYTHONPATH must hold for `import runyard`
CONFIGS = PACKAGE / "configs"
SCRIPTS = (PACKAGE / "slurm").resolve()  # a link in a checkout, a folder in an installed package
IN_CHECKOUT = SCRIPTS.parent != PACKAGE


def find_python_line() -> str:
    """Return the line of a job's bash script after which ``slurm/python.sh`` finds this program's Python.

    In a checkout that is ``.venv`` there. An installed package's Python is the one that runs now, unless the user's
    own variables name another one or a container.
    """
    if IN_CHECKOUT:
        return f"export RUNYARD_ROOT={shlex.quote(str(SCRIPTS.parent))}"
    default = shlex.quote(sys.executable)
    return f'[ -n "${{RUNYARD_CONTAINER:-}}" ] || export RUNYARD_PYTHON=${{RUNYARD_PYTHON:-{default}}}'
