"""Inverse, determinant and factor of a small matrix, by elimination.

Written apart from the library's own algebra, which the derivations check, and without
LAPACK, whose batched calls can wait for each other on two threads (seen with jaxlib 0.10.2).
The derivative rules are the textbook's (Giles 2008), so that compiled programs stay small.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def _product(*matrices: Array) -> Array:
    out = matrices[0]
    for m in matrices[1:]:
        out = jnp.matmul(out, m, precision="highest")
    return out


@jax.custom_jvp
def inv(a: Array) -> Array:
    """Gauss and Jordan's, without pivots: for positive definite or triangular matrices."""
    size = a.shape[0]
    rows = jnp.concatenate([a, jnp.eye(size, dtype=a.dtype)], axis=1)
    for j in range(size):
        pivot = rows[j] / rows[j, j]
        rest = rows - jnp.outer(rows[:, j], pivot)
        rows = jnp.concatenate([rest[:j], pivot[None], rest[j + 1 :]])
    return rows[:, size:]


@inv.defjvp
def _inv_jvp(primals, tangents):
    inverse = inv(primals[0])
    return inverse, -_product(inverse, tangents[0], inverse)


@jax.custom_jvp
def logdet(a: Array) -> Array:
    """The sum of the logarithms of the pivots."""
    total = jnp.zeros((), a.dtype)
    for _ in range(a.shape[0]):
        total = total + jnp.log(a[0, 0])
        a = a[1:, 1:] - jnp.outer(a[1:, 0], a[0, 1:]) / a[0, 0]
    return total


@logdet.defjvp
def _logdet_jvp(primals, tangents):
    (a,), (da,) = primals, tangents
    return logdet(a), jnp.sum(inv(a).T * da)


@jax.custom_jvp
def cholesky(a: Array) -> Array:
    """Column by column."""
    size, columns = a.shape[0], []
    for j in range(size):
        column = a[:, 0] / jnp.sqrt(a[0, 0])
        columns.append(jnp.concatenate([jnp.zeros(j, a.dtype), column]))
        a = a[1:, 1:] - jnp.outer(column[1:], column[1:])
    return jnp.stack(columns, axis=1)


@cholesky.defjvp
def _cholesky_jvp(primals, tangents):
    factor = cholesky(primals[0])
    inverse = inv(factor)
    relative = _product(inverse, tangents[0], inverse.T)
    size = factor.shape[0]
    half = jnp.tril(jnp.ones((size, size), factor.dtype), -1) + 0.5 * jnp.eye(
        size, dtype=factor.dtype
    )
    return factor, _product(factor, half * relative)


def quickly(function: Callable[..., Any], *arguments: Any) -> Callable[..., Any]:
    """The function compiled for these shapes: fast to compile, not to run.

    Derivations are evaluated at a few points only, so that nearly all of their time is the
    compiler's.
    """
    lowered = jax.jit(function).lower(*arguments)
    options: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}
    return lowered.compile(compiler_options=options)
