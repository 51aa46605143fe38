"""Triangular algebra on one event, written out in array operations that batch under `vmap`.

No LAPACK call: on a two-thread CPU pool, two batched LAPACK calls of one program can wait
for each other for ever (seen with jaxlib 0.10.2), and batches of small matrices are what
LAPACK is slowest at. Matrices are halved until `LEAF` rows are left, which are substituted
row by row; XLA makes one loop of a leaf, vectorized along its rows. Above `WIDE` rows, where
products are fast, diagonal blocks of `WIDE` rows are inverted first, all at once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

LEAF = 8
WIDE = 64
WRITTEN_OUT = 16
_FACTOR_LEAF = 4
_HALVED = 32


def settled(x: Array) -> Array:
    """X itself, evaluated once even if read by several loops.

    XLA evaluates a cheap producer anew in every loop that reads it. A solve is a chain of
    cheap operations, so its cost would grow with every reader; a division is not copied.
    """
    return x / jnp.where(x == x, jnp.ones_like(x), x)


def alone(x: Array) -> Array:
    """X in a loop of its own, not in that of its only reader (all nan if its first is).

    Put together with others, a matrix would be evaluated element by element. A division is
    not moved into a loop that reads an element again and again, as it does the first here.
    """
    if not x.size:
        return x
    x = settled(x)
    first = lax.slice(x, (0,) * x.ndim, (1,) * x.ndim)
    return x * jnp.where(first == first, jnp.ones_like(first), jnp.nan)


class Divisor:
    """Division by y as a product, which XLA puts into one loop with others.

    1 / y of the largest numbers is subnormal and would be flushed to 0; 4 / y is not, and
    overflows at the smallest normal number alone.
    """

    def __init__(self, y: Array) -> None:
        inverse = jnp.minimum(4 / y, jnp.finfo(y.dtype).max)
        self._inverse = settled(inverse) if y.ndim else inverse

    def __getitem__(self, i: int) -> Callable[[Array], Array]:
        """Division by entry i of a vector y."""
        inverse = self._inverse[i]
        return lambda x: (x * inverse) * 0.25

    def __call__(self, x: Array) -> Array:
        return (x * self._inverse) * 0.25


@jax.custom_jvp
def difference(x: Array, y: Array) -> Array:
    """X - y of two vectors, of short ones number by number.

    Where those are read one by one, XLA would make a function of one subtraction of vectors,
    and LLVM then not know that what it reads and what the loop writes cannot overlap.
    """
    size = x.shape[0]
    if not 0 < size <= LEAF:
        return x - y
    return jnp.concatenate([x[i : i + 1] - y[i : i + 1] for i in range(size)])


@difference.defjvp
def _difference_jvp(primals, tangents):
    (dx, dy) = tangents
    return difference(*primals), dx - dy


def matmul(a: Array, b: Array) -> Array:
    """Product of two matrices in full precision (accelerators default to fewer bits).

    Short sums are written out, since XLA's batched product of small matrices is an order of
    magnitude slower. `jnp.matmul` would name its result's dtype, which a later `vmap` of a
    float64 part inside a float32 program rounds to float32.
    """
    if 0 < a.shape[1] <= WRITTEN_OUT:
        total = a[:, :1] * b[:1]
        for i in range(1, a.shape[1]):
            total = total + a[:, i : i + 1] * b[i : i + 1]
        return total
    contract = (((1,), (0,)), ((), ()))
    return lax.dot_general(a, b, contract, precision=lax.Precision.HIGHEST)


def diagonal(a: Array) -> Array:
    """The diagonal."""
    size = a.shape[0]
    if not size:
        return a[0:0, 0] if a.shape[1] else jnp.zeros(0, a.dtype)
    return lax.slice(a.reshape(size * size), (0,), (size * size,), (size + 1,))


def on_diagonal(values: Array) -> Array:
    """The diagonal matrix, without the scatter of `jnp.diag`."""
    return jnp.where(_is_diagonal(values.shape[0]), values[None, :], 0)


def replace_diagonal(a: Array, values: Array) -> Array:
    return jnp.where(_is_diagonal(a.shape[0]), values[None, :], a)


def _is_diagonal(size: int) -> Array:
    return jnp.eye(size, dtype=bool)


def strict_lower(a: Array) -> Array:
    return jnp.tril(a, -1)


def symmetrize(a: Array) -> Array:
    return 0.5 * a + 0.5 * a.T


def lower_half(a: Array) -> Array:
    """The lower triangular X with X + X^T = a, for symmetric a."""
    return strict_lower(a) + on_diagonal(0.5 * diagonal(a))


def flip(a: Array) -> Array:
    """Both axes reversed: turns the transpose of a lower triangle into a lower triangle."""
    return lax.rev(a, (0, 1))


def any_entry(x: Array) -> Array:
    """Whether some entry of a boolean matrix is true.

    A few strips of its rows are compared as vectors, in the loop that computes them: twice
    as fast as XLA's own reduction. The last strip may repeat rows.
    """
    rows = -(-x.shape[0] // 8)
    found = x[:rows]
    for i in range(rows, x.shape[0], rows):
        start = min(i, x.shape[0] - rows)
        found = found | x[start : start + rows]
    return jnp.any(found)


# ---- solving with a lower triangle ----------------------------------------------------------


def solve_lower(lower: Array, b: Array) -> Array:
    """lower^-1 b, for lower (d, d) lower triangular and b (d, m)."""
    return lax.custom_linear_solve(
        lambda x: matmul(jnp.tril(lower), x),
        b,
        solve=lambda _, y: Triangle(lower).solve(y),
        transpose_solve=lambda _, y: Triangle(lower).solve_transposed(y),
    )


def solve_lower_transposed(lower: Array, b: Array) -> Array:
    """lower^-T b."""
    return lax.custom_linear_solve(
        lambda x: matmul(jnp.tril(lower).T, x),
        b,
        solve=lambda _, y: Triangle(lower).solve_transposed(y),
        transpose_solve=lambda _, y: Triangle(lower).solve(y),
    )


def solve_lower_right(lower: Array, b: Array) -> Array:
    """B lower^-1, for b (m, d)."""
    return solve_lower_transposed(lower, b.T).T


def whiten_both(lower: Array, symmetric: Array) -> Array:
    """lower^-1 symmetric lower^-T."""
    return symmetrize(solve_lower(lower, solve_lower(lower, symmetric).T))


_Keep = Callable[[Array], Array]


def _all(x: Array) -> Array:
    return x


class Triangle:
    """A lower triangle L, ready to be divided by; what is above its diagonal is not read.

    The methods are recursions over halves, `low` to `high` in rows of L. Where a result is
    lower triangular, only its lower half is computed.
    """

    def __init__(self, matrix: Array) -> None:
        self.matrix = matrix
        self.size = matrix.shape[0]
        self._leaf = WIDE if self.size > WIDE else LEAF
        if self._leaf == WIDE:
            self._inverses = inverses_on_diagonal(matrix, WIDE)

    def solve(self, b: Array, low: int = 0, high: int | None = None) -> Array:
        """L^-1 b."""
        high = self.size if high is None else high
        if high - low <= self._leaf:
            return self._solve_leaf(b, low, high)
        middle, half = self._split(low, high)
        top = self.solve(b[:half], low, middle)
        rest = settled(b[half:] - matmul(self.matrix[middle:high, low:middle], top))
        return jnp.concatenate([top, alone(self.solve(rest, middle, high))])

    def solve_transposed(self, b: Array, low: int = 0, high: int | None = None) -> Array:
        """L^-T b."""
        high = self.size if high is None else high
        if high - low <= self._leaf:
            return self._solve_leaf_transposed(b, low, high)
        middle, half = self._split(low, high)
        bottom = self.solve_transposed(b[half:], middle, high)
        rest = settled(b[:half] - matmul(self.matrix[middle:high, low:middle].T, bottom))
        return jnp.concatenate([alone(self.solve_transposed(rest, low, middle)), bottom])

    def quotient_below(self, b: Array, low: int = 0, high: int | None = None) -> Array:
        """L^-1 b below its diagonal, for lower triangular b."""
        high = self.size if high is None else high
        if high - low <= self._leaf:
            return self._solve_leaf(b, low, high, strict_lower)
        middle, half = self._split(low, high)
        top = self.quotient_below(b[:half, :half], low, middle)
        bottom = self.quotient_below(b[half:, half:], middle, high)
        # The diagonal of the quotient is that of b over that of L.
        on = diagonal(b[:half, :half]) / diagonal(self.matrix[low:middle, low:middle])
        across = self.matrix[middle:high, low:middle]
        rest = settled(b[half:, :half] - matmul(across, top) - across * on[None, :])
        return from_blocks(top, self.solve(rest, middle, high), bottom)

    def quotient_transposed(self, b: Array, low: int = 0, high: int | None = None) -> Array:
        """The lower triangle of L^-T b, for lower triangular b."""
        high = self.size if high is None else high
        if high - low <= self._leaf:
            return self._solve_leaf_transposed(b, low, high, jnp.tril)
        middle, half = self._split(low, high)
        bottom = self.quotient_transposed(b[half:, half:], middle, high)
        left = self.solve_transposed(b[half:, :half], middle, high)
        rest = settled(b[:half, :half] - matmul(self.matrix[middle:high, low:middle].T, left))
        return from_blocks(self.quotient_transposed(rest, low, middle), left, bottom)

    def _split(self, low: int, high: int) -> tuple[int, int]:
        half = first_half(high - low, self._leaf)
        return low + half, half

    def _solve_leaf(self, b: Array, low: int, high: int, keep: _Keep = _all) -> Array:
        if self._leaf == WIDE:
            return keep(matmul(self._inverses[low // WIDE], b))
        return substitute_rows(self.matrix[low:high, low:high], b, keep)

    def _solve_leaf_transposed(
        self, b: Array, low: int, high: int, keep: _Keep = _all
    ) -> Array:
        if self._leaf == WIDE:
            return keep(matmul(self._inverses[low // WIDE].T, b))
        return substitute_rows_transposed(self.matrix[low:high, low:high], b, keep)


@jax.jit
def inverse_lower(lower: Array) -> Array:
    """lower^-1."""
    size = lower.shape[0]
    if size <= LEAF:
        return substitute_rows(lower, jnp.eye(size, dtype=lower.dtype))
    half = first_half(size)
    if half >= WIDE // 2 and size == 2 * half:
        return _inverse_by_levels(lower)
    top, bottom = inverse_lower(lower[:half, :half]), inverse_lower(lower[half:, half:])
    return _inverse_of_blocks(top, lower[half:, :half], bottom)


def _inverse_of_blocks(top: Array, left: Array, bottom: Array) -> Array:
    """Of [[a, 0], [left, b]], by the inverses of a and b."""
    return from_blocks(top, -matmul(bottom, settled(matmul(left, top))), bottom)


def _inverse_by_levels(lower: Array) -> Array:
    """The same for 2^n leaves, those of a level at once: less to compile, fewer loops."""
    size = lower.shape[0]

    def blocks(rows: int, below: int) -> Array:
        starts = range(0, size, rows + below)
        parts = [lower[i + below : i + below + rows, i : i + rows] for i in starts]
        return settled(jnp.stack(parts))

    eye = jnp.eye(LEAF, dtype=lower.dtype)
    inverses = jax.vmap(lambda x: substitute_rows(x, eye))(blocks(LEAF, 0))
    while len(inverses) > 1:
        rows = inverses.shape[1]
        top, bottom = settled(inverses[0::2]), settled(inverses[1::2])
        inverses = jax.vmap(_inverse_of_blocks)(top, blocks(rows, rows), bottom)
    return inverses[0]


def inverses_on_diagonal(lower: Array, step: int) -> list[Array]:
    """The inverses of the diagonal blocks of a triangle, of `step` rows and the rest."""
    size = lower.shape[0]
    blocks = [lower[i : i + step, i : i + step] for i in range(0, size, step)]
    if len(blocks) <= 2:
        return [inverse_lower(x) for x in blocks]
    inverses = jax.vmap(inverse_lower)(jnp.stack([_pad_identity(x, step) for x in blocks]))
    return [settled(inverses[i, : len(x), : len(x)]) for i, x in enumerate(blocks)]


def lower_product_transposed(a: Array, b: Array) -> Array:
    """The lower triangle of a b^T, for lower triangular a and b; above it, anything."""
    size = a.shape[0]
    if size <= LEAF or size == 4 * LEAF:
        return matmul(a, b.T)
    half = first_half(size, LEAF)
    top = lower_product_transposed(a[:half, :half], b[:half, :half])
    left = matmul(a[half:, :half], b[:half, :half].T)
    bottom = matmul(a[half:, :half], b[half:, :half].T)
    bottom = bottom + lower_product_transposed(a[half:, half:], b[half:, half:])
    return from_blocks(top, left, bottom)


def first_half(size: int, leaf: int = LEAF) -> int:
    """The largest leaf 2^n below size."""
    half = leaf
    while 2 * half < size:
        half *= 2
    return half


def from_blocks(top: Array, left: Array, bottom: Array) -> Array:
    """[[top, 0], [left, bottom]]; above the diagonals of top and bottom as they are.

    Small ones are selected, which XLA makes one loop of; large ones are copied faster.
    """
    half, rest = top.shape[0], bottom.shape[0]
    top, left, bottom = alone(top), alone(left), alone(bottom)
    if half + rest > WRITTEN_OUT:
        upper = jnp.pad(top, ((0, 0), (0, rest)))
        return jnp.concatenate([upper, jnp.concatenate([left, bottom], axis=1)])
    row, column = (lax.broadcasted_iota(jnp.int32, (half + rest,) * 2, i) for i in (0, 1))
    above = jnp.pad(top, ((0, rest), (0, rest)))
    below = jnp.where(
        column < half,
        jnp.pad(left, ((half, 0), (0, rest))),
        jnp.pad(bottom, ((half, 0), (half, 0))),
    )
    return settled(jnp.where(row < half, above, below))


def _pad_identity(a: Array, size: int) -> Array:
    """A in the upper left corner, the identity below."""
    extra = size - a.shape[0]
    if not extra:
        return a
    ones = (jnp.arange(size) >= a.shape[0]).astype(a.dtype)
    return jnp.pad(a, ((0, extra), (0, extra))) + on_diagonal(ones)


@functools.partial(jax.jit, static_argnums=2)
def substitute_rows(lower: Array, b: Array, keep: _Keep = _all) -> Array:
    """lower^-1 b, row by row."""
    over = Divisor(diagonal(lower))
    rows: list[Array] = []
    for i in range(lower.shape[0]):
        rest = b[i : i + 1]
        for j, row in enumerate(rows):
            rest = rest - lower[i, j] * row
        rows.append(over[i](rest))
    return settled(keep(from_rows(rows))) if rows else b


@functools.partial(jax.jit, static_argnums=2)
def substitute_rows_transposed(lower: Array, b: Array, keep: _Keep = _all) -> Array:
    """lower^-T b, row by row from the last."""
    over = Divisor(diagonal(lower))
    rows: list[Array] = []
    for i in reversed(range(lower.shape[0])):
        rest = b[i : i + 1]
        for j, row in enumerate(rows, start=i + 1):
            rest = rest - lower[j, i] * row
        rows.insert(0, over[i](rest))
    return settled(keep(from_rows(rows))) if rows else b


def from_rows(rows: Sequence[Array]) -> Array:
    """The matrix of rows (1, m), selected by row number so that XLA makes one loop of it."""
    number = lax.broadcasted_iota(jnp.int32, (len(rows), 1), 0)
    matrix = rows[-1]
    for i in range(len(rows) - 2, -1, -1):
        matrix = jnp.where(number == i, rows[i], matrix)
    return matrix


def is_small(s: Array) -> Array:
    """Whether I + s is positive definite beyond doubt, and s what to compute a divergence from.

    By the norm: of a singular I + s all entries of s may be small.
    """
    return jnp.sum(s * s) < 0.25


# ---- Cholesky factors -----------------------------------------------------------------------


@jax.custom_jvp
def cholesky(a: Array) -> Array:
    """The lower triangular L with L L^T = a; nan where a is not positive definite."""
    return _factorize(a, 0)


@cholesky.defjvp
def _cholesky_jvp(primals, tangents):
    (a,), (da,) = primals, tangents
    factor = cholesky(a)
    return factor, matmul(factor, lower_half(whiten_both(factor, da)))


def cholesky_deviation(s: Array) -> Array:
    """The lower triangular E with (I + E)(I + E)^T = I + s, to the relative accuracy of s.

    The Cholesky recursion in deviations from the identity: with pivot 1 + u the diagonal is
    sqrt(1 + u) - 1 = u / (1 + sqrt(1 + u)), so nothing near 1 is ever formed and rounded.
    """
    return _factorize(s, 1)


@functools.partial(jax.jit, static_argnums=1)
def _factorize(a: Array, identity: int) -> Array:
    """A Cholesky factor, by halves or, where unrolling compiles too long, by panels.

    Args:
        a: the matrix, or its deviation from the identity.
        identity: 1 if matrix and factor are both given as deviations, else 0.
    """
    size = a.shape[0]
    if size <= _FACTOR_LEAF:
        return _factorize_leaf(a, identity) if size else a
    if size > _HALVED:
        return _factorize_panels(a, identity)
    half = first_half(size, _FACTOR_LEAF)
    top = _factorize(a[:half, :half], identity)
    whole = top + identity * jnp.eye(half, dtype=a.dtype)
    across = Triangle(whole).solve(a[:half, half:])
    left = settled(across.T)
    rest = settled(a[half:, half:] - matmul(left, across))
    return from_blocks(top, left, _factorize(rest, identity))


def _factorize_panels(a: Array, identity: int) -> Array:
    """`LEAF` rows of the transposed factor a step of a loop, subtracted from what is left."""
    size = a.shape[0]
    padded = -(-size // LEAF) * LEAF
    a = jnp.pad(a, ((0, padded - size), (0, padded - size)))
    if not identity:
        a = a + on_diagonal((jnp.arange(padded) >= size).astype(a.dtype))
    eye = identity * jnp.eye(LEAF, dtype=a.dtype)
    column, zero = jnp.arange(padded)[None, :], np.int32(0)

    def step(rest: Array, i: Array) -> tuple[Array, Array]:
        start = i * LEAF
        strip = lax.dynamic_slice(rest, (start, zero), (LEAF, padded))
        corner = _factorize(lax.dynamic_slice(strip, (zero, start), (LEAF, LEAF)), identity)
        right = Triangle(eye + corner).solve(strip)
        right = jnp.where(column >= start + LEAF, right, 0)
        rows = lax.dynamic_update_slice(right, corner.T, (zero, start))
        return rest - matmul(right.T, right), rows

    # Counted in int32 also in the float64 parts of a float32 program.
    _, rows = lax.scan(step, a, jnp.arange(padded // LEAF, dtype=jnp.int32))
    return settled(rows.reshape(padded, padded).T[:size, :size])


def _factorize_leaf(a: Array, identity: int) -> Array:
    """Row j of the transposed factor is what is left of row j of a, over a root."""
    rows: list[Array] = []
    for j in range(a.shape[0]):
        rest = a[j : j + 1]
        for row in rows:
            rest = rest - row[:, j : j + 1] * row
        pivot = rest[:, j : j + 1]
        whole = identity + pivot
        inverse = lax.rsqrt(jnp.where(whole > 0, whole, jnp.nan))
        row = rest * inverse
        if identity:
            on = pivot * (1 / (1 + whole * inverse))
            row = jnp.where(jnp.arange(a.shape[0])[None, :] == j, on, row)
        rows.append(row)
    return jnp.tril(settled(from_rows(rows)).T)
