"""Two Kronecker products of covariance matrices, compared through the quotients of the factors.

    S = U (x) V:  C_p^-1 C_q = M (x) N,   M = Cu_p^-1 Cu_q,   N = Cv_p^-1 Cv_q,

is lower triangular again, with e^(l_i + k_j) on its diagonal, l = log diag M, k = log diag N:

    dispersion = sum_ij (e^(2 (l_i + k_j)) - 1 - 2 (l_i + k_j)) / 2
               + (|M below|^2 |N|^2 + |M on|^2 |N below|^2) / 2,

a sum of non-negative terms (own arrangement) of the sizes of U and V alone. (U, V) and
(c U, V / c) are one law, so q and p are compared at equal scales: U_q with c U_p and c V_q with
V_p, where c is the quotient of two entries and both products are taken to twice the digits.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from kljax import doubled, linalg, matrices, relative, special
from kljax.matrices import Factored, Quotient
from kljax.structure import Covariance, ScaleTril, Structure

Factors = tuple[Factored, Factored]
"""Rows and columns: U (x) V."""


def dispersion(rows: Quotient, columns: Quotient) -> Array:
    """(|M|^2 |N|^2 - n m) / 2 - log |M (x) N| >= 0."""
    on = special.half_expm1_minus_x(2 * _log_diagonals(rows, columns))
    on_rows, below_rows = _squares(rows)
    on_columns, below_columns = _squares(columns)
    below = below_rows * (on_columns + below_columns) + on_rows * below_columns
    return jnp.sum(on) + 0.5 * below


def _log_diagonals(rows: Quotient, columns: Quotient) -> Array:
    return rows.log_diagonal[:, None] + columns.log_diagonal[None, :]


def _squares(m: Quotient) -> tuple[Array, Array]:
    """|M|^2 on and below the diagonal."""
    return jnp.sum(special.exp(2 * m.log_diagonal)), jnp.sum(m.lower * m.lower)


def trace(rows: Quotient, columns: Quotient) -> Array:
    """tr(S_p^-1 S_q) = |M|^2 |N|^2."""
    return matrices.trace(rows) * matrices.trace(columns)


def log_det(rows: Quotient, columns: Quotient) -> Array:
    """Log |S_p| - log |S_q|."""
    return 0 - 2 * jnp.sum(_log_diagonals(rows, columns))


def half_log_det(factors: Factors) -> Array:
    """Log |S| / 2 = m log |Cu| + n log |Cv|."""
    (u, n), (v, m) = ((x.structure.half_log_det(x.factor), len(x.factor)) for x in factors)
    return m * u + n * v


@jax.custom_jvp
def location(delta: Array, p: Factors) -> Array:
    """|Cu^-1 delta Cv^-T|^2 / 2 >= 0."""
    y = _whiten(delta, p)
    return 0.5 * jnp.sum(y * y)


def _whiten(delta: Array, p: Factors) -> Array:
    """Y = Cu^-1 delta Cv^-T."""
    rows, columns = p
    return rows.whiten(columns.whiten(delta.T).T)


@location.defjvp
def _location_jvp(primals, tangents):
    (delta, (rows, columns)), (ddelta, (drows, dcolumns)) = primals, tangents
    y = _whiten(delta, (rows, columns))
    up = rows.structure.whiten_transposed(rows.factor, y)
    across = columns.structure.whiten_transposed(columns.factor, y.T)
    slope = columns.structure.whiten_transposed(columns.factor, up.T).T
    # As a function of U alone, at columns whitened already; of V alone, rows whitened.
    by_rows = rows.structure.half_square_change(
        drows.structure, columns.whiten(delta.T).T, y, up
    )
    by_columns = columns.structure.half_square_change(
        dcolumns.structure, rows.whiten(delta).T, y.T, across
    )
    change = jnp.sum(slope * ddelta) + (by_rows + by_columns)
    return 0.5 * jnp.sum(y * y), change


# ---- M and N --------------------------------------------------------------------------------


@jax.custom_jvp
def quotients(q: Factors, p: Factors) -> tuple[Quotient, Quotient]:
    """M and N, at scales where they are near I if q is near p."""
    rows, columns = zip(q, p, strict=True)
    c = _common_scale(rows, columns)
    one = jnp.ones_like(c)
    return _scaled_quotient(*rows, one, c), _scaled_quotient(*columns, c, one)


@quotients.defjvp
def _quotients_jvp(primals, tangents):
    # A scale that stays fixed drops out of X = C^-1 dC.
    (q, p), (dq, dp) = primals, tangents
    both = quotients(q, p)
    rows, columns = (relative.change(*x) for x in zip(both, q, p, dq, dp, strict=True))
    return both, (rows, columns)


def _common_scale(rows: tuple[Factored, ...], columns: tuple[Factored, ...]) -> Array:
    """C with U_q ~ c U_p and c V_q ~ V_p, or 1 where there is none."""
    one = jnp.ones((), rows[0].factor.dtype)
    if any(type(q.structure) is not type(p.structure) for q, p in (rows, columns)):
        return one
    if type(rows[0].structure) is not type(columns[0].structure):
        return one
    if not rows[0].factor.size or not columns[0].factor.size:
        return one
    first_row, first_column = (
        q.structure.value[0, 0] / p.structure.value[0, 0] for q, p in (rows, columns)
    )
    near = jnp.abs(first_row * first_column - 1) < 0.5
    return jnp.where(near, first_row, one)


def _scaled_quotient(q: Factored, p: Factored, a: Array, b: Array) -> Quotient:
    """The quotient of a times the numbers of q and b times the numbers of p."""
    match q.structure, p.structure:
        case (ScaleTril(), ScaleTril()):
            gap = _difference(a, jnp.tril(q.factor), b, jnp.tril(p.factor))
            on = linalg.diagonal(gap) / (b * linalg.diagonal(p.factor))
            near = jnp.abs(on) < 0.5
            far = matrices.log_diagonal(q, p) + special.log(a / b)
            log_diagonal = jnp.where(near, special.log1p(jnp.where(near, on, 0)), far)
            return Quotient(linalg.strict_lower(p.whiten(gap) / b), log_diagonal)
        case (Covariance(), Covariance()):
            gap = _difference(a, q.structure.value, b, p.structure.value)
            s = linalg.whiten_both(p.factor, gap) / b
            root = jnp.sqrt(a / b)
            divided = p.whiten(q.factor) * root
            on = matrices.log_diagonal(q, p) + special.log(root)
            return relative.from_relative_covariance(s, divided, on)
        case _:
            return matrices.quotient(q, p)


def _difference(a: Array, x: Array, b: Array, y: Array) -> Array:
    """A x - b y, rounded once."""
    first, second = doubled.two_product(a, x), doubled.two_product(b, y)
    return doubled.value(doubled.subtract(first, second))


def factorize(rows: Structure, columns: Structure) -> Factors:
    return matrices.factorize(rows), matrices.factorize(columns)
