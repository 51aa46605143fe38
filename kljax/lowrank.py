"""Diagonal plus low rank, S = D + W W^T, compared in O(d r^2) without a d x d array.

In the units of p's diagonal, and for U' in those of q's own,

    V = D_p^(-1/2) W_p,  U = D_p^(-1/2) W_q,  U' = D_q^(-1/2) W_q,  Delta = D_q / D_p,
    E = U - V,  E' = U' - V,  N = E' - (sqrt(Delta) - 1) V,  delta = Delta - 1,
    C = I + V^T V = L L^T,  C_q = I + U'^T U' = C + sym(E'^T (U' + V)),  P = (I + V V^T)^-1.

With h(x) = x - log(1 + x) and the eigenvalues of R = L^-1 (C_q - C) L^-T, the divergence of the
covariances is (own arrangement)

    2 dispersion = sum_i h(delta_i) + sum h(eigenvalues of R) + tr(E^T P E) - |N L^-T|^2,

every term of second order in the difference of q and p, so near pairs keep their digits. Far
apart the determinants are taken by themselves:

    2 dispersion = sum_i h(delta_i) + log |C| - log |C_q|
                   + tr(U^T P U) - |sqrt(Delta) V L^-T|^2.

Both are one program on chosen arrays; y^T P y = min_z |y - V z|^2 + |z|^2, at z = C^-1 V^T y.
Two descriptions of one distribution (a factor with its columns exchanged, a column that stands
for a part of the diagonal) have terms that are large beside their sum. If a batch holds such a
pair, it is compared once more in a basis of what both factors span (`subspace`), and the values
of those pairs are taken from there.
Sources: Woodbury and the matrix determinant lemma, Golub & Van Loan 2013, 2.1.4.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from kljax import coordinates, dense, linalg, special, subspace
from kljax._batches import where_needed
from kljax.doubled import Doubled
from kljax.factors import Groups, inner
from kljax.linalg import alone, settled
from kljax.structure import Diagonal, Variance

# A sum of terms more than this many times its own size is not trusted.
_CANCELLATION = 32
# Variances of one size; C_q is then at least a fraction of C, as C plus a difference is.
_ONE_SIZE = 16.0


class LowRank(NamedTuple):
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


# ---- arrays of rows: shape (r, d), the fast layout -------------------------------------------


def _dot(a: Array, b: Array, axis: int) -> Array:
    """The sum over the last axis of a and one of b, in full precision."""
    contract = (((1,), (axis,)), ((), ()))
    return lax.dot_general(a, b, contract, precision=lax.Precision.HIGHEST)


def _gram(a: Array, b: Array) -> Array:
    """A b^T of two arrays of rows."""
    return _dot(a, b, 1)


def _mix(a: Array, b: Array) -> Array:
    """A b, of a small matrix and an array of rows."""
    return _dot(a, b, 0)


def _combine(a: Array, b: Array) -> Array:
    """The same, of small ranks in the loop that reads it."""
    return linalg.matmul(a, b) if a.shape[1] <= linalg.WRITTEN_OUT else _dot(a, b, 0)


def _times(a: Array, b: Array) -> Array:
    """A b of two small matrices, evaluated once."""
    return settled(linalg.matmul(a, b))


def _eye(a: Array) -> Array:
    return jnp.eye(a.shape[0], dtype=a.dtype)


def _rows(q: LowRank, p: LowRank) -> tuple[Array, Array]:
    """The columns of both factors as rows, of the larger rank."""
    rank = max(q.factor.shape[1], p.factor.shape[1])
    w_q, w_p = (jnp.pad(x.factor.T, ((0, rank - x.factor.shape[1]), (0, 0))) for x in (q, p))
    return settled(w_q), settled(w_p)


def _sum_rows(x: Array) -> Array:
    """The sum over the rows, written out: one loop with what makes them."""
    total = jnp.zeros(x.shape[1], x.dtype)
    for i in range(x.shape[0]):
        total = total + x[i]
    return total


# ---- the pair in the units of p's diagonal --------------------------------------------------


class _Pair(NamedTuple):
    close: Array
    """Whether E is small beside V, column by column."""
    near: Array
    """Whether, moreover, the variances are of one size, so that E' is small."""
    v: Array
    u: Array
    y: Array
    """E if close, else U."""
    shift: Array
    """The difference of the means, one row."""
    halves: tuple[Array, Array]
    """E' and U' + V if near, else U' twice: sym(a^T b) is C_q - C or C_q - I."""
    n: Array
    """N if near, else sqrt(Delta) V."""
    ratio: Array
    delta: Array
    unit: Array
    """D_p^(-1/2)."""


