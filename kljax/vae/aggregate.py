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
from functools import partial
from typing import Any, NamedTuple

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
    return log_prob_of(_posteriors.expanded(q, data), z, log_weights, mesh=mesh)


@jax.jit(static_argnames="mesh")
def log_prob_of(
    q: Posteriors, z: Array, log_weights: Array | None, *, mesh: Mesh | None
) -> AggregatedLogProb:
    """`aggregated_log_prob` of arguments that have been checked."""
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
    aggregated = log_prob_of(q, points, None, mesh=mesh)
    return decomposition(q, prior, z, aggregated)


@jax.jit
def decomposition(
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
