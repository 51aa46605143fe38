"""Gaussians with covariance D + W W^T: factor analysis, low-rank posteriors.

The divergence is the one of `gaussian`, in O(d r^2) and without a d x d array in value or
gradient; `kljax.lowrank` has the formula.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from kljax import distribution, doubled, lowrank
from kljax._record import Parameter, param, record
from kljax.divergence import register_kl
from kljax.families.gaussian import GaussianTerms, MultivariateNormalDiag
from kljax.families.gaussian_mixes import DenseGaussian, diagonal_structure, register_dense
from kljax.families.isotropic import register_as_diagonal
from kljax.lowrank import LowRank
from kljax.structure import Variance

_LOG_2PI = math.log(2 * math.pi)


@record
class LowRankMultivariateNormal:
    """The normal distribution of a vector, N(loc, diag(cov_diag) + cov_factor cov_factor^T).

    Against itself, a diagonal, an isotropic and a standard normal, both ways, a divergence
    costs O(d r^2) operations and O(d r) memory. Its value is within 32 u cond(C) of the
    truth (u = 2^-24 in float32, C = I + W^T D^-1 W the capacitance matrix), near and far,
    never negative, and 0 at q = p however large the factor is. Near pairs keep their digits
    if they are described alike: not where columns are exchanged, or stand for a part of the
    diagonal, in one of them. Columns that depend on each other give nan where W W^T / D is
    above 1e7 (in float32; `precision="high"` goes further).

    Attributes:
        loc: mean, shape (..., d).
        cov_factor: W, shape (..., d, r); q and p may have different ranks r.
        cov_diag: D > 0, variances, shape (..., d).
    """

    loc: Parameter = param("d")
    cov_factor: Parameter = param("d *r")
    cov_diag: Parameter = param("d", constraint="positive")


def low_rank(x: LowRankMultivariateNormal | MultivariateNormalDiag) -> LowRank:
    """The covariance of one event; a diagonal one has rank 0."""
    if isinstance(x, LowRankMultivariateNormal):
        return LowRank(Variance(x.cov_diag), x.cov_factor)
    return lowrank.from_diagonal(diagonal_structure(x))


def _groups(q: Any, p: Any) -> tuple[Array, Array]:
    return lowrank.groups(low_rank(q), low_rank(p), q.loc - p.loc)


def _kl(q: Any, p: Any) -> Array:
    """KL = (tr(S_p^-1 S_q) - d + log |S_p| - log |S_q| + |m_q - m_p|^2_p) / 2."""
    dispersion, location = _groups(q, p)
    return dispersion + location


def _terms(q: Any, p: Any) -> GaussianTerms:
    dispersion, location = _groups(q, p)
    s, t = low_rank(q), low_rank(p)
    trace = lowrank.trace(s, t)
    return GaussianTerms(
        trace=trace,
        mahalanobis=2 * location,
        dimension=jnp.full_like(trace, q.loc.size),
        log_det=lowrank.log_det_ratio(s, t),
        dispersion=dispersion,
        location=location,
    )


def _half_log_normalizer(x: LowRankMultivariateNormal) -> Array:
    """(d log 2 pi + log |S|) / 2."""
    return 0.5 * x.loc.size * _LOG_2PI + lowrank.half_log_det(low_rank(x))


def _log_prob(x: LowRankMultivariateNormal, point: Array) -> Array:
    """-(d log 2 pi + log |S| + |point - loc|^2_S) / 2."""
    return -(_half_log_normalizer(x) + lowrank.location(point - x.loc, low_rank(x)))


def _entropy(x: LowRankMultivariateNormal) -> Array:
    """(d + d log 2 pi + log |S|) / 2."""
    return 0.5 * x.loc.size + _half_log_normalizer(x)


def _sample(x: LowRankMultivariateNormal, key: Array) -> Array:
    """Loc + D^(1/2) noise + W latent."""
    of_noise, of_latent = jax.random.split(key)
    noise = jax.random.normal(of_noise, x.loc.shape, x.loc.dtype)
    latent = jax.random.normal(of_latent, x.cov_factor.shape[-1:], x.loc.dtype)
    return x.loc + lowrank.color(low_rank(x), noise, latent)


distribution.register_distribution(
    LowRankMultivariateNormal,
    log_prob=_log_prob,
    sample=_sample,
    entropy=_entropy,
    mean=lambda x: x.loc,
    variance=lambda x: lowrank.variances(low_rank(x)),
    covariance=lambda x: lowrank.covariance(low_rank(x)),
)

for _q, _p in (
    (LowRankMultivariateNormal, LowRankMultivariateNormal),
    (LowRankMultivariateNormal, MultivariateNormalDiag),
    (MultivariateNormalDiag, LowRankMultivariateNormal),
):
    register_kl(_q, _p, terms=_terms, cost="O(d r^2)")(_kl)
register_as_diagonal(LowRankMultivariateNormal, "O(d r^2)")
register_dense(
    LowRankMultivariateNormal,
    lambda x: DenseGaussian(doubled.exactly(x.loc), lowrank.to_dense(low_rank(x))),
)
