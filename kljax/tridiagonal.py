"""Block-tridiagonal precision matrices: a Gauss-Markov chain given by its precision.

Eliminating the last block, then the one before, gives the conditional laws

    Lambda_T = D_T,   Lambda_t = D_t - O_t^T Lambda_(t+1)^-1 O_t,
    x_1 ~ N(m_1, Lambda_1^-1),   x_(t+1) | x_t ~ N(m_(t+1) + A_t (x_t - m_t), Lambda_(t+1)^-1),
    A_t = -Lambda_(t+1)^-1 O_t,

with D on the diagonal and O below it. Two chains are compared as in `markov`; the differences
of the conditional laws obey a recursion of their own, driven by those of the given blocks
(own arrangement; all of Lambda, A at t + 1):

    dA_t      = -Lambda_p^-1 (dO_t + dLambda A_q)
    dLambda_t = dD_t + dO_t^T A_q + A_p^T dO_t + A_p^T dLambda A_q.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from kljax import linalg, markov, matrices, relative
from kljax.markov import Affine, Chain, Moments, Parts, Step, map_time
from kljax.structure import Covariance, Precision


class Blocks(NamedTuple):
    """Mean (T, d), diagonal blocks (T, d, d) and those below, (T - 1, d, d)."""

    loc: Array
    diagonal: Array
    lower: Array


class Conditionals(NamedTuple):
    """Lambda (T, d, d) and A (T - 1, d, d)."""

    precision: Array
    transition: Array


def _eliminate(precision: Array, diagonal: Array, lower: Array) -> tuple[Array, Array]:
    """A and the next Lambda."""
    factor = linalg.cholesky(precision)
    half = linalg.solve_lower(factor, lower)
    transition = -linalg.solve_lower_transposed(factor, half)
    return transition, linalg.symmetrize(diagonal - linalg.matmul(half.T, half))


def conditionals(x: Blocks) -> Conditionals:
    def step(precision: Array, blocks: tuple[Array, Array]):
        transition, following = _eliminate(precision, *blocks)
        return following, (following, transition)

    last = x.diagonal[-1]
    _, (earlier, transition) = lax.scan(step, last, (x.diagonal[:-1], x.lower), reverse=True)
    return Conditionals(jnp.concatenate([earlier, last[None]]), transition)


def chain(x: Blocks) -> Chain:
    """The conditional laws, as those of a Gauss-Markov chain."""
    found = conditionals(x)
    offset = x.loc[1:] - map_time(markov.times, found.transition, x.loc[:-1])
    first, rest = Precision(found.precision[0]), Precision(found.precision[1:])
    return Chain(x.loc[0], first, found.transition, offset, rest)


# ---- two of them ----------------------------------------------------------------------------


class Pair(NamedTuple):
    """Lambda of q and p, and Lambda_q - Lambda_p."""

    q: Array
    p: Array
    difference: Array


class _Differences(NamedTuple):
    precision: Pair
    transition_q: Array
    transition_p: Array
    drift: Array


def _differences(q: Blocks, p: Blocks) -> tuple[Pair, _Differences]:
    """Of the first state, and of every transition."""

    def step(state: Pair, blocks: tuple[tuple[Array, Array], ...]):
        (on_q, below_q), (on_p, below_p), (d_on, d_below) = blocks
        a_q, next_q = _eliminate(state.q, on_q, below_q)
        a_p, next_p = _eliminate(state.p, on_p, below_p)
        pushed = d_below + linalg.matmul(state.difference, a_q)
        factor = linalg.cholesky(state.p)
        drift = -linalg.solve_lower_transposed(factor, linalg.solve_lower(factor, pushed))
        difference = d_on + linalg.symmetrize(
            linalg.matmul(d_below.T, a_q) + linalg.matmul(a_p.T, pushed)
        )
        return Pair(next_q, next_p, difference), _Differences(state, a_q, a_p, drift)

    on, below = q.diagonal - p.diagonal, q.lower - p.lower
    last = Pair(q.diagonal[-1], p.diagonal[-1], on[-1])
    blocks = (
        (q.diagonal[:-1], q.lower),
        (p.diagonal[:-1], p.lower),
        (on[:-1], below),
    )
    return lax.scan(step, last, blocks, reverse=True)


def _noise(pair: Pair) -> tuple[matrices.Quotient, matrices.Factored]:
    """S_p^-1 S_q has the eigenvalues of Lambda_q^-1 Lambda_p, compared as covariances."""
    q, p = (matrices.factorize(Covariance(x)) for x in (pair.q, pair.p))
    return relative.quotient(p, q, -pair.difference), matrices.factorize(Precision(pair.p))


def compare(q: Blocks, p: Blocks) -> Parts:
    """The parts of every step, of shape (T,) each."""
    first, rest = _differences(q, p)
    precision = markov.prepend(first, rest.precision)
    delta = q.loc - p.loc
    shift = delta[1:] - map_time(markov.times, rest.transition_p, delta[:-1])

    def step(pair: Pair, shift: Array, drift: Array, covariance: Array) -> Parts:
        return markov.parts(Step(*_noise(pair), shift, drift, covariance))

    marginals = Moments(q.loc, _covariances(precision.q, rest.transition_q))
    given = markov.prepend(delta[0], shift), *markov.after(rest.drift, marginals)
    return map_time(step, precision, *given)


def _covariances(precision: Array, transition: Array) -> Array:
    """Of every x_t, from the conditional laws."""
    noise = map_time(lambda x: markov.dense(Precision(x)), precision)
    nothing = jnp.zeros_like(noise[..., :1])
    steps = Affine(transition, nothing[1:], noise[1:])
    covariance = markov.propagate(Moments(nothing[0], noise[0]), steps).covariance
    assert covariance is not None
    return covariance


def covariances(x: Blocks) -> Array:
    """The covariance of every x_t, (T, d, d)."""
    return _covariances(*conditionals(x))


def half_square(x: Blocks, delta: Array) -> Array:
    """delta^T P delta / 2 >= 0 as the squares of the residuals of every step."""
    found = conditionals(x)
    later = delta[1:] - map_time(markov.times, found.transition, delta[:-1])
    residual = markov.prepend(delta[0], later)

    def of(precision: Array, residual: Array) -> Array:
        return matrices.location(residual, matrices.factorize(Precision(precision)))

    return jnp.sum(map_time(of, found.precision, residual))


def half_log_det(x: Blocks) -> Array:
    """Log |S| / 2."""

    def of(precision: Array) -> Array:
        structure = Precision(precision)
        return structure.half_log_det(structure.factorize())

    return jnp.sum(map_time(of, conditionals(x).precision))
