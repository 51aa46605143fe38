"""The evaluation of a VAE, at weights one whatever it was trained with."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

import kljax
from kljax import vae

IMPORTANCE_SAMPLES = 512
# Of -ELBO, a plain mean: more would not move the standard error over images.
BOUND_SAMPLES = 64
# Burda, Grosse and Salakhutdinov (2016) call a latent active above this variance.
ACTIVE_VARIANCE = 0.01
# Floats that the largest array of one chunk of images may hold.
CHUNK_FLOATS = 2**23

Posterior = kljax.MultivariateNormalDiag | kljax.MultivariateNormal


class Model(Protocol):
    """What is asked of a VAE; images are (..., pixels) and latents (..., latents)."""

    def prior(self) -> kljax.MultivariateNormalDiag: ...
    def posterior(self, images: Array) -> Posterior: ...
    def decode(self, latents: Array) -> Array: ...
    def log_likelihood(self, latents: Array, images: Array) -> Array: ...


def over_images(
    function: Callable[[Array, Array], Any], images: Array, key: Array, draws: int = 1
) -> Any:
    """function(image, key) of every image, in chunks so that memory stays bounded.

    Args:
        function: of one float32 image and a key.
        images: integer pixels, shape (images, pixels).
        key: split into one key an image.
        draws: how many times the function decodes its image.
    """
    count, pixels = images.shape
    most = max(1, CHUNK_FLOATS // (draws * max(pixels, 256)))
    chunk = math.ceil(count / math.ceil(count / most))
    # Whole chunks only: a shorter last one would be compiled a second time.
    rows = jnp.arange(chunk * math.ceil(count / chunk)) % count
    results = jax.lax.map(
        lambda pair: function(pair[0].astype(jnp.float32), pair[1]),
        (images[rows], jax.random.split(key, len(rows))),
        batch_size=chunk,
    )
    return jax.tree.map(lambda result: result[:count], results)


def assess(model: Model, image: Array, key: Array) -> dict[str, Array]:
    """Everything that the summary and the pictures need of one image."""
    q, prior = model.posterior(image), model.prior()
    bound_key, nll_key = jax.random.split(key)
    parts = vae.closed_form(
        q,
        prior,
        lambda latents: model.log_likelihood(latents, image),
        bound_key,
        samples=BOUND_SAMPLES,
    )
    weighted = vae.importance_nll(
        model.posterior,
        prior,
        model.log_likelihood,
        image[None],
        nll_key,
        samples=IMPORTANCE_SAMPLES,
        sample_chunk=IMPORTANCE_SAMPLES,
    )
    terms = kljax.kl_terms(q, prior)
    marginals = kljax.Normal(q.loc, variance=kljax.variance(q))
    return {
        "minus_elbo": -parts.elbo,
        "iw_nll": weighted.nll[0],
        "iw_error": weighted.standard_error[0],
        "effective_samples": weighted.effective_samples[0],
        "pareto_k": weighted.pareto_k[0],
        "trusted": weighted.trusted[0],
        "reconstruction": parts.reconstruction,
        "kl": parts.kl,
        "trace": terms.trace,
        "mahalanobis": terms.mahalanobis,
        "dimension": terms.dimension,
        "log_det": terms.log_det,
        "kl_from_terms": 0.5
        * (terms.trace + terms.mahalanobis - terms.dimension + terms.log_det),
        "kl_per_latent": kljax.kl_divergence(marginals, kljax.Normal(0.0, 1.0)),
        "loc": q.loc,
        "decoded": jnp.clip(model.decode(q.loc), 0, 1),
    }


def importance(assessed: Mapping[str, Any]) -> vae.ImportanceNLL:
    """What `assess` says of the likelihood of all images, to be asked for its verdict."""
    names = ("iw_nll", "iw_error", "effective_samples", "pareto_k", "trusted")
    return vae.ImportanceNLL(
        *(jnp.asarray(assessed[name]) for name in names), samples=IMPORTANCE_SAMPLES
    )


@nnx.jit
def posteriors(model: Model, images: Array) -> Posterior:
    """The posteriors of all images, found in chunks."""
    return over_images(lambda image, _: model.posterior(image), images, jax.random.key(0))


@nnx.jit
def assess_images(model: Model, images: Array, key: Array) -> dict[str, Array]:
    """`assess` of every image, with an axis of images in front."""
    return over_images(
        lambda image, key: assess(model, image, key), images, key, IMPORTANCE_SAMPLES
    )


@nnx.jit(static_argnames="count")
def decode_prior(model: Model, key: Array, *, count: int) -> Array:
    """Images in [0, 1] decoded from draws of the prior."""
    return jnp.clip(model.decode(kljax.sample(model.prior(), key, count)), 0, 1)


def active(posterior_means: np.ndarray) -> np.ndarray:
    """Which latents move with the image; posterior_means are (images, latents)."""
    return np.var(posterior_means, axis=0, ddof=1) > ACTIVE_VARIANCE
