"""The whole linear VAE: which points are minima, which is the deepest, which noise is best."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from kljax import special
from kljax.vae import _inputs
from kljax.vae.linear import arguments
from kljax.vae.linear.arguments import ONES, Problem, Vector, marked, problem, safe
from kljax.vae.linear.latent import Branch, unmarked
from kljax.vae.linear.model import LOG_2PI, LinearVAE
from kljax.vae.terms import TermWeights


class Minima(NamedTuple):
    """Points of the whole model with K = 0, 1, ..., min(k, n) active latents, one an entry.

    Attributes:
        exists: whether the largest K eigenvalues have an active point each.
        stable: whether it is a minimum of J.
        objective: J in nats; nan where there is no such point.
    """

    exists: Array
    stable: Array
    objective: Array


def minima(
    eigenvalues: Vector, noise_variance: ArrayLike, latents: int, weights: TermWeights = ONES
) -> Minima:
    """Which numbers of active latents are minima of J, and how deep each is.

    The K active latents follow the eigenvectors of the K largest eigenvalues, since a point
    where others do is a saddle. It is a minimum iff, where K < k and K < n, the next
    eigenvalue l leaves a collapsed latent alone: l < (b / a) c v, or equal for b / a <= 2. If
    only some of several equal eigenvalues are followed, it is one of a connected set of minima.

    Args:
        eigenvalues: of the covariance of the data, >= 0, shape (n,), in any order.
        noise_variance: of the decoder, > 0.
        latents: k, how many the model has.
        weights: as for `stationary_points`.

    Returns:
        `Minima`, arrays of shape (min(k, n) + 1,).

    Raises:
        ValueError: as for `stationary_points`, or for a number of latents below 1.
    """
    given = problem(eigenvalues, noise_variance, weights)
    return _minima(given, _inputs.whole("latents", latents))


@jax.jit(static_argnums=1)
def _minima(given: Problem, latents: int) -> Minima:
    given = given._replace(l=jnp.sort(given.l)[::-1])
    _, _, a, b, c = given
    size = given.l.shape[0]
    used = jnp.arange(min(latents, size) + 1)
    active = unmarked(given).active
    first = jnp.all(given.is_valid()) & (c > 0)
    exists = first & jnp.concatenate(
        [jnp.ones(1, bool), jnp.cumprod(active.exists[: used.shape[0] - 1]) > 0]
    )
    # A latent that waits needs a stationary variance, and must not be pulled.
    waits = used < latents
    exists = exists & (~waits | (a > 0))
    next_r = jnp.concatenate([given.r, jnp.zeros(1, given.r.dtype)])[used]
    # At the threshold itself a collapsed latent stays unless the transition is abrupt.
    pulled = (next_r * a > c * b) | ((next_r * a == c * b) & (b > 2 * a))
    stable = exists & ~(waits & pulled)
    objective = _objectives(given, active, latents, used)
    return Minima(exists, stable, marked(objective, exists, jnp.all(given.is_valid())))


def _objectives(given: Problem, active: Branch, latents: int, used: Array) -> Array:
    """J for every number of active latents, from falling eigenvalues."""
    l, v, a, b, c = given
    most = used.shape[0] - 1
    u = active.decoder[:most] ** 2 / v
    # Twice what an active latent costs, and a collapsed one; both less c log c.
    on = b * given.r[:most] / (u + b) + c * special.log(a + u)
    off = c * special.log(safe(a))
    zero = jnp.zeros(1, l.dtype)
    left = jnp.concatenate([jnp.cumsum(given.r[::-1])[::-1], zero])[: most + 1]
    costs = jnp.concatenate([zero, jnp.cumsum(on)]) + left + (latents - used) * off
    noise = l.shape[0] * (LOG_2PI + special.log(v))
    return 0.5 * (noise + costs - latents * c * special.log(safe(c)))


def solution(
    eigenvalues: Vector,
    noise_variance: ArrayLike,
    latents: int,
    weights: TermWeights = ONES,
    *,
    active: ArrayLike | None = None,
    eigenvectors: ArrayLike | None = None,
) -> LinearVAE:
    """The linear VAE of smallest J, or the one with a given number of active latents.

    Args:
        eigenvalues: of the covariance of the data, >= 0, shape (n,), in any order.
        noise_variance: of the decoder, > 0.
        latents: k, how many the model has.
        weights: as for `stationary_points`.
        active: how many latents are active; without it, as many as in the deepest of the
            `minima`.
        eigenvectors: columns in the order of the eigenvalues, shape (n, n); without them the
            coordinates of the data are those of its eigenvectors.

    Returns:
        `LinearVAE`, its active latents first, by falling eigenvalue; nan where there is no
        such point. Signs and order of the latents are free, nothing else is as long as the
        eigenvalues differ.

    Raises:
        ValueError: as for `minima`, or for eigenvectors of another shape.
    """
    latents = _inputs.whole("latents", latents)
    given = problem(eigenvalues, noise_variance, weights)
    size = given.l.shape[0]
    basis = jnp.eye(size, dtype=given.l.dtype)
    if eigenvectors is not None:
        basis = arguments.square("eigenvectors", eigenvectors, size)
    if active is not None:
        active = _inputs.number("active", active)
    return _solution(given, basis, active, latents)


@jax.jit(static_argnums=3)
def _solution(given: Problem, basis: Array, active: Array | None, latents: int) -> LinearVAE:
    size = given.l.shape[0]
    if active is None:
        known = _minima(given, latents)
        depth = jnp.where(known.stable, known.objective, jnp.inf)
        active = jnp.where(jnp.any(known.stable), jnp.argmin(depth), -1)
    # Latents beyond the dimensions of the data have nothing to follow.
    extra = max(latents - size, 0)
    order = jnp.argsort(-given.l)[:latents]
    l = jnp.concatenate([given.l[order], jnp.zeros(extra, given.l.dtype)])
    columns = jnp.concatenate([basis[:, order], jnp.zeros((size, extra), basis.dtype)], axis=1)
    points = unmarked(given._replace(l=l))
    chosen = jnp.arange(latents) < active
    exists = jnp.where(chosen, points.active.exists, points.collapsed.exists)
    possible = jnp.all(exists) & (active >= 0) & (active <= min(latents, size))

    def pick(on: Array, off: Array) -> Array:
        return marked(jnp.where(chosen, on, off), possible, jnp.all(given.is_valid()))

    w, encoder, s = map(pick, points.active[:3], points.collapsed[:3])
    return LinearVAE(columns * w[None, :], (columns * encoder[None, :]).T, s)


def noise_variance(values: Vector, latents: int, beta: ArrayLike = 1.0) -> Array:
    """The noise variance of smallest J, where the decoder learns it too.

    For weights a = b (whatever they are: that is the unit of the latents) and c = beta. With
    K active latents it is the sum of all but the K largest eigenvalues over n - beta K. The
    right K is the one that makes this smallest: v dJ/dv is half the largest of
    n - beta K - sum / v, so it changes its sign where the first of them does.

    Args:
        values: eigenvalues of the covariance of the data, >= 0, shape (n,), in any order.
        latents: k, how many the model has.
        beta: weight of the log-determinant term, > 0.

    Returns:
        Scalar. It is 0 where a model without noise can be had so cheaply that J has no
        minimum: if at most k eigenvalues are not 0 and beta times their number is below n.
        For k >= n and beta = 1 every smaller value is as good.

    Raises:
        ValueError: for eigenvalues that are no vector, latents below 1 or a beta not positive.
    """
    l, beta = arguments.eigenvalues(values), _inputs.positive("beta", beta)
    return _noise_variance(l, jnp.asarray(beta, l.dtype), _inputs.whole("latents", latents))


@jax.jit(static_argnums=2)
def _noise_variance(l: Array, beta: Array, latents: int) -> Array:
    size = l.shape[0]
    used = jnp.arange(min(latents, size) + 1)
    # Sums of the smallest eigenvalues first, so that none is lost beside a large one.
    sums = jnp.concatenate([jnp.zeros(1, l.dtype), jnp.cumsum(jnp.sort(l))])
    share = size - beta * used
    per_share = sums[::-1][: used.shape[0]] / jnp.where(share > 0, share, 1.0)
    valid = jnp.all((l >= 0) & jnp.isfinite(l)) & (beta > 0)
    return marked(jnp.min(jnp.where(share > 0, per_share, jnp.inf)), valid, valid)
