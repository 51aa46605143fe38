"""The quotient M = C_p^-1 C_q of two factors, from a difference known better than both.

Kronecker factors at a common scale and the conditional laws of a chain have matrices that are
computed, so that subtracting them would only find their rounding; what is exact is the
difference of the numbers that the user gave, carried along.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from kljax import linalg, matrices, special
from kljax.matrices import Factored, Quotient


@jax.custom_jvp
def quotient(q: Factored, p: Factored, difference: Array) -> Quotient:
    """M of two structures whose factor is C, with S_q - S_p given."""
    s = linalg.whiten_both(p.factor, difference)
    return from_relative_covariance(s, p.whiten(q.factor), matrices.log_diagonal(q, p))


@quotient.defjvp
def _quotient_jvp(primals, tangents):
    # The difference is that of the structures, whose tangents say everything.
    (q, p, difference), (dq, dp, _) = primals, tangents
    m = quotient(q, p, difference)
    return m, change(m, q, p, dq, dp)


def from_relative_covariance(s: Array, divided: Array, log_diagonal: Array) -> Quotient:
    """M from S = C_p^-1 (S_q - S_p) C_p^-T where that is small, else from the division."""
    near = linalg.is_small(s)
    deviation = linalg.cholesky_deviation(s)
    on = special.log1p(linalg.diagonal(deviation))
    return Quotient(
        linalg.strict_lower(jnp.where(near, deviation, divided)),
        jnp.where(near, on, log_diagonal),
    )


def change(m: Quotient, q: Factored, p: Factored, dq: Factored, dp: Factored) -> Quotient:
    """The change M X_q - X_p M of M, with X = C^-1 dC, as in `matrices`."""
    change_q = q.structure.change(q.factor, dq.structure)
    change_p = p.structure.change(p.factor, dp.structure)
    dense = m.dense()
    dm = linalg.matmul(dense, change_q) - linalg.matmul(change_p, dense)
    return Quotient(linalg.strict_lower(dm), linalg.diagonal(change_q - change_p))
