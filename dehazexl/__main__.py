"""``python -m dehazexl``: the command line."""

import sys

from dehazexl.cli.app import main

sys.exit(main())
