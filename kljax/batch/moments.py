"""Many Gaussians against many as one matrix product, with a bound on its rounding.

The cross entropy is linear in the moments of q; its coefficients are the natural parameters of
p (Wainwright & Jordan 2008, section 3). With P = S_p^-1 and the means from a common center,

    2 KL_ij = <E_i[x x^T], P_j> - 2 E_i[x]^T P_j m_j + m_j^T P_j m_j
              - d + log |S_p| - log |S_q|,

so each q and each p is factorized once and N x M divergences are one product of an N x K and a
K x M matrix, K = 2 d for diagonals and about d (d + 3) / 2 otherwise. These terms cancel where
q is almost p. The product is formed in float64, and `product` says where rounding can have
moved it too far: the standard bounds for inner products, Cholesky factors and triangular
inverses (Higham 2002, chapters 3, 8 and 10), times sums of absolute values that cost d
operations a pair. Derivatives are products too; what rounding does to them is estimated by the
same sums.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from kljax import _batches, linalg
from kljax.batch import halves
from kljax.families.gaussian import MultivariateNormal, MultivariateNormalDiag, Normal

_UNIT = 2.0**-53


class Side(NamedTuple):
    """What the product needs of the q or of the p; n distributions of d coordinates.

    Attributes:
        features: (n, K); of q the moments, of p the natural parameters.
        diagonal: (n, d); of q the second moments, of p the diagonal of P.
        constant: (n,); of p m^T P m, of q 0.
        reach: (n,); of p the sum of P_aa m_a^2, of q 0.
        log_det: (n,); log |S|.
        log_size: (n,); the sum of the absolute logarithms that make up log |S|.
        condition: (n,); how much a Cholesky factor or an inverse amplifies rounding.
    """

    features: Array
    diagonal: Array
    constant: Array
    reach: Array
    log_det: Array
    log_size: Array
    condition: Array


def available(q: Any, p: Any) -> bool:
    """Whether the pair has this form."""
    return {type(q), type(p)} <= {Normal, MultivariateNormalDiag, MultivariateNormal}


def sides(q: Any, p: Any) -> tuple[Side, Side]:
    """Both sides, in float64; every field of q and p has one batch axis."""
    dense = MultivariateNormal in (type(q), type(p))
    with jax.enable_x64(True):
        q, p = (_as_vector(jax.tree.map(lambda x: x.astype(np.float64), x)) for x in (q, p))
        # The numbers being products of means, a far origin would cost their digits.
        center = _center(lax.stop_gradient(p.loc))
        q, p = (dataclasses.replace(x, loc=x.loc - center) for x in (q, p))
        of_q, of_p = (_dense_q, _dense_p) if dense else (_diagonal_q, _diagonal_p)
        return _lifted(of_q, q), _lifted(of_p, p)


def _center(loc: Array) -> Array:
    """The mean; of what is finite where one invalid row would take it from the others."""
    mean = jnp.mean(loc, axis=0, keepdims=True)

    def of_finite() -> Array:
        some = jnp.mean(loc, axis=0, keepdims=True, where=jnp.isfinite(loc))
        return jnp.where(jnp.isfinite(some), some, 0.0)

    return lax.cond(jnp.all(jnp.isfinite(mean)), lambda: mean, of_finite)


class Product(NamedTuple):
    """Every KL(q_i ‖ p_j) in nats as the product gives it, and what rounding may have done.

    Attributes:
        value: shape (N, M).
        error: a bound on the absolute error of the value.
        error_of_derivative: by the same sums for the derivative, measured in the spreads of q
            and p. Its length is about the value or, where that is below 1, the square root of
            it: if q is almost p it keeps more digits than the value.
    """

    value: Array
    error: Array
    error_of_derivative: Array

    def doubtful(self, tolerance: float) -> Array:
        """Where the value may be off by more, relatively. Moments may have overflowed."""
        with jax.enable_x64(True):
            return ~((self.error <= tolerance * self.value) & (self.value < jnp.inf))

    def steep(self, tolerance: float) -> Array:
        """Where the derivative may be."""
        with jax.enable_x64(True):
            length = jnp.maximum(self.value, jnp.sqrt(self.value))
            return ~((self.error_of_derivative <= tolerance * length) & (length < jnp.inf))


def product(q: Side, p: Side) -> Product:
    """The divergences, in float64."""
    with jax.enable_x64(True):
        value, doubled = _value(q, p)
        rounded = _rounding(q, p, doubled)
        size, width = q.diagonal.shape[1], q.features.shape[1]
        every = width + 4 * size + 16
        return Product(value, rounded(every, every), rounded(size + 16, 0))


def divergences(q: Side, p: Side) -> Array:
    """Every KL(q_i ‖ p_j), however rounded."""
    with jax.enable_x64(True):
        return _value(q, p)[0]


def _value(q: Side, p: Side) -> tuple[Array, Array]:
    """Every divergence, and its trace and Mahalanobis term, doubled."""
    doubled = _outer(q.features, p.features) + p.constant[None, :]
    size = q.diagonal.shape[1]
    return 0.5 * ((doubled - size) + (p.log_det[None, :] - q.log_det[:, None])), doubled


def _rounding(q: Side, p: Side, doubled: Array) -> Callable[[int, int], Array]:
    """The bound, as a function of how many roundings a term and a logarithm go through.

    `doubled` is the trace and Mahalanobis term. With R = sum_a P_aa E[x_a^2] the absolute
    terms of the product add up to at most 2 r (R + reach), by Cauchy and Schwarz; r = 1 for
    diagonals, where moreover R <= 2 doubled + 2 reach, and r = d for matrices.
    """
    size, width = q.diagonal.shape[1], q.features.shape[1]
    if width == 2 * size:
        terms, reach = 4 * doubled, 6 * p.reach
    else:
        terms, reach = 2 * size * _outer(q.diagonal, p.diagonal), 2 * size * p.reach
    conditions = _sums(*(8 * (size + 2) * _UNIT * x.condition for x in (q, p)))

    def bound(of_terms: int, of_logarithms: int) -> Array:
        of_q = of_logarithms * q.log_size
        of_p = of_logarithms * (p.log_size + size) + of_terms * reach
        rest = _sums(_UNIT * of_q, _UNIT * of_p)
        return (of_terms * _UNIT) * terms + rest + conditions * (doubled + size)

    return bound


def _sums(of_q: Array, of_p: Array) -> Array:
    """A number of each q plus a number of each p, which are computed once."""
    return linalg.settled(of_q)[:, None] + linalg.settled(of_p)[None, :]


def _outer(a: Array, b: Array) -> Array:
    return lax.dot_general(a, b, (((1,), (1,)), ((), ())), precision=lax.Precision.HIGHEST)


def _lifted(rule: Callable[[Any], Side], x: Any) -> Side:
    """The rule over the batch; an invalid value makes its whole row nan."""
    return _batches.over_batches(rule, {"x": x})


def _as_vector(x: Any) -> Any:
    """A normal distribution of a number as one of a vector of length 1."""
    if not isinstance(x, Normal):
        return x
    fields = jax.tree.map(lambda value: value[:, None], x)
    return MultivariateNormalDiag(
        fields.loc,
        fields.scale,
        log_variance=fields.log_variance,
        variance=fields.variance,
    )


# ---- diagonals ------------------------------------------------------------------------------


def _variance(x: MultivariateNormalDiag) -> tuple[Array, Array]:
    """Variances and their logarithms."""
    if x.log_variance is not None:
        return jnp.exp(x.log_variance), x.log_variance
    if x.variance is not None:
        return x.variance, jnp.log(x.variance)
    return x.scale_diag * x.scale_diag, 2 * jnp.log(x.scale_diag)


def _diagonal_q(x: MultivariateNormalDiag) -> Side:
    variance, log_variance = _variance(x)
    second = variance + x.loc * x.loc
    zero = jnp.zeros(())
    return Side(
        features=jnp.concatenate([second, x.loc]),
        diagonal=second,
        constant=zero,
        reach=zero,
        log_det=jnp.sum(log_variance),
        log_size=jnp.sum(jnp.abs(log_variance)),
        condition=zero,
    )


def _diagonal_p(x: MultivariateNormalDiag) -> Side:
    variance, log_variance = _variance(x)
    precision = 1 / variance
    weighted = precision * x.loc
    square = jnp.sum(weighted * x.loc)
    return Side(
        features=jnp.concatenate([precision, -2 * weighted]),
        diagonal=precision,
        constant=square,
        reach=square,
        log_det=jnp.sum(log_variance),
        log_size=jnp.sum(jnp.abs(log_variance)),
        condition=jnp.zeros(()),
    )


# ---- matrices -------------------------------------------------------------------------------


class _Matrix(NamedTuple):
    """A covariance or its inverse, as needed, with log |S| and what rounding does to them."""

    blocks: halves.Blocks
    log_det: Array
    log_size: Array
    condition: Array


def _dense_q(x: MultivariateNormal | MultivariateNormalDiag) -> Side:
    s = _covariance(x)
    top, bottom = halves.split(x.loc[:, None])
    second = halves.Blocks(
        s.blocks.first + top * top.T,
        s.blocks.across + bottom * top.T,
        s.blocks.last + bottom * bottom.T,
    )
    zero = jnp.zeros(())
    return Side(
        features=jnp.concatenate([halves.packed(second, 1.0), x.loc]),
        diagonal=halves.diagonal_of(second),
        constant=zero,
        reach=zero,
        log_det=s.log_det,
        log_size=s.log_size,
        condition=s.condition,
    )


def _dense_p(x: MultivariateNormal | MultivariateNormalDiag) -> Side:
    s = _precision(x)
    (first, across, last), (top, bottom) = s.blocks, halves.split(x.loc[:, None])
    weighted = jnp.concatenate(
        [
            halves.product(top.T, first) + halves.product(bottom.T, across),
            halves.product(across, top).T + halves.product(bottom.T, last),
        ],
        axis=1,
    ).reshape(-1)
    on = halves.diagonal_of(s.blocks)
    return Side(
        features=jnp.concatenate([halves.packed(s.blocks, 2.0), -2 * weighted]),
        diagonal=on,
        constant=jnp.sum(weighted * x.loc),
        reach=jnp.sum(on * x.loc * x.loc),
        log_det=s.log_det,
        log_size=s.log_size,
        condition=s.condition,
    )


def _covariance(x: MultivariateNormal | MultivariateNormalDiag) -> _Matrix:
    if isinstance(x, MultivariateNormalDiag):
        return _from_diagonal(x, 1.0)
    if x.precision_matrix is not None:
        return _inverse(*_factor(x.precision_matrix), -2.0)
    if x.covariance_matrix is not None:
        return _itself(linalg.symmetrize(x.covariance_matrix), 2.0)
    lower = x.scale_tril * np.tri(x.scale_tril.shape[0])
    return _Matrix(halves.square(lower), *_logarithms(lower, 2.0), jnp.zeros(()))


def _precision(x: MultivariateNormal | MultivariateNormalDiag) -> _Matrix:
    if isinstance(x, MultivariateNormalDiag):
        return _from_diagonal(x, -1.0)
    if x.precision_matrix is not None:
        return _itself(linalg.symmetrize(x.precision_matrix), -2.0)
    if x.covariance_matrix is not None:
        return _inverse(*_factor(x.covariance_matrix), 2.0)
    return _inverse(x.scale_tril, _skeel(x.scale_tril), 2.0)


def _from_diagonal(x: MultivariateNormalDiag, power: float) -> _Matrix:
    variance, log_variance = _variance(x)
    return _Matrix(
        halves.blocks(linalg.on_diagonal(variance if power > 0 else 1 / variance)),
        jnp.sum(log_variance),
        jnp.sum(jnp.abs(log_variance)),
        jnp.zeros(()),
    )


def _itself(matrix: Array, sign: float) -> _Matrix:
    """A matrix that is used as it was given; its factor gives log |S|."""
    factor, (_, condition) = _factor(matrix)
    return _Matrix(halves.blocks(matrix), *_logarithms(factor, sign), condition)


def _inverse(factor: Array, skeel: tuple[halves.Blocks, Array], sign: float) -> _Matrix:
    """(factor factor^T)^-1."""
    inverse, condition = skeel
    return _Matrix(halves.square_of_transposed(inverse), *_logarithms(factor, sign), condition)


def _factor(matrix: Array) -> tuple[Array, tuple[halves.Blocks, Array]]:
    factor = halves.cholesky(linalg.symmetrize(matrix))
    return factor, _skeel(factor)


def _skeel(lower: Array) -> tuple[halves.Blocks, Array]:
    """The inverse X, and at least | |X| |lower| |_F^2, which no scaling of rows changes.

    That norm is Skeel's condition (1979); the rows' sums stand for their lengths.
    """
    inverse = halves.inverse_lower(lower)
    sums = halves.product(jnp.abs(lower), jnp.ones_like(lower[:, :1]))
    of_first, of_last = halves.split(sums)
    above = halves.product(jnp.abs(inverse.first), of_first)
    below = halves.product(jnp.abs(inverse.across), of_first)
    below = below + halves.product(jnp.abs(inverse.last), of_last)
    return inverse, jnp.sum(above * above) + jnp.sum(below * below)


def _logarithms(factor: Array, sign: float) -> tuple[Array, Array]:
    """Log |S| and the sum of absolute logarithms, for S = (factor factor^T)^(sign / 2)."""
    logarithms = jnp.log(halves.diagonal(factor))
    return sign * jnp.sum(logarithms), 2 * jnp.sum(jnp.abs(logarithms))
