"""Derivatives of the matrix of all pairs: products where these are right, else the rule."""

from __future__ import annotations

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batches
import kljax
from batches import by_rule
from kljax import batch
from kljax.batch import moments

KINDS = [
    ("log_variance", "log_variance"),
    ("scale_tril", "scale_tril"),
    ("covariance_matrix", "precision_matrix"),
    ("precision_matrix", "covariance_matrix"),
]
FULL = bool(os.environ.get("KLJAX_FULL"))
if FULL:
    KINDS += [("scale", "variance"), ("variance", "scale_tril"), ("scale_tril", "log_variance")]


def _exact_gradient(weights, q, p):
    """Of the weighted sum of all pairs, to 60 digits before it is rounded: one array a side.

    Each row is loc and then the numbers of the spread.
    """
    rows = {}
    for i, j in np.ndindex(*weights.shape):
        of = batches.exact(q, p, i, j)
        by_p = of.grad_p_dispersion + of.grad_p_location
        for key, loc, spread in (
            (("q", i), of.grad_loc, of.grad_q),
            (("p", j), -of.grad_loc, by_p),
        ):
            row = weights[i, j] * np.concatenate([loc, spread.ravel()])
            rows[key] = rows.get(key, 0) + row
    return [
        np.array([rows[side, i] for i in range(n)], float)
        for side, n in zip("qp", weights.shape, strict=True)
    ]


def _as_rows(x):
    return np.concatenate(
        [np.asarray(a, np.float64).reshape(len(x.loc), -1) for a in jax.tree.leaves(x)], axis=1
    )


def _assert_rows_agree(got, want, tolerance):
    for a, b in zip(got, want, strict=True):
        error = np.linalg.norm(_as_rows(a) - b, axis=1)
        assert np.all(error <= tolerance * np.linalg.norm(b, axis=1)), error


@pytest.mark.light
@pytest.mark.parametrize(("kind_q", "kind_p"), KINDS, ids=lambda x: str(x))
def test_derivatives_of_the_product(kind_q, kind_p):
    """Of rows that are near no other: either mode, and of their pairs all but forward twice."""
    q, p = batches.pair(kind_q, kind_p)
    q, p = (
        jax.tree.map(lambda a, at=at: a[at], x) for x, at in ((q, slice(8, 10)), (p, slice(3)))
    )
    rng = np.random.default_rng(5)
    weights = np.float32(rng.standard_normal((2, 3)))
    # Small against the spread of covariances of condition 900.
    step = jax.tree.map(lambda a: np.float32(1e-3 * rng.standard_normal(a.shape) * a), q)
    if kind_q in ("covariance_matrix", "precision_matrix"):
        symmetric = getattr(step, kind_q) + getattr(step, kind_q).swapaxes(1, 2)
        step = kljax.MultivariateNormal(step.loc, **{kind_q: symmetric})

    @jax.jit
    def derivatives(q, p, step):
        def loss(q, p):
            value = moments.divergences(*moments.sides(q, p))
            return jnp.sum(weights * value.astype(jnp.float32))

        def along(q, p):
            return jax.jvp(lambda q: loss(q, p), (q,), (step,))[1]

        def along_reverse(q, p):
            slope = jax.tree.map(lambda a, d: jnp.sum(a * d), gradient(q, p)[0], step)
            return sum(jax.tree.leaves(slope))

        gradient = jax.grad(loss, argnums=(0, 1))
        forward = jax.jvp(lambda q: gradient(q, p), (q,), (step,))[1]
        twice = [jax.grad(f, argnums=(0, 1))(q, p) for f in (along, along_reverse)]
        return gradient(q, p), along(q, p), [forward, *twice]

    gradient, along, curvatures = derivatives(q, p, step)
    want = _exact_gradient(weights, q, p)
    _assert_rows_agree(gradient, want, 2.0**-23)
    slopes = want[0] * _as_rows(step)  # of both signs: float32 sums them to this, not closer
    assert abs(along - np.sum(slopes)) <= 2.0**-23 * np.sum(np.abs(slopes))
    by = 1e-5
    moved = (
        jax.tree.map(lambda a, d, sign=sign: np.float64(a) + sign * by * d, q, step)
        for sign in (1, -1)
    )
    ahead, behind = (_exact_gradient(weights, x, p) for x in moved)
    want = [(a - b) / (2 * by) for a, b in zip(ahead, behind, strict=True)]
    for curvature in curvatures:
        _assert_rows_agree(curvature, want, 1e-4)


