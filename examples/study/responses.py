"""What is measured on every trained model, at weights one whatever its training weighed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import kljax
from kljax import vae
from study import likelihood, noise
from study.compiled import compiled
from study.design import Effort, Model
from study.networks import Networks, Weighing, log_likelihood, perceptron, posterior
from study.store import Arrays

RECONSTRUCTION_SAMPLES = 8
# Images and draws at which the decoder is differentiated.
JACOBIAN_IMAGES, JACOBIAN_DRAWS = 128, 4

Responses = dict[str, Array]


class Assessor:
    """The responses of a model; what it compiles serves all arms.

    Args:
        model: of all of them.
        train: images, shape (images, pixels), whose posteriors make up the aggregated one.
        test: images that are reconstructed, and whose likelihood is estimated.
        key: a `jax.random.key`, the same for all arms and seeds.
        effort: how many of everything.
    """

    def __init__(self, model: Model, train: Array, test: Array, key: Array, effort: Effort):
        self._model = model
        draws, estimates, noises = jax.random.split(key, 3)

        def common(x: Networks, arm: Weighing) -> Responses:
            return of_model(model, x, arm, train, test, draws, effort)

        def likelihoods(
            x: Networks, arm: Weighing, prior: likelihood.Prior, plan: likelihood.Plan
        ) -> Responses:
            images = test[: effort.images]
            return likelihood.estimate(model, x, arm, prior, plan, images, estimates, effort)

        def noisy(x: Networks, arm: Weighing) -> Responses:
            c = arm.weights.log_det
            return noise.variances(model, x, c, train, noises, effort.draws)

        self._common, self._noise = over_seeds(common, 1), over_seeds(noisy, 1)
        self._likelihood = over_seeds(likelihoods, 1, 3)
        self._moments = over_seeds(lambda x: likelihood.aggregated(model, x, train))

    def __call__(self, trained: Networks, arm: Weighing, *, probed: bool) -> Arrays:
        """Arrays of shape (seeds, ...), from parameters of that shape.

        Args:
            trained: parameters of one arm.
            arm: that arm, of scalars.
            probed: measure other proposals and the noise of gradients, too.
        """
        found = self._common(trained, arm)
        if self._model.posterior == "diag":
            # Densities of many matrices take long to compile, and no prediction needs them.
            prior = likelihood.fitted(*jax.device_get(self._moments(trained)))
            plans = likelihood.COMMON | (likelihood.PROBES if probed else {})
            for name, plan in plans.items():
                values = self._likelihood(trained, arm, prior, plan)
                found |= {name + kind: value for kind, value in values.items()}
        if probed:
            found |= self._noise(trained, arm)
        return {name: np.asarray(x) for name, x in jax.device_get(found).items()}


def over_seeds(function: Callable[..., Any], *shared: int) -> Callable[..., Any]:
    """The function compiled, for arguments whose first axis are seeds but for the `shared`.

    One model after another: all at once would need all of their memory.
    """

    def mapped(*given: Any) -> Any:
        def one(each: tuple[Any, ...]) -> Any:
            mixed = iter(each)
            return function(*(x if i in shared else next(mixed) for i, x in enumerate(given)))

        return jax.lax.map(one, tuple(x for i, x in enumerate(given) if i not in shared))

    return compiled(mapped)


def of_model(
    model: Model,
    x: Networks,
    arm: Weighing,
    train: Array,
    test: Array,
    key: Array,
    effort: Effort,
) -> Responses:
    keys = jax.random.split(key, 3)
    found = (
        of_posteriors(model, x, arm, train)
        | of_reconstruction(model, x, test, keys[0])
        | of_decoder(model, x, arm, test[:JACOBIAN_IMAGES], keys[1])
    )
    if model.posterior != "diag":
        return found
    parts = vae.decompose(posterior(model, x, train[: effort.points]), keys[2])
    return found | {
        "information": parts.mutual_information,
        "marginal_kl": parts.marginal_kl,
    }


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
