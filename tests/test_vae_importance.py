"""Importance sampling: the truth of a linear model, and diagnostics that see a bad proposal."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kljax
from kljax import vae

pytestmark = pytest.mark.light

# Orthogonal columns, so that the exact posterior is diagonal.
W, NOISE = np.array([[1.0, 0.5], [1.0, -0.5], [0.5, 0.0]]), 0.3
X = np.random.default_rng(0).normal(size=(6, 3))
PRECISION = 1 + np.sum(W**2, axis=0) / NOISE
COVARIANCE = W @ W.T + NOISE * np.eye(3)
NLL = 0.5 * (
    np.sum(X * np.linalg.solve(COVARIANCE, X.T).T, axis=1)
    + np.linalg.slogdet(2 * np.pi * COVARIANCE)[1]
)
PRIOR = kljax.standard_normal(2)


def posterior(x, factor):
    """The exact posterior with its scale multiplied."""
    return kljax.MultivariateNormalDiag((x @ W) / NOISE / PRECISION, factor * PRECISION**-0.5)


def log_likelihood(z, x):
    loc = jnp.einsum("nk,dk->nd", z, jnp.asarray(W, z.dtype), precision="highest")
    return vae.likelihoods.gaussian(loc, x, variance=NOISE)


@partial(jax.jit, static_argnames=("samples", "sample_chunk", "event_chunk", "defensive"))
def estimate(factor, samples=500, sample_chunk=128, event_chunk=4, defensive=0.0):
    return vae.importance_nll(
        lambda x: posterior(x, factor),
        PRIOR,
        log_likelihood,
        X,
        jax.random.key(0),
        samples=samples,
        sample_chunk=sample_chunk,
        event_chunk=event_chunk,
        defensive=defensive,
    )


def test_a_wide_proposal_is_right_and_trusted():
    found = estimate(1.2)
    z = np.abs(found.nll - NLL) / found.standard_error
    assert np.max(z) < 4.5
    # Errors that are small, and not too small to be true.
    assert np.max(found.standard_error) < 0.05
    assert np.max(z) > 0.2
    assert np.all(found.trusted)
    assert np.all(found.effective_samples > 300)
    assert "all 6 estimates of -log p(x) are good" in found.verdict()
    np.testing.assert_allclose(found.mean, jnp.mean(found.nll), rtol=1e-6)


def test_the_exact_posterior_needs_no_samples():
    found = estimate(1.0)
    np.testing.assert_allclose(found.nll, NLL, rtol=1e-5)
    np.testing.assert_allclose(found.effective_samples, 500, rtol=1e-4)
    assert np.max(found.standard_error) < 1e-5
    assert np.all(found.trusted)


def test_a_narrow_proposal_is_not_trusted_and_a_defensive_one_is():
    found = estimate(0.3)
    # Too high, by more than its own error admits: that is why the error alone is no guide.
    assert jnp.mean(found.nll - NLL) > 0.1
    assert not np.any(found.trusted)
    assert "6 of 6 estimates of -log p(x) are not to be trusted" in found.verdict()
    mended = estimate(0.3, defensive=0.5)
    assert np.max(np.abs(mended.nll - NLL) / mended.standard_error) < 4.5
    assert np.sum(mended.trusted) >= 5
    assert np.min(mended.effective_samples) > 2 * np.min(found.effective_samples)


def test_chunks_change_nothing():
    a, b = estimate(1.2), estimate(1.2, sample_chunk=70, event_chunk=6)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-3, atol=1e-6)
    np.testing.assert_allclose(a.nll, b.nll, rtol=1e-6)


def test_it_warns_when_called_eagerly():
    with pytest.warns(vae.ImportanceWarning, match=r"2 of 2 .* \(defensive=0\.5\)"):
        vae.importance_nll(
            partial(posterior, factor=0.2),
            PRIOR,
            log_likelihood,
            X[:2],
            jax.random.key(1),
            samples=200,
        )


@pytest.mark.parametrize("k", [0.2, 0.6, 1.2])
def test_pareto_k_finds_the_shape_of_a_pareto_law(k):
    size, repeats = 4000, 64
    uniform = jax.random.uniform(jax.random.key(4), (repeats, size), minval=1e-7)
    found = np.asarray(jax.jit(jax.vmap(vae.pareto_k))(-k * jnp.log(uniform)), np.float64)
    tail = int(np.ceil(3 * np.sqrt(size)))
    # Maximum likelihood has the variance (1 + k)^2 / tail; ten weights speak for 1/2.
    want = (tail * k + 5) / (tail + 10)
    error = (1 + k) / np.sqrt(tail * repeats)
    assert abs(np.mean(found) - want) < 4.5 * error + 0.02
    assert np.std(found) < 1.5 * (1 + k) / np.sqrt(tail)


def test_pareto_k_at_the_edges():
    size = 100
    equal = jnp.zeros(size)
    spike = equal.at[3].set(300.0)
    assert vae.pareto_k(equal) == -np.inf
    assert vae.pareto_k(spike) > 0.7
    assert vae.pareto_k(jnp.linspace(0, 1e5, size)) > 0.7
    assert vae.pareto_k(jax.random.normal(jax.random.key(0), (size,)) * 1e-3) < 0.5
    assert np.isnan(vae.pareto_k(equal.at[0].set(jnp.nan)))
    with pytest.raises(ValueError, match=r"at least 25 samples; got \(24,\)"):
        vae.pareto_k(jnp.zeros(24))


def test_refuses():
    good = partial(posterior, factor=1.0)
    key = jax.random.key(0)
    batched = kljax.MultivariateNormalDiag(jnp.zeros((4, 2)), jnp.ones(2))
    for arguments, options, error, words in (
        ((good, PRIOR, log_likelihood, X, key), {"samples": 10}, ValueError, "samples must be"),
        ((good, PRIOR, log_likelihood, X[:0], key), {}, ValueError, "at least one; got shapes"),
        ((good, batched, log_likelihood, X, key), {}, ValueError, "p has the batch shape"),
        ((lambda x: x, PRIOR, log_likelihood, X, key), {}, TypeError, "must be a distribution"),
        ((good, PRIOR, lambda z, _: z, X, key), {}, ValueError, "with the event axes of x"),
        (
            (good, PRIOR, log_likelihood, X, key),
            {"defensive": 1.0},
            ValueError,
            "defensive must be from 0 to below 1",
        ),
    ):
        with pytest.raises(error, match=words):
            vae.importance_nll(*arguments, **options)
