"""Every ordered mix of Gaussian families: densely, where no structured path is registered.

A family says once how to write its covariance as a matrix (`register_dense`); every pair of
it with another such family that has no closed form by then is evaluated as

    KL = (tr(S_p^-1 S_q) + |m_q - m_p|^2_p - d + log |S_p| - log |S_q|) / 2

on d x d matrices known to twice the digits (`kljax.dense`), in O(d^3). An event of two axes, a
matrix or a path, is read row by row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from kljax import dense, doubled
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
    """One event: its mean and its covariance matrix, both known to twice the digits.

    Attributes:
        loc: shape of an event; a mean that is given has no low part (`doubled.exactly`).
        covariance: of the event read row by row.
    """

    loc: Doubled
    covariance: Doubled


_DENSE: dict[type, Callable[[Any], DenseGaussian]] = {}


def register_dense(family: type, rule: Callable[[Any], DenseGaussian]) -> None:
    """Lets a Gaussian family mix with all others; call it after its structured pairs.

    Args:
        family: a class made by `kljax.record`.
        rule: function of one event to its mean and its covariance matrix; an event with
            several axes is read in row-major order. The covariance is a `Doubled` whose
            `high` is differentiable and whose `low` has no derivative (`dense.exactly`,
            `outer`, `diagonal`, `add`, `kron`, `covariance` and `inverse` make them).
    """
    _DENSE[family] = rule
    known = {(form.q, form.p) for form in closed_forms()}
    for other in _DENSE:
        for q, p in ((family, other), (other, family)):
            if (q, p) not in known:
                register_kl(q, p, terms=densely_terms, own_axes=True, cost=COST)(densely)
                known.add((q, p))


def _pair(q: Any, p: Any) -> tuple[DenseGaussian, DenseGaussian]:
    left, right = _DENSE[type(q)](q), _DENSE[type(p)](p)
    shapes = left.loc.high.shape, right.loc.high.shape
    if len(shapes[0]) == len(shapes[1]):
        fit = shapes[0] == shapes[1]
    else:
        fit = left.loc.high.size == right.loc.high.size
    if not fit:
        raise ValueError(
            f"q has events of shape {shapes[0]} and p of shape {shapes[1]}; event sizes must "
            "be equal, they are never broadcast. A matrix or a path fits a vector of as many "
            "numbers, its rows one after the other."
        )
    return left, right


def _groups(q: DenseGaussian, p: DenseGaussian) -> tuple[Array, Array]:
    dispersion = dense.dispersion(q.covariance, p.covariance)
    high, low = (a.ravel() - b.ravel() for a, b in zip(q.loc, p.loc, strict=True))
    return dispersion, dense.location(high + low, p.covariance)


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
        dimension=jnp.full_like(trace, left.loc.high.size),
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
    return DenseGaussian(doubled.exactly(x.loc), dense.diagonal(diagonal_structure(x)))


def dense_full(x: MultivariateNormal) -> DenseGaussian:
    """A multivariate normal with its covariance to twice the digits."""
    return DenseGaussian(doubled.exactly(x.loc), dense.covariance(gaussian._structure(x)))


register_dense(MultivariateNormalDiag, dense_diagonal)
register_dense(MultivariateNormal, dense_full)
