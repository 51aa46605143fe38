"""Scalar functions that keep every digit where the textbook line cancels.

    expm1_minus_x(x)              = e^x - 1 - x           the KL of two log-variances, doubled
    x_minus_log1p(x)              = x - log(1 + x)        the KL of two variances, doubled
    one_plus_x_log1p_minus_x(x)   = (1 + x) log(1 + x) - x

Near 0 each is a polynomial times x^2; elsewhere the subtraction is harmless. The logarithm
goes through s = x / (2 + x), for which log(1 + x) = 2 atanh(s) = 2 s + 2 s^3 Q(s^2), so that
x - log(1 + x) = s (x - 2 s^2 Q) has no cancellation left (Loader 2000 and R's log1pmx use the
same substitution). Derivatives are rules, not differentiated polynomials.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

# Chebyshev fits on |x| <= 0.7 of (e^x - 1 - x) / x^2 and on 0 <= t <= 0.36 of
# (atanh(sqrt t) / sqrt t - 1) / t; relative error below 0.15 units of roundoff.
# `tests/reference/make_coefficients.py` regenerates them.
_PHI = {
    np.dtype(np.float32): (
        0.5,
        0.1666667024,
        0.04166667024,
        0.008332750182,
        0.001388830644,
        0.0002007889419,
        2.503899105e-5,
    ),
    np.dtype(np.float64): (
        0.5,
        0.16666666666666663,
        0.041666666666666665,
        0.0083333333333352641,
        0.0013888888888890095,
        0.00019841269838118024,
        2.4801587299618647e-5,
        2.7557321428677542e-6,
        2.7557320601102604e-7,
        2.505135890630596e-8,
        2.0876288811832291e-9,
        1.6181264692868737e-10,
        1.1547103037097898e-11,
    ),
}
_ATANH = {
    np.dtype(np.float32): (
        0.3333333312,
        0.2000007392,
        0.1428146478,
        0.1120302046,
        0.08131133831,
        0.1299083089,
        -0.08732588457,
        0.263580723,
    ),
    np.dtype(np.float64): (
        0.3333333333333333,
        0.2000000000000005,
        0.14285714285698803,
        0.11111111112934544,
        0.09090908977924822,
        0.07692311940581191,
        0.06666561243993685,
        0.05884174384705385,
        0.05240461812275927,
        0.049705794254866646,
        0.029128750424223377,
        0.11420168404026951,
        -0.2507386025564666,
        0.8614131501657827,
        -1.6838305049674023,
        2.480923170698216,
        -2.157921267857449,
        0.9817804785764808,
    ),
}
_PHI_LIMIT = 0.7
_LOG1P_LOW, _LOG1P_HIGH = -0.5, 3.0

LOG_2PI = 1.8378770664093453

# log 2 = HIGH + LOW with enough trailing zeros in HIGH that n HIGH is exact (Cody & Waite).
_LOG2 = {
    np.dtype(np.float32): (0.693359375, -2.1219444005469057e-4),
    np.dtype(np.float64): (0.6931471803691238, 1.9082149292705877e-10),
}


def _horner(coefficients: tuple[float, ...], x: Array) -> Array:
    value = jnp.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        value = value * x + c
    return value


def as_float(x: Any) -> Array:
    """Numbers and arrays as float32 or float64 (half precision is widened)."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _integers(dtype: Any) -> Any:
    """The integers of as many bits."""
    return jnp.int32 if jnp.finfo(dtype).bits == 32 else jnp.int64


def _power_of_two(n: Array, dtype: Any) -> Array:
    """2^n for an integer n within the normal range, built from its bits."""
    info = jnp.finfo(dtype)
    return lax.bitcast_convert_type((n + (info.maxexp - 1)) << info.nmant, dtype)


def _nearest_integer(x: Array) -> Array:
    """As an integer, for |x| below 2^21: the last bits of x + 3 2^22 (2^51 in float64).

    A conversion would cost more, as it has to say what becomes of nan and of large numbers.
    """
    info, kind = jnp.finfo(x.dtype), _integers(x.dtype)
    shift = np.asarray(3 * 2.0 ** (info.nmant - 1), x.dtype)
    return lax.bitcast_convert_type(x + shift, kind) - shift.view(np.dtype(kind))


def _over_log2(x: Array) -> Array:
    return x * np.asarray(1 / np.log(2), x.dtype)


@jax.custom_jvp
def times_exp(x: Array, y: Array) -> Array:
    """X e^y, finite wherever the product is, even where e^y alone is not."""
    return _exp_multiplier(y)(x)


