"""What a valid parameter satisfies: one test, used by rules (nan) and by `check` (words)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from kljax import blocks, linalg


class Constraint(NamedTuple):
    """A requirement on one event's array.

    Attributes:
        requirement: completes the sentence "it must ...".
        invalid: the cheap part of the test, applied inside every rule, where a true entry
            turns the result into nan; None where invalid values give nan by themselves.
        violated: the whole test, for `check`; a true entry is a violation.
        of_event: whether `invalid` gives one answer for the whole array of an event.
    """

    requirement: str
    invalid: Callable[[Array], Array] | None
    violated: Callable[[Array], Array]
    of_event: bool = False


def _not_finite(x: Array) -> Array:
    return ~jnp.isfinite(x)


def _not_positive(x: Array) -> Array:
    return ~(x > 0)


def _not_lower_triangular(x: Array) -> Array:
    """One answer for the matrix: an entry above the diagonal, or a diagonal not positive."""
    size = x.shape[0]
    if size > linalg.LEAF:
        on = linalg.settled(linalg.diagonal(x))
        return linalg.any_entry(jnp.triu(x, 1) != 0) | ~jnp.all(on > 0)
    # Written out, so that it is one loop with a small matrix's divergence.
    found = jnp.zeros((), bool)
    for i in range(size):
        found = found | ~(x[i, i] > 0)
        for j in range(i + 1, size):
            found = found | (x[i, j] != 0)
    return found


def _any_matrix(test: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The test of a matrix, for a matrix or an array of them: one answer."""

    def of_array(x: Array) -> Array:
        if x.ndim == 2:
            return test(x)
        return jnp.any(jax.vmap(of_array)(x))

    return of_array


def _not_symmetric(x: Array) -> Array:
    """Asymmetry beyond rounding and finite differences, on the scale of the diagonal."""
    size = x.shape[0]
    if size > linalg.LEAF:
        inverse = 1 / jnp.abs(linalg.diagonal(x))
        parts = blocks.parts(inverse)
        found = jnp.zeros((), bool)
        for i, row in enumerate(blocks.mirrored(x)):
            for j, (below, above) in enumerate(row):
                gap = below - above
                relative = (gap * parts[i][:, None]) * (gap * parts[j][None, :])
                found = found | linalg.any_entry(relative > 1e-6)
        return found
    inverses = [1 / jnp.abs(x[i, i]) for i in range(size)]
    found = jnp.zeros((), bool)
    for i in range(size):
        for j in range(i):
            gap = x[i, j] - x[j, i]
            found = found | ((gap * inverses[i]) * (gap * inverses[j]) > 1e-6)
    return found


def _not_positive_definite(x: Array) -> Array:
    factor = linalg.cholesky(linalg.symmetrize(x))
    return _not_symmetric(x) | ~jnp.all(jnp.isfinite(factor))


def _each(question: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """A question about a matrix, asked of every matrix of a stack such as one a time step."""

    def of_each(x: Array) -> Array:
        stacked = question
        for _ in x.shape[:-2]:
            stacked = jax.vmap(stacked)
        return stacked(x)

    return of_each


def _not_symmetric_row(x: Array) -> Array:
    """Entries j and n - j of a circulant's first row differ beyond rounding."""
    return jnp.any(jnp.abs(x - reflect(x)) > 1e-3 * jnp.max(jnp.abs(x), initial=0))


def _not_circulant_covariance(x: Array) -> Array:
    eigenvalues = jnp.fft.rfft(0.5 * x + 0.5 * reflect(x)).real
    return _not_symmetric_row(x) | ~jnp.all(eigenvalues > 0) | jnp.any(_not_finite(x))


def reflect(row: Array) -> Array:
    """Entry n - j in place of entry j, entry 0 in its own."""
    return jnp.roll(row[::-1], 1)


CONSTRAINTS: dict[str, Constraint] = {
    "real": Constraint("be finite", None, _not_finite),
    "positive": Constraint(
        "be positive and finite",
        _not_positive,
        lambda x: _not_positive(x) | _not_finite(x),
    ),
    "lower_triangular": Constraint(
        "be finite and lower triangular (see jnp.tril) with a positive diagonal",
        _any_matrix(_not_lower_triangular),
        _each(lambda x: _not_lower_triangular(x) | jnp.any(_not_finite(x))),
        of_event=True,
    ),
    "positive_definite": Constraint(
        "be finite, symmetric and positive definite",
        _any_matrix(_not_symmetric),
        _each(_not_positive_definite),
        of_event=True,
    ),
    "circulant": Constraint(
        "be finite and the first row of a positive definite circulant matrix, entry j equal "
        "to entry n - j",
        _not_symmetric_row,
        _not_circulant_covariance,
        of_event=True,
    ),
}
