"""Kronecker, circulant and chain pairs of growing size, for `cost_growth`.

A row of `PROGRAMS` says what the size counts, the sizes tried, and a function from a size to
value and gradient of a pair, compiled, as a function without arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kljax

_value_and_grad = jax.value_and_grad(kljax.kl_divergence, argnums=(0, 1))


def _compiled(family: type, make: Callable[[], dict[str, Any]]) -> Callable[[], Any]:
    q, p = (
        family(**{key: jnp.asarray(value, jnp.float32) for key, value in make().items()})
        for _ in range(2)
    )
    program = jax.jit(_value_and_grad).lower(q, p).compile()
    return lambda: jax.block_until_ready(program(q, p))


def _covariances(rng: np.random.Generator, *shape: int) -> np.ndarray:
    root = 0.4 / np.sqrt(shape[-1]) * rng.normal(size=(*shape, shape[-1])) + np.eye(shape[-1])
    return root @ np.swapaxes(root, -1, -2)


def _chain(rng: np.random.Generator, length: int, d: int = 4) -> dict[str, Any]:
    return {
        "initial_loc": rng.normal(size=d),
        "initial_covariance": _covariances(rng, d),
        "transition_matrix": 0.3 * rng.normal(size=(length - 1, d, d)),
        "transition_offset": rng.normal(size=(length - 1, d)),
        "transition_covariance": _covariances(rng, length - 1, d),
    }


def chain(length: int) -> Callable[[], Any]:
    """Two Gauss-Markov chains."""
    rng = np.random.default_rng(length)
    return _compiled(kljax.GaussMarkov, lambda: _chain(rng, length))


def blocks(length: int, d: int = 4) -> Callable[[], Any]:
    """Two block-tridiagonal precisions."""
    rng = np.random.default_rng(length)

    def make() -> dict[str, Any]:
        return {
            "loc": rng.normal(size=(length, d)),
            "precision_diagonal_blocks": 2 * np.eye(d) + _covariances(rng, length, d),
            "precision_lower_blocks": 0.3 * rng.normal(size=(length - 1, d, d)),
        }

    return _compiled(kljax.BlockTridiagonalNormal, make)


def observations(length: int, k: int = 2) -> Callable[[], Any]:
    """The observations of two state-space models."""
    rng = np.random.default_rng(length)

    def make() -> dict[str, Any]:
        seen = {
            "emission_matrix": rng.normal(size=(k, 4)),
            "emission_offset": rng.normal(size=k),
            "emission_covariance": _covariances(rng, k),
        }
        return {**_chain(rng, length), **seen}

    return _compiled(kljax.LinearGaussianObservations, make)


def circulant(n: int) -> Callable[[], Any]:
    """Two circulant covariances, by their rows."""
    rng = np.random.default_rng(n)

    def make() -> dict[str, Any]:
        eigenvalues = np.exp(rng.normal(0, 0.5, n // 2 + 1))
        row = np.fft.irfft(eigenvalues, n)
        row[n // 2 + 1 :] = row[1 : n - n // 2][::-1]
        return {"loc": rng.normal(size=n), "covariance_row": row}

    return _compiled(kljax.CirculantNormal, make)


def matrix(n: int) -> Callable[[], Any]:
    """Two n x n matrix normals."""
    rng = np.random.default_rng(n)

    def make() -> dict[str, Any]:
        return {
            "loc": rng.normal(size=(n, n)),
            "row_covariance": _covariances(rng, n),
            "column_covariance": _covariances(rng, n),
        }

    return _compiled(kljax.MatrixNormal, make)


_LENGTHS = [2**i for i in (6, 9, 10, 11, 12)]
PROGRAMS: dict[str, tuple[str, Sequence[int], Callable[[int], Callable[[], Any]]]] = {
    "chain, d = 4": ("T", _LENGTHS, chain),
    "block-tridiagonal, d = 4": ("T", _LENGTHS, blocks),
    "observations, d = 4": ("T", _LENGTHS, observations),
    "circulant": ("n", [2**i for i in (12, 16, 17, 18, 19)], circulant),
    "matrix normal": ("n", [32, 128, 192, 256, 384], matrix),
}
