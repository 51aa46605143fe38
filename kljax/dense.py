"""Two covariance matrices known to twice the digits, whatever they were built from.

    2 dispersion = tr S - log |I + S|,   S = C_p^-1 (S_q - S_p) C_p^-T,   S_p = C_p C_p^T.

Each matrix is a sum high + low (`doubled`), so the difference of a low-rank q and a precision
p, say, is formed before anything is rounded: near pairs keep their digits up to units of
roundoff times the condition of S_p. Derivatives are taken with respect to `high`:

    d dispersion = tr(C_p^-T S (I + S)^-1 C_p^-1 dS_q) / 2 - tr(C_p^-T S C_p^-1 dS_p) / 2.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax

from kljax import doubled, linalg, special
from kljax.doubled import Doubled
from kljax.structure import (
    Covariance,
    Diagonal,
    LogVariance,
    Precision,
    Scale,
    ScaleTril,
    Structure,
)


def gap(s: Array) -> Array:
    """Tr S - log |I + S| >= 0, accurate where S is small, by (I + E)(I + E)^T = I + S."""
    return _gap_of_deviation(linalg.cholesky_deviation(s))


def _gap_of_deviation(e: Array) -> Array:
    return gap_of_factor(special.log1p(linalg.diagonal(e)), linalg.strict_lower(e))


def gap_of_factor(log_diagonal: Array, below: Array) -> Array:
    """|M|^2 - d - 2 log |M| of a lower triangular M: a sum of non-negative terms."""
    return jnp.sum(special.expm1_minus_x(2 * log_diagonal)) + jnp.sum(below * below)


def log_det(factor: Array) -> Array:
    """Log |C C^T| of a triangular factor C."""
    return 2 * jnp.sum(special.log(linalg.diagonal(factor)))


def _relative(q: Doubled, p: Doubled) -> tuple[Array, Array, Array]:
    """C_p, S, and the lower triangular M with M M^T = I + S as its difference from I."""
    factor = linalg.cholesky(p.high)
    s = linalg.whiten_both(factor, (q.high - p.high) + (q.low - p.low))
    divided = linalg.solve_lower(factor, linalg.cholesky(q.high))
    divided = divided - jnp.eye(s.shape[0], dtype=s.dtype)
    return factor, s, jnp.where(linalg.is_small(s), linalg.cholesky_deviation(s), divided)


@jax.custom_jvp
def dispersion(q: Doubled, p: Doubled) -> Array:
    """(tr(S_p^-1 S_q) - d + log |S_p| - log |S_q|) / 2 >= 0."""
    factor, s, deviation = _relative(q, p)
    log_ratio = special.log(linalg.diagonal(linalg.cholesky(q.high)) / linalg.diagonal(factor))
    near = special.log1p(linalg.diagonal(deviation))
    on = jnp.where(linalg.is_small(s), near, log_ratio)
    return 0.5 * gap_of_factor(on, linalg.strict_lower(deviation))


@dispersion.defjvp
def _dispersion_jvp(primals, tangents):
    (q, p), (dq, dp) = primals, tangents
    factor, s, deviation = _relative(q, p)
    m = deviation + jnp.eye(s.shape[0], dtype=s.dtype)
    by_q = linalg.solve_lower_transposed(m, linalg.solve_lower(m, s))
    by_q = linalg.symmetrize(by_q) * linalg.whiten_both(factor, linalg.symmetrize(dq.high))
    by_p = s * linalg.whiten_both(factor, linalg.symmetrize(dp.high))
    return dispersion(q, p), 0.5 * (jnp.sum(by_q) - jnp.sum(by_p))


@jax.custom_jvp
def location(delta: Array, p: Doubled) -> Array:
    """delta^T S_p^-1 delta / 2 >= 0."""
    y = linalg.solve_lower(linalg.cholesky(p.high), delta[:, None])
    return 0.5 * jnp.sum(y * y)


@location.defjvp
def _location_jvp(primals, tangents):
    (delta, p), (ddelta, dp) = primals, tangents
    factor = linalg.cholesky(p.high)
    y = linalg.solve_lower(factor, delta[:, None])
    slope = linalg.solve_lower_transposed(factor, y)
    by_p = -0.5 * jnp.sum(slope * linalg.matmul(linalg.symmetrize(dp.high), slope))
    return location(delta, p), jnp.sum(slope[:, 0] * ddelta) + by_p


def trace_and_log_det(q: Doubled, p: Doubled) -> tuple[Array, Array]:
    """tr(S_p^-1 S_q) and log |S_p| - log |S_q|."""
    factor = linalg.cholesky(p.high)
    trace = jnp.sum(linalg.diagonal(linalg.whiten_both(factor, q.high)))
    return trace, log_det(factor) - log_det(linalg.cholesky(q.high))


# ---- matrices to twice the digits -----------------------------------------------------------


def exactly(covariance: Array) -> Doubled:
    """A covariance matrix as it was given."""
    return doubled.exactly(linalg.symmetrize(covariance))


def fixed(x: Doubled) -> Doubled:
    """Without derivatives."""
    return Doubled(*map(lax.stop_gradient, x))


def with_low_part(high: Array, exact: Doubled) -> Doubled:
    """A differentiable `high` with what it lacks, which has no derivative of its own."""
    high_value = lax.stop_gradient(high)
    return Doubled(high, lax.stop_gradient((exact.high - high_value) + exact.low))


def outer(a: Array) -> Doubled:
    """A A^T."""
    given = lax.stop_gradient(a)
    return with_low_part(linalg.matmul(a, a.T), doubled.matmul(given, given.T))


def variances(x: Diagonal) -> Doubled:
    """The variances of a diagonal structure, a vector."""
    given = lax.stop_gradient(x.value)
    match x:
        case Scale():
            return with_low_part(x.variance(), doubled.two_product(given, given))
        case LogVariance():
            high = lax.stop_gradient(x.variance())
            rest = doubled.subtract(doubled.exactly(given), doubled.log(high))
            return with_low_part(x.variance(), Doubled(high, high * doubled.value(rest)))
        case _:
            return doubled.exactly(x.variance())


def diagonal(x: Diagonal) -> Doubled:
    """A diagonal structure as a matrix."""
    return Doubled(*(jnp.diag(part) for part in variances(x)))


def add(a: Doubled, b: Doubled) -> Doubled:
    """A + b."""
    return with_low_part(a.high + b.high, doubled.add(fixed(a), fixed(b)))


def kron(a: Doubled, b: Doubled) -> Doubled:
    """The Kronecker product."""
    left = Doubled(*(x[:, None, :, None] for x in a))
    right = Doubled(*(x[None, :, None, :] for x in b))
    exact = doubled.multiply(fixed(left), fixed(right))
    both = with_low_part(left.high * right.high, exact)
    size = a.high.shape[0] * b.high.shape[0]
    return Doubled(*(x.reshape(size, size) for x in both))


def covariance(x: Structure) -> Doubled:
    """The covariance matrix of a structure, from the numbers that were given."""
    match x:
        case ScaleTril():
            return outer(jnp.tril(x.value))
        case Covariance():
            return exactly(x.value)
        case Precision():
            return inverse(x.value)
        case Diagonal():
            return diagonal(x)
        case _:
            raise NotImplementedError(type(x).__name__)


def inverse(precision: Array) -> Doubled:
    """P^-1: one step of Newton's iteration whose residual I - P X has twice the digits."""
    p = linalg.symmetrize(precision)
    x = _inverse(p)
    fixed_p, fixed_x = lax.stop_gradient(p), lax.stop_gradient(x)
    product = doubled.matmul(fixed_p, fixed_x)
    eye = jnp.eye(p.shape[0], dtype=p.dtype)
    residual = (eye - product.high) - product.low
    return Doubled(x, linalg.symmetrize(linalg.matmul(fixed_x, residual)))


@jax.custom_jvp
def _inverse(p: Array) -> Array:
    half = linalg.solve_lower(linalg.cholesky(p), jnp.eye(p.shape[0], dtype=p.dtype))
    return linalg.matmul(half.T, half)


@_inverse.defjvp
def _inverse_jvp(primals, tangents):
    (p,), (dp,) = primals, tangents
    x = _inverse(p)
    return x, -linalg.matmul(linalg.matmul(x, dp), x)
