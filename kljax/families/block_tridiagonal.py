"""Gaussians with a block-tridiagonal precision matrix, in O(T d^3)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from kljax import distribution, markov, paths, tridiagonal
from kljax._record import Parameter, param, record
from kljax.divergence import register_kl
from kljax.families import gauss_markov
from kljax.families.gauss_markov import GaussMarkov, MarkovTerms
from kljax.families.gaussian_mixes import register_dense
from kljax.markov import Chain, Parts
from kljax.tridiagonal import Blocks


@record
class BlockTridiagonalNormal:
    """The normal distribution of a path x_1, ..., x_T given by its precision matrix.

    The precision of the path read time by time has `precision_diagonal_blocks[t]` on its
    diagonal, `precision_lower_blocks[t]` in block row t + 1 and column t, the transposes above
    the diagonal, and 0 elsewhere: a Gauss-Markov chain, as Kalman smoothers and
    variational posteriors of time series give it.

    Attributes:
        loc: mean, shape (..., T, d).
        precision_diagonal_blocks: symmetric positive definite, shape (..., T, d, d).
        precision_lower_blocks: shape (..., T - 1, d, d). The whole matrix must be positive
            definite; otherwise results are nan.
    """

    loc: Parameter = param("T d")
    precision_diagonal_blocks: Parameter = param(
        "T d d", constraint="positive_definite", default=None
    )
    precision_lower_blocks: Parameter = param("T-1 d d", default=None)

    # Read by `check`.
    together = "have blocks that form a positive definite precision matrix"


def blocks(x: BlockTridiagonalNormal) -> Blocks:
    on, below = x.precision_diagonal_blocks, x.precision_lower_blocks
    if len(below) != len(on) - 1:
        raise ValueError(
            f"precision_lower_blocks has {len(below)} blocks and precision_diagonal_blocks "
            f"{len(on)}; T blocks on the diagonal need T - 1 below it."
        )
    return Blocks(x.loc, 0.5 * on + 0.5 * jnp.swapaxes(on, -1, -2), below)


def _chain(x: BlockTridiagonalNormal | GaussMarkov) -> Chain:
    if isinstance(x, GaussMarkov):
        return gauss_markov.chain(x)
    return tridiagonal.chain(blocks(x))


def _same_length(q: Chain, p: Chain) -> None:
    if len(q.offset) != len(p.offset):
        raise ValueError(
            f"q has {len(q.offset) + 1} time steps and p has {len(p.offset) + 1}; both must "
            "have the same."
        )


def _parts(
    q: BlockTridiagonalNormal | GaussMarkov, p: BlockTridiagonalNormal | GaussMarkov
) -> Parts:
    if isinstance(q, BlockTridiagonalNormal) and isinstance(p, BlockTridiagonalNormal):
        return tridiagonal.compare(blocks(q), blocks(p))
    of_q, of_p = _chain(q), _chain(p)
    _same_length(of_q, of_p)
    return markov.compare(of_q, of_p, markov.marginals(of_q))


def _kl(q: BlockTridiagonalNormal, p: BlockTridiagonalNormal) -> Array:
    """KL = KL(x_1) + sum_t E_q KL(x_(t+1) | x_t), by block elimination."""
    parts = _parts(q, p)
    return jnp.sum(parts.dispersion) + jnp.sum(parts.location)


def _terms(q: BlockTridiagonalNormal, p: BlockTridiagonalNormal) -> MarkovTerms:
    return gauss_markov.terms(_parts(q, p), gauss_markov.size(_chain(q)))


def _half_log_normalizer(x: BlockTridiagonalNormal | GaussMarkov) -> Array:
    if isinstance(x, GaussMarkov):
        return gauss_markov.half_log_normalizer(gauss_markov.chain(x))
    return markov.log_normalizer(x.loc.size, tridiagonal.half_log_det(blocks(x)))


def _cross_entropy(q: BlockTridiagonalNormal, p: BlockTridiagonalNormal) -> Array:
    found = _terms(q, p)
    return _half_log_normalizer(p) + (0.5 * found.trace + found.location)


def _log_prob(x: BlockTridiagonalNormal, point: Array) -> Array:
    half_square = tridiagonal.half_square(blocks(x), point - x.loc)
    return -(_half_log_normalizer(x) + half_square)


def _entropy(x: BlockTridiagonalNormal) -> Array:
    return 0.5 * x.loc.size + _half_log_normalizer(x)


def _variance(x: BlockTridiagonalNormal) -> Array:
    return jnp.diagonal(tridiagonal.covariances(blocks(x)), axis1=-2, axis2=-1)


distribution.register_distribution(
    BlockTridiagonalNormal,
    log_prob=_log_prob,
    sample=lambda x, key: markov.sample(_chain(x), key),
    entropy=_entropy,
    mean=lambda x: x.loc,
    variance=_variance,
    covariance=lambda x: markov.covariance(_chain(x)),
)

for _q, _p in (
    (BlockTridiagonalNormal, BlockTridiagonalNormal),
    (BlockTridiagonalNormal, GaussMarkov),
    (GaussMarkov, BlockTridiagonalNormal),
):
    register_kl(_q, _p, terms=_terms, cross_entropy=_cross_entropy, cost="O(T d^3)")(_kl)
register_dense(
    BlockTridiagonalNormal,
    lambda x: gauss_markov.dense_path(paths.of_blocks(blocks(x)), len(x.loc)),
)
