"""What the posteriors of a data set say about training, in numbers; `verdicts` has the words.

At every stationary point of a VAE whose encoder ends in, and whose decoder begins with, affine
maps that are free, rescaling latent i changes nothing to first order. So with the terms of the
KL, trace_i = s_i and mahalanobis_i = mu_i^2 in units of the prior, and weights (a, b, c),

    a E[trace_i] + b E[mahalanobis_i] = c,   E[mu_i] = 0,

and for full covariance matrices a E[S] + b E[mu mu^T] = c I: whatever the likelihood, what is
left of it says how far training is from converged. (At weights one the first is known as the
variance law: Asperti and Trentin 2020, arXiv 2002.07514.) With weights one the mean KL is then
its log-determinant term alone. Batch normalization of mu, tied or decayed weights of those two
layers, free bits that are in force and clamped variances void it.

Information of a latent is bounded by that of a Gaussian of the same variance,

    I(x; z_i) <= log(1 + Var[mu_i] / E[s_i]) / 2 + (log E[s_i] - E[log s_i]) / 2,

whose two parts, the channels of the mean and of the variance, no rescaling of z changes.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from kljax import distribution, special
from kljax.families.gaussian import MultivariateNormal, MultivariateNormalDiag
from kljax.vae import _inputs, _posteriors
from kljax.vae._posteriors import Posteriors
from kljax.vae.terms import TermWeights, checked, latent_terms

# Burda, Grosse and Salakhutdinov (2016) call a latent active above this variance of its mean.
ACTIVE_VARIANCE = 0.01
# The same for either channel's information, in nats.
ACTIVE_INFORMATION = 0.01
# How near a bound of the log-variance counts as at it, as a share of their distance.
_AT_BOUND = 1e-3


class Diagnostics(NamedTuple):
    """Numbers of every latent, averaged over the data; arrays of shape (latents,).

    Posteriors with covariance matrices: `kl` and `log_det` of latent i mean given the latents
    before it, so they add up; the others mean its marginal.

    Attributes:
        kl: nats; their sum is the mean KL.
        trace: E[s_i] in units of the prior's variance.
        mahalanobis: E[mu_i^2], in units of the prior.
        log_det: -E[log s_i], in units of the prior; half of it counts in nats.
        mean: E[mu_i] in standard deviations of the prior; 0 where training has converged.
        mean_error: standard error of it, if the data are a sample of what is trained on.
        mean_variance: Var[mu_i] over the data, in the latent's own unit.
        mean_channel: log(1 + Var[mu_i] / E[s_i]) / 2 in nats.
        variance_channel: (log E[s_i] - E[log s_i]) / 2 in nats.
        collapsed_fraction: share of the data whose KL of this latent is below epsilon.
        scale_residual: a trace + b mahalanobis - c; 0 where training has converged.
        scale_error: standard error of it, if the data are a sample of what is trained on.
        scale_matrix: a E[S] + b E[mu mu^T] - c I in units of the prior, shape (latents,
            latents), for covariance matrices; None for diagonal posteriors, whose latents
            cannot be mixed.
        log_det_gap: mean KL less half the log-determinant term, in nats; 0 at convergence
            for weights one. A scalar.
        clamped: share of the data whose log-variance is at a bound, or None without bounds.
        not_finite: share of the data whose KL is not finite. A scalar.
    """

    kl: Array
    trace: Array
    mahalanobis: Array
    log_det: Array
    mean: Array
    mean_error: Array
    mean_variance: Array
    mean_channel: Array
    variance_channel: Array
    collapsed_fraction: Array
    scale_residual: Array
    scale_error: Array
    scale_matrix: Array | None
    log_det_gap: Array
    clamped: Array | None
    not_finite: Array

    @property
    def active(self) -> Array:
        """Burda's active units, which depend on the unit of a latent and see its mean alone."""
        return self.mean_variance > ACTIVE_VARIANCE

    @property
    def informative(self) -> Array:
        """Latents with more than 0.01 nats in both channels together, in any unit."""
        return self.mean_channel + self.variance_channel > ACTIVE_INFORMATION


