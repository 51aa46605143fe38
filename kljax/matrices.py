"""Two covariance matrices, compared through the lower triangular quotient of their factors.

    M = C_p^-1 C_q,   S_q = C_q C_q^T,   S_p = C_p C_p^T,   S_p^-1 S_q ~ M M^T,

    dispersion = (tr(M M^T) - d - log |M M^T|) / 2
               = sum_i (e^(2 l_i) - 1 - 2 l_i) / 2 + sum_{i>j} M_ij^2 / 2,   l_i = log M_ii,

a sum of non-negative terms (own arrangement). A change of the parameters moves M by

    dM = M X_q - X_p M,   X = C^-1 dC,   so   dl_i = (X_q - X_p)_ii,

hence a pair of structures needs M below the diagonal and log M_ii, both accurate also where
q is almost p and M almost I, and each structure its own X.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from kljax import coordinates, doubled, linalg, special
from kljax.structure import (
    Covariance,
    Diagonal,
    Precision,
    Scale,
    ScaleTril,
    Structure,
    Variance,
)


class Factored(NamedTuple):
    """A structure with its factor, computed once."""

    structure: Structure
    factor: Array

    def whiten(self, b: Array) -> Array:
        """C^-1 b."""
        return self.structure.whiten(self.factor, b)


def factorize(x: Structure) -> Factored:
    return Factored(x, x.factorize())


# ---- the formulas ---------------------------------------------------------------------------


class Quotient(NamedTuple):
    """M = C_p^-1 C_q: what is strictly below its diagonal, and the diagonal's logarithm."""

    lower: Array
    log_diagonal: Array

    def dense(self) -> Array:
        return self.lower + jnp.diag(special.exp(self.log_diagonal))


def dispersion(m: Quotient) -> Array:
    """(|M|^2 - d) / 2 - log |M| >= 0."""
    on = special.half_expm1_minus_x(2 * m.log_diagonal)
    return jnp.sum(on) + 0.5 * jnp.sum(m.lower * m.lower)


def trace(m: Quotient) -> Array:
    """|M|^2 = tr(S_p^-1 S_q)."""
    return jnp.sum(special.exp(2 * m.log_diagonal)) + jnp.sum(m.lower * m.lower)


def log_det(m: Quotient) -> Array:
    """Log |S_p| - log |S_q|."""
    return 0 - 2 * jnp.sum(m.log_diagonal)


@jax.custom_jvp
def location(delta: Array, p: Factored) -> Array:
    """delta^T S_p^-1 delta / 2 >= 0."""
    y = p.whiten(delta[:, None])
    return 0.5 * jnp.sum(y * y)


@location.defjvp
def _location_jvp(primals, tangents):
    (delta, p), (ddelta, dp) = primals, tangents
    y = p.whiten(delta[:, None])
    slope = p.structure.whiten_transposed(p.factor, y)
    by_p = p.structure.half_square_change(dp.structure, delta, y, slope)
    return 0.5 * jnp.sum(y * y), jnp.sum(slope[:, 0] * ddelta) + by_p


def relative_quotient(q: Factored, p: Factored) -> Quotient:
    """M of the pair, or of one with the same eigenvalues of S_p^-1 S_q.

    Two precisions have those of P_p relative to P_q, which are compared as covariances.
    """
    if isinstance(q.structure, Precision) and isinstance(p.structure, Precision):
        numerator = factorize(Covariance(p.structure.value))
        denominator = factorize(Covariance(q.structure.value))
        return quotient(numerator, denominator)
    return quotient(q, p)


@jax.custom_jvp
def quotient(q: Factored, p: Factored) -> Quotient:
    """M = C_p^-1 C_q, accurate in its difference from I."""
    return _quotient(q, p)


@quotient.defjvp
def _quotient_jvp(primals, tangents):
    # The factors are functions of the structures, whose tangents say everything.
    (q, p), (dq, dp) = primals, tangents
    m = quotient(q, p)
    change_q = q.structure.change(q.factor, dq.structure)
    change_p = p.structure.change(p.factor, dp.structure)
    dense = m.dense()
    dm = linalg.matmul(dense, change_q) - linalg.matmul(change_p, dense)
    return m, Quotient(linalg.strict_lower(dm), linalg.diagonal(change_q - change_p))


# ---- M, pair by pair ------------------------------------------------------------------------