def _nearly_equal(near, n=40):
    """Batches: the first rows of q nearly equal the last of p; weights of those pairs alone.

    Locations of 1e-12 are differences that sums about a common center elsewhere cannot hold.
    """
    rng = np.random.default_rng(0)
    loc = rng.standard_normal((2, n, 2)) + 10 * np.arange(n)[:, None]
    scale = np.exp(0.3 * rng.standard_normal((2, n, 2)))
    loc[:, :near] = 1e-12 * rng.standard_normal((2, near, 2))
    scale[:, :near] = 1
    weights = np.zeros((n, n), np.float32)
    some = near or n
    weights[:some, n - some :] = rng.standard_normal((some, some))
    loc[1], scale[1] = loc[1, ::-1], scale[1, ::-1]
    q, p = (
        kljax.MultivariateNormalDiag(jnp.float32(a), jnp.float32(b))
        for a, b in zip(loc, scale, strict=True)
    )
    return weights, q, p


@jax.jit
def _gradient(weights, q, p):
    return jax.grad(lambda q, p: jnp.sum(weights * batch.pairwise(q, p)), argnums=(0, 1))(q, p)


@pytest.mark.parametrize(("near", "tiles"), [(0, 0), (4, 1), (39, 9)])
def test_no_tile_some_tiles_and_all_tiles_by_the_rule(near, tiles):
    weights, q, p = _nearly_equal(near)
    steep = np.asarray(moments.product(*moments.sides(q, p)).steep(2.0**-24))
    assert np.array_equal(steep, np.outer(np.arange(40) < near, np.arange(40) >= 40 - near))
    marked = np.pad(steep, (0, 8)).reshape(3, 16, 3, 16).any(axis=(1, 3))
    assert np.count_nonzero(marked) == tiles

    loc_q, s_q, loc_p, s_p = (np.float64(a) for a in jax.tree.leaves((q, p)))
    delta = (loc_q[:, None] - loc_p) / s_p
    ratio = s_q[:, None] / s_p
    by_q = [delta / s_p, (ratio - 1) * (ratio + 1) / s_q[:, None]]
    by_p = [-delta / s_p, -((ratio - 1) * (ratio + 1) + delta * delta) / s_p]
    want = [
        np.concatenate([np.einsum(sum_of, weights, a) for a in by], axis=1)
        for sum_of, by in (("nm,nmd->nd", by_q), ("nm,nmd->md", by_p))
    ]
    _assert_rows_agree(_gradient(weights, q, p), want, 1e-6)


@pytest.mark.light
def test_derivatives_tile_by_tile():
    """Forward mode, reverse mode, both, and under vmap."""
    q, p = batches.exponentials()
    weights = jnp.float32(np.random.default_rng(2).standard_normal((40, 33)))

    def derivatives(function):
        def loss(q, p):
            return jnp.sum(weights * function(q, p))

        gradient = jax.grad(loss, argnums=(0, 1))
        change = (q, batches.Exponential(p.rate * p.rate))
        return [gradient(q, p), *(jax.jvp(f, (q, p), change) for f in (loss, gradient))]

    def tiled(q, p):
        return batch.pairwise(q, p, block_bytes=5000)

    batches.assert_equal_trees(jax.jit(lambda: derivatives(tiled))(), derivatives(by_rule))
    stacked = batches.Exponential(jnp.stack([q.rate, 2 * q.rate]))
    mapped = jax.vmap(tiled, (0, None))(stacked, p)
    np.testing.assert_allclose(
        mapped[1], by_rule(batches.Exponential(2 * q.rate), p), rtol=1e-6
    )


