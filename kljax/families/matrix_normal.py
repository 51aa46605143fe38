"""The matrix normal: KL in matrices of n x n and m x m, where the law has n m coordinates.

dispersion = sum over the products of the two quotients' entries, see `kronecker`
location   = |Cu_p^-1 (M_q - M_p) Cv_p^-T|^2 / 2
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from kljax import dense, distribution, doubled, kronecker, linalg, special
from kljax._record import Parameter, param, record
from kljax.divergence import register_kl
from kljax.families.gaussian import GaussianTerms
from kljax.families.gaussian_mixes import DenseGaussian, register_dense
from kljax.kronecker import Factors
from kljax.structure import Covariance, ScaleTril, Structure


@record
class MatrixNormal:
    """The normal distribution of a matrix X, Cov(X_ij, X_kl) = row[i, k] column[j, l].

    The rows of X vary together as `row_covariance` says, its columns as
    `column_covariance`; X read row by row has the covariance kron(row, column).
    (c row, column / c) is the same distribution.

    Attributes:
        loc: mean, shape (..., n, m).
        row_covariance: symmetric positive definite, shape (..., n, n).
        row_scale_tril: its lower triangular factor, instead of `row_covariance`.
        column_covariance: symmetric positive definite, shape (..., m, m).
        column_scale_tril: its lower triangular factor, instead of `column_covariance`.

    Source: Gupta & Nagar, Matrix Variate Distributions, 2000.
    """

    loc: Parameter = param("n m")
    row_covariance: Parameter = param(
        "n n", constraint="positive_definite", one_of="rows", default=None
    )
    column_covariance: Parameter = param(
        "m m", constraint="positive_definite", one_of="columns", default=None
    )
    row_scale_tril: Parameter = param(
        "n n", constraint="lower_triangular", one_of="rows", default=None, kw_only=True
    )
    column_scale_tril: Parameter = param(
        "m m", constraint="lower_triangular", one_of="columns", default=None, kw_only=True
    )


def _structure(covariance: Array | None, scale_tril: Array | None) -> Structure:
    if covariance is not None:
        return Covariance(linalg.symmetrize(covariance))
    assert scale_tril is not None, "a record without a spread is refused before any rule"
    return ScaleTril(scale_tril)


def _structures(x: MatrixNormal) -> tuple[Structure, Structure]:
    return (
        _structure(x.row_covariance, x.row_scale_tril),
        _structure(x.column_covariance, x.column_scale_tril),
    )


def _factors(x: MatrixNormal) -> Factors:
    return kronecker.factorize(*_structures(x))


def _kl(q: MatrixNormal, p: MatrixNormal) -> Array:
    """KL = (|M|^2 |N|^2 - n m) / 2 - log |M (x) N| + |Cu_p^-1 (m_q - m_p) Cv_p^-T|^2 / 2."""
    of_p = _factors(p)
    dispersion = kronecker.dispersion(*kronecker.quotients(_factors(q), of_p))
    return dispersion + kronecker.location(q.loc - p.loc, of_p)


def _terms(q: MatrixNormal, p: MatrixNormal) -> GaussianTerms:
    of_p = _factors(p)
    rows, columns = kronecker.quotients(_factors(q), of_p)
    location = kronecker.location(q.loc - p.loc, of_p)
    trace = kronecker.trace(rows, columns)
    return GaussianTerms(
        trace=trace,
        mahalanobis=2 * location,
        dimension=jnp.full_like(trace, q.loc.size),
        log_det=kronecker.log_det(rows, columns),
        dispersion=kronecker.dispersion(rows, columns),
        location=location,
    )


def _half_log_normalizer(x: MatrixNormal) -> Array:
    """(n m log 2 pi + log |S|) / 2."""
    return 0.5 * x.loc.size * special.LOG_2PI + kronecker.half_log_det(_factors(x))


def _cross_entropy(q: MatrixNormal, p: MatrixNormal) -> Array:
    terms = _terms(q, p)
    return _half_log_normalizer(p) + (0.5 * terms.trace + terms.location)


def _log_prob(x: MatrixNormal, point: Array) -> Array:
    half_square = kronecker.location(point - x.loc, _factors(x))
    return -(_half_log_normalizer(x) + half_square)


def _sample(x: MatrixNormal, key: Array) -> Array:
    """Loc + Cu noise Cv^T."""
    noise = jax.random.normal(key, x.loc.shape, x.loc.dtype)
    rows, columns = (jnp.tril(f.factor) for f in _factors(x))
    return x.loc + linalg.matmul(linalg.matmul(rows, noise), columns.T)


def _entropy(x: MatrixNormal) -> Array:
    return 0.5 * x.loc.size + _half_log_normalizer(x)


def _variance(x: MatrixNormal) -> Array:
    rows, columns = (f.structure.variances(f.factor) for f in _factors(x))
    return rows[:, None] * columns[None, :]


def _covariance(x: MatrixNormal) -> Array:
    """kron(row, column), for X read row by row."""
    rows, columns = (f.structure.dense(f.factor) for f in _factors(x))
    return jnp.kron(rows, columns)


distribution.register_distribution(
    MatrixNormal,
    log_prob=_log_prob,
    sample=_sample,
    entropy=_entropy,
    mean=lambda x: x.loc,
    variance=_variance,
    covariance=_covariance,
)

register_kl(
    MatrixNormal,
    MatrixNormal,
    terms=_terms,
    cross_entropy=_cross_entropy,
    cost="O(n^3 + m^3 + n m (n + m))",
)(_kl)


def _dense(x: MatrixNormal) -> DenseGaussian:
    covariance = dense.kron(*map(dense.covariance, _structures(x)))
    return DenseGaussian(doubled.exactly(x.loc), covariance)


register_dense(MatrixNormal, _dense)
