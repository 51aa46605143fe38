"""Linear VAEs, trained on exact expectations in float64 and held against closed forms."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

import kljax
from kljax import vae
from kljax.vae import linear
from study.compiled import compiled

EIGENVALUES = (6.0, 4.0, 2.5, 1.5, 0.8, 0.25, 0.1, 0.05)
POINTS, LATENTS, VARIANCE = 32, 6, 0.4
LEARNING_RATE = 0.1
# Of |w|^2, below which a latent counts as collapsed.
COLLAPSED = 1e-4
ESTIMATORS = ("closed_form", "sticking_the_landing")


class Case(NamedTuple):
    """One training: weights, size of the start, whether the decoder's variance is learned."""

    name: str
    weights: tuple[float, float, float]
    start: float = 0.3
    learned: bool = False


FIXED = (
    Case("(1,1,1)", (1, 1, 1)),
    Case("beta 0.5", (0.5, 0.5, 0.5)),
    Case("beta 3", (3, 3, 3)),
    Case("beta 8", (8, 8, 8)),
    Case("(4,1,1)", (4, 1, 1)),
    Case("(1,8,1) large start", (1, 8, 1), 0.1),
    Case("(1,8,1) small start", (1, 8, 1), 0.01),
)
LEARNED = tuple(
    Case(f"beta {beta:g}, variance learned", (beta, beta, beta), 0.3, True)
    for beta in (0.25, 0.5, 1.0, 2.0)
)
CASES = FIXED + LEARNED


class Parameters(NamedTuple):
    decoder: Array
    encoder: Array
    log_variance: Array
    log_noise: Array


class Linear(NamedTuple):
    """A trained linear VAE beside theory; arrays count `CASES`.

    Attributes:
        active: latents that it uses.
        error: the largest of |w|^2, s and loss to the closed form with as many active latents.
        scale_residual: the largest of a E[s] + b E[mu^2] - c.
        elbo: nats a point, at weights one.
        log_likelihood: of the decoder.
        noise: variance of the decoder.
        theory: what that is in theory; the given one where it is not learned.
        objective: the loss in nats a point.
        stable: whether 0, 1, ... active latents are a minimum, shape (cases, latents + 1).
        gradients: the largest entry of the encoder's gradient at the closed form of weights
            one, over draws, of every one of `ESTIMATORS`.
    """

    active: np.ndarray
    error: np.ndarray
    scale_residual: np.ndarray
    elbo: np.ndarray
    log_likelihood: np.ndarray
    noise: np.ndarray
    theory: np.ndarray
    objective: np.ndarray
    stable: np.ndarray
    gradients: np.ndarray


