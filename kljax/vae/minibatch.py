"""The aggregated posterior of a data set estimated from a minibatch, and weights for that."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jax import Array

from kljax._record import as_array
from kljax.families.gaussian import MultivariateNormalDiag
from kljax.vae import _inputs, _posteriors
from kljax.vae._posteriors import Posteriors
from kljax.vae.aggregate import Decomposition, decomposition, log_prob_of

Kind = Literal["stratified", "symmetric", "weighted"]


class MinibatchWeights(NamedTuple):
    """What stands in for 1 / N when q(z) is estimated from the posteriors of a minibatch.

    Attributes:
        log_weights: entry (i, j) is the log of what q(z | x_j) is multiplied with for a z
            drawn from the posterior of x_i, shape (batch, batch).
        offset: log of the sum of a row. 0 for weights whose estimate of q(z) is unbiased; else
            log q(z), joint and of every latent, is off by about this much, and a total
            correlation of k latents by about (1 - k) times it.
    """

    log_weights: Array
    offset: float


def minibatch_weights(batch: int, data: int, kind: Kind = "symmetric") -> MinibatchWeights:
    """Weights that estimate q(z) of a data set from a minibatch drawn without replacement.

    For a z drawn from the posterior of x_i, which is in the minibatch for certain while every
    other data point is there with the same probability, row i has

    - `"symmetric"`: 1 / N for itself, (N - 1) / (N M) for every other, where M = batch - 1.
      Unbiased, and 1 / N for all where the minibatch is the data set.
    - `"stratified"`: 1 / N for itself, 1 / M for the others but one, (N - M) / (N M) for that
      one (Chen et al. 2018). Unbiased; the mean over which is the odd one is the former, so it
      varies more. Their published program, and others after it, have the first column in
      place of the diagonal, so that the estimate is biased.
    - `"weighted"`: 1 / (N batch) for all (minibatch-weighted sampling, ibid.). Biased: rows add
      up to 1 / N, so log q(z) is too low, by log N where the others make up most of q(z) and
      by log(batch) where z's own posterior does. Its total correlation of k latents is too
      high by up to (k - 1) log N.

    The logarithm of an unbiased estimate is still too low on average (Jensen), so a total
    correlation is not unbiased for any of them; `decompose` has the exact q(z).

    Args:
        batch: size of the minibatch, at least 2.
        data: N, at least `batch`.
        kind: which weights.

    Raises:
        TypeError: if a size is not a whole number.
        ValueError: if a size is out of range or the kind unknown.
    """
    batch, data = _inputs.whole("batch", batch, 2), _inputs.whole("data", data, 2)
    if data < batch:
        raise ValueError(
            f"data must be at least batch, since a minibatch has no data point twice; got "
            f"data={data} and batch={batch}."
        )
    if kind not in _KINDS:
        raise ValueError(f"kind must be one of {', '.join(_KINDS)}; got {kind!r}.")
    return _KINDS[kind](batch, data)


def _stratified(batch: int, data: int) -> MinibatchWeights:
    rest = batch - 1
    # The odd one of row i is i + 1, so that each has the part once.
    itself = jnp.eye(batch, dtype=bool)
    odd = jnp.roll(itself, 1, axis=1)
    others = jnp.where(odd, math.log((data - rest) / (data * rest)), -math.log(rest))
    return MinibatchWeights(jnp.where(itself, -math.log(data), others), 0.0)


def _symmetric(batch: int, data: int) -> MinibatchWeights:
    other = math.log((data - 1) / (data * (batch - 1)))
    itself = jnp.eye(batch, dtype=bool)
    return MinibatchWeights(jnp.where(itself, -math.log(data), other), 0.0)


def _weighted(batch: int, data: int) -> MinibatchWeights:
    return MinibatchWeights(jnp.full((batch, batch), -math.log(data * batch)), -math.log(data))


_KINDS: dict[str, Callable[[int, int], MinibatchWeights]] = {
    "stratified": _stratified,
    "symmetric": _symmetric,
    "weighted": _weighted,
}


def decompose_minibatch(
    q: Posteriors,
    z: Any,
    data: int,
    *,
    prior: MultivariateNormalDiag | None = None,
    kind: Kind = "symmetric",
) -> Decomposition:
    """The parts of the KL estimated from a minibatch, for a loss that weights them.

    The minibatch's mean KL is exact; the rest is estimated with `minibatch_weights`, whose
    errors it shares, and differentiable by q and z. The standard errors do not include them.

    Args:
        q: posteriors of the minibatch, with one batch axis.
        z: one draw from each of them, shape (batch, latents).
        data: N, how many data points there are.
        prior: of independent latents, by default N(0, I).
        kind: which weights.

    Returns:
        `Decomposition`, of the minibatch.

    Raises:
        TypeError: if q or the prior is of another family.
        ValueError: if shapes do not fit together, or a size is out of range.
    """
    batch, latents = _posteriors.checked("decompose_minibatch", q)
    prior = _posteriors.factorized_prior("decompose_minibatch", prior, q)
    z = as_array("z", z)
    if z.shape != (batch, latents):
        raise ValueError(
            f"z has shape {z.shape}; one draw from each posterior is ({batch}, {latents})."
        )
    weights = minibatch_weights(batch, data, kind)
    q = _posteriors.expanded(q, batch)
    aggregated = log_prob_of(q, z, weights.log_weights, mesh=None)
    return decomposition(q, prior, z[None], aggregated)
