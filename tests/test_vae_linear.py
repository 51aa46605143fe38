"""The linear VAE: every stationary point against automatic differentiation and training."""

from __future__ import annotations

import functools
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

from kljax.vae import linear
from kljax.vae.linear import LinearVAE
from kljax.vae.terms import TermWeights

pytestmark = pytest.mark.light

FULL = pytest.mark.skipif("KLJAX_FULL" not in os.environ, reason="slow; set KLJAX_FULL=1")
EIGENVALUES = (5.0, 3.0, 1.5, 0.3)
NOISE = 0.4
# Weights of trace, Mahalanobis and log-determinant; b / a from 1/4 to 8.
WEIGHTS = [
    (1, 1, 1),
    (2.5, 2.5, 2.5),
    (4, 4, 1),
    (4, 1, 1),
    (1, 2, 1),
    (1, 8, 1),
    (0.5, 3, 0.7),
    (1, 1, 4),
    (0, 1, 1),
]
BISTABLE = (1.0, 8.0, 1.0)


@pytest.fixture(autouse=True)
def float64(x64):
    """The closed forms are held against bounds of 1e-8 and below."""


def as_weights(values) -> TermWeights:
    return TermWeights(*map(float, values))


@functools.cache
def _judge(latents: int):
    """The gradient of J at a point, and the least eigenvalue of its Hessian; batched."""
    covariance = jnp.diag(jnp.asarray(EIGENVALUES))

    def judge(decoder, encoder, variance, a, b, c):
        parts = (decoder, encoder, jnp.log(variance))
        sizes = [x.size for x in parts]

        def objective(flat):
            pieces = jnp.split(flat, np.cumsum(sizes)[:-1])
            w, v, log_s = (p.reshape(x.shape) for p, x in zip(pieces, parts, strict=True))
            model = LinearVAE(w, v, jnp.exp(log_s))
            return linear.parts(model, covariance, NOISE).objective(TermWeights(a, b, c))

        flat = jnp.concatenate([x.ravel() for x in parts])
        value, gradient = jax.value_and_grad(objective)(flat)
        return value, jnp.max(jnp.abs(gradient)), jax.hessian(objective)(flat)

    return jax.jit(jax.vmap(judge))


def judge(models, weights):
    stacked = [jnp.stack(x) for x in zip(*models, strict=True)]
    columns = jnp.asarray([tuple(map(float, w)) for w in weights]).T
    value, slope, hessian = _judge(stacked[0].shape[2])(*stacked, *columns)
    return value, slope, np.linalg.eigvalsh(np.asarray(hessian))[:, 0]


@functools.cache
def all_points(latents):
    """Every point that `minima` lists, for all weights."""
    rows = []
    for weights in WEIGHTS:
        known = linear.minima(EIGENVALUES, NOISE, latents, as_weights(weights))
        for active in np.flatnonzero(known.exists):
            rows.append((weights, int(active), known))
    return rows


