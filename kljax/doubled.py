"""Arithmetic on unevaluated sums high + low: twice the digits, in any precision.

Used where q and p come in different parametrizations, so that converting one of them must
not round away the difference. Written to survive a compiler that contracts a b + c into one
rounding (the partial products are exact, so contraction changes nothing) and that cancels
(1 + x) - 1 (no compensated sum has a constant operand).
Sources: Dekker 1971; Knuth, TAOCP 2, 4.2.2; Hida, Li & Bailey 2001.
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from kljax import linalg, special


class Doubled(NamedTuple):
    """The number high + low, with |low| at most about one rounding error of high."""

    high: Array
    low: Array


def exactly(x: Array) -> Doubled:
    return Doubled(x, jnp.zeros_like(x))


def two_sum(a: Array, b: Array) -> Doubled:
    """A + b without error."""
    total = a + b
    part = total - a
    error = (a - (total - part)) + (b - part)
    return Doubled(total, jnp.where(jnp.isfinite(total), error, 0))


def two_difference(a: Array, b: Array) -> Doubled:
    """A - b without error."""
    total = a - b
    part = total - a
    error = (a - (total - part)) - (b + part)
    return Doubled(total, jnp.where(jnp.isfinite(total), error, 0))


def _split(a: Array) -> tuple[Array, Array]:
    """A as a sum of two numbers of half the digits, by masking bits."""
    bits = jnp.finfo(a.dtype).bits
    kind, drop = (jnp.int32, 12) if bits == 32 else (jnp.int64, 27)
    mask = np.asarray(-1 << drop, kind)
    high = lax.bitcast_convert_type(lax.bitcast_convert_type(a, kind) & mask, a.dtype)
    return high, a - high


def two_product(a: Array, b: Array) -> Doubled:
    """A b to twice the digits."""
    a1, a2 = _split(a)
    b1, b2 = _split(b)
    middle = two_sum(a1 * b2, a2 * b1)
    total = two_sum(a1 * b1, middle.high)
    return Doubled(total.high, total.low + (middle.low + a2 * b2))


def add(a: Doubled, b: Doubled) -> Doubled:
    total, error = two_sum(a.high, b.high)
    rest = error + (a.low + b.low)
    high = total + rest
    return Doubled(high, jnp.where(jnp.isfinite(total), (total - high) + rest, 0))


def subtract(a: Doubled, b: Doubled) -> Doubled:
    return add(a, Doubled(-b.high, -b.low))


def multiply(a: Doubled, b: Doubled) -> Doubled:
    product = two_product(a.high, b.high)
    return two_sum(product.high, product.low + (a.high * b.low + a.low * b.high))


def divide(a: Array, b: Doubled) -> Doubled:
    """A / b, by one quotient and its remainder."""
    first = a / b.high
    product = two_product(first, b.high)
    rest = ((a - product.high) - product.low) - first * b.low
    return Doubled(first, rest / b.high)


def value(a: Doubled) -> Array:
    return a.high + a.low


def _series(count: int, dtype: np.dtype) -> Doubled:
    """2 / (2 j + 1) for j = count, ..., 1 as pairs."""
    exact = [Fraction(2, 2 * j + 1) for j in range(count, 0, -1)]
    high = np.array([float(c) for c in exact], dtype)
    low = np.array(
        [float(c - Fraction(float(h))) for c, h in zip(exact, high, strict=True)], dtype
    )
    return Doubled(high, low)  # pyright: ignore[reportArgumentType]


# log 2 to 60 digits; its leading parts have few bits, so that n times a part is exact.
_LOG2 = Fraction("0.693147180559945309417232121458176568075500134360255254120680009493")


def _log2_parts(dtype: np.dtype) -> tuple[float, float, float]:
    bits = 14 if dtype == np.float32 else 41
    first = Fraction(int(_LOG2 * 2**bits), 2**bits)
    second = Fraction(int((_LOG2 - first) * 2 ** (2 * bits)), 2 ** (2 * bits))
    return float(first), float(second), float(_LOG2 - first - second)


def log(x: Array) -> Doubled:
    """Log x to about twice the digits, for x > 0 in the normal range.

    x = 2^n m, log m = 2 atanh(s), s = (m - 1) / (m + 1): the first terms of the series in
    pairs, the rest, which is small, in ordinary numbers.
    """
    m, n = special.mantissa_and_exponent(x)
    # m + 1 as a pair: the leading half of m plus 1 is exact.
    leading, trailing = _split(m)
    s = divide(m - 1, two_sum(leading + 1, trailing))
    t = multiply(s, s)
    pairs, singles = (5, 3) if x.dtype == jnp.float32 else (11, 8)
    tail = jnp.zeros_like(x)
    for j in range(pairs + singles, pairs, -1):
        tail = tail * t.high + 2 / (2 * j + 1)

    def term(series: Doubled, coefficient: Doubled) -> tuple[Doubled, None]:
        high, low = (jnp.broadcast_to(c, x.shape) for c in coefficient)
        return multiply(t, add(series, Doubled(high, low))), None

    # A loop, since a dozen unrolled terms in pairs take long to compile.
    series = multiply(t, exactly(tail))
    coefficients = _series(pairs, np.dtype(x.dtype))
    series, _ = lax.scan(term, series, Doubled(*map(jnp.asarray, coefficients)))
    log_m = add(Doubled(2 * s.high, 2 * s.low), multiply(s, series))

    first, second, third = _log2_parts(np.dtype(x.dtype))
    whole = two_sum(n * first, n * second)
    total = add(Doubled(whole.high, whole.low + n * third), log_m)
    # The bits of nan, inf, 0 or a negative number would read as some other number.
    usual = (x >= jnp.finfo(x.dtype).tiny) & (x < jnp.inf)
    plain = jnp.log(jnp.where(usual, 1, x))
    return Doubled(jnp.where(usual, total.high, plain), jnp.where(usual, total.low, 0))


def matmul(a: Array, b: Array) -> Doubled:
    """The product of two matrices to twice the digits, one rank-one term at a time."""

    def add_term(total: Doubled, terms: tuple[Array, Array]):
        column, row = terms
        return add(total, two_product(column[:, None], row[None, :])), None

    zero = jnp.zeros((a.shape[0], b.shape[1]), a.dtype)
    return lax.scan(add_term, Doubled(zero, zero), (a.T, b))[0]


def times(a: Array, b: Doubled) -> Doubled:
    """The product of a matrix of ordinary numbers and a matrix of pairs."""
    return add(matmul(a, b.high), exactly(linalg.matmul(a, b.low)))