@pytest.mark.skipif(not FULL, reason="compiles long: KLJAX_FULL=1 runs it")
@pytest.mark.parametrize("kind", ["scale", "scale_tril"])
def test_derivatives_are_those_of_the_rule(kind):
    q, p = batches.pair(kind, kind)
    weights = jnp.float32(np.random.default_rng(2).standard_normal((11, 8)))

    def gradient(function):
        def loss(q, p):
            return jnp.sum(weights * function(q, p))

        return jax.jit(jax.grad(loss, argnums=(0, 1)))(q, p)

    batches.assert_equal_trees(gradient(batch.pairwise), gradient(by_rule))


@pytest.mark.light
@pytest.mark.parametrize(
    "all_pairs",
    [batch.pairwise, lambda q, p: batch.top_k(q, p, 3)[0]],
    ids=["pairwise", "top_k"],
)
@pytest.mark.parametrize("outer", [jax.jacfwd, jax.jacrev])
def test_second_derivatives_of_what_bends_the_divergences(all_pairs, outer):
    """Its slope depends on the values, which a backward pass must not take from a loop."""
    q = kljax.MultivariateNormalDiag(*jnp.float32([[[0.1], [1.3]], [[1.5], [0.7]]]))
    p = kljax.MultivariateNormalDiag(*jnp.float32([[[0.5], [-1], [2]], [[0.8], [1.1], [2.5]]]))

    def of(function):
        def loss(loc):
            return jnp.sum(function(dataclasses.replace(q, loc=loc), p) ** 2)

        return jax.jit(outer(jax.grad(loss)))(q.loc)

    np.testing.assert_allclose(of(all_pairs), of(by_rule), rtol=2e-6)


@pytest.mark.light
def test_the_derivative_at_equality_is_zero():
    """Exactly, in forward mode."""
    q, _ = batches.pair("scale", "scale")
    itself = jax.jacfwd(lambda by: jnp.diagonal(batch.pairwise(_moved_by(q, by), q)))(0.0)
    np.testing.assert_array_equal(itself, 0)


def _moved_by(q, by):
    return jax.tree.map(lambda a: a + by, q)


def test_moments_that_overflow_reach_no_other_row(x64):
    """In float64 their pairs are left to the rule; the others keep their gradients."""
    one = np.ones((3, 2))
    q = kljax.MultivariateNormalDiag(0 * one, np.array([[1e160, 1], [1, 2], [1e160, 1e160]]))
    p = kljax.MultivariateNormalDiag(one, np.array([[1e50, 1], [1, 2], [1e160, 1e-160]]))
    weights = np.array([[0, 0, 1], [1, 1, 0], [0, 0, 0]])
    want = jax.grad(lambda q, p: jnp.sum(weights * by_rule(q, p)), argnums=(0, 1))(q, p)
    jax.tree.map(np.testing.assert_allclose, _gradient(weights, q, p), want)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_invalid_row_leaves_the_gradients_of_the_others(value):
    """Which have one center, far from 0, that it must not take from them."""
    weights, q, p = _nearly_equal(0)
    weights = weights[:, :5]
    p = jax.tree.map(lambda a: a[:5], p)
    bad = dataclasses.replace(p, loc=p.loc.at[1, 0].set(value))
    got, want = (
        jax.grad(lambda x, f=f: jnp.sum(weights * f(q, x)))(bad)
        for f in (batch.pairwise, by_rule)
    )
    others = np.array([0, 2, 3, 4])
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert np.all(np.isfinite(b[others]))
        np.testing.assert_allclose(a[others], b[others], rtol=1e-5)


def _exponential(n):
    return batches.Exponential(jax.ShapeDtypeStruct((n,), jnp.float32))


def _diagonal(n):
    row = jax.ShapeDtypeStruct((n, 16), jnp.float32)
    return kljax.MultivariateNormalDiag(row, row)


@pytest.mark.parametrize(("family", "numbers"), [(_exponential, 1), (_diagonal, 32)])
def test_memory_of_a_gradient_is_bounded(family, numbers):
    n, block_bytes = 2000, 1 << 18

    def loss(q):
        return jnp.sum(jnp.sin(batch.pairwise(q, q, block_bytes=block_bytes)))

    program = jax.jit(jax.grad(loss)).lower(family(n)).compile()
    used = program.memory_analysis().temp_size_in_bytes
    matrices = n * n * 4
    assert used < 4 * matrices + 8 * block_bytes + 10 * (n * numbers * 8)
