"""`python -m kljax` is `kljax`."""

import sys

from kljax.cli import main

sys.exit(main())