def _pair(q: LowRank, p: LowRank, shift: Array) -> _Pair:
    ratio, delta = _variance_ratio(q.diagonal, p.diagonal)
    root, unit = jnp.sqrt(ratio), special.reciprocal(p.diagonal.scale())
    own_unit = special.divide(unit, root)
    excess = special.divide(delta, 1 + root)
    w_q, w_p = _rows(q, p)
    close = _is_small(w_q - w_p, w_p, unit)
    near = close & jnp.all((ratio < _ONE_SIZE) & (ratio > 1 / _ONE_SIZE))
    # What is multiplied with rows has an axis for them. Choices come last, since XLA would
    # write out a flag that is multiplied with.
    row, own = unit[None, :], own_unit[None, :]
    v, u = w_p * row, w_q * row
    own_u = w_q * own
    own_e = (w_q - w_p) * own - w_p * settled(excess * own_unit)[None, :]
    return _Pair(
        close,
        near,
        v,
        u,
        jnp.where(close, (w_q - w_p) * row, u),
        shift[None, :] * row,
        (jnp.where(near, own_e, own_u), jnp.where(near, own_u + v, own_u)),
        jnp.where(near, own_e - v * excess[None, :], w_p * (root * unit)[None, :]),
        ratio,
        delta,
        unit,
    )


def _variance_ratio(q: Diagonal, p: Diagonal) -> tuple[Array, Array]:
    """Delta and Delta - 1, each to its relative accuracy."""
    if isinstance(q, Variance) and isinstance(p, Variance):
        return special.over(q.value, p.value), special.excess(q.value, p.value)
    log_ratio = coordinates.log_variance_ratio(q, p)
    return special.exp(log_ratio), special.expm1(log_ratio)


def _is_small(change: Array, w: Array, unit: Array) -> Array:
    """Whether no column changes by more than half of what it adds to I + V^T V."""
    excess = _mix(change * change - 0.25 * (w * w), (unit * unit)[:, None])
    return jnp.max(excess, initial=0) < 0.25


class _Small(NamedTuple):
    """Everything of shape (r, r)."""

    gram: Array
    """V^T V."""
    inverse_factor: Array
    """L^-1."""
    inverse: Array
    """C^-1."""
    z: Array
    """Y^T V C^-1."""
    change: Array
    """C_q - C if near, else C_q - I."""
    deviation: Array
    """M - I, with M M^T = I + R if near, else C_q."""


def _small(x: _Pair) -> _Small:
    gram = _gram(x.v, x.v)
    inverse_factor = settled(linalg.inverse_lower(linalg.cholesky(gram + _eye(gram))))
    inverse = _times(inverse_factor.T, inverse_factor)
    change = settled(linalg.symmetrize(_gram(*x.halves)))
    whitened = _times(_times(inverse_factor, change), inverse_factor.T)
    deviation = settled(jnp.where(x.near, linalg.symmetrize(whitened), change))
    return _Small(
        gram,
        inverse_factor,
        inverse,
        _times(_gram(x.y, x.v), inverse),
        change,
        settled(linalg.cholesky_deviation(deviation)),
    )


# ---- values ---------------------------------------------------------------------------------


