"""The report on posteriors: numbers against their definitions, words against planted faults."""

from __future__ import annotations

import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kljax
from kljax import vae
from kljax.vae import TermWeights, linear

pytestmark = pytest.mark.light

FULL = pytest.mark.skipif("KLJAX_FULL" not in os.environ, reason="slow; set KLJAX_FULL=1")
N, K = 400, 4
PRIOR = kljax.MultivariateNormalDiag(jnp.array([0.1, 0, 0, -0.2]), jnp.array([1.0, 2, 0.5, 1]))
WEIGHTS = TermWeights(0.7, 1.5, 1.2)


def posteriors(seed=0, full=False):
    rng = np.random.default_rng(seed)
    loc = jnp.asarray(rng.standard_normal((N, K)) * [1, 0.5, 0.05, 0], jnp.float32)
    spread = jnp.asarray(rng.standard_normal((N, K)) * [0.1, 0.3, 0, 0] - 0.5, jnp.float32)
    if not full:
        return kljax.MultivariateNormalDiag(loc, log_variance=spread)
    lower = jnp.asarray(np.tril(0.2 * rng.standard_normal((N, K, K)), -1), jnp.float32)
    on = jnp.exp(0.5 * spread)[:, :, None] * jnp.eye(K)[None]
    return kljax.MultivariateNormal(loc, lower + on)


@pytest.mark.parametrize("full", [False, True])
def test_numbers_are_their_definitions(full):
    q = posteriors(full=full)
    got = vae.diagnose(q, prior=PRIOR, weights=WEIGHTS)
    mean, sd = np.asarray(PRIOR.loc, float), np.asarray(PRIOR.scale_diag, float)
    mu = (np.asarray(q.loc, float) - mean) / sd
    s = np.asarray(kljax.variance(q), float)
    kl = np.asarray(kljax.kl_divergence(q, PRIOR), float)
    np.testing.assert_allclose(np.sum(got.kl), np.mean(kl), rtol=1e-5)
    np.testing.assert_allclose(got.trace, np.mean(s / sd**2, axis=0), rtol=1e-5)
    np.testing.assert_allclose(got.mahalanobis, np.mean(mu**2, axis=0), rtol=1e-5)
    np.testing.assert_allclose(got.mean, np.mean(mu, axis=0), atol=1e-6)
    variance = np.var(np.asarray(q.loc, float), axis=0)
    np.testing.assert_allclose(got.mean_variance, variance, rtol=1e-5, atol=1e-12)
    wide = np.mean(s, axis=0)
    np.testing.assert_allclose(got.mean_channel, np.log1p(variance / wide) / 2, rtol=1e-5)
    jensen = (np.log(wide) - np.mean(np.log(s), axis=0)) / 2
    np.testing.assert_allclose(got.variance_channel, jensen, rtol=1e-4, atol=1e-7)
    scale = 0.7 * s / sd**2 + 1.5 * mu**2 - 1.2
    np.testing.assert_allclose(got.scale_residual, np.mean(scale, axis=0), atol=2e-6)
    error = np.std(scale, axis=0) / math.sqrt(N)
    np.testing.assert_allclose(got.scale_error, error, rtol=1e-4, atol=1e-6)
    entropy = np.linalg.slogdet(np.asarray(kljax.covariance(q), float))[1] - 2 * np.sum(
        np.log(sd)
    )
    assert float(got.log_det_gap) == pytest.approx(np.mean(kl + entropy / 2), abs=1e-5)
    assert (got.scale_matrix is not None) == full
    if full:
        covariance = np.asarray(kljax.covariance(q), float) / np.outer(sd, sd)
        moment = 0.7 * np.mean(covariance, axis=0) + 1.5 * mu.T @ mu / N - 1.2 * np.eye(K)
        np.testing.assert_allclose(got.scale_matrix, moment, atol=2e-6)
        diagonal = np.diagonal(got.scale_matrix)
        np.testing.assert_allclose(diagonal, got.scale_residual, atol=1e-6)
    assert got.clamped is None


@FULL
def test_channels_bound_the_information():
    q = posteriors()
    parts = vae.decompose(q, jax.random.key(0), samples=4)
    got = vae.diagnose(q)
    bound = got.mean_channel + got.variance_channel
    assert np.all(parts.latent_information <= bound + 3 * parts.latent_error)


