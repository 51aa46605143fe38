"""Decoder likelihoods against 60 digits, at extreme parameters, and in their normalization."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from kljax.vae import intervals, likelihoods

EXTREME = [0.0, 1e-30, 1e-7, 1e-3, 0.4, 0.6, 3.0, 30.0, 90.0, 1e4, 1e10, 3e38]
LOGITS = np.array([s * v for v in EXTREME for s in (1, -1)], np.float32)


def slopes(law, *arguments):
    """Value and gradient by the first argument of every event."""
    return jax.jit(jax.vmap(jax.value_and_grad(law)))(*arguments)


def assert_within(got, want, ulp, floor=0.0):
    """Every entry within so many float32 ulp of the truth."""
    want = np.array([float(x) for x in want])
    got = np.asarray(got, np.float64)
    bound = ulp * 2.0**-24 * np.abs(want) + floor
    assert np.all(np.abs(got - want) <= bound), (got, want)


def exact_bernoulli(logit, x):
    p = 1 / (1 + mp.exp(-logit))
    other = 1 / (1 + mp.exp(logit))
    value = (x * -mp.log1p(mp.exp(-logit)) if x else 0) + (
        (1 - x) * -mp.log1p(mp.exp(logit)) if x != 1 else 0
    )
    return value, (other if x == 1 else -p if x == 0 else x - p)


def exact_continuous_bernoulli(logit, x):
    if logit == 0:
        return mp.mpf(0), x - mp.mpf(1) / 2
    value = x * logit - mp.log(mp.expm1(logit) / logit)
    return value, x - 1 / (-mp.expm1(-logit)) + 1 / logit


@pytest.mark.parametrize(
    ("law", "exact", "most"),
    [
        (likelihoods.bernoulli, exact_bernoulli, 3e38),
        (likelihoods.continuous_bernoulli, exact_continuous_bernoulli, 1e4),
    ],
)
def test_laws_of_logits(law, exact, most):
    logits = LOGITS[np.abs(LOGITS) <= most]
    xs = np.array([0.0, 1.0, 0.25], np.float32)
    logits, xs = (a.ravel() for a in np.meshgrid(logits, xs))
    value, slope = slopes(partial(law, event_ndim=0), logits, xs)
    with mp.workdps(60):
        cut = [max(min(float(l), 3e5), -3e5) for l in logits]
        exactly = [exact(mp.mpf(l), mp.mpf(float(x))) for l, x in zip(cut, xs, strict=True)]
    small = np.abs(logits) <= 1e5
    for got, index in ((value, 0), (slope, 1)):
        want = np.array([float(pair[index]) for pair in exactly])
        # Denormal numbers are 0 to XLA.
        assert_within(np.asarray(got)[small], want[small], 8, floor=1e-37)
    assert np.all(np.isfinite(value))
    assert np.all(np.isfinite(slope))


def test_gradient_at_logit_zero_is_not_lost():
    for law in (likelihoods.bernoulli, likelihoods.continuous_bernoulli):
        _, slope = slopes(partial(law, event_ndim=0), jnp.zeros(2), jnp.arange(2.0))
        np.testing.assert_array_equal(slope, [-0.5, 0.5])
    law = partial(likelihoods.continuous_bernoulli, event_ndim=0)
    curvature = jax.jit(jax.hessian(law))(0.0, 0.3)
    np.testing.assert_allclose(curvature, -1 / 12, rtol=1e-6)


def test_continuous_bernoulli_is_a_density():
    nodes, weights = np.polynomial.legendre.leggauss(80)
    x, w = jnp.asarray(0.5 + 0.5 * nodes), jnp.asarray(0.5 * weights)
    logits = jnp.array([0.0, 1e-4, 0.5, -2.0, 20.0])
    log_p = jax.vmap(
        lambda l: likelihoods.continuous_bernoulli(l * jnp.ones_like(x), x, event_ndim=0)
    )(logits)
    np.testing.assert_allclose(jnp.exp(log_p) @ w, 1, rtol=2e-6)


@pytest.mark.parametrize("levels", [1, 16, 255])
def test_probabilities_add_up_to_one(levels):
    x = jnp.arange(levels + 1)
    locs, log_scales = jnp.array([0.1, 0.5, 0.98]), jnp.array([-7.0, -2.0, 0.0])

    def masses(loc, log_scale):
        loc = jnp.full(x.shape, loc)
        of = {"log_scale": log_scale, "levels": levels, "event_ndim": 0}
        return (
            likelihoods.discretized_gaussian(loc, x, **of),
            likelihoods.discretized_logistic(loc, x, **of),
            likelihoods.binomial(log_scale + 8 * loc - 4, x, count=levels, event_ndim=0),
        )

    for log_p in jax.jit(jax.vmap(masses))(locs, log_scales):
        # What is far out is all that a bin next to 0.5 of another may be off by.
        np.testing.assert_allclose(jnp.sum(jnp.exp(log_p), axis=1), 1, rtol=4e-5)


def exact_interval(m, log_h):
    h = mp.exp(log_h)
    m, sign = (m, 1) if m >= 0 else (-m, -1)
    lower, upper = m - h, m + h
    mass = (mp.erfc(lower / mp.sqrt(2)) - mp.erfc(upper / mp.sqrt(2))) / 2
    low, high = mp.npdf(lower) / mass, mp.npdf(upper) / mass
    return mp.log(mass), sign * (high - low), (high + low) * h


def test_normal_interval():
    ms = [0, 1e-3, 0.5, -2, 5, 12, 30, 100, 1e4]
    hs = [1e-30, 1e-6, 1e-3, 0.0185, 0.0187, 0.1, 1, 3, 50]
    m, log_h = (a.ravel() for a in np.meshgrid(ms, np.log(hs)))
    m, log_h = m.astype(np.float32), log_h.astype(np.float32)
    both = jax.value_and_grad(intervals.log_normal_interval, (0, 1))
    value, (by_m, by_h) = jax.jit(jax.vmap(both))(m, log_h)
    with mp.workdps(100):
        exact = [
            exact_interval(mp.mpf(float(a)), mp.mpf(float(b)))
            for a, b in zip(m, log_h, strict=True)
        ]
    for got, want, ulp in zip(
        (value, by_m, by_h), zip(*exact, strict=True), (16, 30, 60), strict=True
    ):
        assert_within(got, want, ulp, floor=ulp * 2.0**-24)


def test_hazard_where_the_fraction_takes_over():
    t = np.array([-5.0, 0.0, 2.0, 4.99, 5.01, 8.0, 100.0, 1e4], np.float32)
    value = jax.vmap(intervals.hazard)(t)
    with mp.workdps(60):
        exact = [mp.npdf(a) / (mp.erfc(a / mp.sqrt(2)) / 2) for a in map(mp.mpf, t.tolist())]
    assert_within(value, exact, 8)


@pytest.mark.parametrize("law", ["discretized_gaussian", "discretized_logistic"])
def test_discretized_laws_stay_finite(law):
    loc, log_scale, x = (
        a.ravel()
        for a in np.meshgrid(
            np.float32([-1e4, 0.0, 0.3, 1e4]),
            np.float32([-30, -5.541264, -2.7725887, 0, 40]),
            np.float32([0, 1, 200, 255]),
        )
    )
    law = partial(getattr(likelihoods, law), levels=255, event_ndim=0)
    both = jax.jit(jax.vmap(jax.value_and_grad(lambda a, x, b: law(a, x, log_scale=b), (0, 2))))
    value, gradients = both(loc, x, log_scale)
    for got in (value, *gradients):
        assert np.all(np.isfinite(got))
    assert np.all(np.asarray(value) <= 0)


def test_discretized_logistic_against_digits():
    loc, log_scale, x = 0.3, -2.5, np.array([0.0, 7.0, 16.0], np.float32)
    law = partial(likelihoods.discretized_logistic, levels=16, event_ndim=0)
    got = law(np.full(3, loc, np.float32), x, log_scale=log_scale)

    def cdf(a):
        return 1 / (1 + mp.exp(-(a - mp.mpf(float(np.float32(loc)))) / mp.exp(log_scale)))

    edges = [(mp.mpf(float(k)) + s * mp.mpf("0.5")) / 16 for k in x for s in (-1, 1)]
    mass = [cdf(edges[1]), cdf(edges[3]) - cdf(edges[2]), 1 - cdf(edges[4])]
    assert_within(got, [mp.log(a) for a in mass], 16)


def test_gaussian_is_the_normal_density():
    key = jax.random.key(0)
    loc, x = jax.random.normal(key, (2, 5, 3, 4))
    log_variance = jnp.linspace(-80, 80, 12).reshape(3, 4)
    law = jax.jit(partial(likelihoods.gaussian, event_ndim=2))
    got = law(loc, x, log_variance=log_variance)
    a, b, l = (np.asarray(array, np.float64) for array in (loc, x, log_variance))
    want = -0.5 * np.sum((a - b) ** 2 * np.exp(-l) + l + np.log(2 * np.pi), axis=(1, 2))
    np.testing.assert_allclose(got, want, rtol=1e-5)
    fixed, learned = law(loc, x, variance=2.0), law(loc, x, log_variance=np.log(2.0))
    np.testing.assert_allclose(fixed, learned, rtol=1e-6)


def test_optimal_variance_is_optimal_and_its_gradient_that_of_fixed_variance():
    loc, x = jax.random.normal(jax.random.key(1), (2, 6, 7))

    @jax.jit
    def compare(loc):
        best = likelihoods.optimal_variance(loc, x)

        def fixed(loc, factor):
            of = jax.lax.stop_gradient(factor * best)
            return jnp.mean(likelihoods.gaussian(loc, x, variance=of))

        def optimal(loc):
            return jnp.mean(likelihoods.gaussian_optimal(loc, x))

        others = [fixed(loc, factor) for factor in (0.9, 1.0, 1.1)]
        return best, others, optimal(loc), jax.grad(optimal)(loc), jax.grad(fixed)(loc, 1.0)

    best, (lower, same, higher), at_best, through, fixed = compare(loc)
    assert max(lower, higher) < at_best
    np.testing.assert_allclose(at_best, same, rtol=1e-6)
    np.testing.assert_allclose(at_best, -3.5 * (jnp.log(2 * jnp.pi * best) + 1), rtol=1e-6)
    np.testing.assert_allclose(through, fixed, rtol=1e-4, atol=1e-7)


def test_categorical():
    logits = jax.random.normal(jax.random.key(2), (5, 2, 3, 4)) * 1e4
    x = jax.random.randint(jax.random.key(3), (5, 2, 3), 0, 4)
    got, slope = jax.jit(
        jax.value_and_grad(lambda a: jnp.sum(likelihoods.categorical(a, x, event_ndim=2)))
    )(logits)
    log_p = jax.nn.log_softmax(logits, axis=-1)
    want = np.take_along_axis(np.asarray(log_p), np.asarray(x)[..., None], -1)
    np.testing.assert_allclose(got, np.sum(want), rtol=1e-6)
    np.testing.assert_allclose(slope, jax.nn.one_hot(x, 4) - jnp.exp(log_p), atol=1e-6)


def test_binomial_is_exact_for_many_trials():
    x = np.array([0, 1, 100, 255], np.float32)
    got = likelihoods.binomial(np.full(4, 0.7, np.float32), x, count=255, event_ndim=0)
    with mp.workdps(50):
        p = 1 / (1 + mp.exp(-mp.mpf(float(np.float32(0.7)))))
        want = [
            mp.log(mp.binomial(255, int(k)))
            + int(k) * mp.log(p)
            + (255 - int(k)) * mp.log1p(-p)
            for k in x
        ]
    assert_within(got, want, 8, floor=4e-5)


LAWS = {
    "bernoulli": lambda a, x: likelihoods.bernoulli(a, x),
    "continuous_bernoulli": lambda a, x: likelihoods.continuous_bernoulli(a, x),
    "binomial": lambda a, x: likelihoods.binomial(a, x, count=1),
    "gaussian": lambda a, x: likelihoods.gaussian(a, x, log_variance=0.5),
    "gaussian_optimal": lambda a, x: likelihoods.gaussian_optimal(a, x),
    "discretized_gaussian": lambda a, x: likelihoods.discretized_gaussian(
        a, x, log_scale=0.1, levels=1
    ),
    "discretized_logistic": lambda a, x: likelihoods.discretized_logistic(
        a, x, log_scale=0.1, levels=1
    ),
}


@pytest.mark.parametrize("law", LAWS)
def test_event_axes_are_summed_and_half_precision_widened(law):
    a = jax.random.normal(jax.random.key(4), (2, 3, 5))
    x = (a > 0).astype(jnp.bfloat16)
    a = a.astype(jnp.bfloat16)
    compiled = jax.jit(LAWS[law])
    # Samples in front of the data broadcast.
    got = compiled(a, x[0])
    assert got.shape == (2, 3)
    assert got.dtype == jnp.float32
    wide = jnp.broadcast_to(x[0], x.shape).astype(jnp.float32)
    np.testing.assert_allclose(got, compiled(a.astype(jnp.float32), wide), rtol=1e-6)
    with pytest.raises(ValueError, match=r"x has events of shape \(4,\) but (logits|loc) of"):
        LAWS[law](a, x[..., :4])
    with pytest.raises(ValueError, match="batch shapes do not broadcast"):
        LAWS[law](a, x[:, :2])


@pytest.mark.parametrize("law", ["bernoulli", "continuous_bernoulli", "binomial"])
def test_impossible_data_is_nan_with_a_gradient_of_nan(law):
    value, slope = jax.value_and_grad(LAWS[law])(jnp.zeros(2), jnp.array([0.0, 1.5]))
    assert np.isnan(value)
    assert np.isnan(slope[1])


def test_sentences():
    a = jnp.zeros(3)
    for call, words in (
        (lambda: likelihoods.gaussian(a, a), "exactly one of variance and log_variance"),
        (lambda: likelihoods.gaussian(a, a, variance=1.0, log_variance=0.0), "exactly one"),
        (lambda: likelihoods.bernoulli(a, a, event_ndim=2), "event_ndim=2 needs as many axes"),
        (lambda: likelihoods.binomial(a, a, count=0), "count must be a whole number >= 1"),
        (lambda: likelihoods.categorical(1.0, 0), "last axis must be the classes"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
    with pytest.raises(TypeError, match=r"levels must be a whole number; got 1\.5"):
        likelihoods.discretized_logistic(a, a, log_scale=0.0, levels=1.5)
