"""Two variances of one coordinate: their ratio, its logarithm, dispersion and location.

    dispersion = (v_q / v_p - 1 - log(v_q / v_p)) / 2 >= 0
    location   = delta^2 / (2 v_p) >= 0

Two scales, two variances and two log-variances are compared in their own terms. A mixed
pair is compared by its log-variances to twice the digits, so that converting one of them
does not round away the difference. Derivatives are rules whose factors are multiplied in an
order that overflows only where the derivative does. (For `(x / y) / y` a compiler may
evaluate x / (y y), which overflows early; a product with a reciprocal is left alone.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from kljax import doubled, special
from kljax.doubled import Doubled
from kljax.structure import Diagonal, LogVariance, Scale, Variance


def variance_ratio(q: Diagonal, p: Diagonal) -> Array:
    """v_q / v_p."""
    match q, p:
        case (Scale(), Scale()):
            ratio = special.over(q.value, p.value)
            return ratio * ratio
        case (Variance(), Variance()):
            return special.over(q.value, p.value)
        case _:
            return special.exp(log_variance_ratio(q, p))


@jax.custom_jvp
def log_variance_ratio(q: Diagonal, p: Diagonal) -> Array:
    """log(v_q / v_p), to the relative accuracy of the difference."""
    match q, p:
        case (Scale(), Scale()):
            return 2 * _log_quotient(q.value, p.value)
        case (Variance(), Variance()):
            return _log_quotient(q.value, p.value)
        case (Scale(), Variance()) | (Variance(), Scale()):
            far = doubled.value(_log_ratio(q, p))
            return _when_near(_relative_difference(q, p), special.log1p, far)
        case _:
            return doubled.value(_log_ratio(q, p))


@log_variance_ratio.defjvp
def _log_variance_ratio_jvp(primals, tangents):
    (q, p), (dq, dp) = primals, tangents
    return log_variance_ratio(q, p), q.rate() * dq.value - p.rate() * dp.value


def _log_ratio(q: Diagonal, p: Diagonal) -> Doubled:
    """log(v_q / v_p) to twice the digits."""
    if isinstance(q, LogVariance) and isinstance(p, LogVariance):
        return doubled.two_difference(q.value, p.value)
    return doubled.subtract(q.log_variance(), p.log_variance())


def _log_quotient(x: Array, y: Array) -> Array:
    """log(x / y), from the difference where they are near."""
    log = special.Quotient.of(x, y).log()
    # The bits of nan, inf, 0 or a negative number would read as some other number.
    usual = (x > 0) & (x < jnp.inf) & (y > 0) & (y < jnp.inf)
    return jnp.where(usual, log, jnp.log(x) - jnp.log(y))


def _when_near(
    difference: Array, function: Callable[[Array], Array], otherwise: Array
) -> Array:
    """A function of a relative difference where that is small, else something else."""
    near = jnp.abs(difference) < 0.5
    return jnp.where(near, function(jnp.where(near, difference, 0)), otherwise)


def _relative_difference(q: Diagonal, p: Diagonal) -> Array:
    """(v_q - v_p) / v_p of a scale and a variance, the square taken without rounding."""
    if isinstance(q, Scale):
        square = doubled.two_product(q.value, q.value)
        return ((square.high - p.value) + square.low) / p.value
    square = doubled.two_product(p.value, p.value)
    quotient = ((q.value - square.high) - square.low) / square.high
    return quotient - quotient * (square.low / square.high)


@jax.custom_jvp
def dispersion(q: Diagonal, p: Diagonal) -> Array:
    """(v_q / v_p - 1 - log(v_q / v_p)) / 2 >= 0."""
    match q, p:
        case (Scale(), Scale()):
            r = special.Quotient.of(q.value, p.value)
            near = r.excess_minus_log() + (0.5 * r.excess) * r.excess
            return jnp.where(r.near, near, (0.5 * r.excess) * (r.excess + 2) - r.log())
        case (Variance(), Variance()):
            r = special.Quotient.of(q.value, p.value)
            far = _half_quotient(q.value, p.value) - 0.5 - 0.5 * r.log()
            return jnp.where(r.near, 0.5 * r.excess_minus_log(), far)
        case (Scale(), Variance()) | (Variance(), Scale()):
            return _when_near(
                _relative_difference(q, p),
                lambda u: 0.5 * special.x_minus_log1p(u),
                special.half_expm1_minus_sum(*_log_ratio(q, p)),
            )
        case _:
            return special.half_expm1_minus_sum(*_log_ratio(q, p))


def dispersion_from_unit(q: Diagonal) -> Array:
    """(v_q - 1 - log v_q) / 2 >= 0, with 1 in q's own numbers: nothing is converted."""
    match q:
        case LogVariance():
            return special.half_expm1_minus_x(q.value)
        case _:
            return dispersion(q, type(q)(jnp.ones_like(q.value)))


