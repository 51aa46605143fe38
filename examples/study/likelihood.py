"""-log p(x) of trained models, under two priors and from three proposals."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

import kljax
from kljax import vae
from study.design import Effort, Model
from study.networks import Networks, Weighing, log_likelihood, posterior


class Plan(NamedTuple):
    """One way to estimate a likelihood; numbers, so that all of them share one program.

    Attributes:
        fitted: 1 for the prior of the aggregated posterior's moments, 0 for N(0, I).
        prior_share: of draws from N(0, I).
        implied: 1 for draws of the variance that q would have at weights one.
    """

    fitted: float = 0.0
    prior_share: float = 0.0
    implied: float = 0.0


COMMON = {"nll": Plan(), "nll_fit": Plan(fitted=1.0)}
PROBES = {"nll_defensive": Plan(prior_share=0.5), "nll_implied": Plan(implied=1.0)}


class Prior(NamedTuple):
    """A Gaussian by its mean, the inverse of its covariance, and the log of its determinant."""

    loc: Any
    precision: Any
    log_det: Any


def aggregated(model: Model, x: Networks, train: Array) -> tuple[Array, Array]:
    """Mean and covariance of the aggregated posterior."""
    q = posterior(model, x, train)
    loc = jnp.mean(q.loc, axis=0)
    off = q.loc - loc
    if model.posterior == "full":
        own = jnp.mean(kljax.covariance(q), axis=0)
    else:
        own = jnp.diag(jnp.mean(kljax.variance(q), axis=0))
    return loc, off.T @ off / len(off) + own


def fitted(loc: np.ndarray, covariance: np.ndarray) -> Prior:
    """The Gaussians of these moments, inverted in float64; nan where training diverged."""
    x = np.asarray(covariance, np.float64)
    good = np.all(np.isfinite(x), axis=(1, 2)) & (np.linalg.det(x) > 0)
    safe = np.where(good[:, None, None], x, np.eye(x.shape[1]))
    precision = np.where(good[:, None, None], np.linalg.inv(safe), np.nan)
    log_det = np.where(good, np.linalg.slogdet(safe)[1], np.nan)
    return Prior(*(np.asarray(y, np.float32) for y in (loc, precision, log_det)))


def estimate(
    model: Model,
    x: Networks,
    arm: Weighing,
    prior: Prior,
    plan: Plan,
    test: Array,
    key: Array,
    effort: Effort,
) -> dict[str, Array]:
    """Means over images of the estimate, and of how good it is.

    The variance of the posterior at weights one follows from s = c / (a + h): there it would be
    1 / (1 + h), which is exact as far as the decoder is linear.
    """
    a, c = arm.weights.trace, arm.weights.log_det

    def proposal(image: Array) -> kljax.MultivariateNormalDiag:
        q = posterior(model, x, image)
        assert isinstance(q, kljax.MultivariateNormalDiag)
        log_s = jnp.log(kljax.variance(q))
        # 1 + h; not above 0 where theory has no such posterior, as with c = 0.
        precision = 1 - a + c * jnp.exp(-log_s)
        known = (plan.implied > 0) & (precision > 0)
        other = -jnp.log(jnp.where(known, precision, 1.0))
        return kljax.MultivariateNormalDiag(q.loc, log_variance=jnp.where(known, other, log_s))

    def joint(z: Array, image: Array) -> Array:
        """Log p(x | z), and what the fitted prior has more than the standard one."""
        off = z - prior.loc
        square = jnp.einsum("si,ij,sj->s", off, prior.precision, off)
        more = 0.5 * (jnp.sum(z * z, axis=1) - square - prior.log_det)
        return log_likelihood(model, x, z, image) + jnp.where(plan.fitted > 0, more, 0.0)

    found = vae.importance_nll(
        proposal,
        kljax.standard_normal(model.latents),
        joint,
        test,
        key,
        samples=effort.importance,
        sample_chunk=effort.importance,
        defensive=plan.prior_share,
    )
    return {
        "": jnp.mean(found.nll),
        "_effective": jnp.mean(found.effective_samples),
        "_pareto_k": jnp.median(found.pareto_k),
        "_trusted": jnp.mean(found.trusted),
    }
