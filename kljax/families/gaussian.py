"""Gaussians: KL(q ‖ p) = (tr(S_p^-1 S_q) + |m_q - m_p|^2_p - d + log |S_p| - log |S_q|) / 2.

The divergence is evaluated as the sum of two non-negative groups (Kullback 1959),

    dispersion = (trace - dimension + log_det) / 2     0 only for equal covariances
    location   = mahalanobis / 2                       0 only for equal means

never as the sum of the four terms, which cancel where q is almost p.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array

from kljax import distribution, structure
from kljax._record import param, record
from kljax.structure import (
    Covariance,
    Diagonal,
    Factored,
    LogVariance,
    Precision,
    Scale,
    ScaleTril,
    Variance,
)
from kljax.divergence import register_kl

_LOG_2PI = math.log(2 * math.pi)


@record
class Normal:
    """The normal distribution of a real number, N(loc, scale^2).

    Attributes:
        loc: mean, shape (...).
        scale: standard deviation > 0, shape (...).
        log_variance: log(scale^2), instead of `scale`.
        variance: scale^2, instead of `scale`.
    """

    loc: Array = param()
    scale: Array | None = param(constraint="positive", one_of="spread")
    log_variance: Array | None = param(one_of="spread", keyword=True)
    variance: Array | None = param(constraint="positive", one_of="spread", keyword=True)


@record
class MultivariateNormalDiag:
    """The normal distribution of a vector with independent coordinates.

    Attributes:
        loc: mean, shape (..., d).
        scale_diag: standard deviations > 0, shape (..., d).
        log_variance: log(scale_diag^2), instead of `scale_diag`.
        variance: scale_diag^2, instead of `scale_diag`.
    """

    loc: Array = param("d")
    scale_diag: Array | None = param("d", constraint="positive", one_of="spread")
    log_variance: Array | None = param("d", one_of="spread", keyword=True)
    variance: Array | None = param(
        "d", constraint="positive", one_of="spread", keyword=True
    )


@record
class MultivariateNormal:
    """The normal distribution of a vector, N(loc, scale_tril scale_tril^T).

    Attributes:
        loc: mean, shape (..., d).
        scale_tril: lower triangular Cholesky factor of the covariance matrix, with a
            positive diagonal, shape (..., d, d).
        covariance_matrix: symmetric positive definite, instead of `scale_tril`.
        precision_matrix: inverse of the covariance matrix, instead of `scale_tril`.
    """

    loc: Array = param("d")
    scale_tril: Array | None = param(
        "d d", constraint="lower_triangular", one_of="spread"
    )
    covariance_matrix: Array | None = param(
        "d d", constraint="positive_definite", one_of="spread", keyword=True
    )
    precision_matrix: Array | None = param(
        "d d", constraint="positive_definite", one_of="spread", keyword=True
    )


def standard_normal(d: int, dtype: jax.typing.DTypeLike = jnp.float32) -> MultivariateNormalDiag:
    """N(0, I) of d coordinates, the usual prior of a VAE."""
    return MultivariateNormalDiag(jnp.zeros(d, dtype), jnp.ones(d, dtype))


@record
class GaussianTerms:
    """The parts of a Gaussian KL; KL = (trace + mahalanobis - dimension + log_det) / 2.

    Attributes:
        trace: tr(S_p^-1 S_q).
        mahalanobis: (m_q - m_p)^T S_p^-1 (m_q - m_p).
        dimension: d.
        log_det: log |S_p| - log |S_q|.
        dispersion: (trace - dimension + log_det) / 2 >= 0, computed without cancellation.
        location: mahalanobis / 2 >= 0.
    """

    trace: Array = param()
    mahalanobis: Array = param()
    dimension: Array = param()
    log_det: Array = param()
    dispersion: Array = param()
    location: Array = param()

    @property
    def total(self) -> Array:
        """KL(q ‖ p) in nats: dispersion + location."""
        return self.dispersion + self.location


Gaussian = Normal | MultivariateNormalDiag | MultivariateNormal


def _structure(x: Gaussian) -> structure.Structure:
    """The covariance of one event, in the parametrization that was given."""
    match x:
        case Normal(scale=s) if s is not None:
            return Scale(s)
        case MultivariateNormalDiag(scale_diag=s) if s is not None:
            return Scale(s)
        case MultivariateNormal(scale_tril=s) if s is not None:
            return ScaleTril(s)
        case MultivariateNormal(covariance_matrix=s) if s is not None:
            return Covariance(s)
        case MultivariateNormal(precision_matrix=s):
            assert s is not None
            return Precision(s)
        case _ if x.log_variance is not None:
            return LogVariance(x.log_variance)
        case _:
            assert x.variance is not None
            return Variance(x.variance)


def _both(q: Gaussian, p: Gaussian) -> tuple[structure.Structure, structure.Structure]:
    return _structure(q), _structure(p)


def _groups(q: Gaussian, p: Gaussian) -> tuple[Array, Array]:
    """Dispersion and location, each a sum of non-negative terms."""
    delta = q.loc - p.loc
    match _both(q, p):
        case (Scale() | Variance() | LogVariance() as s, Scale() | Variance() | LogVariance() as t):
            dispersion = structure.coordinate_dispersion(s, t)
            location = structure.coordinate_location(delta, t)
            return jnp.sum(dispersion), jnp.sum(location)
        case (s, t):
            factored = structure.factorize(t)
            e = structure.relative_deviation(structure.factorize(s), factored)
            return structure.dispersion(e), structure.location(delta, factored)


def _trace_and_log_det(q: Gaussian, p: Gaussian) -> tuple[Array, Array]:
    match _both(q, p):
        case (Scale() | Variance() | LogVariance() as s, Scale() | Variance() | LogVariance() as t):
            ratio = structure.variance_ratio(s, t)
            return jnp.sum(ratio), -jnp.sum(structure.log_variance_ratio(s, t))
        case (s, t):
            pair = structure.factorize(s), structure.factorize(t)
            e = structure.relative_deviation(*pair)
            return structure.trace(e), structure.log_det(e)


def _kl(q: Gaussian, p: Gaussian) -> Array:
    """(tr(S_p^-1 S_q) - d + log|S_p| - log|S_q|) / 2 + (m_q - m_p)^T S_p^-1 (m_q - m_p) / 2"""
    dispersion, location = _groups(q, p)
    return dispersion + location


def _terms(q: Gaussian, p: Gaussian) -> GaussianTerms:
    dispersion, location = _groups(q, p)
    trace, log_det = _trace_and_log_det(q, p)
    dimension = jnp.full_like(trace, q.loc.size)
    return GaussianTerms(
        trace=trace,
        mahalanobis=2 * location,
        dimension=dimension,
        log_det=log_det,
        dispersion=dispersion,
        location=location,
    )


def _half_log_det(x: structure.Structure) -> Array:
    return structure.half_log_det(structure.factorize(x))


def _mahalanobis_half(delta: Array, x: structure.Structure) -> Array:
    match x:
        case Scale() | Variance() | LogVariance() as diagonal:
            return jnp.sum(structure.coordinate_location(delta, diagonal))
        case _:
            return structure.location(delta, structure.factorize(x))


def _cross_entropy(q: Gaussian, p: Gaussian) -> Array:
    """-E_q log p = (d log 2 pi + log |S_p| + trace + mahalanobis) / 2."""
    _, location = _groups(q, p)
    trace, _ = _trace_and_log_det(q, p)
    normalizer = 0.5 * q.loc.size * _LOG_2PI + _half_log_det(_structure(p))
    return normalizer + (0.5 * trace + location)


def _log_prob(x: Gaussian, point: Array) -> Array:
    """-|point - loc|^2 / 2 - log |S| / 2 - d log(2 pi) / 2."""
    spread = _structure(x)
    normalizer = 0.5 * x.loc.size * _LOG_2PI + _half_log_det(spread)
    return -(normalizer + _mahalanobis_half(point - x.loc, spread))


def _entropy(x: Gaussian) -> Array:
    """d (1 + log 2 pi) / 2 + log |S| / 2."""
    return 0.5 * x.loc.size * (1 + _LOG_2PI) + _half_log_det(_structure(x))


def _sample(x: Gaussian, key: Array) -> Array:
    """loc + C noise: differentiable by loc and by the parameters of C."""
    noise = jax.random.normal(key, x.loc.shape, x.loc.dtype)
    match _structure(x):
        case Scale() | Variance() | LogVariance() as diagonal:
            return x.loc + structure.scale(diagonal) * noise
        case matrix:
            factored = structure.factorize(matrix)
            return x.loc + structure.multiply(factored, noise[:, None])[:, 0]


def _mean(x: Gaussian) -> Array:
    return x.loc


def _variance(x: Gaussian) -> Array:
    match _structure(x):
        case Scale() | Variance() | LogVariance() as diagonal:
            return structure.variance(diagonal)
        case matrix:
            return structure.marginal_variance(structure.factorize(matrix))


def _covariance(x: MultivariateNormalDiag | MultivariateNormal) -> Array:
    return structure.dense(structure.factorize(_structure(x)))


for _family in (Normal, MultivariateNormalDiag, MultivariateNormal):
    distribution.register_distribution(
        _family,
        log_prob=_log_prob,
        sample=_sample,
        entropy=_entropy,
        mean=_mean,
        variance=_variance,
        covariance=None if _family is Normal else _covariance,
    )

for _q, _p, _cost in (
    (Normal, Normal, "O(1)"),
    (MultivariateNormalDiag, MultivariateNormalDiag, "O(d)"),
    (MultivariateNormalDiag, MultivariateNormal, "O(d^3)"),
    (MultivariateNormal, MultivariateNormalDiag, "O(d^3)"),
    (MultivariateNormal, MultivariateNormal, "O(d^3)"),
):
    register_kl(_q, _p, terms=_terms, cross_entropy=_cross_entropy, cost=_cost)(_kl)
