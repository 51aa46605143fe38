"""Estimators of the objective and its shaping, against a model whose log p(x) is known."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import kljax
from kljax import vae

pytestmark = pytest.mark.light

ROOT = Path(__file__).parent.parent
LATENTS, PIXELS, EVENTS = 3, 4, 5
DRAWS = 3000
NOISE = 0.3  # variance of the linear model's pixels


def linear_model():
    """Of x = W z + noise, events drawn from it, and a posterior that is not exact.

    W has orthogonal columns, so that the exact posterior is diagonal.
    """
    draw = np.random.default_rng(7)
    w = np.linalg.qr(draw.normal(size=(PIXELS, LATENTS)))[0] * [1.5, 1.0, 0.4]
    covariance = w @ w.T + NOISE * np.eye(PIXELS)
    x = draw.normal(size=(EVENTS, PIXELS)) @ np.linalg.cholesky(covariance).T
    square = np.sum(x * np.linalg.solve(covariance, x.T).T, axis=1)
    log_p = -0.5 * (square + np.linalg.slogdet(2 * np.pi * covariance)[1])
    precision = 1 + np.sum(w**2, axis=0) / NOISE
    loc = x @ w / NOISE / precision
    log_variance = np.broadcast_to(-np.log(precision), loc.shape)
    off = loc + 0.2 * draw.normal(size=loc.shape)
    w, x, loc, off, log_variance = (
        jnp.asarray(a, jnp.float32) for a in (w, x, loc, off, log_variance)
    )
    exact = kljax.MultivariateNormalDiag(loc, log_variance=log_variance)
    guess = kljax.MultivariateNormalDiag(off, log_variance=log_variance + 0.3)
    return w, x, exact, guess, log_p


W, X, EXACT, GUESS, LOG_P = linear_model()
PRIOR = kljax.standard_normal(LATENTS)


def log_likelihood(w, z):
    return vae.likelihoods.gaussian(
        jnp.einsum("...k,dk->...d", z, w, precision="highest"), X, variance=NOISE
    )


def by_estimator(name, q, samples):
    """Loss, bound and ELBO, and gradients by posterior and decoder, for many keys."""

    def loss(q, w, key):
        parts = vae.ESTIMATORS[name](q, PRIOR, partial(log_likelihood, w), key, samples=samples)
        return parts.loss, (parts.bound, parts.elbo)

    both = jax.value_and_grad(loss, (0, 1), has_aux=True)
    keys = jax.random.split(jax.random.key(11), DRAWS)
    return jax.jit(jax.vmap(lambda key: both(q, W, key)))(keys)


def flat(gradients):
    return np.concatenate(
        [np.asarray(a, np.float64).reshape(DRAWS, -1) for a in jax.tree.leaves(gradients)], 1
    )


@pytest.fixture(scope="module")
def estimates():
    samples = {"closed_form": 1, "monte_carlo": 1, "sticking_the_landing": 1}
    return {name: by_estimator(name, GUESS, samples.get(name, 6)) for name in vae.ESTIMATORS}


def assert_same_mean(a, b, standard_errors=4.5):
    """Two samples, paired by their keys, have the same mean."""
    difference = a - b
    error = np.std(difference, axis=0, ddof=1) / np.sqrt(len(difference))
    z = np.abs(np.mean(difference, axis=0)) / (error + 1e-6)
    assert np.max(z) < standard_errors, np.max(z)


def assert_varies_less(a, b, standard_errors=5.0):
    """The total variance of a is below that of b by so many standard errors."""
    squares = [np.sum((s - np.mean(s, axis=0)) ** 2, axis=1) for s in (a, b)]
    difference = squares[1] - squares[0]
    error = np.std(difference, ddof=1) / np.sqrt(len(difference))
    assert np.mean(difference) > standard_errors * error


# ---- estimators -----------------------------------------------------------------------------


def test_estimators_have_the_mean_that_theory_says(estimates):
    gap = jnp.mean(kljax.kl_divergence(GUESS, EXACT))
    elbo = jnp.mean(LOG_P) - gap
    for name in ("closed_form", "monte_carlo", "sticking_the_landing"):
        (loss, (_, elbos)), _ = estimates[name]
        loss = np.asarray(loss, np.float64)
        error = np.std(loss, ddof=1) / np.sqrt(DRAWS)
        assert abs(np.mean(loss) + elbo) < 4.5 * error
        # The error is small enough to see what the bound lacks of log p.
        assert gap > 10 * error
        np.testing.assert_allclose(np.mean(elbos, axis=1), -loss, rtol=1e-4, atol=1e-4)


def test_sticking_the_landing_has_the_same_gradient_and_less_variance(estimates):
    plain, stuck = (flat(estimates[n][1]) for n in ("monte_carlo", "sticking_the_landing"))
    assert_same_mean(plain, stuck)
    assert_same_mean(plain, flat(estimates["closed_form"][1]))
    by_q = EVENTS * LATENTS * 2
    assert_varies_less(stuck[:, :by_q], plain[:, :by_q])
    # By the decoder there is no score to leave out.
    np.testing.assert_allclose(stuck[:, by_q:], plain[:, by_q:], rtol=1e-4, atol=1e-3)


def test_dreg_has_the_same_gradient_and_less_variance(estimates):
    plain, doubly = (flat(estimates[n][1]) for n in ("iwae", "dreg"))
    assert_same_mean(plain, doubly)
    by_q = EVENTS * LATENTS * 2
    assert_varies_less(doubly[:, :by_q], plain[:, :by_q])
    np.testing.assert_allclose(doubly[:, by_q:], plain[:, by_q:], rtol=1e-3, atol=1e-3)
    parts = (jax.tree.leaves(estimates[name][0][1]) for name in ("iwae", "dreg"))
    for a, b in zip(*parts, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


def test_landing_is_without_noise_at_the_exact_posterior():
    (loss, (bound, _)), (by_q, _) = by_estimator("sticking_the_landing", EXACT, 1)
    np.testing.assert_allclose(loss, -jnp.mean(LOG_P), rtol=1e-5)
    np.testing.assert_allclose(bound, np.broadcast_to(LOG_P, (DRAWS, EVENTS)), rtol=1e-4)
    assert np.max(np.abs(by_q.loc)) < 1e-4
    assert np.max(np.abs(by_q.log_variance)) < 1e-4


def test_importance_weighted_bound_rises_with_samples_and_stays_below_log_p(estimates):
    likelihood = partial(log_likelihood, W)
    counts, draws = (1, 4, 16), 1000

    @jax.jit
    @jax.vmap
    def bounds(key):
        keys = jax.random.split(key, len(counts))
        return [
            jnp.mean(vae.iwae(GUESS, PRIOR, likelihood, k, samples=n).bound)
            for k, n in zip(keys, counts, strict=True)
        ]

    found = [
        np.asarray(b, np.float64) for b in bounds(jax.random.split(jax.random.key(3), draws))
    ]
    means = [np.mean(b) for b in found]
    errors = [np.std(b, ddof=1) / np.sqrt(draws) for b in found]
    for i in range(2):
        assert means[i + 1] - means[i] > 4.5 * np.hypot(errors[i], errors[i + 1])
    assert means[-1] < np.mean(LOG_P) + 3 * errors[-1]
    assert np.mean(LOG_P) - means[0] > 20 * errors[0]
    # One sample is the sampled ELBO.
    (loss, _), _ = estimates["monte_carlo"]
    error = np.hypot(errors[0], np.std(loss, ddof=1) / np.sqrt(DRAWS))
    assert abs(means[0] + np.mean(loss)) < 4.5 * error


def test_learned_and_conditional_priors_are_trained():
    p = kljax.MultivariateNormalDiag(0.1 * GUESS.loc, jnp.full((EVENTS, LATENTS), 1.2))

    @jax.jit
    def slopes(p):
        def loss(p, name):
            likelihood, key = partial(log_likelihood, W), jax.random.key(0)
            return vae.ESTIMATORS[name](GUESS, p, likelihood, key, samples=2).loss

        return {name: jax.grad(loss)(p, name) for name in ("dreg",)}

    for name, slope in slopes(p).items():
        assert np.all(np.isfinite(slope.loc)), name
        assert np.all(slope.scale_diag != 0), name


def test_estimators_refuse():
    good = partial(log_likelihood, W)
    key = jax.random.key(0)
    wide = kljax.MultivariateNormalDiag(jnp.zeros((2, EVENTS, LATENTS)), jnp.ones(LATENTS))
    for call, error, words in (
        (
            lambda: vae.closed_form(GUESS, PRIOR, lambda z: z, key),
            ValueError,
            r"has shape \(1, 5, 3\); .* must be \(samples, \*batch\) = \(1, 5\), with",
        ),
        (lambda: vae.iwae(GUESS, PRIOR, lambda z: jnp.mean(good(z)), key), ValueError, "shape"),
        (
            lambda: vae.monte_carlo(GUESS, wide, good, key),
            ValueError,
            r"p has the batch shape \(2, 5\) and q \(5,\)",
        ),
        (lambda: vae.dreg(X, PRIOR, good, key), TypeError, "q is an array of shape"),
        (lambda: vae.iwae(GUESS, PRIOR, good, key, samples=0), ValueError, "samples must be"),
        (lambda: vae.iwae(GUESS, PRIOR, good, key, samples=1.5), TypeError, "whole number"),
        (
            lambda: vae.closed_form(GUESS, kljax.standard_normal(2), good, key),
            ValueError,
            "event size",
        ),
    ):
        with pytest.raises(error, match=words):
            call()


# ---- terms ----------------------------------------------------------------------------------


def pairs():
    keys = jax.random.split(jax.random.key(5), 4)
    loc = jax.random.normal(keys[0], (4, LATENTS))
    factor = jnp.tril(0.4 * jax.random.normal(keys[1], (4, LATENTS, LATENTS)), -1)
    factor = factor + jax.vmap(jnp.diag)(jnp.exp(0.3 * loc))
    prior = jnp.tril(0.4 * jax.random.normal(keys[2], (LATENTS, LATENTS)), -1)
    prior = prior + 0.7 * jnp.eye(LATENTS)
    diagonal = kljax.MultivariateNormalDiag(loc, log_variance=loc - 1)
    full = kljax.MultivariateNormal(loc, factor)
    conditional = kljax.MultivariateNormalDiag(0.5 * loc, jnp.exp(0.2 * loc))
    learned = kljax.MultivariateNormal(jnp.ones(LATENTS), prior)
    light = {
        "diagonal, conditional": (diagonal, conditional),
        "full, standard": (full, PRIOR),
        "full, full": (full, learned),
    }
    covariance = kljax.MultivariateNormal(loc, covariance_matrix=factor @ factor.mT)
    precision = kljax.MultivariateNormal(
        jnp.ones(LATENTS), precision_matrix=jnp.linalg.inv(prior @ prior.T)
    )
    heavy = {
        "diagonal, standard": (diagonal, PRIOR),
        "diagonal, full": (diagonal, learned),
        "covariance, standard": (covariance, PRIOR),
        "covariance, full": (covariance, learned),
        "covariance, precision": (covariance, precision),
        "full, precision": (full, precision),
        "diagonal, precision": (diagonal, precision),
    }
    # Each is a program that takes many seconds to compile.
    return light | (heavy if os.environ.get("KLJAX_FULL") else {})


PAIRS = pairs()


@pytest.mark.parametrize("name", PAIRS)
def test_latent_terms_add_up_to_the_terms_and_their_gradients(name):
    @jax.jit
    def compare(q, p):
        terms = vae.latent_terms(q, p)
        slopes = (
            jax.grad(lambda q, p, f=f: jnp.sum(f(q, p)), (0, 1))(q, p)
            for f in (lambda q, p: vae.latent_terms(q, p).total, kljax.kl_divergence)
        )
        return terms, kljax.kl_terms(q, p), *slopes

    terms, whole, got, want = compare(*PAIRS[name])
    for field in ("trace", "mahalanobis", "dimension", "log_det", "dispersion", "location"):
        a, b = jnp.sum(getattr(terms, field), axis=-1), getattr(whole, field)
        np.testing.assert_allclose(a, b, rtol=3e-5, atol=3e-6, err_msg=field)
    assert np.all(terms.dispersion >= 0)
    assert np.all(terms.location >= 0)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5 * float(jnp.max(jnp.abs(b))))


def test_latent_terms_of_matrices_are_those_of_the_chain_rule():
    q, p = PAIRS["full, full"]
    totals = jnp.cumsum(vae.latent_terms(q, p).total, axis=-1)
    for size in (1, 2):
        leading = [
            kljax.MultivariateNormal(x.loc[..., :size], x.scale_tril[..., :size, :size])
            for x in (q, p)
        ]
        np.testing.assert_allclose(
            totals[..., size - 1], kljax.kl_divergence(*leading), rtol=1e-5
        )


def test_terms_keep_their_digits_where_q_is_almost_p():
    log_variance = jnp.array([1e-5, -2e-5, 3e-6], jnp.float32)
    q = kljax.MultivariateNormalDiag(jnp.zeros(LATENTS), log_variance=log_variance)
    exact = np.float64(log_variance) ** 2 / 4
    np.testing.assert_allclose(vae.latent_terms(q, PRIOR).total, exact, rtol=1e-5)
    got = vae.weighted_kl(q, PRIOR, vae.TermWeights(2.0, 5.0, 2.0))
    np.testing.assert_allclose(got, 2 * np.sum(exact), rtol=1e-5)
    q = kljax.MultivariateNormalDiag(jnp.zeros(LATENTS), log_variance=jnp.zeros(LATENTS))
    np.testing.assert_array_equal(vae.latent_terms(q, PRIOR).total, 0)


def test_weights():
    weights = vae.TermWeights(2.0, 3.0, 0.5)
    q, p = PAIRS["full, standard"]

    @jax.jit
    def found(weights):
        slope = jax.grad(lambda w: jnp.sum(vae.weighted_kl(q, p, w)))(weights)
        return vae.weighted_kl(q, p, weights), slope

    terms, kl = kljax.kl_terms(q, p), kljax.kl_divergence(q, p)
    want = 0.5 * (2 * terms.trace + 3 * terms.mahalanobis + 0.5 * (terms.log_det - LATENTS))
    np.testing.assert_allclose(vae.weighted_kl(q, p, weights), want, rtol=1e-5)
    np.testing.assert_array_equal(vae.weighted_kl(q, p, vae.TermWeights()), kl)
    np.testing.assert_allclose(found(vae.TermWeights(1.0, 1.0, 1.0))[0], kl, rtol=1e-6)
    assert np.all(np.isnan(found(vae.TermWeights(1.0, -1.0, 1.0))[0]))
    value, slope = found(weights)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    np.testing.assert_allclose(slope.trace, 0.5 * jnp.sum(terms.trace), rtol=1e-5)
    np.testing.assert_allclose(slope.mahalanobis, 0.5 * jnp.sum(terms.mahalanobis), rtol=1e-5)
    by_log_det = 0.5 * jnp.sum(terms.log_det - LATENTS)
    np.testing.assert_allclose(slope.log_det, by_log_det, rtol=1e-4)


def test_weights_refuse():
    for weights, words in (
        (vae.TermWeights(-1.0), r"weights\.trace must be a number >= 0; got -1\."),
        (vae.TermWeights(1.0, float("nan")), r"weights\.mahalanobis must be a number >= 0"),
        (vae.TermWeights(1.0, 1.0, jnp.ones(3)), r"weights\.log_det must be one number; got"),
    ):
        with pytest.raises(ValueError, match=words):
            vae.weighted_kl(GUESS, PRIOR, weights)
    with pytest.raises(TypeError, match=r"weights must be TermWeights"):
        vae.weighted_kl(GUESS, PRIOR, (1.0, 1.0, 1.0))
    with pytest.raises(TypeError, match="latent_terms knows MultivariateNormalDiag and"):
        vae.latent_terms(kljax.Normal(0.0, 1.0), PRIOR)
    with pytest.raises(TypeError, match="p is an array of shape"):
        vae.latent_terms(GUESS, X)


# ---- shaping --------------------------------------------------------------------------------


@partial(jax.jit, static_argnames="estimator")
def parts_of(q, estimator="closed_form"):
    return vae.ESTIMATORS[estimator](q, PRIOR, partial(log_likelihood, W), jax.random.key(2))


def test_shaping_changes_the_loss_alone():
    parts = parts_of(GUESS)
    r, kl = jnp.mean(parts.reconstruction), parts.kl
    by_latent = parts.terms.total
    groups = [0, 1, 0]
    grouped = jnp.stack([by_latent[:, 0] + by_latent[:, 2], by_latent[:, 1]], 1)
    capacity, nats = float(jnp.median(kl)), float(jnp.median(by_latent))
    weighted = vae.weighted_kl(GUESS, PRIOR, vae.TermWeights(2.0, 3.0, 0.5))
    cases = {
        "beta": (vae.with_beta(parts, 4.0), r + 4 * jnp.mean(kl)),
        "weights": (
            vae.with_term_weights(parts, vae.TermWeights(2.0, 3.0, 0.5)),
            r + jnp.mean(weighted),
        ),
        "ones": (vae.with_term_weights(parts, vae.TermWeights()), parts.loss),
        "capacity": (
            vae.with_capacity(parts, capacity, gamma=10.0),
            r + 10 * jnp.abs(jnp.mean(kl) - capacity),
        ),
        "capacity per sample": (
            vae.with_capacity_per_sample(parts, capacity, gamma=10.0),
            r + 10 * jnp.mean(jnp.abs(kl - capacity)),
        ),
        "free bits": (
            vae.with_free_bits(parts, nats),
            r + sum(max(nats, float(m)) for m in jnp.mean(by_latent, 0)),
        ),
        "free bits of groups": (
            vae.with_free_bits(parts, 2 * nats, groups=groups, beta=0.5),
            r + 0.5 * sum(max(2 * nats, float(m)) for m in jnp.mean(grouped, 0)),
        ),
        "free bits per sample": (
            vae.with_free_bits_per_sample(parts, nats),
            r + jnp.mean(jnp.sum(jnp.maximum(by_latent, nats), 1)),
        ),
        "constraint": (
            vae.with_constraint(parts, vae.constraint(3.0), 1.5),
            jnp.mean(kl) + 3 * (r - 1.5),
        ),
    }
    for name, (shaped, want) in cases.items():
        np.testing.assert_allclose(shaped.loss, want, rtol=1e-5, err_msg=name)
        np.testing.assert_array_equal(shaped.elbo, parts.elbo, err_msg=name)
        np.testing.assert_array_equal(shaped.bound, parts.bound, err_msg=name)
    assert cases["capacity"][1] < cases["capacity per sample"][1]
    assert cases["free bits"][1] < cases["free bits per sample"][1]


def test_no_reward_for_less_kl_than_the_free_bits():
    @jax.jit
    @jax.grad
    def slope(q):
        parts = parts_of(q)
        shapes = (vae.with_free_bits, vae.with_free_bits_per_sample)
        rates = [shape(parts, 100.0).loss - jnp.mean(parts.reconstruction) for shape in shapes]
        return rates[0] + rates[1]

    np.testing.assert_array_equal(slope(GUESS).log_variance, 0)


def test_shaping_is_traced_with_a_schedule():
    beta = vae.schedules.linear(0.0, 2.0, 10)

    @jax.jit
    def loss(step):
        return vae.with_beta(parts_of(GUESS), beta(step)).loss

    parts = parts_of(GUESS)
    want = jnp.mean(parts.reconstruction) + jnp.mean(parts.kl)
    np.testing.assert_allclose(loss(jnp.int32(5)), want, rtol=1e-6)
    assert np.isnan(jax.jit(lambda b: vae.with_beta(parts, b).loss)(-1.0))


def test_shaping_refuses():
    parts = parts_of(GUESS)
    weighted, sampled = (
        dataclasses.replace(parts, estimator=name) for name in ("iwae", "monte_carlo")
    )
    summed = {f.name: getattr(parts.terms, f.name) for f in dataclasses.fields(parts.terms)}
    summed = kljax.GaussianTerms(**{name: jnp.sum(a, -1) for name, a in summed.items()})
    whole = dataclasses.replace(parts, terms=summed)
    for call, words in (
        (lambda: vae.with_beta(parts, -1.0), r"beta must be a number >= 0; got -1\."),
        (lambda: vae.with_beta(weighted, 2.0), "that of iwae is not, and weights"),
        (lambda: vae.with_free_bits(sampled, 1.0), "which monte_carlo samples as a whole"),
        (lambda: vae.with_free_bits(parts, -0.5), "nats must be a number >= 0"),
        (lambda: vae.with_free_bits(parts, 0.5, groups=[0, 2, 0]), "without a gap"),
        (lambda: vae.with_free_bits(parts, 0.5, groups=[0, 1]), "each of 3 latents"),
        (lambda: vae.with_free_bits(whole, 0.5), "KL of every latent"),
        (lambda: vae.with_capacity(parts, -1.0), "capacity must be a number >= 0"),
        (lambda: vae.constraint(0.0), "multiplier must be a number > 0"),
        (lambda: vae.delta_vae_log_variance(X, -1.0), "rate must be a number >= 0"),
        (lambda: vae.delta_vae_rate(1.0, 5), "correlation must be between -1 and 1"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    # Weights on terms need no KL of every latent.
    weights = vae.TermWeights(1.0, 1.0, 2.0)
    by_latent, by_event = (vae.with_term_weights(p, weights).loss for p in (parts, whole))
    np.testing.assert_allclose(by_latent, by_event, rtol=1e-5)


def test_constraint_is_met_by_its_multiplier():
    """Reconstruction 1 / lambda and KL -> the multiplier settles at 1 / tolerance."""
    parts, tolerance = parts_of(GUESS), 0.25

    @jax.jit
    def step(state):
        r = 1 / jnp.exp(state.log_multiplier)
        now = vae.ElboParts(
            r, -r * jnp.ones(1), r * jnp.ones(1), jnp.zeros(1), None, parts.estimator
        )
        return vae.update_constraint(state, now, tolerance, rate=0.1, decay=0.5)

    state = vae.constraint()
    first = step(state)
    np.testing.assert_allclose(first.average, 1 - tolerance)
    for _ in range(500):
        state = step(state)
    np.testing.assert_allclose(1 / state.beta, 1 / tolerance, rtol=1e-3)


def test_delta_vae_commits_to_its_rate():
    x = jnp.linspace(-30, 30, 101)
    for rate in (0.0, 1e-4, 0.1, 3.0):
        l = vae.delta_vae_log_variance(x, rate)
        kl = kljax.kl_divergence(kljax.Normal(0.0, log_variance=l), kljax.Normal(0.0, 1.0))
        np.testing.assert_allclose(kl[0], rate, rtol=1e-4, atol=1e-12)
        assert np.all(kl >= rate * (1 - 1e-6))
    a, steps = 0.9, 6
    chain = np.float64(a) ** np.abs(np.subtract.outer(np.arange(steps), np.arange(steps)))
    variances = 1 / np.diag(np.linalg.inv(chain))
    trace = np.trace(np.linalg.inv(chain) @ np.diag(variances))
    log_det = np.linalg.slogdet(chain)[1] - np.sum(np.log(variances))
    kl = 0.5 * (trace - steps + log_det)
    np.testing.assert_allclose(vae.delta_vae_rate(a, steps), kl, rtol=1e-10)


# ---- schedules and translators --------------------------------------------------------------


def test_schedules():
    steps = jnp.arange(0, 130)
    for make in (
        vae.schedules.linear,
        vae.schedules.cosine,
        vae.schedules.sigmoid,
        vae.schedules.cyclical,
    ):
        schedule = make(0.5, 2.0, 120)
        values = np.asarray(jax.jit(jax.vmap(schedule))(steps))
        np.testing.assert_allclose(values[0], 0.5, rtol=1e-6)
        np.testing.assert_array_equal(values[120:], 2.0)
        assert np.all((values >= 0.5 - 1e-6) & (values <= 2 + 1e-6))
        if make is not vae.schedules.cyclical:
            assert np.all(np.diff(values) >= 0)
            np.testing.assert_allclose(values[60], 1.25, rtol=1e-5)
    cycles = jax.vmap(vae.schedules.cyclical(0.0, 1.0, 30, cycles=3, ramp=0.5))(steps[:31])
    np.testing.assert_allclose(cycles[:10], cycles[10:20])
    np.testing.assert_allclose(cycles[jnp.array([0, 10, 20])], 0)
    np.testing.assert_allclose(cycles[:6], [0, 0.2, 0.4, 0.6, 0.8, 1], rtol=1e-6)
    optimizer = optax.sgd(vae.schedules.linear(0.0, 1.0, 2))
    state = optimizer.init(jnp.ones(()))
    _, state = optimizer.update(jnp.ones(()), state)
    update, _ = optimizer.update(jnp.ones(()), state)
    np.testing.assert_allclose(update, -0.5)


def test_a_schedule_longer_than_the_run_is_told():
    long = vae.schedules.linear(0.0, 1.0, 1000)
    with pytest.warns(vae.ScheduleWarning, match=r"takes 1,000 .* ends at 0\.499, not at 1"):
        vae.check_schedule(long, 500)
    with pytest.warns(vae.ScheduleWarning, match="training ends at"):
        vae.check_schedule(optax.linear_schedule(0.0, 1.0, 1000), 500)
    vae.check_schedule(long, 1000)
    vae.check_schedule(optax.linear_schedule(0.0, 1.0, 100), 500)
    for call, error, words in (
        (lambda: vae.check_schedule(1.0, 10), TypeError, "must be a function of the step"),
        (lambda: vae.schedules.linear(0.0, 1.0, 0), ValueError, "steps must be a whole"),
        (
            lambda: vae.schedules.linear(0.0, float("inf"), 5),
            ValueError,
            "end must be",
        ),
        (lambda: vae.schedules.cyclical(0.0, 1.0, 3), ValueError, "4 cycles need at least"),
        (lambda: vae.schedules.cyclical(0.0, 1.0, 9, ramp=0.0), ValueError, "ramp must be"),
    ):
        with pytest.raises(error, match=words):
            call()


def test_published_losses_are_translated():
    toy = {"reconstruction": "mean", "kl": "mean", "kl_weight": 0.1}
    beta = vae.effective_beta(event_size=784, latent_size=32, **toy)
    assert round(beta, 10) == 2.45
    celeba = {"reconstruction": "mean", "kl": "sum", "kl_weight": 2.5e-4}
    beta = vae.effective_beta(event_size=3 * 64 * 64, latent_size=128, **celeba)
    assert round(vae.equivalent_variance(beta), 10) == 1.536
    assert vae.equivalent_variance(1.0, squared_error_weight=0.5) == 1.0
    assert vae.normalized_beta(4.0, event_size=4096, latent_size=10) == 4 * 10 / 4096
    assert vae.beta_from_normalized(4 * 10 / 4096, event_size=4096, latent_size=10) == 4.0


def test_a_translated_loss_has_the_gradient_direction_of_its_elbo():
    """The loss as published, and beta of the library, pull the posterior the same way."""

    def published(q):
        parts = parts_of(q)
        return jnp.mean(parts.reconstruction / PIXELS) + 0.1 * jnp.mean(parts.kl / LATENTS)

    beta = vae.effective_beta(
        event_size=PIXELS, latent_size=LATENTS, reconstruction="mean", kl="mean", kl_weight=0.1
    )
    a = jax.grad(published)(GUESS)
    b = jax.grad(lambda q: vae.with_beta(parts_of(q), beta).loss)(GUESS)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(PIXELS * x, y, rtol=1e-4, atol=1e-5)


def test_example_prints_the_published_conventions():
    def run(*flags):
        return subprocess.run(
            [sys.executable, ROOT / "examples/translate_losses.py", *flags],
            capture_output=True,
            text=True,
            timeout=100,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )

    printed = run().stdout
    assert re.search(r"05_vae\.py .* 2\.45 +-", printed)
    assert re.search(r"AntixK.* 3\.072 +1\.536", printed)
    own = run("--event-size", "784", "--latent-size", "20")
    assert "This loss is the ELBO; as Higgins" in own.stdout
    wrong = run("--event-size", "784", "--latent-size", "20", "--kl-weight", "-1")
    assert wrong.returncode == 2
    assert wrong.stderr == "translate_losses.py: kl_weight must be a number >= 0; got -1.\n"


def test_translators_refuse():
    sizes = {"event_size": 4, "latent_size": 2}
    for call, words in (
        (
            lambda: vae.effective_beta(**sizes, reconstruction="avg", kl="sum"),
            "reconstruction must be 'sum' or 'mean'; got 'avg'",
        ),
        (
            lambda: vae.effective_beta(**sizes, reconstruction="sum", kl="sum", kl_batch="sum"),
            "beta depends on the batch: give batch_size",
        ),
        (
            lambda: vae.effective_beta(
                **sizes, reconstruction="sum", kl="sum", reconstruction_weight=0.0
            ),
            "reconstruction_weight must be a number > 0",
        ),
        (lambda: vae.equivalent_variance(0.0), "beta must be a number > 0"),
        (lambda: vae.beta_from_normalized(1.0, event_size=0, latent_size=1), "event_size"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    assert (
        vae.effective_beta(
            **sizes, reconstruction="sum", kl="sum", kl_batch="sum", batch_size=10
        )
        == 10
    )
