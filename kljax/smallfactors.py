"""KL of two Gaussians by factors of few rows, its gradient in as few loops as possible.

The formula is that of `factors`, in its notation: E = P^-1 (Q - P), y = P^-1 delta,
W = P^-T G, M = I + E, s = P^-T y, by Q: W, by P: -(W M^T + s y^T), by delta: s.

Of the last column of a lower triangle only the diagonal is not 0, and that of E, M and W needs
no solve. So delta, y and s take its place: they cost nothing, and the product of W and M^T adds
s y^T by itself. What the last entry of the diagonal adds is put in at the end. (Own
arrangement.)
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from kljax import blocks, factors, linalg
from kljax.factors import OnDiagonals, inner
from kljax.linalg import settled


def total(q: Array, p: Array, delta: Array) -> Array:
    """Dispersion plus location, from lower triangular factors (k, k) and delta (k,)."""
    if 0 < p.shape[0] <= factors.WRITTEN_OUT:
        return _total(q, p, delta)
    return _sum(factors.groups(q, p, delta))


def _sum(groups: factors.Groups) -> Array:
    return groups.dispersion + groups.location


@jax.custom_jvp
def _total(q: Array, p: Array, delta: Array) -> Array:
    return _sum(factors.written_out(q, p, delta))


def _total_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    q, p, delta = primals
    dq, dp, ddelta = tangents
    arrangement = _slopes_of_rows if p.shape[0] <= linalg.LEAF else _slopes_of_two
    slopes = arrangement(q, p, delta, factors.on_diagonals(q, p))
    change = inner(lambda: slopes.by_q, dq) - inner(lambda: slopes.by_p, dp)
    return slopes.value, change + inner(lambda: slopes.by_delta[:, 0], ddelta)


_total.defjvp(_total_jvp, symbolic_zeros=True)


class _Slopes(NamedTuple):
    """The total, W, the lower triangle of W M^T + s y^T, and s."""

    value: Array
    by_q: Array
    by_p: Array
    by_delta: Array


def _slopes_of_rows(q: Array, p: Array, delta: Array, on: OnDiagonals) -> _Slopes:
    """For few rows, with one loop a solve."""
    last = _Last(p)

    def with_slopes(e: Array) -> Array:
        return last.put_above_corner(on.slope, e)

    g = linalg.substitute_rows(p, last.put(delta[:, None], q - p), with_slopes)
    w = linalg.substitute_rows_transposed(p, g)
    by_q = last.put_corner(on.slope[-1] / p[-1, -1], jnp.tril(w))
    strict_m = last.put_above_corner(jnp.zeros_like(on.ratio), g)
    by_p = jnp.tril(linalg.matmul(w, strict_m.T) + by_q * on.ratio[None, :])
    return _Slopes(_total(q, p, delta), by_q, by_p, w[:, -1:])


def _slopes_of_two(q: Array, p: Array, delta: Array, on: OnDiagonals) -> _Slopes:
    """For P = [[a, 0], [c, b]], with a last column in each block on the diagonal."""
    (a,), (c, b) = blocks.lower(p)
    c = settled(c)
    over_a, over_b = linalg.inverse_lower(a), linalg.inverse_lower(b)
    delta_a, delta_b = blocks.parts(delta[:, None])
    on_a, on_b = (OnDiagonals(*x) for x in zip(*map(blocks.parts, on), strict=True))
    last_a, last_b = _Last(a), _Last(b)
    half = a.shape[0]

    def product(x: Array, y: Array) -> Array:
        return settled(linalg.matmul(x, y))

    # E and y; the last column of E_a itself is excess in the corner.
    e_a = product(over_a, settled(last_a.put(delta_a, q[:half, :half] - a)))
    by_e_a = last_a.put(c[:, -1:] * on_a.excess[-1], linalg.matmul(c, e_a))
    e_c = product(over_b, settled((q[half:, :half] - c) - settled(by_e_a)))
    rest_b = settled(delta_b - linalg.matmul(c, e_a[:, -1:]))
    e_b = product(over_b, settled(last_b.put(rest_b, q[half:, half:] - b)))

    # W and s
    back_b = over_b.T
    w_b = product(back_b, last_b.put_above_corner(on_b.slope, e_b))
    w_c = product(back_b, e_c)
    w_c_and_s = settled(last_a.put(w_b[:, -1:], w_c))
    rest_a = last_a.put_above_corner(on_a.slope, e_a) - linalg.matmul(c.T, w_c_and_s)
    w_a = product(over_a.T, settled(rest_a))
    corner_a = on_a.slope[-1:, None] - linalg.matmul(c[:, -1:].T, w_c[:, -1:])
    corner_a = settled(corner_a / a[-1:, -1:])
    corner_b = on_b.slope[-1:, None] / b[-1:, -1:]

    # W M^T + s y^T
    m_a = settled(last_a.put_above_corner(on_a.ratio, e_a).T)
    m_b = settled(last_b.put_above_corner(on_b.ratio, e_b).T)
    by_a = linalg.matmul(w_a, m_a) + last_a.corner(corner_a * on_a.ratio[-1])
    by_c = linalg.matmul(w_c_and_s, m_a) + last_a.put(w_c[:, -1:] * on_a.ratio[-1], 0)
    by_b = linalg.matmul(w_b, m_b) + last_b.corner(corner_b * on_b.ratio[-1])
    by_b = by_b + linalg.matmul(w_c, settled(e_c.T))

    # The squares of E below its diagonal, and of y.
    none_a, none_b = (jnp.zeros_like(x.ratio) for x in (on_a, on_b))
    squares = blocks.sum_of_squares(
        [last_a.put_above_corner(none_a, e_a), e_c, last_b.put_above_corner(none_b, e_b)]
    )
    return _Slopes(
        factors.dispersion_on(q, p) + 0.5 * squares,
        linalg.from_blocks(
            last_a.put_corner(corner_a, jnp.tril(w_a)),
            w_c,
            last_b.put_corner(corner_b, jnp.tril(w_b)),
        ),
        linalg.from_blocks(jnp.tril(by_a), by_c, jnp.tril(by_b)),
        jnp.concatenate([w_a[:, -1:], w_b[:, -1:]]),
    )


class _Last:
    """The last column of a square matrix, its corner, and the diagonal above the corner."""

    def __init__(self, matrix: Array) -> None:
        size = matrix.shape[0]
        number = lax.iota(jnp.int32, size)
        row, column = number[:, None], number[None, :]
        self._is_column = column == size - 1
        self._is_corner = self._is_column & (row == size - 1)
        self._is_above_corner = (row == column) & ~self._is_column

    def put(self, column: Array, matrix: Array | float) -> Array:
        return jnp.where(self._is_column, column, matrix)

    def put_corner(self, value: Array, matrix: Array | float) -> Array:
        return jnp.where(self._is_corner, value, matrix)

    def corner(self, value: Array) -> Array:
        return self.put_corner(value, 0.0)

    def put_above_corner(self, diagonal: Array, matrix: Array) -> Array:
        return jnp.where(self._is_above_corner, diagonal[None, :], matrix)
