"""The Gauss-Markov chain: a Gaussian path whose next state depends on the present one alone."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array

from kljax import distribution, markov, paths
from kljax._record import Parameter, param, record
from kljax.divergence import register_kl
from kljax.doubled import Doubled
from kljax.families.gaussian import GaussianTerms
from kljax.families.gaussian_mixes import DenseGaussian, register_dense
from kljax.markov import Chain, Parts
from kljax.paths import Law
from kljax.structure import Covariance, ScaleTril, Structure


@record
class GaussMarkov:
    """The distribution of a path x_1, ..., x_T whose next state depends on the present alone.

        x_1 ~ N(initial_loc, initial_covariance),
        x_(t+1) ~ N(transition_matrix[t] x_t + transition_offset[t], transition_covariance[t]).

    A chain with T - 1 equal steps is `jnp.broadcast_to(matrix, (T - 1, d, d))`; under jit that
    makes no copy, and its gradient is summed over the steps.

    Attributes:
        initial_loc: mean of x_1, shape (..., d).
        initial_covariance: symmetric positive definite, shape (..., d, d).
        transition_matrix: shape (..., T - 1, d, d).
        transition_offset: shape (..., T - 1, d).
        transition_covariance: symmetric positive definite, shape (..., T - 1, d, d).
        initial_scale_tril: lower triangular factor, instead of `initial_covariance`.
        transition_scale_tril: lower triangular factors, instead of `transition_covariance`.
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


@record
class MarkovTerms(GaussianTerms):
    """The parts of the KL of two paths: those of `GaussianTerms`, and when they arise.

    Attributes:
        per_step: KL of the first state, then the expected KL of every transition, in nats,
            shape (T,); they add up to the divergence.
    """

    per_step: Array = param("T")


def structure(covariance: Array | None, scale_tril: Array | None) -> Structure:
    """Of one matrix or of a stack."""
    if covariance is not None:
        return Covariance(0.5 * covariance + 0.5 * jnp.swapaxes(covariance, -1, -2))
    assert scale_tril is not None, "a record without a spread is refused before any rule"
    return ScaleTril(scale_tril)


def chain(x: Any) -> Chain:
    """The conditional laws of a record that has the fields of `GaussMarkov`."""
    return Chain(
        x.initial_loc,
        structure(x.initial_covariance, x.initial_scale_tril),
        x.transition_matrix,
        x.transition_offset,
        structure(x.transition_covariance, x.transition_scale_tril),
    )


def size(x: Chain) -> int:
    """T d."""
    return (x.offset.shape[0] + 1) * x.initial_loc.shape[0]


def terms(parts: Parts, dimension: int) -> MarkovTerms:
    """The record of the parts of every step."""
    trace, location = jnp.sum(parts.trace), jnp.sum(parts.location)
    return MarkovTerms(
        trace=trace,
        mahalanobis=2 * location,
        dimension=jnp.full_like(trace, dimension),
        log_det=jnp.sum(parts.log_det),
        dispersion=jnp.sum(parts.dispersion),
        location=location,
        per_step=parts.dispersion + parts.location,
    )


def _parts(q: GaussMarkov, p: GaussMarkov) -> Parts:
    of_q = chain(q)
    return markov.compare(of_q, chain(p), markov.marginals(of_q))


def _kl(q: GaussMarkov, p: GaussMarkov) -> Array:
    """KL = KL(x_1) + sum_t E_q KL(x_(t+1) | x_t)."""
    parts = _parts(q, p)
    return jnp.sum(parts.dispersion) + jnp.sum(parts.location)


def _terms(q: GaussMarkov, p: GaussMarkov) -> MarkovTerms:
    return terms(_parts(q, p), size(chain(q)))


def half_log_normalizer(x: Chain) -> Array:
    """(T d log 2 pi + log |S|) / 2."""
    return markov.log_normalizer(size(x), markov.half_log_det(x))


def _cross_entropy(q: GaussMarkov, p: GaussMarkov) -> Array:
    found = _terms(q, p)
    return half_log_normalizer(chain(p)) + (0.5 * found.trace + found.location)


def _log_prob(x: GaussMarkov, point: Array) -> Array:
    of_x = chain(x)
    if len(point) != len(of_x.offset) + 1:
        raise ValueError(
            f"x has {len(point)} time steps but the chain has {len(of_x.offset)} transitions; "
            "a path has one step more than transitions."
        )
    return -(half_log_normalizer(of_x) + markov.half_square(of_x, point))


def _entropy(x: GaussMarkov) -> Array:
    of_x = chain(x)
    return 0.5 * size(of_x) + half_log_normalizer(of_x)


distribution.register_distribution(
    GaussMarkov,
    log_prob=_log_prob,
    sample=lambda x, key: markov.sample(chain(x), key),
    entropy=_entropy,
    mean=lambda x: markov.marginals(chain(x)).loc,
    variance=lambda x: markov.variance(chain(x)),
    covariance=lambda x: markov.covariance(chain(x)),
    event="T d",
)

register_kl(
    GaussMarkov, GaussMarkov, terms=_terms, cross_entropy=_cross_entropy, cost="O(T d^3)"
)(_kl)


def dense_path(law: Law, length: int) -> DenseGaussian:
    """The law of a path of this length, its mean (T, d)."""
    return DenseGaussian(Doubled(*(x.reshape(length, -1) for x in law.loc)), law.covariance)


def _dense(x: GaussMarkov) -> DenseGaussian:
    of_x = chain(x)
    return dense_path(paths.of_chain(of_x), len(of_x.offset) + 1)


register_dense(GaussMarkov, _dense)
