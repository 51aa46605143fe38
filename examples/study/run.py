"""The whole study in blocks: linear VAEs, every group of networks, mixtures."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from study import design, exact, mixture, networks, training
from study.design import Effort, Group
from study.progress import Progress
from study.responses import Assessor
from study.results import Found, Results
from study.store import Arrays, Store

THREADS = 2


def blocks(effort: Effort) -> int:
    """How many blocks `study` has."""
    arms = sum(len(group.arms) for group in design.GAUSSIAN_GROUPS)
    return 2 + arms + effort.blocks * (1 + len(design.GAUSSIAN_GROUPS))


def study(
    effort: Effort, seed: int, train: Array, test: Array, store: Store, progress: Progress
) -> Results:
    """Everything that predictions ask for.

    Args:
        effort: how much of everything.
        seed: of starts, batches and draws.
        train: images with pixels from 0 to 1, shape (images, pixels).
        test: others of the same shape.
        store: has the blocks that are done, and keeps those that follow.
        progress: is told of every block.
    """
    first, key = jax.random.split(jax.random.key(seed))
    # The same seeds for every group: pairs may be formed between groups too.
    seeds = jax.random.split(first, effort.seeds)
    parts: list[Callable[[], Any]] = [
        partial(of_group, group, effort, seeds, key, train, test, store, progress)
        for group in design.GAUSSIAN_GROUPS
    ]
    parts.append(partial(of_mixtures, effort, seeds, key, train, test, store, progress))
    parts.append(partial(of_linear, effort, seed, store, progress))
    eight, sixteen, full, mixed, linear = side_by_side(parts, progress)
    return Results(linear, eight, sixteen, full, mixed, effort.record, effort.importance)


def side_by_side(parts: list[Callable[[], Any]], progress: Progress) -> list[Any]:
    """What the parts return, two at a time: one compiles while the other computes.

    What a part finds does not depend on the other.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        answers = [pool.submit(part) for part in parts]
        try:
            done, _ = wait(answers, return_when=FIRST_EXCEPTION)
            for answer in done:
                answer.result()
        except BaseException:
            progress.stop()
            pool.shutdown(cancel_futures=True)
            raise
    return [answer.result() for answer in answers]


def of_linear(effort: Effort, seed: int, store: Store, progress: Progress) -> exact.Linear:
    """Linear VAEs beside their closed form."""

    def compare() -> Arrays:
        return exact.study(seed, effort.linear_steps)._asdict()

    found = exact.Linear(**block("linear", compare, store))
    progress.advance(f"linear: {len(exact.CASES)} cases trained and compared")
    return found


def block(name: str, compute: Callable[[], Arrays], store: Store) -> Arrays:
    """The arrays of a block, computed unless they are kept."""
    kept = store.read(name)
    if kept is None:
        kept = compute()
        store.write(name, kept)
    return kept


def of_group(
    group: Group,
    effort: Effort,
    seeds: Array,
    key: Array,
    train: Array,
    test: Array,
    store: Store,
    progress: Progress,
) -> Found:
    """Trains and assesses every arm and seed of a group."""
    arms, model = training.weighings(group.arms), group.model
    trained, trajectories = training.fit(
        lambda arm, key: networks.initial(model, arm, train.shape[1], key),
        partial(networks.loss, model),
        arms,
        seeds,
        train,
        effort,
        group.name,
        store,
        progress,
    )
    assess = Assessor(model, train, test, key, effort)
    found = []
    for i, arm in enumerate(group.arms):
        x, weighing = jax.tree.map(lambda x, i=i: x[i], (trained, arms))
        probed = group is design.EIGHT and arm.name in design.TO_ZERO
        work = partial(assess, x, weighing, probed=probed)
        found.append(block(f"{group.name} {i}", work, store))
        progress.advance(f"{group.name}: assessed {arm.name}")
    return Found(group, stacked(found), trajectories)


def stacked(found: list[Arrays]) -> Arrays:
    """Arrays of arms (seeds, ...) as arrays (arms, seeds, ...), nan where an arm has none."""
    shapes = {name: x.shape for arm in found for name, x in arm.items()}
    return {
        name: np.stack([arm.get(name, np.full(shape, np.nan)) for arm in found])
        for name, shape in shapes.items()
    }


def of_mixtures(
    effort: Effort,
    seeds: Array,
    key: Array,
    train: Array,
    test: Array,
    store: Store,
    progress: Progress,
) -> Arrays:
    """The same mixture posterior by the ELBO and by SIWAE."""
    model = design.MIXTURE
    trained, _ = training.fit(
        lambda arm, key: mixture.initial(model, arm, train.shape[1], key),
        partial(mixture.loss, model),
        jnp.arange(2.0),
        seeds,
        train,
        effort,
        "mixtures",
        store,
        progress,
    )

    def assess() -> Arrays:
        found: dict[str, Any] = jax.device_get(mixture.assess(model, trained, test, key))
        return {name: np.asarray(x) for name, x in found.items()}

    answer = block("mixtures", assess, store)
    progress.advance("mixtures: assessed")
    return answer
