"""What is measured on every trained model, at weights one whatever its training weighed."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import kljax
from kljax import vae
from study.design import Effort, Model
from study.networks import Networks, Weighing, log_likelihood, perceptron, posterior

RECONSTRUCTION_SAMPLES = 8
# Images and draws at which the decoder is differentiated.
JACOBIAN_IMAGES, JACOBIAN_DRAWS = 128, 4
# Share of prior draws in the defensive proposal.
DEFENSIVE = 0.5

Responses = dict[str, Array]


def assess(
    model: Model,
    trained: Networks,
    arms: Weighing,
    train: Array,
    test: Array,
    key: Array,
    effort: Effort,
) -> Responses:
    """The responses of all arms and seeds, arrays of shape (arms, seeds, ...)."""
    one = partial(of_model, model, train=train, test=test, key=key, effort=effort)
    seeds = jax.tree.leaves(trained)[0].shape[1]
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), trained)
    repeated = jax.tree.map(lambda x: jnp.repeat(x, seeds), arms)
    moments = jax.jit(lambda x: jax.lax.map(lambda y: aggregated(model, y, train), x))(flat)
    priors = fitted(*jax.device_get(moments))
    over_models = jax.jit(lambda *x: jax.lax.map(lambda each: one(*each), x))
    found = over_models(flat, repeated, priors)
    return jax.tree.map(lambda x: x.reshape(-1, seeds, *x.shape[1:]), found)


def of_model(
    model: Model,
    x: Networks,
    arm: Weighing,
    prior: Prior,
    *,
    train: Array,
    test: Array,
    key: Array,
    effort: Effort,
) -> Responses:
    keys = jax.random.split(key, 4)
    found = (
        of_posteriors(model, x, arm, train)
        | of_reconstruction(model, x, test, keys[1])
        | of_decoder(model, x, arm, test[:JACOBIAN_IMAGES], keys[3])
    )
    if model.posterior != "diag":
        # Densities of many matrices take long to compile, and no prediction needs them.
        return found
    parts = vae.decompose(posterior(model, x, train[: effort.points]), keys[0])
    information = {
        "information": parts.mutual_information,
        "marginal_kl": parts.marginal_kl,
    }
    likelihood = of_likelihood(model, x, arm, prior, test[: effort.images], keys[2], effort)
    return found | information | likelihood


def of_posteriors(model: Model, x: Networks, arm: Weighing, train: Array) -> Responses:
    """Terms and scale identity over the training images."""
    q = posterior(model, x, train)
    found = vae.diagnose(q, weights=arm.weights)
    residual = found.scale_residual
    matrix = found.scale_matrix
    if matrix is None:
        off = jnp.zeros(())
    else:
        off = jnp.max(jnp.abs(matrix - jnp.diag(jnp.diag(matrix))))
    return {
        "kl": jnp.sum(found.kl),
        "trace": 0.5 * jnp.sum(found.trace),
        "mahalanobis": 0.5 * jnp.sum(found.mahalanobis),
        "log_det": 0.5 * jnp.sum(found.log_det),
        "scale_residual": jnp.max(jnp.abs(residual)),
        "scale_off_diagonal": off,
        "active": jnp.sum(found.active),
        "informative": jnp.sum(found.informative),
    }


def of_reconstruction(model: Model, x: Networks, test: Array, key: Array) -> Responses:
    q, p = posterior(model, x, test), kljax.standard_normal(model.latents)
    parts = vae.closed_form(
        q,
        p,
        lambda z: log_likelihood(model, x, z, test),
        key,
        samples=RECONSTRUCTION_SAMPLES,
    )
    return {
        "reconstruction": jnp.mean(parts.reconstruction),
        "test_kl": jnp.mean(parts.kl),
        "negative_elbo": -jnp.mean(parts.elbo),
    }


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


def of_likelihood(
    model: Model,
    x: Networks,
    arm: Weighing,
    prior: Prior,
    test: Array,
    key: Array,
    effort: Effort,
) -> Responses:
    """-log p(x) under N(0, I) and the fitted prior, and from proposals other than q.

    These are a defensive one, half of it the prior, and q with the variances that it would have
    at weights one: s = c / (a + h) says what h is, and that 1 / (1 + h) is the exact
    posterior's variance as far as the decoder is linear.
    """
    standard = kljax.standard_normal(model.latents)
    a, c = arm.weights.trace, arm.weights.log_det

    def estimate(given: tuple[Array, Array, Array]) -> Responses:
        use_fitted, share, implied = given

        def proposal(image: Array) -> kljax.MultivariateNormalDiag:
            q = posterior(model, x, image)
            assert isinstance(q, kljax.MultivariateNormalDiag)
            log_s = jnp.log(kljax.variance(q))
            # 1 + h; not above 0 where theory has no such posterior, as with c = 0.
            precision = 1 - a + c * jnp.exp(-log_s)
            known = implied & (precision > 0)
            other = -jnp.log(jnp.where(known, precision, 1.0))
            return kljax.MultivariateNormalDiag(
                q.loc, log_variance=jnp.where(known, other, log_s)
            )

        def joint(z: Array, image: Array) -> Array:
            """Log p(x | z), and what the fitted prior has more than the standard one."""
            off = z - prior.loc
            square = jnp.einsum("si,ij,sj->s", off, prior.precision, off)
            more = 0.5 * (jnp.sum(z * z, axis=1) - square - prior.log_det)
            return log_likelihood(model, x, z, image) + jnp.where(use_fitted, more, 0.0)

        found = vae.importance_nll(
            proposal,
            standard,
            joint,
            test,
            key,
            samples=effort.importance,
            sample_chunk=effort.importance,
            defensive=share,
        )
        return {
            "": jnp.mean(found.nll),
            "_effective": jnp.mean(found.effective_samples),
            "_pareto_k": jnp.median(found.pareto_k),
            "_trusted": jnp.mean(found.trusted),
        }

    # One program for all of them; a share of 0 is the plain estimate.
    plans = (
        jnp.asarray([False, True, False, False]),
        jnp.asarray([0.0, 0.0, DEFENSIVE, 0.0]),
        jnp.asarray([False, False, False, True]),
    )
    found = jax.lax.map(estimate, plans)
    names = ("nll", "nll_fit", "nll_defensive", "nll_implied")
    return {
        name + kind: values[place]
        for place, name in enumerate(names)
        for kind, values in found.items()
    }


def of_decoder(model: Model, x: Networks, arm: Weighing, test: Array, key: Array) -> Responses:
    """Columns of the decoder's Jacobian: how aligned, and the variances they predict.

    Stationarity by log s_i is s_i = c / (a + h_i), h_i = E_q d^2 R / dz_i^2, which for a
    Gaussian decoder is |dx/dz_i|^2 / variance but for the decoder's own curvature.
    """
    q = posterior(model, x, test)
    jacobian = jax.vmap(jax.jacfwd(lambda z: perceptron(x.decoder, z)))
    columns = jacobian(q.loc)
    length = jnp.sqrt(jnp.sum(columns**2, axis=1))
    unit = columns / length[:, None, :]
    above = jnp.triu_indices(model.latents, 1)
    cosines = jnp.abs(jnp.einsum("npi,npj->nij", unit, unit))[:, above[0], above[1]]
    answer = {"alignment": jnp.mean(cosines)}
    if model.posterior != "diag":
        return answer
    draws = kljax.sample(q, key, JACOBIAN_DRAWS)
    squares = jnp.stack([jnp.sum(jacobian(z) ** 2, axis=1) for z in draws])
    curvature = jnp.mean(squares, axis=0) / model.variance
    predicted = jnp.log(arm.weights.log_det) - jnp.log(arm.weights.trace + curvature)
    found = jnp.log(kljax.variance(q))
    rest = jnp.sum((found - predicted) ** 2)
    explained = 1 - rest / jnp.sum((found - jnp.mean(found)) ** 2)
    return answer | {
        "variance_law": explained,
        "log_s_predicted": predicted,
        "log_s": found,
    }
