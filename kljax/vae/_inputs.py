"""What the functions of this package accept, and the sentences for what they refuse."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from kljax._record import as_array

# A number that is known stays a Python float, since jit would trace every operation on it.
Number = float | Array


def number(name: str, value: Any) -> Number:
    """One real number, never an array of them."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    x = value if isinstance(value, Tracer | np.ndarray | np.generic) else as_array(name, value)
    if x.ndim:
        raise ValueError(f"{name} must be one number; got an array of shape {x.shape}.")
    real = jnp.issubdtype(x.dtype, jnp.floating) or jnp.issubdtype(x.dtype, jnp.integer)
    if not real:
        raise TypeError(f"{name} must be a real number; got dtype {x.dtype}.")
    return jnp.asarray(x) if isinstance(x, Tracer) else float(x)


def at_least_zero(name: str, value: Any) -> Number:
    """One number >= 0: a sentence where it is known, nan where it is traced."""
    x = number(name, value)
    if isinstance(x, float):
        if not x >= 0:
            raise ValueError(f"{name} must be a number >= 0; got {x:g}.")
        return x
    return jnp.where(x >= 0, x, jnp.nan)


def positive(name: str, value: Any) -> Number:
    """One number > 0: a sentence where it is known, nan where it is traced."""
    x = number(name, value)
    if isinstance(x, float):
        if not x > 0:
            raise ValueError(f"{name} must be a number > 0; got {x:g}.")
        return x
    return jnp.where(x > 0, x, jnp.nan)


def whole(name: str, value: Any, least: int = 1) -> int:
    """A whole number that shapes are made of, so never traced."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or isinstance(value, Tracer):
        given = value if isinstance(value, int | float) else f"a {type(value).__name__}"
        raise TypeError(f"{name} must be a whole number; got {given}.")
    if value.__index__() < least:
        raise ValueError(f"{name} must be a whole number >= {least}; got {value}.")
    return value.__index__()
