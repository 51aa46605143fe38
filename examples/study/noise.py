"""How much the estimators' gradients vary, at trained models and as the log-det weight falls.

T + M + c L is c KL(q ‖ N(0, I)) + (1 - c) E|z|^2 / 2 up to a constant, so every estimator of a
KL has a form with weights (1, 1, c), for c = 0 as well: what is added to the KL is the mean of
a function of z, as the reconstruction is.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

import kljax
from kljax import vae
from study.design import Model
from study.networks import Layer, Networks, log_likelihood, posterior
from study.training import BATCH

ESTIMATORS = ("closed_form", "monte_carlo", "sticking_the_landing")


def variances(
    model: Model, x: Networks, c: Array, images: Array, key: Array, draws: int
) -> dict[str, Array]:
    """Summed variances of the encoder's gradient, and those of the loss.

    Args:
        model: with a diagonal posterior.
        x: a trained model.
        c: weight of the log-determinant; those of the other terms are taken as 1.
        images: of which the first make up the minibatch.
        key: a `jax.random.key`, the same for all models and estimators.
        draws: of the latents.

    Returns:
        The variance of a gradient as "noise NAME", that of the loss as "value NAME".
    """
    batch, keys = images[:BATCH], jax.random.split(key, draws)
    answer = {}
    for name in ESTIMATORS:
        gradient = jax.value_and_grad(partial(weighted, name))
        values, slopes = jax.lax.map(
            lambda k, g=gradient: g(x.encoder, model, x, c, batch, k), keys
        )
        answer[f"noise {name}"] = sum(
            jnp.sum(jnp.var(slope, axis=0, ddof=1)) for slope in jax.tree.leaves(slopes)
        )
        answer[f"value {name}"] = jnp.var(values, ddof=1)
    return answer


def weighted(
    name: str,
    encoder: tuple[Layer, ...],
    model: Model,
    x: Networks,
    c: Array,
    images: Array,
    key: Array,
) -> Array:
    """Reconstruction + T + M + c (L - k / 2) by one of the estimators."""
    x = x._replace(encoder=encoder)
    q, p = posterior(model, x, images), kljax.standard_normal(model.latents)

    def rest(z: Array) -> Array:
        square = 0.5 * jnp.sum(z * z, axis=-1) if name != "closed_form" else 0.0
        return log_likelihood(model, x, z, images) - (1 - c) * square

    parts = vae.ESTIMATORS[name](q, p, rest, key)
    if name == "closed_form":
        return vae.with_term_weights(parts, vae.TermWeights(1.0, 1.0, c)).loss
    return jnp.mean(parts.reconstruction + c * parts.kl)
