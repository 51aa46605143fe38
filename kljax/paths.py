"""Means and covariance matrices of whole paths, to twice the digits: what `dense` compares.

A path x_1, ..., x_T is read time by time. For a chain x_(t+1) = A_t x_t + b_t + N(0, Q_(t+1))

    m_(t+1) = A_t m_t + b_t,
    S_(t+1, s) = A_t S_(t, s) for s <= t,   S_(t+1, t+1) = A_t S_(t, t+1) + Q_(t+1);

observations y_t = H x_t + c + N(0, R) have H m_t + c and H S_(t, s) H^T, plus R where t = s;
and states given y have, with all of them in one vector and G = S H^T (H S H^T + R)^-1,

    m + G (y - H m - c),   S - G H S.

Each is computed in pairs of numbers, without derivatives, and in ordinary ones, which have
them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from kljax import dense, doubled, linalg, markov, smoothing
from kljax.doubled import Doubled
from kljax.filtering import Model
from kljax.markov import Chain
from kljax.tridiagonal import Blocks


class Law(NamedTuple):
    """Of a path: its mean, a column, and its covariance; of ordinary numbers or of pairs."""

    loc: Any
    covariance: Any


class _Arithmetic(NamedTuple):
    """A times x, and x + y, of matrices x and y of ordinary numbers or of pairs."""

    times: Callable[[Array, Any], Any]
    plus: Callable[[Any, Any], Any]


_ORDINARY = _Arithmetic(linalg.matmul, jnp.add)
_PAIRS = _Arithmetic(doubled.times, doubled.add)


def _each(function: Callable[..., Any], *x: Any) -> Any:
    """A function of arrays, of both numbers of pairs."""
    return jax.tree.map(function, *x)


def _exactly(x: Array) -> Doubled:
    """As given, without derivatives."""
    return doubled.exactly(lax.stop_gradient(x))


def _with_low_parts(high: Law, exact: Law) -> Law:
    return Law(*map(dense.with_low_part, high, exact))


# ---- a chain --------------------------------------------------------------------------------


class _Steps(NamedTuple):
    """Of a chain: the first state's law, and what every step multiplies with and adds."""

    first: Law
    transition: Array
    added: Law


def _steps(x: Chain) -> tuple[_Steps, _Steps]:
    """In ordinary numbers, and in pairs."""
    first, added = dense.covariance(x.initial_noise), jax.vmap(dense.covariance)(x.noise)
    loc, offset = x.initial_loc[:, None], x.offset[..., None]
    ordinary = _Steps(Law(loc, first.high), x.transition, Law(offset, added.high))
    pairs = _Steps(
        Law(_exactly(loc), dense.fixed(first)),
        lax.stop_gradient(x.transition),
        Law(_exactly(offset), dense.fixed(added)),
    )
    return ordinary, pairs


def _propagated(arithmetic: _Arithmetic, x: _Steps) -> Law:
    """The lower half of the covariance by its recursion over time, mirrored."""
    length, size = x.transition.shape[0] + 1, x.transition.shape[-1]
    times, plus = arithmetic
    # In int32 also in the float64 parts of a float32 program.
    zero, d = np.int32(0), np.int32(size)

    def step(state: Law, given: tuple[Array, Array, Law]) -> tuple[Law, Law]:
        t, a, added = given
        row = times(a, state.covariance)
        beside = _each(lambda x: lax.dynamic_slice(x, (zero, t * d), (size, size)), row)
        on = plus(times(a, _each(jnp.transpose, beside)), added.covariance)
        place = (zero, (t + 1) * d)
        row = _each(lambda x, y: lax.dynamic_update_slice(x, y, place), row, on)
        state = Law(plus(times(a, state.loc), added.loc), row)
        return state, state

    padding = ((0, 0), (0, (length - 1) * size))
    first = Law(x.first.loc, _each(lambda x: jnp.pad(x, padding), x.first.covariance))
    at = jnp.arange(length - 1, dtype=jnp.int32)
    _, rest = lax.scan(step, first, (at, x.transition, x.added))
    loc, rows = _each(lambda x: x.reshape(length * size, -1), markov.prepend(first, rest))
    return Law(loc, _each(lambda x: jnp.tril(x) + jnp.tril(x, -1).T, rows))


def of_chain(x: Chain) -> Law:
    """Of the states of a chain, T d numbers."""
    ordinary, pairs = _steps(x)
    return _with_low_parts(_propagated(_ORDINARY, ordinary), _propagated(_PAIRS, pairs))


