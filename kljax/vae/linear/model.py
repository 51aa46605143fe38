"""A linear VAE as it stands, stationary or not: its exact objective and likelihood."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from kljax import _record, linalg, special
from kljax.vae import _inputs
from kljax.vae.linear.arguments import ONES, Vector, eigenvalues, square
from kljax.vae.terms import TermWeights, checked

LOG_2PI = math.log(2 * math.pi)


class LinearVAE(NamedTuple):
    """A linear decoder of k latents, and a linear encoder with one covariance for all data.

    Attributes:
        decoder: W, shape (n, k).
        encoder: V, shape (k, n).
        variance: s, the variances of q(z | x), shape (k,).
    """

    decoder: Array
    encoder: Array
    variance: Array


class Parts(NamedTuple):
    """What the objective of a linear VAE is made of, averaged over the data.

    The terms are printed as in `GaussianTerms`, so half of each counts in nats.

    Attributes:
        reconstruction: E[-log p(x | z)] in nats.
        kl: E[KL(q(z | x) ‖ N(0, I))] in nats.
        trace: sum of s.
        mahalanobis: E|V x|^2.
        dimension: k.
        log_det: -sum of log s.
    """

    reconstruction: Array
    kl: Array
    trace: Array
    mahalanobis: Array
    dimension: Array
    log_det: Array

    @property
    def elbo(self) -> Array:
        """-reconstruction - KL in nats: weights one, whatever those of training were."""
        return -(self.reconstruction + self.kl)

    def objective(self, weights: TermWeights = ONES) -> Array:
        """J in nats."""
        a, b, c = checked(weights)
        # c KL, and by how much the other weights differ from c: at weights one the KL itself.
        excess = (a - c) * self.trace + (b - c) * self.mahalanobis
        return self.reconstruction + (c * self.kl + 0.5 * excess)


class PPCA(NamedTuple):
    """The maximum likelihood fit of probabilistic PCA.

    Attributes:
        noise_variance: the mean of the eigenvalues that are left out.
        decoder: length of each column of W, shape (latents,), by falling eigenvalue.
        log_likelihood: mean log p(x) in nats.
    """

    noise_variance: Array
    decoder: Array
    log_likelihood: Array


def parts(model: LinearVAE, covariance: ArrayLike, noise_variance: ArrayLike) -> Parts:
    """The exact objective of any linear VAE, stationary or not.

    Args:
        model: of k latents.
        covariance: of the data, whose mean is 0, symmetric, shape (n, n).
        noise_variance: of the decoder, > 0.

    Returns:
        `Parts`, of scalars, differentiable by everything.

    Raises:
        ValueError: for shapes that do not fit together.
    """
    size, _ = _sizes(model)
    numbers = (_record.as_array(n, x) for n, x in zip(model._fields, model, strict=True))
    cov = square("covariance", covariance, size)
    return _parts(LinearVAE(*numbers), cov, _inputs.positive("noise_variance", noise_variance))


@jax.jit
def _parts(model: LinearVAE, cov: Array, v: Array) -> Parts:
    w, encoder, s = model
    size, latents = w.shape
    lost = jnp.eye(size, dtype=cov.dtype) - linalg.matmul(w, encoder)
    error = jnp.sum(linalg.matmul(lost, cov) * lost) + jnp.sum(w * w * s[None, :])
    codes = jnp.sum(linalg.matmul(encoder, cov) * encoder)
    trace = jnp.sum(s)
    return Parts(
        reconstruction=0.5 * (size * (LOG_2PI + special.log(v)) + error / v),
        kl=0.5 * (jnp.sum(special.x_minus_log1p(s - 1)) + codes),
        trace=trace,
        mahalanobis=codes,
        dimension=jnp.full_like(trace, latents),
        log_det=-jnp.sum(special.log(s)),
    )


def log_likelihood(
    decoder: ArrayLike, covariance: ArrayLike, noise_variance: ArrayLike
) -> Array:
    """Mean log p(x) of x = W z + noise with z ~ N(0, I), in nats.

    Args:
        decoder: W, shape (n, k).
        covariance: of the data, whose mean is 0, symmetric, shape (n, n).
        noise_variance: v > 0.

    Returns:
        Scalar -(n log 2 pi + log |S| + tr(S^-1 C)) / 2 for S = W W^T + v I.

    Raises:
        ValueError: for shapes that do not fit together.
    """
    w = _record.as_array("decoder", decoder)
    if w.ndim != 2:
        raise ValueError(f"decoder has shape {w.shape}; it must be (n, k).")
    size = w.shape[0]
    cov, v = (
        square("covariance", covariance, size),
        _inputs.positive("noise_variance", noise_variance),
    )
    return _log_likelihood(w, cov, v)


@jax.jit
def _log_likelihood(w: Array, cov: Array, v: Array) -> Array:
    size = w.shape[0]
    factor = linalg.cholesky(linalg.matmul(w, w.T) + v * jnp.eye(size, dtype=w.dtype))
    whitened = linalg.whiten_both(factor, linalg.symmetrize(cov))
    half_log_det = jnp.sum(special.log(linalg.diagonal(factor)))
    return -0.5 * (size * LOG_2PI + jnp.sum(linalg.diagonal(whitened))) - half_log_det


def ppca(values: Vector, latents: int) -> PPCA:
    """Probabilistic PCA by maximum likelihood (Tipping and Bishop 1999).

    Args:
        values: eigenvalues of the covariance of the data, >= 0, shape (n,), in any order.
        latents: k < n.

    Returns:
        `PPCA`: v is the mean of the n - k smallest eigenvalues, w_i^2 = l_i - v.

    Raises:
        ValueError: for eigenvalues that are no vector, or latents not in 1, ..., n - 1.
    """
    l, latents = eigenvalues(values), _inputs.whole("latents", latents)
    size = l.shape[0]
    if not latents < size:
        raise ValueError(
            f"latents must be fewer than the {size} dimensions of the data, since the noise is "
            f"what is left; got {latents}."
        )
    return _ppca(l, latents)


@jax.jit(static_argnums=1)
def _ppca(l: Array, latents: int) -> PPCA:
    l, size = jnp.sort(l)[::-1], l.shape[0]
    v = jnp.mean(l[latents:])
    kept = jnp.sum(special.log(l[:latents]))
    log_p = -0.5 * (size * (LOG_2PI + 1) + kept + (size - latents) * special.log(v))
    return PPCA(v, jnp.sqrt(l[:latents] - v), log_p)


def _sizes(model: LinearVAE) -> tuple[int, int]:
    decoder, encoder, variance = (jnp.shape(x) for x in model)
    if len(decoder) != 2 or encoder != decoder[::-1] or variance != decoder[1:]:
        raise ValueError(
            f"the model has decoder {decoder}, encoder {encoder} and variance {variance}; "
            "their shapes must be (n, k), (k, n) and (k,)."
        )
    return decoder[0], decoder[1]
