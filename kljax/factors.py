"""Two Gaussians given by Cholesky factors, N(., Q Q^T) and N(., P P^T), in few passes.

    E = P^-1 (Q - P),   M = I + E = P^-1 Q,   y = P^-1 delta,
    dispersion = sum_i h(M_ii) + sum_{i>j} E_ij^2 / 2,   h(r) = (r^2 - 1) / 2 - log r,
    location   = |y|^2 / 2.

The gradient needs one more solve and one product, on lower triangles alone:

    W = P^-T G,   G = E below the diagonal, r - 1/r on it,
    by Q: W,   by P: -(W M^T + s y^T),   by delta: s = P^-T y.

(Own arrangement. Only lower triangles of W and W M^T are asked for, and those of W suffice
for both.) Small matrices are written out on their scalars, which XLA makes one loop of,
larger ones are divided into blocks. (The sum of both groups of small matrices, with its
gradient, is in `smallfactors`.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero

from kljax import blocks, coordinates, linalg, special
from kljax.linalg import Divisor, settled
from kljax.structure import Scale

WRITTEN_OUT = 16


class Groups(NamedTuple):
    """The two non-negative parts of a Gaussian divergence, in nats."""

    dispersion: Array
    location: Array


@jax.custom_jvp
def groups(q: Array, p: Array, delta: Array) -> Groups:
    """Dispersion and location, from lower triangular factors (k, k) and delta (k,)."""
    size = p.shape[0]
    if 0 < size <= WRITTEN_OUT:
        return written_out(q, p, delta)
    if 0 < size <= blocks.MOST:
        e, y = _whitened_blocks(blocks.divisor(p), blocks.lower(q - p), delta)
        return _of_blocks(dispersion_on(q, p), e, y)
    e, y = _whitened(linalg.Triangle(p), q - p, delta)
    return _of_whitened(q, p, e, y)


def _groups_jvp(primals: Any, tangents: Any) -> tuple[Groups, Groups]:
    q, p, delta = primals
    dq, dp, ddelta = tangents
    size = p.shape[0]
    arrangement = _slopes_of_blocks if 0 < size <= blocks.MOST else _slopes
    slopes = arrangement(q, p, delta, on_diagonals(q, p))
    y, s = slopes.y, slopes.by_delta
    change = inner(lambda: slopes.by_q, dq) - inner(lambda: slopes.by_p, dp)
    moved = inner(lambda: s[:, 0], ddelta) - inner(lambda: jnp.tril(s * y.T), dp)
    return slopes.value, Groups(change, moved)


groups.defjvp(_groups_jvp, symbolic_zeros=True)


def inner(gradient: Callable[[], Array], tangent: Any) -> Array:
    """<gradient, tangent>; the gradient is not even computed for a constant."""
    if isinstance(tangent, SymbolicZero):
        return jnp.zeros((), tangent.aval.dtype)  # pyright: ignore[reportAttributeAccessIssue]
    return jnp.sum(gradient() * tangent)


class _Slopes(NamedTuple):
    """The groups, and y, W, the lower triangle of W M^T, and s."""

    value: Groups
    y: Array
    by_q: Array
    by_p: Array
    by_delta: Array


def _slopes(q: Array, p: Array, delta: Array, on: OnDiagonals) -> _Slopes:
    triangle = linalg.Triangle(p)
    e, y = _whitened(triangle, q - p, delta)
    w = triangle.quotient_transposed(linalg.replace_diagonal(e, on.slope))
    by_p = jnp.tril(linalg.lower_product_transposed(w, e) + w * on.ratio[None, :])
    return _Slopes(_of_whitened(q, p, e, y), y, w, by_p, triangle.solve_transposed(y))


def _whitened(triangle: linalg.Triangle, b: Array, delta: Array) -> tuple[Array, Array]:
    """E, strictly below its diagonal, and y as a column."""
    return triangle.quotient_below(b), triangle.solve(delta[:, None])


def _of_whitened(q: Array, p: Array, e: Array, y: Array) -> Groups:
    return Groups(dispersion_on(q, p) + 0.5 * jnp.sum(e * e), 0.5 * jnp.sum(y * y))


def _slopes_of_blocks(q: Array, p: Array, delta: Array, on: OnDiagonals) -> _Slopes:
    """The same for small matrices."""
    divisor = blocks.divisor(p)
    e, y = _whitened_blocks(divisor, blocks.lower(q - p), delta)
    w = blocks.quotient_transposed(divisor, blocks.replace_diagonal(e, on.slope))
    by_p = blocks.product_transposed(w, blocks.replace_diagonal(e, on.ratio))
    return _Slopes(
        _of_blocks(dispersion_on(q, p), e, y),
        jnp.concatenate(y),
        blocks.together(w),
        blocks.together(by_p),
        jnp.concatenate(blocks.solve_transposed(divisor, y)),
    )


def groups_of_blocks(
    q: blocks.Lower, p: blocks.Lower, divisor: blocks.Divisor, delta: Array
) -> Groups:
    """Dispersion and location from factors in blocks and division by that of p."""
    e, y = _whitened_blocks(divisor, blocks.difference(q, p), delta)
    return _of_blocks(_dispersion_of(blocks.diagonal(q), blocks.diagonal(p)), e, y)


def _whitened_blocks(
    divisor: blocks.Divisor, b: blocks.Lower, delta: Array
) -> tuple[blocks.Lower, list[Array]]:
    """E and y."""
    parts = blocks.parts(delta[:, None])
    return blocks.quotient(divisor, b), blocks.solve(divisor, parts)


def _of_blocks(on: Array, e: blocks.Lower, y: list[Array]) -> Groups:
    squares = blocks.squares_below(e)
    return Groups(on + 0.5 * squares, 0.5 * blocks.sum_of_squares(y))


class OnDiagonals(NamedTuple):
    """R = Q_ii / P_ii, r - 1 from the difference, and r - 1/r."""

    ratio: Array
    excess: Array
    slope: Array


def on_diagonals(q: Array, p: Array) -> OnDiagonals:
    on_q, on_p = settled(linalg.diagonal(q)), settled(linalg.diagonal(p))
    ratio, excess = special.over(on_q, on_p), special.excess(on_q, on_p)
    # r - 1/r = (r - 1) (1 + 1/r), also where r is almost 1
    return OnDiagonals(settled(ratio), settled(excess), settled(excess * (1 + 1 / ratio)))


def dispersion_on(q: Array, p: Array) -> Array:
    """The sum of h(r)."""
    return _dispersion_of(linalg.diagonal(q), linalg.diagonal(p))


def _dispersion_of(q: Array, p: Array) -> Array:
    """The same from diagonals."""
    return jnp.sum(coordinates.dispersion(Scale(settled(q)), Scale(settled(p))))


# ---- on scalars -----------------------------------------------------------------------------


def written_out(q: Array, p: Array, delta: Array) -> Groups:
    """The same by forward substitution on scalars.

    Reciprocals are multiplied by, since XLA keeps a shared division out of the loop.
    """
    size = p.shape[0]
    rows = [[p[i, j] for j in range(i + 1)] for i in range(size)]
    over = [Divisor(p[i, i]) for i in range(size)]
    squares = location = jnp.zeros((), p.dtype)
    for j in range(size):
        column = substitute(rows, over, [q[i, j] - p[i, j] for i in range(j, size)], j)
        for e in column[1:]:
            squares = squares + e * e
    for y in substitute(rows, over, [delta[i] for i in range(size)], 0):
        location = location + y * y
    on = dispersions([q[i, i] for i in range(size)], [p[i, i] for i in range(size)])
    return Groups(on + 0.5 * squares, 0.5 * location)


def substitute(
    rows: list[list[Array]], over: list[Divisor], b: list[Array], start: int
) -> list[Array]:
    """The column L^-1 b from row `start` on; b is zero above, and may end early."""
    x: list[Array] = []
    for i, rest in enumerate(b, start=start):
        for j, known in enumerate(x, start=start):
            rest = rest - rows[i][j] * known
        x.append(over[i](rest))
    return x


def dispersions(q: list[Array], p: list[Array]) -> Array:
    """Sum of h(q_i / p_i), with one logarithm for all ratios that are far from 1.

    Near 1, h(1 + d) = d - log(1 + d) + d^2 / 2 by the series of `special`. The far ones
    are split into mantissas, multiplied without overflow, and exponents, which add up.
    """
    total = jnp.zeros((), p[0].dtype)
    above = below = jnp.ones((), p[0].dtype)
    for x, y in zip(q, p, strict=True):
        over = Divisor(y)
        ratio, d = over(x), over(x - y)
        near, x_minus_log1p = special.x_minus_log1p_near_zero(d)
        top, up = special.mantissa_and_exponent(x)
        bottom, down = special.mantissa_and_exponent(y)
        far = special.subtract_times_log2((0.5 * (ratio - 1)) * (ratio + 1), up - down)
        total = total + jnp.where(near, x_minus_log1p + 0.5 * d * d, far)
        above = above * jnp.where(near, 1, top)
        below = below * jnp.where(near, 1, bottom)
    return total - jnp.log(above * (1 / below))


def variance_dispersions(q: list[Array], p: list[Array]) -> Array:
    """Sum of r_i - 1 - log r_i for r_i = q_i / p_i, likewise."""
    total = jnp.zeros((), p[0].dtype)
    above = below = jnp.ones((), p[0].dtype)
    for x, y in zip(q, p, strict=True):
        over = Divisor(y)
        near, x_minus_log1p = special.x_minus_log1p_near_zero(over(x - y))
        top, up = special.mantissa_and_exponent(x)
        bottom, down = special.mantissa_and_exponent(y)
        far = special.subtract_times_log2(over(x) - 1, up - down)
        total = total + jnp.where(near, x_minus_log1p, far)
        above = above * jnp.where(near, 1, top)
        below = below * jnp.where(near, 1, bottom)
    return total - jnp.log(above * (1 / below))