def _half_quotient(x: Array, y: Array) -> Array:
    """X / (2 y), finite also where x / y is not."""
    return jnp.where(jnp.abs(x) > 1, special.over(0.5 * x, y), 0.5 * special.over(x, y))


@dispersion.defjvp
def _dispersion_jvp(primals, tangents):
    (q, p), (dq, dp) = primals, tangents
    value = dispersion(q, p)
    if isinstance(q, LogVariance) and isinstance(p, LogVariance):
        return value, _times_difference(_half_expm1(q, p), dq.value - dp.value)
    by_q, by_p = _dispersion_slopes(q, p)
    return value, by_q * dq.value + by_p * dp.value


def _dispersion_slopes(q: Diagonal, p: Diagonal) -> tuple[Array, Array]:
    """The derivatives by the values of q and p."""
    match q, p:
        case (Scale(), Scale()):
            excess = special.excess(q.value, p.value)
            by_q = special.over(excess, q.value) + special.over(excess, p.value)
            return by_q, -(special.over(excess, p.value) * (2 + excess))
        case (Variance(), Variance()):
            gap = 0.5 * (q.value - p.value)
            larger = jnp.maximum(q.value, p.value)
            smaller = jnp.minimum(q.value, p.value)
            by_q = special.over(special.over(gap, larger), smaller)
            return by_q, -special.over(special.over(gap, p.value), p.value)
        case _:
            return _slope_of_log_ratio(q, p, q), -_slope_of_log_ratio(q, p, p)


def _slope_of_log_ratio(q: Diagonal, p: Diagonal, by: Diagonal) -> Array:
    """(v_q / v_p - 1) / 2, times what log v of `by` changes with its value."""
    if isinstance(by, LogVariance):
        return _half_expm1(q, p)
    return _half_expm1_times(q, p, by.rate())


@jax.custom_jvp
def _half_expm1(q: Diagonal, p: Diagonal) -> Array:
    """(v_q / v_p - 1) / 2, finite wherever the dispersion is."""
    return special.half_expm1(*_log_ratio(q, p))


@_half_expm1.defjvp
def _half_expm1_jvp(primals, tangents):
    (q, p), (dq, dp) = primals, tangents
    half_ratio = 0.5 * special.exp(log_variance_ratio(q, p))
    return _half_expm1(q, p), half_ratio * (q.rate() * dq.value - p.rate() * dp.value)


@jax.custom_jvp
def _half_expm1_times(q: Diagonal, p: Diagonal, factor: Array) -> Array:
    """Factor (v_q / v_p - 1) / 2; the ratio itself may overflow."""
    log_ratio = _log_ratio(q, p)
    slope = special.expm1(log_ratio.high)
    slope = slope + log_ratio.low * (1 + slope)
    if not isinstance(q, LogVariance) and not isinstance(p, LogVariance):
        slope = _when_near(_relative_difference(q, p), lambda u: u, slope)
    large = special.times_exp(0.5 * factor, log_ratio.high) * (1 + log_ratio.low)
    return jnp.where(log_ratio.high > 60, large, (0.5 * factor) * slope)


