"""``python -m dehazexl``: the command line."""

import sys

from dehazexl.cli import main

sys.exit(main())
