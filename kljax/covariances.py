"""Two Gaussians given by covariance matrices, N(., A) and N(., B), in few passes.

    B = C C^T,   S = C^-1 (A - B) C^-T,   y = C^-1 delta,
    dispersion = (tr S - log |I + S|) / 2,   location = |y|^2 / 2,
    by A: A^-1 (A - B) B^-1 / 2,   by B: -B^-1 (A - B) B^-1 / 2 - s s^T / 2,
    by delta: s = B^-1 delta.

Far apart, the dispersion is that of both Cholesky factors (`factors`). Where it is found to be
small, its digits are those of the factors' rounding, and it is computed anew from S, whose
entries are small and well known. The gradients carry the difference A - B itself, and vanish
with it. (Own arrangement of Kullback 1959.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from kljax import blocks, factors, linalg, special
from kljax._batches import where_needed
from kljax.factors import Groups, inner
from kljax.linalg import Divisor, settled

WRITTEN_OUT = 8
# Beyond this size each way of the dispersion has a loop of its own: one for both is so long
# that XLA makes many functions of it, and LLVM then no vectors.
ONE_LOOP = 7
# Largest norm of S from which its factor is computed in deviations from the identity.
NEAR = 0.4
# What the dispersion is there, about |S|^2 / 4.
NEAR_DISPERSION = 0.25 * NEAR**2


@jax.custom_jvp
def groups(a: Array, b: Array, delta: Array) -> Groups:
    """Dispersion and location, from symmetric matrices (k, k) and delta (k,).

    Only the symmetric part of a matrix counts, so the gradients are exactly symmetric.
    """
    if 0 < b.shape[0] <= WRITTEN_OUT:
        return _written_out(_Symmetric(a), _Symmetric(b), delta)
    far, whiten = _far(a, b, delta)
    near = far.dispersion < NEAR_DISPERSION
    return far._replace(
        dispersion=where_needed(
            near, lambda: _near(whiten(linalg.symmetrize(a - b))), far.dispersion
        )
    )


def _far(a: Array, b: Array, delta: Array) -> tuple[Groups, Callable[[Array], Array]]:
    """The groups from both factors, and the function x -> C^-1 x C^-T of symmetric x."""
    if b.shape[0] > blocks.MOST or not b.shape[0]:
        of_a, of_b = (linalg.cholesky(settled(linalg.symmetrize(x))) for x in (a, b))
        return factors.groups(of_a, of_b, delta), lambda x: linalg.whiten_both(of_b, x)

    of_a, _ = blocks.cholesky(blocks.symmetric(a))
    of_b, divisor = blocks.cholesky(blocks.symmetric(b))

    def half(x: Array) -> Array:
        return settled(jnp.concatenate(blocks.solve(divisor, blocks.parts(x))))

    far = factors.groups_of_blocks(of_a, of_b, divisor, delta)
    return far, lambda x: linalg.symmetrize(half(half(x).T))


def _near(s: Array) -> Array:
    """The dispersion from S, whose entries are small."""
    deviation = linalg.cholesky_deviation(s)
    # (r^2 - 1) / 2 - log r for r = 1 + e
    e = linalg.diagonal(deviation)
    on = special.x_minus_log1p(e) + 0.5 * e * e
    below = linalg.strict_lower(deviation)
    return jnp.sum(on) + 0.5 * jnp.sum(below * below)


def _groups_jvp(primals: Any, tangents: Any) -> tuple[Groups, Groups]:
    a, b, delta = primals
    da, db, ddelta = tangents
    divide = _division(b)
    slope = divide(delta[:, None])
    # (A - B) B^-1, of which B^-1 (A - B) B^-1 and A^-1 (A - B) B^-1 are one more solve.
    quotient = settled(divide(settled(linalg.symmetrize(a - b))).T)

    def by_a() -> Array:
        return 0.5 * linalg.symmetrize(_division(a)(quotient))

    def by_b() -> Array:
        return 0.5 * linalg.symmetrize(divide(quotient))

    change = inner(by_a, da) - inner(by_b, db)
    moved = inner(lambda: slope[:, 0], ddelta) - inner(lambda: 0.5 * slope * slope.T, db)
    return groups(*primals), Groups(change, moved)


groups.defjvp(_groups_jvp, symbolic_zeros=True)


def _division(a: Array) -> Callable[[Array], Array]:
    """The function b -> a^-1 b, for the symmetric part of a, positive definite."""
    if linalg.LEAF < a.shape[0] <= blocks.MOST:
        _, divisor = blocks.cholesky(blocks.symmetric(a))

        def by_blocks(b: Array) -> Array:
            half = blocks.solve(divisor, blocks.parts(b))
            return settled(jnp.concatenate(blocks.solve_transposed(divisor, half)))

        return by_blocks

    if 0 < a.shape[0] <= WRITTEN_OUT:
        inverse = settled(_inverse_of_factor(a))
    else:
        inverse = linalg.inverse_lower(linalg.cholesky(settled(linalg.symmetrize(a))))

    def by_inverse(b: Array) -> Array:
        return settled(linalg.matmul(inverse.T, settled(linalg.matmul(inverse, b))))

    return by_inverse


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
    # Far is said by nan, since one number can be settled and leave its loop.
    near = jnp.where(square < NEAR**2, near, jnp.nan)
    if size > ONE_LOOP:
        near = settled(near)
    return Groups(0.5 * jnp.where(near == near, near, far), 0.5 * location)


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


@jax.custom_jvp
def _inverse_of_factor(a: Array) -> Array:
    """C^-1 of C C^T = a, of which only the symmetric part counts."""
    scalars = _Symmetric(a)
    lower: _Rows = []
    over: list[Array] = []
    inverse: list[Array] = []
    for i in range(scalars.size):
        row: list[Array] = []
        for j in range(i):
            rest = scalars[i, j]
            for x, y in zip(row, lower[j], strict=True):
                rest = rest - x * y
            row.append(rest * over[j])
        pivot = scalars[i, i]
        of_inverse = (lax.iota(jnp.int32, scalars.size) == i).astype(a.dtype)[None, :]
        for x, known in zip(row, inverse, strict=True):
            pivot = pivot - x * x
            of_inverse = of_inverse - x * known
        lower.append(row)
        over.append(lax.rsqrt(jnp.where(pivot > 0, pivot, jnp.nan)))
        inverse.append(of_inverse * over[i])
    return linalg.from_rows(inverse)


@_inverse_of_factor.defjvp
def _inverse_of_factor_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (a,), (da,) = primals, tangents
    inverse = _inverse_of_factor(a)
    whitened = linalg.matmul(linalg.matmul(inverse, linalg.symmetrize(da)), inverse.T)
    return inverse, -linalg.matmul(linalg.lower_half(whitened), inverse)


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
