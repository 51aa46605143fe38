"""The closed set of covariance structures, and what a Gaussian formula asks of each.

A structure keeps the numbers its user gave, since the difference of q and p must be formed
before anything is rounded. Per coordinate: `Scale`, `Variance`, `LogVariance`. For a whole
matrix: `ScaleTril`, `Covariance`, `Precision`. Every function sees one event.

For two matrices everything follows from one lower triangular deviation,

    E = C_p^-1 C_q - I,   S_q = C_q C_q^T,   S_p = C_p C_p^T,

    dispersion = (tr(S_p^-1 S_q) - d - log |S_p^-1 S_q|) / 2
               = sum_i [E_ii - log(1 + E_ii)] + sum_ij E_ij^2 / 2     (no cancellation)
    dE         = (I + E) X_q - X_p (I + E),   X = C^-1 dC,

so a structure needs its factor C, the change X, and an accurate E against each other one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from kljax import doubled, linalg, special
from kljax.doubled import Doubled


def _structure(cls: type) -> Any:
    cls = dataclass(frozen=True, eq=False)(cls)
    return jax.tree_util.register_dataclass(cls, data_fields=["value"], meta_fields=[])


@_structure
class Scale:
    """Standard deviations s > 0."""

    value: Array


@_structure
class Variance:
    """Variances v = s^2 > 0."""

    value: Array


@_structure
class LogVariance:
    """Log-variances l = log v."""

    value: Array


@_structure
class ScaleTril:
    """A lower triangular Cholesky factor C."""

    value: Array


@_structure
class Covariance:
    """A covariance matrix S."""

    value: Array


@_structure
class Precision:
    """A precision matrix P = S^-1."""

    value: Array


Diagonal = Scale | Variance | LogVariance
Matrix = ScaleTril | Covariance | Precision
Structure = Diagonal | Matrix


# ---- per coordinate ---------------------------------------------------------------------


def scale(x: Diagonal) -> Array:
    match x:
        case Scale():
            return x.value
        case Variance():
            return jnp.sqrt(x.value)
        case LogVariance():
            return special.exp(0.5 * x.value)


def variance(x: Diagonal) -> Array:
    match x:
        case Scale():
            return x.value * x.value
        case Variance():
            return x.value
        case LogVariance():
            return special.exp(x.value)


def log_scale(x: Diagonal) -> Array:
    match x:
        case Scale():
            return special.log(x.value)
        case Variance():
            return 0.5 * special.log(x.value)
        case LogVariance():
            return 0.5 * x.value


def _log_variance(x: Diagonal) -> Doubled:
    match x:
        case Scale():
            half = doubled.log(x.value)
            return Doubled(2 * half.high, 2 * half.low)
        case Variance():
            return doubled.log(x.value)
        case LogVariance():
            return doubled.exactly(x.value)


def _log_variance_rate(x: Diagonal) -> Array:
    """d log v / d value."""
    match x:
        case Scale():
            return special.divide(jnp.full_like(x.value, 2), x.value)
        case Variance():
            return special.divide(jnp.ones_like(x.value), x.value)
        case LogVariance():
            return jnp.ones_like(x.value)


def _log_ratio(q: Diagonal, p: Diagonal) -> Doubled:
    """log(v_q / v_p) to twice the digits."""
    return doubled.subtract(_log_variance(q), _log_variance(p))


@jax.custom_jvp
def log_variance_ratio(q: Diagonal, p: Diagonal) -> Array:
    """log(v_q / v_p), to the relative accuracy of the difference."""
    match q, p:
        case (Scale(), Scale()):
            return 2 * _log_of_ratio(q.value, p.value)
        case (Variance(), Variance()):
            return _log_of_ratio(q.value, p.value)
        case _:
            return doubled.value(_log_ratio(q, p))


@log_variance_ratio.defjvp
def _log_variance_ratio_jvp(primals, tangents):
    (q, p), (dq, dp) = primals, tangents
    change = _log_variance_rate(q) * dq.value - _log_variance_rate(p) * dp.value
    return log_variance_ratio(q, p), change


def _log_of_ratio(x: Array, y: Array) -> Array:
    """log(x / y): from the difference when near, from two logarithms when x / y is no float."""
    info = jnp.finfo(x.dtype)
    ratio = x / y
    difference = (x - y) / y
    far = jnp.where(
        (ratio > 2 * info.tiny) & (ratio < info.max / 2),
        special.log(ratio),
        special.log(x) - special.log(y),
    )
    near = jnp.abs(difference) < 0.5
    return jnp.where(near, special.log1p(jnp.where(near, difference, 0)), far)


def variance_ratio(q: Diagonal, p: Diagonal) -> Array:
    """v_q / v_p."""
    match q, p:
        case (Scale(), Scale()):
            ratio = special.divide(q.value, p.value)
            return ratio * ratio
        case (Variance(), Variance()):
            return special.divide(q.value, p.value)
        case _:
            ratio = log_variance_ratio(q, p)
            return special.exp(ratio)


@jax.custom_jvp
def coordinate_dispersion(q: Diagonal, p: Diagonal) -> Array:
    """(v_q / v_p - 1 - log(v_q / v_p)) / 2 >= 0 for every coordinate."""
    match q, p:
        case (Scale(), Scale()):
            ratio, difference = q.value / p.value, (q.value - p.value) / p.value
            near = special.x_minus_log1p(difference) + 0.5 * difference * difference
            far = (0.5 * (ratio - 1)) * (ratio + 1) - _log_of_ratio(q.value, p.value)
        case (Variance(), Variance()):
            ratio, difference = q.value / p.value, (q.value - p.value) / p.value
            near = 0.5 * special.x_minus_log1p(difference)
            far = 0.5 * ((ratio - 1) - _log_of_ratio(q.value, p.value))
        case _:
            log_ratio = _log_ratio(q, p)
            slope = 0.5 * special.expm1(log_ratio.high)
            correction = jnp.where(log_ratio.low == 0, 0, log_ratio.low * slope)
            return special.half_expm1_minus_x(log_ratio.high) + correction
    return jnp.where((ratio > 0.25) & (ratio < 4), near, far)


@coordinate_dispersion.defjvp
def _coordinate_dispersion_jvp(primals, tangents):
    (q, p), (dq, dp) = primals, tangents
    slope_q, slope_p = _dispersion_slopes(q, p)
    change = slope_q * dq.value + slope_p * dp.value
    return coordinate_dispersion(q, p), change


def _dispersion_slopes(q: Diagonal, p: Diagonal) -> tuple[Array, Array]:
    """Derivatives by the two values, multiplied in an order that does not overflow early."""
    match q, p:
        case (Scale(), Scale()):
            inverse_q, inverse_p = _reciprocal(q.value), _reciprocal(p.value)
            difference = special.divide(q.value - p.value, p.value)
            ratio = special.divide(q.value, p.value)
            slope_q = difference * (inverse_q + inverse_p)
            return slope_q, -((difference * inverse_p) * (1 + ratio))
        case (Variance(), Variance()):
            gap, inverse = q.value - p.value, 0.5 * _reciprocal(p.value)
            by_q, by_p = special.divide(gap, q.value), special.divide(gap, p.value)
            return by_q * inverse, -(by_p * inverse)
        case _:
            by_q = _half_expm1_times(q, p, _log_variance_rate(q))
            by_p = _half_expm1_times(q, p, _log_variance_rate(p))
            return by_q, -by_p


def _reciprocal(x: Array) -> Array:
    return special.divide(jnp.ones_like(x), x)


@jax.custom_jvp
def _half_expm1_times(q: Diagonal, p: Diagonal, factor: Array) -> Array:
    """factor (v_q / v_p - 1) / 2; the ratio itself may overflow."""
    log_ratio = _log_ratio(q, p)
    slope = special.expm1(log_ratio.high)
    near = slope + log_ratio.low * (1 + slope)
    far = special.times_exp(0.5 * factor, log_ratio.high)
    return jnp.where(log_ratio.high > 60, far, (0.5 * factor) * near)


@_half_expm1_times.defjvp
def _half_expm1_times_jvp(primals, tangents):
    (q, p, factor), (dq, dp, dfactor) = primals, tangents
    slope = _half_expm1_times(q, p, jnp.ones_like(factor))
    half_ratio = 0.5 * special.exp(log_variance_ratio(q, p))
    change = _log_variance_rate(q) * dq.value - _log_variance_rate(p) * dp.value
    value = _half_expm1_times(q, p, factor)
    return value, factor * half_ratio * change + slope * dfactor


@jax.custom_jvp
def coordinate_location(delta: Array, p: Diagonal) -> Array:
    """delta^2 / (2 v_p) >= 0 for every coordinate."""
    match p:
        case Scale():
            z = delta / p.value
            return (0.5 * z) * z
        case Variance():
            return (0.5 * delta) * (delta / p.value)
        case LogVariance():
            z = special.times_exp(delta, -0.5 * p.value)
            return (0.5 * z) * z


@coordinate_location.defjvp
def _coordinate_location_jvp(primals, tangents):
    (delta, p), (ddelta, dp) = primals, tangents
    match p:
        case Scale():
            z = special.divide(delta, p.value)
            by_delta = z * _reciprocal(p.value)
            by_p = -(by_delta * z)
        case Variance():
            by_delta = special.divide(delta, p.value)
            by_p = -(0.5 * by_delta) * by_delta
        case LogVariance():
            z = special.times_exp(delta, -0.5 * p.value)
            by_delta = special.times_exp(z, -0.5 * p.value)
            by_p = -(0.5 * z) * z
    return coordinate_location(delta, p), by_delta * ddelta + by_p * dp.value


# ---- matrices ---------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Factored:
    """A structure with its factor, computed once.

    `factor` is C (the vector of scales for a diagonal), but C^-1 for a `Precision`, whose
    own triangular factor is that of the inverse.
    """

    structure: Structure
    factor: Array


def factorize(x: Structure) -> Factored:
    match x:
        case ScaleTril():
            return Factored(x, x.value)
        case Covariance():
            return Factored(x, linalg.cholesky(linalg.symmetrize(x.value)))
        case Precision():
            # P = W^T W with W lower triangular: Cholesky of P read backwards.
            reverse = linalg.flip(linalg.symmetrize(x.value))
            return Factored(x, linalg.flip(linalg.cholesky(reverse)).T)
        case _:
            return Factored(x, scale(x))


def whiten(x: Factored, b: Array) -> Array:
    """C^-1 b for a matrix b."""
    match x.structure:
        case ScaleTril() | Covariance():
            return linalg.solve_lower(x.factor, b)
        case Precision():
            return linalg.matmul(x.factor, b)
        case _:
            return b / x.factor[:, None]


def dense_factor(x: Factored) -> Array:
    """C as a matrix."""
    match x.structure:
        case ScaleTril() | Covariance():
            return x.factor
        case Precision():
            eye = jnp.eye(x.factor.shape[0], dtype=x.factor.dtype)
            return linalg.solve_lower(x.factor, eye)
        case _:
            return jnp.diag(x.factor)


def multiply(x: Factored, b: Array) -> Array:
    """C b for a matrix b."""
    match x.structure:
        case ScaleTril() | Covariance():
            return linalg.matmul(x.factor, b)
        case Precision():
            return linalg.solve_lower(x.factor, b)
        case _:
            return b * x.factor[:, None]


def half_log_det(x: Factored) -> Array:
    """log |C| = log |S| / 2."""
    match x.structure:
        case ScaleTril() | Covariance():
            return jnp.sum(special.log(linalg.diagonal(x.factor)))
        case Precision():
            return -jnp.sum(special.log(linalg.diagonal(x.factor)))
        case Scale() | Variance() | LogVariance() as diagonal:
            return jnp.sum(log_scale(diagonal))


def dense(x: Factored) -> Array:
    """The covariance matrix S."""
    match x.structure:
        case Covariance():
            return linalg.symmetrize(x.structure.value)
        case Scale() | Variance() | LogVariance() as diagonal:
            return jnp.diag(variance(diagonal))
        case _:
            factor = dense_factor(x)
            return linalg.matmul(factor, factor.T)


def marginal_variance(x: Factored) -> Array:
    """The diagonal of S."""
    match x.structure:
        case Covariance():
            return linalg.diagonal(x.structure.value)
        case Scale() | Variance() | LogVariance() as diagonal:
            return variance(diagonal)
        case _:
            return jnp.sum(dense_factor(x) ** 2, axis=1)


def _change(x: Factored, tangent: Structure) -> Array:
    """X = C^-1 dC, lower triangular, from a change of the structure's own numbers."""
    d = tangent.value
    match x.structure:
        case ScaleTril():
            return linalg.solve_lower(x.factor, jnp.tril(d))
        case Covariance():
            return linalg.lower_half(
                linalg.whiten_both(x.factor, linalg.symmetrize(d))
            )
        case Precision():
            half = linalg.solve_lower_right(x.factor, linalg.symmetrize(d))
            both = linalg.solve_lower_right(x.factor, half.T)
            return -linalg.lower_half(linalg.symmetrize(both))
        case Scale() | Variance() | LogVariance() as diagonal:
            return jnp.diag(0.5 * _log_variance_rate(diagonal) * d)


