"""How the programs of the study are compiled."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax

# Run as fast as with more, and are compiled in two thirds of the time, which counts here.
OPTIONS: Any = {"xla_backend_optimization_level": 1}
compiled = partial(jax.jit, compiler_options=OPTIONS)
