"""``python -m runyard`` runs the ``runyard`` command."""

import sys

from runyard.cli.main import main
from runyard.quick_exit import run_without_teardown

run_without_teardown(lambda: sys.exit(main()))
