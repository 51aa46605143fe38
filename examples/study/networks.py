"""Perceptrons in pure JAX: encoder and decoder of the study, and the Gaussian VAE they make."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

import kljax
from kljax import vae
from study.design import Model

HIDDEN = 64
Posterior = kljax.MultivariateNormalDiag | kljax.MultivariateNormal


class Layer(NamedTuple):
    kernel: Array
    bias: Array


class Networks(NamedTuple):
    """Layers of the encoder, and of the decoder."""

    encoder: tuple[Layer, ...]
    decoder: tuple[Layer, ...]


class Weighing(NamedTuple):
    """What an arm is inside a program: `design.Arm` in arrays."""

    weights: vae.TermWeights
    log_variance: Array
    unit: Array


def perceptron(layers: tuple[Layer, ...], x: Array) -> Array:
    *hidden, last = layers
    for layer in hidden:
        x = jnp.tanh(x @ layer.kernel + layer.bias)
    return x @ last.kernel + last.bias


def layers(key: Array, sizes: tuple[int, ...]) -> tuple[Layer, ...]:
    """Weights of variance 1 / inputs, biases of 0."""
    keys = jax.random.split(key, len(sizes) - 1)
    return tuple(
        Layer(jax.random.normal(k, (a, b)) / math.sqrt(a), jnp.zeros(b))
        for k, a, b in zip(keys, sizes, sizes[1:], strict=False)
    )


def outputs(model: Model) -> int:
    """Numbers an encoder gives: means, log-variances, and the lower half of a full matrix."""
    return model.latents * (2 + (model.latents if model.posterior == "full" else 0))


def initial(model: Model, arm: Weighing, pixels: int, key: Array) -> Networks:
    """The start of an arm, the same for all arms but for its log-variance and its unit."""
    first, second = jax.random.split(key)
    k = model.latents
    *hidden, last = layers(first, (pixels, HIDDEN, HIDDEN, outputs(model)))
    # Means as they are, variances nearly constant, no correlation yet.
    scale = jnp.full(last.bias.shape, 0.01).at[:k].set(arm.unit)
    start = arm.log_variance + 2 * jnp.log(arm.unit)
    bias = jnp.zeros(last.bias.shape).at[k : 2 * k].set(start)
    encoder = (*hidden, Layer(last.kernel * scale, bias))
    entry, *rest = layers(second, (k, HIDDEN, HIDDEN, pixels))
    return Networks(encoder, (Layer(entry.kernel / arm.unit, entry.bias), *rest))


def posterior(model: Model, x: Networks, images: Array) -> Posterior:
    """q(z | images), for pixels from 0 to 1."""
    found = perceptron(x.encoder, 2 * images - 1)
    k = model.latents
    loc, log_variance = found[..., :k], found[..., k : 2 * k]
    if model.posterior == "diag":
        return kljax.MultivariateNormalDiag(loc, log_variance=log_variance)
    below = jnp.tril(found[..., 2 * k :].reshape(*loc.shape, k), -1)
    diagonal = jnp.eye(k) * jnp.exp(0.5 * log_variance)[..., None]
    return kljax.MultivariateNormal(loc, below + diagonal)


def log_likelihood(model: Model, x: Networks, z: Array, images: Array) -> Array:
    return vae.likelihoods.gaussian(perceptron(x.decoder, z), images, variance=model.variance)


def loss(
    model: Model, x: Networks, arm: Weighing, images: Array, key: Array
) -> tuple[Array, dict[str, Any]]:
    """Reconstruction + weighted terms in nats an image, and the unweighted parts."""
    q, p = posterior(model, x, images), kljax.standard_normal(model.latents)
    parts = vae.closed_form(q, p, lambda z: log_likelihood(model, x, z, images), key)
    assert isinstance(parts.terms, vae.LatentTerms)
    each = {
        name: jnp.mean(getattr(parts.terms, name), axis=0)
        for name in ("trace", "mahalanobis", "log_det")
    }
    metrics = {"reconstruction": jnp.mean(parts.reconstruction), **each}
    return vae.with_term_weights(parts, arm.weights).loss, metrics
