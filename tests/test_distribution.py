"""Densities, samples, entropies and moments against SciPy and against each other."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import kljax
from cases import PAIRS, PARAMETRIZATIONS, draw, moments, pair_name, rng_for
from checks import definition

pytestmark = pytest.mark.light

PARAMETRIZED = pytest.mark.parametrize("which", PARAMETRIZATIONS, ids=str)
SAMPLES = 100_000
Z_LIMIT = 6.1


def _drawn(which):
    x = draw(which, rng_for("distribution", which))
    mean, covariance = moments(x)
    return x, mean, covariance


@PARAMETRIZED
def test_density_and_entropy(which):
    x, mean, covariance = _drawn(which)
    frozen = scipy.stats.multivariate_normal(mean, covariance)
    points = rng_for("points", which).normal(size=(5, len(mean))).astype(np.float32)
    asked = points[:, 0] if which.family is kljax.Normal else points
    np.testing.assert_allclose(kljax.log_prob(x, asked), frozen.logpdf(points), rtol=1e-5)
    np.testing.assert_allclose(kljax.entropy(x), frozen.entropy(), rtol=1e-5)


@PARAMETRIZED
def test_moments(which):
    x, mean, covariance = _drawn(which)
    np.testing.assert_allclose(np.atleast_1d(kljax.mean(x)), mean)
    variance = np.atleast_1d(kljax.variance(x))
    np.testing.assert_allclose(variance, np.diag(covariance), rtol=1e-5)
    if which.family is not kljax.Normal:
        np.testing.assert_allclose(kljax.covariance(x), covariance, rtol=1e-4, atol=1e-6)


@PARAMETRIZED
def test_samples_have_the_moments(which):
    """Means and covariances of samples within their exactly known standard errors."""
    x, mean, covariance = _drawn(which)
    draws = kljax.sample(x, jax.random.key(3), SAMPLES)
    chex.assert_shape(draws, (SAMPLES, *jnp.shape(x.loc)))
    draws = np.asarray(draws, np.float64).reshape(SAMPLES, -1)
    error = np.sqrt(np.diag(covariance) / SAMPLES)
    assert np.all(np.abs(draws.mean(0) - mean) < Z_LIMIT * error)
    centered = draws - mean
    spread = np.diag(covariance)
    error = np.sqrt((np.outer(spread, spread) + covariance**2) / SAMPLES)
    assert np.all(np.abs(centered.T @ centered / SAMPLES - covariance) < Z_LIMIT * error)


def test_sample_shapes_and_keys():
    q = kljax.MultivariateNormalDiag(jnp.zeros((4, 2)), jnp.ones(2))
    key = jax.random.key(0)
    assert kljax.sample(q, key).shape == (4, 2)
    assert kljax.sample(q, key, (5, 3)).shape == (5, 3, 4, 2)
    old = kljax.sample(q, jax.random.PRNGKey(0), (5, 3))
    np.testing.assert_array_equal(old, kljax.sample(q, key, (5, 3)))
    other = kljax.sample(q, jax.random.key(1))
    assert not np.allclose(other, kljax.sample(q, key))


def test_samples_are_differentiable():
    def mean_square(q):
        return jnp.mean(kljax.sample(q, jax.random.key(0), 2000) ** 2)

    gradient = jax.grad(mean_square)(kljax.Normal(1.0, 2.0))
    # E x^2 = loc^2 + scale^2; four standard errors of each derivative.
    np.testing.assert_allclose(gradient.loc, 2.0, atol=4 * 4 / np.sqrt(2000))
    np.testing.assert_allclose(gradient.scale, 4.0, atol=4 * 6.5 / np.sqrt(2000))


@pytest.mark.parametrize("function", ["sample", "covariance", "entropy"])
def test_what_is_above_the_diagonal_of_a_factor_has_no_gradient(function):
    """It must be 0, and a step of training would make it something else."""
    other = {"sample": (jax.random.key(0),)}.get(function, ())

    def loss(q):
        return jnp.sum(getattr(kljax, function)(q, *other) ** 2)

    q = kljax.MultivariateNormal(jnp.ones(3), jnp.eye(3) + jnp.tril(jnp.ones((3, 3)), -1))
    blocks = kljax.BlockDiagonalNormal(jnp.ones(3), q.scale_tril[None])
    matrix = kljax.MatrixNormal(
        jnp.ones((3, 1)), row_scale_tril=q.scale_tril, column_covariance=[[1.0]]
    )
    for x, name in (
        (q, "scale_tril"),
        (blocks, "block_scale_tril"),
        (matrix, "row_scale_tril"),
    ):
        gradient = np.asarray(getattr(jax.grad(loss)(x), name))
        assert np.any(gradient)
        assert not np.any(np.triu(gradient, 1))


@pytest.mark.parametrize("pair", PAIRS[::4], ids=pair_name)
def test_cross_entropy_is_entropy_plus_divergence(pair):
    rng = rng_for("cross entropy", *pair)
    q, p = draw(pair[0], rng, d=2), draw(pair[1], rng, d=2)
    want = scipy.stats.multivariate_normal(*moments(q)).entropy() + definition(q, p)
    np.testing.assert_allclose(kljax.cross_entropy(q, p), want, rtol=1e-5)


def test_a_family_of_ones_own():
    """A record, a rule for one event, and everything else follows."""

    @kljax.record
    class Exponential:
        rate: jax.Array = kljax.param(constraint="positive")

    @kljax.register_kl(Exponential, Exponential, cost="O(1)")
    def kl_exponential(q, p):
        """h(rate_p / rate_q - 1), h(u) = u - log(1 + u)."""
        return kljax.special.x_minus_log1p((p.rate - q.rate) / q.rate)

    kljax.register_distribution(
        Exponential,
        entropy=lambda q: 1 - jnp.log(q.rate),
        log_prob=lambda q, x: jnp.log(q.rate) - q.rate * x,
    )
    q, p = Exponential(jnp.array([1.0, 2.0])), Exponential(3.0)
    want = np.log(np.array([1, 2]) / 3) + 3 / np.array([1, 2]) - 1
    np.testing.assert_allclose(kljax.kl_divergence(q, p), want, rtol=1e-6)
    np.testing.assert_allclose(
        kljax.cross_entropy(q, p), kljax.entropy(q) + kljax.kl_divergence(q, p), rtol=1e-6
    )
    np.testing.assert_allclose(kljax.log_prob(q, 1.0), np.log([1, 2]) - [1, 2], rtol=1e-6)
    assert np.isnan(kljax.kl_divergence(Exponential(-1.0), p))
    assert (Exponential, Exponential) in {(form.q, form.p) for form in kljax.closed_forms()}
    assert "O(1): h(rate_p / rate_q - 1)" in repr(kljax.closed_forms()[-1])
    with pytest.raises(TypeError, match="registered without terms"):
        kljax.kl_terms(q, p)
    with pytest.raises(
        TypeError, match=r"no closed form .* Exponential has one against Exponential"
    ):
        kljax.kl_divergence(q, kljax.Normal(0.0, 1.0))
