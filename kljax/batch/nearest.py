"""Of every row of the matrix of all pairs its smallest entries; the matrix is never stored."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from kljax.batch import moments, panels, tiles
from kljax.batch.tiles import Plan

_COLUMNS = 2048


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def top_k(plan: Plan, k: int, q: Any, p: Any) -> tuple[Array, Array]:
    """The k smallest entries of every row, ascending, and their columns."""
    n, m = tiles.length(q), tiles.length(p)
    width = min(m, max(_COLUMNS, k))
    sides = moments.sides(q, p) if plan.fast else None
    # Padding stands at the end, so that of equal entries a true one comes first.
    columns = tiles.blocks((p, sides and sides[1]), width)
    starts = jnp.arange(-(-m // width), dtype=jnp.int32) * width
    dtype = jax.tree.leaves(q)[0].dtype

    def rows(of_q: tuple[Any, Any]) -> tuple[Array, Array]:
        x, side_q = of_q

        def merge(best: tuple[Array, ...], block: tuple[Any, Array]):
            (y, side_p), start = block
            values, _ = panels.panel(plan, x, y, (side_q, side_p) if plan.fast else None)
            index = start + jnp.arange(width, dtype=jnp.int32)
            unusable = jnp.isnan(values) | (index >= m)[None, :]
            negated, at = lax.top_k(-jnp.where(unusable, jnp.inf, values), k)
            found = (-negated, index[at], jnp.take_along_axis(values, at, axis=1))
            both = [jnp.concatenate(pair, axis=1) for pair in zip(best, found, strict=True)]
            merged = lax.sort(both, dimension=1, num_keys=2)
            return tuple(a[:, :k] for a in merged), None

        start = jnp.full((tiles.length(x), k), jnp.inf, dtype)
        none = jnp.full(start.shape, np.iinfo(np.int32).max, jnp.int32)
        best, _ = lax.scan(merge, (start, none, start), (columns, starts))
        return best[2], best[1]

    height = max(1, min(n, plan.rows * m // width))
    if not n:
        return jnp.zeros((0, k), dtype), jnp.zeros((0, k), jnp.int32)
    values, index = lax.map(rows, tiles.blocks((q, sides and sides[0]), height))
    return values.reshape(-1, k)[:n], index.reshape(-1, k)[:n]


@top_k.defjvp
def _top_k_jvp(plan, k, primals, tangents):
    (q, p), (dq, dp) = primals, tangents
    values, index = top_k(plan, k, q, p)
    change = _change_at(plan, index, (q, dq), (p, dp))
    return (values, index), (change, np.zeros(index.shape, jax.dtypes.float0))


def _change_at(plan: Plan, index: Array, of_q: Any, of_p: Any) -> Array:
    """The derivative of the divergences at given columns, some rows at a time."""
    n, k = index.shape
    height = max(1, min(n, plan.derivative_tile**2 // k))

    def rows(block: tuple[Any, Any, Array]) -> Array:
        x = jax.tree.map(lambda a: a[:, None], block[:2])
        y = jax.tree.map(lambda a: a[block[2]], of_p)
        return jax.vmap(tiles.change_of_tile)(x, y)

    if not n:
        return jnp.zeros((0, k), jax.tree.leaves(of_q)[0].dtype)
    return lax.map(rows, tiles.blocks((*of_q, index), height)).reshape(-1, k)[:n]
