"""`python -m kljax` is `kljax`."""

import sys

from kljax.cli import run

sys.exit(run())