def _quotient(q: Factored, p: Factored) -> Quotient:
    match q.structure, p.structure:
        case (ScaleTril(), ScaleTril()):
            below = p.whiten(jnp.tril(q.factor - p.factor))
            return Quotient(linalg.strict_lower(below), log_diagonal(q, p))
        case (ScaleTril(), Diagonal()):
            below = p.whiten(q.factor)
            return Quotient(linalg.strict_lower(below), log_diagonal(q, p))
        case (Diagonal(), ScaleTril()):
            on = log_diagonal(q, p)
            gap = jnp.diag(linalg.diagonal(p.factor) * special.expm1(on))
            below = p.whiten(gap - linalg.strict_lower(p.factor))
            return Quotient(linalg.strict_lower(below), on)
        case (Precision(), _):
            inverse = _quotient(p, q)
            scaled = inverse.lower * special.exp(-inverse.log_diagonal)[None, :]
            below = -linalg.solve_lower(inverse.dense(), scaled)
            return Quotient(linalg.strict_lower(below), -inverse.log_diagonal)
        case _:
            return _from_relative_covariance(q, p)


def log_diagonal(q: Factored, p: Factored) -> Array:
    """Log of the quotient of the diagonals of C_q and C_p."""
    on_q, on_p = (_as_diagonal(x) for x in (q, p))
    return 0.5 * coordinates.log_variance_ratio(on_q, on_p)


def _as_diagonal(x: Factored) -> Diagonal:
    """The diagonal of C: as given by the user, where the structure is one."""
    if isinstance(x.structure, Diagonal):
        return x.structure
    return Scale(x.structure.factor_diagonal(x.factor))


def _from_relative_covariance(q: Factored, p: Factored) -> Quotient:
    """M as the Cholesky factor of I + S, S = C_p^-1 (S_q - S_p) C_p^-T, or by division.

    S carries the difference of q and p and is accurate while it is small; when it is not,
    the quotient of the factors is.
    """
    s = _relative_covariance(q, p)
    near = linalg.is_small(s)
    deviation = linalg.cholesky_deviation(s)
    divided = p.whiten(q.structure.dense_factor(q.factor))
    return Quotient(
        linalg.strict_lower(jnp.where(near, deviation, divided)),
        jnp.where(near, special.log1p(linalg.diagonal(deviation)), log_diagonal(q, p)),
    )


def _relative_covariance(q: Factored, p: Factored) -> Array:
    """S = C_p^-1 (S_q - S_p) C_p^-T, the difference formed before any rounding."""
    match q.structure, p.structure:
        case (_, Precision() as precision):
            # (S_q - S_p) = (S_q P - I) P^-1, so no inverse of P is needed.
            product = p.whiten(_times_precision_minus_identity(q, precision.value))
            return linalg.symmetrize(linalg.solve_lower_right(p.factor, product))
        case (Covariance() as covariance, Diagonal() as diagonal):
            variances = Variance(linalg.diagonal(covariance.value))
            log_ratio = coordinates.log_variance_ratio(variances, diagonal)
            off = p.whiten(p.whiten(covariance.value).T)
            return _replace_diagonal(off, special.expm1(log_ratio))
        case _:
            return linalg.whiten_both(p.factor, _difference(q, p))


def _difference(q: Factored, p: Factored) -> Array:
    """S_q - S_p, where p is a matrix or its factor."""
    match q.structure, p.structure:
        case (Covariance() as a, Covariance() as b):
            return a.value - b.value
        case (ScaleTril(), Covariance() as b):
            product = doubled.matmul(q.factor, q.factor.T)
            return (product.high - b.value) + product.low
        case (Covariance() as a, ScaleTril()):
            product = doubled.matmul(p.factor, p.factor.T)
            return (a.value - product.high) - product.low
        case (Diagonal() as diagonal, Covariance() as b):
            variances = linalg.diagonal(b.value)
            log_ratio = coordinates.log_variance_ratio(diagonal, Variance(variances))
            return _replace_diagonal(-b.value, variances * special.expm1(log_ratio))
        case a, b:
            raise NotImplementedError(f"{type(a).__name__} and {type(b).__name__}")


def _times_precision_minus_identity(q: Factored, precision: Array) -> Array:
    """S_q P - I, with products to twice the digits."""
    eye = jnp.eye(precision.shape[0], dtype=precision.dtype)
    match q.structure:
        case Diagonal() as diagonal:
            log_precision = doubled.log(linalg.diagonal(precision))
            log_product = doubled.add(diagonal.log_variance(), log_precision)
            off = diagonal.variance()[:, None] * precision
            return _replace_diagonal(off, special.expm1(doubled.value(log_product)))
        case Covariance() as covariance:
            product = doubled.matmul(covariance.value, precision)
            return (product.high - eye) + product.low
        case _:
            covariance = doubled.matmul(q.factor, q.factor.T)
            product = doubled.matmul(covariance.high, precision)
            low = product.low + linalg.matmul(covariance.low, precision)
            return (product.high - eye) + low


def _replace_diagonal(a: Array, on: Array) -> Array:
    return jnp.where(jnp.eye(a.shape[0], dtype=bool), jnp.diag(on), a)
