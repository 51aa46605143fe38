"""All arms and seeds of a group, trained as one compiled program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from kljax import vae
from study.design import Arm, Effort
from study.networks import Weighing

LEARNING_RATE = 2e-3
BATCH = 128


def weighings(arms: tuple[Arm, ...]) -> Weighing:
    """The arms as arrays whose first axis counts them."""
    columns = jnp.asarray([arm.weights for arm in arms], jnp.float32).T
    return Weighing(
        vae.TermWeights(*columns),
        jnp.asarray([arm.log_variance for arm in arms], jnp.float32),
        jnp.asarray([arm.unit for arm in arms], jnp.float32),
    )


def fit(
    initial: Callable[[Any, Array], Any],
    loss: Callable[[Any, Any, Array, Array], tuple[Array, Any]],
    arms: Any,
    keys: Array,
    images: Array,
    effort: Effort,
) -> tuple[Any, Any]:
    """Trains every arm from every key.

    Minibatches and draws depend on the key alone, so arms are paired.

    Args:
        initial: function of an arm and a key to parameters.
        loss: function of parameters, arm, images and key to the loss and metrics.
        arms: a pytree whose arrays count the arms along their first axis.
        keys: one for every seed.
        images: for training, shape (images, pixels).
        effort: how many steps.

    Returns:
        Parameters, and metrics averaged over every `effort.record` steps: arrays of shape
        (arms, seeds, ...) and (arms, seeds, records, ...).
    """
    rule = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, effort.steps))
    records = effort.steps // effort.record

    def run(arm: Any, key: Array) -> tuple[Any, Any]:
        start, noise = jax.random.split(key)
        begin = initial(arm, start)

        def step(carry: Any, number: Array) -> tuple[Any, Any]:
            x, state = carry
            which, draw = jax.random.split(jax.random.fold_in(noise, number))
            rows = jax.random.randint(which, (BATCH,), 0, len(images))
            gradient, metrics = jax.grad(loss, has_aux=True)(x, arm, images[rows], draw)
            change, state = rule.update(gradient, state)
            return (optax.apply_updates(x, change), state), metrics

        def stretch(carry: Any, numbers: Array) -> tuple[Any, Any]:
            carry, metrics = jax.lax.scan(step, carry, numbers)
            return carry, jax.tree.map(lambda m: jnp.mean(m, axis=0), metrics)

        numbers = jnp.arange(records * effort.record).reshape(records, effort.record)
        (end, _), metrics = jax.lax.scan(stretch, (begin, rule.init(begin)), numbers)
        return end, metrics

    over_seeds = jax.vmap(run, in_axes=(None, 0))
    return jax.jit(jax.vmap(over_seeds, in_axes=(0, None)))(arms, keys)
