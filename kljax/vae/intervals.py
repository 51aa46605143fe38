"""Logarithms of what a law puts into an interval, without cancellation, overflow or log 0.

    log_normal_interval(m, h)    log (Phi(m + h) - Phi(m - h))
    log_upper_normal(t)          log (1 - Phi(t))
    log_logistic_width(log_w)    log (1 - e^-w), w = e^log_w
    log_mean_decay(a)            log (a / (1 - e^-a)), a >= 0

The first is a difference of tails where the interval is wide, and a Taylor series in h, uniform
in m, where it is narrow (own arrangement).
"""

from __future__ import annotations

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import log_ndtr

from kljax.special import LOG_2PI

# B_2n of Bernoulli, for log(sinh(a/2) / (a/2)) = sum_n B_2n a^2n / (2n (2n)!).
_BERNOULLI = ("1/6", "-1/30", "1/42", "-1/30", "5/66", "-691/2730", "7/6")
_SINHC = tuple(
    float(Fraction(b) / (2 * n * math.factorial(2 * n))) for n, b in enumerate(_BERNOULLI, 1)
)
_SERIES_LIMIT = 0.5
# Where the continued fraction takes over, and its depth, right to 1e-15 there.
_FAR, _DEPTH = 5.0, 24


def _even_series(x: Array) -> Array:
    """log(sinh(x/2) / (x/2)) for small x, by its series."""
    t = x * x
    total = jnp.full_like(t, _SINHC[-1])
    for c in _SINHC[-2::-1]:
        total = total * t + c
    return total * t


def log_sinhc(a: Array) -> Array:
    """log(sinh(a/2) / (a/2)) for a >= 0; its slope at 0 is 0."""
    near = a < _SERIES_LIMIT
    far = jnp.where(near, 1.0, a)
    grown = 0.5 * far + jnp.log1p(-jnp.exp(-far)) - jnp.log(far)
    return jnp.where(near, _even_series(jnp.where(near, a, 0)), grown)


def log_mean_decay(a: Array) -> Array:
    """log(a / (1 - e^-a)) for a >= 0; a / 2 near 0 and log a for large a."""
    near = a < _SERIES_LIMIT
    small, far = jnp.where(near, a, 0), jnp.where(near, 1.0, a)
    series = 0.5 * small - _even_series(small)
    return jnp.where(near, series, jnp.log(far) - jnp.log1p(-jnp.exp(-far)))


def log_logistic_width(log_w: Array) -> Array:
    """log(1 - e^-w) for w = e^log_w: log_w for small w, 0 for large."""
    narrow = log_w < 0
    small = jnp.exp(jnp.where(narrow, log_w, 0))
    # Above e^80 nothing is left of e^-w, in float32 and in float64.
    large = jnp.exp(jnp.where(narrow, 0, jnp.minimum(log_w, 80)))
    return jnp.where(narrow, log_w - log_mean_decay(small), jnp.log1p(-jnp.exp(-large)))


# ---- the normal law -------------------------------------------------------------------------


@jax.custom_jvp
def log_upper_normal(t: Array) -> Array:
    """log(1 - Phi(t)); its derivative is minus the hazard, not a quotient of two tails."""
    far, near = _split(t)
    log_density = -0.5 * t * t - 0.5 * LOG_2PI
    return jnp.where(t > _FAR, log_density - jnp.log(far + _excess(far)), log_ndtr(-near))


@log_upper_normal.defjvp
def _log_upper_normal_jvp(primals, tangents):
    (t,), (dt,) = primals, tangents
    return log_upper_normal(t), -hazard(t) * dt


@jax.custom_jvp
def hazard(t: Array) -> Array:
    """phi(t) / (1 - Phi(t)) > t, which is t + 1/t for large t."""
    far, near = _split(t)
    return jnp.where(t > _FAR, far + _excess(far), _ratio(near))


@hazard.defjvp
def _hazard_jvp(primals, tangents):
    (t,), (dt,) = primals, tangents
    far, near = _split(t)
    excess = jnp.where(t > _FAR, _excess(far), _ratio(near) - near)
    return hazard(t), hazard(t) * excess * dt


def _split(t: Array) -> tuple[Array, Array]:
    """T where it is far out, and t where it is not; else a number that harms nothing."""
    return jnp.where(t > _FAR, t, _FAR), jnp.where(t > _FAR, 0, t)


def _ratio(t: Array) -> Array:
    """The hazard, where nothing underflows."""
    return jnp.exp(-0.5 * t * t - 0.5 * LOG_2PI - log_ndtr(-t))


def _excess(t: Array) -> Array:
    """hazard(t) - t for t >= 5, by Laplace's continued fraction 1/(t + 2/(t + 3/(t + ...)))."""
    fraction = t
    for n in range(_DEPTH, 1, -1):
        fraction = t + n / fraction
    return 1 / fraction


def log_normal_interval(m: Array, log_h: Array) -> Array:
    """Log (Phi(m + h) - Phi(m - h)) for h = e^log_h."""
    m = jnp.where(m < 0, -m, m)
    limit = float(jnp.finfo(m.dtype).eps) ** 0.25
    narrow = log_h < math.log(limit)
    log_small = jnp.where(narrow, log_h, math.log(limit))
    h = jnp.exp(jnp.where(narrow, 0, log_h))
    return jnp.where(narrow, _log_narrow(m, log_small), _log_wide(m, h))


def _log_narrow(m: Array, log_h: Array) -> Array:
    """To second order in h: the density of the middle, a tilt, and the curvature."""
    h = jnp.exp(log_h)
    y = m * h
    tilt = log_sinhc(2 * y)
    middle = -0.5 * m * m - 0.5 * LOG_2PI + (math.log(2) + log_h)
    return (middle + tilt) - 0.5 * h * h * (1 - 2 * _langevin_ratio(y))


def _langevin_ratio(y: Array) -> Array:
    """(coth y - 1 / y) / y for y >= 0; 1 / 3 at 0."""
    near = y < _SERIES_LIMIT
    t = jnp.where(near, y, 0) ** 2
    far = jnp.where(near, 1.0, y)
    series = 1 / 3 - t * (1 / 45 - t * (2 / 945 - t / 4725))
    return jnp.where(near, series, (1 / jnp.tanh(far) - 1 / far) / far)


def _log_wide(m: Array, h: Array) -> Array:
    """As a difference of upper tails e^A - e^B, m >= 0."""
    lower, upper = m - h, m + h
    tail = log_upper_normal(lower)
    # Far out A - B is (upper^2 - lower^2) / 2 and little else, but neither A nor B is.
    far = lower > _FAR
    ends = [jnp.where(far, t, _FAR) for t in (lower, upper)]
    beyond = 2 * m * h + jnp.log(hazard(ends[1]) / hazard(ends[0]))
    near = [jnp.where(far, 0.5 * k, t) for k, t in enumerate((lower, upper))]
    gap = jnp.where(far, beyond, log_upper_normal(near[0]) - log_upper_normal(near[1]))
    large = gap > math.log(2)
    by_log1p = jnp.log1p(-jnp.exp(-jnp.where(large, gap, 1.0)))
    by_expm1 = jnp.log(-jnp.expm1(-jnp.where(large, 1.0, gap)))
    return tail + jnp.where(large, by_log1p, by_expm1)
