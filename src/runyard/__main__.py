"""``python -m runyard`` is ``runyard``."""

import sys

from runyard.cli.main import main

sys.exit(main())
