"""Lower triangles kept as blocks, [[top, 0], [left, bottom]].

Putting a batch of matrices together, and taking it apart again, costs as much as a product
of small matrices. So a chain of products is carried out on the blocks, and only its result
is put together. Every block is evaluated once, in one loop of its own.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from kljax import linalg
from kljax.linalg import LEAF, matmul, settled


class Halves(NamedTuple):
    """The rows of a matrix, `LEAF` of them and the rest."""

    top: Array
    bottom: Array


def halves(x: Array) -> Halves:
    return Halves(x[:LEAF], x[LEAF:])


class Lower(NamedTuple):
    """A lower triangular matrix of more than `LEAF` and at most twice as many rows."""

    top: Array
    left: Array
    bottom: Array


def lower(matrix: Array) -> Lower:
    """The blocks of a matrix; what is above its diagonal is not read."""
    return Lower(
        settled(jnp.tril(matrix[:LEAF, :LEAF])),
        settled(matrix[LEAF:, :LEAF]),
        settled(jnp.tril(matrix[LEAF:, LEAF:])),
    )


def inverse(matrix: Array) -> Lower:
    """Of a matrix of which the lower triangle is read."""
    top = linalg.inverse_lower(matrix[:LEAF, :LEAF])
    bottom = linalg.inverse_lower(matrix[LEAF:, LEAF:])
    across = settled(matmul(matrix[LEAF:, :LEAF], top))
    return Lower(top, settled(-matmul(bottom, across)), bottom)


def product(a: Lower, b: Lower) -> Lower:
    """A b."""
    return Lower(
        settled(matmul(a.top, b.top)),
        settled(matmul(a.left, b.top) + matmul(a.bottom, b.left)),
        settled(matmul(a.bottom, b.bottom)),
    )


def transposed_product(a: Lower, b: Lower) -> Lower:
    """The lower triangle of a^T b."""
    return Lower(
        settled(jnp.tril(matmul(a.top.T, b.top) + matmul(a.left.T, b.left))),
        settled(matmul(a.bottom.T, b.left)),
        settled(jnp.tril(matmul(a.bottom.T, b.bottom))),
    )


def product_transposed(a: Lower, b: Lower) -> Lower:
    """The lower triangle of a b^T."""
    top, left, bottom = (settled(x.T) for x in b)
    return Lower(
        settled(jnp.tril(matmul(a.top, top))),
        settled(matmul(a.left, top)),
        settled(jnp.tril(matmul(a.left, left) + matmul(a.bottom, bottom))),
    )


def times(a: Lower, x: Halves) -> Halves:
    """A x, for few columns."""
    return Halves(
        settled(matmul(a.top, x.top)),
        settled(matmul(a.left, x.top) + matmul(a.bottom, x.bottom)),
    )


def transposed_times(a: Lower, x: Halves) -> Halves:
    """A^T x, for few columns."""
    return Halves(
        settled(matmul(a.top.T, x.top) + matmul(a.left.T, x.bottom)),
        settled(matmul(a.bottom.T, x.bottom)),
    )


def replace_diagonal(a: Lower, values: Array) -> Lower:
    return Lower(
        settled(linalg.replace_diagonal(a.top, values[:LEAF])),
        a.left,
        settled(linalg.replace_diagonal(a.bottom, values[LEAF:])),
    )


def together(a: Lower) -> Array:
    """The matrix."""
    return linalg.from_blocks(*a)