def of_blocks(x: Blocks) -> Law:
    """By the inverse of a block-tridiagonal precision."""
    length, size, _ = x.diagonal.shape
    place = jnp.eye(length, dtype=x.diagonal.dtype)[:, None, :, None]
    # One row of blocks further down.
    below = jnp.concatenate([jnp.zeros_like(place[:1]), place[:-1]])
    lower = jnp.pad(x.lower, ((1, 0), (0, 0), (0, 0)))
    parts = place * x.diagonal[:, :, None, :], below * lower[:, :, None, :]
    on, off = (a.reshape(length * size, length * size) for a in parts)
    return Law(doubled.exactly(x.loc.reshape(-1, 1)), dense.inverse(on + off + off.T))


# ---- what is seen of it ---------------------------------------------------------------------


def _by_rows(arithmetic: _Arithmetic, emission: Array, x: Any) -> Any:
    """(I (x) H) x: every block of d rows seen."""
    rows = _each(lambda a: a.reshape(-1, emission.shape[1], a.shape[1]), x)
    rows = jax.vmap(arithmetic.times, (None, 0))(emission, rows)
    return _each(lambda a: a.reshape(-1, a.shape[2]), rows)


def _seen(arithmetic: _Arithmetic, emission: Array, states: Law, own: Law) -> Law:
    """Of H x_t + c and the noise, at all times."""
    loc = _by_rows(arithmetic, emission, states.loc)
    half = _by_rows(arithmetic, emission, states.covariance)
    both = _by_rows(arithmetic, emission, _each(jnp.transpose, half))
    times = jax.tree.leaves(loc)[0].shape[0] // emission.shape[0]
    offset = _each(lambda x: jnp.tile(x, (times, 1)), own.loc)
    noise = _each(lambda x: jnp.kron(jnp.eye(times, dtype=x.dtype), x), own.covariance)
    return Law(arithmetic.plus(loc, offset), arithmetic.plus(both, noise))


def _observed(chain: Chain, emission: Array, offset: Array, noise: Doubled) -> Law:
    """Of H x_t + c and noise with a covariance."""
    ordinary, pairs = _steps(chain)
    high = _propagated(_ORDINARY, ordinary)
    high = _seen(_ORDINARY, emission, high, Law(offset[:, None], noise.high))
    own = Law(_exactly(offset[:, None]), dense.fixed(noise))
    exact = _seen(_PAIRS, lax.stop_gradient(emission), _propagated(_PAIRS, pairs), own)
    return _with_low_parts(high, exact)


def of_observations(x: Model) -> Law:
    """Of the observations alone, T k numbers."""
    return _observed(x.chain, x.emission, x.offset, dense.covariance(x.noise))


def of_states_and_observations(x: Model) -> Law:
    """Of both, time by time, states before observations: T (d + k) numbers."""
    d = x.emission.shape[1]
    emission = jnp.concatenate([jnp.eye(d, dtype=x.emission.dtype), x.emission])
    offset = jnp.pad(x.offset, (d, 0))
    noise = _each(lambda n: jnp.pad(n, ((d, 0), (d, 0))), dense.covariance(x.noise))
    return _observed(x.chain, emission, offset, noise)


def of_states_given_observations(x: Model, observations: Array) -> Law:
    """Of the states of a smoothing posterior, T d numbers."""
    # It is a chain with noises of its own, whose recursion is accurate where it is small; the
    # difference of the large ones is taken in pairs.
    high = _propagated(_ORDINARY, _steps(smoothing.chain(x, observations))[0])
    prior = _propagated(_PAIRS, _steps(x.chain)[1])
    emission = lax.stop_gradient(x.emission)
    own = Law(_exactly(x.offset[:, None]), dense.fixed(dense.covariance(x.noise)))
    seen = _seen(_PAIRS, emission, prior, own)
    cross = _by_rows(_PAIRS, emission, prior.covariance)
    gain = _each(jnp.transpose, _divided(seen.covariance, cross))
    residual = doubled.subtract(_exactly(observations.reshape(-1, 1)), seen.loc)
    exact = Law(
        doubled.add(prior.loc, _product(gain, residual)),
        doubled.subtract(prior.covariance, _product(gain, cross)),
    )
    return _with_low_parts(high, exact)


def _product(a: Doubled, b: Doubled) -> Doubled:
    """Of two matrices of pairs."""
    low = linalg.matmul(a.low, b.high)
    return doubled.add(doubled.times(a.high, b), doubled.exactly(low))


def _divided(a: Doubled, b: Doubled) -> Doubled:
    """A^-1 b for symmetric a: one step of refinement, its residual in pairs."""
    factor = linalg.cholesky(a.high)

    def divide(b: Array) -> Array:
        return linalg.solve_lower_transposed(factor, linalg.solve_lower(factor, b))

    x = divide(b.high)
    residual = doubled.subtract(b, _product(a, doubled.exactly(x)))
    return doubled.two_sum(x, divide(doubled.value(residual)))