@jax.custom_jvp
def deviation(q: Factored, p: Factored) -> Array:
    """E = C_p^-1 C_q - I, accurate also where q is almost p."""
    return _deviation(q, p)


@deviation.defjvp
def _deviation_jvp(primals, tangents):
    (q, p), (dq, dp) = primals, tangents
    e = deviation(q, p)
    change_q, change_p = _change(q, dq.structure), _change(p, dp.structure)
    plain = change_q - change_p
    return e, plain + linalg.matmul(e, change_q) - linalg.matmul(change_p, e)


def _deviation(q: Factored, p: Factored) -> Array:
    match q.structure, p.structure:
        case (ScaleTril(), ScaleTril()):
            gap = jnp.tril(q.factor - p.factor)
            on = linalg.diagonal(gap) / linalg.diagonal(p.factor)
            return _with_diagonal(linalg.solve_lower(p.factor, gap), on)
        case (ScaleTril(), Scale() | Variance() | LogVariance() as diagonal):
            on = _scale_deviation(Scale(linalg.diagonal(q.factor)), diagonal)
            return _with_diagonal(whiten(p, q.factor), on)
        case (Scale() | Variance() | LogVariance() as diagonal, ScaleTril()):
            scales = linalg.diagonal(p.factor)
            on = _scale_deviation(diagonal, Scale(scales))
            gap = _with_diagonal(-p.factor, scales * on)
            return _with_diagonal(linalg.solve_lower(p.factor, gap), on)
        case (Precision(), Precision()):
            raise NotImplementedError("two precisions are compared as covariances")
        case (Precision(), _):
            inverse = _deviation(p, q)
            eye = jnp.eye(inverse.shape[0], dtype=inverse.dtype)
            return -linalg.solve_lower(eye + inverse, inverse)
        case _:
            return _from_relative_covariance(q, p)