def test_channels_know_no_units():
    """Unlike Burda's active units, which a rescaling of the latents changes."""
    q = posteriors()
    got = vae.diagnose(q)
    unit = jnp.array([0.05, 1.0, 3.0, 1.0])
    other = kljax.MultivariateNormalDiag(
        q.loc * unit[None], log_variance=q.log_variance + 2 * jnp.log(unit)[None]
    )
    rescaled = vae.diagnose(other)
    np.testing.assert_allclose(rescaled.mean_channel, got.mean_channel, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(
        rescaled.variance_channel, got.variance_channel, rtol=1e-4, atol=1e-6
    )
    np.testing.assert_array_equal(rescaled.informative, got.informative)
    assert got.active.tolist() != rescaled.active.tolist()


def linear_posteriors(weights, full=False):
    """The posteriors of an optimal linear VAE on data whose covariance is exact, in float64."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, 5)) @ np.diag(np.sqrt([5, 3, 1.5, 0.3, 0.1]))
    x = x - np.mean(x, axis=0)
    values, vectors = np.linalg.eigh(x.T @ x / N)
    model = linear.solution(values, 0.4, K, weights, eigenvectors=vectors)
    loc, s = x @ np.asarray(model.encoder).T, np.asarray(model.variance)
    if not full:
        return kljax.MultivariateNormalDiag(jnp.asarray(loc), variance=jnp.asarray(s))
    turn = np.linalg.qr(rng.standard_normal((K, K)))[0]
    covariance = jnp.asarray(turn @ np.diag(s) @ turn.T)
    return kljax.MultivariateNormal(jnp.asarray(loc @ turn.T), covariance_matrix=covariance)


@pytest.mark.parametrize("full", [False, True])
def test_scale_identity_at_the_linear_optimum(x64, full):
    """Also for a full covariance, whose optimum may be turned in any direction."""
    for weights in (TermWeights(), TermWeights(1.0, 1.5, 2.0)):
        q = linear_posteriors(weights, full)
        got = vae.diagnose(q, weights=weights)
        assert float(jnp.max(jnp.abs(got.scale_residual))) < 1e-8
        assert float(jnp.max(jnp.abs(got.mean))) < 1e-8
        if full:
            assert float(jnp.max(jnp.abs(got.scale_matrix))) < 1e-8
        # It could fail: at other weights the same posteriors are far from stationary.
        wrong = vae.diagnose(q, weights=TermWeights(1.0, 1.0, 1.5))
        assert float(jnp.max(jnp.abs(wrong.scale_residual))) > 0.1
    gap = vae.diagnose(linear_posteriors(TermWeights(), full)).log_det_gap
    assert abs(float(gap)) < 1e-8


def verdicts(q, **options):
    return " ".join(vae.report(q, **options).verdicts)


def test_words_of_a_converged_model(x64):
    q = linear_posteriors(TermWeights())
    found = vae.report(q)
    words = " ".join(found.verdicts)
    assert found.converged
    assert "Converged by the scale identity" in words
    assert "3 of 4 latents are active" in words
    np.testing.assert_array_equal(found.collapsed, [False, False, False, True])
    assert "Collapsed: latent 3 (25%)." in words
    assert found.effective_beta == 1
    assert "beta" not in words
    assert str(found).splitlines()[0].startswith("latent")
    assert len(str(found).splitlines()) == 1 + K + len(found.verdicts)


def test_words_of_a_model_that_is_not_converged(x64):
    q = linear_posteriors(TermWeights())
    shrunk = kljax.MultivariateNormalDiag(
        q.loc * jnp.array([[1, 0.8, 1, 1]]), variance=q.variance
    )
    found = vae.report(shrunk)
    assert not found.converged
    assert "missed by latent 1; latent 1 has 0." in " ".join(found.verdicts)
    moved = kljax.MultivariateNormalDiag(
        q.loc + jnp.array([[0, 0, 0.3, 0]]), variance=q.variance
    )
    off = vae.report(moved)
    assert "not centred on the prior's: latent 2." in " ".join(off.verdicts)
    assert not off.converged


def test_words_of_the_weights():
    q = posteriors()
    words = verdicts(q, weights=TermWeights(1.0, 4.0, 2.0))
    assert "Effective beta is 2" in words
    assert "Mahalanobis weighs 4 times the trace" in words
    assert "keeps a posterior's variance from 0" in verdicts(
        q, weights=TermWeights(1.0, 1.0, 0.0)
    )
    assert "keeps the means from infinity" in verdicts(q, weights=TermWeights(1.0, 0.0, 1.0))
    assert "variance of an unused latent" in verdicts(q, weights=TermWeights(0.0, 1.0, 1.0))


def test_words_of_collapse_and_of_a_variance_that_speaks():
    rng = np.random.default_rng(3)
    silent, nothing = jnp.zeros((N, K)), jnp.zeros((N, K))
    collapsed = kljax.MultivariateNormalDiag(silent, log_variance=nothing)
    assert "Every latent is collapsed" in verdicts(collapsed)
    # One that speaks by its variance, one by small means, one that says the same to all.
    loc = silent.at[:, 1].set(0.05 * jnp.asarray(rng.standard_normal(N)))
    spread = nothing.at[:, 0].set(jnp.asarray(rng.choice([-1.0, 1.0], N)))
    spread = spread.at[:, 1].set(-6.0).at[:, 2].set(-2.0)
    words = verdicts(kljax.MultivariateNormalDiag(loc, log_variance=spread))
    assert "Speaking through the variance alone: latent 0." in words
    assert "Small in their unit, not in information: latent 1." in words
    assert "yet the same for all data: latent 2." in words
    assert "Collapsed: latent 3 (25%)." in words
    assert "0 of 4 latents are active" in words


def test_words_of_bounds_and_of_what_is_not_finite():
    q = posteriors()
    clamped = kljax.MultivariateNormalDiag(
        q.loc, log_variance=jnp.clip(q.log_variance, -0.6, 3)
    )
    words = verdicts(clamped, log_variance_bounds=(-0.6, 3.0))
    assert "at a bound" in words
    assert "latents 0 and 1" in words
    assert "No log-variance is at a bound." in verdicts(q, log_variance_bounds=(-9.0, 9.0))
    broken = kljax.MultivariateNormalDiag(
        q.loc.at[0, 1].set(jnp.nan), log_variance=q.log_variance
    )
    found = vae.report(broken)
    assert "0.25% of the data is not finite" in found.verdicts[0]
    assert not found.converged


def test_a_parameter_that_all_data_share():
    q = posteriors()
    shared = kljax.MultivariateNormalDiag(q.loc, log_variance=q.log_variance[0])
    got = vae.diagnose(shared)
    spelled = jnp.ones((N, 1)) * q.log_variance[:1]
    want = vae.diagnose(kljax.MultivariateNormalDiag(q.loc, log_variance=spelled))
    np.testing.assert_array_equal(got.kl, want.kl)
    assert np.all(got.variance_channel < 1e-12)


def test_under_jit():
    q = posteriors()
    inside = jax.jit(lambda x: vae.diagnose(x).scale_residual)(q)
    np.testing.assert_allclose(inside, vae.diagnose(q).scale_residual, rtol=1e-6)
    with pytest.raises(TypeError, match="under jit use diagnose"):
        jax.jit(vae.report)(q)


@pytest.mark.parametrize(
    ("options", "kind", "sentence"),
    [
        ({"weights": TermWeights(-1.0)}, ValueError, "weights.trace must be a number >= 0"),
        ({"weights": (1, 1, 1)}, TypeError, "weights must be TermWeights"),
        ({"log_variance_bounds": (3.0, -3.0)}, ValueError, "two numbers, low < high"),
        ({"epsilon": 0.0}, ValueError, "epsilon must be a number > 0"),
        ({"delta": -1.0}, ValueError, "delta must be a number >= 0"),
        ({"prior": kljax.standard_normal(3)}, ValueError, "one prior of 4 latents"),
    ],
)
def test_bad_input_is_one_sentence(options, kind, sentence):
    with pytest.raises(kind, match=sentence):
        vae.report(posteriors(), **options)
