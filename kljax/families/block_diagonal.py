"""Block-diagonal Gaussians: n independent groups of b coordinates each.

KL(q ‖ p) is the sum over the blocks of the KL of two multivariate normals, in O(n b^3). Where
the blocks of q are of another size than those of p, they are compared densely.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from kljax import distribution, doubled
from kljax._record import Parameter, param, record
from kljax.divergence import closed_form, register_kl
from kljax.doubled import Doubled
from kljax.families.gaussian import (
    GaussianTerms,
    MultivariateNormal,
    MultivariateNormalDiag,
)
from kljax.families.gaussian_mixes import (
    DenseGaussian,
    dense_full,
    densely,
    densely_terms,
    register_dense,
)
from kljax.families.isotropic import register_as_diagonal


@record
class BlockDiagonalNormal:
    """The normal distribution of a vector whose covariance matrix is block-diagonal.

    The blocks are n square matrices of b rows, in the order of the coordinates: d = n b.
    Blocks of several sizes are several distributions, whose divergences add up.

    Attributes:
        loc: mean, shape (..., n b).
        block_scale_tril: lower triangular Cholesky factors of the diagonal blocks of the
            covariance matrix, with positive diagonals, shape (..., n, b, b).
        block_covariance: the blocks, symmetric positive definite, instead of
            `block_scale_tril`.
        block_precision: their inverses, instead of `block_scale_tril`.
    """

    loc: Parameter = param("d")
    block_scale_tril: Parameter = param(
        "*n *b *b", constraint="lower_triangular", one_of="spread", default=None
    )
    block_covariance: Parameter = param(
        "*n *b *b",
        constraint="positive_definite",
        one_of="spread",
        default=None,
        kw_only=True,
    )
    block_precision: Parameter = param(
        "*n *b *b",
        constraint="positive_definite",
        one_of="spread",
        default=None,
        kw_only=True,
    )

    @staticmethod
    def check_sizes(name: str, loc: tuple[int, ...], **blocks: tuple[int, ...]) -> None:
        """The blocks cover the mean."""
        ((field, (n, b, _)),) = blocks.items()
        if n * b != loc[0]:
            raise ValueError(
                f"{name}.{field} has {n} blocks of {b} rows, {n * b} coordinates in all, but "
                f"{name}.loc has {loc[0]}; give as many."
            )


def _blocks(x: BlockDiagonalNormal) -> Array:
    given = (x.block_scale_tril, x.block_covariance, x.block_precision)
    return next(value for value in given if value is not None)


def split(x: BlockDiagonalNormal) -> MultivariateNormal:
    """The blocks as a batch of n multivariate normals."""
    return MultivariateNormal(
        x.loc.reshape(_blocks(x).shape[:2]),
        x.block_scale_tril,
        covariance_matrix=x.block_covariance,
        precision_matrix=x.block_precision,
    )


def _in_blocks(x: Any, shape: tuple[int, ...]) -> Any:
    """A block-diagonal or diagonal Gaussian as a batch of its blocks."""
    if isinstance(x, BlockDiagonalNormal):
        return split(x)
    return jax.tree.map(lambda field: field.reshape(shape), x)


def _shape(x: BlockDiagonalNormal) -> tuple[int, ...]:
    """(n, b)."""
    return _blocks(x).shape[:2]


def _shared_shape(q: Any, p: Any) -> tuple[int, ...] | None:
    """(n, b) of the pair, or None where the blocks of q are not those of p."""
    shapes = {_shape(x) for x in (q, p) if isinstance(x, BlockDiagonalNormal)}
    return shapes.pop() if len(shapes) == 1 else None


def _over_blocks(name: str, q: Any, p: Any, shape: tuple[int, ...]) -> Any:
    """A rule of the closed form of two blocks, summed over them."""
    q, p = _in_blocks(q, shape), _in_blocks(p, shape)
    rule = getattr(closed_form("kl_divergence", q, p), name)
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), jax.vmap(rule)(q, p))


def _kl(q: Any, p: Any) -> Array:
    """KL = sum over the blocks of KL(block of q ‖ block of p)."""
    shape = _shared_shape(q, p)
    return densely(q, p) if shape is None else _over_blocks("kl", q, p, shape)


def _terms(q: Any, p: Any) -> GaussianTerms:
    shape = _shared_shape(q, p)
    return densely_terms(q, p) if shape is None else _over_blocks("terms", q, p, shape)


for _q, _p in (
    (BlockDiagonalNormal, BlockDiagonalNormal),
    (BlockDiagonalNormal, MultivariateNormalDiag),
    (MultivariateNormalDiag, BlockDiagonalNormal),
):
    register_kl(_q, _p, terms=_terms, cost="O(n b^3)")(_kl)
register_as_diagonal(BlockDiagonalNormal, "O(n b^3)")


def _matrix(blocks: Array) -> Array:
    """The matrix of diagonal blocks, from an array (n, b, b)."""
    n, b, _ = blocks.shape
    place = jnp.eye(n, dtype=bool)[:, None, :, None]
    return jnp.where(place, blocks[:, :, None, :], 0).reshape(n * b, n * b)


def _dense(x: BlockDiagonalNormal) -> DenseGaussian:
    blocks = jax.vmap(dense_full)(split(x)).covariance
    return DenseGaussian(doubled.exactly(x.loc), Doubled(*map(_matrix, blocks)))


register_dense(BlockDiagonalNormal, _dense)


def _each(name: str, x: BlockDiagonalNormal, *arguments: Array) -> Array:
    """A rule of a multivariate normal, for every block."""
    blocks = split(x)
    return jax.vmap(distribution._rule(name, blocks))(blocks, *arguments)


def _log_prob(x: BlockDiagonalNormal, point: Array) -> Array:
    return jnp.sum(_each("log_prob", x, point.reshape(_shape(x))))


def _sample(x: BlockDiagonalNormal, key: Array) -> Array:
    return _each("sample", x, jax.random.split(key, _shape(x)[0])).reshape(x.loc.shape)


distribution.register_distribution(
    BlockDiagonalNormal,
    log_prob=_log_prob,
    sample=_sample,
    entropy=lambda x: jnp.sum(_each("entropy", x)),
    mean=lambda x: x.loc,
    variance=lambda x: _each("variance", x).reshape(x.loc.shape),
    covariance=lambda x: _matrix(_each("covariance", x)),
)
