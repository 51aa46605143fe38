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
from kljax.dense import gap, is_small, log_det


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


def dispersion(v: Array, e: Array, log_ratio: Array, half_gap: Array) -> Array:
    """The dispersion.

    Args:
        v: V, by rows, shape (r, d).
        e: U - V, shape (r, d).
        log_ratio: log Delta, shape (d,).
        half_gap: (delta - log(1 + delta)) / 2 of every coordinate.
    """
    delta, tau = special.expm1(log_ratio), -special.expm1(-log_ratio)
    b = basis(jnp.concatenate([v, e]))
    eye = jnp.eye(b.shape[0], dtype=b.dtype)
    k = linalg.symmetrize(-linalg.matmul(b * tau[None, :], b.T))
    b_v, b_e = linalg.matmul(b, v.T), linalg.matmul(b, e.T)
    b_u = b_v + b_e
    both = jnp.stack([eye + k, eye + linalg.matmul(b_v, b_v.T)])
    factor_k, factor = jax.vmap(linalg.cholesky)(both)
    inverse_k = _inverse(factor_k)
    factor_q = linalg.cholesky(inverse_k + linalg.matmul(b_u, b_u.T))

    cross = linalg.matmul(b_v, b_e.T)
    change = cross + cross.T + linalg.matmul(b_e, b_e.T) - linalg.matmul(inverse_k, k)
    s = linalg.whiten_both(factor, linalg.symmetrize(change))
    gap_k, gap_s = jax.vmap(gap)(jnp.stack([k, s]))
    apart = jnp.sum(linalg.diagonal(s)) + (log_det(factor) - log_det(factor_q))
    inside = jnp.where(is_small(s), gap_s, apart)

    # What is left of the diagonal outside of the span. Where the span holds coordinate axes
    # both sums are equal, and their difference is rounding: never below 0.
    leverage = jnp.sum(b * b, axis=0)
    close = jnp.sum(leverage * delta * tau) - gap_k
    apart = jnp.sum(leverage * delta) + log_det(factor_k)
    captured = jnp.where(is_small(k), close, apart)
    outside = jnp.maximum(2 * jnp.sum(half_gap) - captured, 0)

    # B Delta B^T - K^-1: the squares of what regression on the span leaves.
    root = special.exp(-0.5 * log_ratio)[None, :]
    regressed = linalg.matmul(linalg.matmul(inverse_k, k).T, b * root)
    rest = linalg.solve_lower(factor, b * (delta[None, :] * root) + regressed)
    return 0.5 * (outside + inside + jnp.sum(rest * rest))


def _inverse(factor: Array) -> Array:
    """(C C^T)^-1."""
    half = linalg.solve_lower(factor, jnp.eye(factor.shape[0], dtype=factor.dtype))
    return linalg.matmul(half.T, half)
