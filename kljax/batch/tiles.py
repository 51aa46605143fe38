"""Parts of the matrix of all pairs: how large they are, and the rule of the pair on one."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from kljax import _batches, divergence
from kljax.batch import moments

_TILE = 16
# Arrays of float64 that a pair occupies while its product is judged.
_JUDGED = 6 * 8


class Plan(NamedTuple):
    """Sizes that keep the workspace below a number of bytes; static under jit.

    Attributes:
        fast: whether there is a matrix product to try.
        rows: rows of a panel.
        tile: side of a tile that the rule computes.
        derivative_tile: side of a tile whose derivative it computes.
    """

    fast: bool
    rows: int
    tile: int
    derivative_tile: int


def plan(q: Any, p: Any, block_bytes: int) -> Plan:
    """The sizes for two batches."""
    n, m = length(q), length(p)
    leaves = jax.tree.leaves((q, p))
    event_bytes = sum(math.prod(a.shape[1:]) * a.dtype.itemsize for a in leaves)
    fast = moments.available(q, p)

    def side(copies: int) -> int:
        return max(1, math.isqrt(block_bytes // max(1, copies * event_bytes)))

    # Small, where one doubtful pair makes a whole tile be computed again.
    tile = min(side(4), _TILE if fast else 8 * _TILE)
    rows = max(1, min(block_bytes // (_JUDGED * max(m, 1)), n))
    if rows > tile and rows < n:
        rows -= rows % tile
    return Plan(fast, rows, tile, min(side(12), 8 * _TILE))


def length(x: Any) -> int:
    """How many distributions."""
    return jax.tree.leaves(x)[0].shape[0]


def rows(x: Any, start: Array | int, size: int) -> Any:
    """Some rows of the batch axis."""
    return jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, start, size), x)


def blocks(x: Any, size: int) -> Any:
    """The batch axis as blocks of one size, the last of them filled with its last row."""

    def split(a: Array) -> Array:
        count = -(-a.shape[0] // size)
        missing = count * size - a.shape[0]
        if missing:
            last = jnp.broadcast_to(a[-1:], (missing, *a.shape[1:]))
            a = jnp.concatenate([a, last])
        return a.reshape(count, size, *a.shape[1:])

    return jax.tree.map(split, x)


def any_in_tiles(wanted: Array, height: int, width: int) -> Array:
    """Of every tile of a matrix of truth values, whether one of them is true."""
    n, m = wanted.shape
    rows, columns = -(-n // height), -(-m // width)
    padded = jnp.pad(wanted, ((0, rows * height - n), (0, columns * width - m)))
    return jnp.any(padded.reshape(rows, height, columns, width), axis=(1, 3))


def side_by_side(tiles: Array, n: int, m: int) -> Array:
    """A grid of tiles as the matrix that they make up."""
    rows, columns, height, width = tiles.shape
    return tiles.swapaxes(1, 2).reshape(rows * height, columns * width)[:n, :m]


def tile(q: Any, p: Any) -> Array:
    """All pairs of a few q and a few p, by the rule for one event."""
    rule = divergence.closed_form("pairwise", q, p).kl
    q = jax.tree.map(lambda a: a[:, None], q)
    p = jax.tree.map(lambda a: a[None, :], p)
    return _batches.over_batches(rule, {"q": q, "p": p})


# Computed anew in a backward pass, which would else store every tile's numbers.
@jax.checkpoint
def change_of_tile(of_q: tuple[Any, Any], of_p: tuple[Any, Any]) -> Array:
    """The derivative of `tile`; each side with its tangent."""
    (q, dq), (p, dp) = of_q, of_p
    return jax.jvp(tile, (q, p), (dq, dp))[1]
