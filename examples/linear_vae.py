"""A linear VAE is trained, and its training curves meet what theory says beforehand.

    python examples/linear_vae.py            # a minute at most
    python examples/linear_vae.py --quick    # ten seconds

Every stationary point of a linear VAE is known in closed form, also when the three terms of its
KL are weighted by themselves. So the training of `kljax.vae`'s objective can be compared with
the truth: lengths of the decoder's columns, variances of the posterior, objective, likelihood.
With the Mahalanobis term weighted more than twice the trace, which latents collapse depends on
where training began; the last two runs differ in nothing but that.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import kljax
from kljax import vae
from kljax.vae import linear
from vae import command
from vae.flags import whole_number

PROGRAM = "linear_vae.py"
EIGENVALUES = (6.0, 4.0, 2.5, 1.5, 0.8, 0.25, 0.1, 0.05)
POINTS, LATENTS, NOISE_VARIANCE = 256, 6, 0.4
LEARNING_RATE = 0.1
# Of the squared length of a decoder's column: below it a latent counts as collapsed.
COLLAPSED = 1e-4


class Run(NamedTuple):
    """One training: weights of trace, Mahalanobis and log-determinant, and its start."""

    name: str
    weights: tuple[float, float, float]
    start: float


RUNS = (
    Run("the ELBO", (1, 1, 1), 0.3),
    Run("beta = 3", (3, 3, 3), 0.3),
    Run("trace x 4", (4, 1, 1), 0.3),
    Run("Mahalanobis x 8, larger start", (1, 8, 1), 0.1),
    Run("Mahalanobis x 8, smaller start", (1, 8, 1), 0.02),
)


class Parameters(NamedTuple):
    """x = decoder z + noise, q(z | x) = N(encoder x, diag exp(log_variance))."""

    decoder: Array
    encoder: Array
    log_variance: Array


def loss(x: Parameters, weights: vae.TermWeights, data: Array) -> Array:
    """Reconstruction + weighted KL in nats a point: events summed, points averaged."""
    q = kljax.MultivariateNormalDiag(data @ x.encoder.T, log_variance=x.log_variance)
    kl = vae.weighted_kl(q, kljax.standard_normal(LATENTS, data.dtype), weights)
    # E|data - decoder z|^2 under q, without sampling.
    error = jnp.sum((data - q.loc @ x.decoder.T) ** 2, axis=1)
    error = error + jnp.sum(x.decoder**2 @ jnp.exp(x.log_variance))
    size = data.shape[1] * jnp.log(2 * jnp.pi * NOISE_VARIANCE)
    return jnp.mean(0.5 * (error / NOISE_VARIANCE + size) + kl)


@partial(jax.jit, static_argnames="steps")
def train(
    start: Array, weights: vae.TermWeights, data: Array, key: Array, *, steps: int
) -> tuple[Parameters, Array, Array]:
    """All runs at once, in one compiled scan: the end, every step's loss and |columns|^2."""
    rule = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps))

    def run(start: Array, weights: vae.TermWeights) -> tuple[Parameters, Array, Array]:
        first, second = jax.random.split(key)
        decoder = start * jax.random.normal(first, (data.shape[1], LATENTS))
        encoder = start * jax.random.normal(second, (LATENTS, data.shape[1]))
        begin = Parameters(decoder, encoder, jnp.zeros(LATENTS))

        def step(carry, _):
            x, state = carry
            value, gradient = jax.value_and_grad(loss)(x, weights, data)
            change, state = rule.update(gradient, state)
            moved: Any = optax.apply_updates(x, change)
            return (moved, state), (value, jnp.sum(x.decoder**2, axis=0))

        (end, _), (values, columns) = jax.lax.scan(
            step, (begin, rule.init(begin)), length=steps
        )
        return end, values, columns

    return jax.vmap(run)(start, weights)


def make_data(seed: int) -> np.ndarray:
    """Points of mean 0 whose covariance has exactly the eigenvalues above."""
    rng = np.random.default_rng(seed)
    size = len(EIGENVALUES)
    x = rng.standard_normal((POINTS, size))
    x, _ = np.linalg.qr(x - np.mean(x, axis=0))
    turn, _ = np.linalg.qr(rng.standard_normal((size, size)))
    return np.sqrt(POINTS) * x @ (np.sqrt(EIGENVALUES)[:, None] * turn.T)


class Comparison(NamedTuple):
    """A trained model beside the closed form with as many active latents.

    Attributes:
        name: of the run.
        weights: of its terms.
        active: how many latents it uses.
        minima: how many a minimum of its loss can have.
        squares: squared lengths of the decoder's columns in theory, falling.
        trained: the same, as trained.
        square_error: the largest difference of these.
        variance_error: that of the posterior's variances.
        objective_error: that of the loss.
        scale_residual: how far a E[s] + b E[mu^2] is from c, for the worst latent.
        elbo: in nats a point, at weights one.
        log_likelihood: mean log p(x) of the decoder, which the ELBO bounds.
    """

    name: str
    weights: tuple[float, float, float]
    active: int
    minima: list[int]
    squares: np.ndarray
    trained: np.ndarray
    square_error: float
    variance_error: float
    objective_error: float
    scale_residual: float
    elbo: float
    log_likelihood: float


