"""The law of the observations of a state-space model, by its innovations.

Given y_1, ..., y_(t-1) the next observation is normal under q and under p, with means that
the filters of both predict, so the chain rule over time gives

    KL = sum_t  dispersion(F_q,t ‖ F_p,t) + E_q |C_t^-1 g_t|^2 / 2,   F_p,t = C_t C_t^T,

F the innovation covariances and g the difference of both predicted means: a sum of non-negative
terms. With W = A - G H the closed loop of the gain G, the filters are

    P' = W P W^T + Q + G R G^T,   F = H P H^T + R,   G = A P H^T F^-1,

and their differences obey (own arrangement; E = dA - G_p dH, B = dA - G_q dH)

    dP' = E P_q W_q^T + W_p dP W_q^T + W_p P_p B^T + dQ + G_p dR G_q^T
    dG  = (E P_q H_q^T + W_p dP H_q^T + W_p P_p dH^T - G_p dR) F_q^-1
    dF  = dR + dH P_q H_q^T + H_p dP H_q^T + H_p P_p dH^T.

Under q the predicted state m and delta = m_q - m_p are a chain driven by white innovations,

    m' = A_q m + b_q + G_q v,   delta' = E m + W_p delta + db - G_p dc + dG v,   v ~ N(0, F_q),

and g = dH m + H_p delta + dc. O(T (d + k)^3).
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from kljax import linalg, markov, matrices, relative
from kljax.linalg import matmul
from kljax.markov import Affine, Chain, Moments, Parts, Step, map_time
from kljax.structure import Covariance, ScaleTril, Structure


class Model(NamedTuple):
    """A chain and how it is seen."""

    chain: Chain
    emission: Array
    offset: Array
    noise: Structure


def covariance_difference(q: Structure, p: Structure) -> Array:
    """S_q - S_p, from the difference of the factors where these were given."""
    if isinstance(q, ScaleTril) and isinstance(p, ScaleTril):
        factor_q, factor_p = jnp.tril(q.value), jnp.tril(p.value)
        gap = factor_q - factor_p
        return linalg.symmetrize(matmul(gap, factor_q.T) + matmul(factor_p, gap.T))
    return markov.dense(q) - markov.dense(p)


# ---- one filter -----------------------------------------------------------------------------


class Prediction(NamedTuple):
    """The covariance P of the predicted state, of its observation F, and the gain G."""

    state: Array
    innovation: Array
    gain: Array


class _Transition(NamedTuple):
    matrix: Array
    noise: Array


def _innovation(state: Array, emission: Array, noise: Array) -> Array:
    seen = matmul(matmul(emission, state), emission.T)
    return linalg.symmetrize(seen + noise)


def _gain(state: Array, innovation: Array, emission: Array, transition: Array) -> Array:
    """A P H^T F^-1."""
    factor = linalg.cholesky(innovation)
    cross = matmul(emission, matmul(state, transition.T))
    return linalg.solve_lower_transposed(factor, linalg.solve_lower(factor, cross)).T


def _predict(state: Array, step: _Transition, emission: Array, noise: Array):
    """One step of the filter: what it was, its closed loop, and the next P."""
    innovation = _innovation(state, emission, noise)
    gain = _gain(state, innovation, emission, step.matrix)
    loop = step.matrix - matmul(gain, emission)
    following = markov.push(loop, state) + markov.push(gain, noise) + step.noise
    return Prediction(state, innovation, gain), loop, following


# ---- two filters ----------------------------------------------------------------------------


class _Differences(NamedTuple):
    """What the scan over time leaves of every step but the last."""

    q: Prediction
    p: Prediction
    innovation: Array
    gain: Array
    loop: Array
    open: Array


class _State(NamedTuple):
    q: Array
    p: Array
    difference: Array


def _innovation_difference(state: _State, d_noise: Array, of_q: Array, of_p: Array) -> Array:
    d = of_q - of_p
    seen = matmul(matmul(d, state.q) + matmul(of_p, state.difference), of_q.T)
    return linalg.symmetrize(d_noise + seen + matmul(matmul(of_p, state.p), d.T))


def _differences(q: Model, p: Model) -> tuple[_State, _Differences]:
    """Of the last predicted state, and of every step before it."""
    noise_q, noise_p = markov.dense(q.noise), markov.dense(p.noise)
    d_noise = covariance_difference(q.noise, p.noise)
    d_emission = q.emission - p.emission

    def step(state: _State, transitions: tuple[_Transition, ...]):
        of_q, of_p, change = transitions
        seen_q, loop_q, next_q = _predict(state.q, of_q, q.emission, noise_q)
        seen_p, loop_p, next_p = _predict(state.p, of_p, p.emission, noise_p)
        opened = change.matrix - matmul(seen_p.gain, d_emission)
        other = change.matrix - matmul(seen_q.gain, d_emission)
        # E P_q + W_p dP, which acts on W_q^T in dP' and on H_q^T in dG.
        left = matmul(opened, state.q) + matmul(loop_p, state.difference)
        right = matmul(loop_p, state.p)
        damped = matmul(seen_p.gain, d_noise)
        difference = matmul(left, loop_q.T) + matmul(right, other.T)
        difference = difference + matmul(damped, seen_q.gain.T)
        cross = matmul(left, q.emission.T) + matmul(right, d_emission.T) - damped
        factor = linalg.cholesky(seen_q.innovation)
        gain = linalg.solve_lower_right(factor, linalg.solve_lower(factor, cross.T).T)
        innovation = _innovation_difference(state, d_noise, q.emission, p.emission)
        following = _State(next_q, next_p, change.noise + linalg.symmetrize(difference))
        return following, _Differences(seen_q, seen_p, innovation, gain, loop_p, opened)

    first = _State(
        markov.dense(q.chain.initial_noise),
        markov.dense(p.chain.initial_noise),
        covariance_difference(q.chain.initial_noise, p.chain.initial_noise),
    )
    of_q, of_p = (
        _Transition(x.chain.transition, map_time(markov.dense, x.chain.noise)) for x in (q, p)
    )
    change = _Transition(
        of_q.matrix - of_p.matrix,
        map_time(covariance_difference, q.chain.noise, p.chain.noise),
    )
    return lax.scan(step, first, (of_q, of_p, change))


def _pair(q: Model, p: Model, steps: _Differences) -> Moments:
    """Mean and covariance of (m, delta) at every time, under q."""
    d = len(q.chain.initial_loc)
    above = jnp.concatenate([q.chain.transition, jnp.zeros_like(steps.loop)], axis=-1)
    below = jnp.concatenate([steps.open, steps.loop], axis=-1)
    matrix = jnp.concatenate([above, below], axis=-2)
    shift = q.chain.offset - p.chain.offset
    shift = shift - matmul_each(steps.p.gain, q.offset - p.offset)
    offset = jnp.concatenate([q.chain.offset, shift], axis=-1)[..., None]

    def noise(prediction: Prediction, gain: Array) -> Array:
        driven = jnp.concatenate([prediction.gain, gain])
        return markov.push(driven, prediction.innovation)

    start = jnp.concatenate([q.chain.initial_loc, q.chain.initial_loc - p.chain.initial_loc])
    first = Moments(start[:, None], jnp.zeros((2 * d, 2 * d), start.dtype))
    return markov.propagate(first, Affine(matrix, offset, map_time(noise, steps.q, steps.gain)))


def matmul_each(stack: Array, x: Array) -> Array:
    """Every matrix of a stack times one vector."""
    return map_time(lambda a: markov.times(a, x), stack)


def compare(q: Model, p: Model) -> Parts:
    """The parts of every observation, of shape (T,) each."""
    last, steps = _differences(q, p)
    noise_q, noise_p = markov.dense(q.noise), markov.dense(p.noise)
    d_noise = covariance_difference(q.noise, p.noise)
    innovations = (
        _innovation(last.q, q.emission, noise_q),
        _innovation(last.p, p.emission, noise_p),
        _innovation_difference(last, d_noise, q.emission, p.emission),
    )
    earlier = steps.q.innovation, steps.p.innovation, steps.innovation
    of_q, of_p, difference = (
        jnp.concatenate([xs, x[None]]) for xs, x in zip(earlier, innovations, strict=True)
    )
    pair = _pair(q, p, steps)
    drift = jnp.concatenate([q.emission - p.emission, p.emission], axis=1)

    def step(of_q: Array, of_p: Array, difference: Array, loc: Array, covariance: Array):
        factored = matrices.factorize(Covariance(of_p))
        noise = relative.quotient(matrices.factorize(Covariance(of_q)), factored, difference)
        shift = markov.times(drift, loc[:, 0]) + (q.offset - p.offset)
        return markov.parts(Step(noise, factored, shift, drift, covariance))

    return map_time(step, of_q, of_p, difference, pair.loc, pair.covariance)


# ---- one law of observations ----------------------------------------------------------------


class Innovations(NamedTuple):
    """Of every observation, given those before: y - its prediction, and the covariance."""

    residual: Array
    covariance: Array


def innovations(x: Model, observations: Array) -> Innovations:
    """The Kalman filter."""
    noise = markov.dense(x.noise)

    def see(loc: Array, state: Array, y: Array) -> Innovations:
        residual = y - (markov.times(x.emission, loc) + x.offset)
        return Innovations(residual, _innovation(state, x.emission, noise))

    def step(carry: tuple[Array, Array], inputs: tuple[Array, ...]):
        loc, state = carry
        matrix, offset, of_state, y = inputs
        seen = see(loc, state, y)
        prediction, _, following = _predict(
            state, _Transition(matrix, of_state), x.emission, noise
        )
        loc = markov.times(matrix, loc) + offset
        return (loc + markov.times(prediction.gain, seen.residual), following), seen

    start = x.chain.initial_loc, markov.dense(x.chain.initial_noise)
    of_states = map_time(markov.dense, x.chain.noise)
    inputs = x.chain.transition, x.chain.offset, of_states, observations[:-1]
    (loc, state), earlier = lax.scan(step, start, inputs)
    last = see(loc, state, observations[-1])
    return Innovations(
        *(jnp.concatenate([a, b[None]]) for a, b in zip(earlier, last, strict=True))
    )
