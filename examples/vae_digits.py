"""A variational autoencoder of small images, whose KL is `kljax.kl_divergence`."""

import math
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from jax.sharding import Mesh

import kljax
from kljax.vae import (
    ESTIMATORS,
    ElboParts,
    constraint,
    delta_vae_log_variance,
    likelihoods,
)
from vae import data, evaluate, flags, machines, report, summary
from vae.checkpoint import Checkpoints, Snapshot
from vae.objective import Objective

HIDDEN = 256
# A prior on the weights, worth as much as so many images, however many there are;
# without it a thousand images are soon learned by heart.
WEIGHT_DECAY_IMAGES = 1400
# Whose posteriors the diagnostics look at; more would say the same.
MOST_DIAGNOSED = 10000

Metrics = dict[str, Array]


class VAE(nnx.Module):
    """Multilayer perceptrons that encode and decode images of pixels 0..levels."""

    def __init__(
        self,
        pixels: int,
        levels: int,
        latents: int,
        posterior: str,
        rngs: nnx.Rngs,
        committed: float | None = None,
    ):
        self.levels = levels
        self.latents = latents
        # Nats that the KL of every latent has at least, in a delta-VAE.
        self.committed = committed
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
        # Of a constraint; no gradient moves it.
        self.multiplier = nnx.Variable(constraint())

    def prior(self) -> kljax.MultivariateNormalDiag:
        return kljax.standard_normal(self.latents)

    def posterior(self, images: Array) -> evaluate.Posterior:
        """q(latents | image), of a covariance near the identity before training."""
        hidden = self.encoder(2 * images / self.levels - 1)
        loc, log_variance = self.loc(hidden), self.log_variance(hidden)
        if self.committed is not None:
            log_variance = delta_vae_log_variance(log_variance, self.committed)
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
        log_scale = self.log_scale[...] - math.log(10)
        return likelihoods.discretized_logistic(
            self.decode(latents), images, log_scale=log_scale, levels=self.levels
        )


def hidden_layers(inputs: int, rngs: nnx.Rngs) -> nnx.Sequential:
    first = nnx.Linear(inputs, HIDDEN, rngs=rngs)
    second = nnx.Linear(HIDDEN, HIDDEN, rngs=rngs)
    return nnx.Sequential(first, nnx.gelu, second, nnx.gelu)


def loss(
    model: VAE,
    images: Array,
    key: Array,
    objective: Objective = Objective(),  # noqa: B008
    step: Array | int = 0,
) -> tuple[Array, ElboParts]:
    """The objective, by default -ELBO = reconstruction + KL in nats an image, and its parts."""
    parts = ESTIMATORS[objective.estimator](
        model.posterior(images),
        model.prior(),
        lambda latents: model.log_likelihood(latents, images),
        key,
        samples=objective.samples,
    )
    parts = objective.shaped(parts, step, model.multiplier.get_value())
    return parts.loss, parts


def metrics_of(parts: ElboParts) -> Metrics:
    """Means over a batch at weights one, and the loss, whatever it weighs."""
    terms = {
        name: jnp.mean(jnp.sum(getattr(parts.terms, name), axis=-1)) for name in report.TERMS
    }
    return terms | {
        "elbo": jnp.mean(parts.elbo),
        "reconstruction": jnp.mean(parts.reconstruction),
        "kl": jnp.mean(parts.kl),
        "loss": parts.loss,
    }


@partial(jax.jit, static_argnames=("graph", "objective", "mesh", "steps", "batch_size"))
def train_epoch(
    graph: Any,
    state: Any,
    images: Array,
    key: Array,
    first: Array,
    objective: Objective,
    mesh: Mesh,
    *,
    steps: int,
    batch_size: int,
) -> tuple[Any, Metrics]:
    """Steps over shuffled batches in one compiled scan, and their mean metrics."""
    order_key, sample_key = jax.random.split(key)
    order = jax.random.permutation(order_key, len(images))[: steps * batch_size]

    def step(state: Any, batch: tuple[Array, Array, Array]) -> tuple[Any, Metrics]:
        indices, key, number = batch
        model, optimizer = nnx.merge(graph, state)
        inputs = machines.divided(images[indices].astype(jnp.float32), mesh)
        minimized = partial(loss, objective=objective, step=number)
        gradient, parts = nnx.grad(minimized, has_aux=True)(model, inputs, key)
        optimizer.update(model, gradient)
        model.multiplier.set_value(objective.followed(model.multiplier.get_value(), parts))
        state = machines.undivided(nnx.state((model, optimizer)), mesh)
        return state, metrics_of(parts)

    keys, numbers = jax.random.split(sample_key, steps), first + jnp.arange(steps)
    batches = order.reshape(steps, batch_size), keys, numbers
    state, metrics = jax.lax.scan(step, state, batches)
    return state, jax.tree.map(jnp.mean, metrics)