def make_data(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points of mean 0 whose covariance has exactly the eigenvalues, and its eigenvectors."""
    rng = np.random.default_rng(seed)
    size = len(EIGENVALUES)
    x = rng.standard_normal((POINTS, size))
    x, _ = np.linalg.qr(x - np.mean(x, axis=0))
    turn, _ = np.linalg.qr(rng.standard_normal((size, size)))
    return np.sqrt(POINTS) * x @ (np.sqrt(EIGENVALUES)[:, None] * turn.T), turn


def loss(x: Parameters, weights: vae.TermWeights, learned: Array, data: Array) -> Array:
    """Reconstruction + weighted KL in nats a point, with no sampling."""
    q = kljax.MultivariateNormalDiag(data @ x.encoder.T, log_variance=x.log_variance)
    kl = vae.weighted_kl(q, kljax.standard_normal(LATENTS, data.dtype), weights)
    log_noise = jnp.where(learned, x.log_noise, jnp.log(VARIANCE))
    error = jnp.sum((data - q.loc @ x.decoder.T) ** 2, axis=1)
    error = error + jnp.sum(x.decoder**2 @ jnp.exp(x.log_variance))
    size = data.shape[1] * (jnp.log(2 * jnp.pi) + log_noise)
    return jnp.mean(0.5 * (error * jnp.exp(-log_noise) + size) + kl)


@partial(compiled, static_argnames="steps")
def train(
    weights: vae.TermWeights,
    start: Array,
    learned: Array,
    data: Array,
    key: Array,
    steps: int,
) -> tuple[Parameters, Array]:
    """All cases from the same directions, in one scan."""
    rule = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps))

    def run(weights: vae.TermWeights, start: Array, learned: Array) -> Any:
        first, second = jax.random.split(key)
        begin = Parameters(
            start * jax.random.normal(first, (data.shape[1], LATENTS)),
            start * jax.random.normal(second, (LATENTS, data.shape[1])),
            jnp.zeros(LATENTS),
            jnp.log(VARIANCE),
        )

        def step(carry: Any, _: None) -> tuple[Any, None]:
            x, state = carry
            change, state = rule.update(jax.grad(loss)(x, weights, learned, data), state)
            return (optax.apply_updates(x, change), state), None

        (end, _), _ = jax.lax.scan(step, (begin, rule.init(begin)), length=steps)
        return end, loss(end, weights, learned, data)

    return jax.vmap(run)(weights, start, learned)


def study(seed: int, steps: int) -> Linear:
    """Trains every case and compares; in float64."""
    with jax.enable_x64(True):
        data, vectors = make_data(seed)
        columns = jnp.asarray([case.weights for case in CASES], float).T
        ends, values = train(
            vae.TermWeights(*columns),
            jnp.asarray([case.start for case in CASES]),
            jnp.asarray([case.learned for case in CASES]),
            jnp.asarray(data),
            jax.random.key(seed),
            steps,
        )
        rows = [
            compare(case, jax.tree.map(lambda x, i=i: x[i], ends), float(values[i]), data)
            for i, case in enumerate(CASES)
        ]
        return Linear(
            **{name: np.asarray([row[name] for row in rows]) for name in rows[0]},
            gradients=gradients(data, vectors, jax.random.key(seed)),
        )


def compare(case: Case, end: Parameters, value: float, data: np.ndarray) -> dict[str, Any]:
    weights = vae.TermWeights(*case.weights)
    falling = sorted(EIGENVALUES, reverse=True)
    noise = float(np.exp(end.log_noise)) if case.learned else VARIANCE
    beta = case.weights[0]
    theory = float(linear.noise_variance(falling, LATENTS, beta)) if case.learned else VARIANCE
    squares = np.sum(np.asarray(end.decoder) ** 2, axis=0)
    order = np.argsort(-squares)
    active = int(np.sum(squares > COLLAPSED))
    known = linear.minima(falling, theory, LATENTS, weights)
    truth = linear.solution(falling, theory, LATENTS, weights, active=active)
    variance = np.exp(np.asarray(end.log_variance))
    q = kljax.MultivariateNormalDiag(jnp.asarray(data) @ end.encoder.T, variance=variance)
    model = linear.LinearVAE(end.decoder, end.encoder, jnp.exp(end.log_variance))
    covariance = data.T @ data / len(data)
    errors = (
        np.max(np.abs(squares[order] - np.sum(np.asarray(truth.decoder) ** 2, axis=0))),
        np.max(np.abs(variance[order] - truth.variance)),
        abs(value - float(known.objective[active])),
    )
    return {
        "active": active,
        "error": max(errors),
        "scale_residual": np.max(np.abs(vae.diagnose(q, weights=weights).scale_residual)),
        "elbo": float(linear.parts(model, covariance, noise).elbo),
        "log_likelihood": float(linear.log_likelihood(end.decoder, covariance, noise)),
        "noise": noise,
        "theory": theory,
        "objective": value,
        "stable": np.asarray(known.stable),
    }


def gradients(data: np.ndarray, vectors: np.ndarray, key: Array) -> np.ndarray:
    """How far the encoder's gradient is from 0 where the posterior is exact."""
    truth = linear.solution(EIGENVALUES, VARIANCE, LATENTS, eigenvectors=vectors)
    points, p = jnp.asarray(data), kljax.standard_normal(LATENTS, jnp.float64)

    def noisy(estimator: Any, encoder: Array, log_variance: Array, key: Array) -> Array:
        q = kljax.MultivariateNormalDiag(points @ encoder.T, log_variance=log_variance)
        q = jax.tree.map(lambda x: jnp.broadcast_to(x, (POINTS, LATENTS)), q)

        def log_likelihood(z: Array) -> Array:
            return vae.likelihoods.gaussian(z @ truth.decoder.T, points, variance=VARIANCE)

        return estimator(q, p, log_likelihood, key).loss

    keys, answer = jax.random.split(key, 8), []
    for name in ESTIMATORS:
        slope = jax.grad(partial(noisy, vae.ESTIMATORS[name]), argnums=(0, 1))
        over_keys = compiled(jax.vmap(slope, in_axes=(None, None, 0)))
        found = over_keys(truth.encoder, jnp.log(truth.variance), keys)
        answer.append(max(float(jnp.max(jnp.abs(x))) for x in found))
    return np.asarray(answer)
