"""Where betas, schedules, free bits and capacities end: the rate-distortion plane.

    python examples/schedules.py            # a few minutes
    python examples/schedules.py --quick    # under a minute

The same VAE of the digits is trained with every objective at once: one program, the same start,
batches and noise for all, so that differences are those of the objectives. Each ends at a rate,
KL(q ‖ p), and a distortion, -E_q log p(x | z), whose sum is -ELBO. What training weighs moves
a model along the plane (Alemi et al. 2018); the ELBO itself is best at weights one.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array

from kljax import vae
from kljax.vae import schedules
from vae import command, data, evaluate, plane_picture
from vae.flag_types import whole_number
from vae_digits import VAE, WEIGHT_DECAY_IMAGES

PROGRAM = "schedules.py"
LATENTS, BATCH, LEARNING_RATE = 12, 64, 2e-3
# How strongly a capacity holds the KL.
GAMMA = 20.0
DRAWS = 16
RECORDS = 50

Schedule = Callable[[Any], Any]


class Arm(NamedTuple):
    """One objective: its name, its kind, and what it asks for at every step.

    Attributes:
        name: for the table.
        kind: for the picture.
        beta: weight of the KL.
        free_bits: nats of each latent.
        capacity: nats at which the KL is held, or None.
    """

    name: str
    kind: str
    beta: Schedule = schedules.constant(1.0)
    free_bits: float = 0.0
    capacity: Schedule | None = None


class Knobs(NamedTuple):
    """The numbers of an arm, which one program reads for all arms."""

    beta: Array
    free_bits: Array
    capacity: Array
    holds: Array


def arms(steps: int) -> list[Arm]:
    half = steps // 2
    return [
        *(
            Arm(f"beta {beta:g}", "beta", schedules.constant(beta))
            for beta in (0.25, 0.5, 1, 2, 4, 8, 16)
        ),
        Arm("linear warm-up to 1", "schedule", schedules.linear(0.0, 1.0, half)),
        Arm("sigmoid warm-up to 1", "schedule", schedules.sigmoid(0.0, 1.0, half)),
        Arm("4 cycles up to 1", "schedule", schedules.cyclical(0.0, 1.0, steps)),
        *(
            Arm(f"{nats:g} nats of each latent free", "free bits", free_bits=nats)
            for nats in (0.5, 1.0, 2.0)
        ),
        *(
            Arm(
                f"capacity rising to {nats:g} nats",
                "capacity",
                capacity=schedules.linear(0.0, nats, half),
            )
            for nats in (5.0, 10.0, 25.0)
        ),
    ]


def knobs(arm: Arm, steps: int) -> Knobs:
    """The numbers of an arm, each of shape (steps,)."""
    every = jnp.arange(steps)
    capacity = arm.capacity or schedules.constant(0.0)
    return Knobs(
        arm.beta(every),
        jnp.full(steps, arm.free_bits),
        capacity(every),
        jnp.full(steps, arm.capacity is not None),
    )


def parts_of(model: VAE, images: Array, key: Array, samples: int) -> vae.ElboParts:
    return vae.closed_form(
        model.posterior(images),
        model.prior(),
        lambda latents: model.log_likelihood(latents, images),
        key,
        samples=samples,
    )


def loss(model: VAE, images: Array, key: Array, now: Knobs) -> tuple[Array, Array]:
    """An arm's objective, with rate and distortion beside it, in nats an image."""
    parts = parts_of(model, images, key, 1)
    held = vae.with_capacity(parts, now.capacity, gamma=GAMMA).loss
    weighed = vae.with_free_bits(parts, now.free_bits, beta=now.beta).loss
    point = jnp.stack([jnp.mean(parts.kl), jnp.mean(parts.reconstruction)])
    return jnp.where(now.holds, held, weighed), point


