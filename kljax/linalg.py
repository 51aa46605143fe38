"""Triangular algebra on one event, written out in array operations that batch under `vmap`.

No LAPACK call: on a two-thread CPU pool, two batched LAPACK calls of one program can wait
for each other for ever (seen with jaxlib 0.10.2). Blocks of up to `BLOCK` rows are unrolled,
larger matrices are products of such blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

_T = TypeVar("_T")

BLOCK = 8
_ZERO = np.int32(0)


def matmul(a: Array, b: Array) -> Array:
    """Product of two matrices in full precision (accelerators default to fewer bits).

    `jnp.matmul` would name its result's dtype, which a later `vmap` of a float64 part inside
    a float32 program rounds to float32.
    """
    contract = (((1,), (0,)), ((), ()))
    return lax.dot_general(a, b, contract, precision=lax.Precision.HIGHEST)


def diagonal(a: Array) -> Array:
    """The diagonal by a masked sum: unlike a gather, it has a cheap transpose."""
    return jnp.sum(jnp.where(jnp.eye(a.shape[0], dtype=bool), a, 0), axis=1)


def strict_lower(a: Array) -> Array:
    return jnp.tril(a, -1)


def symmetrize(a: Array) -> Array:
    return 0.5 * a + 0.5 * a.T


def lower_half(a: Array) -> Array:
    """The lower triangular X with X + X^T = a, for symmetric a."""
    return strict_lower(a) + jnp.diag(0.5 * diagonal(a))


def flip(a: Array) -> Array:
    """Both axes reversed: turns the transpose of a lower triangle into a lower triangle."""
    return lax.rev(a, (0, 1))


def solve_lower(lower: Array, b: Array) -> Array:
    """lower^-1 b, for lower (d, d) lower triangular and b (d, m)."""
    lower = jnp.tril(lower)
    return lax.custom_linear_solve(
        lambda x: matmul(lower, x),
        b,
        solve=lambda _, y: _substitute(lower, y),
        transpose_solve=lambda _, y: _substitute_transposed(lower, y),
    )


def solve_lower_transposed(lower: Array, b: Array) -> Array:
    """lower^-T b."""
    lower = jnp.tril(lower)
    return lax.custom_linear_solve(
        lambda x: matmul(lower.T, x),
        b,
        solve=lambda _, y: _substitute_transposed(lower, y),
        transpose_solve=lambda _, y: _substitute(lower, y),
    )


def solve_lower_right(lower: Array, b: Array) -> Array:
    """B lower^-1, for b (m, d)."""
    return solve_lower_transposed(lower, b.T).T


def whiten_both(lower: Array, symmetric: Array) -> Array:
    """lower^-1 symmetric lower^-T."""
    return symmetrize(solve_lower(lower, solve_lower(lower, symmetric).T))


def _substitute_transposed(lower: Array, b: Array) -> Array:
    return lax.rev(_substitute(flip(lower.T), lax.rev(b, (0,))), (0,))


def _substitute(lower: Array, b: Array) -> Array:
    """Forward substitution, one block of rows a step."""
    size = lower.shape[0]
    if size <= BLOCK:
        return _substitute_rows(lower, b)
    padded = -(-size // BLOCK) * BLOCK
    lower = _pad_identity(lower, padded)
    b = jnp.pad(b, ((0, padded - size), (0, 0)))

    def step(i: Array, x: Array) -> Array:
        # Rows of x not reached yet are 0, so the whole block row may multiply them.
        rows = lax.dynamic_slice(lower, (i * BLOCK, _ZERO), (BLOCK, padded))
        corner = lax.dynamic_slice(rows, (_ZERO, i * BLOCK), (BLOCK, BLOCK))
        rest = lax.dynamic_slice(b, (i * BLOCK, _ZERO), (BLOCK, b.shape[1]))
        block = _substitute_rows(corner, rest - matmul(rows, x))
        return lax.dynamic_update_slice(x, block, (i * BLOCK, _ZERO))

    return _loop(padded // BLOCK, step, jnp.zeros_like(b))[:size]


def _loop(count: int, step: Callable[[Array, _T], _T], state: _T) -> _T:
    """A loop over blocks, counted in int32 also in the float64 parts of a float32 program."""
    blocks = jnp.arange(count, dtype=jnp.int32)
    return lax.scan(lambda x, i: (step(i, x), None), state, blocks)[0]


def _pad_identity(a: Array, size: int) -> Array:
    """A in the upper left corner, the identity below."""
    extra = size - a.shape[0]
    ones = jnp.concatenate([jnp.zeros(a.shape[0], a.dtype), jnp.ones(extra, a.dtype)])
    return jnp.pad(a, ((0, extra), (0, extra))) + jnp.diag(ones)


def _substitute_rows(lower: Array, b: Array) -> Array:
    rows: list[Array] = []
    for i in range(lower.shape[0]):
        row = b[i]
        for j in range(i):
            row = row - lower[i, j] * rows[j]
        rows.append(row / lower[i, i])
    return jnp.stack(rows) if rows else b


@jax.custom_jvp
def cholesky(a: Array) -> Array:
    """The lower triangular L with L L^T = a; nan where a is not positive definite."""
    return _factorize(a, _cholesky_columns, 0)


@cholesky.defjvp
def _cholesky_jvp(primals, tangents):
    (a,), (da,) = primals, tangents
    factor = cholesky(a)
    return factor, matmul(factor, lower_half(whiten_both(factor, da)))


def cholesky_deviation(s: Array) -> Array:
    """The lower triangular E with (I + E)(I + E)^T = I + s, to the relative accuracy of s.

    The Cholesky recursion in deviations from the identity: with pivot 1 + u the diagonal is
    sqrt(1 + u) - 1 = u / (1 + sqrt(1 + u)), so nothing near 1 is ever formed and rounded.
    """
    return _factorize(s, _cholesky_deviation_columns, 1)


def _factorize(a: Array, columns: Callable[[Array], Array], identity: int) -> Array:
    """A factorization by columns, one block of columns a step.

    Args:
        a: the matrix, or its deviation from the identity.
        columns: factorizes one diagonal block.
        identity: 1 if matrix and factor are both given as deviations, else 0.
    """
    size = a.shape[0]
    if size <= BLOCK:
        return columns(a)
    padded = -(-size // BLOCK) * BLOCK
    a = jnp.pad(a, ((0, padded - size), (0, padded - size)))
    if not identity:
        a = a + jnp.diag((jnp.arange(padded) >= size).astype(a.dtype))
    eye = identity * jnp.eye(BLOCK, dtype=a.dtype)
    row = jnp.arange(padded)[:, None]

    def step(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        rest, factor = state
        start = i * BLOCK
        strip = lax.dynamic_slice(rest, (_ZERO, start), (padded, BLOCK))
        corner = columns(lax.dynamic_slice(strip, (start, _ZERO), (BLOCK, BLOCK)))
        below = _substitute_rows(eye + corner, strip.T).T
        below = jnp.where(row >= start + BLOCK, below, 0)
        factor = lax.dynamic_update_slice(factor, below, (_ZERO, start))
        factor = lax.dynamic_update_slice(factor, corner, (start, start))
        return rest - matmul(below, below.T), factor

    state = (a, jnp.zeros_like(a))
    return _loop(padded // BLOCK, step, state)[1][:size, :size]


def _cholesky_columns(a: Array) -> Array:
    columns: list[Array] = []
    for rest in _remainders(a, columns):
        root = jnp.sqrt(jnp.where(rest[0] > 0, rest[0], jnp.nan))
        columns.append(jnp.concatenate([root[None], rest[1:] / root]))
    return _lower_from_columns(a, columns)


def _cholesky_deviation_columns(s: Array) -> Array:
    columns: list[Array] = []
    for rest in _remainders(s, columns):
        pivot = jnp.where(rest[0] > -1, rest[0], jnp.nan)
        on = pivot / (1 + jnp.sqrt(1 + pivot))
        columns.append(jnp.concatenate([on[None], rest[1:] / (1 + on)]))
    return _lower_from_columns(s, columns)


def _remainders(a: Array, columns: list[Array]) -> Iterator[Array]:
    """Column j of a from the diagonal on, less what the columns so far account for."""
    for j in range(a.shape[0]):
        rest = a[j:, j]
        for i, column in enumerate(columns):
            rest = rest - column[j - i :] * column[j - i]
        yield rest


def _lower_from_columns(a: Array, columns: list[Array]) -> Array:
    if not columns:
        return a
    return jnp.stack([jnp.pad(c, (j, 0)) for j, c in enumerate(columns)], axis=1)