def compare(run: Run, end: Parameters, value: float, data: np.ndarray) -> Comparison:
    weights = vae.TermWeights(*run.weights)
    squares = np.sum(np.asarray(end.decoder) ** 2, axis=0)
    order = np.argsort(-squares)
    active = int(np.sum(squares > COLLAPSED))
    known = linear.minima(EIGENVALUES, NOISE_VARIANCE, LATENTS, weights)
    truth = linear.solution(EIGENVALUES, NOISE_VARIANCE, LATENTS, weights, active=active)
    true_squares = np.sum(np.asarray(truth.decoder) ** 2, axis=0)
    variance = np.exp(np.asarray(end.log_variance))
    q = kljax.MultivariateNormalDiag(jnp.asarray(data) @ end.encoder.T, variance=variance)
    residual = vae.diagnose(q, weights=weights).scale_residual
    model = linear.LinearVAE(end.decoder, end.encoder, jnp.exp(end.log_variance))
    covariance = data.T @ data / len(data)
    return Comparison(
        name=run.name,
        weights=run.weights,
        active=active,
        minima=np.flatnonzero(known.stable).tolist(),
        squares=true_squares,
        trained=squares[order],
        square_error=float(np.max(np.abs(squares[order] - true_squares))),
        variance_error=float(np.max(np.abs(variance[order] - truth.variance))),
        objective_error=abs(value - float(known.objective[active])),
        scale_residual=float(np.max(np.abs(residual))),
        elbo=float(linear.parts(model, covariance, NOISE_VARIANCE).elbo),
        log_likelihood=float(linear.log_likelihood(end.decoder, covariance, NOISE_VARIANCE)),
    )


def show(compared: Sequence[Comparison]) -> float:
    """Prints the table, and returns the largest error."""
    print(
        "\n                               active latents     largest error of           scale"
        "      ELBO     log p(x)\n"
        "run                            trained  stable    |w|^2  variance     loss  identity"
        "    nats a point"
    )
    for x in compared:
        stable = ",".join(map(str, x.minima))
        print(
            f"{x.name:31s}{x.active:7d}{stable:>8s}{x.square_error:9.0e}"
            f"{x.variance_error:10.0e}{x.objective_error:9.0e}{x.scale_residual:10.0e}"
            f"{x.elbo:10.4f}{x.log_likelihood:13.4f}"
        )
    return max(max(x.square_error, x.variance_error, x.objective_error) for x in compared)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command.Parser(prog=PROGRAM, description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps, in ten seconds")
    parser.add_argument(
        "--seed",
        type=whole_number(0, 2**32 - 1),
        default=0,
        help="of data and starts, default 0",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/linear_vae"), help="folder for the pictures"
    )
    options = parser.parse_args(arguments)
    command.make_folder(PROGRAM, options.out)
    with jax.enable_x64(True):
        return study(options.out, 5000 if options.quick else 30000, options.seed)


def study(out: Path, steps: int, seed: int) -> int:
    fold, equal, collapse = linear.thresholds(NOISE_VARIANCE, vae.TermWeights(1.0, 8.0, 1.0))
    print(
        f"data        {POINTS} points, covariance with eigenvalues {EIGENVALUES}\n"
        f"model       {LATENTS} latents, noise variance {NOISE_VARIANCE}\n"
        f"training    {steps} steps of Adam on all points, float64, seed {seed}\n"
        f"theory      with weights (1, 8, 1) a latent may be active or collapsed for\n"
        f"            eigenvalues from {fold:.3g} to {collapse:.3g}, and is better active from "
        f"{equal:.3g}",
        flush=True,
    )
    data = make_data(seed)
    began = time.perf_counter()
    start = jnp.asarray([run.start for run in RUNS])
    weights = vae.TermWeights(*jnp.asarray([run.weights for run in RUNS], float).T)
    ends, values, columns = jax.block_until_ready(
        train(start, weights, jnp.asarray(data), jax.random.key(seed), steps=steps)
    )
    print(f"time        {time.perf_counter() - began:.1f} s, all {len(RUNS)} runs at once")
    last = [jax.tree.map(lambda x, i=i: x[i], ends) for i in range(len(RUNS))]
    compared = [
        compare(run, end, float(value[-1]), data)
        for run, end, value in zip(RUNS, last, values, strict=True)
    ]
    print(f"\nlargest error of all: {show(compared):.1e}")
    return draw(np.asarray(columns), compared, out)


def draw(columns: np.ndarray, compared: Sequence[Comparison], out: Path) -> int:
    if importlib.util.find_spec("matplotlib") is None:
        print("pictures    none, since matplotlib is not installed")
        return 0
    pictures = importlib.import_module("vae.linear_pictures")
    paths = [out / name for name in pictures.NAMES]
    pictures.training(RUNS, columns, compared, paths[0])
    pictures.phases(NOISE_VARIANCE, EIGENVALUES, compared, paths[1])
    print(f"pictures    {paths[0]}, {paths[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
