"""Where the KL of a data set goes: into information about the data, or away from the prior.

With q(z) = (1 / N) sum_n q(z | x_n), the aggregated posterior of N data points,

    mean KL(q(z | x_n) ‖ p) = I(x; z) + KL(q(z) ‖ p),
    KL(q(z) ‖ p) = TC + sum_i KL(q(z_i) ‖ p(z_i)),   TC = KL(q(z) ‖ prod_i q(z_i)),

for a prior of independent latents (Hoffman and Johnson 2016, "ELBO surgery"; Chen et al. 2018,
arXiv 1802.04942). I(x; z) <= log N. Only the information is sampled here,

    I(x; z) = E log q(z | x_n) - log q(z),   I(x; z_i) = E log q(z_i | x_n) - log q(z_i);

what is left of a closed form is the rest: KL(q(z) ‖ p) = KL - I(x; z), the same for every
latent, and TC is the rest of that. So the parts add up to the KL exactly, and where the
information is certain (a collapsed latent, or data that posteriors tell apart) all of them are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp
from jax.sharding import Mesh, PartitionSpec

from kljax import distribution, divergence
from kljax._record import as_array
from kljax.families.gaussian import MultivariateNormalDiag
from kljax.vae import _inputs, _posteriors
from kljax.vae._posteriors import Posteriors

# Numbers that a chunk of points compared with all data may hold.
_CHUNK = 1 << 22

Kind = Literal["stratified", "symmetric", "weighted"]


class AggregatedLogProb(NamedTuple):
    """Log-density of the aggregated posterior in nats.

    Attributes:
        joint: log q(z), shape (points,).
        latents: log q(z_i) of every latent by itself, shape (points, latents).
    """

    joint: Array
    latents: Array


class Decomposition(NamedTuple):
    """The mean KL of a data set and its parts, in nats.

    kl = mutual_information + marginal_kl, marginal_kl = total_correlation + sum(latent_kl).

    Attributes:
        kl: mean of KL(q(z | x_n) ‖ p), in closed form.
        mutual_information: I(x; z), at most log N.
        marginal_kl: KL(q(z) ‖ p).
        total_correlation: KL(q(z) ‖ prod_i q(z_i)).
        latent_kl: KL(q(z_i) ‖ p(z_i)), shape (latents,); their sum is the dimension-wise KL.
        latent_information: I(x; z_i), shape (latents,).
        information_error: standard error of `mutual_information` and of `marginal_kl`.
        total_correlation_error: standard error of `total_correlation`.
        latent_error: standard errors of `latent_information` and of `latent_kl`.
    """

    kl: Array
    mutual_information: Array
    marginal_kl: Array
    total_correlation: Array
    latent_kl: Array
    latent_information: Array
    information_error: Array
    total_correlation_error: Array
    latent_error: Array


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


def aggregated_log_prob(
    q: Posteriors,
    z: Any,
    log_weights: Any = None,
    *,
    mesh: Mesh | None = None,
) -> AggregatedLogProb:
    """The log-density of the aggregated posterior of a data set, exactly.

    Points are compared with all data in chunks, so memory stays bounded: a chunk holds 2^22
    numbers, or one point's.

    Args:
        q: posteriors of N data points, `MultivariateNormalDiag` or `MultivariateNormal` with
            one batch axis.
        z: points, shape (points, latents).
        log_weights: of the data points instead of -log N, shape (points, N); see
            `minibatch_weights`.
        mesh: devices that share the points, along its first axis; the posteriors are on all.

    Returns:
        `AggregatedLogProb`, differentiable by q, z and weights.

    Raises:
        TypeError: if q is of another family.
        ValueError: if shapes do not fit together.
    """
    data, latents = _posteriors.checked("aggregated_log_prob", q)
    z = as_array("z", z)
    if z.ndim != 2 or z.shape[1] != latents:
        raise ValueError(f"z has shape {z.shape}; it must be (points, {latents}).")
    if log_weights is not None:
        log_weights = as_array("log_weights", log_weights)
        if log_weights.shape != (len(z), data):
            raise ValueError(
                f"log_weights has shape {log_weights.shape}; it must be (points, data) = "
                f"({len(z)}, {data})."
            )
    return _aggregated(_posteriors.expanded(q, data), z, log_weights, mesh=mesh)


@jax.jit(static_argnames="mesh")
def _aggregated(
    q: Posteriors, z: Array, log_weights: Array | None, *, mesh: Mesh | None
) -> AggregatedLogProb:
    data, latents = q.loc.shape
    each = data * (latents + 1)
    compare = partial(jax.lax.map, partial(_of_point, q), batch_size=max(1, _CHUNK // each))
    if mesh is None:
        return compare((z, log_weights))
    # Every device takes as many points; the ones that fill up are dropped.
    points, axis = len(z), mesh.axis_names[0]
    devices = mesh.shape[axis]
    rows = jnp.arange(devices * math.ceil(points / devices))
    filled = jax.tree.map(lambda x: x[rows % points], (z, log_weights))
    shared = jax.shard_map(
        compare, mesh=mesh, in_specs=(PartitionSpec(axis),), out_specs=PartitionSpec(axis)
    )
    return jax.tree.map(lambda x: x[:points], shared(filled))


def _of_point(q: Posteriors, point: tuple[Array, Array | None]) -> AggregatedLogProb:
    z, log_weights = point
    latents = distribution.log_prob(_posteriors.marginals(q), z)
    if isinstance(q, MultivariateNormalDiag):
        joint = jnp.sum(latents, axis=1)
    else:
        joint = distribution.log_prob(q, z)
    if log_weights is None:
        off = math.log(joint.shape[0])
        return AggregatedLogProb(logsumexp(joint) - off, logsumexp(latents, axis=0) - off)
    return AggregatedLogProb(
        logsumexp(joint + log_weights), logsumexp(latents + log_weights[:, None], axis=0)
    )


def decompose(
    q: Posteriors,
    key: Array,
    *,
    prior: MultivariateNormalDiag | None = None,
    samples: int = 1,
    mesh: Mesh | None = None,
) -> Decomposition:
    """Where the mean KL of a data set goes, against its exact aggregated posterior.

    The information is estimated without bias, since q(z) is exact; the cost is N^2 densities
    a sample and latent.

    Args:
        q: posteriors of N data points, `MultivariateNormalDiag` or `MultivariateNormal` with
            one batch axis.
        key: a `jax.random.key`.
        prior: of independent latents, by default N(0, I).
        samples: draws from each posterior.
        mesh: as for `aggregated_log_prob`.

    Returns:
        `Decomposition`. Its standard errors are those of independent draws, so at most
        conservative: drawing equally from every posterior can only do better.

    Raises:
        TypeError: if q or the prior is of another family.
        ValueError: if shapes do not fit together.
    """
    data, _ = _posteriors.checked("decompose", q)
    samples = _inputs.whole("samples", samples)
    prior = _posteriors.factorized_prior("decompose", prior, q)
    q = _posteriors.expanded(q, data)
    z = distribution.sample(q, key, samples)
    points = z.reshape(-1, z.shape[-1])
    aggregated = _aggregated(q, points, None, mesh=mesh)
    return _decomposition(q, prior, z, aggregated)


@jax.jit
def _decomposition(
    q: Posteriors, prior: MultivariateNormalDiag, z: Array, aggregated: AggregatedLogProb
) -> Decomposition:
    """The parts, from draws z of shape (samples, N, latents) and log q(z) of each of them."""
    own = distribution.log_prob(_posteriors.marginals(q), z).reshape(-1, z.shape[-1])
    if isinstance(q, MultivariateNormalDiag):
        own_joint = jnp.sum(own, axis=1)
    else:
        own_joint = distribution.log_prob(q, z).ravel()
    information = own_joint - aggregated.joint
    latent_information = own - aggregated.latents
    kl = divergence.kl_divergence(q, prior)
    latent_kl = divergence.kl_divergence(_posteriors.marginals(q), _posteriors.marginals(prior))
    rest = jnp.mean(kl) - jnp.mean(information)
    latent_rest = jnp.mean(latent_kl, axis=0) - jnp.mean(latent_information, axis=0)
    correlation = jnp.sum(latent_information, axis=1) - information

    def error(x: Array) -> Array:
        return (
            jnp.std(x, axis=0, ddof=1) / math.sqrt(x.shape[0]) if len(x) > 1 else x[0] * jnp.nan
        )

    return Decomposition(
        kl=jnp.mean(kl),
        mutual_information=jnp.mean(information),
        marginal_kl=rest,
        total_correlation=rest - jnp.sum(latent_rest),
        latent_kl=latent_rest,
        latent_information=jnp.mean(latent_information, axis=0),
        information_error=error(information),
        total_correlation_error=error(correlation),
        latent_error=error(latent_information),
    )


# ---- from a minibatch -----------------------------------------------------------------------


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
    aggregated = _aggregated(q, z, weights.log_weights, mesh=None)
    return _decomposition(q, prior, z[None], aggregated)
