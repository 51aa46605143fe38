"""The matrix of all pairs, panel by panel of rows, and its derivative.

Values are products of matrices (`moments`) where a bound says that these are right, derivatives
where an estimate does; else it is the rule of the pair, on tiles.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from kljax import linalg
from kljax.batch import moments, tiles
from kljax.batch.tiles import Plan

# Half a unit of roundoff in float32, and what is certain in float64 itself.
_TOLERANCE = {np.dtype(np.float32): 2.0**-24, np.dtype(np.float64): 2.0**-40}


def matrix(plan: Plan, q: Any, p: Any) -> Array:
    """KL(q_i ‖ p_j), panel by panel of rows."""
    return _with_steep(plan, q, p)[0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _with_steep(plan: Plan, q: Any, p: Any) -> tuple[Array, Array]:
    """The matrix, and where the product of moments will not do for the derivative."""
    n, m = tiles.length(q), tiles.length(p)
    dtype = jax.tree.leaves(q)[0].dtype
    start = jnp.zeros((n, m), dtype), jnp.zeros((n, m), bool)
    if not n or not m:
        return start
    sides = moments.sides(q, p) if plan.fast else None
    if plan.rows == n:
        return panel(plan, q, p, sides)

    def place(i: Array, out: tuple[Array, Array]) -> tuple[Array, Array]:
        # The last panel begins earlier rather than being shorter.
        start = jnp.minimum(i * plan.rows, n - plan.rows)
        of_q = (tiles.rows(sides[0], start, plan.rows), sides[1]) if sides else None
        found = panel(plan, tiles.rows(q, start, plan.rows), p, of_q)
        values, steep = (
            lax.dynamic_update_slice_in_dim(a, b, start, axis=0)
            for a, b in zip(out, found, strict=True)
        )
        return values, steep

    return lax.fori_loop(0, -(-n // plan.rows), place, start)


def panel(plan: Plan, q: Any, p: Any, sides: tuple[Any, Any] | None) -> tuple[Array, Array]:
    """Some rows and columns of the matrix, and `steep` of them.

    The product, and by the rule every tile in which it will not do.
    """
    n, m = tiles.length(q), tiles.length(p)
    dtype = jax.tree.leaves(q)[0].dtype
    height, width = min(plan.tile, n), min(plan.tile, m)
    if sides is None:
        values, steep = jnp.full((n, m), jnp.nan, dtype), jnp.ones((n, m), bool)
    else:
        product, tolerance = moments.product(*sides), _TOLERANCE[np.dtype(dtype)]
        steep = product.steep(tolerance)
        values = lax.convert_element_type(product.value, dtype)
        # Nan until its tile is computed, so that one array is judged and nothing is left.
        values = linalg.settled(jnp.where(product.doubtful(tolerance), jnp.nan, values))
    marked = tiles.any_in_tiles(jnp.isnan(values), height, width)
    columns = marked.shape[1]
    count = jnp.sum(marked, dtype=jnp.int32)
    # A sort that is mostly not needed takes as long as judging all pairs.
    order = lax.cond(
        count > 0,
        lambda: jnp.argsort(~marked.reshape(-1)).astype(jnp.int32),
        lambda: jnp.zeros(marked.size, jnp.int32),
    )

    def compute(i: Array, values: Array) -> Array:
        row = jnp.minimum(order[i] // columns * height, n - height)
        column = jnp.minimum(order[i] % columns * width, m - width)
        tile = tiles.tile(tiles.rows(q, row, height), tiles.rows(p, column, width))
        return lax.dynamic_update_slice(values, tile, (row, column))

    return lax.fori_loop(jnp.int32(0), jnp.int32(count), compute, values), steep


# ---- the derivative -------------------------------------------------------------------------


@_with_steep.defjvp
def _with_steep_jvp(plan, primals, tangents):
    # Not `panel` itself, whose loop has no backward pass: second derivatives use the values.
    values, steep = _with_steep(plan, *primals)
    if not values.size:
        change = values
    elif not plan.fast:
        change = _change_of_all(plan, primals, tangents)
    else:
        by_rule = _change_where(steep, plan, primals, tangents)
        change = jnp.where(steep, by_rule, _change_of_product(plan, primals, tangents))
    return (values, steep), (change, np.zeros(steep.shape, jax.dtypes.float0))


def _change_of_product(plan: Plan, primals: Any, tangents: Any) -> Array:
    """Products again, panel by panel of rows."""
    dtype = jax.tree.leaves(primals)[0].dtype
    if dtype == np.float32:
        (q, p), (dq, dp) = jax.jvp(moments.sides, primals, tangents)
    else:
        # Moments that overflow, whose pairs are steep, must not reach the rows of others.
        of_q, of_p = (
            jnp.all(jnp.isfinite(x.features), axis=1) for x in moments.sides(*primals)
        )
        tangents = _only(of_q, tangents[0]), _only(of_p, tangents[1])
        (q, p), (dq, dp) = jax.jvp(moments.sides, primals, tangents)
        q = q._replace(features=_only(of_q, q.features))
        p = p._replace(features=_only(of_p, p.features))

    def change(block: tuple[Any, Any]) -> Array:
        x, dx = block
        change = jax.jvp(moments.divergences, (x, p), (dx, dp))[1]
        return lax.convert_element_type(change, dtype)

    n = tiles.length(q)
    if plan.rows == n:
        return change((q, dq))
    return lax.map(change, tiles.blocks((q, dq), plan.rows)).reshape(-1, tiles.length(p))[:n]


def _only(rows: Array, x: Any) -> Any:
    """Those rows, and 0 for the others."""
    return jax.tree.map(
        lambda a: jnp.where(rows.reshape(-1, *(1,) * (a.ndim - 1)), a, jnp.zeros_like(a)), x
    )


def _change_of_all(plan: Plan, primals: Any, tangents: Any) -> Array:
    """By the rule, tile by tile."""
    (q, p), (dq, dp) = primals, tangents
    n, m = tiles.length(q), tiles.length(p)
    height, width = min(plan.derivative_tile, n), min(plan.derivative_tile, m)

    def row(of_q: tuple[Any, Any]) -> Array:
        return lax.map(
            lambda of_p: tiles.change_of_tile(of_q, of_p), tiles.blocks((p, dp), width)
        )

    return tiles.side_by_side(lax.map(row, tiles.blocks((q, dq), height)), n, m)


def _change_where(wanted: Array, plan: Plan, primals: Any, tangents: Any) -> Array:
    """By the rule; 0 in a tile without an entry that is wanted.

    For as many tiles as a diagonal needs; if there are more, all of them are computed. (A
    loop of as many steps as needed would have no backward pass.)
    """
    (q, p), (dq, dp) = primals, tangents
    n, m = wanted.shape
    dtype = jax.tree.leaves(q)[0].dtype
    height, width = min(plan.tile, n), min(plan.tile, m)
    marked = tiles.any_in_tiles(wanted, height, width)
    rows, columns = marked.shape
    few = min(rows + columns, rows * columns)
    group = max(1, min(few, plan.derivative_tile**2 // (height * width)))

    def at_none() -> Array:
        return jnp.zeros((n, m), dtype)

    def at_few() -> Array:
        order = jnp.argsort(~marked.reshape(-1))[:few].astype(jnp.int32)
        of_q, of_p = tiles.blocks((q, dq), height), tiles.blocks((p, dp), width)

        def change(at: Array) -> Array:
            x = jax.tree.map(lambda a: a[at // columns], of_q)
            y = jax.tree.map(lambda a: a[at % columns], of_p)
            return jax.vmap(tiles.change_of_tile)(x, y)

        found = lax.map(change, tiles.blocks(order, group)).reshape(-1, height, width)[:few]
        placed = jnp.zeros((rows * columns, height, width), dtype)
        placed = placed.at[order].add(found, unique_indices=True)
        return tiles.side_by_side(placed.reshape(rows, columns, height, width), n, m)

    def at_all() -> Array:
        return _change_of_all(plan, primals, tangents)

    count = jnp.sum(marked)
    number = jnp.int32(count > 0) + jnp.int32(count > few)
    return lax.switch(number, [at_none, at_few, at_all][: 3 if few < marked.size else 2])
