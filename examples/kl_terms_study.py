"""What each term of the KL does to a VAE: predictions of theory, and what training did.

    python examples/kl_terms_study.py            # under 20 minutes on two cores
    python examples/kl_terms_study.py --quick    # under 90 seconds

Trains linear VAEs and VAEs of scikit-learn's digits with weights on the terms of their KL, and
prints a table of predictions. Each was fixed before any run, with the rule that decides it
(`study/predictions.py`). The same seed gives the same table. A quick run has a fifth of the
steps: what fails there may be short of convergence.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from study import design, exact, mixture, networks, noise, report, responses, training
from study.design import Effort, Group
from study.predictions import judge
from study.results import Found, Results
from vae import data
from vae.flags import whole_number


def run_group(
    group: Group, effort: Effort, keys: tuple[Array, Array], train: Array, test: Array
) -> Found:
    """Trains and assesses every arm and seed of a group."""
    arms, model = training.weighings(group.arms), group.model
    pixels = train.shape[1]
    seeds = jax.random.split(keys[0], effort.seeds)
    report.say(f"{group.name}: {len(group.arms)} weightings x {effort.seeds} seeds")
    trained, metrics = training.fit(
        lambda arm, key: networks.initial(model, arm, pixels, key),
        partial(networks.loss, model),
        arms,
        seeds,
        train,
        effort,
    )
    jax.block_until_ready(metrics)
    report.say(f"{group.name}: trained")
    found = responses.assess(model, trained, arms, train, test, keys[1], effort)
    varied: Any = {}
    if group is design.EIGHT:
        c = arms.weights.log_det
        varied = noise.variances(model, trained, c, train, keys[1], effort.draws)
    answer = jax.device_get((found, metrics, varied))
    report.say(f"{group.name}: assessed")
    return Found(group, *(jax.tree.map(np.asarray, x) for x in answer))


def run_mixture(effort: Effort, keys: tuple[Array, Array], train: Array, test: Array) -> Any:
    """The same mixture posterior by the ELBO and by SIWAE."""
    model = design.MIXTURE
    seeds = jax.random.split(keys[0], effort.seeds)
    report.say(f"mixtures: {len(design.MIXTURE_OBJECTIVES)} objectives x {effort.seeds} seeds")
    trained, _ = training.fit(
        lambda arm, key: mixture.initial(model, arm, train.shape[1], key),
        partial(mixture.loss, model),
        jnp.arange(2.0),
        seeds,
        train,
        effort,
    )
    found = mixture.assess(model, trained, test, keys[1])
    answer = jax.tree.map(np.asarray, jax.device_get(found))
    report.say("mixtures: trained and assessed")
    return answer


def run(effort: Effort, seed: int) -> Results:
    report.say(f"linear: {len(exact.CASES)} trainings")
    linear = exact.study(seed, effort.linear_steps)
    report.say("linear: trained")
    images = data.digits()
    train, test = (
        jnp.asarray(x, jnp.float32) / images.levels for x in (images.train, images.test)
    )
    first, second = jax.random.split(jax.random.key(seed))
    # The same seeds for every group: pairs may be formed between groups too.
    found = [
        run_group(group, effort, (first, second), train, test)
        for group in design.GAUSSIAN_GROUPS
    ]
    mixed = run_mixture(effort, (first, second), train, test)
    return Results(linear, *found, mixed, effort.record, effort.importance)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps, in 90 seconds")
    parser.add_argument(
        "--seed",
        type=whole_number(0, 2**32 - 1),
        default=0,
        help="of starts, batches and draws, default 0",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/kl_terms_study"), help="folder of the results"
    )
    options = parser.parse_args(arguments)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(
            f"kl_terms_study.py: error: --out {options.out}: {error.strerror}", file=sys.stderr
        )
        return 2
    effort = design.QUICK if options.quick else design.FULL
    began = time.perf_counter()
    try:
        results = run(effort, options.seed)
    except KeyboardInterrupt:
        print("\ninterrupted; nothing was written", file=sys.stderr)
        return 130
    judged = judge(results)
    print(report.table(judged, effort, options.seed, quick=options.quick))
    report.write(options.out, judged, results, effort, options.seed)
    report.draw(options.out, results)
    report.say(f"done in {time.perf_counter() - began:.0f} s; results in {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