@partial(jax.jit, static_argnames=("graph", "steps"))
def train(
    graph: Any, state: Any, asked: Knobs, images: Array, key: Array, *, steps: int
) -> tuple[Any, Array]:
    """All arms at once: their states, and rate and distortion on the way.

    Returns:
        The states, and an array of shape (arms, records, 2).
    """
    order_key, noise_key = jax.random.split(key)
    epochs = -(-steps * BATCH // len(images))
    orders = jax.vmap(lambda k: jax.random.permutation(k, len(images)))(
        jax.random.split(order_key, epochs)
    )
    batches = orders.reshape(-1)[: steps * BATCH].reshape(steps, BATCH)
    keys = jax.random.split(noise_key, steps)

    def step(state: Any, at: tuple[Array, Array, Knobs]) -> tuple[Any, Array]:
        indices, key, now = at
        model, optimizer = nnx.merge(graph, state)
        inputs = images[indices].astype(jnp.float32)
        gradient, point = nnx.grad(loss, has_aux=True)(model, inputs, key, now)
        optimizer.update(model, gradient)
        return nnx.state((model, optimizer)), point

    def run(asked: Knobs) -> tuple[Any, Array]:
        end, points = jax.lax.scan(step, state, (batches, keys, asked))
        return end, jnp.mean(points.reshape(RECORDS, -1, 2), axis=1)

    return jax.vmap(run)(asked)


@partial(jax.jit, static_argnames="graph")
def assess(graph: Any, states: Any, images: Array, key: Array) -> tuple[Array, Array, Array]:
    """Rate, distortion and posterior mean of every test image, with an axis of arms first."""

    def one(state: Any) -> tuple[Array, Array, Array]:
        model, _ = nnx.merge(graph, state)

        def each(image: Array, key: Array) -> tuple[Array, Array, Array]:
            parts = parts_of(model, image, key, DRAWS)
            return parts.kl, parts.reconstruction, model.posterior(image).loc

        return evaluate.over_images(each, images, key, DRAWS)

    return jax.lax.map(one, states)


class Found(NamedTuple):
    """Where an arm ended on the test images; in nats an image, standard errors beside.

    Attributes:
        name: of the arm.
        kind: of the arm.
        rate: KL(q ‖ p).
        distortion: -E_q log p(x | z).
        minus_elbo: their sum, at weights one.
        error: of minus_elbo over the test images.
        difference: of minus_elbo from that of beta 1, image by image.
        difference_error: of that difference.
        active: latents whose posterior mean moves with the image.
    """

    name: str
    kind: str
    rate: float
    distortion: float
    minus_elbo: float
    error: float
    difference: float
    difference_error: float
    active: int


def summarize(
    chosen: Sequence[Arm], rate: np.ndarray, distortion: np.ndarray, loc: np.ndarray
) -> list[Found]:
    bound = (rate + distortion).astype(np.float64)
    apart = bound - bound[[arm.name for arm in chosen].index("beta 1")]
    count = np.sqrt(bound.shape[1])
    return [
        Found(
            arm.name,
            arm.kind,
            float(np.mean(rate[i])),
            float(np.mean(distortion[i])),
            float(np.mean(bound[i])),
            float(np.std(bound[i], ddof=1) / count),
            float(np.mean(apart[i])),
            float(np.std(apart[i], ddof=1) / count),
            int(np.sum(evaluate.active(loc[i]))),
        )
        for i, arm in enumerate(chosen)
    ]


def show(found: Sequence[Found]) -> None:
    print(
        "\n                                   rate  distortion        -ELBO      beyond that of"
        "  active\n"
        "objective                            KL                            beta 1, paired"
        "   units"
    )
    for x in found:
        print(
            f"{x.name:30s}{x.rate:9.2f}{x.distortion:12.2f}{x.minus_elbo:9.2f} ± {x.error:.2f}"
            f"{x.difference:10.2f} ± {x.difference_error:.2f}{x.active:8d}"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.Parser(prog=PROGRAM, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps, under a minute")
    seed = {"type": whole_number(0, 2**32 - 1), "default": 0}
    parser.add_argument("--seed", **seed, help="of weights, batches and noise, by default 0")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/schedules"), help="folder for table and picture"
    )
    options = parser.parse_args(arguments)
    command.make_folder(PROGRAM, options.out)
    return study(options.out, 200 if options.quick else 3000, options.seed)


def study(out: Path, steps: int, seed: int) -> int:
    images, chosen = data.load(None, BATCH), arms(steps)
    print(
        f"images      {len(images.train):,} train, {len(images.test)} test, of "
        f"{images.source}\n"
        f"likelihood  discretized logistic on the pixel values 0..{images.levels}\n"
        f"training    {len(chosen)} objectives at once, {steps} steps of {BATCH} images each, "
        f"seed {seed}\n"
        "units       nats per image, mean ± standard error over the test images",
        flush=True,
    )
    began = time.perf_counter()
    rate, distortion, loc, paths = results(images, chosen, steps, seed)
    print(f"time        {time.perf_counter() - began:.1f} s")
    found = summarize(chosen, rate, distortion, loc)
    show(found)
    table, picture = out / "schedules.json", out / "plane.png"
    table.write_text(json.dumps([x._asdict() for x in found], indent=2) + "\n")
    plane_picture.draw(found, paths, steps, picture)
    print(f"\nfiles       {table}, {picture}")
    return 0


def results(
    images: data.Images, chosen: Sequence[Arm], steps: int, seed: int
) -> tuple[np.ndarray, ...]:
    """What `assess` finds after training, and the way there."""
    keys = jax.random.split(jax.random.key(seed), 3)
    model = VAE(images.pixels, images.levels, LATENTS, "diag", nnx.Rngs(keys[0]))
    rate = optax.cosine_decay_schedule(LEARNING_RATE, steps)
    rule = optax.adamw(rate, weight_decay=WEIGHT_DECAY_IMAGES / len(images.train))
    graph, state = nnx.split((model, nnx.Optimizer(model, rule, wrt=nnx.Param)))
    asked = jax.tree.map(lambda *each: jnp.stack(each), *(knobs(arm, steps) for arm in chosen))
    train_images, test_images = jnp.asarray(images.train), jnp.asarray(images.test)
    states, paths = train(graph, state, asked, train_images, keys[1], steps=steps)
    return jax.device_get((*assess(graph, states, test_images, keys[2]), paths))


if __name__ == "__main__":
    sys.exit(main())
