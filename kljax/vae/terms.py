"""What each latent adds to the KL of a Gaussian posterior, term by term, and weights on terms.

    KL = sum_i (trace_i + mahalanobis_i - 1 + log_det_i) / 2
    weighted = sum_i (a trace_i + b mahalanobis_i + c (log_det_i - 1)) / 2

The 1 goes with the log-determinant: together they are the entropy of q, the other two its
cross-entropy. So weights (1, 1, 1) give the KL, and equal weights beta give beta times it. It
is evaluated as c dispersion + b location + (a - c) trace / 2, whose first two parts do not
cancel where q is almost p.

For covariance matrices latent i means: given the latents before it. With C_q and C_p the
Cholesky factors, M = C_p^-1 C_q and y = C_p^-1 (m_q - m_p),

    trace_i = sum_j M_ij^2,   mahalanobis_i = y_i^2,   log_det_i = -2 log M_ii,

which adds up to the chain rule KL(q ‖ p) = sum_i E_q KL(q(z_i | z_<i) ‖ p(z_i | z_<i)).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from kljax import _batches, _record, coordinates, divergence, linalg, matrices, special
from kljax._record import Parameter, param, record
from kljax.families import gaussian
from kljax.families.gaussian import GaussianTerms, MultivariateNormal, MultivariateNormalDiag
from kljax.matrices import Factored
from kljax.structure import Diagonal
from kljax.vae._inputs import Number, at_least_zero


@record
class TermWeights:
    """Weights >= 0 of the three terms of a Gaussian KL; (1, 1, 1) is the KL itself.

    Equal weights are a beta-VAE. A rescaling of the latents turns weights (a, b, c) into
    (c, c b / a, c): so `log_det` is what a beta is, b / a is a knob of its own, and trace and
    Mahalanobis weighted together only change the unit of the latents.

    Attributes:
        trace: a, what a wide posterior costs.
        mahalanobis: b, what a mean away from the prior's costs.
        log_det: c, what a narrow posterior costs.
    """

    trace: Parameter = param(default=1.0)
    mahalanobis: Parameter = param(default=1.0)
    log_det: Parameter = param(default=1.0)


@record
class LatentTerms:
    """The terms of a Gaussian KL, latent by latent; each array has shape (..., latents).

    As in `kljax.GaussianTerms`, half of each of the four terms counts in nats; dispersion,
    location and `total` are nats. In training add up dispersion and location.

    Attributes:
        trace: the variance of q relative to that of p.
        mahalanobis: the squared distance of the means, in standard deviations of p.
        dimension: 1.
        log_det: the log of the variance of p minus that of q.
        dispersion: (trace - 1 + log_det) / 2 >= 0, computed without cancellation.
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
        """The KL that every latent adds, in nats >= 0."""
        return self.dispersion + self.location


# ---- per latent ---------------------------------------------------------------------------


def latent_terms(q: Any, p: Any, /) -> LatentTerms:
    """The terms of KL(q ‖ p), latent by latent; their totals add up to the KL.

    Args:
        q: the posterior, `MultivariateNormalDiag` or `MultivariateNormal`.
        p: the prior, either of them: standard, learned, or one an event. Batch shapes
            broadcast.

    Returns:
        `LatentTerms` of shape (*batch, latents).

    Raises:
        TypeError: if q or p is of another family, or both are precision matrices.
        ValueError: if shapes or given parameters do not fit together.
    """
    if not has_latent_terms(q, p):
        for name, x in (("q", q), ("p", p)):
            if not _record.is_record(x):
                raise TypeError(
                    f"latent_terms needs two distributions, q first; {name} is "
                    f"{_record.describe(x)}."
                )
        raise TypeError(
            f"latent_terms knows MultivariateNormalDiag and MultivariateNormal, of which not "
            f"both by precision matrices; got {type(q).__name__} and {type(p).__name__}. "
            "kljax.kl_terms has the sums over latents of every Gaussian pair."
        )
    return _batches.call(_latent_terms, q, p)


def has_latent_terms(q: Any, p: Any) -> bool:
    """Whether `latent_terms` knows the pair."""
    known = (MultivariateNormalDiag, MultivariateNormal)
    precisions = [getattr(x, "precision_matrix", None) is not None for x in (q, p)]
    return isinstance(q, known) and isinstance(p, known) and not all(precisions)


@jax.jit
def _latent_terms(q: Any, p: Any) -> LatentTerms:
    return _batches.over_batches(_rule, {"q": q, "p": p})


