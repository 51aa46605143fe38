"""The dispersion of two low-rank covariances in a basis of what their factors span.

In the units of p's diagonal, S_p = I + V V^T and S_q = Delta + U U^T. Let the rows of B be
orthonormal and span the columns of U and V, and split x into B x and the rest. By the chain
rule KL(q ‖ p) is that of the rest plus the expected one of B x given the rest, where p has
I + B V V^T B^T and q has K^-1 + B U U^T B^T with K = B Delta^-1 B^T (Schur complement):

    2 dispersion = sum_i h(delta_i) - sum_i |b_i|^2 delta_i tau_i + sum h(eigenvalues of K - I)
                 + sum h(eigenvalues of S),   S = whitened K^-1 - I + B (U U^T - V V^T) B^T,
                 + tr((I + B V V^T B^T)^-1 (B Delta B^T - K^-1)),

three non-negative lines (own arrangement). Whatever the factors look like, S is 0 up to
roundoff where q = p, and enters by its square.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax

from kljax import linalg, special
from kljax.dense import gap_of_factor, log_det


def basis(rows: Array) -> Array:
    """Orthonormal rows, or rows of 0, that span the given rows; shapes (m, d).

    Gram-Schmidt, each row orthogonalized twice (Kahan and Parlett's "twice is enough"): what
    is left of a row is scaled up in between, so that nearly parallel rows are told apart. A
    row that vanishes the second time has nothing of its own.
    """

    def add_row(found: Array, item: tuple[Array, Array]) -> tuple[Array, None]:
        index, row = item
        once = _normalized(_orthogonal_to(found, _normalized(row)))
        twice = _orthogonal_to(found, once)
        kept = jnp.where(jnp.sum(twice * twice) > 0.25, _normalized(twice), 0)
        place = jnp.arange(found.shape[0], dtype=jnp.int32) == index
        return jnp.where(place[:, None], kept, found), None

    count = jnp.arange(rows.shape[0], dtype=jnp.int32)
    return lax.scan(add_row, jnp.zeros_like(rows), (count, rows))[0]


def _normalized(x: Array) -> Array:
    largest = jnp.max(jnp.abs(x), initial=0)
    x = x / jnp.where(largest > 0, largest, 1)
    norm = jnp.sqrt(jnp.sum(x * x))
    return x / jnp.where(norm > 0, norm, 1)


def _orthogonal_to(found: Array, x: Array) -> Array:
    along = linalg.matmul(found, x[:, None])
    return x - linalg.matmul(found.T, along)[:, 0]


def dispersion(v: Array, e: Array, ratio: Array, delta: Array, gaps: Array) -> Array:
    """The dispersion.

    Args:
        v: V, by rows, shape (r, d).
        e: U - V, shape (r, d).
        ratio: Delta, shape (d,).
        delta: Delta - 1, to its relative accuracy.
        gaps: delta - log(1 + delta) of every coordinate.
    """
    tau = special.divide(delta, ratio)
    b = basis(jnp.concatenate([v, e]))
    eye = jnp.eye(b.shape[0], dtype=b.dtype)
    k = linalg.symmetrize(-linalg.matmul(b * tau[None, :], b.T))
    b_v, b_e = linalg.matmul(b, v.T), linalg.matmul(b, e.T)
    b_u = b_v + b_e
    deviations = _factors(jnp.stack([k, linalg.matmul(b_v, b_v.T)]), (1, 1))
    deviation_k, deviation = deviations
    divisor_k, divisor = jax.vmap(_inverse_lower)(deviations + eye[None])
    inverse_k = linalg.matmul(divisor_k.T, divisor_k)

    cross = linalg.matmul(b_v, b_e.T)
    change = cross + cross.T + linalg.matmul(b_e, b_e.T) - linalg.matmul(inverse_k, k)
    s = linalg.matmul(linalg.matmul(divisor, linalg.symmetrize(change)), divisor.T)
    s = linalg.symmetrize(s)
    of_q = inverse_k + linalg.matmul(b_u, b_u.T)
    deviation_s, factor_q = _factors(jnp.stack([s, of_q]), (1, 0))
    apart = jnp.sum(linalg.diagonal(s)) + (_log_det(deviation) - log_det(factor_q))
    inside = jnp.where(linalg.is_small(s), _gap(deviation_s), apart)

    # What is left of the diagonal outside of the span. Where the span holds coordinate axes
    # both sums are equal, and their difference is rounding: never below 0.
    leverage = jnp.sum(b * b, axis=0)
    close = jnp.sum(leverage * delta * tau) - _gap(deviation_k)
    apart = jnp.sum(leverage * delta) + _log_det(deviation_k)
    captured = jnp.where(linalg.is_small(k), close, apart)
    outside = jnp.maximum(jnp.sum(gaps) - captured, 0)
    spans_all = jnp.sum(leverage) > b.shape[1] - 0.5
    outside = jnp.where(spans_all, 0, outside)

    # B Delta B^T - K^-1: the squares of what regression on the span leaves.
    root = special.reciprocal(jnp.sqrt(ratio))[None, :]
    regressed = linalg.matmul(linalg.matmul(inverse_k, k).T, b * root)
    rest = linalg.matmul(divisor, b * (delta[None, :] * root) + regressed)
    return 0.5 * (outside + inside + jnp.sum(rest * rest))


# ---- factors by loops over columns, which compile fast: this path is rarely taken ------------


def _factors(a: Array, identities: tuple[int, int]) -> Array:
    """Lower triangular E with (n I + E)(n I + E)^T = n I + a, n of `identities` by matrix."""
    return jax.vmap(_factor)(a, jnp.asarray(identities, a.dtype))


def _factor(a: Array, identity: Array) -> Array:
    index = jnp.arange(a.shape[0], dtype=jnp.int32)

    def step(state: tuple[Array, Array], j: Array) -> tuple[tuple[Array, Array], None]:
        rest, factor = state
        column = jnp.sum(jnp.where(index[None, :] == j, rest, 0), axis=1)
        pivot = jnp.sum(jnp.where(index == j, column, 0))
        root = jnp.sqrt(jnp.where(identity + pivot > 0, identity + pivot, jnp.nan))
        below = jnp.where(index > j, column / root, 0)
        on = jnp.where(index == j, pivot / (identity + root), 0)
        factor = jnp.where(index[None, :] == j, (below + on)[:, None], factor)
        return (rest - below[:, None] * below[None, :], factor), None

    return lax.scan(step, (a, jnp.zeros_like(a)), index)[0][1]


def _inverse_lower(lower: Array) -> Array:
    index = jnp.arange(lower.shape[0], dtype=jnp.int32)

    def step(found: Array, item: tuple[Array, Array]) -> tuple[Array, None]:
        i, row = item
        rest = jnp.where(index == i, 1, 0) - jnp.sum(row[:, None] * found, axis=0)
        rest = rest / jnp.sum(jnp.where(index == i, row, 0))
        return jnp.where(index[:, None] == i, rest[None, :], found), None

    return lax.scan(step, jnp.zeros_like(lower), (index, lower))[0]


def _log_det(deviation: Array) -> Array:
    """Log |(I + E)(I + E)^T|."""
    return 2 * jnp.sum(special.log1p(linalg.diagonal(deviation)))


def _gap(deviation: Array) -> Array:
    on = special.log1p(linalg.diagonal(deviation))
    return gap_of_factor(on, linalg.strict_lower(deviation))
