"""``python -m runyard`` is ``runyard``."""

import sys

from runyard.cli import main

sys.exit(main())