def _with_diagonal(a: Array, on: Array) -> Array:
    """The strictly lower part of a and a given diagonal."""
    return linalg.strict_lower(a) + jnp.diag(on)


def _scale_deviation(q: Diagonal, p: Diagonal) -> Array:
    """s_q / s_p - 1."""
    half = _log_ratio(q, p)
    slope = special.expm1(0.5 * half.high)
    return slope + 0.5 * half.low * (1 + slope)


def _from_relative_covariance(q: Factored, p: Factored) -> Array:
    """E as the Cholesky factor of I + S in deviations, S = C_p^-1 (S_q - S_p) C_p^-T.

    S carries the difference of q and p and is accurate while it is small; when it is not,
    the quotient of the factors is.
    """
    s = _relative_covariance(q, p)
    quotient = linalg.strict_lower(whiten(p, dense_factor(q)))
    ratio = _factor_diagonal(q) / _factor_diagonal(p)
    near = jnp.max(jnp.abs(s), initial=0) < 0.5
    return jnp.where(
        near,
        linalg.cholesky_deviation(s),
        quotient + jnp.diag(ratio - 1),
    )


def _factor_diagonal(x: Factored) -> Array:
    match x.structure:
        case ScaleTril() | Covariance():
            return linalg.diagonal(x.factor)
        case Precision():
            return 1 / linalg.diagonal(x.factor)
        case _:
            return x.factor


