"""Two Gaussians given by covariance matrices, N(., A) and N(., B), in few passes.

    B = C C^T,   S = C^-1 (A - B) C^-T,   M M^T = I + S,   y = C^-1 delta,
    dispersion = (tr S - log |I + S|) / 2,   location = |y|^2 / 2,
    by A:  C^-T (I - (I + S)^-1) C^-1 / 2,   I - (I + S)^-1 = M^-T M^-1 S,
    by B: -C^-T (S + y y^T) C^-1 / 2,   by delta: C^-T y.

S carries the difference of A and B, so the value and both gradients vanish with it. M comes
from S while that is small (its factor in deviations from I) and from the quotient of both
factors when it is not. (Own arrangement of Kullback 1959.)
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from kljax import coordinates, factors, linalg, special
from kljax.factors import Groups, inner
from kljax.linalg import Divisor, settled
from kljax.structure import Scale

WRITTEN_OUT = 8
NEAR = 0.4


@jax.custom_jvp
def groups(a: Array, b: Array, delta: Array) -> Groups:
    """Dispersion and location, from symmetric matrices (k, k) and delta (k,).

    Only the symmetric part of a matrix counts, so the gradients are exactly symmetric.
    """
    if 0 < b.shape[0] <= WRITTEN_OUT:
        return _written_out(_Symmetric(a), _Symmetric(b), delta)
    a, b = settled(linalg.symmetrize(a)), settled(linalg.symmetrize(b))
    return _from_whitened(a, *_whitened(a, b, delta))


def _groups_jvp(primals: Any, tangents: Any) -> tuple[Groups, Groups]:
    a, b, delta = primals
    da, db, ddelta = tangents
    a, b = settled(linalg.symmetrize(a)), settled(linalg.symmetrize(b))
    factor, inverse, s, y = _whitened(a, b, delta)

    def between(x: Array) -> Array:
        """C^-T x C^-1, for symmetric x."""
        half = settled(linalg.matmul(inverse.T, x))
        return linalg.symmetrize(settled(linalg.matmul(half, inverse)))

    def by_a() -> Array:
        m = linalg.inverse_lower(_quotient(a, inverse, s))
        change = settled(linalg.matmul(m.T, settled(linalg.matmul(m, s))))
        return 0.5 * between(change)

    slope = linalg.matmul(inverse.T, y)
    change = inner(by_a, da) - inner(lambda: 0.5 * between(s), db)
    moved = inner(lambda: slope[:, 0], ddelta) - inner(lambda: 0.5 * slope * slope.T, db)
    if 0 < b.shape[0] <= WRITTEN_OUT:
        value = groups(*primals)
    else:
        value = _from_whitened(a, factor, inverse, s, y)
    return value, Groups(change, moved)


groups.defjvp(_groups_jvp, symbolic_zeros=True)


def _whitened(a: Array, b: Array, delta: Array) -> tuple[Array, Array, Array, Array]:
    """C, C^-1, S and y as a column."""
    factor = linalg.cholesky(b)
    inverse = linalg.inverse_lower(factor)
    half = settled(linalg.matmul(inverse, settled(a - b)))
    s = settled(linalg.matmul(half, settled(inverse.T)))
    y = settled(linalg.matmul(inverse, delta[:, None]))
    return factor, inverse, settled(linalg.symmetrize(s)), y


def _is_near(s: Array) -> Array:
    """Whether all eigenvalues of I + S are near 1, hence the pivots of its factor."""
    return jnp.sum(s * s) < NEAR**2


def _quotient(a: Array, inverse: Array, s: Array) -> Array:
    """M, lower triangular."""
    deviation = linalg.cholesky_deviation(s)
    far = linalg.matmul(inverse, linalg.cholesky(a))
    near = deviation + jnp.eye(s.shape[0], dtype=s.dtype)
    return settled(jnp.tril(jnp.where(_is_near(s), near, far)))


def _from_whitened(a: Array, factor: Array, inverse: Array, s: Array, y: Array) -> Groups:
    deviation, factor_a = linalg.cholesky_deviation(s), linalg.cholesky(a)
    far = linalg.matmul(inverse, factor_a)
    far_on = coordinates.dispersion(
        Scale(linalg.diagonal(factor_a)), Scale(linalg.diagonal(factor))
    )
    # (r^2 - 1) / 2 - log r for r = 1 + e
    e = linalg.diagonal(deviation)
    near_on = special.x_minus_log1p(e) + 0.5 * e * e
    near = _is_near(s)
    below = linalg.strict_lower(jnp.where(near, deviation, far))
    on = jnp.sum(jnp.where(near, near_on, far_on))
    return Groups(on + 0.5 * jnp.sum(below * below), 0.5 * jnp.sum(y * y))


# ---- on scalars -----------------------------------------------------------------------------

_Rows = list[list[Array]]


class _Symmetric:
    """The scalars of the symmetric part of a matrix."""

    def __init__(self, matrix: Array) -> None:
        self._matrix = matrix
        self.size = matrix.shape[0]
        self.dtype = matrix.dtype

    def __getitem__(self, index: tuple[int, int]) -> Array:
        i, j = index
        if i == j:
            return self._matrix[i, i]
        return 0.5 * self._matrix[i, j] + 0.5 * self._matrix[j, i]


def _written_out(a: _Symmetric, b: _Symmetric, delta: Array) -> Groups:
    """The same without roots, which XLA would keep out of its one loop.

    With B = L D L^T (L of unit diagonal), Z = L^-1 (A - B) L^-T and D + Z = K F K^T,
    dispersion = sum_i (u_i - log(1 + u_i)) / 2 + sum_{i>j} K_ij^2 f_j / (2 d_i), where
    u_i = f_i / d_i - 1 comes from Z while that is small; else K F K^T from A = N F N^T by
    K = L^-1 N.
    """
    size = b.size
    lower, d, over = _root_free(b)
    lower_a, f, _ = _root_free(a)
    z = _both_sides(lower, [[a[i, j] - b[i, j] for j in range(size)] for i in range(size)])
    square = jnp.zeros((), b.dtype)
    for i in range(size):
        for j in range(i + 1):
            part = over[i](z[i][j]) * over[j](z[i][j])
            square = square + (part if i == j else 2 * part)

    near = jnp.zeros((), b.dtype)
    k, g, u = _root_free_deviation(z, d, over)
    for i in range(size):
        near = near + special.x_minus_log1p_near_zero(u[i])[1]
        for j in range(i):
            near = near + (k[i][j] * k[i][j]) * over[i](g[j])

    far = factors.variance_dispersions(f, d)
    for j in range(size):
        column = _substitute_unit(lower, [lower_a[i][j] for i in range(j, size)], j)
        for i, x in enumerate(column[1:], start=j + 1):
            far = far + (x * x) * over[i](f[j])

    location = jnp.zeros((), b.dtype)
    for i, x in enumerate(_substitute_unit(lower, [delta[i] for i in range(size)], 0)):
        location = location + x * over[i](x)
    return Groups(0.5 * jnp.where(square < NEAR**2, near, far), 0.5 * location)


def _root_free(a: _Symmetric) -> tuple[_Rows, list[Array], list[Divisor]]:
    """L, D and division by D of a = L D L^T, for scalars of a symmetric matrix."""
    lower: _Rows = []
    pivots: list[Array] = []
    over: list[Divisor] = []
    for i in range(a.size):
        scaled: list[Array] = []
        lower.append([])
        for j in range(i):
            rest = a[i, j]
            for l in range(j):
                rest = rest - scaled[l] * lower[j][l]
            scaled.append(rest)
            lower[i].append(over[j](rest))
        pivot = a[i, i]
        for x, y in zip(scaled, lower[i], strict=True):
            pivot = pivot - x * y
        lower[i].append(jnp.ones((), a.dtype))
        pivots.append(jnp.where(pivot > 0, pivot, jnp.nan))
        over.append(Divisor(pivots[i]))
    return lower, pivots, over


def _both_sides(lower: _Rows, d: _Rows) -> _Rows:
    """The lower triangle of L^-1 d L^-T."""
    size = len(d)
    half = [_substitute_unit(lower, [d[i][j] for i in range(size)], 0) for j in range(size)]
    return [_substitute_unit(lower, [half[j][i] for j in range(i + 1)], 0) for i in range(size)]


def _root_free_deviation(
    z: _Rows, d: list[Array], over_d: list[Divisor]
) -> tuple[_Rows, list[Array], list[Array]]:
    """K, G and u with D + z = K G K^T and u_i = g_i / d_i - 1, to the accuracy of z."""
    lower: _Rows = []
    pivots: list[Array] = []
    over: list[Divisor] = []
    deviations: list[Array] = []
    for i in range(len(z)):
        scaled: list[Array] = []
        lower.append([])
        for j in range(i):
            rest = z[i][j]
            for l in range(j):
                rest = rest - scaled[l] * lower[j][l]
            scaled.append(rest)
            lower[i].append(over[j](rest))
        change = z[i][i]
        for x, y in zip(scaled, lower[i], strict=True):
            change = change - x * y
        deviations.append(over_d[i](change))
        pivots.append(d[i] + change)
        over.append(Divisor(pivots[i]))
    return lower, pivots, deviations


def _substitute_unit(rows: _Rows, b: list[Array], start: int) -> list[Array]:
    """The column L^-1 b from row `start` on, for L of unit diagonal."""
    x: list[Array] = []
    for i, rest in enumerate(b, start=start):
        for j, known in enumerate(x, start=start):
            rest = rest - rows[i][j] * known
        x.append(rest)
    return x