@jax.custom_jvp
def groups(q: LowRank, p: LowRank, shift: Array) -> Groups:
    """The two parts of a divergence.

    Dispersion (tr(S_p^-1 S_q) - d + log |S_p| - log |S_q|) / 2 and location
    shift^T S_p^-1 shift / 2, both >= 0.
    """
    x = _pair(q, p, shift)
    small = _small(x)
    gaps = settled(2 * coordinates.dispersion(q.diagonal, p.diagonal))
    terms = _terms(x, small, jnp.sum(gaps))
    total, size = jnp.sum(terms), jnp.sum(jnp.abs(terms))

    def in_basis() -> Array:
        w_q, w_p = _rows(q, p)
        unit = x.unit[None, :]
        return subspace.dispersion(x.v, (w_q - w_p) * unit, x.ratio, x.delta, gaps)

    cancels = ~(_CANCELLATION * total >= size)
    dispersion = where_needed(cancels, in_basis, 0.5 * total)
    rest, z = _least_squares(x, small)
    return Groups(dispersion, 0.5 * (jnp.sum(rest * rest) + jnp.sum(z * z)))


def _terms(x: _Pair, small: _Small, gaps: Array) -> Array:
    """What adds up to twice the dispersion; where q and p are near, small as it is."""
    # Y is E if close, wanted is U - V only if near.
    more = x.close & ~x.near
    z = small.z + jnp.where(more, linalg.matmul(small.gram, small.inverse), 0)
    rest = x.y - _mix(small.z - jnp.where(more, small.inverse, 0), x.v)
    colored = _mix(small.inverse_factor, x.n)
    log_diagonal = special.log1p(linalg.diagonal(small.deviation))
    gap = dense.gap_of_factor(log_diagonal, linalg.strict_lower(small.deviation))
    log_dets = -2 * jnp.sum(special.log(linalg.diagonal(small.inverse_factor)))
    apart = log_dets - 2 * jnp.sum(log_diagonal)
    return jnp.stack(
        [
            gaps,
            jnp.where(x.near, gap, apart),
            jnp.sum(rest * rest) + jnp.sum(z * z),
            -jnp.sum(colored * colored),
        ]
    )


def _least_squares(x: _Pair, small: _Small) -> tuple[Array, Array]:
    """D^(-1/2) (shift - W z) at its smallest, and z = W^T S_p^-1 shift as a row."""
    z = linalg.matmul(_gram(x.shift, x.v), small.inverse)
    return (x.shift - _mix(z, x.v))[0], z[0]


# ---- derivatives ----------------------------------------------------------------------------


def _groups_jvp(primals: Any, tangents: Any) -> tuple[Groups, Groups]:
    (q, p, shift), (dq, dp, dshift) = primals, tangents
    x = _pair(q, p, shift)
    small = _small(x)
    on_q, by_q = _by_q(x, small)
    on_p, by_p = _by_p(x, small)
    rest, z = _least_squares(x, small)
    rate_q, rate_p = 0.5 * q.diagonal.rate(), 0.5 * p.diagonal.rate()

    def by_factor(rows: Array, of: LowRank) -> Array:
        return alone(rows * x.unit[None, :])[: of.factor.shape[1]].T

    dispersion = (
        inner(lambda: rate_q * x.ratio * on_q, dq.diagonal.value)
        - inner(lambda: rate_p * on_p, dp.diagonal.value)
        + inner(lambda: by_factor(by_q, q), dq.factor)
        - inner(lambda: by_factor(by_p, p), dp.factor)
    )
    location = (
        inner(lambda: rest * x.unit, dshift)
        - inner(lambda: rate_p * (rest * rest), dp.diagonal.value)
        - inner(lambda: by_factor(z[:, None] * rest[None, :], p), dp.factor)
    )
    return groups(q, p, shift), Groups(dispersion, location)


groups.defjvp(_groups_jvp, symbolic_zeros=True)


