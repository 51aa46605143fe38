"""What every closed form must satisfy, as functions that raise AssertionError.

The tests run them on the library; the sabotage test runs them on a library with a planted
mistake and expects them to fail.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

import kljax
from cases import Parametrization, draw, moments, rng_for

Pair = tuple[Parametrization, Parametrization]
Moments = tuple[jax.Array, jax.Array]


def sample_pair(pair: Pair, name: str, **options: Any) -> tuple[Any, Any]:
    rng = rng_for(name, *pair)
    return draw(pair[0], rng, **options), draw(pair[1], rng, **options)


# ---- exact expectations ---------------------------------------------------------------------


def cubature(loc: np.ndarray, factor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points and weights of 3-node Gauss-Hermite cubature: exact for quadratic functions."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    weights = weights / weights.sum()
    d = len(loc)
    grid = np.array(list(itertools.product(nodes, repeat=d)))
    products = np.array([np.prod(w) for w in itertools.product(weights, repeat=d)])
    return loc + grid @ factor.T, products


def definition(q: Any, p: Any) -> float:
    """E_q[log q - log p] with SciPy's densities, in float64."""
    (q_loc, q_covariance), (p_loc, p_covariance) = moments(q), moments(p)
    points, weights = cubature(q_loc, np.linalg.cholesky(q_covariance))
    log_q = scipy.stats.multivariate_normal(q_loc, q_covariance).logpdf(points)
    log_p = scipy.stats.multivariate_normal(p_loc, p_covariance).logpdf(points)
    return float(np.sum(weights * (np.atleast_1d(log_q) - np.atleast_1d(log_p))))


class Evaluated(NamedTuple):
    """A pair in float64 with everything that is asked of it."""

    q: Any
    p: Any
    kl: Any
    terms: Any
    gradient: Any


_value_and_gradient = jax.value_and_grad(kljax.kl_divergence, argnums=(0, 1))


@functools.cache
def evaluated(pair: Pair) -> Evaluated:
    """Op by op: so every operation is compiled once for all pairs, not a program for each."""
    with jax.enable_x64(True):
        q, p = sample_pair(pair, "evaluated", dtype=np.float64, d=2)
        with jax.disable_jit():
            kl, gradient = _value_and_gradient(q, p)
            terms = kljax.kl_terms(q, p)
    return Evaluated(q, p, kl, terms, gradient)


def check_traced(pair: Pair) -> None:
    """Jit takes the pair as well; how accurate compiled programs are is in the table."""
    q, p, kl, *_ = evaluated(pair)
    with jax.enable_x64(True):
        traced = jax.eval_shape(kljax.kl_divergence, q, p)
    assert (traced.shape, traced.dtype) == (kl.shape, kl.dtype)


def check_definition(pair: Pair) -> None:
    """The closed form is the expectation that defines the divergence."""
    got = evaluated(pair)
    np.testing.assert_allclose(float(got.kl), definition(got.q, got.p), rtol=1e-10)


def _mean_and_covariance(x: Any) -> Moments:
    loc = jnp.atleast_1d(x.loc)
    if getattr(x, "scale_tril", None) is not None:
        # What is above the diagonal of a factor has a gradient of 0.
        factor = jnp.tril(x.scale_tril)
        return loc, factor @ factor.T
    if getattr(x, "covariance_matrix", None) is not None:
        return loc, (x.covariance_matrix + x.covariance_matrix.T) / 2
    if getattr(x, "precision_matrix", None) is not None:
        return loc, jnp.linalg.inv((x.precision_matrix + x.precision_matrix.T) / 2)
    if x.log_variance is not None:
        return loc, jnp.diag(jnp.exp(jnp.atleast_1d(x.log_variance)))
    if x.variance is not None:
        return loc, jnp.diag(jnp.atleast_1d(x.variance))
    scale = x.scale if isinstance(x, kljax.Normal) else x.scale_diag
    return loc, jnp.diag(jnp.atleast_1d(scale) ** 2)


def _by_moments(q: Moments, p: Moments) -> jax.Array:
    """The definition again, differentiable: cubature and densities written with jnp.linalg."""

    def log_density(loc: jax.Array, covariance: jax.Array, x: jax.Array) -> jax.Array:
        delta = x - loc
        square = delta @ jnp.linalg.solve(covariance, delta)
        return -0.5 * (square + jnp.linalg.slogdet(2 * jnp.pi * covariance)[1])

    d = q[0].shape[0]
    grid, weights = cubature(np.zeros(d), np.eye(d))

    def integrand(node: jax.Array) -> jax.Array:
        x = q[0] + jnp.linalg.cholesky(q[1]) @ node
        return log_density(*q, x) - log_density(*p, x)

    return jnp.asarray(weights) @ jax.vmap(integrand)(jnp.asarray(grid))


# By the moments, then from them to the parameters: so all pairs share a compiled program.
_gradient_by_moments = jax.jit(jax.grad(_by_moments, argnums=(0, 1)))


@jax.jit
def _to_parameters(x: Any, by_moments: Moments) -> Any:
    _, pull_back = jax.vjp(_mean_and_covariance, x)
    return pull_back(by_moments)[0]


