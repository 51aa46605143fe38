"""Every ordered mix of Gaussian families: densely, where no structured path is registered.

A family says once how to write its covariance as a matrix (`register_dense`); every pair of
it with another such family that has no closed form by then is evaluated as

    KL = (tr(S_p^-1 S_q) + |m_q - m_p|^2_p - d + log |S_p| - log |S_q|) / 2

on d x d matrices known to twice the digits (`kljax.dense`), in O(d^3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from kljax import dense
from kljax.divergence import closed_forms, register_kl
from kljax.doubled import Doubled
from kljax.families import gaussian
from kljax.families.gaussian import (
    GaussianTerms,
    MultivariateNormal,
    MultivariateNormalDiag,
)
from kljax.structure import Diagonal

COST = "O(d^3), dense"


class DenseGaussian(NamedTuple):
    """One event with a vector mean and a covariance matrix, known to twice the digits."""

    loc: Array
    covariance: Doubled


_DENSE: dict[type, Callable[[Any], DenseGaussian]] = {}


def register_dense(family: type, rule: Callable[[Any], DenseGaussian]) -> None:
    """Lets a Gaussian family mix with all others; call it after its structured pairs.

    Args:
        family: a class made by `kljax.record`.
        rule: function of one event to its mean, as a vector, and its covariance matrix;
            an event with several axes is flattened in row-major order. The covariance is a
            `Doubled` whose `high` is differentiable and whose `low` has no derivative
            (`dense.exactly`, `outer`, `diagonal`, `add` and `inverse` make them).
    """
    _DENSE[family] = rule
    known = {(form.q, form.p) for form in closed_forms()}
    for other in _DENSE:
        for q, p in ((family, other), (other, family)):
            if (q, p) not in known:
                register_kl(q, p, terms=densely_terms, cost=COST)(densely)
                known.add((q, p))


def _pair(q: Any, p: Any) -> tuple[DenseGaussian, DenseGaussian]:
    left, right = _DENSE[type(q)](q), _DENSE[type(p)](p)
    if left.loc.shape != right.loc.shape:
        raise ValueError(
            f"q has events of {left.loc.size} numbers and p of {right.loc.size}; event sizes "
            "must be equal, they are never broadcast."
        )
    return left, right


def _groups(q: DenseGaussian, p: DenseGaussian) -> tuple[Array, Array]:
    dispersion = dense.dispersion(q.covariance, p.covariance)
    return dispersion, dense.location(q.loc - p.loc, p.covariance)


def densely(q: Any, p: Any) -> Array:
    """KL = (tr(S_p^-1 S_q) - d + log |S_p| - log |S_q| + |m_q - m_p|^2_p) / 2."""
    dispersion, location = _groups(*_pair(q, p))
    return dispersion + location


def densely_terms(q: Any, p: Any) -> GaussianTerms:
    """The parts of `densely`."""
    left, right = _pair(q, p)
    dispersion, location = _groups(left, right)
    trace, log_det = dense.trace_and_log_det(left.covariance, right.covariance)
    return GaussianTerms(
        trace=trace,
        mahalanobis=2 * location,
        dimension=jnp.full_like(trace, left.loc.size),
        log_det=log_det,
        dispersion=dispersion,
        location=location,
    )


# ---- the families of gaussian.py ------------------------------------------------------------


def diagonal_structure(x: MultivariateNormalDiag) -> Diagonal:
    """The covariance of one event, in the parametrization that was given."""
    structure = gaussian._structure(x)
    assert isinstance(structure, Diagonal)
    return structure


def dense_diagonal(x: MultivariateNormalDiag) -> DenseGaussian:
    """A diagonal Gaussian with its covariance as a matrix."""
    return DenseGaussian(x.loc, dense.diagonal(diagonal_structure(x)))


def dense_full(x: MultivariateNormal) -> DenseGaussian:
    """A multivariate normal with its covariance to twice the digits."""
    if x.precision_matrix is not None:
        return DenseGaussian(x.loc, dense.inverse(x.precision_matrix))
    if x.covariance_matrix is not None:
        return DenseGaussian(x.loc, dense.exactly(x.covariance_matrix))
    return DenseGaussian(x.loc, dense.outer(jnp.tril(x.scale_tril)))


register_dense(MultivariateNormalDiag, dense_diagonal)
register_dense(MultivariateNormal, dense_full)