def _exp_multiplier(y: Array):
    """Times e^y = 4^n (1 + m), with -1/2 <= m <= 1, as times 2^n, 1 + m and 2^n."""
    high, low = _LOG2[y.dtype]
    limit = 2 * (jnp.finfo(y.dtype).maxexp - 1) * float(np.log(2))
    bounded = jnp.clip(y, -limit, limit)
    n = _nearest_integer(_over_log2(0.5 * bounded))
    twice = 2 * n.astype(y.dtype)
    rest = (bounded - twice * high) - twice * low
    m = rest + rest * rest * _horner(_PHI[y.dtype], rest)
    power = _power_of_two(n, y.dtype)

    def times(x: Array) -> Array:
        scaled = x * power
        return (scaled + scaled * m) * power

    return times


@times_exp.defjvp
def _times_exp_jvp(primals, tangents):
    x, y = primals
    dx, dy = tangents
    product = times_exp(x, y)
    # Linear in dx; a second derivative differentiates the polynomial in y.
    return product, _exp_multiplier(y)(dx) + product * dy


def exp(x: Array) -> Array:
    """e^x to 1.5 ulp, by the same arithmetic on every backend."""
    return times_exp(jnp.ones_like(x), x)


@jax.custom_jvp
def expm1(x: Array) -> Array:
    """e^x - 1."""
    return _expm1(x, None, 1.0)


def half_expm1(x: Array, low: Array) -> Array:
    """(e^t - 1) / 2 of t = x + low to twice the digits; no rule of its own.

    Finite up to t = log 2 + log of the largest float.
    """
    return _expm1(x, low, 0.5)


def _expm1(x: Array, low: Array | None, factor: float) -> Array:
    _, y, gap, power = _expm1_parts(x, factor)
    change = y + gap
    if low is not None:
        change = change + low * (1 + change)
    return power * change + (power - factor)


def _expm1_parts(x: Array, factor: float) -> tuple[Array, Array, Array, Array]:
    """X below a bound, y, e^y - 1 - y and p = 2^n factor with factor e^x = p e^y.

    Where |x| is small, n is 0 and y is x: then what has a factor of p - factor or y - x is
    exactly 0, and one line serves for all x. The bounds of x are the nearest for which it
    changes the result: beyond, that is infinite or the power is lost in it.
    """
    high, low = _LOG2[x.dtype]
    info, top = jnp.finfo(x.dtype), _top(x.dtype)
    shift = -int(np.log2(factor))
    bounded = jnp.minimum(x, top + 1)
    kept = jnp.maximum(bounded, 6 - top)
    n = jnp.minimum(_nearest_integer(_over_log2(kept)), info.maxexp - 1 + shift)
    n = jnp.where(jnp.abs(x) < _PHI_LIMIT, 0, n)
    whole = n.astype(x.dtype)
    y = (kept - whole * high) - whole * low
    gap = y * y * _horner(_PHI[x.dtype], y)
    return bounded, y, gap, _power_of_two(n - shift, x.dtype)


def _top(dtype: Any) -> float:
    """Log of the largest float."""
    return jnp.finfo(dtype).maxexp * float(np.log(2))


@expm1.defjvp
def _expm1_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return expm1(x), exp(x) * dx


def _expm1_minus_x(x: Array, low: Array | None, factor: float) -> Array:
    """Factor (e^t - 1 - t), t = x + low, for a factor of 1 or 1/2; no overflow on the way."""
    bounded, y, gap, power = _expm1_parts(x, factor)
    change = power - factor
    # In this order the first difference is exact for |x| < 1.73.
    total = (change - factor * bounded) + power * y
    if low is None:
        return power * gap + total
    return power * (gap + low * (y + gap)) + (total + low * change)


@jax.custom_jvp
def expm1_minus_x(x: Array) -> Array:
    """e^x - 1 - x >= 0, accurate to 4 ulp for every x.

    Args:
        x: real array.

    Returns:
        Array of the shape of x; its derivative is e^x - 1.
    """
    return _expm1_minus_x(as_float(x), None, 1.0)


@expm1_minus_x.defjvp
def _expm1_minus_x_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return expm1_minus_x(x), expm1(as_float(x)).astype(dx.dtype) * dx


@jax.custom_jvp
def half_expm1_minus_x(x: Array) -> Array:
    """(e^x - 1 - x) / 2, finite up to x = log 2 + log of the largest float."""
    return _expm1_minus_x(x, None, 0.5)


@half_expm1_minus_x.defjvp
def _half_expm1_minus_x_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return half_expm1_minus_x(x), 0.5 * expm1(x) * dx


def half_expm1_minus_sum(x: Array, low: Array) -> Array:
    """(e^t - 1 - t) / 2 of t = x + low to twice the digits; no rule of its own."""
    return _expm1_minus_x(x, low, 0.5)