def _by_q(x: _Pair, small: _Small) -> tuple[Array, Array]:
    """The diagonal of P - Q, and (P - Q) U by rows, with Q = S_q^-1.

    P - Q = tau + U'' C_q^-1 U''^T - V C^-1 V^T with U'' = U / Delta; close, by differences.
    """
    eye = _eye(small.gram)
    inverse_m = settled(linalg.inverse_lower(small.deviation + eye))
    half = _times(inverse_m, jnp.where(x.near, small.inverse_factor, eye))
    inverse_q = _times(half.T, half)
    strength = _times(small.change + jnp.where(x.near, small.gram, 0), inverse_q)
    # C^-1 - C_q^-1 = C^-1 (C_q - C) C_q^-1, small where q is almost p.
    change = small.change - jnp.where(x.near, 0, small.gram)
    lost = _times(_times(small.inverse, change), inverse_q)
    tau = special.divide(x.delta, x.ratio)
    tau_u = x.u * tau[None, :]
    by_u = (
        _combine(strength, x.y)
        + _combine(inverse_q, tau_u)
        + _combine(jnp.where(x.close, lost.T, 0) - small.z, x.v)
    )
    changed_v = _combine(jnp.where(x.close, lost, small.inverse).T, x.v)
    moved = _combine(inverse_q, x.y - tau_u)
    both = jnp.where(x.close, x.v + (x.u - tau_u), x.u - tau_u)
    on = _sum_rows(alone(moved * both - changed_v * x.v))
    return tau + on, by_u


def _by_p(x: _Pair, small: _Small) -> tuple[Array, Array]:
    """The diagonal of P (S_q - S_p) P, and P (S_q - S_p) P V by rows.

    S_q - S_p = delta + E U^T + V E^T if close, else delta + U U^T - V V^T; P V = V C^-1.
    """
    z, delta = small.z, x.delta[None, :]
    weighted = _times(_times(small.inverse, _gram(x.v * delta, x.v)), small.inverse)
    strength = _times(small.inverse, small.gram)
    p_v = _combine(small.inverse, x.v)
    rest = x.y - _combine(z, x.v)
    squares = jnp.where(x.close, rest * (rest + 2 * p_v), (rest - p_v) * (rest + p_v))
    on = _sum_rows(alone(x.v * _combine(weighted, x.v) + squares - (2 * delta) * (x.v * p_v)))

    across = z + jnp.where(x.close, strength, 0)
    known = jnp.where(x.close, z, -strength)
    along = _times(small.inverse, known) - _times(z.T, across) - weighted
    return x.delta + on, p_v * delta + _combine(across.T, x.y) + _combine(along.T, x.v)


# ---- one covariance and the means -----------------------------------------------------------


def trace(q: LowRank, p: LowRank) -> Array:
    """tr(S_p^-1 S_q)."""
    unit = special.reciprocal(p.diagonal.scale())[None, :]
    ratio = coordinates.variance_ratio(q.diagonal, p.diagonal)
    v, u = p.factor.T * unit, q.factor.T * unit
    inverse_factor = linalg.inverse_lower(_capacitance_factor(p))
    half = linalg.matmul(inverse_factor, v)
    z = linalg.matmul(inverse_factor.T, linalg.matmul(inverse_factor, _gram(v, u)))
    rest = u - linalg.matmul(z.T, v)
    diagonal = jnp.sum(ratio * (1 - jnp.sum(half * half, axis=0)))
    return diagonal + (jnp.sum(rest * rest) + jnp.sum(z * z))


def log_det_ratio(q: LowRank, p: LowRank) -> Array:
    """Log |S_p| - log |S_q|."""
    log_ratio = coordinates.log_variance_ratio(q.diagonal, p.diagonal)
    factors = _capacitance_factor(p), _capacitance_factor(q)
    return (dense.log_det(factors[0]) - dense.log_det(factors[1])) - jnp.sum(log_ratio)


def _capacitance_factor(x: LowRank) -> Array:
    v = x.factor.T * special.reciprocal(x.diagonal.scale())[None, :]
    gram = _gram(v, v)
    return linalg.cholesky(gram + _eye(gram))


def location(shift: Array, p: LowRank) -> Array:
    """shift^T S_p^-1 shift / 2 >= 0."""
    return groups(p, p, shift).location


def half_log_det(x: LowRank) -> Array:
    """Log |S| / 2."""
    return jnp.sum(x.diagonal.log_scale()) + 0.5 * dense.log_det(_capacitance_factor(x))


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
