"""Two laws of a state-space model: of the observations, and of the states given them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from kljax import distribution, filtering, linalg, markov, matrices, paths, smoothing
from kljax._record import Parameter, param, record
from kljax.divergence import register_kl
from kljax.families import gauss_markov, state_space
from kljax.families.gauss_markov import GaussMarkov, MarkovTerms
from kljax.families.gaussian_mixes import DenseGaussian, register_dense
from kljax.families.state_space import LinearGaussianStateSpace
from kljax.filtering import Model
from kljax.markov import Chain, Parts, map_time
from kljax.structure import Covariance


@record
class LinearGaussianObservations(LinearGaussianStateSpace):
    """The distribution of the observations y_1, ..., y_T alone, the states integrated out.

    Takes the parameters of `LinearGaussianStateSpace`; an event has the shape (T, k). Models
    whose states differ by a change of coordinates have the same observations.
    """


@record
class LinearGaussianPosterior(LinearGaussianStateSpace):
    """The distribution of the states x_1, ..., x_T given the observations: smoothing.

    Takes the parameters of `LinearGaussianStateSpace`; an event has the shape (T, d). Its
    divergence from a `GaussMarkov` with the same chain is the KL of a state-space ELBO.

    Attributes:
        observations: y_1, ..., y_T, shape (..., T, k).
    """

    observations: Parameter = param("T k", default=None, kw_only=True)


def _model(x: LinearGaussianStateSpace) -> Model:
    """The model; its noise is nan if a covariance is not positive definite.

    A filter meets them in sums alone, which may be positive definite all the same.
    """
    found = state_space.model(x)
    half = markov.half_log_det(found.chain)
    half = half + found.noise.half_log_det(found.noise.factorize())
    mark = jnp.where(half == half, 1, jnp.nan).astype(half.dtype)
    return found._replace(noise=jax.tree.map(lambda value: value * mark, found.noise))


# ---- observations ---------------------------------------------------------------------------


def _parts(q: LinearGaussianObservations, p: LinearGaussianObservations) -> Parts:
    return filtering.compare(_model(q), _model(p))


def _size(x: LinearGaussianStateSpace) -> int:
    """T k."""
    return (len(x.transition_offset) + 1) * len(x.emission_offset)


def _kl(q: LinearGaussianObservations, p: LinearGaussianObservations) -> Array:
    """KL = sum_t E_q KL(y_t | y_1, ..., y_(t-1)), by the innovations of both filters."""
    parts = _parts(q, p)
    return jnp.sum(parts.dispersion) + jnp.sum(parts.location)


def _terms(q: LinearGaussianObservations, p: LinearGaussianObservations) -> MarkovTerms:
    return gauss_markov.terms(_parts(q, p), _size(q))


def _filtered(x: LinearGaussianObservations, y: Array) -> tuple[Array, Array]:
    """The halves of log |S| and of the square of y."""
    if len(y) != len(x.transition_offset) + 1:
        raise ValueError(
            f"x has {len(y)} observations but the chain has {len(x.transition_offset)} "
            "transitions; there is one observation more than transitions."
        )

    def of(residual: Array, covariance: Array) -> tuple[Array, Array]:
        factored = matrices.factorize(Covariance(covariance))
        half = factored.structure.half_log_det(factored.factor)
        return half, matrices.location(residual, factored)

    halves, squares = map_time(of, *filtering.innovations(_model(x), y))
    return jnp.sum(halves), jnp.sum(squares)


def _half_log_normalizer(x: LinearGaussianObservations) -> Array:
    y = jnp.zeros((len(x.transition_offset) + 1, len(x.emission_offset)), x.initial_loc.dtype)
    return markov.log_normalizer(_size(x), _filtered(x, y)[0])


def _cross_entropy(q: LinearGaussianObservations, p: LinearGaussianObservations) -> Array:
    found = _terms(q, p)
    return _half_log_normalizer(p) + (0.5 * found.trace + found.location)


def _log_prob(x: LinearGaussianObservations, y: Array) -> Array:
    half, square = _filtered(x, y)
    return -(markov.log_normalizer(_size(x), half) + square)


def _seen(rule):
    """A rule of the joint law, cut down to the observations."""
    return lambda x, *rest: rule(x, *rest)[:, len(x.initial_loc) :]


def _covariance(x: LinearGaussianObservations) -> Array:
    path = markov.covariance(gauss_markov.chain(x))
    eye = jnp.eye(len(x.transition_offset) + 1, dtype=path.dtype)
    emit = jnp.kron(eye, x.emission_matrix)
    seen = linalg.matmul(linalg.matmul(emit, path), emit.T)
    return seen + jnp.kron(eye, markov.dense(state_space.emission_noise(x)))


distribution.register_distribution(
    LinearGaussianObservations,
    log_prob=_log_prob,
    sample=_seen(state_space._sample),
    entropy=lambda x: 0.5 * _size(x) + _half_log_normalizer(x),
    mean=_seen(state_space._mean),
    variance=_seen(state_space._variance),
    covariance=_covariance,
    event="T k",
)

register_kl(
    LinearGaussianObservations,
    LinearGaussianObservations,
    terms=_terms,
    cross_entropy=_cross_entropy,
    cost="O(T (d + k)^3)",
)(_kl)

register_dense(
    LinearGaussianObservations,
    lambda x: gauss_markov.dense_path(
        paths.of_observations(_model(x)), len(x.transition_offset) + 1
    ),
)


# ---- states given observations --------------------------------------------------------------


def _checked(x: LinearGaussianPosterior) -> LinearGaussianPosterior:
    if len(x.observations) != len(x.transition_offset) + 1:
        raise ValueError(
            f"observations has {len(x.observations)} time steps but the chain has "
            f"{len(x.transition_offset)} transitions; there is one observation more than "
            "transitions."
        )
    return x


def _chain(x: LinearGaussianPosterior | GaussMarkov) -> Chain:
    if isinstance(x, GaussMarkov):
        return gauss_markov.chain(x)
    return smoothing.chain(_model(_checked(x)), x.observations)


def _posterior_parts(q: LinearGaussianPosterior, p: GaussMarkov) -> Parts:
    return smoothing.compare(_model(_checked(q)), q.observations, gauss_markov.chain(p))


def _posterior_kl(q: LinearGaussianPosterior, p: GaussMarkov) -> Array:
    """KL = KL(x_1) + sum_t E_q KL(x_(t+1) | x_t), given all observations."""
    parts = _posterior_parts(q, p)
    return jnp.sum(parts.dispersion) + jnp.sum(parts.location)


def _posterior_terms(q: LinearGaussianPosterior, p: GaussMarkov) -> MarkovTerms:
    return gauss_markov.terms(_posterior_parts(q, p), gauss_markov.size(gauss_markov.chain(p)))


def _posterior_cross_entropy(q: LinearGaussianPosterior, p: GaussMarkov) -> Array:
    found = _posterior_terms(q, p)
    normalizer = gauss_markov.half_log_normalizer(gauss_markov.chain(p))
    return normalizer + (0.5 * found.trace + found.location)


def _moments(x: LinearGaussianPosterior) -> tuple[Array, Array]:
    found = smoothing.posterior(_model(_checked(x)), x.observations)
    assert found.deviation.covariance is not None
    return found.prior_loc + found.deviation.loc, found.deviation.covariance


def _posterior_log_prob(x: LinearGaussianPosterior, point: Array) -> Array:
    given = _chain(x)
    return -(gauss_markov.half_log_normalizer(given) + markov.half_square(given, point))


def _posterior_entropy(x: LinearGaussianPosterior) -> Array:
    given = _chain(x)
    return 0.5 * gauss_markov.size(given) + gauss_markov.half_log_normalizer(given)


distribution.register_distribution(
    LinearGaussianPosterior,
    log_prob=_posterior_log_prob,
    sample=lambda x, key: markov.sample(_chain(x), key),
    entropy=_posterior_entropy,
    mean=lambda x: _moments(x)[0],
    variance=lambda x: jax.vmap(linalg.diagonal)(_moments(x)[1]),
    covariance=lambda x: markov.covariance(_chain(x)),
    event="T d",
)

register_kl(
    LinearGaussianPosterior,
    GaussMarkov,
    terms=_posterior_terms,
    cross_entropy=_posterior_cross_entropy,
    cost="O(T (d + k)^3)",
)(_posterior_kl)


def _posterior_dense(x: LinearGaussianPosterior) -> DenseGaussian:
    law = paths.of_states_given_observations(_model(_checked(x)), x.observations)
    return gauss_markov.dense_path(law, len(x.observations))


register_dense(LinearGaussianPosterior, _posterior_dense)
