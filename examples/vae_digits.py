"""A variational autoencoder of small images, whose KL is `kljax.kl_divergence`."""

import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

import kljax
from vae import data, evaluate, flags, report

HIDDEN = 256
# A prior on the weights, worth as much as so many images, however many there are;
# without it a thousand images are soon learned by heart.
WEIGHT_DECAY_IMAGES = 1400

Metrics = dict[str, Array]


class VAE(nnx.Module):
    """Multilayer perceptrons that encode and decode images of pixels 0..levels."""

    def __init__(self, pixels: int, levels: int, latents: int, posterior: str, rngs: nnx.Rngs):
        self.levels = levels
        self.latents = latents
        small = nnx.initializers.normal(0.01)
        self.encoder = hidden_layers(pixels, rngs)
        self.loc = nnx.Linear(HIDDEN, latents, rngs=rngs)
        self.log_variance = nnx.Linear(HIDDEN, latents, kernel_init=small, rngs=rngs)
        self.full = posterior == "full"
        if self.full:
            self.lower = nnx.Linear(HIDDEN, latents**2, kernel_init=small, rngs=rngs)
        self.decoder = hidden_layers(latents, rngs)
        self.center = nnx.Linear(HIDDEN, pixels, rngs=rngs)
        # Of the noise in the pixels, where 0 is a tenth of the way from black to white.
        self.log_scale = nnx.Param(jnp.zeros(pixels))

    def prior(self) -> kljax.MultivariateNormalDiag:
        return kljax.standard_normal(self.latents)

    def posterior(self, images: Array) -> evaluate.Posterior:
        """q(latents | image), of a covariance near the identity before training."""
        hidden = self.encoder(2 * images / self.levels - 1)
        loc, log_variance = self.loc(hidden), self.log_variance(hidden)
        if not self.full:
            return kljax.MultivariateNormalDiag(loc, log_variance=log_variance)
        lower = self.lower(hidden).reshape(*loc.shape, self.latents)
        diagonal = jnp.eye(self.latents) * jnp.exp(0.5 * log_variance)[..., None]
        return kljax.MultivariateNormal(loc, jnp.tril(lower, -1) + diagonal)

    def decode(self, latents: Array) -> Array:
        """The centers of the pixels, of which 0 is black and 1 is white."""
        return 0.5 + self.center(self.decoder(latents))

    def log_likelihood(self, latents: Array, images: Array) -> Array:
        """The sum of log p(pixel | latents) over the pixels, in nats."""
        # A whole-number pixel 0..levels is a logistic variable, rounded and clipped, whose
        # scale is learned for each pixel (Salimans et al. 2017). This is a probability
        # mass, so -ELBO bounds -log p(image). The usual cross-entropy of intensities in
        # [0, 1] is no normalized density and bounds nothing.
        center, slope = self.decode(latents), 10 * jnp.exp(-self.log_scale[...])
        upper = slope * ((images + 0.5) / self.levels - center)
        lower = slope * ((images - 0.5) / self.levels - center)
        top, bottom = images == self.levels, images == 0
        # P(X = x) = P(X <= x) P(X >= x) (1 - e^(lower - upper)), without cancellation.
        at_most = jnp.where(top, 0, nnx.log_sigmoid(upper))
        at_least = jnp.where(bottom, 0, nnx.log_sigmoid(-lower))
        width = jnp.log(-jnp.expm1(-slope / self.levels))
        return jnp.sum(at_most + at_least + jnp.where(top | bottom, 0, width), axis=-1)


def hidden_layers(inputs: int, rngs: nnx.Rngs) -> nnx.Sequential:
    first = nnx.Linear(inputs, HIDDEN, rngs=rngs)
    second = nnx.Linear(HIDDEN, HIDDEN, rngs=rngs)
    return nnx.Sequential(first, nnx.gelu, second, nnx.gelu)


