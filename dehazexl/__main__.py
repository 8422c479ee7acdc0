"""``python -m dehazexl``: the command line."""

from dehazexl.cli import main

main()