@jax.custom_jvp
def divide(x: Array, y: Array) -> Array:
    """X / y whose derivative does not square y: y^-2 overflows long before 1 / y."""
    return x / y


@divide.defjvp
def _divide_jvp(primals, tangents):
    x, y = primals
    dx, dy = tangents
    quotient, reciprocal = divide(x, y), 1 / y
    return quotient, (dx - quotient * dy) * reciprocal


def reciprocal(x: Array) -> Array:
    """1 / x, with the derivative of `divide`."""
    return divide(jnp.ones_like(x), x)


def _log1p_window(x: Array) -> tuple[Array, Array, Array, Array]:
    """Whether x is near 0, x where it is, s = x / (2 + x), and s^2 Q(s^2)."""
    near = (x > _LOG1P_LOW) & (x < _LOG1P_HIGH)
    y = jnp.where(near, x, 0)
    s = y / (2 + y)
    t = s * s
    return near, y, s, t * _horner(_ATANH[x.dtype], t)


def mantissa_and_exponent(x: Array) -> tuple[Array, Array]:
    """M and n with x = 2^n m and m between sqrt(1/2) and sqrt(2), both floats."""
    info = jnp.finfo(x.dtype)
    kind = _integers(x.dtype)
    root_half = np.sqrt(np.asarray(0.5, x.dtype)).view(np.dtype(kind))
    bits = lax.bitcast_convert_type(x, kind)
    exponent = (bits - root_half) >> info.nmant
    m = lax.bitcast_convert_type(bits - (exponent << info.nmant), x.dtype)
    return m, exponent.astype(x.dtype)


def _fields(x: Array) -> tuple[Array, Array]:
    """The biased exponent and the fraction of x > 0, as integers."""
    nmant = jnp.finfo(x.dtype).nmant
    bits = lax.bitcast_convert_type(x, _integers(x.dtype))
    return bits >> nmant, bits & ((1 << nmant) - 1)


def _inverse_power(y: Array) -> Array:
    """A power of two c with 1/2 <= c y < 1 (below 4 for the largest y, so that c is normal)."""
    info = jnp.finfo(y.dtype)
    exponent = jnp.maximum(2 * info.maxexp - 3 - _fields(y)[0], 1)
    return lax.bitcast_convert_type(exponent << info.nmant, y.dtype)


@jax.custom_jvp
def over(x: Array, y: Array) -> Array:
    """X / y for y > 0, as a product, which XLA puts into one loop with others.

    Both are scaled by a power of two first: of the largest y, 1 / y would be flushed to 0.
    """
    power = _inverse_power(y)
    return (x * power) * (1 / (y * power))


@over.defjvp
def _over_jvp(primals, tangents):
    x, y = primals
    dx, dy = tangents
    quotient = over(x, y)
    return quotient, over(dx - quotient * dy, y)


@jax.custom_jvp
def excess(x: Array, y: Array) -> Array:
    """X / y - 1 from the difference, for x and y > 0."""
    power = _inverse_power(y)
    return (x * power - y * power) * (1 / (y * power))


@excess.defjvp
def _excess_jvp(primals, tangents):
    x, y = primals
    dx, dy = tangents
    out = excess(x, y)
    return out, over(dx - (1 + out) * dy, y)


class Quotient(NamedTuple):
    """X / y = 1 + excess = 2^n (1 + s) / (1 - s), with n = 0 between 1/4 and 4.

    So log(x / y) = n log 2 + 2 s + 2 s tail, and near 1, where n is 0, nothing cancels in
    excess - log(x / y) = s (excess - 2 tail). All of it by products: see `over`.
    """

    near: Array
    excess: Array
    s: Array
    tail: Array
    n: Array

    @classmethod
    def of(cls, x: Array, y: Array) -> Quotient:
        """For x and y > 0; no rules of its own."""
        power = _inverse_power(y)
        x_scaled, y_scaled = x * power, y * power
        near = (x_scaled > 0.25 * y_scaled) & (x_scaled < 4 * y_scaled)
        (up, x_fraction), (down, y_fraction) = _fields(x), _fields(y)
        x_reduced = jnp.where(near, x_scaled, _one_plus(x_fraction, x.dtype))
        y_reduced = jnp.where(near, y_scaled, _one_plus(y_fraction, y.dtype))
        s = (x_reduced - y_reduced) * (1 / (x_reduced + y_reduced))
        t = s * s
        return cls(
            near=near,
            excess=(x_scaled - y_scaled) * (1 / y_scaled),
            s=s,
            tail=t * _horner(_ATANH[s.dtype], t),
            n=jnp.where(near, 0, up - down).astype(x.dtype),
        )

    def log(self) -> Array:
        high, low = _LOG2[self.s.dtype]
        rest = 2 * self.s + (2 * self.s) * self.tail
        return self.n * high + (self.n * low + rest)

    def excess_minus_log(self) -> Array:
        """Where near."""
        return self.s * (self.excess - 2 * self.tail)


