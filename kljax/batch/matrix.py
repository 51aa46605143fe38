"""All pairs of two batches: the matrix of divergences, or of every row its smallest entries.

Pairs are taken in panels. Where the matrix product of `moments` is certain to be right to the
last digit it is the answer; a tile that holds a pair where it is not (q almost p, or a matrix
of large condition) is computed by the rule of the pair, as `kl_divergence` would.
"""

from __future__ import annotations

import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from kljax import _batches, _record, divergence
from kljax.batch import nearest, panels, tiles

_BLOCK_BYTES = 1 << 26


def pairwise(
    q: Any, p: Any, /, *, symmetrized: bool = False, block_bytes: int = _BLOCK_BYTES
) -> Array:
    """KL(q_i ‖ p_j) in nats, of every pair.

    For `Normal`, `MultivariateNormalDiag` and `MultivariateNormal` each q and each p is
    factorized once and the matrix is one product of float64 matrices. An entry of it is used
    where a bound on its rounding, computed beside it, is below 2^-24 of its value (2^-40 for
    float64 parameters); the others are computed by the rule of `kl_divergence`. So the
    relative error is at most 2^-23 plus that of `kl_divergence`, an entry is never negative,
    and exactly 0 where q_i is p_j. Derivatives are products too where an estimate of their
    rounding allows it, else by the rule. Other registered pairs are computed by their rule.

    Args:
        q: distributions with one batch axis, of size N.
        p: distributions with one batch axis, of size M.
        symmetrized: KL(q_i ‖ p_j) + KL(p_j ‖ q_i), Jeffreys' divergence, instead.
        block_bytes: about how many bytes to use beyond the arguments, the result and a
            float64 factor of each q and p.

    Returns:
        Array of shape (N, M), in float32 (float64 if a parameter is float64).

    Raises:
        TypeError: if an argument is no distribution, the pair has no closed form or
            block_bytes is no whole number.
        ValueError: if there is not exactly one batch axis, or events differ in size.
    """
    divergence.closed_form("pairwise", q, p)
    if symmetrized:
        divergence.closed_form("pairwise", p, q)
    block_bytes = byte_count("block_bytes", block_bytes)
    return _batches.call(
        _pairwise, q, p, symmetrized=bool(symmetrized), block_bytes=block_bytes
    )


@jax.jit(static_argnames=("symmetrized", "block_bytes"))
def _pairwise(q: Any, p: Any, *, symmetrized: bool, block_bytes: int) -> Array:
    q, p = _prepared("pairwise", q, p)
    matrix = panels.matrix(tiles.plan(q, p, block_bytes), q, p)
    if not symmetrized:
        return matrix
    return matrix + panels.matrix(tiles.plan(p, q, block_bytes), p, q).T


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
        TypeError: if an argument is no distribution, the pair has no closed form, or k or
            block_bytes is no whole number.
        ValueError: as for `pairwise`, or if k is out of range.
    """
    divergence.closed_form("top_k", q, p)
    block_bytes = byte_count("block_bytes", block_bytes)
    return _batches.call(_top_k, q, p, k=_whole("k", k), block_bytes=block_bytes)


@jax.jit(static_argnames=("k", "block_bytes"))
def _top_k(q: Any, p: Any, *, k: int, block_bytes: int) -> tuple[Array, Array]:
    q, p = _prepared("top_k", q, p)
    if not 1 <= k <= tiles.length(p):
        raise ValueError(
            f"top_k got k = {k}; it must be between 1 and the {tiles.length(p)} of p."
        )
    return nearest.top_k(tiles.plan(q, p, block_bytes), k, q, p)


def _whole(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number; got {value!r}.") from None


def byte_count(name: str, value: Any) -> int:
    """The argument as a number of bytes, or a sentence."""
    count = _whole(name, value)
    if count <= 0:
        raise ValueError(f"{name} must be positive; got {count}.")
    return count


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
