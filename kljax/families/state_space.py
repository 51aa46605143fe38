"""Linear-Gaussian state-space models: a hidden Gauss-Markov chain, observed with noise."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from kljax import distribution, linalg, markov, matrices, paths
from kljax._record import Parameter, param, record
from kljax.divergence import register_kl
from kljax.families import gauss_markov
from kljax.families.gauss_markov import MarkovTerms
from kljax.families.gaussian_mixes import register_dense
from kljax.filtering import Model
from kljax.markov import Parts, Step, map_time
from kljax.structure import Structure


@record
class LinearGaussianStateSpace:
    """The joint distribution of states x_1, ..., x_T and observations y_1, ..., y_T.

        x_1 ~ N(initial_loc, initial_covariance),
        x_(t+1) ~ N(transition_matrix[t] x_t + transition_offset[t], transition_covariance[t]),
        y_t ~ N(emission_matrix x_t + emission_offset, emission_covariance).

    An event is a path of (x_t, y_t) side by side, shape (T, d + k). `GaussMarkov` with the
    same numbers is the law of the states.

    Attributes:
        initial_loc: mean of x_1, shape (..., d).
        initial_covariance: symmetric positive definite, shape (..., d, d).
        transition_matrix: shape (..., T - 1, d, d).
        transition_offset: shape (..., T - 1, d).
        transition_covariance: symmetric positive definite, shape (..., T - 1, d, d).
        emission_matrix: shape (..., k, d).
        emission_offset: shape (..., k).
        emission_covariance: symmetric positive definite, shape (..., k, k).
        initial_scale_tril: lower triangular factor, instead of `initial_covariance`.
        transition_scale_tril: lower triangular factors, instead of `transition_covariance`.
        emission_scale_tril: lower triangular factor, instead of `emission_covariance`.
    """

    initial_loc: Parameter = param("d")
    initial_covariance: Parameter = param(
        "d d", constraint="positive_definite", one_of="initial", default=None
    )
    transition_matrix: Parameter = param("T-1 d d", default=None)
    transition_offset: Parameter = param("T-1 d", default=None)
    transition_covariance: Parameter = param(
        "T-1 d d", constraint="positive_definite", one_of="transition", default=None
    )
    emission_matrix: Parameter = param("k d", default=None)
    emission_offset: Parameter = param("k", default=None)
    emission_covariance: Parameter = param(
        "k k", constraint="positive_definite", one_of="emission", default=None
    )
    initial_scale_tril: Parameter = param(
        "d d", constraint="lower_triangular", one_of="initial", default=None, kw_only=True
    )
    transition_scale_tril: Parameter = param(
        "T-1 d d",
        constraint="lower_triangular",
        one_of="transition",
        default=None,
        kw_only=True,
    )
    emission_scale_tril: Parameter = param(
        "k k", constraint="lower_triangular", one_of="emission", default=None, kw_only=True
    )


@record
class StateSpaceTerms(MarkovTerms):
    """The parts of the KL of two state-space models: the states', and the observations' own.

    Attributes:
        per_emission: the expected KL of y_t given x_t, in nats, shape (T,); with `per_step`
            they add up to the divergence.
    """

    per_emission: Array = param("T")


def model(x: LinearGaussianStateSpace) -> Model:
    """Its chain and how it is seen."""
    return Model(gauss_markov.chain(x), x.emission_matrix, x.emission_offset, emission_noise(x))


def emission_noise(x: LinearGaussianStateSpace) -> Structure:
    return gauss_markov.structure(x.emission_covariance, x.emission_scale_tril)


def _parts(q: LinearGaussianStateSpace, p: LinearGaussianStateSpace) -> tuple[Parts, Parts]:
    """Of the states, and of the observations given them."""
    of_q = gauss_markov.chain(q)
    marginals = markov.marginals(of_q)
    of_p = matrices.factorize(emission_noise(p))
    noise = matrices.relative_quotient(matrices.factorize(emission_noise(q)), of_p)
    drift = q.emission_matrix - p.emission_matrix

    def emission(loc: Array, covariance: Array) -> Parts:
        shift = markov.times(drift, loc) + (q.emission_offset - p.emission_offset)
        return markov.parts(Step(noise, of_p, shift, drift, covariance))

    states = markov.compare(of_q, gauss_markov.chain(p), marginals)
    return states, map_time(emission, *marginals)


def _kl(q: LinearGaussianStateSpace, p: LinearGaussianStateSpace) -> Array:
    """KL = KL of the states + sum_t E_q KL(y_t | x_t)."""
    return sum(
        (jnp.sum(x.dispersion) + jnp.sum(x.location) for x in _parts(q, p)),
        start=jnp.zeros((), q.initial_loc.dtype),
    )


def _dimension(x: LinearGaussianStateSpace) -> int:
    """T (d + k)."""
    size = gauss_markov.size(gauss_markov.chain(x))
    return size + (len(x.transition_offset) + 1) * len(x.emission_offset)


def _terms(q: LinearGaussianStateSpace, p: LinearGaussianStateSpace) -> StateSpaceTerms:
    states, emissions = _parts(q, p)
    both = jax.tree.map(lambda *x: jnp.concatenate(x), states, emissions)
    found = gauss_markov.terms(both, _dimension(q))
    length = len(states.dispersion)
    fields = {name: getattr(found, name) for name in vars(found) if name != "per_step"}
    return StateSpaceTerms(
        **fields, per_step=found.per_step[:length], per_emission=found.per_step[length:]
    )


def _half_log_normalizer(x: LinearGaussianStateSpace) -> Array:
    emission = emission_noise(x)
    of_emission = emission.half_log_det(emission.factorize())
    half = markov.half_log_det(gauss_markov.chain(x))
    half = half + (len(x.transition_offset) + 1) * of_emission
    return markov.log_normalizer(_dimension(x), half)


def _cross_entropy(q: LinearGaussianStateSpace, p: LinearGaussianStateSpace) -> Array:
    found = _terms(q, p)
    return _half_log_normalizer(p) + (0.5 * found.trace + found.location)


def _entropy(x: LinearGaussianStateSpace) -> Array:
    return 0.5 * _dimension(x) + _half_log_normalizer(x)


def _log_prob(x: LinearGaussianStateSpace, point: Array) -> Array:
    length, size = len(x.transition_offset) + 1, len(x.initial_loc)
    if point.shape != (length, size + len(x.emission_offset)):
        raise ValueError(
            f"x has the event shape {point.shape}; states and observations side by side have "
            f"{(length, size + len(x.emission_offset))}, (T, d + k)."
        )
    states, observations = point[:, :size], point[:, size:]
    of_emission = matrices.factorize(emission_noise(x))

    def emission(state: Array, observation: Array) -> Array:
        mean = markov.times(x.emission_matrix, state) + x.emission_offset
        return matrices.location(observation - mean, of_emission)

    half_square = markov.half_square(gauss_markov.chain(x), states)
    half_square = half_square + jnp.sum(map_time(emission, states, observations))
    return -(_half_log_normalizer(x) + half_square)


def _sample(x: LinearGaussianStateSpace, key: Array) -> Array:
    of_states, of_noise = jax.random.split(key)
    states = markov.sample(gauss_markov.chain(x), of_states)
    emission = emission_noise(x)
    shape = (len(states), len(x.emission_offset))
    noise = jax.random.normal(of_noise, shape, states.dtype)
    noise = emission.color(emission.factorize(), noise.T).T
    return jnp.concatenate([states, _emit(x, states) + noise], axis=1)


def _emit(x: LinearGaussianStateSpace, states: Array) -> Array:
    """Mean observations of (T, d) states."""
    return linalg.matmul(states, x.emission_matrix.T) + x.emission_offset[None, :]


def _mean(x: LinearGaussianStateSpace) -> Array:
    states = markov.marginals(gauss_markov.chain(x)).loc
    return jnp.concatenate([states, _emit(x, states)], axis=1)


def _variance(x: LinearGaussianStateSpace) -> Array:
    own = markov.dense(emission_noise(x))

    def of(covariance: Array) -> Array:
        seen = linalg.matmul(linalg.matmul(x.emission_matrix, covariance), x.emission_matrix.T)
        return jnp.concatenate([linalg.diagonal(covariance), linalg.diagonal(seen + own)])

    return map_time(of, markov.marginals(gauss_markov.chain(x)).covariance)


def _covariance(x: LinearGaussianStateSpace) -> Array:
    """(T (d + k), T (d + k)), time by time, states before observations."""
    length, size, seen = (
        len(x.transition_offset) + 1,
        len(x.initial_loc),
        len(x.emission_offset),
    )
    path = markov.covariance(gauss_markov.chain(x))
    emit = jnp.concatenate([jnp.eye(size, dtype=path.dtype), x.emission_matrix])
    emit = jnp.kron(jnp.eye(length, dtype=path.dtype), emit)
    own = jnp.zeros((size + seen, size + seen), path.dtype)
    own = own.at[size:, size:].set(markov.dense(emission_noise(x)))
    both = linalg.matmul(linalg.matmul(emit, path), emit.T)
    return both + jnp.kron(jnp.eye(length, dtype=path.dtype), own)


distribution.register_distribution(
    LinearGaussianStateSpace,
    log_prob=_log_prob,
    sample=_sample,
    entropy=_entropy,
    mean=_mean,
    variance=_variance,
    covariance=_covariance,
    event="T d+k",
)

register_kl(
    LinearGaussianStateSpace,
    LinearGaussianStateSpace,
    terms=_terms,
    cross_entropy=_cross_entropy,
    cost="O(T (d + k)^3)",
)(_kl)

register_dense(
    LinearGaussianStateSpace,
    lambda x: gauss_markov.dense_path(
        paths.of_states_and_observations(model(x)), len(x.transition_offset) + 1
    ),
)
