"""Two covariance matrices, compared through one lower triangular deviation E.

    E = C_p^-1 C_q - I,   S_q = C_q C_q^T,   S_p = C_p C_p^T,

    dispersion = (tr(S_p^-1 S_q) - d - log |S_p^-1 S_q|) / 2
               = sum_i [E_ii - log(1 + E_ii)] + sum_ij E_ij^2 / 2    (no cancellation)
    dE         = (I + E) X_q - X_p (I + E),   X = C^-1 dC,

so a pair of structures needs an E that is accurate also where q is almost p, and each
structure its own X. (For lower triangular M = I + E: tr M M^T = |M|^2, log |M M^T| =
2 sum log M_ii; and d(C_p^-1 C_q) = M X_q - X_p M.)
"""

from __future__ import annotations

from dataclasses import dataclass

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


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Factored:
    """A structure with its factor, computed once."""

    structure: Structure
    factor: Array

    def whiten(self, b: Array) -> Array:
        """C^-1 b."""
        return self.structure.whiten(self.factor, b)


def factorize(x: Structure) -> Factored:
    return Factored(x, x.factorize())


# ---- the formulas ---------------------------------------------------------------------------


def dispersion(e: Array) -> Array:
    """(|M|^2 - d) / 2 - log |M| >= 0 for M = I + e."""
    return jnp.sum(special.x_minus_log1p(linalg.diagonal(e))) + 0.5 * jnp.sum(e * e)


def trace(e: Array) -> Array:
    """|M|^2 = tr(S_p^-1 S_q)."""
    m = jnp.eye(e.shape[0], dtype=e.dtype) + e
    return jnp.sum(m * m)


def log_det(e: Array) -> Array:
    """Log |S_p| - log |S_q|."""
    return 0 - 2 * jnp.sum(special.log1p(linalg.diagonal(e)))


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


def relative_deviation(q: Factored, p: Factored) -> Array:
    """E of the pair, or of one with the same eigenvalues of S_p^-1 S_q.

    Two precisions have those of P_p relative to P_q, which are compared as covariances.
    """
    if isinstance(q.structure, Precision) and isinstance(p.structure, Precision):
        numerator = factorize(Covariance(p.structure.value))
        denominator = factorize(Covariance(q.structure.value))
        return deviation(numerator, denominator)
    return deviation(q, p)


@jax.custom_jvp
def deviation(q: Factored, p: Factored) -> Array:
    """E = C_p^-1 C_q - I, accurate also where q is almost p."""
    return _deviation(q, p)


@deviation.defjvp
def _deviation_jvp(primals, tangents):
    # The factors are functions of the structures, whose tangents say everything.
    (q, p), (dq, dp) = primals, tangents
    e = deviation(q, p)
    change_q = q.structure.change(q.factor, dq.structure)
    change_p = p.structure.change(p.factor, dp.structure)
    plain = change_q - change_p
    return e, plain + linalg.matmul(e, change_q) - linalg.matmul(change_p, e)


# ---- E, pair by pair ------------------------------------------------------------------------


def _deviation(q: Factored, p: Factored) -> Array:
    match q.structure, p.structure:
        case (ScaleTril(), ScaleTril()):
            gap = jnp.tril(q.factor - p.factor)
            on = linalg.diagonal(gap) / linalg.diagonal(p.factor)
            return _with_diagonal(p.whiten(gap), on)
        case (ScaleTril(), Diagonal() as diagonal):
            scales = Scale(linalg.diagonal(q.factor))
            on = coordinates.scale_deviation(scales, diagonal)
            return _with_diagonal(p.whiten(q.factor), on)
        case (Diagonal() as diagonal, ScaleTril()):
            scales = linalg.diagonal(p.factor)
            on = coordinates.scale_deviation(diagonal, Scale(scales))
            return _with_diagonal(p.whiten(_with_diagonal(-p.factor, scales * on)), on)
        case (Precision(), _):
            inverse = _deviation(p, q)
            eye = jnp.eye(inverse.shape[0], dtype=inverse.dtype)
            return -linalg.solve_lower(eye + inverse, inverse)
        case _:
            return _from_relative_covariance(q, p)


def _with_diagonal(a: Array, on: Array) -> Array:
    """The strictly lower part of a and a given diagonal."""
    return linalg.strict_lower(a) + jnp.diag(on)


def _from_relative_covariance(q: Factored, p: Factored) -> Array:
    """E as the Cholesky factor of I + S in deviations, S = C_p^-1 (S_q - S_p) C_p^-T.

    S carries the difference of q and p and is accurate while it is small; when it is not,
    the quotient of the factors is.
    """
    s = _relative_covariance(q, p)
    near = jnp.max(jnp.abs(s), initial=0) < 0.5
    quotient = p.whiten(q.structure.dense_factor(q.factor))
    on = q.structure.factor_diagonal(q.factor) / p.structure.factor_diagonal(p.factor)
    far = _with_diagonal(quotient, on - 1)
    return jnp.where(near, linalg.cholesky_deviation(s), far)


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