def _rule(q: Any, p: Any) -> LatentTerms:
    delta = q.loc - p.loc
    match gaussian._structure(q), gaussian._structure(p):
        case (Diagonal() as s, Diagonal() as t):
            dispersion = coordinates.dispersion(s, t)
            trace = coordinates.variance_ratio(s, t)
            log_det = coordinates.log_variance_ratio(t, s)
            location = coordinates.location(delta, t)
        case (s, t):
            prior = matrices.factorize(t)
            m = matrices.quotient(matrices.factorize(s), prior)
            below = jnp.sum(m.lower * m.lower, axis=1)
            dispersion = special.half_expm1_minus_x(2 * m.log_diagonal) + 0.5 * below
            trace = special.exp(2 * m.log_diagonal) + below
            log_det = -2 * m.log_diagonal
            location = _location(delta, prior)
    return LatentTerms(
        trace=trace,
        mahalanobis=2 * location,
        dimension=jnp.ones_like(trace),
        log_det=log_det,
        dispersion=dispersion,
        location=location,
    )


def _location(delta: Array, p: Factored) -> Array:
    if isinstance(p.structure, Diagonal):
        return coordinates.location(delta, p.structure)
    y = _whitened(delta, p)
    return 0.5 * y * y


@jax.custom_jvp
def _whitened(delta: Array, p: Factored) -> Array:
    """C_p^-1 delta; its change is C_p^-1 ddelta - X_p y."""
    return p.whiten(delta[:, None])[:, 0]


@_whitened.defjvp
def _whitened_jvp(primals, tangents):
    (delta, p), (ddelta, dp) = primals, tangents
    y = _whitened(delta, p)
    change = p.structure.change(p.factor, dp.structure)
    return y, p.whiten(ddelta[:, None])[:, 0] - linalg.matmul(change, y[:, None])[:, 0]


# ---- weighted -----------------------------------------------------------------------------


def weighted(terms: LatentTerms | GaussianTerms, weights: TermWeights) -> Array:
    """(a trace + b mahalanobis + c (log_det - dimension)) / 2 in nats, entry by entry.

    Args:
        terms: of every latent, or of an event as `kljax.kl_terms` has them.
        weights: three numbers >= 0, which may be traced.

    Raises:
        ValueError: if a weight is negative (nan where it is traced) or not one number.
    """
    a, b, c = checked(weights)
    if _same(b, c):
        parts = c * (terms.dispersion + terms.location)
    else:
        parts = c * terms.dispersion + b * terms.location
    # A weight of 0 on a trace that has overflowed would be nan.
    return parts if _same(a, c) else parts + (0.5 * (a - c)) * terms.trace


def checked(weights: TermWeights) -> tuple[Number, Number, Number]:
    """Trace, Mahalanobis and log-det weight, as floats where they are known."""
    if not isinstance(weights, TermWeights):
        raise TypeError(
            "weights must be TermWeights(trace, mahalanobis, log_det); got "
            f"{_record.describe(weights)}."
        )
    a = at_least_zero("weights.trace", weights.trace)
    b = at_least_zero("weights.mahalanobis", weights.mahalanobis)
    return a, b, at_least_zero("weights.log_det", weights.log_det)


def are_ones(weights: TermWeights) -> bool:
    """Whether the weights are known to be those of the KL itself."""
    return all(_same(weight, 1.0) for weight in checked(weights))


def _same(x: Number, y: Number) -> bool:
    """Whether two weights are known to be equal."""
    return isinstance(x, float) and isinstance(y, float) and x == y


def weighted_kl(q: Any, p: Any, weights: TermWeights, /) -> Array:
    """(a trace + b mahalanobis + c (log_det - dimension)) / 2 of q and p, in nats.

    Args:
        q: the posterior, of any family whose KL has Gaussian terms.
        p: the prior. Batch shapes broadcast.
        weights: three numbers >= 0; (1, 1, 1) gives `kljax.kl_divergence`, bit for bit where
            they are not traced.

    Returns:
        Array of the batch shape; it may be negative where the weights differ.

    Raises:
        TypeError: if the pair has no closed form with Gaussian terms.
        ValueError: if a weight is negative (nan where it is traced), or shapes do not fit.
    """
    if are_ones(weights):
        return divergence.kl_divergence(q, p)
    terms = divergence.kl_terms(q, p)
    if not isinstance(terms, GaussianTerms):
        raise TypeError(
            f"the terms of KL({type(q).__name__} ‖ {type(p).__name__}) are no GaussianTerms, "
            "so weights on them mean nothing."
        )
    return weighted(terms, weights)
