"""Gaussian Markov chains: x_1 ~ N(m_1, Q_1), x_(t+1) = A_t x_t + b_t + N(0, Q_(t+1)).

The chain rule makes the divergence a sum over time of what the conditional laws differ by,

    KL = sum_t  dispersion(Q_q,t ‖ Q_p,t) + |C_t^-1 e_t|^2 / 2 + |C_t^-1 dA_t R_t|^2 / 2,

    dA = A_q - A_p,   e_(t+1) = dA_t m_t + db_t,   Q_p,t = C_t C_t^T,   S_t = R_t R_t^T,

m_t and S_t the mean and covariance of x_t under q: every term is a square or a dispersion, so
none is negative, and all are driven by differences. O(T d^3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from kljax import linalg, matrices, special
from kljax.matrices import Factored, Quotient
from kljax.structure import Structure

_S = TypeVar("_S")


class Chain(NamedTuple):
    """The conditional laws; time is the leading axis, also of the structures' values."""

    initial_loc: Array
    initial_noise: Structure
    transition: Array
    offset: Array
    noise: Structure


def map_time(function: Callable[..., Any], *stacks: Any) -> Any:
    """The function at every time step."""
    return jax.vmap(function)(*stacks)


# ---- recursions over time -------------------------------------------------------------------


class Affine(NamedTuple):
    """x -> matrix x + offset, with a covariance that is added to that of x."""

    matrix: Array
    offset: Array
    noise: Array | None = None


class Moments(NamedTuple):
    """Mean (or any matrix of d rows) and covariance."""

    loc: Array
    covariance: Array | None = None


def _product(a: Array, b: Array) -> Array:
    """A b; of small matrices as a sum, which a loop's body takes in without a call."""
    if max(a.shape + b.shape) > 8:
        return linalg.matmul(a, b)
    return jnp.sum(a[:, :, None] * b[None, :, :], axis=1)


def _apply(f: Affine, x: Moments) -> Moments:
    loc = _product(f.matrix, x.loc) + f.offset
    if f.noise is None or x.covariance is None:
        return Moments(loc)
    return Moments(loc, push(f.matrix, x.covariance) + f.noise)


def push(a: Array, covariance: Array) -> Array:
    """A S A^T."""
    return linalg.symmetrize(_product(_product(a, covariance), a.T))


def _compose(first: Affine, second: Affine) -> Affine:
    """Second after first."""
    offset = linalg.matmul(second.matrix, first.offset) + second.offset
    matrix = linalg.matmul(second.matrix, first.matrix)
    if first.noise is None or second.noise is None:
        return Affine(matrix, offset)
    return Affine(matrix, offset, push(second.matrix, first.noise) + second.noise)


def _sequential(initial: Moments, steps: Affine) -> Moments:
    def step(x: Moments, f: Affine) -> tuple[Moments, Moments]:
        y = _apply(f, x)
        return y, y

    return lax.scan(step, initial, steps)[1]


def _parallel(initial: Moments, steps: Affine) -> Moments:
    """In depth O(log T), by composing neighbours; twice the products."""
    paths = lax.associative_scan(jax.vmap(_compose), steps)
    return jax.vmap(_apply, (0, None))(paths, initial)


def propagate(initial: Moments, steps: Affine) -> Moments:
    """The moments at every time, by the recursion that suits the machine.

    A CPU does one step after the other; where thousands of products run at once, the
    composition of neighbours is faster.
    """
    if steps.matrix.shape[0] < 2:
        later = _sequential(initial, steps)
    else:
        later = lax.platform_dependent(initial, steps, cpu=_sequential, default=_parallel)
    return prepend(initial, later)


def marginals(x: Chain) -> Moments:
    """Mean (T, d) and covariance (T, d, d) of every x_t."""
    noise = over_time(dense, x.initial_noise, x.noise)
    steps = Affine(x.transition, x.offset[..., None], noise[1:])
    moments = propagate(Moments(x.initial_loc[:, None], noise[0]), steps)
    return Moments(moments.loc[..., 0], moments.covariance)


