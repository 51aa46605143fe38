"""The smoothing posterior of a state-space model, as a chain beside any other chain.

What y_t, ..., y_T say about x_t is the factor exp(-z^T Omega z / 2 + omega^T z) in its
deviation z = x_t - mu_t from the mean of the prior. Backwards in time, for
r_t = y_t - c - H mu_t,

    Omega_t = H^T R^-1 H + A^T U Omega A,   omega_t = H^T R^-1 r_t + A^T U omega,
    U = (I + Omega Q)^-1,   Sigma = Q U = (Q^-1 + Omega)^-1   (Omega, omega at t + 1).

Given y the states are a chain again, x_1 ~ N(mu_1 + Sigma omega, Sigma) and

    x_(t+1) | x_t ~ N(A x_t + b + Sigma (omega - Omega A z_t), Sigma):

Q less Q U Omega Q, so what it differs by from its own prior is a product, formed without a
difference. O(T d^3).
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from kljax import filtering, linalg, markov, matrices, relative
from kljax.filtering import Model
from kljax.linalg import matmul
from kljax.markov import Affine, Chain, Moments, Parts, Step, map_time
from kljax.matrices import Factored
from kljax.structure import Covariance, Structure


class Information(NamedTuple):
    """Omega and omega."""

    matrix: Array
    vector: Array


class Update(NamedTuple):
    """What observations make of N(0, Q): the covariance Sigma, Q - Sigma, and the mean."""

    covariance: Array
    gained: Array
    shift: Array
    damping: Array
    """Sigma Omega, by which the mean falls with the deviation it starts from."""


class Posterior(NamedTuple):
    """The chain given the observations."""

    first: Update
    rest: Update
    deviation: Moments
    """Mean of x_t - mu_t, and the covariance of x_t, given all observations."""
    prior_loc: Array


def _update(noise: Structure, information: Information) -> tuple[Update, Array]:
    """The update of one noise, and U."""
    factored = matrices.factorize(noise)
    lower = noise.dense_factor(factored.factor)
    seen = linalg.symmetrize(matmul(lower.T, matmul(information.matrix, lower)))
    root = linalg.cholesky(seen + jnp.eye(len(seen), dtype=seen.dtype))
    half = linalg.solve_lower(root, lower.T)
    sigma = matmul(half.T, half)
    within = linalg.solve_lower_transposed(root, half)
    u = noise.whiten_transposed(factored.factor, within)
    gained = markov.push(markov.dense(noise), linalg.symmetrize(matmul(u, information.matrix)))
    shift = markov.times(sigma, information.vector)
    return Update(sigma, gained, shift, matmul(sigma, information.matrix)), u


def posterior(x: Model, observations: Array) -> Posterior:
    prior = markov.marginals(x.chain).loc
    residual = observations - matmul(prior, x.emission.T) - x.offset[None, :]
    noise = matrices.factorize(x.noise)
    seen = noise.whiten(x.emission)
    own = matmul(seen.T, seen)
    vectors = matmul(seen.T, noise.whiten(residual.T)).T

    def step(information: Information, inputs: tuple[Array, Structure, Array]):
        transition, of_state, vector = inputs
        update, u = _update(of_state, information)
        back = matmul(transition.T, u)
        matrix = own + linalg.symmetrize(matmul(matmul(back, information.matrix), transition))
        earlier = Information(matrix, vector + markov.times(back, information.vector))
        return earlier, update

    last = Information(own, vectors[-1])
    inputs = x.chain.transition, x.chain.noise, vectors[:-1]
    information, rest = lax.scan(step, last, inputs, reverse=True)
    first, _ = _update(x.chain.initial_noise, information)
    matrix = x.chain.transition - map_time(matmul, rest.damping, x.chain.transition)
    steps = Affine(matrix, rest.shift[..., None], rest.covariance)
    moments = markov.propagate(Moments(first.shift[:, None], first.covariance), steps)
    return Posterior(first, rest, Moments(moments.loc[..., 0], moments.covariance), prior)


def chain(x: Model, observations: Array) -> Chain:
    """The posterior as a chain of its own."""
    found = posterior(x, observations)
    matrix = x.chain.transition - map_time(matmul, found.rest.damping, x.chain.transition)
    loc = found.prior_loc
    offset = loc[1:] + found.rest.shift - map_time(markov.times, matrix, loc[:-1])
    return Chain(
        loc[0] + found.first.shift,
        Covariance(found.first.covariance),
        matrix,
        offset,
        Covariance(found.rest.covariance),
    )


def compare(x: Model, observations: Array, p: Chain) -> Parts:
    """The parts of every step of the posterior against a chain, of shape (T,) each."""
    found = posterior(x, observations)
    change = x.chain.transition - p.transition
    damped = map_time(matmul, found.rest.damping, x.chain.transition)
    loc = found.prior_loc + found.deviation.loc

    shift = map_time(markov.times, change, loc[:-1]) + (x.chain.offset - p.offset)
    shift = shift + found.rest.shift
    shift = shift - map_time(markov.times, damped, found.deviation.loc[:-1])

    shift = markov.prepend((x.chain.initial_loc - p.initial_loc) + found.first.shift, shift)

    def step(noise: tuple[Update, Structure, Structure], *given: Array) -> Parts:
        update, own, other = noise
        of_p = matrices.factorize(other)
        difference = filtering.covariance_difference(own, other) - update.gained
        of_q: Factored = matrices.factorize(Covariance(update.covariance))
        return markov.parts(Step(relative.quotient(of_q, of_p, difference), of_p, *given))

    initial = found.first, x.chain.initial_noise, p.initial_noise
    later = found.rest, x.chain.noise, p.noise
    given = shift, *markov.after(change - damped, found.deviation)
    return markov.over_time(step, initial, later, *given)
