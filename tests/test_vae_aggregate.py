"""The aggregated posterior and the parts of the KL, against integrals and all minibatches."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from scipy.stats import multivariate_normal

import kljax
from kljax.vae import aggregate, minibatch

pytestmark = pytest.mark.light

DATA = 12


def posteriors(seed=0, full=False, data=DATA, latents=2):
    rng = np.random.default_rng(seed)
    loc = jnp.asarray(0.8 * rng.standard_normal((data, latents)), jnp.float32)
    scale = jnp.asarray(np.exp(0.3 * rng.standard_normal((data, latents))) * 0.7, jnp.float32)
    if not full:
        return kljax.MultivariateNormalDiag(loc, scale)
    lower = jnp.tril(
        jnp.asarray(0.5 * rng.standard_normal((latents, latents)), jnp.float32), -1
    )
    return kljax.MultivariateNormal(
        loc, scale[:, :, None] * jnp.eye(latents)[None] + lower[None]
    )


PRIOR = kljax.MultivariateNormalDiag(jnp.array([0.2, -0.1]), jnp.array([1.1, 0.9]))


def integrals(q, prior):
    """All parts by sums over a grid, in float64."""
    axis = np.linspace(-7, 7, 561)
    area = (axis[1] - axis[0]) ** 2
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)
    means, covariances = np.asarray(q.loc, float), np.asarray(kljax.covariance(q), float)
    each = np.stack(
        [multivariate_normal(m, c).pdf(grid) for m, c in zip(means, covariances, strict=True)]
    )
    p = multivariate_normal(np.asarray(prior.loc), np.asarray(kljax.covariance(prior))).pdf(
        grid
    )
    together = np.mean(each, axis=0)
    step = math.sqrt(area)
    single = [np.sum(together, axis=1 - i) * step for i in (0, 1)]
    prior_single = [np.sum(p, axis=1 - i) * step for i in (0, 1)]

    def divergence(x, y, cell):
        return float(np.sum(x * (np.log(x + 1e-300) - np.log(y + 1e-300))) * cell)

    each_single = [np.sum(each, axis=2 - i) * step for i in (0, 1)]
    return {
        "kl": np.mean([divergence(x, p, area) for x in each]),
        "mutual_information": np.mean([divergence(x, together, area) for x in each]),
        "marginal_kl": divergence(together, p, area),
        "total_correlation": divergence(together, single[0][:, None] * single[1][None], area),
        "latent_kl": [
            divergence(x, y, step) for x, y in zip(single, prior_single, strict=True)
        ],
        "latent_information": [
            np.mean([divergence(x, y, step) for x in xs])
            for xs, y in zip(each_single, single, strict=True)
        ],
    }


def decompose(q, seed):
    """One program for all tests."""
    return aggregate.decompose(q, jax.random.key(seed), prior=PRIOR, samples=2000)


ERRORS = {
    "kl": None,
    "mutual_information": "information_error",
    "marginal_kl": "information_error",
    "total_correlation": "total_correlation_error",
    "latent_kl": "latent_error",
    "latent_information": "latent_error",
}


@pytest.mark.parametrize("full", [False, True])
def test_parts_are_the_integrals(full):
    q = posteriors(full=full)
    want = integrals(q, PRIOR)
    got = decompose(q, 0)
    for name, error_name in ERRORS.items():
        error = 1e-6 if error_name is None else np.asarray(getattr(got, error_name))
        assert np.all(np.asarray(error) < 0.008)
        gap = np.abs(np.asarray(getattr(got, name)) - np.asarray(want[name]))
        assert np.all(gap < 4 * error), name
        # It could fail: the parts are further from one another than that.
    assert want["total_correlation"] > 8 * float(got.total_correlation_error)
    assert min(np.diff(sorted(want["latent_kl"]))) > 0.02


@pytest.mark.parametrize("full", [False, True])
def test_parts_add_up_to_the_mean_kl(full):
    q = posteriors(1, full)
    got = decompose(q, 1)
    mean = float(jnp.mean(kljax.kl_divergence(q, PRIOR)))
    assert float(got.kl) == pytest.approx(mean, rel=1e-6)
    parts = got.mutual_information + got.total_correlation + jnp.sum(got.latent_kl)
    assert float(parts) == pytest.approx(mean, abs=2e-6)
    assert float(got.mutual_information + got.marginal_kl) == pytest.approx(mean, abs=1e-6)


def test_limits():
    """Told apart by their posteriors, data carry log N; all alike, nothing."""
    places = 100 * jnp.arange(float(DATA))[:, None] * jnp.ones((1, 2))
    apart = decompose(kljax.MultivariateNormalDiag(places, jnp.ones((DATA, 2))), 0)
    assert float(apart.mutual_information) == pytest.approx(math.log(DATA), abs=1e-6)
    assert float(apart.total_correlation) == pytest.approx(
        math.log(DATA), abs=1e-4 * float(apart.kl)
    )
    alike = kljax.MultivariateNormalDiag(jnp.zeros((DATA, 2)), jnp.full((DATA, 2), 0.5))
    same = decompose(alike, 0)
    for part in (same.mutual_information, same.total_correlation, *same.latent_information):
        assert abs(float(part)) < 1e-6


def test_density_in_chunks_on_devices_and_against_each_posterior(monkeypatch):
    q = posteriors(2)
    z = jax.random.normal(jax.random.key(3), (21, 2))
    got = aggregate.aggregated_log_prob(q, z)
    each = kljax.log_prob(q, z[:, None, :])
    np.testing.assert_allclose(got.joint, np.log(np.mean(np.exp(each), axis=1)), rtol=2e-6)
    one = kljax.log_prob(kljax.Normal(q.loc, q.scale_diag), z[:, None, :])
    np.testing.assert_allclose(got.latents, np.log(np.mean(np.exp(one), axis=1)), rtol=1e-5)
    mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
    shared = aggregate.aggregated_log_prob(q, z, mesh=mesh)
    for x, y in zip(got, shared, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6)
    monkeypatch.setattr(aggregate, "_CHUNK", 5 * DATA * 3)
    chunked = aggregate.aggregated_log_prob(q, jnp.concatenate([z, z]))  # another program
    for x, y in zip(got, chunked, strict=True):
        np.testing.assert_allclose(x, y[21:], rtol=1e-6)
    even = jnp.full((21, DATA), -math.log(DATA))
    weighted = aggregate.aggregated_log_prob(q, z, even)
    np.testing.assert_allclose(weighted.joint, got.joint, rtol=1e-6)


def published_weights(batch, data):
    """Column 0 of every row where the diagonal is meant, as several programs have it."""
    rest = batch - 1
    weights = np.full((batch, batch), 1 / rest)
    weights.reshape(-1)[::batch] = 1 / data
    weights.reshape(-1)[1::batch] = (data - rest) / (data * rest)
    weights[rest - 1, 0] = (data - rest) / (data * rest)
    return weights


def estimate_of_density(weights, data=60, batch=8, repeats=40000):
    """How far the estimates of q(z) are from the truth, relatively, and the standard error.

    For a z of each posterior, over minibatches drawn without replacement.
    """
    rng = np.random.default_rng(0)
    loc, scale = (
        rng.standard_normal((data, 2)),
        np.exp(0.2 * rng.standard_normal((data, 2))) / 3,
    )
    z = loc + scale * rng.standard_normal((data, 2))
    u = (z[:, None] - loc[None]) / scale[None]
    density = np.exp(-0.5 * np.sum(u * u, axis=2)) / np.prod(scale, axis=1)[None]
    exact = np.mean(density, axis=1)
    chosen = np.argsort(rng.random((repeats, data)), axis=1)[:, :batch]
    pairs = density[chosen[:, :, None], chosen[:, None, :]]
    estimate = np.sum(weights[None] * pairs, axis=2)
    gap = np.mean(estimate / exact[chosen] - 1, axis=1)
    return np.mean(gap), np.std(gap) / math.sqrt(repeats)


@pytest.mark.parametrize("kind", ["stratified", "symmetric"])
def test_minibatch_estimate_is_unbiased(kind):
    made = minibatch.minibatch_weights(8, 60, kind)
    assert made.offset == 0
    weights = np.exp(np.asarray(made.log_weights, float))
    np.testing.assert_allclose(np.sum(weights, axis=1), 1, rtol=1e-6)
    gap, error = estimate_of_density(weights)
    assert error < 0.005
    assert abs(gap) < 3.5 * error


def test_published_weights_fail_the_same_test():
    gap, error = estimate_of_density(published_weights(8, 60))
    assert gap > 20 * error
    assert gap > 0.1


def test_the_biased_weights_say_by_how_much():
    made = minibatch.minibatch_weights(8, 60, "weighted")
    weights = np.exp(np.asarray(made.log_weights, float))
    assert made.offset == pytest.approx(math.log(np.sum(weights[0])), rel=1e-6)
    gap, error = estimate_of_density(weights)
    # Between 1 / 60, where others make up q(z), and 1 / 8, where its own posterior does.
    assert gap - 3.5 * error > 1 / 60 - 1
    assert gap + 3.5 * error < 1 / 8 - 1


def test_a_minibatch_of_all_data_is_exact():
    q = posteriors(4)
    z = kljax.sample(q, jax.random.key(5))
    each = np.asarray(kljax.log_prob(q, z[:, None, :]), float)
    exact = np.log(np.mean(np.exp(each), axis=1))
    parts = minibatch.decompose_minibatch(q, z, DATA)
    information = np.mean(np.diagonal(each) - exact)
    assert float(parts.mutual_information) == pytest.approx(information, abs=1e-6)
    # The odd one of a row makes the stratified weights inexact even here.
    odd = minibatch.decompose_minibatch(q, z, DATA, kind="stratified")
    assert abs(float(odd.mutual_information) - information) > 1e-3


def test_parts_of_a_minibatch_can_be_trained_on():
    q = posteriors(6)
    noise = jax.random.normal(jax.random.key(7), (DATA, 2))

    def correlation(loc):
        x = kljax.MultivariateNormalDiag(loc, q.scale_diag)
        parts = minibatch.decompose_minibatch(x, loc + q.scale_diag * noise, 100)
        return parts.total_correlation

    loc = q.loc
    slope = jax.jit(jax.grad(correlation))(loc)
    direction = jax.random.normal(jax.random.key(8), loc.shape)
    step = 1e-2
    change = (correlation(loc + step * direction) - correlation(loc - step * direction)) / (
        2 * step
    )
    assert float(jnp.sum(slope * direction)) == pytest.approx(float(change), rel=2e-2)


Q = posteriors()


@pytest.mark.parametrize(
    ("call", "kind", "sentence"),
    [
        (
            lambda: aggregate.decompose(jnp.ones(3), jax.random.key(0)),
            TypeError,
            "got an array",
        ),
        (
            lambda: aggregate.decompose(kljax.standard_normal(2), jax.random.key(0)),
            ValueError,
            r"one axis of data points.*batch shape \(\)",
        ),
        (
            lambda: aggregate.decompose(Q, jax.random.key(0), prior=kljax.standard_normal(3)),
            ValueError,
            "one prior of 2 latents.*3 latents",
        ),
        (
            lambda: aggregate.decompose(
                Q, jax.random.key(0), prior=kljax.MultivariateNormal(jnp.zeros(2), jnp.eye(2))
            ),
            TypeError,
            "prior of independent latents",
        ),
        (
            lambda: aggregate.aggregated_log_prob(Q, jnp.ones((4, 3))),
            ValueError,
            r"z has shape \(4, 3\); it must be \(points, 2\)",
        ),
        (
            lambda: aggregate.aggregated_log_prob(Q, jnp.ones((4, 2)), jnp.zeros((4, 4))),
            ValueError,
            r"\(4, 12\)",
        ),
        (lambda: minibatch.minibatch_weights(1, 5), ValueError, "batch.*>= 2; got 1"),
        (lambda: minibatch.minibatch_weights(8, 5), ValueError, "data=5 and batch=8"),
        (lambda: minibatch.minibatch_weights(4, 5, "mws"), ValueError, "kind.*got 'mws'"),
        (
            lambda: minibatch.decompose_minibatch(Q, jnp.ones((3, 2)), 50),
            ValueError,
            r"\(3, 2\); one draw from each posterior is \(12, 2\)",
        ),
    ],
)
def test_bad_input_is_one_sentence(call, kind, sentence):
    with pytest.raises(kind, match=sentence):
        call()