def dense(x: Structure) -> Array:
    """S of a structure."""
    return x.dense(x.factorize())


# ---- one step -------------------------------------------------------------------------------


class Step(NamedTuple):
    """What the conditional laws of one step differ by."""

    noise: Quotient
    of_p: Factored
    shift: Array
    """e = the difference of both means of x_(t+1), at the mean of x_t under q."""
    drift: Array
    """dA = what the difference of both means of x_(t+1) changes by with x_t."""
    covariance: Array
    """S = the covariance of x_t under q."""


class Parts(NamedTuple):
    """The parts of one step."""

    dispersion: Array
    location: Array
    trace: Array
    log_det: Array


def parts(step: Step) -> Parts:
    spread = expected_half_square(step.drift, step.covariance, step.of_p)
    return Parts(
        dispersion=matrices.dispersion(step.noise) + spread,
        location=matrices.location(step.shift, step.of_p),
        trace=matrices.trace(step.noise) + 2 * spread,
        log_det=matrices.log_det(step.noise),
    )


@jax.custom_jvp
def expected_half_square(drift: Array, covariance: Array, p: Factored) -> Array:
    """tr(S_p^-1 drift S drift^T) / 2 = |C_p^-1 drift R|^2 / 2 with S = R R^T."""
    y = p.whiten(linalg.matmul(drift, semidefinite_factor(covariance)))
    return 0.5 * jnp.sum(y * y)


@expected_half_square.defjvp
def _expected_half_square_jvp(primals, tangents):
    # Not through the factor R: the value is linear in S.
    (drift, covariance, p), (ddrift, dcovariance, dp) = primals, tangents
    delta = linalg.matmul(drift, semidefinite_factor(covariance))
    y, gain = p.whiten(delta), p.whiten(drift)
    slope = p.structure.whiten_transposed(p.factor, y)
    by_drift = p.structure.whiten_transposed(p.factor, linalg.matmul(gain, covariance))

    def by_p(*column: Array) -> Array:
        d, z, s = column
        return p.structure.half_square_change(dp.structure, d, z[:, None], s[:, None])

    change = jnp.sum(by_drift * ddrift)
    change = change + 0.5 * jnp.sum(gain * linalg.matmul(gain, dcovariance))
    change = change + jnp.sum(jax.vmap(by_p, 1)(delta, y, slope))
    return 0.5 * jnp.sum(y * y), change


def semidefinite_factor(a: Array) -> Array:
    """A lower triangular R with R R^T = a for a that may be singular; its own column is 0 then.

    What is left of a diagonal entry within its rounding is no variance.
    """
    size = a.shape[0]
    index = jnp.arange(size, dtype=jnp.int32)
    least = 8 * max(size, 1) * jnp.finfo(a.dtype).eps * linalg.diagonal(a)

    def step(rest: Array, j: Array) -> tuple[Array, Array]:
        at = (index == j).astype(a.dtype)
        column = jnp.where(index >= j, jnp.sum(rest * at[None, :], axis=1), 0)
        pivot = jnp.sum(at * column)
        positive = pivot > jnp.sum(at * least)
        column = column * jnp.where(positive, 1 / jnp.sqrt(jnp.where(positive, pivot, 1)), 0)
        return rest - column[:, None] * column[None, :], column

    return lax.scan(step, a, index)[1].T


# ---- two chains -----------------------------------------------------------------------------


def compare(q: Chain, p: Chain, q_marginals: Moments) -> Parts:
    """The parts of every step, of shape (T,) each."""

    def step(noise: tuple[Structure, Structure], shift, drift, covariance) -> Parts:
        of_q, of_p = (matrices.factorize(x) for x in noise)
        return parts(
            Step(matrices.relative_quotient(of_q, of_p), of_p, shift, drift, covariance)
        )

    change = q.transition - p.transition
    shift = map_time(times, change, q_marginals.loc[:-1]) + (q.offset - p.offset)
    shift = prepend(q.initial_loc - p.initial_loc, shift)
    given = shift, *after(change, q_marginals)
    return over_time(step, (q.initial_noise, p.initial_noise), (q.noise, p.noise), *given)