def gradient_of_definition(q: Any, p: Any) -> tuple[Any, Any]:
    """In float64, by the parameters of q and of p."""
    with jax.enable_x64(True):
        q, p = jax.tree.map(lambda x: x.astype(jnp.float64), (q, p))
        by_q, by_p = _gradient_by_moments(_mean_and_covariance(q), _mean_and_covariance(p))
        return _to_parameters(q, by_q), _to_parameters(p, by_p)


def hessian_of_definition(q: Any, p: Any) -> Any:
    """In float64, by the parameters of q and of p, as `jax.hessian` returns it."""

    def kl(q: Any, p: Any) -> jax.Array:
        return _by_moments(_mean_and_covariance(q), _mean_and_covariance(p))

    with jax.enable_x64(True):
        q, p = jax.tree.map(lambda x: x.astype(jnp.float64), (q, p))
        return jax.jit(jax.hessian(kl, argnums=(0, 1)))(q, p)


def check_gradient(pair: Pair) -> None:
    """Every derivative is that of the definition."""
    q, p, *_, gradient = evaluated(pair)
    want = gradient_of_definition(q, p)
    chex.assert_trees_all_close(gradient, want, rtol=1e-8, atol=1e-10)


# ---- the parts ------------------------------------------------------------------------------


def check_terms(pair: Pair) -> None:
    """The four terms add up to the divergence; each is what its name says."""
    q, p, kl, terms, _ = evaluated(pair)
    (q_loc, q_covariance), (p_loc, p_covariance) = moments(q), moments(p)
    delta = q_loc - p_loc
    kl, terms = jax.tree.map(float, (kl, terms))
    precision = np.linalg.inv(p_covariance)
    log_det = np.linalg.slogdet(p_covariance)[1] - np.linalg.slogdet(q_covariance)[1]
    close = {"rtol": 1e-9, "atol": 1e-10}
    np.testing.assert_allclose(terms.trace, np.trace(precision @ q_covariance), **close)
    np.testing.assert_allclose(terms.mahalanobis, delta @ precision @ delta, **close)
    np.testing.assert_allclose(terms.dimension, len(delta))
    np.testing.assert_allclose(terms.log_det, log_det, **close)
    sum_of_four = terms.trace + terms.mahalanobis - terms.dimension + terms.log_det
    np.testing.assert_allclose(sum_of_four / 2, kl, **close)
    np.testing.assert_allclose(terms.dispersion + terms.location, kl, rtol=1e-14)
    assert terms.dispersion >= 0
    assert terms.location >= 0


def check_nonnegative(pair: Pair) -> None:
    """Positive, also at separations where a sum of cancelling terms is noise."""
    for separation in (1e-1, 1e-3, 1e-5):
        # The same numbers behind both, so that a mixed pair is near too.
        q, p = (draw(which, rng_for("nonnegative", separation), batch=(20,)) for which in pair)
        grow = np.float32(1 + separation)
        q = jax.tree.map(lambda x, grow=grow: x * grow, q)
        kl = np.asarray(kljax.kl_divergence(q, p))
        assert np.all(kl > 0), kl.min()


def check_equal(pair: Pair) -> None:
    """Exactly 0, with a gradient of exactly 0, at q = p."""
    p = draw(pair[1], rng_for("equal", *pair), batch=(5,))
    value, gradient = jax.jit(jax.vmap(_value_and_gradient))(p, p)
    for x in jax.tree.leaves((value, gradient)):
        np.testing.assert_array_equal(np.asarray(x), 0)


# ---- samples --------------------------------------------------------------------------------

SAMPLES = 100_000
# Two-sided normal quantile for a family-wise error of 1e-6 over a thousand comparisons.
Z_LIMIT = 6.1


def check_sampled(pair: Pair) -> None:
    """Log q - log p at samples of q has the closed form as its mean, within its known error.

    The variance of the log ratio is known exactly: |M^T M - I|^2 / 2 + |M^T y|^2 with
    M = C_p^-1 C_q and y = C_p^-1 (m_q - m_p). So the bound is not estimated, and the test
    asserts that it would see a mistake of a tenth of the divergence.
    """
    q, p = sample_pair(pair, "sampled")
    (q_loc, q_covariance), (p_loc, p_covariance) = moments(q), moments(p)
    root = np.linalg.cholesky(p_covariance)
    m = np.linalg.solve(root, np.linalg.cholesky(q_covariance))
    y = np.linalg.solve(root, q_loc - p_loc)
    variance = 0.5 * np.sum((m.T @ m - np.eye(len(m))) ** 2) + np.sum((m.T @ y) ** 2)
    error = np.sqrt(variance / SAMPLES)

    kl = float(kljax.kl_divergence(q, p))
    assert (Z_LIMIT + 3.1) * error < 0.1 * definition(q, p), "the pair has no power"
    x = kljax.sample(q, jax.random.key(20), SAMPLES)
    ratio = kljax.log_prob(q, x) - kljax.log_prob(p, x)
    estimate = float(np.mean(np.asarray(ratio, np.float64)))
    assert abs(estimate - kl) < Z_LIMIT * error, (estimate, kl, error)


TRACED = {"traced", "nonnegative", "equal", "sampled"}
"""The checks that leave traced or compiled programs behind."""

CHECKS = {
    check.__name__.removeprefix("check_"): check
    for check in (
        check_definition,
        check_gradient,
        check_terms,
        check_traced,
        check_nonnegative,
        check_equal,
        check_sampled,
    )
}
