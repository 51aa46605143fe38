"""Every closed form, in every parametrization, against every check."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import kljax
from cases import PAIRS, pair_name, rng_for
from checks import (
    check_definition,
    check_equal,
    check_gradient,
    check_nonnegative,
    check_sampled,
    check_terms,
    check_traced,
)

SAME = [pair for pair in PAIRS if pair[0] == pair[1]]
SAMPLED = [
    pair
    for pair in PAIRS
    if (pair[0] == pair[1] and pair[0].field in ("scale", "scale_tril", "precision_matrix"))
    or {x.field for x in pair} == {"scale_tril", "log_variance"}
]


@pytest.mark.light
@pytest.mark.parametrize("pair", PAIRS, ids=pair_name)
def test_value_terms_and_gradient_are_those_of_the_definition(pair):
    check_definition(pair)
    check_terms(pair)
    check_gradient(pair)
    check_traced(pair)


@pytest.mark.parametrize("pair", SAME, ids=pair_name)
def test_is_never_negative(pair):
    check_nonnegative(pair)


@pytest.mark.parametrize("pair", SAME, ids=pair_name)
def test_is_exactly_zero_at_equality(pair):
    check_equal(pair)


@pytest.mark.parametrize("pair", SAMPLED, ids=pair_name)
def test_agrees_with_samples(pair):
    check_sampled(pair)


@pytest.mark.parametrize("size", [2, 17])
@pytest.mark.parametrize("ratio", [1 / 3, 3.0])
def test_largest_factors_are_divided_by(size, ratio):
    # 1 / P_ii is subnormal here, so a product with it would be 0.
    largest = 1e38 * np.eye(size)
    q, p = (
        kljax.MultivariateNormal(jnp.zeros(size), jnp.asarray(x, jnp.float32))
        for x in ((ratio * largest, largest) if ratio > 1 else (largest, largest / ratio))
    )
    expected = size * ((ratio**2 - 1) / 2 - math.log(ratio))
    np.testing.assert_allclose(kljax.kl_divergence(q, p), expected, rtol=1e-5)


@pytest.mark.light
@pytest.mark.parametrize("size", [9, 20, 33, 64, 150, 260])
def test_factors_of_every_arrangement(size):
    """Values and gradients by the textbook's formulas in float64."""
    rng = rng_for("arrangement", size)
    q, p = (
        np.diag(rng.uniform(0.8, 1.2, size)) + np.tril(rng.normal(size=(size, size)), -1) / size
        for _ in range(2)
    )
    q, p, delta = (np.float64(np.float32(x)) for x in (q, p, rng.normal(size=size)))

    def kl(q, p, delta):
        prior = kljax.MultivariateNormal(jnp.zeros(size), scale_tril=p)
        return kljax.kl_divergence(kljax.MultivariateNormal(delta, scale_tril=q), prior)

    value, slopes = jax.jit(jax.value_and_grad(kl, (0, 1, 2)))(
        *(jnp.asarray(x, jnp.float32) for x in (q, p, delta))
    )
    precision = np.linalg.inv(p @ p.T)
    trace, square = np.trace(precision @ q @ q.T), delta @ precision @ delta
    log_ratio = 2 * np.sum(np.log(np.diagonal(p) / np.diagonal(q)))
    moment = q @ q.T + np.outer(delta, delta)
    want = (
        np.tril(precision @ q) - np.diag(1 / np.diagonal(q)),
        np.diag(1 / np.diagonal(p)) - np.tril(precision @ moment @ precision @ p),
        precision @ delta,
    )
    np.testing.assert_allclose(value, (trace - size + log_ratio + square) / 2, rtol=2e-6)
    for got, expected in zip(slopes, want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=0, atol=4e-6 * np.abs(expected).max())
    stacked = jax.vmap(kl)(*(jnp.float32(np.stack([x, x])) for x in (q, p, delta)))
    np.testing.assert_allclose(stacked, value, rtol=1e-6)


@pytest.mark.parametrize("size", [8, 9, 33, 100])
def test_covariances_near_and_far_in_one_batch(size):
    """The eigenvalues of B^-1 (A - B), in float64, know both to every digit that counts."""
    rng, separations = rng_for("near and far", size), (1e-4, 1e-2, 0.1, 0.3, 3.0)
    factor = np.eye(size) + np.tril(rng.normal(size=(size, size)), -1) / size
    noise = (
        np.diag(rng.uniform(0.5, 1, size)) + np.tril(rng.normal(size=(size, size)), -1) / size
    )
    moved = [factor @ (np.eye(size) + x * noise) for x in separations]
    a, b = (np.float32(m @ np.swapaxes(m, -1, -2)) for m in (np.stack(moved), factor))
    q = kljax.MultivariateNormal(jnp.zeros(size), covariance_matrix=jnp.asarray(a))
    p = kljax.MultivariateNormal(jnp.zeros(size), covariance_matrix=jnp.asarray(b))
    difference = np.float64(a) - np.float64(b)
    values = [scipy.linalg.eigvalsh(x, np.float64(b)) for x in difference]
    want = [np.sum(x - np.log1p(x)) / 2 for x in values]
    tolerance = 8 * 2.0**-24 * max(np.linalg.cond(x) for x in (*np.float64(a), np.float64(b)))
    assert tolerance < 1e-3
    np.testing.assert_allclose(kljax.kl_divergence(q, p), want, rtol=tolerance)