def after(drift: Array, marginals: Moments) -> tuple[Array, Array]:
    """Drift and covariance of the state before, at every time; the first has none."""
    assert marginals.covariance is not None
    before = marginals.covariance[:-1]
    nothing = jnp.zeros_like(marginals.covariance[0])
    return prepend(nothing, drift), prepend(nothing, before)


def prepend(first: Any, rest: Any) -> Any:
    """What is first in time, then the rest."""
    return jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), first, rest)


def over_time(function: Callable[..., Any], initial: Any, later: Any, *given: Array) -> Any:
    """The function of the noises (and of what is given) at every time.

    One map, where the initial noise is given by the same kind of matrix as the later ones.
    """
    if jax.tree.structure(initial) == jax.tree.structure(later):
        return map_time(function, prepend(initial, later), *given)
    first = function(initial, *(x[0] for x in given))
    return prepend(first, map_time(function, later, *(x[1:] for x in given)))


def times(a: Array, x: Array) -> Array:
    """The product of a matrix and a vector."""
    return linalg.matmul(a, x[:, None])[:, 0]


# ---- one chain ------------------------------------------------------------------------------


def half_log_det(x: Chain) -> Array:
    """Log |S| / 2 of the whole chain: the noises' own."""

    def of(structure: Structure) -> Array:
        return structure.half_log_det(structure.factorize())

    return jnp.sum(over_time(of, x.initial_noise, x.noise))


def half_square(x: Chain, point: Array) -> Array:
    """|point - loc|^2_S / 2, by the residuals of every step."""

    def of(structure: Structure, delta: Array) -> Array:
        return matrices.location(delta, matrices.factorize(structure))

    residual = point[1:] - (map_time(times, x.transition, point[:-1]) + x.offset)
    residual = prepend(point[0] - x.initial_loc, residual)
    return jnp.sum(over_time(of, x.initial_noise, x.noise, residual))


def sample(x: Chain, key: Array) -> Array:
    """One path, (T, d)."""

    def color(structure: Structure, noise: Array) -> Array:
        return structure.color(structure.factorize(), noise[:, None])

    shape = (x.offset.shape[0] + 1, x.initial_loc.shape[0])
    noise = jax.random.normal(key, shape, x.initial_loc.dtype)
    offset = over_time(color, x.initial_noise, x.noise, noise)
    offset = offset + prepend(x.initial_loc, x.offset)[..., None]
    return propagate(Moments(offset[0]), Affine(x.transition, offset[1:])).loc[..., 0]


def covariance(x: Chain) -> Array:
    """The (T d, T d) covariance of the path, time by time: G G^T of what noise does to it."""

    def factor(structure: Structure) -> Array:
        return structure.dense_factor(structure.factorize())

    factors = over_time(factor, x.initial_noise, x.noise)
    length, size = factors.shape[:2]
    place = jnp.eye(length, dtype=factors.dtype)[:, None, :, None]
    blocks = (place * factors[:, :, None, :]).reshape(length, size, length * size)
    response = propagate(Moments(blocks[0]), Affine(x.transition, blocks[1:])).loc
    response = response.reshape(length * size, length * size)
    return linalg.matmul(response, response.T)


def variance(x: Chain) -> Array:
    """Of every coordinate at every time, (T, d)."""
    covariances = marginals(x).covariance
    return map_time(linalg.diagonal, covariances)


def log_normalizer(coordinates: int, half: Array) -> Array:
    """(coordinates log 2 pi + log |S|) / 2, given log |S| / 2."""
    return 0.5 * coordinates * special.LOG_2PI + half
