"""Posteriors that are mixtures of Gaussians, trained by the ELBO and by SIWAE.

One latent is drawn from every component (stratified sampling). With shares pi_c,

    ELBO   sum_c pi_c log w_c,   SIWAE   log sum_c pi_c w_c,   w_c = p(x, z_c) / q(z_c),

where q is the whole mixture (Morningstar, Vikram, Ham, Gallagher and Dillon 2021). What is left
of the components is counted by exp of the information that a latent has about its component:
1 where all are equal or one has every share, C where C equally likely ones are apart.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp

import kljax
from study.compiled import compiled
from study.design import Model
from study.networks import HIDDEN, Layer, Networks, layers, log_likelihood, perceptron

COMPONENTS = 4
COUNT_DRAWS = 64


class Mixture(NamedTuple):
    """Logarithms of shares (..., C), and components with one more batch axis, (..., C)."""

    log_share: Array
    components: kljax.MultivariateNormalDiag


def initial(model: Model, siwae: Array, pixels: int, key: Array) -> Networks:
    """The start, the same for both objectives: components apart by their means."""
    del siwae
    first, second = jax.random.split(key)
    each = 2 * model.latents + 1
    *hidden, last = layers(first, (pixels, HIDDEN, HIDDEN, COMPONENTS * each))
    small = jnp.tile(jnp.full(each, 0.01).at[: model.latents].set(1.0), COMPONENTS)
    encoder = (*hidden, Layer(last.kernel * small, last.bias))
    return Networks(encoder, layers(second, (model.latents, HIDDEN, HIDDEN, pixels)))


def posterior(model: Model, x: Networks, images: Array) -> Mixture:
    found = perceptron(x.encoder, 2 * images - 1)
    k = model.latents
    found = found.reshape(*found.shape[:-1], COMPONENTS, 2 * k + 1)
    components = kljax.MultivariateNormalDiag(
        found[..., :k], log_variance=found[..., k : 2 * k]
    )
    return Mixture(jax.nn.log_softmax(found[..., 2 * k]), components)


def log_prob(q: Mixture, z: Array) -> Array:
    """Log-density of the mixture at z of shape (draws, images, latents)."""
    each = kljax.log_prob(q.components, z[..., None, :])
    return logsumexp(q.log_share + each, axis=-1)


def loss(
    model: Model, x: Networks, siwae: Array, images: Array, key: Array
) -> tuple[Array, dict[str, Any]]:
    """-ELBO or, where `siwae` is 1, -SIWAE, in nats an image."""
    q = posterior(model, x, images)
    z = jnp.moveaxis(kljax.sample(q.components, key), 1, 0)
    prior = kljax.standard_normal(model.latents)
    log_w = log_likelihood(model, x, z, images) + kljax.log_prob(prior, z) - log_prob(q, z)
    log_share = q.log_share.T
    elbo = jnp.mean(jnp.sum(jnp.exp(log_share) * log_w, axis=0))
    bound = jnp.mean(logsumexp(log_share + log_w, axis=0))
    return -jnp.where(siwae, bound, elbo), {"elbo": elbo, "siwae": bound}


def assess(model: Model, trained: Networks, test: Array, key: Array) -> dict[str, Array]:
    """Effective components and both bounds on test images, of shape (objectives, seeds)."""

    def one(x: Networks) -> dict[str, Array]:
        q = posterior(model, x, test)
        draw, bound = jax.random.split(key)
        z = kljax.sample(q.components, draw, COUNT_DRAWS)
        each = kljax.log_prob(q.components, jnp.moveaxis(z, 2, 0)[..., None, :])
        own = jnp.stack([each[c, ..., c] for c in range(COMPONENTS)])
        all_of_them = logsumexp(q.log_share + each, axis=-1)
        information = jnp.sum(
            jnp.exp(q.log_share.T) * jnp.mean(own - all_of_them, axis=1), axis=0
        )
        _, bounds = loss(model, x, jnp.zeros(()), test, bound)
        return {"components": jnp.mean(jnp.exp(information)), **bounds}

    return compiled(jax.vmap(jax.vmap(one)))(trained)