@partial(jax.jit, static_argnames="graph")
def test_metrics(graph: Any, state: Any, images: Array, key: Array) -> Metrics:
    model, _ = nnx.merge(graph, state)
    metrics = evaluate.over_images(
        lambda image, key: metrics_of(loss(model, image, key)[1]), images, key
    )
    return jax.tree.map(jnp.mean, metrics)


def optimized(model: VAE, options: flags.Flags, images: data.Images) -> tuple[Any, Any]:
    """The graph and the state of a model and its optimizer."""
    rate = optax.cosine_decay_schedule(options.learning_rate, options.steps)
    decay = WEIGHT_DECAY_IMAGES / len(images.train)
    adam = optax.adamw(rate, weight_decay=decay)
    return nnx.split((model, nnx.Optimizer(model, adam, wrt=nnx.Param)))


def train(
    model: VAE,
    options: flags.Flags,
    images: data.Images,
    key: Array,
    resumed: Snapshot | None = None,
) -> report.Progress:
    """Trains the model, recording the train and test metrics of every epoch."""
    graph, state = optimized(model, options, images)
    now = resumed or Snapshot(0, state)
    mesh, checkpoints = machines.mesh(options), Checkpoints(options, images)
    state, key, train_images, test_images = machines.everywhere(
        (now.state, key, images.train, images.test), mesh
    )
    with report.Progress(options, now.rows) as progress:
        try:
            while now.step < options.steps:
                train_key, test_key = epoch_keys(key, now.step)
                steps = min(len(images.train) // options.batch_size, options.steps - now.step)
                state, on_train = train_epoch(
                    graph,
                    state,
                    train_images,
                    train_key,
                    now.step,
                    options.objective,
                    mesh,
                    steps=steps,
                    batch_size=options.batch_size,
                )
                on_test = test_metrics(graph, state, test_images, test_key)
                progress.record(now.step + steps, *jax.device_get((on_train, on_test)))
                last, now = now, Snapshot(now.step + steps, state, tuple(progress.rows))
                checkpoints.offer(now, since=last.step)
        except KeyboardInterrupt:
            checkpoints.save(now)
            raise
    nnx.update(model, nnx.state(nnx.merge(graph, machines.gathered(state))[0]))
    return progress


@jax.jit
def epoch_keys(key: Array, step: int) -> tuple[Array, Array]:
    """Keys of the epoch that begins at a step, whatever came before it."""
    train_key, test_key = jax.random.split(jax.random.fold_in(key, step))
    return train_key, test_key


def run(options: flags.Flags) -> None:
    """Trains, evaluates and reports."""
    machines.connect(options)
    images = data.load(options.data, options.batch_size)
    keys = jax.random.split(jax.random.key(options.seed), 4)
    rngs = nnx.Rngs(keys[0])
    shape = images.pixels, images.levels, options.latents, options.posterior
    model = VAE(*shape, rngs, options.delta_vae)
    checkpoints, resumed = Checkpoints(options, images), None
    # Whatever may be refused is, before anything in the folder changes.
    machines.mesh(options)
    if options.resume:
        resumed = checkpoints.last(optimized(model, options, images)[1])
    else:
        checkpoints.refuse_strangers()
    with machines.one_voice(options) as options:
        report.begin(options, images)
        if not options.resume:
            checkpoints.clear()
        progress = train(model, options, images, keys[1], resumed)
        assessed = evaluate.assess_images(model, jnp.asarray(images.test), keys[2])
        samples = evaluate.decode_prior(model, keys[3], count=64)
        seen = evaluate.posteriors(model, jnp.asarray(images.train[:MOST_DIAGNOSED]))
        assessed, samples = jax.device_get((assessed, samples))
        multiplier = model.multiplier.get_value()
        summary.finish(options, images, progress, assessed, samples, seen, multiplier)


def main(arguments: Sequence[str] | None = None) -> int:
    options = flags.parse(arguments)
    try:
        run(options)
    except KeyboardInterrupt:
        found = f"metrics so far: {options.out / 'metrics.csv'}"
        print(f"\ninterrupted; {found}; the same command with --resume goes on")
        return 130
    except OSError as error:
        flags.stop(f"--out {options.out}: cannot be written: {error.strerror or error}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