def _relative_covariance(q: Factored, p: Factored) -> Array:
    """S = C_p^-1 (S_q - S_p) C_p^-T, the difference formed before any rounding."""
    match q.structure, p.structure:
        case (_, Precision()):
            # S_q - S_p = (S_q P - I) P^-1 needs no inverse of P.
            product = _relative_to_precision(q, p.structure.value)
            whitened = linalg.matmul(p.factor, product)
            return linalg.symmetrize(linalg.solve_lower_right(p.factor, whitened))
        case (Covariance(), Scale() | Variance() | LogVariance() as diagonal):
            covariance = linalg.symmetrize(q.structure.value)
            variances = Variance(linalg.diagonal(covariance))
            off = covariance / p.factor[:, None] * (1 / p.factor)[None, :]
            return _symmetric_with_diagonal(
                off, special.expm1(log_variance_ratio(variances, diagonal))
            )
        case _:
            return linalg.whiten_both(p.factor, _difference(q, p))


def _difference(q: Factored, p: Factored) -> Array:
    """S_q - S_p, where p is a factor or a covariance matrix."""
    match q.structure, p.structure:
        case (Covariance(), Covariance()):
            return linalg.symmetrize(q.structure.value - p.structure.value)
        case (ScaleTril(), Covariance()):
            product = doubled.matmul(q.factor, q.factor.T)
            return (product.high - linalg.symmetrize(p.structure.value)) + product.low
        case (Covariance(), ScaleTril()):
            product = doubled.matmul(p.factor, p.factor.T)
            return (linalg.symmetrize(q.structure.value) - product.high) - product.low
        case (Scale() | Variance() | LogVariance() as diagonal, Covariance()):
            covariance = linalg.symmetrize(p.structure.value)
            variances = linalg.diagonal(covariance)
            ratio = log_variance_ratio(diagonal, Variance(variances))
            return _symmetric_with_diagonal(
                -covariance, variances * special.expm1(ratio)
            )
        case _:
            raise NotImplementedError(f"{type(q.structure)} and {type(p.structure)}")