@_half_expm1_times.defjvp
def _half_expm1_times_jvp(primals, tangents):
    (q, p, factor), (dq, dp, dfactor) = primals, tangents
    slope = _half_expm1_times(q, p, jnp.ones_like(factor))
    half_ratio = 0.5 * special.exp(log_variance_ratio(q, p))
    change = q.rate() * dq.value - p.rate() * dp.value
    value = _half_expm1_times(q, p, factor)
    return value, factor * half_ratio * change + slope * dfactor


@jax.custom_jvp
def location(delta: Array, p: Diagonal) -> Array:
    """delta^2 / (2 v_p) >= 0."""
    match p:
        case Scale():
            z = special.over(delta, p.value)
            return (0.5 * z) * z
        case Variance():
            return delta * _half_quotient(delta, p.value)
        case _:
            z = special.times_exp(delta, -0.5 * p.value)
            return (0.5 * z) * z


@location.defjvp
def _location_jvp(primals, tangents):
    (delta, p), (ddelta, dp) = primals, tangents
    match p:
        case Scale():
            z = special.over(delta, p.value)
            by_delta = special.over(z, p.value)
            by_p = -(by_delta * z)
        case Variance():
            by_delta = special.over(delta, p.value)
            by_p = -(0.5 * by_delta) * by_delta
        case _:
            z = special.times_exp(delta, -0.5 * p.value)
            by_delta = special.times_exp(delta, -p.value)
            by_p = -(0.5 * z) * z
    return location(delta, p), _times_difference(by_delta, ddelta) + by_p * dp.value


def _times_difference(slope: Array, tangent: Array) -> Array:
    """Slope times the tangent of x - y, for which the cotangents of x and y are opposite.

    XLA would evaluate a product for each of them; what ends in a division it evaluates once.
    """
    one = lax.stop_gradient(jnp.where(slope == slope, jnp.ones_like(slope), slope))
    return slope * (tangent / one)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def total(by_coordinate: Callable[..., Array], *x: Any) -> Array:
    """The sum over coordinates of a function of each; x are trees of arrays of one length."""
    if not jnp.ndim(jax.tree.leaves(x)[0]):
        return by_coordinate(*x)
    # Traced once, however many strips there are.
    function = jax.jit(by_coordinate)
    return lax.platform_dependent(
        *x,
        cpu=lambda *x: _total_by_strips(function, x),
        default=lambda *x: jnp.sum(function(*x)),
    )


@total.defjvp
def _total_jvp(by_coordinate, primals, tangents):
    changes = jax.jvp(by_coordinate, primals, tangents)[1]
    return total(by_coordinate, *primals), jnp.sum(changes)


def _total_by_strips(function: Callable[..., Array], x: Any) -> Array:
    """A few strips added as vectors, in the loop that computes them; the rest by products.

    XLA's loops for CPUs would add what they compute on the way one by one. The strips of a
    block lie side by side, since a loop that reads far apart reads slowly; and each has a call
    of its own, since of slices of one result LLVM does not know that they overlap no other.
    """
    size = jax.tree.leaves(x)[0].shape[0]
    width, strips = _strips(size)
    blocks = jax.tree.map(lambda a: jnp.reshape(a, (-1, strips, width)), x)
    parts = (function(*jax.tree.map(lambda a, i=i: a[:, i], blocks)) for i in range(strips))
    return _add_up(_add_up(functools.reduce(jnp.add, parts)))


def _strips(size: int) -> tuple[int, int]:
    """How long strips are, and how many are in a block.

    Not below 16: where what is added depends on another computation, LLVM makes vectors only
    of loops that are that long.
    """
    for multiple in (16, 8, 1):
        for width in range(16, 65, multiple):
            for strips in (4, 5, 3, 2, 7):
                if size % (width * strips) == 0:
                    return width, strips
    return size, 1


def _add_up(x: Array) -> Array:
    """Over the last axis, as a product with ones."""
    ones = jnp.ones(x.shape[-1], x.dtype)
    contract = (((x.ndim - 1,), (0,)), ((), ()))
    return lax.dot_general(x, ones, contract, precision=lax.Precision.HIGHEST)
