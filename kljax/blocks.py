"""Lower triangles kept as a grid of blocks.

Putting a batch of matrices together, and taking it apart again, costs as much as a product
of small matrices. So a chain of products is carried out on the blocks, and only its result
is put together. Every block is evaluated once, in one loop of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from kljax import linalg
from kljax.linalg import settled

# Rows of the largest matrix for which this is the fastest way, and of its blocks.
MOST = 1024
_MANY = 256

# Row i has the blocks 0 to i.
Lower = list[list[Array]]


def _starts(size: int) -> range:
    """The first rows of the blocks: up to four of 64 or of 256, or else two."""
    step = linalg.first_half(size)
    if size <= MOST:
        step = min(step, linalg.WIDE if size <= _MANY else _MANY)
    return range(0, size, step)


def parts(x: Array) -> list[Array]:
    """The rows of a matrix, or the numbers of a vector, by blocks."""
    starts = _starts(x.shape[0])
    return [x[i : i + starts.step] for i in starts]


def lower(matrix: Array) -> Lower:
    """The blocks of a lower triangular matrix; those on the diagonal are read again often."""
    step = _starts(matrix.shape[0]).step
    rows = parts(matrix)
    return [
        [
            *(row[:, j * step : (j + 1) * step] for j in range(i)),
            settled(row[:, i * step : (i + 1) * step]),
        ]
        for i, row in enumerate(rows)
    ]


def mirrored(matrix: Array) -> list[list[tuple[Array, Array]]]:
    """Every block on and below the diagonal, with the transpose of its mirror image."""
    columns = [[x.T for x in parts(row.T)] for row in parts(matrix)]
    return [
        [(columns[i][j], columns[j][i].T) for j in range(i + 1)] for i in range(len(columns))
    ]


def symmetric(matrix: Array) -> Lower:
    """The lower blocks of the symmetric part of a matrix."""
    return [[settled(0.5 * x + 0.5 * y) for x, y in row] for row in mirrored(matrix)]


def together(a: Lower) -> Array:
    """The matrix."""
    if len(a) == 1:
        return a[0][0]
    if len(a) == 2:
        return linalg.from_blocks(a[0][0], *a[1])
    size = sum(x.shape[0] for x, *_ in a)
    rows = [jnp.concatenate(row, axis=1) for row in a]
    return jnp.concatenate([jnp.pad(x, ((0, 0), (0, size - x.shape[1]))) for x in rows])


def difference(a: Lower, b: Lower) -> Lower:
    """A - b."""
    return [
        [settled(x - y) for x, y in zip(*rows, strict=True)] for rows in zip(a, b, strict=True)
    ]


def diagonal(a: Lower) -> Array:
    """The diagonal."""
    return jnp.concatenate([linalg.diagonal(on) for *_, on in a])


def replace_diagonal(a: Lower, values: Array) -> Lower:
    return [
        [*left, linalg.replace_diagonal(on, v)]
        for (*left, on), v in zip(a, parts(values), strict=True)
    ]


def squares_below(a: Lower) -> Array:
    """The sum of squares strictly below the diagonal."""
    return sum_of_squares([x for *left, on in a for x in (*left, linalg.strict_lower(on))])


def sum_of_squares(x: Sequence[Array]) -> Array:
    total = jnp.zeros((), x[0].dtype)
    for part in x:
        total = total + jnp.sum(part * part)
    return total


class Divisor(NamedTuple):
    """A lower triangle to be divided by: the inverses of its diagonal blocks, and the rest."""

    inverses: list[Array]
    left: list[list[Array]]


def divisor(matrix: Array) -> Divisor:
    """Of a matrix of which the lower triangle is read."""
    step = _starts(matrix.shape[0]).step
    left = [row[:-1] for row in lower(matrix)]
    return Divisor(linalg.inverses_on_diagonal(matrix, step), left)


def cholesky(a: Lower) -> tuple[Lower, Divisor]:
    """The factor C of C C^T = a, and what divides by it; a is symmetric."""
    factor: Lower = []
    transposed: list[list[Array]] = []
    inverses: list[Array] = []
    for *left, on in a:
        row: list[Array] = []
        for j, block in enumerate(left):
            rest = _less(block, zip(row, transposed[j], strict=True))
            row.append(_product(rest, settled(inverses[j].T)))
        across = [settled(x.T) for x in row]
        root = _root(_less(on, zip(row, across, strict=True)))
        factor.append([*row, root])
        transposed.append(across)
        inverses.append(linalg.inverse_lower(root))
    return factor, Divisor(inverses, [row[:-1] for row in factor])


def _root(a: Array) -> Array:
    """The factor of a block."""
    return linalg.cholesky(a) if a.shape[0] <= linalg.WIDE else together(cholesky(lower(a))[0])


def quotient(a: Divisor, b: Lower) -> Lower:
    """A^-1 b."""
    columns = [_solve(a, [row[j] for row in b[j:]], j) for j in range(len(b))]
    return [[columns[j][i - j] for j in range(i + 1)] for i in range(len(b))]


def solve(a: Divisor, b: list[Array]) -> list[Array]:
    """A^-1 b, for b in parts."""
    return _solve(a, b, 0)


def _solve(a: Divisor, b: list[Array], start: int) -> list[Array]:
    """A^-1 b from block `start` on, above which b is zero."""
    x: list[Array] = []
    for i, rest in enumerate(b, start=start):
        rest = _less(rest, zip(a.left[i][start:], x, strict=True))
        x.append(_product(a.inverses[i], rest))
    return x


def quotient_transposed(a: Divisor, b: Lower) -> Lower:
    """The lower triangle of a^-T b."""
    a = _transposed(a)
    columns = [_solve_transposed(a, [row[j] for row in b[j:]]) for j in range(len(b))]
    rows = [[columns[j][i - j] for j in range(i + 1)] for i in range(len(b))]
    return [[*left, settled(jnp.tril(on))] for *left, on in rows]


def solve_transposed(a: Divisor, b: list[Array]) -> list[Array]:
    """A^-T b, for b in parts."""
    return _solve_transposed(_transposed(a), b)


def _transposed(a: Divisor) -> Divisor:
    """Its blocks transposed, each in its place."""
    return Divisor(
        [settled(x.T) for x in a.inverses], [[settled(x.T) for x in row] for row in a.left]
    )


def _solve_transposed(a: Divisor, b: list[Array]) -> list[Array]:
    """The last blocks of the solution, as many as b has, by transposed blocks."""
    x: list[Array] = []
    first = len(a.inverses) - len(b)
    for i in reversed(range(len(b))):
        below = [a.left[l][first + i] for l in range(first + i + 1, len(a.inverses))]
        rest = _less(b[i], zip(below, x, strict=True))
        x.insert(0, _product(a.inverses[first + i], rest))
    return x


def product_transposed(a: Lower, b: Lower) -> Lower:
    """The lower triangle of a b^T."""
    b = [[settled(x.T) for x in row] for row in b]

    def block(i: int, j: int) -> Array:
        total = linalg.matmul(a[i][0], b[j][0])
        for l in range(1, j + 1):
            total = total + linalg.matmul(a[i][l], b[j][l])
        return settled(jnp.tril(total) if i == j else total)

    return [[block(i, j) for j in range(i + 1)] for i in range(len(a))]


def _less(rest: Array, pairs: Iterable[tuple[Array, Array]]) -> Array:
    """What is left of a block when products are subtracted from it."""
    total = rest
    for a, b in pairs:
        total = total - linalg.matmul(a, b)
    return rest if total is rest else settled(total)


def _product(a: Array, b: Array) -> Array:
    """A b; what is written out is settled."""
    product = linalg.matmul(a, b)
    return settled(product) if a.shape[1] <= linalg.WRITTEN_OUT else product