def _symmetric_with_diagonal(a: Array, on: Array) -> Array:
    return jnp.where(jnp.eye(a.shape[0], dtype=bool), jnp.diag(on), a)


def _relative_to_precision(q: Factored, precision: Array) -> Array:
    """S_q P - I, with products to twice the digits."""
    precision = linalg.symmetrize(precision)
    eye = jnp.eye(precision.shape[0], dtype=precision.dtype)
    match q.structure:
        case Covariance():
            covariance = linalg.symmetrize(q.structure.value)
            product = doubled.matmul(covariance, precision)
            return (product.high - eye) + product.low
        case ScaleTril():
            covariance = doubled.matmul(q.factor, q.factor.T)
            product = doubled.matmul(covariance.high, precision)
            low = product.low + linalg.matmul(covariance.low, precision)
            return (product.high - eye) + low
        case Scale() | Variance() | LogVariance() as diagonal:
            log_precision = doubled.log(linalg.diagonal(precision))
            log_product = doubled.add(_log_variance(diagonal), log_precision)
            off = variance(diagonal)[:, None] * precision
            return _symmetric_with_diagonal(
                off, special.expm1(doubled.value(log_product))
            )
        case _:
            raise NotImplementedError(type(q.structure))


def relative_deviation(q: Factored, p: Factored) -> Array:
    """E of the pair, or of a pair with the same eigenvalues of S_p^-1 S_q.

    Two precisions have those of P_p relative to P_q, which are compared as covariances.
    """
    match q.structure, p.structure:
        case (Precision(), Precision()):
            numerator = factorize(Covariance(p.structure.value))
            denominator = factorize(Covariance(q.structure.value))
            return deviation(numerator, denominator)
        case _:
            return deviation(q, p)


def dispersion(e: Array) -> Array:
    """(|M|^2 - d) / 2 - log |M| >= 0 for M = I + e, e lower triangular."""
    on = linalg.diagonal(e)
    return jnp.sum(special.x_minus_log1p(on)) + 0.5 * jnp.sum(e * e)


def trace(e: Array) -> Array:
    """|M|^2 = tr(S_p^-1 S_q)."""
    m = jnp.eye(e.shape[0], dtype=e.dtype) + e
    return jnp.sum(m * m)


def log_det(e: Array) -> Array:
    """log |S_p| - log |S_q|."""
    return -2 * jnp.sum(special.log1p(linalg.diagonal(e)))


@jax.custom_jvp
def location(delta: Array, p: Factored) -> Array:
    """delta^T S_p^-1 delta / 2 >= 0."""
    y = whiten(p, delta[:, None])[:, 0]
    return 0.5 * jnp.sum(y * y)


@location.defjvp
def _location_jvp(primals, tangents):
    (delta, p), (ddelta, dp) = primals, tangents
    y = whiten(p, delta[:, None])
    match p.structure:
        case ScaleTril() | Covariance():
            slope = linalg.solve_lower_transposed(p.factor, y)
        case Precision():
            slope = linalg.matmul(p.factor.T, y)
        case _:
            slope = y / p.factor[:, None]
    d = dp.structure.value
    match p.structure:
        case ScaleTril():
            change = -jnp.sum(slope * linalg.matmul(jnp.tril(d), y))
        case Covariance():
            change = -0.5 * jnp.sum(slope * linalg.matmul(linalg.symmetrize(d), slope))
        case Precision():
            outer = delta[:, None]
            change = 0.5 * jnp.sum(outer * linalg.matmul(linalg.symmetrize(d), outer))
        case Scale() | Variance() | LogVariance() as diagonal:
            change = -0.5 * jnp.sum(y[:, 0] ** 2 * _log_variance_rate(diagonal) * d)
    value = 0.5 * jnp.sum(y * y)
    return value, jnp.sum(slope[:, 0] * ddelta) + change
