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
import numpy as np
from jax import Array

from kljax import (
    coordinates,
    covariances,
    distribution,
    factors,
    linalg,
    matrices,
    smallfactors,
)
from kljax._record import Parameter, param, record
from kljax.divergence import register_kl
from kljax.structure import (
    Covariance,
    Diagonal,
    LogVariance,
    Precision,
    Scale,
    ScaleTril,
    Structure,
    Variance,
)

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

    loc: Parameter = param()
    scale: Parameter = param(constraint="positive", one_of="spread", unit=1.0, default=None)
    log_variance: Parameter = param(one_of="spread", unit=0.0, default=None, kw_only=True)
    variance: Parameter = param(
        constraint="positive", one_of="spread", unit=1.0, default=None, kw_only=True
    )


@record
class MultivariateNormalDiag:
    """The normal distribution of a vector with independent coordinates.

    Attributes:
        loc: mean, shape (..., d).
        scale_diag: standard deviations > 0, shape (..., d).
        log_variance: log(scale_diag^2), instead of `scale_diag`.
        variance: scale_diag^2, instead of `scale_diag`.
    """

    loc: Parameter = param("d")
    scale_diag: Parameter = param(
        "d", constraint="positive", one_of="spread", unit=1.0, default=None
    )
    log_variance: Parameter = param("d", one_of="spread", unit=0.0, default=None, kw_only=True)
    variance: Parameter = param(
        "d", constraint="positive", one_of="spread", unit=1.0, default=None, kw_only=True
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

    loc: Parameter = param("d")
    scale_tril: Parameter = param(
        "d d", constraint="lower_triangular", one_of="spread", default=None
    )
    covariance_matrix: Parameter = param(
        "d d",
        constraint="positive_definite",
        one_of="spread",
        default=None,
        kw_only=True,
    )
    precision_matrix: Parameter = param(
        "d d",
        constraint="positive_definite",
        one_of="spread",
        default=None,
        kw_only=True,
    )


def standard_normal(
    d: int, dtype: jax.typing.DTypeLike = jnp.float32
) -> MultivariateNormalDiag:
    """N(0, I) of d coordinates, the usual prior of a VAE.

    In NumPy, so that a divergence from it knows its variances while it is compiled.
    """
    return MultivariateNormalDiag(np.zeros(d, dtype), np.ones(d, dtype))


@record
class GaussianTerms:
    """The parts of a Gaussian KL; KL = (trace + mahalanobis - dimension + log_det) / 2.

    The four terms are printed as in the formula, so half of each counts in nats; the two
    groups and their `total` are nats. In training add up the groups, never the four terms.

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

_STRUCTURES: dict[str, type[Structure]] = {
    "scale": Scale,
    "scale_diag": Scale,
    "variance": Variance,
    "log_variance": LogVariance,
    "scale_tril": ScaleTril,
    "covariance_matrix": Covariance,
    "precision_matrix": Precision,
}


def _structure(x: Gaussian) -> Structure:
    """The covariance of one event, in the parametrization that was given."""
    for name, structure in _STRUCTURES.items():
        value = getattr(x, name, None)
        if value is not None and structure in (Covariance, Precision):
            # Once, here: so the gradient of a symmetric matrix is exactly symmetric.
            value = linalg.symmetrize(value)
        if value is not None:
            return structure(value)
    raise AssertionError("a record without a spread is refused before any rule")


def _groups(q: Gaussian, p: Gaussian) -> tuple[Array, Array]:
    """Dispersion and location, each a sum of non-negative terms."""
    delta = q.loc - p.loc
    match _structure(q), _structure(p):
        case (Diagonal() as s, Diagonal() as t):
            dispersion = coordinates.total(coordinates.dispersion, s, t)
            return dispersion, coordinates.total(coordinates.location, delta, t)
        case (ScaleTril() as s, ScaleTril() as t):
            return factors.groups(s.value, t.value, delta)
        case (Covariance(), Covariance()):
            # As given: its rules take the symmetric part themselves, for less.
            given_q, given_p = (getattr(x, "covariance_matrix") for x in (q, p))  # noqa: B009
            return covariances.groups(given_q, given_p, delta)
        case (s, t):
            factored = matrices.factorize(t)
            m = matrices.relative_quotient(matrices.factorize(s), factored)
            return matrices.dispersion(m), matrices.location(delta, factored)


def _by_coordinate(q_loc: Array, q: Diagonal, p_loc: Array, p: Diagonal) -> Array:
    return coordinates.dispersion(q, p) + coordinates.location(q_loc - p_loc, p)


def _by_coordinate_from_unit(q_loc: Array, q: Diagonal, p_loc: Array) -> Array:
    delta = q_loc - p_loc
    return coordinates.dispersion_from_unit(q) + (0.5 * delta) * delta


def _trace_and_log_det(q: Gaussian, p: Gaussian) -> tuple[Array, Array]:
    match _structure(q), _structure(p):
        case (Diagonal() as s, Diagonal() as t):
            ratio, log_ratio = (
                coordinates.variance_ratio(s, t),
                coordinates.log_variance_ratio(t, s),
            )
            return jnp.sum(ratio), jnp.sum(log_ratio)
        case (s, t):
            pair = matrices.factorize(s), matrices.factorize(t)
            m = matrices.relative_quotient(*pair)
            return matrices.trace(m), matrices.log_det(m)


def _kl(q: Gaussian, p: Gaussian) -> Array:
    """KL = (tr(S_p^-1 S_q) - d + log |S_p| - log |S_q| + |m_q - m_p|^2_p) / 2."""
    match _structure(q), _structure(p):
        case (Diagonal() as s, Diagonal() as t):
            return coordinates.total(_by_coordinate, q.loc, s, p.loc, t)
        case (ScaleTril() as s, ScaleTril() as t):
            return smallfactors.total(s.value, t.value, linalg.difference(q.loc, p.loc))
        case _:
            dispersion, location = _groups(q, p)
            return dispersion + location


def _kl_from_unit(q: Gaussian, loc: Array) -> Array:
    """KL(q ‖ N(loc, I)) = sum_i (v_i - 1 - log v_i + (m_i - loc_i)^2) / 2."""
    spread = _structure(q)
    assert isinstance(spread, Diagonal)
    return coordinates.total(_by_coordinate_from_unit, q.loc, spread, loc)


def _terms(q: Gaussian, p: Gaussian) -> GaussianTerms:
    dispersion, location = _groups(q, p)
    trace, log_det = _trace_and_log_det(q, p)
    return GaussianTerms(
        trace=trace,
        mahalanobis=2 * location,
        dimension=jnp.full_like(trace, q.loc.size),
        log_det=log_det,
        dispersion=dispersion,
        location=location,
    )


def _half_log_normalizer(x: Gaussian) -> Array:
    """(d log 2 pi + log |S|) / 2."""
    spread = _structure(x)
    return 0.5 * x.loc.size * _LOG_2PI + spread.half_log_det(spread.factorize())


def _cross_entropy(q: Gaussian, p: Gaussian) -> Array:
    """(d log 2 pi + log |S_p| + trace + mahalanobis) / 2."""
    _, location = _groups(q, p)
    trace, _ = _trace_and_log_det(q, p)
    return _half_log_normalizer(p) + (0.5 * trace + location)


def _log_prob(x: Gaussian, point: Array) -> Array:
    """-(d log 2 pi + log |S| + |point - loc|^2_S) / 2."""
    delta = point - x.loc
    match _structure(x):
        case Diagonal() as diagonal:
            half_square = jnp.sum(coordinates.location(delta, diagonal))
        case spread:
            half_square = matrices.location(delta, matrices.factorize(spread))
    return -(_half_log_normalizer(x) + half_square)


def _entropy(x: Gaussian) -> Array:
    """(d + d log 2 pi + log |S|) / 2."""
    return 0.5 * x.loc.size + _half_log_normalizer(x)


def _sample(x: Gaussian, key: Array) -> Array:
    """Loc + C noise: differentiable by loc and by the numbers of the covariance."""
    noise = jax.random.normal(key, x.loc.shape, x.loc.dtype)
    match _structure(x):
        case Diagonal() as diagonal:
            return x.loc + diagonal.scale() * noise
        case spread:
            return x.loc + spread.color(spread.factorize(), noise[:, None])[:, 0]


def _mean(x: Gaussian) -> Array:
    return x.loc


def _variance(x: Gaussian) -> Array:
    match _structure(x):
        case Diagonal() as diagonal:
            return diagonal.variance()
        case spread:
            return spread.variances(spread.factorize())


def _covariance(x: MultivariateNormalDiag | MultivariateNormal) -> Array:
    spread = _structure(x)
    return spread.dense(spread.factorize())


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

for _q, _p, _cost, _from_unit in (
    (Normal, Normal, "O(1)", _kl_from_unit),
    (MultivariateNormalDiag, MultivariateNormalDiag, "O(d)", _kl_from_unit),
    (MultivariateNormalDiag, MultivariateNormal, "O(d^3)", None),
    (MultivariateNormal, MultivariateNormalDiag, "O(d^3)", None),
    (MultivariateNormal, MultivariateNormal, "O(d^3)", None),
):
    register_kl(
        _q,
        _p,
        terms=_terms,
        cross_entropy=_cross_entropy,
        from_unit=_from_unit,
        cost=_cost,
    )(_kl)
