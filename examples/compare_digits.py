"""The VAE of the digits beside published figures: the same splits, with standard errors.

    python examples/compare_digits.py            # a few minutes
    python examples/compare_digits.py --quick    # one seed

Two protocols. "In order" is that of the VAE notebook of jmtomczak/intro_dgm: the first 1,000
images of the data set to train, the next 350 to stop, the last 447 to test; batches of 64, 16
latents, learning rate 1e-3; training ends after more than 20 epochs without a better -ELBO of
the 350, and the best model counts. "Stratified" has the same share of every digit in 1,347
images to train and 450 to test, and takes the steps that it is given.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from vae import command, data, evaluate, flags, machines
from vae.flag_types import whole_number
from vae.objective import Objective
from vae_digits import VAE, WEIGHT_DECAY_IMAGES, epoch_keys, test_metrics, train_epoch

PROGRAM = "compare_digits.py"
LEVELS, PIXELS = 16, 64
PATIENCE, MOST_EPOCHS = 20, 1000
# Of the notebook, measured by running its program with three seeds: it has a
# categorical likelihood of 17 values, a probability mass as this one is.
NOTEBOOK = {"minus_elbo": 96.9, "nll": 93.3}


class Protocol(NamedTuple):
    """A split and a way to train; the limits are what is to be reached, in nats an image.

    Attributes:
        name: for the table.
        train: images.
        stop: images whose -ELBO ends training, or None.
        test: images.
        latents: how many.
        batch: images of a step.
        rate: learning rate, or its schedule.
        steps: where no images end training.
        limits: of -ELBO and NLL.
    """

    name: str
    train: np.ndarray
    stop: np.ndarray | None
    test: np.ndarray
    latents: int
    batch: int
    rate: Any
    steps: int
    limits: dict[str, float]


def in_order() -> Protocol:
    images = digits()
    return Protocol(
        "in order",
        images[:1000],
        images[1000:1350],
        images[1350:],
        16,
        64,
        1e-3,
        MOST_EPOCHS * (1000 // 64),
        {"minus_elbo": 92.7, "nll": 87.8},
    )


def stratified() -> Protocol:
    bunch: Any = load_digits()
    images = digits()
    train, test = train_test_split(
        np.arange(len(images)),
        test_size=450,
        random_state=data.SPLIT_SEED,
        stratify=bunch.target,
    )
    steps = 4400
    rate = optax.cosine_decay_schedule(2e-3, steps)
    return Protocol(
        "stratified", images[train], None, images[test], 12, 128, rate, steps, {"nll": 84.5}
    )


def digits() -> np.ndarray:
    bunch: Any = load_digits()
    return bunch.data.astype(np.uint8)


def fit(protocol: Protocol, seed: int) -> tuple[VAE, int]:
    """A trained model, and the step at which it was taken."""
    keys = jax.random.split(jax.random.key(seed), 2)
    model = VAE(PIXELS, LEVELS, protocol.latents, "diag", nnx.Rngs(keys[0]))
    decay = WEIGHT_DECAY_IMAGES / len(protocol.train)
    rule = nnx.Optimizer(model, optax.adamw(protocol.rate, weight_decay=decay), wrt=nnx.Param)
    graph, state = nnx.split((model, rule))
    mesh = machines.mesh(flags.parse([]))
    train = jnp.asarray(protocol.train)
    stop = None if protocol.stop is None else jnp.asarray(protocol.stop)
    best, kept, taken, waited, done = math.inf, state, 0, 0, 0
    while done < protocol.steps and waited <= PATIENCE:
        train_key, stop_key = epoch_keys(keys[1], done)
        steps = min(len(train) // protocol.batch, protocol.steps - done)
        state, _ = train_epoch(
            graph,
            state,
            train,
            train_key,
            done,
            Objective(),
            mesh,
            steps=steps,
            batch_size=protocol.batch,
        )
        done += steps
        if stop is None:
            kept, taken = state, done
            continue
        bound = -float(test_metrics(graph, state, stop, stop_key)["elbo"])
        waited += 1
        if bound < best:
            best, kept, taken, waited = bound, state, done, 0
    return nnx.merge(graph, kept)[0], taken


def measure(protocol: Protocol, seeds: Sequence[int]) -> dict[str, Any]:
    """The means over test images and seeds, with both standard errors."""
    values: dict[str, list[np.ndarray]] = {"minus_elbo": [], "nll": []}
    distrusted = 0
    for seed in seeds:
        began = time.perf_counter()
        model, step = fit(protocol, seed)
        key = jax.random.fold_in(jax.random.key(seed), 2**31)
        found = jax.device_get(evaluate.assess_images(model, jnp.asarray(protocol.test), key))
        values["minus_elbo"].append(found["minus_elbo"].astype(np.float64))
        values["nll"].append(found["iw_nll"].astype(np.float64))
        distrusted += int(np.sum(~found["trusted"]))
        print(
            f"{protocol.name:11s} seed {seed}: step {step:5d}, -ELBO "
            f"{np.mean(found['minus_elbo']):.2f}, NLL {np.mean(found['iw_nll']):.2f}   "
            f"({time.perf_counter() - began:.0f} s)",
            flush=True,
        )
    estimates = len(seeds) * len(protocol.test)
    result: dict[str, Any] = {
        "seeds": list(seeds),
        "estimates": estimates,
        "not_trusted": distrusted,
    }
    for name, each in values.items():
        by_image, by_seed = np.mean(each, axis=0), np.mean(each, axis=1)
        over_images = np.std(by_image, ddof=1) / math.sqrt(len(by_image))
        over_seeds = np.std(by_seed, ddof=1) / math.sqrt(len(seeds)) if len(seeds) > 1 else None
        mean, limit = float(np.mean(by_seed)), protocol.limits.get(name)
        result[name] = {
            "mean": mean,
            "standard_error_over_images": float(over_images),
            "standard_error_over_seeds": over_seeds and float(over_seeds),
            "limit": limit,
            "reached": None if limit is None else mean <= limit,
        }
    return result


def show(name: str, result: dict[str, Any]) -> None:
    for key, words in (("minus_elbo", "-ELBO"), ("nll", "NLL")):
        x = result[key]
        over_seeds = x["standard_error_over_seeds"]
        seeds = "" if over_seeds is None else f", ± {over_seeds:.2f} over seeds"
        limit = ""
        if x["limit"] is not None:
            limit = f"   at most {x['limit']}: {'PASS' if x['reached'] else 'FAIL'}"
        theirs = f"   notebook {NOTEBOOK[key]}" if name == "in order" else ""
        bits = x["mean"] / math.log(2) / PIXELS
        print(
            f"{name:11s} {words:6s}{x['mean']:7.2f} ± {x['standard_error_over_images']:.2f} "
            f"over images{seeds}   ({bits:.3f} bits a pixel){limit}{theirs}"
        )
    print(
        f"{name:11s} NLL: {result['not_trusted']} of {result['estimates']} estimates are not "
        "to be trusted, and probably too high"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.Parser(prog=PROGRAM, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed instead of several")
    parser.add_argument(
        "--seeds", type=whole_number(1, 100), default=5, help="how many, by default %(default)s"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/compare_digits"), help="folder for the result"
    )
    options = parser.parse_args(arguments)
    command.make_folder(PROGRAM, options.out)
    print(
        f"likelihood  discretized logistic on the pixels 0..{LEVELS}, a probability mass\n"
        "units       nats per image of 64 pixels, which are summed; images are averaged\n"
        f"NLL         importance-weighted, {evaluate.IMPORTANCE_SAMPLES} samples an image\n"
        f"-ELBO       at weights one, {evaluate.BOUND_SAMPLES} samples an image\n",
        flush=True,
    )
    seeds = range(1 if options.quick else options.seeds)
    results = {x.name: measure(x, seeds) for x in (in_order(), stratified())}
    print()
    for name, result in results.items():
        show(name, result)
    path = options.out / "compare_digits.json"
    path.write_text(json.dumps(results, indent=2) + "\n")
    print(f"\nfile        {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
