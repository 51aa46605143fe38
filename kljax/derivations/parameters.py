"""Parameters of a derivation: a symbol with a meaning, and the unconstrained numbers behind it.

Derivatives are taken by the unconstrained numbers, so that a positive definite matrix can
move in every direction and the checks never meet an off-diagonal entry counted twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from kljax.derivations import expression as ex
from kljax.derivations.series import Series


class Parameter(NamedTuple):
    """A parameter of a derivation.

    Attributes:
        symbol: how it is printed.
        meaning: what it is, in words.
        size: how many unconstrained numbers are behind it.
        constrain: those numbers to its value.
        symmetric: whether it is a symmetric matrix.
        location: whether it is a place rather than a size (hard points move it far).
        hard: unconstrained numbers that make it ill-conditioned, if it can be.
    """

    symbol: str
    meaning: str
    size: int
    constrain: Callable[[Any], Any]
    symmetric: bool = False
    location: bool = False
    hard: np.ndarray | None = None


def _linear(basis: np.ndarray, x: Any) -> Any:
    """The sum of x_i basis_i."""
    if isinstance(x, Series):
        subscripts = "nij,n...->ij..." if basis.ndim == 3 else "ni,n...->i..."
        return x.map(lambda a: np.einsum(subscripts, basis, a))
    return jnp.tensordot(x, jnp.asarray(basis), 1, precision="highest")


def real(symbol: str, meaning: str) -> Parameter:
    """Any number."""
    return Parameter(symbol, meaning, 1, lambda x: x[0], location=True)


def positive(symbol: str, meaning: str) -> Parameter:
    """A number > 0."""
    return Parameter(symbol, meaning, 1, lambda x: ex.exp(x[0]))


def vector(symbol: str, meaning: str, dim: int = 3) -> Parameter:
    """Any vector."""
    return Parameter(symbol, meaning, dim, lambda x: x, location=True)


def positive_vector(symbol: str, meaning: str, dim: int = 3) -> Parameter:
    """A vector with entries > 0."""
    return Parameter(symbol, meaning, dim, lambda x: ex.exp(x))


def matrix(symbol: str, meaning: str, rows: int = 3, columns: int = 3) -> Parameter:
    """Any matrix, near a multiple of the identity if it is square."""
    basis = np.eye(rows * columns).reshape(-1, rows, columns)
    middle = 2.0 * np.eye(rows) if rows == columns else np.zeros((rows, columns))

    return Parameter(symbol, meaning, rows * columns, lambda x: _linear(basis, x) + middle)


def zero(symbol: str, meaning: str) -> Parameter:
    """The number 0, for derivatives there."""
    return Parameter(symbol, meaning, 0, lambda x: ex.SUM(x))


def _factor(dim: int) -> tuple[int, np.ndarray, Callable[[Any], Any]]:
    rows, columns = np.tril_indices(dim)
    size = len(rows)
    below, on = np.zeros((size, dim, dim)), np.zeros((size, dim, dim))
    for n, (i, j) in enumerate(zip(rows, columns, strict=True)):
        (on if i == j else below)[n, i, j] = 1

    def constrain(x: Any) -> Any:
        return _linear(below, x) + _linear(on, ex.exp(x))

    # Standard deviations from e^-2.3 to e^2.3: a condition of 1e4.
    hard = np.zeros(size)
    hard[rows == columns] = np.linspace(1, -1, dim) * math.log(1e4) / 4 if dim > 1 else 0
    return size, hard, constrain


def scale_tril(symbol: str, meaning: str, dim: int = 3) -> Parameter:
    """A lower triangular matrix with a positive diagonal."""
    size, hard, constrain = _factor(dim)
    return Parameter(symbol, meaning, size, constrain, hard=hard)


def covariance(symbol: str, meaning: str, dim: int = 3) -> Parameter:
    """A symmetric positive definite matrix."""
    size, hard, factor = _factor(dim)

    def constrain(x: Any) -> Any:
        root = factor(x)
        return ex.matmul(root, root.T)

    return Parameter(symbol, meaning, size, constrain, symmetric=True, hard=hard)


def probabilities(symbol: str, meaning: str, dim: int = 3) -> Parameter:
    """Positive numbers that add up to 1."""

    def constrain(x: Any) -> Any:
        weights = ex.exp(x)
        return weights / ex.SUM(weights)

    return Parameter(symbol, meaning, dim, constrain)


# ---- points ---------------------------------------------------------------------------------


class Points(NamedTuple):
    """Unconstrained numbers of all parameters, one point a row, each with a name."""

    names: tuple[str, ...]
    values: np.ndarray


def slices(parameters: dict[str, Parameter]) -> dict[str, slice]:
    """Where each parameter's unconstrained numbers are."""
    out, start = {}, 0
    for key, parameter in parameters.items():
        out[key] = slice(start, start + parameter.size)
        start += parameter.size
    return out


def points(
    parameters: dict[str, Parameter],
    partners: dict[str, str],
    generic: int = 12,
    far_factor: float = 20.0,
    seed: int = 0,
) -> Points:
    """Generic points, then named hard ones: q = p, q near p, far apart, ill-conditioned."""
    rng = np.random.default_rng([seed, *"".join(parameters).encode()])
    where = slices(parameters)
    size = sum(p.size for p in parameters.values())
    rows = [rng.normal(0, 0.5, size) for _ in range(generic)]
    names = [f"generic {n + 1}" for n in range(generic)]

    def add(name: str, change: Callable[[np.ndarray], None]) -> None:
        row = rng.normal(0, 0.5, size)
        change(row)
        rows.append(row)
        names.append(name)

    def equal(row: np.ndarray, separation: float) -> None:
        for left, right in partners.items():
            noise = separation * rng.normal(size=parameters[left].size)
            row[where[left]] = row[where[right]] + noise

    def far(row: np.ndarray) -> None:
        for key, parameter in parameters.items():
            if parameter.location:
                row[where[key]] *= far_factor

    def ill(row: np.ndarray) -> None:
        for key, parameter in parameters.items():
            if parameter.hard is not None:
                row[where[key]] = parameter.hard + 0.1 * row[where[key]]

    if partners:
        add("q = p", lambda row: equal(row, 0.0))
        add("q near p", lambda row: equal(row, 1e-4))
    if any(p.location for p in parameters.values()):
        add("far apart", far)
    if any(p.hard is not None for p in parameters.values()):
        add("condition 1e4", ill)
    return Points(tuple(names), np.array(rows))
