"""One latent of a linear VAE along one eigenvector of the data: its stationary points."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from kljax import special
from kljax.vae import _inputs
from kljax.vae.linear.arguments import ONES, Problem, Vector, marked, problem, safe
from kljax.vae.terms import TermWeights


class Branch(NamedTuple):
    """One kind of stationary point of the latent that follows an eigenvector; shapes (n,).

    Attributes:
        decoder: w >= 0; its sign is free, together with the sign of `encoder`.
        encoder: what the eigenvector's coordinate of x is multiplied with.
        variance: s.
        gain: by how many nats J is less than with this latent collapsed.
        exists: whether there is such a point; where not, the numbers are nan.
        stable: whether the Hessian by (w, encoder, log s) is positive definite there.
    """

    decoder: Array
    encoder: Array
    variance: Array
    gain: Array
    exists: Array
    stable: Array


class Branches(NamedTuple):
    """Every stationary point of one latent along an eigenvector, up to the sign of w.

    Attributes:
        collapsed: w = 0, where the posterior carries nothing.
        saddle: the lower root, which separates the two others where both are stable.
        active: the upper root.
    """

    collapsed: Branch
    saddle: Branch
    active: Branch


class Thresholds(NamedTuple):
    """Eigenvalues at which a latent changes what it can do.

    For b / a > 2 the collapsed and the active point are both stable between `fold` and
    `collapse`: which of them training ends in depends on where it began. For b / a <= 2 all
    three are equal.

    Attributes:
        fold: from here on there is an active point.
        equal: here the active and the collapsed point have the same J.
        collapse: from here on the collapsed point is unstable.
    """

    fold: Array
    equal: Array
    collapse: Array


def stationary_points(
    eigenvalues: Vector, noise_variance: ArrayLike, weights: TermWeights = ONES
) -> Branches:
    """Every stationary point of a latent that follows an eigenvector of the data.

    Args:
        eigenvalues: of the covariance of the data, >= 0, shape (n,), in any order.
        noise_variance: of the decoder, > 0.
        weights: a, b, c >= 0 of trace, Mahalanobis and log-determinant term. For a = 0 a
            collapsed latent has no stationary variance, for b = 0 there is no active point
            and for c = 0 no point at all.

    Returns:
        `Branches`, in the order of the eigenvalues.

    Raises:
        ValueError: for shapes that do not fit or a negative weight.
    """
    return _stationary_points(problem(eigenvalues, noise_variance, weights))


@jax.jit
def _stationary_points(given: Problem) -> Branches:
    def mark(x: Branch) -> Branch:
        w, encoder, variance, gain = (
            marked(number, x.exists, given.is_valid()) for number in x[:4]
        )
        return Branch(w, encoder, variance, gain, x.exists, x.stable)

    return Branches(*map(mark, unmarked(given)))


def unmarked(given: Problem) -> Branches:
    """The same, with finite numbers in place of nan where there is no point.

    For those who choose among the branches: nan in what they leave would come back through
    their gradient.
    """
    _, _, a, b, c = given
    r, valid = given.r, given.is_valid()
    reach = b * r - 4 * c * (b - a)
    real = valid & (b * r > 0) & (reach > 0) & (c > 0)
    # Not the root of the product, which may overflow.
    root = jnp.sqrt(jnp.where(real, b * r, 1.0)) * jnp.sqrt(jnp.where(real, reach, 1.0))
    # The root that cancels comes from the product of both, which is -product / c.
    middle, product = b * (r - 2 * c), b * (r * a - c * b)
    larger = jnp.where(real, jnp.abs(middle) + root, 1.0)
    far, near = larger / (2 * safe(c)), 2 * product / larger
    upper = jnp.where(middle >= 0, far, near)
    lower = jnp.where(middle >= 0, -near, -far)
    always, never = jnp.ones_like(valid), jnp.zeros_like(valid)
    collapsed = valid & (a > 0) & (c > 0)
    return Branches(
        _branch(given, jnp.zeros_like(r), exists=collapsed, stable=r * a < c * b),
        _branch(given, lower, exists=real & (lower > 0), stable=never),
        _branch(given, upper, exists=real & (upper > 0), stable=always),
    )


def _branch(given: Problem, u: Array, *, exists: Array, stable: Array) -> Branch:
    _, v, a, b, c = given
    used = exists & (u > 0)
    u = jnp.where(used, u, 1.0)
    w = jnp.where(used, jnp.sqrt(v * u), 0.0)
    encoder = w / jnp.where(used, v * (u + b), 1.0)
    paid = jnp.where(a > 0, special.log1p(u / safe(a)), jnp.inf)
    gain = 0.5 * (given.r * (u / (u + b)) - c * paid)
    variance = c / jnp.where(exists, a + jnp.where(used, u, 0.0), 1.0)
    return Branch(w, encoder, variance, jnp.where(used, gain, 0.0), exists, exists & stable)


def thresholds(noise_variance: ArrayLike, weights: TermWeights = ONES) -> Thresholds:
    """The eigenvalues between which collapse depends on where training began.

    Args:
        noise_variance: of the decoder, > 0.
        weights: a, b, c >= 0 of trace, Mahalanobis and log-determinant term.

    Returns:
        `Thresholds`, of scalars; infinite where no eigenvalue is large enough, nan where b or c
        is 0, which leaves no active point.

    Raises:
        ValueError: for a noise variance that is no scalar or a negative weight.
    """
    v = _inputs.positive("noise_variance", noise_variance)
    return _thresholds(problem(jnp.zeros(1, jnp.result_type(v)), v, weights))


@jax.jit
def _thresholds(given: Problem) -> Thresholds:
    _, v, a, b, c = given
    ratio = jnp.where(a > 0, b / safe(a), jnp.inf)
    collapse = ratio * c * v
    bistable = b > 2 * a
    fold = jnp.where(bistable, 4 * c * v * ((b - a) / safe(b)), collapse)
    equal = jnp.where(bistable, jnp.clip(c * v * _equal(ratio), fold, collapse), collapse)
    some, valid = (b > 0) & (c > 0), given.is_valid()[0]
    return Thresholds(*(marked(x, some, valid) for x in (fold, equal, collapse)))


def _equal(ratio: Array) -> Array:
    """Where r / c makes the active point of b / a = ratio > 2 worth as much as the collapsed.

    With m = 1 + u / a: log m = (m - 1) (m - 1 + ratio) / (ratio m); from m = ratio - 1 on, the
    left side less the right one falls from a positive value to below 0.
    """
    p = jnp.where((ratio > 2) & jnp.isfinite(ratio), ratio, 3.0)

    def excess(log_m: Array, p: Array) -> Array:
        m = jnp.exp(log_m)
        return log_m - ((m - 1) / m) * ((m - 1) / p + 1)

    fixed = jax.lax.stop_gradient(p)

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = 0.5 * (low + high)
        positive = excess(middle, fixed) > 0
        return jnp.where(positive, middle, low), jnp.where(positive, high, middle)

    low, high = jax.lax.fori_loop(0, 60, halve, (jnp.log(fixed - 1), 2 * jnp.log(fixed) + 1))
    middle = 0.5 * (low + high)
    # A step of Newton's method, which carries the derivative by the ratio.
    m = jnp.exp(middle)
    slope = -((m - 1) / m) * ((m - (fixed - 1)) / fixed)
    slope = jnp.minimum(slope, -jnp.finfo(p.dtype).tiny)
    near = jnp.abs(excess(middle, fixed)) <= 1e-3 * jnp.abs(slope)
    m = jnp.exp(middle - jnp.where(near, excess(middle, p) / slope, 0.0))
    return jnp.where(jnp.isfinite(ratio), ((m - 1 + p) / p) * ((m - 1 + p) / m), ratio)
