"""All pairs of two batches: the matrix of divergences, or of every row its smallest entries.

Pairs are taken in panels. Where the matrix product of `moments` is certain to be right to the
last digit it is the answer; a tile that holds a pair where it is not (q almost p, or a matrix
of large condition) is computed by the rule of the pair, as `kl_divergence` would.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from kljax import _batches, _record, divergence
from kljax.batch import moments

_BLOCK_BYTES = 1 << 26
_TILE = 16
_COLUMNS = 2048
# Arrays of float64 that a pair occupies while its product is judged.
_JUDGED = 6 * 8
# Half a unit of roundoff in float32, and what is certain in float64 itself.
_TOLERANCE = {np.dtype(np.float32): 2.0**-24, np.dtype(np.float64): 2.0**-40}


class _Plan(NamedTuple):
    """Sizes that keep the workspace below a number of bytes; static under jit.

    Attributes:
        fast: whether there is a matrix product to try.
        rows: rows of a panel.
        columns: columns of a panel of `top_k`.
        tile: side of a tile that the rule computes.
        derivative_tile: side of a tile whose derivative it computes.
    """

    fast: bool
    rows: int
    columns: int
    tile: int
    derivative_tile: int


def pairwise(
    q: Any, p: Any, /, *, symmetrized: bool = False, block_bytes: int = _BLOCK_BYTES
) -> Array:
    """KL(q_i ‖ p_j) in nats, of every pair.

    For `Normal`, `MultivariateNormalDiag` and `MultivariateNormal` each q and each p is
    factorized once and the matrix is one product of float64 matrices. An entry of it is used
    where a bound on its rounding, computed beside it, is below 2^-24 of its value (2^-40 for
    float64 parameters); the others are computed by the rule of `kl_divergence`. So the
    relative error is at most 2^-23 plus that of `kl_divergence`, an entry is never negative,
    and exactly 0 where q_i is p_j. Derivatives are those of `kl_divergence`, tile by tile.
    Other registered pairs are computed by their rule.

    Args:
        q: distributions with one batch axis, of size N.
        p: distributions with one batch axis, of size M.
        symmetrized: KL(q_i ‖ p_j) + KL(p_j ‖ q_i), Jeffreys' divergence, instead.
        block_bytes: about how many bytes to use beyond the arguments, the result and a
            float64 factor of each q and p.

    Returns:
        Array of shape (N, M), in float32 (float64 if a parameter is float64).

    Raises:
        TypeError: if an argument is no distribution or the pair has no closed form.
        ValueError: if there is not exactly one batch axis, or events differ in size.
    """
    divergence.closed_form("pairwise", q, p)
    if symmetrized:
        divergence.closed_form("pairwise", p, q)
    _check_block_bytes(block_bytes)
    return _batches.call(
        _pairwise, q, p, symmetrized=bool(symmetrized), block_bytes=int(block_bytes)
    )


@jax.jit(static_argnames=("symmetrized", "block_bytes"))
def _pairwise(q: Any, p: Any, *, symmetrized: bool, block_bytes: int) -> Array:
    q, p = _prepared("pairwise", q, p)
    matrix = _matrix(_plan(q, p, block_bytes), q, p)
    if not symmetrized:
        return matrix
    return matrix + _matrix(_plan(p, q, block_bytes), p, q).T


def top_k(q: Any, p: Any, k: int, /, *, block_bytes: int = _BLOCK_BYTES) -> tuple[Array, Array]:
    """For each q_i the k distributions p_j of smallest KL(q_i ‖ p_j).

    The matrix of all pairs is never stored; its entries are those of `pairwise`.

    Args:
        q: distributions with one batch axis, of size N.
        p: distributions with one batch axis, of size M.
        k: how many, between 1 and M.
        block_bytes: as for `pairwise`.

    Returns:
        Divergences in nats, ascending, and their indices j, both of shape (N, k). Of equal
        divergences the lower index comes first; nan, from an invalid parameter, comes last.

    Raises:
        TypeError: if an argument is no distribution or the pair has no closed form.
        ValueError: as for `pairwise`, or if k is out of range.
    """
    divergence.closed_form("top_k", q, p)
    _check_block_bytes(block_bytes)
    return _batches.call(_top_k, q, p, k=int(k), block_bytes=int(block_bytes))


@jax.jit(static_argnames=("k", "block_bytes"))
def _top_k(q: Any, p: Any, *, k: int, block_bytes: int) -> tuple[Array, Array]:
    q, p = _prepared("top_k", q, p)
    if not 1 <= k <= _length(p):
        raise ValueError(f"top_k got k = {k}; it must be between 1 and the {_length(p)} of p.")
    plan = _plan(q, p, block_bytes)
    plan = plan._replace(columns=min(max(plan.columns, k), _length(p)))
    indices = _nearest(plan, k, *jax.lax.stop_gradient((q, p)))[1]
    return _values_at(plan, k, q, p), indices


def _check_block_bytes(block_bytes: int) -> None:
    if block_bytes <= 0:
        raise ValueError(f"block_bytes must be positive; got {block_bytes}.")


def _prepared(function: str, q: Any, p: Any) -> tuple[Any, Any]:
    """Both records with every field of one dtype and one batch axis, or a sentence."""
    arguments = {name: _record.arguments_of(name, x) for name, x in (("q", q), ("p", p))}
    together = arguments["q"] + arguments["p"]
    _record.check_event_sizes(together)
    dtype = _record.computing_dtype(together)
    prepared = []
    for name, x in (("q", q), ("p", p)):
        batch = _record.broadcast_batch_shapes(arguments[name])
        if len(batch) != 1:
            raise ValueError(
                f"{function} needs one batch axis in q and one in p; {name} has batch shape "
                f"{batch}."
            )
        fields = {
            a.name.removeprefix(f"{name}."): jnp.broadcast_to(
                a.value, batch + a.value.shape[len(a.batch_shape) :]
            ).astype(dtype)
            for a in arguments[name]
        }
        prepared.append(type(x)(**fields))
    return prepared[0], prepared[1]


def _length(x: Any) -> int:
    return jax.tree.leaves(x)[0].shape[0]


def _rows(x: Any, start: Array | int, size: int) -> Any:
    return jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, start, size), x)


def _plan(q: Any, p: Any, block_bytes: int) -> _Plan:
    n, m = _length(q), _length(p)
    leaves = jax.tree.leaves((q, p))
    event_bytes = sum(math.prod(a.shape[1:]) * a.dtype.itemsize for a in leaves)
    fast = moments.available(q, p)

    def side(copies: int) -> int:
        return max(1, math.isqrt(block_bytes // max(1, copies * event_bytes)))

    # Small, where one doubtful pair makes a whole tile be computed again.
    tile = min(side(4), _TILE if fast else 8 * _TILE)
    columns = min(m, _COLUMNS)
    rows = max(1, min(block_bytes // (_JUDGED * max(m, 1)), n))
    if rows > tile and rows < n:
        rows -= rows % tile
    return _Plan(fast, rows, columns, tile, min(side(12), 8 * _TILE))


# ---- the matrix -----------------------------------------------------------------------------


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _matrix(plan: _Plan, q: Any, p: Any) -> Array:
    """KL(q_i ‖ p_j), panel by panel of rows."""
    n, m = _length(q), _length(p)
    dtype = jax.tree.leaves(q)[0].dtype
    if not n or not m:
        return jnp.zeros((n, m), dtype)
    sides = moments.sides(q, p) if plan.fast else None

    def panel(i: Array, out: Array) -> Array:
        # The last panel begins earlier rather than being shorter.
        start = jnp.minimum(i * plan.rows, n - plan.rows)
        of_q = (_rows(sides[0], start, plan.rows), sides[1]) if sides else None
        values = _panel(plan, _rows(q, start, plan.rows), p, of_q)
        return lax.dynamic_update_slice_in_dim(out, values, start, axis=0)

    if plan.rows == n:
        return _panel(plan, q, p, sides)
    count = -(-n // plan.rows)
    return lax.fori_loop(0, count, panel, jnp.zeros((n, m), dtype))


def _panel(plan: _Plan, q: Any, p: Any, sides: tuple[Any, Any] | None) -> Array:
    """Some rows and columns of the matrix: the product, and tiles where it will not do."""
    n, m = _length(q), _length(p)
    dtype = jax.tree.leaves(q)[0].dtype
    height, width = min(plan.tile, n), min(plan.tile, m)
    grid = (-(-n // height), -(-m // width))
    if sides is None:
        values, count = jnp.zeros((n, m), dtype), math.prod(grid)
        order = jnp.arange(count, dtype=jnp.int32)
    else:
        exact, doubtful = moments.product(*sides, _TOLERANCE[np.dtype(dtype)])
        values = lax.convert_element_type(exact, dtype)
        margin = ((0, grid[0] * height - n), (0, grid[1] * width - m))
        tiles = jnp.pad(doubtful, margin).reshape(grid[0], height, grid[1], width)
        marked = jnp.any(tiles, axis=(1, 3)).reshape(-1)
        count = jnp.sum(marked, dtype=jnp.int32)
        order = jnp.argsort(~marked).astype(jnp.int32)

    def compute(i: Array, values: Array) -> Array:
        row = jnp.minimum(order[i] // grid[1] * height, n - height)
        column = jnp.minimum(order[i] % grid[1] * width, m - width)
        tile = _tile(_rows(q, row, height), _rows(p, column, width))
        return lax.dynamic_update_slice(values, tile, (row, column))

    return lax.fori_loop(jnp.int32(0), jnp.int32(count), compute, values)


def _tile(q: Any, p: Any) -> Array:
    """All pairs of a few q and a few p, by the rule for one event."""
    rule = divergence.closed_form("pairwise", q, p).kl
    q = jax.tree.map(lambda a: a[:, None], q)
    p = jax.tree.map(lambda a: a[None, :], p)
    return _batches.over_batches(rule, {"q": q, "p": p})


@_matrix.defjvp
def _matrix_jvp(plan, primals, tangents):
    (q, p), (dq, dp) = primals, tangents
    n, m = _length(q), _length(p)
    if not n or not m:
        return _matrix(plan, q, p), jnp.zeros((n, m), jax.tree.leaves(q)[0].dtype)
    height, width = min(plan.derivative_tile, n), min(plan.derivative_tile, m)
    # Computed anew in a backward pass, which would else store every tile's numbers.
    tile = jax.checkpoint(_tile)

    def row(of_q: tuple[Any, Any]) -> Array:
        def one(of_p: tuple[Any, Any]) -> Array:
            (x, dx), (y, dy) = of_q, of_p
            return jax.jvp(tile, (x, y), (dx, dy))[1]

        return lax.map(one, _blocks((p, dp), width))

    tiles = lax.map(row, _blocks((q, dq), height))
    change = jnp.moveaxis(tiles, 1, 2).reshape(tiles.shape[0] * height, -1)[:n, :m]
    return _matrix(plan, q, p), change


def _blocks(x: Any, size: int) -> Any:
    """The batch axis as blocks of one size, the last of them filled with its last row."""

    def split(a: Array) -> Array:
        count = -(-a.shape[0] // size)
        missing = count * size - a.shape[0]
        if missing:
            last = jnp.broadcast_to(a[-1:], (missing, *a.shape[1:]))
            a = jnp.concatenate([a, last])
        return a.reshape(count, size, *a.shape[1:])

    return jax.tree.map(split, x)


# ---- the smallest entries -------------------------------------------------------------------


def _nearest(plan: _Plan, k: int, q: Any, p: Any) -> tuple[Array, Array]:
    """The k smallest entries of every row and their columns."""
    n, m = _length(q), _length(p)
    sides = moments.sides(q, p) if plan.fast else None
    # Padding stands at the end, so that of equal entries a true one comes first.
    columns = _blocks((p, sides and sides[1]), plan.columns)
    starts = jnp.arange(-(-m // plan.columns), dtype=jnp.int32) * plan.columns
    dtype = jax.tree.leaves(q)[0].dtype

    def rows(of_q: tuple[Any, Any]) -> tuple[Array, Array]:
        x, side_q = of_q

        def merge(best: tuple[Array, ...], block: tuple[Any, Array]):
            (y, side_p), start = block
            values = _panel(plan, x, y, (side_q, side_p) if plan.fast else None)
            index = start + jnp.arange(plan.columns, dtype=jnp.int32)
            unusable = jnp.isnan(values) | (index >= m)[None, :]
            negated, at = lax.top_k(-jnp.where(unusable, jnp.inf, values), k)
            found = (-negated, index[at], jnp.take_along_axis(values, at, axis=1))
            both = [jnp.concatenate(pair, axis=1) for pair in zip(best, found, strict=True)]
            merged = lax.sort(both, dimension=1, num_keys=2)
            return tuple(a[:, :k] for a in merged), None

        start = jnp.full((_length(x), k), jnp.inf, dtype)
        none = jnp.full(start.shape, np.iinfo(np.int32).max, jnp.int32)
        best, _ = lax.scan(merge, (start, none, start), (columns, starts))
        return best[2], best[1]

    height = max(1, min(n, plan.rows * m // plan.columns))
    if not n:
        return jnp.zeros((0, k), dtype), jnp.zeros((0, k), jnp.int32)
    values, index = lax.map(rows, _blocks((q, sides and sides[0]), height))
    return values.reshape(-1, k)[:n], index.reshape(-1, k)[:n]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _values_at(plan: _Plan, k: int, q: Any, p: Any) -> Array:
    return _nearest(plan, k, q, p)[0]


@_values_at.defjvp
def _values_at_jvp(plan, k, primals, tangents):
    (q, p), (dq, dp) = primals, tangents
    values, index = _nearest(plan, k, q, p)
    change = _change_at(plan, index, (q, dq), (p, dp))
    return values, change


def _change_at(plan: _Plan, index: Array, of_q: Any, of_p: Any) -> Array:
    """The derivative of the divergences at given columns, some rows at a time."""
    n, k = index.shape
    height = max(1, min(n, plan.derivative_tile**2 // k))
    chosen = jax.checkpoint(lambda x, y: jax.vmap(_tile_row)(x, y))

    def rows(block: tuple[Any, Any, Array]) -> Array:
        x, dx, at = block
        y, dy = jax.tree.map(lambda a: a[at], of_p)
        return jax.jvp(chosen, (x, y), (dx, dy))[1]

    if not n:
        return jnp.zeros((0, k), jax.tree.leaves(of_q)[0].dtype)
    return lax.map(rows, _blocks((*of_q, index), height)).reshape(-1, k)[:n]


def _tile_row(q: Any, p: Any) -> Array:
    return _tile(jax.tree.map(lambda a: a[None], q), p)[0]
