"""Diagonal plus low rank, S = D + W W^T, compared in O(d r^2) without a d x d array.

In the units of p's diagonal, V = D_p^(-1/2) W_p, U = D_p^(-1/2) W_q, Delta = D_q / D_p, and

    E = U - V,  delta = Delta - 1,  tau = 1 - 1 / Delta,  h(x) = x - log(1 + x),
    C = I + V^T V,  C_q = I + U^T Delta^-1 U,  P = I - V C^-1 V^T = (I + V V^T)^-1,
    R = L^-1 (C_q - C) L^-T  with  C = L L^T,

the divergence of the covariances is (own arrangement)

    2 dispersion = sum_i h(delta_i) + sum h(eigenvalues of R)
                   + tr((I - C^-1) (E^T P^2 E + Z^T Z)) - tr(C^-1 Z^T C Z)
                   + tr(C^-1 (E^T tau V + V^T tau E + E^T tau E - V^T delta tau V)),

with Z = C^-1 V^T E. Every term is of second order in the difference of q and p, so near pairs
keep their digits. Far apart the two determinants are taken by themselves. Two descriptions of
one distribution (a factor with its columns exchanged, a column that stands for a part of the
diagonal) have terms that are large beside their sum; those pairs, and only those, are
compared once more in a basis of what both factors span (`subspace`).
Sources: Woodbury and the matrix determinant lemma, Golub & Van Loan 2013, 2.1.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from kljax import coordinates, dense, linalg, special, subspace
from kljax.doubled import Doubled
from kljax.structure import Diagonal

# A sum of terms more than this many times its own size is not trusted.
_CANCELLATION = 32


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class LowRank:
    """The covariance D + W W^T of one event.

    Attributes:
        diagonal: D, in the numbers that its user gave.
        factor: W, shape (d, r); r may be 0 and differ between q and p.
    """

    diagonal: Diagonal
    factor: Array


def from_diagonal(diagonal: Diagonal) -> LowRank:
    """D alone: rank 0."""
    return LowRank(diagonal, jnp.zeros((diagonal.value.shape[0], 0), diagonal.value.dtype))


# ---- the pair in the units of p's diagonal --------------------------------------------------


class _Pair(NamedTuple):
    """Rows are columns of the factors: shape (r, d), the fast layout."""

    v: Array
    u: Array
    e: Array
    """U - V, formed before any rounding."""
    log_ratio: Array
    """log Delta."""
    half_gap: Array
    """h(delta) / 2 of every coordinate."""


def _pair(q: LowRank, p: LowRank) -> _Pair:
    inverse_scale = special.reciprocal(p.diagonal.scale())[None, :]
    rank = max(q.factor.shape[1], p.factor.shape[1])
    w_q, w_p = (jnp.pad(w.T, ((0, rank - w.shape[1]), (0, 0))) for w in (q.factor, p.factor))
    return _Pair(
        v=w_p * inverse_scale,
        u=w_q * inverse_scale,
        e=(w_q - w_p) * inverse_scale,
        log_ratio=coordinates.log_variance_ratio(q.diagonal, p.diagonal),
        half_gap=coordinates.dispersion(q.diagonal, p.diagonal),
    )


def _gram(a: Array, b: Array) -> Array:
    """A b^T of two arrays of rows."""
    contract = (((1,), (1,)), ((), ()))
    return lax.dot_general(a, b, contract, precision=lax.Precision.HIGHEST)


def _eye(v: Array) -> Array:
    return jnp.eye(v.shape[0], dtype=v.dtype)


class _Capacitance(NamedTuple):
    """C = I + V^T V, factored, and V^T V, which may be far smaller than I."""

    gram: Array
    factor: Array
    inverse_factor: Array
    inverse: Array


def _capacitance(v: Array) -> _Capacitance:
    return _factored(_gram(v, v))


def _factored(gram: Array) -> _Capacitance:
    eye = _eye(gram)
    factor = linalg.cholesky(eye + gram)
    inverse_factor = linalg.solve_lower(factor, eye)
    inverse = linalg.matmul(inverse_factor.T, inverse_factor)
    return _Capacitance(gram, factor, inverse_factor, inverse)


class _Grams(NamedTuple):
    """V^T V, V^T E and E^T E, and the same with the weights tau in between."""

    vv: Array
    ve: Array
    ee: Array
    tau_vv: Array
    tau_ve: Array
    tau_ee: Array


def _grams(x: _Pair, tau: Array) -> _Grams:
    r = x.v.shape[0]
    both = jnp.concatenate([x.v, x.e])
    plain, weighted = _gram(both, both), _gram(both * tau[None, :], both)
    return _Grams(
        plain[:r, :r],
        plain[:r, r:],
        plain[r:, r:],
        weighted[:r, :r],
        weighted[:r, r:],
        weighted[r:, r:],
    )


def _twice_symmetric(a: Array) -> Array:
    return a + a.T


# ---- the covariances ------------------------------------------------------------------------


@jax.custom_jvp
def dispersion(q: LowRank, p: LowRank) -> Array:
    """(tr(S_p^-1 S_q) - d + log |S_p| - log |S_q|) / 2 >= 0."""
    x = _pair(q, p)
    terms = _terms(x)
    total, size = jnp.sum(terms), jnp.sum(jnp.abs(terms))
    return lax.cond(
        _CANCELLATION * total >= size,
        lambda: 0.5 * total,
        lambda: subspace.dispersion(x.v, x.e, x.log_ratio, x.half_gap),
    )


def _terms(x: _Pair) -> Array:
    """What adds up to twice the dispersion; where q and p are near, small as it is."""
    delta, tau = special.expm1(x.log_ratio), -special.expm1(-x.log_ratio)
    g = _grams(x, tau)
    c = _factored(g.vv)
    difference = _capacitance_difference(g)
    r = linalg.symmetrize(
        linalg.matmul(linalg.matmul(c.inverse_factor, difference), c.inverse_factor.T)
    )
    near = dense.is_small(r)

    # V^T delta tau V for the sum when near, V^T Delta V when not.
    weights = jnp.where(near, delta * tau, special.exp(x.log_ratio))
    v_weighted_v = jnp.sum(c.inverse * _gram(x.v * weights[None, :], x.v))

    # P E = E - V Z.
    z = linalg.matmul(c.inverse, g.ve)
    rest = x.e - linalg.matmul(z.T, x.v)
    strength = linalg.matmul(c.inverse, g.vv)
    squares = _gram(rest, rest) + linalg.matmul(z.T, z)
    z_c_z = linalg.matmul(z.T, z) + linalg.matmul(linalg.matmul(z.T, g.vv), z)
    tau_change = _twice_symmetric(g.tau_ve) + g.tau_ee
    close = (
        dense.gap(jnp.where(near, r, 0)),
        jnp.sum(strength * squares),
        -jnp.sum(c.inverse * z_c_z),
        jnp.sum(c.inverse * tau_change),
        -v_weighted_v,
    )

    # U^T P U - C^-1 V^T Delta V and the determinants.
    rest = rest + linalg.matmul(c.inverse, x.v)
    z = z + (_eye(x.v) - c.inverse)
    c_q = _eye(x.v) + _gram(x.u * special.exp(-x.log_ratio)[None, :], x.u)
    apart = (
        jnp.sum(rest * rest) + jnp.sum(z * z),
        -v_weighted_v,
        -dense.log_det(linalg.cholesky(c_q)),
        dense.log_det(c.factor),
        jnp.zeros_like(v_weighted_v),
    )
    rest_of_terms = jnp.where(near, jnp.stack(close), jnp.stack(apart))
    return jnp.append(rest_of_terms, 2 * jnp.sum(x.half_gap))


def _capacitance_difference(g: _Grams) -> Array:
    """C_q - C = V^T E + E^T V + E^T E - U^T tau U."""
    tau_uu = g.tau_vv + _twice_symmetric(g.tau_ve) + g.tau_ee
    return _twice_symmetric(g.ve) + g.ee - tau_uu


@dispersion.defjvp
def _dispersion_jvp(primals, tangents):
    (q, p), (dq, dp) = primals, tangents
    by = _slopes(q, p)
    change = (
        jnp.sum(by.log_diagonal_q * q.diagonal.rate() * dq.diagonal.value)
        + jnp.sum(by.log_diagonal_p * p.diagonal.rate() * dp.diagonal.value)
        + jnp.sum(by.factor_q * dq.factor)
        + jnp.sum(by.factor_p * dp.factor)
    )
    return dispersion(q, p), change


class _Slopes(NamedTuple):
    """Derivatives of the dispersion."""

    log_diagonal_q: Array
    log_diagonal_p: Array
    factor_q: Array
    factor_p: Array


def _slopes(q: LowRank, p: LowRank) -> _Slopes:
    """From (P - Q) dS_q and P (S_p - S_q) P dS_p, Q = S_q^-1, the differences formed first.

    P - Q = tau + [U' C_q^-1 U'^T - V C^-1 V^T],  U' = Delta^-1 U,
    P (S_q - S_p) P = P delta P + (P E)(P U)^T + (P V)(P E)^T,  P V = V C^-1.
    """
    x = _pair(q, p)
    delta, tau = special.expm1(x.log_ratio), -special.expm1(-x.log_ratio)
    g = _grams(x, tau)
    c = _factored(g.vv)
    difference = _capacitance_difference(g)
    scaled_u = x.u * special.exp(-x.log_ratio)[None, :]
    c_q = _factored(_gram(scaled_u, x.u))

    p_v = linalg.matmul(c.inverse, x.v)
    p_e = x.e - linalg.matmul(linalg.matmul(c.inverse, g.ve).T, x.v)

    # C^-1 - C_q^-1 and U' - V, small where q is almost p.
    inverse_change = linalg.matmul(linalg.matmul(c.inverse, difference), c_q.inverse)
    scaled_e = x.e - tau[None, :] * x.u
    q_u = linalg.matmul(c_q.inverse, scaled_u)
    changed_v = linalg.matmul(inverse_change.T, x.v)
    strength_q = linalg.matmul(c_q.inverse, c_q.gram)
    along = linalg.matmul(c.inverse, g.ve) - inverse_change
    by_u = (
        linalg.matmul(strength_q, x.e)
        + linalg.matmul(c_q.inverse, tau[None, :] * x.u)
        - linalg.matmul(along.T, x.v)
    )
    on_q = tau + jnp.sum(scaled_e * (q_u + p_v) - changed_v * scaled_u, axis=0)

    # P delta P on the diagonal, and P (S_q - S_p) P V.
    delta_vv = _gram(x.v * delta[None, :], x.v)
    delta_v = linalg.matmul(delta_vv, p_v)
    p_delta = delta * (1 - 2 * jnp.sum(x.v * p_v, axis=0)) + jnp.sum(p_v * delta_v, axis=0)
    on_p = p_delta + jnp.sum(p_e * (p_e + 2 * p_v), axis=0)
    p_delta_v = delta[None, :] * x.v - linalg.matmul(delta_vv.T, p_v)
    uv, ev = g.vv + g.ve.T, g.ve.T
    by_v = p_delta_v + linalg.matmul(uv.T, p_e) + linalg.matmul(ev.T, p_v)
    by_v = linalg.matmul(c.inverse, by_v)

    inverse_scale = special.reciprocal(p.diagonal.scale())[None, :]
    return _Slopes(
        0.5 * special.exp(x.log_ratio) * on_q,
        -0.5 * on_p,
        (by_u * inverse_scale)[: q.factor.shape[1]].T,
        -(by_v * inverse_scale)[: p.factor.shape[1]].T,
    )


def trace(q: LowRank, p: LowRank) -> Array:
    """tr(S_p^-1 S_q)."""
    x = _pair(q, p)
    c = _capacitance(x.v)
    ratio = special.exp(x.log_ratio)
    z = linalg.matmul(c.inverse, _gram(x.v, x.u))
    rest = x.u - linalg.matmul(z.T, x.v)
    diagonal = ratio * (1 - jnp.sum(x.v * linalg.matmul(c.inverse, x.v), axis=0))
    return jnp.sum(diagonal) + (jnp.sum(rest * rest) + jnp.sum(z * z))


def log_det_ratio(q: LowRank, p: LowRank) -> Array:
    """Log |S_p| - log |S_q|."""
    x = _pair(q, p)
    c_q = _eye(x.v) + _gram(x.u * special.exp(-x.log_ratio)[None, :], x.u)
    factors = linalg.cholesky(c_q), _capacitance(x.v).factor
    return (dense.log_det(factors[1]) - dense.log_det(factors[0])) - jnp.sum(x.log_ratio)


# ---- the means ------------------------------------------------------------------------------


@jax.custom_jvp
def location(delta: Array, p: LowRank) -> Array:
    """delta^T S_p^-1 delta / 2 = min_z (|D^(-1/2) (delta - W z)|^2 + |z|^2) / 2 >= 0."""
    rest, z = _least_squares(delta, p)
    return 0.5 * (jnp.sum(rest * rest) + jnp.sum(z * z))


def _least_squares(delta: Array, p: LowRank) -> tuple[Array, Array]:
    """D^(-1/2) (delta - W z) at the minimizer, and z = W^T S_p^-1 delta."""
    inverse_scale = special.reciprocal(p.diagonal.scale())
    v, y = p.factor.T * inverse_scale[None, :], (delta * inverse_scale)[:, None]
    z = linalg.matmul(_capacitance(v).inverse, linalg.matmul(v, y))
    return (y - linalg.matmul(v.T, z))[:, 0], z[:, 0]


@location.defjvp
def _location_jvp(primals, tangents):
    (delta, p), (ddelta, dp) = primals, tangents
    rest, z = _least_squares(delta, p)
    slope = rest * special.reciprocal(p.diagonal.scale())
    by_factor = jnp.sum(-(slope[:, None] * z[None, :]) * dp.factor)
    by_diagonal = jnp.sum(-0.5 * (rest * rest) * p.diagonal.rate() * dp.diagonal.value)
    return location(delta, p), jnp.sum(slope * ddelta) + by_factor + by_diagonal


# ---- one covariance -------------------------------------------------------------------------


def half_log_det(x: LowRank) -> Array:
    """Log |S| / 2."""
    v = x.factor.T * special.reciprocal(x.diagonal.scale())[None, :]
    return jnp.sum(x.diagonal.log_scale()) + 0.5 * dense.log_det(_capacitance(v).factor)


def color(x: LowRank, noise: Array, latent: Array) -> Array:
    """D^(1/2) noise + W latent, of covariance S for standard normal noise and latent."""
    return x.diagonal.scale() * noise + linalg.matmul(x.factor, latent[:, None])[:, 0]


def variances(x: LowRank) -> Array:
    """The diagonal of S."""
    return x.diagonal.variance() + jnp.sum(x.factor * x.factor, axis=1)


def covariance(x: LowRank) -> Array:
    """S as a matrix."""
    return jnp.diag(x.diagonal.variance()) + linalg.matmul(x.factor, x.factor.T)


def to_dense(x: LowRank) -> Doubled:
    """S as a matrix to twice the digits."""
    return dense.add(dense.outer(x.factor), dense.diagonal(x.diagonal))