def loss(model: VAE, images: Array, key: Array) -> tuple[Array, Metrics]:
    """-ELBO = reconstruction + KL in nats an image: events summed, images averaged."""
    q, prior = model.posterior(images), model.prior()
    latents = kljax.sample(q, key)
    reconstruction = -jnp.mean(model.log_likelihood(latents, images))
    kl = jnp.mean(kljax.kl_divergence(q, prior))
    terms = jax.tree.map(jnp.mean, kljax.kl_terms(q, prior))
    metrics = {
        "elbo": -(reconstruction + kl),
        "reconstruction": reconstruction,
        "kl": kl,
        "trace": terms.trace,
        "mahalanobis": terms.mahalanobis,
        "dimension": terms.dimension,
        "log_det": terms.log_det,
    }
    return reconstruction + kl, metrics


@partial(jax.jit, static_argnames=("graph", "steps", "batch_size"))
def train_epoch(
    graph: Any, state: Any, images: Array, key: Array, *, steps: int, batch_size: int
) -> tuple[Any, Metrics]:
    """Steps over shuffled batches in one compiled scan, and their mean metrics."""
    order_key, sample_key = jax.random.split(key)
    order = jax.random.permutation(order_key, len(images))[: steps * batch_size]

    def step(state: Any, batch: tuple[Array, Array]) -> tuple[Any, Metrics]:
        indices, key = batch
        model, optimizer = nnx.merge(graph, state)
        inputs = images[indices].astype(jnp.float32)
        gradient, metrics = nnx.grad(loss, has_aux=True)(model, inputs, key)
        optimizer.update(model, gradient)
        return nnx.state((model, optimizer)), metrics

    batches = order.reshape(steps, batch_size), jax.random.split(sample_key, steps)
    state, metrics = jax.lax.scan(step, state, batches)
    return state, jax.tree.map(jnp.mean, metrics)


@partial(jax.jit, static_argnames="graph")
def test_metrics(graph: Any, state: Any, images: Array, key: Array) -> Metrics:
    model, _ = nnx.merge(graph, state)
    _, metrics = evaluate.over_images(partial(loss, model), images, key)
    return jax.tree.map(jnp.mean, metrics)


def train(model: VAE, options: flags.Flags, images: data.Images, key: Array) -> report.Progress:
    """Trains the model, recording the train and test metrics of every epoch."""
    rate = optax.cosine_decay_schedule(options.learning_rate, options.steps)
    decay = WEIGHT_DECAY_IMAGES / len(images.train)
    adam = optax.adamw(rate, weight_decay=decay)
    graph, state = nnx.split((model, nnx.Optimizer(model, adam, wrt=nnx.Param)))
    train_images, test_images = jnp.asarray(images.train), jnp.asarray(images.test)
    size, done = options.batch_size, 0
    with report.Progress(options) as progress:
        while done < options.steps:
            key, train_key, test_key = jax.random.split(key, 3)
            steps = min(len(train_images) // size, options.steps - done)
            state, on_train = train_epoch(
                graph, state, train_images, train_key, steps=steps, batch_size=size
            )
            on_test = test_metrics(graph, state, test_images, test_key)
            done += steps
            progress.record(done, *jax.device_get((on_train, on_test)))
    nnx.update(model, nnx.state(nnx.merge(graph, state)[0]))
    return progress


def run(options: flags.Flags) -> None:
    """Trains, evaluates and reports."""
    images = data.load(options.data, options.batch_size)
    report.begin(options, images)
    keys = jax.random.split(jax.random.key(options.seed), 4)
    rngs = nnx.Rngs(keys[0])
    model = VAE(images.pixels, images.levels, options.latents, options.posterior, rngs)
    progress = train(model, options, images, keys[1])
    assessed = evaluate.assess_images(model, jnp.asarray(images.test), keys[2])
    samples = evaluate.decode_prior(model, keys[3], count=64)
    report.finish(options, images, progress, *jax.device_get((assessed, samples)))


def main(arguments: Sequence[str] | None = None) -> int:
    options = flags.parse(arguments)
    try:
        run(options)
    except KeyboardInterrupt:
        print(f"\ninterrupted; metrics so far: {options.out / 'metrics.csv'}")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
