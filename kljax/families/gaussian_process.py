"""Gaussian processes on finitely many points, and the KL of sparse variational inference.

The marginal of a Gaussian process with mean function m and kernel k on points x is
`MultivariateNormal(m(x), covariance_matrix=k(x, x))`, nothing else. What variational inference
asks for besides is one prior for many outputs, factorized once:

    KL = sum_l KL(N(m_l, S_l) ‖ N(0, K)),   S_l = q_sqrt_l q_sqrt_l^T

(Hensman, Matthews & Ghahramani 2015, arXiv 1411.2005). Shapes are those of GPflow's `gauss_kl`.
"""

from __future__ import annotations

from typing import Any, Literal

import jax.numpy as jnp
from jax import Array

from kljax._record import as_array
from kljax.divergence import kl_divergence
from kljax.families.gaussian import MultivariateNormal, MultivariateNormalDiag, standard_normal


def gaussian_process_kl(
    q_mu: Any,
    q_sqrt: Any,
    kernel_matrix: Any = None,
    *,
    kernel_tril: Any = None,
    precision: Literal["default", "high"] = "default",
) -> Array:
    """KL of a Gaussian q of function values from a Gaussian-process prior, summed over outputs.

    Without a kernel the values are whitened: u = C v with K = C C^T, and q is that of v,
    whose prior is N(0, I); the divergence is the same number.

    Args:
        q_mu: means at the M points of each of L outputs, shape (M, L).
        q_sqrt: lower triangular Cholesky factors of the covariances of q, with positive
            diagonals, shape (L, M, M), what is above the diagonal ignored; or standard
            deviations of independent values, shape (M, L).
        kernel_matrix: K, shape (M, M) for all outputs, factorized once, or (L, M, M).
        kernel_tril: the lower triangular Cholesky factor of K, instead of K.
        precision: as in `kl_divergence`; `"high"` for a K that is almost singular.

    Returns:
        Scalar in nats, as accurate as `kl_divergence` of the same covariances.

    Raises:
        ValueError: if shapes do not fit together, or if both kernels are given.
    """
    q_mu, q_sqrt = as_array("q_mu", q_mu), as_array("q_sqrt", q_sqrt)
    if q_mu.ndim != 2:
        raise ValueError(
            f"q_mu has shape {q_mu.shape}; it needs two axes, points and outputs (M, L)."
        )
    points, outputs = q_mu.shape
    if q_sqrt.shape not in ((outputs, points, points), (points, outputs)):
        raise ValueError(
            f"q_sqrt has shape {q_sqrt.shape}; with q_mu of shape {q_mu.shape} it must have "
            f"shape {(outputs, points, points)}, or {points, outputs} for standard deviations."
        )
    if kernel_matrix is not None and kernel_tril is not None:
        raise ValueError("kernel_matrix and kernel_tril are both given; give one of them.")
    if q_sqrt.ndim == 2:
        q = MultivariateNormalDiag(q_mu.T, q_sqrt.T)
    else:
        q = MultivariateNormal(q_mu.T, jnp.tril(q_sqrt))
    prior = _prior(points, outputs, kernel_matrix, kernel_tril, q_mu.dtype)
    return jnp.sum(kl_divergence(q, prior, precision=precision))


def _prior(points: int, outputs: int, matrix: Any, tril: Any, dtype: Any) -> Any:
    """N(0, K) without a batch axis where all outputs share it, so it is factorized once."""
    if matrix is None and tril is None:
        return standard_normal(points, dtype)
    given, name = (tril, "kernel_tril") if matrix is None else (matrix, "kernel_matrix")
    given = as_array(name, given)
    if given.shape not in ((points, points), (outputs, points, points)):
        raise ValueError(
            f"{name} has shape {given.shape}; for {points} points and {outputs} outputs it "
            f"must have shape {(points, points)} or {(outputs, points, points)}."
        )
    loc = jnp.zeros(points, dtype)
    if matrix is None:
        return MultivariateNormal(loc, given)
    return MultivariateNormal(loc, covariance_matrix=given)