def _one_plus(fraction: Array, dtype: Any) -> Array:
    """The number between 1 and 2 with these bits behind the point."""
    info = jnp.finfo(dtype)
    return lax.bitcast_convert_type(fraction | ((info.maxexp - 1) << info.nmant), dtype)


def _log_parts(x: Array) -> tuple[Array, Array]:
    """N log 2, rounded to a few bits and so exact, and the rest of log x, below 0.35."""
    high, low = _LOG2[x.dtype]
    m, n = mantissa_and_exponent(x)
    s = (m - 1) / (m + 1)
    t = s * s
    return n * high, n * low + 2 * (s + s * (t * _horner(_ATANH[x.dtype], t)))


@jax.custom_jvp
def log(x: Array) -> Array:
    """Log x to 1 ulp, the same on every backend."""
    whole, rest = _log_parts(x)
    usual = (x >= jnp.finfo(x.dtype).tiny) & (x < jnp.inf)
    return jnp.where(usual, whole + rest, jnp.log(x))


@log.defjvp
def _log_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return log(x), divide(dx, x)


@jax.custom_jvp
def log1p(x: Array) -> Array:
    """log(1 + x)."""
    near, y, _, tail = _log1p_window(x)
    double = y / (1 + 0.5 * y)
    return jnp.where(near, double + double * tail, log(1 + x))


@log1p.defjvp
def _log1p_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return log1p(x), divide(dx, 1 + x)


def x_minus_log1p_near_zero(x: Array) -> tuple[Array, Array]:
    """Whether x is near 0, and x - log(1 + x) there; no shared division, so that it fuses."""
    near = (x > _LOG1P_LOW) & (x < _LOG1P_HIGH)
    y = jnp.where(near, x, 0)
    s = y * (1 / (2 + y))
    t = s * s
    return near, s * (y - 2 * (t * _horner(_ATANH[x.dtype], t)))


def subtract_times_log2(x: Array, n: Array) -> Array:
    """X - n log 2, for a whole number n."""
    high, low = _LOG2[x.dtype]
    return (x - n * high) - n * low


@jax.custom_jvp
def x_minus_log1p(x: Array) -> Array:
    """X - log(1 + x) >= 0, accurate to 4 ulp for every x > -1.

    Args:
        x: real array; inf at -1, nan below.

    Returns:
        Array of the shape of x; its derivative is x / (1 + x).
    """
    x = as_float(x)
    near, y, s, tail = _log1p_window(x)
    # 1 + x is exact below -1/2, and x - n log 2 nearly so: only the small rest rounds.
    whole, rest = _log_parts(1 + x)
    far = jnp.where((x > -1) & (x < jnp.inf), (x - whole) - rest, jnp.abs(log(1 + x)))
    return jnp.where(near, s * (y - 2 * tail), far)


@x_minus_log1p.defjvp
def _x_minus_log1p_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    slope = divide(as_float(x), 1 + as_float(x))
    return x_minus_log1p(x), slope.astype(dx.dtype) * dx


@jax.custom_jvp
def one_plus_x_log1p_minus_x(x: Array) -> Array:
    """(1 + x) log(1 + x) - x >= 0, accurate to 4 ulp for every x >= -1.

    Args:
        x: real array; 1 at -1, nan below.

    Returns:
        Array of the shape of x; its derivative is log(1 + x).
    """
    x = as_float(x)
    near, y, s, tail = _log1p_window(x)
    whole, rest = _log_parts(1 + x)
    above = (x * (whole - 1) + whole) + (1 + x) * rest
    far = jnp.where(x < 0, (1 + x) * (whole + rest) - x, above)
    limit = jnp.where(x == -1, 1, x * (log(1 + x) - 1))
    far = jnp.where((x > -1) & (x < 1e30), far, limit)
    # The far form is the better one from 2 on, where rounding 1 + x matters less.
    return jnp.where(near & (x < 2), s * (y + 2 * (1 + y) * tail), far)


@one_plus_x_log1p_minus_x.defjvp
def _one_plus_x_log1p_minus_x_jvp(primals, tangents):
    (x,), (dx,) = primals, tangents
    return one_plus_x_log1p_minus_x(x), log1p(as_float(x)).astype(dx.dtype) * dx