def diagnose(
    q: Posteriors,
    *,
    prior: MultivariateNormalDiag | None = None,
    weights: TermWeights = TermWeights(),  # noqa: B008
    epsilon: _inputs.Number = 0.01,
    log_variance_bounds: tuple[float, float] | None = None,
) -> Diagnostics:
    """The numbers of `report`; jittable, while `report` is not.

    Args:
        q: posteriors of the data, best of all that training sees, `MultivariateNormalDiag` or
            `MultivariateNormal` with one batch axis.
        prior: of independent latents, by default N(0, I).
        weights: of the terms of the KL in training.
        epsilon: nats below which the KL of a data point counts as collapsed.
        log_variance_bounds: the smallest and the largest log-variance that the encoder can
            give, if it bounds them.

    Returns:
        `Diagnostics`.

    Raises:
        TypeError: if q or the prior is of another family.
        ValueError: if shapes do not fit together, a weight is negative or the bounds are not
            in order.
    """
    data, _ = _posteriors.checked("diagnose", q)
    prior = _posteriors.factorized_prior("diagnose", prior, q)
    if log_variance_bounds is not None:
        log_variance_bounds = _bounds(log_variance_bounds)
    weights = TermWeights(*checked(weights))
    epsilon = _inputs.positive("epsilon", epsilon)
    return _diagnose(
        _posteriors.expanded(q, data), prior, weights, epsilon, log_variance_bounds
    )


def _bounds(bounds: tuple[float, float]) -> tuple[float, float]:
    numbers = [_inputs.number("log_variance_bounds", x) for x in bounds]
    if len(numbers) != 2 or not numbers[0] < numbers[1]:
        raise ValueError(f"log_variance_bounds must be two numbers, low < high; got {bounds}.")
    return float(numbers[0]), float(numbers[1])


@jax.jit
def _diagnose(
    q: Posteriors,
    prior: MultivariateNormalDiag,
    weights: TermWeights,
    epsilon: _inputs.Number,
    bounds: tuple[Array, Array] | tuple[float, float] | None,
) -> Diagnostics:
    a, b, c = weights.trace, weights.mahalanobis, weights.log_det
    terms = latent_terms(q, prior)
    kl = terms.total
    variance, deviation = distribution.variance(q), jnp.sqrt(distribution.variance(prior))
    mean_variance, wide = jnp.var(q.loc, axis=0), jnp.mean(variance, axis=0)
    whitened = (q.loc - prior.loc[None]) / deviation[None]
    scale = a * terms.trace + b * terms.mahalanobis - c
    matrix = None
    if isinstance(q, MultivariateNormal):
        spread = jnp.mean(distribution.covariance(q), axis=0) / jnp.outer(deviation, deviation)
        outer = jnp.einsum("ni,nj->ij", whitened, whitened, precision="highest") / len(kl)
        matrix = a * spread + b * outer - c * jnp.eye(len(deviation))
    log_variance = special.log(variance)
    clamped = None
    if bounds is not None:
        low, high = bounds
        near = _AT_BOUND * (high - low)
        at_bound = (log_variance <= low + near) | (log_variance >= high - near)
        clamped = jnp.mean(at_bound.astype(kl.dtype), axis=0)
    whole = jnp.sum(kl, axis=1)
    return Diagnostics(
        kl=jnp.mean(kl, axis=0),
        trace=jnp.mean(terms.trace, axis=0),
        mahalanobis=jnp.mean(terms.mahalanobis, axis=0),
        log_det=jnp.mean(terms.log_det, axis=0),
        mean=jnp.mean(whitened, axis=0),
        mean_error=jnp.std(whitened, axis=0) / math.sqrt(len(kl)),
        mean_variance=mean_variance,
        mean_channel=0.5 * special.log1p(mean_variance / wide),
        # -E log(s / E[s]) without cancellation, since E[s / E[s] - 1] = 0.
        variance_channel=0.5
        * jnp.mean(special.x_minus_log1p((variance - wide[None]) / wide[None]), axis=0),
        collapsed_fraction=jnp.mean((kl < epsilon).astype(kl.dtype), axis=0),
        scale_residual=jnp.mean(scale, axis=0),
        scale_error=jnp.std(scale, axis=0) / math.sqrt(len(kl)),
        scale_matrix=matrix,
        log_det_gap=jnp.mean(whole - 0.5 * jnp.sum(terms.log_det, axis=1)),
        clamped=clamped,
        not_finite=jnp.mean((~jnp.isfinite(whole)).astype(kl.dtype)),
    )
