"""All arms and seeds of a group, trained by one compiled program, block after block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from kljax import vae
from study.compiled import compiled
from study.design import Arm, Effort
from study.networks import Weighing
from study.progress import Progress
from study.store import Arrays, Store

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
    name: str,
    store: Store,
    progress: Progress,
) -> tuple[Any, Arrays]:
    """Trains every arm from every key.

    Minibatches and draws depend on the key and the step alone, so arms are paired, and a
    resumed training is the one that was interrupted.

    Args:
        initial: function of an arm and a key to parameters.
        loss: function of parameters, arm, images and key to the loss and a dict of metrics.
        arms: a pytree whose arrays count the arms along their first axis.
        keys: one for every seed.
        images: for training, shape (images, pixels).
        effort: how many steps.
        name: of the group.
        store: keeps parameters and metrics after every block.
        progress: is told of every block.

    Returns:
        Parameters, and metrics averaged over every `effort.record` steps: arrays of shape
        (arms, seeds, ...) and (arms, seeds, records, ...).
    """
    rule = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, effort.steps))

    def begin(arm: Any, key: Array) -> Any:
        x = initial(arm, jax.random.split(key)[0])
        return x, rule.init(x)

    def advance(carry: Any, arm: Any, key: Array, numbers: Array) -> tuple[Any, Any]:
        noise = jax.random.split(key)[1]

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

        return jax.lax.scan(stretch, carry, numbers)

    carry = compiled(over_all(begin, (0, None), (None, 0)))(arms, keys)
    program = compiled(over_all(advance, (0, 0, None, None), (0, None, 0, None)))
    kept = store.read(f"{name} training") or {}
    done = int(kept.get("blocks", 0))
    carry = with_leaves(carry, kept) if done else carry
    history = {key.removeprefix(METRIC): x for key, x in kept.items() if METRIC in key}
    blocks = effort.blocks
    for block in range(blocks):
        if block >= done:
            first, size = block * effort.block, effort.block
            numbers = jnp.arange(first * effort.record, (first + size) * effort.record)
            carry, metrics = program(carry, arms, keys, numbers.reshape(size, -1))
            history = joined(history, jax.device_get(metrics))
            store.write(
                f"{name} training",
                leaves(carry)
                | {METRIC + key: x for key, x in history.items()}
                | {"blocks": np.asarray(block + 1)},
            )
        progress.advance(f"{name}: trained {block + 1}/{blocks}")
    return carry[0], history


METRIC = "metric "


def over_all(function: Any, arms: tuple[Any, ...], seeds: tuple[Any, ...]) -> Any:
    """The function of one arm and seed, over both: results of shape (arms, seeds, ...)."""
    return jax.vmap(jax.vmap(function, in_axes=seeds), in_axes=arms)


def leaves(tree: Any) -> Arrays:
    return {f"leaf {i}": np.asarray(x) for i, x in enumerate(jax.tree.leaves(tree))}


def with_leaves(tree: Any, kept: Arrays) -> Any:
    count = len(jax.tree.leaves(tree))
    found = [jnp.asarray(kept[f"leaf {i}"]) for i in range(count)]
    return jax.tree.unflatten(jax.tree.structure(tree), found)


def joined(history: Arrays, metrics: Arrays) -> Arrays:
    """One more block of records."""
    return {
        key: np.concatenate([history[key], x], axis=2) if history else np.asarray(x)
        for key, x in metrics.items()
    }
