"""The scalar kernels over all floats: within 4 ulp, never negative, never a false zero."""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.test_util import check_grads

from accuracy import ulp
from kljax import doubled, special

# Every STEP-th of the 2^32 float32 numbers; KLJAX_SWEEP_STEP=64 is the dense sweep.
STEP = int(os.environ.get("KLJAX_SWEEP_STEP", "8192"))
TINY, LARGEST = 2.0**-126, float(np.finfo(np.float32).max)


def _all_floats() -> np.ndarray:
    bits = np.arange(5, 2**32, STEP, dtype=np.uint64).astype(np.uint32)
    x = bits.view(np.float32)
    near = np.concatenate([x, np.linspace(-1, 4, 200_001).astype(np.float32)])
    return near[np.isfinite(near)]


def _series(x: np.ndarray, coefficient) -> np.ndarray:
    return sum(coefficient(n) * x**n for n in range(2, 14))


def _expm1_minus_x(x: np.ndarray) -> np.ndarray:
    near = np.abs(x) < 1e-2
    y = np.where(near, x, 0)
    factorial = np.cumprod(np.arange(1.0, 15))
    series = _series(y, lambda n: 1 / factorial[n - 1])
    return np.where(near, series, np.expm1(np.minimum(x, 700)) - x)


def _x_minus_log1p(x: np.ndarray) -> np.ndarray:
    near = np.abs(x) < 1e-2
    series = _series(np.where(near, x, 0), lambda n: (-1) ** n / n)
    return np.where(near, series, x - np.log1p(x))


def _one_plus_x_log1p_minus_x(x: np.ndarray) -> np.ndarray:
    near = np.abs(x) < 1e-2
    series = _series(np.where(near, x, 0), lambda n: (-1) ** n / (n * (n - 1)))
    whole = np.where(x == -1, 1, (1 + x) * np.log1p(np.where(x == -1, 0, x)) - x)
    return np.where(near, series, whole)


KERNELS = [
    (special.expm1_minus_x, _expm1_minus_x, -np.inf),
    (special.x_minus_log1p, _x_minus_log1p, np.nextafter(-1, 0, dtype=np.float32)),
    (special.one_plus_x_log1p_minus_x, _one_plus_x_log1p_minus_x, -1),
]


@pytest.mark.parametrize(
    ("kernel", "wanted", "low"), KERNELS, ids=lambda f: getattr(f, "__name__", "")
)
@pytest.mark.parametrize("jit", [True, False], ids=["jit", "op by op"])
def test_kernel_within_4_ulp_over_all_floats(kernel, wanted, low, jit):
    x = _all_floats()
    x = x[x >= low]
    want = wanted(x.astype(np.float64))
    got = np.asarray((jax.jit(kernel) if jit else kernel)(jnp.asarray(x)))
    inside = (want >= TINY) & (want <= LARGEST)
    errors = np.abs(got[inside].astype(np.float64) - want[inside]) / ulp(want[inside])
    assert np.max(errors) <= 4, (x[inside][np.argmax(errors)], np.max(errors))
    assert np.all(got >= 0)
    assert np.all(got[inside] > 0)
    assert np.all(np.isfinite(got[inside]))
    assert np.all(np.isinf(got[want > 1.001 * LARGEST]))


@pytest.mark.parametrize(
    ("kernel", "x", "want"),
    [
        (special.expm1_minus_x, np.inf, np.inf),
        (special.expm1_minus_x, -np.inf, np.inf),
        (special.expm1_minus_x, np.nan, np.nan),
        (special.x_minus_log1p, -1.0, np.inf),
        (special.x_minus_log1p, -1.5, np.nan),
        (special.x_minus_log1p, np.inf, np.inf),
        (special.one_plus_x_log1p_minus_x, -1.0, 1.0),
        (special.one_plus_x_log1p_minus_x, -1.5, np.nan),
        (special.one_plus_x_log1p_minus_x, np.inf, np.inf),
        (special.log, 0.0, -np.inf),
        (special.log, -1.0, np.nan),
        (special.exp, -np.inf, 0.0),
    ],
)
def test_at_the_ends(kernel, x, want):
    np.testing.assert_array_equal(kernel(jnp.float32(x)), np.float32(want))


def test_half_is_finite_to_the_last_representable_value():
    x = jnp.float32(89.4)
    assert np.isinf(special.expm1_minus_x(x))
    np.testing.assert_allclose(
        special.half_expm1_minus_x(x), 0.5 * np.exp(np.float64(x)), rtol=3e-7
    )


def test_times_exp_where_the_exponential_alone_overflows():
    got = special.times_exp(jnp.float32(1e-30), jnp.float32(100.0))
    np.testing.assert_allclose(got, 1e-30 * np.exp(100.0), rtol=3e-7)
    assert special.times_exp(jnp.float32(0.0), jnp.float32(500.0)) == 0


@pytest.mark.parametrize("kernel", [special.exp, special.log, special.expm1, special.log1p])
def test_derivatives(kernel, x64):
    x = jnp.linspace(0.5, 5, 11)
    check_grads(kernel, (x,), order=2, rtol=1e-5)


@pytest.mark.parametrize("kernel", [kernel for kernel, *_ in KERNELS])
def test_derivatives_of_kernels(kernel, x64):
    x = jnp.array([-0.9, -0.3, -1e-3, 0.0, 1e-3, 0.5, 2.5, 3.5, 20.0])
    check_grads(kernel, (x,), order=2, rtol=1e-4)


@pytest.mark.parametrize("jit", [True, False], ids=["jit", "op by op"])
def test_doubled_logarithm(jit):
    rng = np.random.default_rng(3)
    x = np.concatenate([2.0 ** rng.uniform(-120, 120, 1000), 1 + rng.uniform(-0.3, 1, 1000)])
    x = x.astype(np.float32)
    got = (jax.jit(doubled.log) if jit else doubled.log)(jnp.asarray(x))
    for high, low, exact in zip(*(np.asarray(part, float) for part in got), x, strict=True):
        want = mpmath.log(mpmath.mpf(float(exact)))
        assert abs(mpmath.mpf(high) + mpmath.mpf(low) - want) <= 2.0**-43 * abs(want), exact


NUMBERS = st.floats(2.0**-40, 2.0**40, width=32) | st.floats(-(2.0**40), -(2.0**-40), width=32)


@given(NUMBERS, NUMBERS)
def test_doubled_sum_and_product(a, b):
    total = jax.jit(doubled.two_sum)(jnp.float32(a), jnp.float32(b))
    assert mpmath.mpf(float(total.high)) + float(total.low) == mpmath.mpf(a) + b
    product = jax.jit(doubled.two_product)(jnp.float32(a), jnp.float32(b))
    want = mpmath.mpf(a) * b
    error = abs(mpmath.mpf(float(product.high)) + float(product.low) - want)
    assert error <= 2.0**-44 * abs(want)