@pytest.mark.parametrize("latents", [3, pytest.param(6, marks=FULL)])
def test_points_are_stationary_and_minima_are_minima(latents):
    """Gradient 0 by autodiff; the Hessian's sign is the claimed stability."""
    rows = all_points(latents)
    models = [
        linear.solution(EIGENVALUES, NOISE, latents, as_weights(w), active=active)
        for w, active, _ in rows
    ]
    value, slope, lowest = judge(models, [w for w, *_ in rows])
    claimed = np.array([bool(known.stable[active]) for _, active, known in rows])
    objective = np.array([float(known.objective[active]) for _, active, known in rows])
    assert np.max(slope) < 1e-12
    np.testing.assert_allclose(value, objective, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(lowest > 1e-6, claimed)
    assert np.all(np.abs(lowest) > 1e-4)  # none is so near the border that its sign is chance
    assert 0 < np.sum(claimed) < len(claimed)


def along_eigenvectors(branches, choice, order=(0, 1, 2)):
    """Three latents that follow three eigenvectors, each on a branch of its own."""
    eye = jnp.eye(len(EIGENVALUES))
    pick = [
        [
            getattr(getattr(branches, name), field)[i]
            for i, name in zip(order, choice, strict=True)
        ]
        for field in ("decoder", "encoder", "variance")
    ]
    w, v, s = (jnp.stack(x) for x in pick)
    columns = eye[:, jnp.asarray(order)]
    return LinearVAE(columns * w[None, :], (columns * v[None, :]).T, s)


def test_other_stationary_points_are_saddles():
    """The lower root, smaller eigenvalues first, and columns that are no eigenvectors."""
    weights = as_weights(BISTABLE)
    branches = linear.stationary_points(EIGENVALUES, NOISE, weights)
    ones = linear.stationary_points(EIGENVALUES, NOISE)
    models = [
        along_eigenvectors(branches, ("active", "active", "saddle")),
        along_eigenvectors(branches, ("active", "collapsed", "collapsed"), (1, 0, 2)),
        along_eigenvectors(ones, ("active", "active", "active"), (1, 2, 0)),
        along_eigenvectors(ones, ("active", "active", "collapsed"), (0, 2, 3)),
        mixed(),
    ]
    given = [BISTABLE, BISTABLE, (1, 1, 1), (1, 1, 1), (1, 1, 1)]
    _, slope, lowest = judge(models, given)
    assert np.max(slope) < 1e-12
    # The third follows the three largest in another order, which is the minimum itself.
    np.testing.assert_array_equal(lowest < -1e-3, [True, True, False, True, True])


def mixed() -> LinearVAE:
    """Two latents of equal variance whose columns lie between two eigenvectors.

    In the basis of the eigenvectors W = diag(g)^(1/2) R for the rotation R by 45 degrees, with
    g_i = v (sqrt(l_i / (s v)) - 1) and 1 / s = 1 + (g_1 + g_2) / (2 v).
    """
    root = np.sqrt(np.asarray(EIGENVALUES[:2]) / NOISE)
    inverse_deviation = np.mean(root)
    g = NOISE * (root * inverse_deviation - 1)
    w = np.zeros((4, 3))
    w[:2, :2] = np.sqrt(g)[:, None] * np.array([[1, -1], [1, 1]]) / math.sqrt(2)
    v = np.linalg.solve(w.T @ w + NOISE * np.eye(3), w.T)
    s = np.array([inverse_deviation**-2, inverse_deviation**-2, 1.0])
    return LinearVAE(*map(jnp.asarray, (w, v, s)))


@functools.cache
def trained():
    """What 20 random starts of each weighting end in: J and the columns' lengths."""
    covariance = jnp.diag(jnp.asarray(EIGENVALUES))
    choices = [(1.0, 1.0, 1.0), (4.0, 1.0, 1.0), BISTABLE]

    def run(key, size, a, b, c):
        keys = jax.random.split(key)
        w = size * jax.random.normal(keys[0], (4, 3))
        start = (w, size * jax.random.normal(keys[1], (3, 4)), jnp.zeros(3))

        def objective(x):
            model = LinearVAE(x[0], x[1], jnp.exp(x[2]))
            return linear.parts(model, covariance, NOISE).objective(TermWeights(a, b, c))

        rule = optax.adam(optax.cosine_decay_schedule(0.1, 8000))

        def step(carry, _):
            x, state = carry
            change, state = rule.update(jax.grad(objective)(x), state)
            return (optax.apply_updates(x, change), state), None

        (x, _), _ = jax.lax.scan(step, (start, rule.init(start)), length=8000)
        return objective(x), jnp.sort(jnp.sum(x[0] ** 2, axis=0))

    keys = jax.random.split(jax.random.key(0), 20)
    sizes = jnp.geomspace(0.01, 0.7, 20)
    over_starts = jax.vmap(run, (0, 0, None, None, None))
    over_all = jax.jit(jax.vmap(over_starts, (None, None, 0, 0, 0)))
    return choices, over_all(keys, sizes, *jnp.asarray(choices).T)


@FULL
def test_training_ends_in_the_minima_and_nowhere_else():
    choices, (reached, squares) = trained()
    found = []
    for weights, values, lengths in zip(choices, reached, squares, strict=True):
        known = linear.minima(EIGENVALUES, NOISE, 3, as_weights(weights))
        stable = np.flatnonzero(known.stable)
        gaps = np.abs(values[:, None] - known.objective[None, stable])
        nearest = np.argmin(gaps, axis=1)
        assert np.max(np.min(gaps, axis=1)) < 1e-8
        for active in set(stable[nearest]):
            model = linear.solution(EIGENVALUES, NOISE, 3, as_weights(weights), active=active)
            want = np.sort(np.sum(np.asarray(model.decoder) ** 2, axis=0))
            here = np.asarray(lengths)[stable[nearest] == active]
            np.testing.assert_allclose(here, np.broadcast_to(want, here.shape), atol=1e-6)
        found.append(sorted(set(stable[nearest])))
    # Bistable for b / a = 8 alone: 1.5 and 3 lie between 1.4 and 3.2, so 1, 2 or 3 are active.
    assert found[:2] == [[3], [3]]
    assert len(found[2]) >= 2
    assert set(found[2]) <= {1, 2, 3}


def test_bistable_window():
    """Both are stable between the fold and the threshold of collapse, for b / a > 2 alone."""
    for weights in WEIGHTS[:-1]:
        a, b, c = weights
        fold, equal, collapse = map(float, linear.thresholds(NOISE, as_weights(weights)))
        assert collapse == pytest.approx(b / a * c * NOISE, rel=1e-14)
        if b <= 2 * a:
            assert fold == equal == collapse
            probe = [collapse * 0.999, collapse * 1.001]
            wanted = [(False, True), (True, False)]
        else:
            assert fold == pytest.approx(4 * (1 - a / b) * c * NOISE, rel=1e-14)
            assert fold < equal < collapse
            probe = [fold * 0.999, fold * 1.001, collapse * 0.999, collapse * 1.001]
            wanted = [(False, True), (True, True), (True, True), (True, False)]
            at_equal = linear.stationary_points([equal], NOISE, as_weights(weights))
            assert abs(float(at_equal.active.gain[0])) < 1e-12
        points = linear.stationary_points(probe, NOISE, as_weights(weights))
        seen = list(
            zip(points.active.exists.tolist(), points.collapsed.stable.tolist(), strict=True)
        )
        assert seen == wanted
        bistable = np.array([x and y for x, y in wanted])
        np.testing.assert_array_equal(points.saddle.exists, bistable)


def test_thresholds_without_a_trace_weight_are_infinite():
    fold, equal, collapse = linear.thresholds(NOISE, TermWeights(0.0, 1.0, 1.0))
    assert float(fold) == pytest.approx(4 * NOISE)
    assert float(equal) == float(collapse) == math.inf


def test_thresholds_of_extreme_ratios():
    for ratio in (2.0001, 1e3, 1e20):
        fold, equal, collapse = map(float, linear.thresholds(1.0, TermWeights(1.0, ratio, 1.0)))
        assert fold <= equal <= collapse
        point = linear.stationary_points([equal], 1.0, TermWeights(1.0, ratio, 1.0)).active
        assert abs(float(point.gain[0])) < 1e-12


def test_threshold_of_equal_depth_is_differentiable():
    def equal(ratio):
        return linear.thresholds(NOISE, TermWeights(1.0, ratio, 1.0)).equal

    step = 1e-5
    for ratio in (2.1, 3.0, 40.0):
        want = (equal(ratio + step) - equal(ratio - step)) / (2 * step)
        assert float(jax.grad(equal)(ratio)) == pytest.approx(float(want), rel=1e-6)


def test_elbo_is_the_likelihood_and_ppca_the_optimum():
    fit = linear.ppca(EIGENVALUES, 2)
    model = linear.solution(EIGENVALUES, fit.noise_variance, 2)
    covariance = jnp.diag(jnp.asarray(EIGENVALUES))
    parts = linear.parts(model, covariance, fit.noise_variance)
    log_p = linear.log_likelihood(model.decoder, covariance, fit.noise_variance)
    assert abs(float(parts.elbo - log_p)) < 1e-12
    assert abs(float(fit.log_likelihood - log_p)) < 1e-12
    assert float(fit.noise_variance) == pytest.approx(np.mean(EIGENVALUES[2:]))
    assert float(linear.noise_variance(EIGENVALUES, 2)) == float(fit.noise_variance)
    lengths = jnp.sqrt(jnp.sum(model.decoder**2, axis=0))
    np.testing.assert_allclose(lengths, fit.decoder, rtol=1e-14)
    # At weights one the whole KL is its log-determinant term.
    assert float(parts.kl) == pytest.approx(0.5 * float(parts.log_det), abs=1e-12)


def test_other_weights_leave_a_gap_to_the_likelihood():
    covariance = jnp.diag(jnp.asarray(EIGENVALUES))
    for weights in ((2.5, 2.5, 2.5), (1, 8, 1), (4, 4, 1)):
        model = linear.solution(EIGENVALUES, NOISE, 3, as_weights(weights))
        parts = linear.parts(model, covariance, NOISE)
        assert float(parts.elbo) < float(
            linear.log_likelihood(model.decoder, covariance, NOISE)
        )


def test_log_likelihood_in_a_rotated_basis():
    """Against the density of each data point."""
    rng = np.random.default_rng(0)
    data = rng.standard_normal((7, 4))
    w = rng.standard_normal((4, 2))
    model = w @ w.T + NOISE * np.eye(4)
    squares = np.sum(data * np.linalg.solve(model, data.T).T, axis=1)
    want = -0.5 * np.mean(4 * np.log(2 * np.pi) + np.linalg.slogdet(model)[1] + squares)
    assert float(linear.log_likelihood(w, data.T @ data / 7, NOISE)) == pytest.approx(want)


def test_scale_identity():
    """Trace and Mahalanobis term, weighted, are c for every latent at every point."""
    for weights, active, _ in all_points(6):
        a, b, c = weights
        model = linear.solution(EIGENVALUES, NOISE, 6, as_weights(weights), active=active)
        means = jnp.sum(model.encoder**2 * jnp.asarray(EIGENVALUES)[None, :], axis=1)
        np.testing.assert_allclose(a * model.variance + b * means, c, rtol=0, atol=1e-14)


def test_a_rescaled_latent_trades_weights():
    """(a, b, c) and (c, c b / a, c) are one model in other units."""
    for a, b, c in ((4.0, 1.0, 1.0), (0.5, 3.0, 0.7)):
        unit = math.sqrt(c / a)
        one = linear.solution(EIGENVALUES, NOISE, 3, TermWeights(a, b, c))
        other = linear.solution(EIGENVALUES, NOISE, 3, TermWeights(c, c * b / a, c))
        np.testing.assert_allclose(one.decoder * unit, other.decoder, rtol=1e-13)
        np.testing.assert_allclose(one.encoder / unit, other.encoder, rtol=1e-13)
        np.testing.assert_allclose(one.variance / unit**2, other.variance, rtol=1e-13)


BETAS = (0.25, 0.9, 1.0, 2.0, 3.5)


@pytest.mark.parametrize("beta", BETAS)
def test_learned_noise_variance(beta):
    """Against a search over the noise variance of the deepest minimum."""
    weights = as_weights((2.0, 2.0, beta))

    def depth(log_noise):
        known = linear.minima(EIGENVALUES, np.exp(log_noise), 2, weights)
        return float(jnp.nanmin(jnp.where(known.stable, known.objective, jnp.nan)))

    noise = float(linear.noise_variance(EIGENVALUES, 2, beta))
    found = scipy.optimize.minimize_scalar(depth, bracket=(-3, 0.3), options={"xtol": 1e-10})
    assert noise == pytest.approx(math.exp(found.x), rel=1e-6)
    covariance = jnp.diag(jnp.asarray(EIGENVALUES))

    def objective(noise, model):
        return linear.parts(model, covariance, noise).objective(weights)

    model = linear.solution(EIGENVALUES, noise, 2, weights)
    assert abs(float(jax.grad(objective)(noise, model))) < 1e-12


def test_learned_noise_variance_without_a_minimum():
    assert float(linear.noise_variance([2.0, 1.0, 0.0], 2)) == 0
    assert float(linear.noise_variance([2.0, 1.0], 5, 0.5)) == 0
    # As many latents as dimensions: every variance up to the smallest eigenvalue is best.
    assert float(linear.noise_variance([2.0, 1.0], 5)) == 1
    # n - beta K would be negative for K = 2, which therefore is never reached.
    assert float(linear.noise_variance([2.0, 1.0], 2, 3.0)) == 1.5


def test_solution_follows_the_eigenvectors():
    rng = np.random.default_rng(1)
    root = rng.standard_normal((4, 4))
    values, vectors = np.linalg.eigh(root @ root.T)
    covariance = jnp.asarray(root @ root.T)
    model = linear.solution(values, 0.1, 2, eigenvectors=vectors)

    def objective(x):
        return linear.parts(LinearVAE(*x), covariance, 0.1).objective()

    slopes = jax.grad(objective)(tuple(model))
    assert max(float(jnp.max(jnp.abs(x))) for x in slopes) < 1e-12
    lengths = jnp.sum(model.decoder**2, axis=0)
    np.testing.assert_allclose(lengths, values[[3, 2]] - 0.1, rtol=1e-12)


def test_equal_eigenvalues():
    """Which of them are followed is free; nothing becomes nan."""
    values = [2.0, 2.0, 2.0, 0.1]
    known = linear.minima(values, NOISE, 2)
    np.testing.assert_array_equal(known.stable, [False, False, True])
    model = linear.solution(values, NOISE, 2)

    def objective(x):
        return linear.parts(LinearVAE(*x), jnp.diag(jnp.asarray(values)), NOISE).objective()

    assert all(float(jnp.max(jnp.abs(x))) < 1e-14 for x in jax.grad(objective)(tuple(model)))


def test_exactly_at_the_threshold_the_latent_stays_collapsed():
    known = linear.minima([0.5, 0.5], 0.5, 1)
    np.testing.assert_array_equal(known.stable, [True, False])
    assert np.all(np.isfinite(linear.solution([0.5, 0.5], 0.5, 1).variance))
    # An abrupt transition is over there: the collapsed latent is no longer a minimum.
    at = linear.minima([2.0], 0.5, 1, TermWeights(1.0, 4.0, 1.0))
    np.testing.assert_array_equal(at.stable, [False, True])


@pytest.mark.parametrize(
    ("weights", "collapsed", "active"),
    [((0, 1, 1), False, True), ((1, 0, 1), True, False), ((1, 1, 0), False, False)],
)
def test_weights_of_zero(weights, collapsed, active):
    """What has no stationary point is nan, and never a number."""
    points = linear.stationary_points(EIGENVALUES, 0.05, as_weights(weights))
    assert bool(points.collapsed.exists[0]) == collapsed
    assert bool(points.active.exists[0]) == active
    for branch, exists in ((points.collapsed, collapsed), (points.active, active)):
        for numbers in branch[:3]:
            assert bool(jnp.all(jnp.isfinite(numbers))) == exists
            assert bool(jnp.all(jnp.isnan(numbers))) != exists


def test_transforms_and_float32():
    with jax.enable_x64(False):
        values = jnp.asarray(EIGENVALUES, jnp.float32)
        many = jnp.stack([values, 2 * values])

        def variances(l, noise, b):
            return linear.solution(l, noise, 3, TermWeights(1.0, b, 1.0)).variance

        got = jax.jit(jax.vmap(variances, (0, None, None)))(many, 0.4, 8.0)
        slope = jax.grad(lambda l: jnp.sum(variances(l, 0.4, 8.0)))(values)
        nothing = jax.jit(linear.minima, static_argnums=2)(-values, 0.4, 3)
    assert got.dtype == jnp.float32
    want = [variances(np.asarray(l, float), 0.4, 8.0) for l in many]
    np.testing.assert_allclose(got, want, rtol=3e-6)
    step = 1e-6
    for i in range(len(EIGENVALUES)):
        up, down = (jnp.asarray(EIGENVALUES).at[i].add(s * step) for s in (1, -1))
        change = jnp.sum(variances(up, 0.4, 8.0) - variances(down, 0.4, 8.0)) / (2 * step)
        assert float(slope[i]) == pytest.approx(float(change), rel=1e-4, abs=1e-6)

    # What does not exist stays out of the gradient of what does; what is invalid does not.
    def depth(l):
        known = linear.minima(l, 0.4, 3, as_weights(BISTABLE))
        return jnp.min(jnp.where(known.stable, known.objective, jnp.inf))

    assert np.all(np.isfinite(jax.grad(depth)(jnp.asarray(EIGENVALUES))))
    invalid = jax.grad(lambda l: linear.minima(l, 0.4, 3).objective[0])(
        -jnp.asarray(EIGENVALUES)
    )
    assert np.all(np.isnan(invalid))
    assert not np.any(nothing.exists)
    assert np.all(np.isnan(nothing.objective))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: linear.minima([1.0, -2.0], 1.0, 1), "eigenvalues must be >= 0.*-2"),
        (lambda: linear.minima([[1.0]], 1.0, 1), r"vector.*\(1, 1\)"),
        (lambda: linear.minima([1.0], 0.0, 1), "noise_variance must be a number > 0; got 0"),
        (lambda: linear.minima([1.0], 1.0, 0), "latents must be a whole number >= 1; got 0"),
        (
            lambda: linear.stationary_points([1.0], 1.0, TermWeights(1.0, -1.0, 1.0)),
            "weights.mahalanobis must be a number >= 0; got -1",
        ),
        (
            lambda: linear.ppca([1.0, 2.0], 2),
            "latents must be fewer than the 2 dimensions.*got 2",
        ),
        (
            lambda: linear.solution([1.0, 2.0], 1.0, 1, eigenvectors=np.ones((2, 1))),
            r"eigenvectors has shape \(2, 1\); it must be \(2, 2\)",
        ),
        (
            lambda: linear.parts(
                LinearVAE(jnp.ones((3, 2)), jnp.ones((3, 2)), jnp.ones(2)), jnp.eye(3), 1.0
            ),
            r"encoder \(3, 2\).*\(n, k\), \(k, n\)",
        ),
    ],
)
def test_bad_input_is_one_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call()
