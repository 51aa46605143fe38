"""Matrices by halves of their rows and columns, whose functions have products as derivatives.

JAX transposes the float64 parts of a float32 program only if they consist of products, sums,
splits and joins; the constants that it makes for slices it rounds to float32. So functions that
use others have rules of their own here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from kljax import linalg


class Blocks(NamedTuple):
    """Of a symmetric matrix, or of a lower triangle, [[first, .], [across, last]]."""

    first: Array
    across: Array
    last: Array


def split(a: Array, axis: int = 0) -> Sequence[Array]:
    """The first half, which has one more of an odd number, and the last."""
    size = a.shape[axis]
    return lax.split(a, (size - size // 2, size // 2), axis=axis)


def blocks(a: Array) -> Blocks:
    """Of a matrix of which the lower triangle is read."""
    above, below = split(a)
    return Blocks(split(above, 1)[0], *split(below, 1))


def diagonal_of(a: Blocks) -> Array:
    return jnp.concatenate([diagonal(a.first), diagonal(a.last)])


def square(lower: Array) -> Blocks:
    """Lower lower^T."""
    (a, c, _), (_, below) = blocks(lower), split(lower)
    at, transposed = _settled(a.T), _settled(below.T)
    return Blocks(product(a, at), product(c, at), product(below, transposed))


def square_of_transposed(lower: Blocks) -> Blocks:
    """lower^T lower."""
    a, c, b = lower
    left = _settled(jnp.concatenate([a, c]))
    return Blocks(product(left.T, left), product(b.T, c), product(b.T, b))


def inverse_lower(lower: Array) -> Blocks:
    """The inverse of a lower triangle."""
    a, c, b = blocks(lower)
    first, last = _inverse_lower(a), _inverse_lower(b)
    return Blocks(first, -product(last, product(c, first)), last)


def packed(a: Blocks, off: float) -> Array:
    """The lower triangle of a symmetric matrix, entries off the diagonal times `off`.

    The block below, both triangles as one square (after the rectangular full packed format,
    Gustavson et al. 2010) and the second diagonal: by index it would be slow in both passes.
    For odd sizes the square has a row and a column more than the last triangle: zeros.
    """
    top, bottom = a.first.shape[0], a.last.shape[0]
    below = off * np.tri(top, k=-1) + np.eye(top)
    last = a.last
    if top > bottom:
        last = jnp.concatenate([last, np.zeros((1, bottom))])
        last = jnp.concatenate([last, np.zeros((top, 1))], axis=1)
    triangles = below * a.first + off * (1 - np.tri(top)) * last
    # Joined as matrices: a loop that ends in a reshape to a vector is not vectorized.
    whole = jnp.concatenate([off * a.across, triangles])
    return jnp.concatenate([whole.reshape(-1), diagonal(a.last)])


# ---- with rules of their own ----------------------------------------------------------------


def _dot(a: Array, b: Array) -> Array:
    return lax.dot_general(a, b, (((1,), (0,)), ((), ())), precision=lax.Precision.HIGHEST)


@jax.custom_jvp
def diagonal(a: Array) -> Array:
    return linalg.diagonal(a)


@diagonal.defjvp
def _diagonal_jvp(primals, tangents):
    change = jnp.sum(tangents[0] * np.eye(tangents[0].shape[0]), axis=1)
    return diagonal(*primals), change


@jax.custom_jvp
def _settled(a: Array) -> Array:
    return linalg.settled(a)


@_settled.defjvp
def _settled_jvp(primals, tangents):
    return _settled(*primals), tangents[0]


@jax.custom_jvp
def product(a: Array, b: Array) -> Array:
    return linalg.settled(linalg.matmul(a, b))


@product.defjvp
def _product_jvp(primals, tangents):
    (a, b), (da, db) = primals, tangents
    return product(a, b), _dot(da, b) + _dot(a, db)


@jax.custom_jvp
def _inverse_lower(lower: Array) -> Array:
    return linalg.inverse_lower(lower)


@_inverse_lower.defjvp
def _inverse_lower_jvp(primals, tangents):
    inverse = _inverse_lower(*primals)
    change = tangents[0] * np.tri(inverse.shape[0])
    return inverse, -_dot(_dot(inverse, change), inverse)


@jax.custom_jvp
def cholesky(matrix: Array) -> Array:
    return linalg.cholesky(matrix)


@cholesky.defjvp
def _cholesky_jvp(primals, tangents):
    """L times the lower half of L^-1 dS L^-T."""
    factor = cholesky(*primals)
    inverse = _inverse_lower(factor)
    whitened = _dot(_dot(inverse, tangents[0]), inverse.T)
    half = np.tri(factor.shape[0]) - 0.5 * np.eye(factor.shape[0])
    return factor, _dot(factor, whitened * half)
