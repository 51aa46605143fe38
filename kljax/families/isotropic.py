"""Isotropic Gaussians: S = scale^2 I, one number for the spread of all coordinates.

    KL = d (v_q / v_p - 1 - log(v_q / v_p)) / 2 + |m_q - m_p|^2 / (2 v_p),   v = scale^2.

Against another family an isotropic Gaussian is a diagonal one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array

from kljax import coordinates, distribution
from kljax._record import Parameter, param, record
from kljax.divergence import closed_form, register_kl
from kljax.families.gaussian import (
    GaussianTerms,
    MultivariateNormal,
    MultivariateNormalDiag,
)
from kljax.families.gaussian_mixes import dense_diagonal, register_dense
from kljax.structure import Diagonal, LogVariance, Scale, Variance


@record
class IsotropicNormal:
    """The normal distribution of a vector with independent, equally wide coordinates.

    Attributes:
        loc: mean, shape (..., d).
        scale: standard deviation > 0 of every coordinate, shape (...).
        log_variance: log(scale^2), instead of `scale`.
        variance: scale^2, instead of `scale`.
    """

    loc: Parameter = param("d")
    scale: Parameter = param(constraint="positive", one_of="spread", default=None)
    log_variance: Parameter = param(one_of="spread", default=None, kw_only=True)
    variance: Parameter = param(
        constraint="positive", one_of="spread", default=None, kw_only=True
    )


def _spread(x: IsotropicNormal) -> Diagonal:
    if x.scale is not None:
        return Scale(x.scale)
    if x.variance is not None:
        return Variance(x.variance)
    return LogVariance(x.log_variance)


def as_diagonal(x: IsotropicNormal) -> MultivariateNormalDiag:
    """The same distribution with its spread written d times."""

    def repeat(value: Parameter) -> Any:
        return None if value is None else jnp.broadcast_to(value, x.loc.shape)

    return MultivariateNormalDiag(
        x.loc,
        repeat(x.scale),
        log_variance=repeat(x.log_variance),
        variance=repeat(x.variance),
    )


def _groups(q: IsotropicNormal, p: IsotropicNormal) -> tuple[Array, Array]:
    s, t = _spread(q), _spread(p)
    dispersion = q.loc.size * coordinates.dispersion(s, t)
    wide = type(t)(jnp.broadcast_to(t.value, p.loc.shape))
    return dispersion, jnp.sum(coordinates.location(q.loc - p.loc, wide))


def _kl(q: IsotropicNormal, p: IsotropicNormal) -> Array:
    """KL = d (v_q / v_p - 1 - log(v_q / v_p)) / 2 + |m_q - m_p|^2 / (2 v_p)."""
    dispersion, location = _groups(q, p)
    return dispersion + location


def _terms(q: IsotropicNormal, p: IsotropicNormal) -> GaussianTerms:
    dispersion, location = _groups(q, p)
    s, t, d = _spread(q), _spread(p), q.loc.size
    return GaussianTerms(
        trace=d * coordinates.variance_ratio(s, t),
        mahalanobis=2 * location,
        dimension=jnp.full_like(dispersion, d),
        log_det=d * coordinates.log_variance_ratio(t, s),
        dispersion=dispersion,
        location=location,
    )


register_kl(IsotropicNormal, IsotropicNormal, terms=_terms, cost="O(d)")(_kl)


# ---- as a diagonal one ----------------------------------------------------------------------


def _widened(x: Any) -> Any:
    return as_diagonal(x) if isinstance(x, IsotropicNormal) else x


def _kl_as_diagonal(q: Any, p: Any) -> Array:
    """KL of the same distributions with the isotropic one written as a diagonal one."""
    q, p = _widened(q), _widened(p)
    return closed_form("kl_divergence", q, p).kl(q, p)


def _terms_as_diagonal(q: Any, p: Any) -> Any:
    q, p = _widened(q), _widened(p)
    rule = closed_form("kl_terms", q, p).terms
    assert rule is not None
    return rule(q, p)


def register_as_diagonal(family: type, cost: str) -> None:
    """KL of an isotropic and another Gaussian, both ways, by what a diagonal one has."""
    for q, p in ((IsotropicNormal, family), (family, IsotropicNormal)):
        register_kl(q, p, terms=_terms_as_diagonal, cost=cost)(_kl_as_diagonal)


register_as_diagonal(MultivariateNormalDiag, "O(d)")
register_as_diagonal(MultivariateNormal, "O(d^3)")


register_dense(IsotropicNormal, lambda x: dense_diagonal(as_diagonal(x)))


def _rule(name: str) -> Callable[..., Array]:
    def of_diagonal(x: IsotropicNormal, *arguments: Array) -> Array:
        wide = as_diagonal(x)
        return distribution._rule(name, wide)(wide, *arguments)

    return of_diagonal


_ASKED = ("log_prob", "sample", "entropy", "mean", "variance", "covariance")
_RULES: dict[str, Any] = {name: _rule(name) for name in _ASKED}
distribution.register_distribution(IsotropicNormal, **_RULES)
