"""What training minimizes in place of -ELBO: the loss of `ElboParts`, and nothing else of it.

    parts = kljax.vae.closed_form(q, p, log_likelihood, key)
    parts = kljax.vae.with_beta(parts, schedule(step))

R is the reconstruction and KL the divergence, both means over the batch in nats:

| function | loss | source |
|---|---|---|
| `with_beta` | R + beta KL | Higgins et al. 2017 |
| `with_term_weights` | R + (a trace + b mahalanobis + c (log_det - dimension)) / 2 | |
| `with_capacity` | R + gamma abs(KL - C) | Burgess et al. 2018 |
| `with_free_bits` | R + beta sum_groups max(nats, KL of the group) | Kingma et al. 2016 |
| `with_constraint` (`multiplier.py`) | KL + lambda (R - tolerance) | Rezende & Viola 2018 |

As published, capacity and free bits compare means over the batch; the variants that compare
every event by itself, and then take the mean, are `..._per_sample`. They differ: a mean can be
above a threshold that half of the events are below.

A delta-VAE (Razavi et al. 2019) leaves the loss alone and takes posteriors away:
`delta_vae_log_variance` and `delta_vae_rate`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kljax._record import as_array
from kljax.vae._inputs import Number, at_least_zero, number, whole
from kljax.vae.estimators import ElboParts
from kljax.vae.terms import LatentTerms, TermWeights, are_ones, weighted


def with_beta(parts: ElboParts, beta: Any) -> ElboParts:
    """R + beta KL, the beta-VAE.

    Args:
        parts: of `closed_form`, `monte_carlo` or `sticking_the_landing`.
        beta: >= 0, such as the value of a schedule.

    Returns:
        The parts with another loss.

    Raises:
        ValueError: if beta is negative (nan where it is traced), or the loss of the estimator
            is no sum of reconstruction and KL.
    """
    check_sum("with_beta", parts)
    return with_loss(parts, mean_reconstruction(parts) + _beta(beta) * jnp.mean(parts.kl))


def with_term_weights(parts: ElboParts, weights: TermWeights) -> ElboParts:
    """R + (a trace + b mahalanobis + c (log_det - dimension)) / 2.

    Args:
        parts: of `closed_form` and a Gaussian pair.
        weights: `TermWeights`; (1, 1, 1) is the ELBO, (beta, beta, beta) a beta-VAE.

    Returns:
        The parts with another loss.

    Raises:
        ValueError: if a weight is negative (nan where it is traced), or parts have no terms.
    """
    _check_closed("with_term_weights", parts)
    if are_ones(weights):
        return with_beta(parts, 1.0)
    if parts.terms is None:
        raise ValueError(
            "with_term_weights needs the terms of a Gaussian pair; there are none."
        )
    kl = weighted(parts.terms, weights)
    if isinstance(parts.terms, LatentTerms):
        kl = jnp.sum(kl, axis=-1)
    return with_loss(parts, mean_reconstruction(parts) + jnp.mean(kl))


def with_capacity(parts: ElboParts, capacity: Any, *, gamma: Any = 1.0) -> ElboParts:
    """R + gamma abs(mean KL - C): a KL that is held at C nats.

    Args:
        parts: of `closed_form`, `monte_carlo` or `sticking_the_landing`.
        capacity: C >= 0 in nats, which a schedule raises from 0.
        gamma: >= 0.
    """
    gap = jnp.abs(jnp.mean(parts.kl) - at_least_zero("capacity", capacity))
    return _with_capacity("with_capacity", parts, gap, gamma)


def with_capacity_per_sample(parts: ElboParts, capacity: Any, *, gamma: Any = 1.0) -> ElboParts:
    """R + gamma mean abs(KL - C): the KL of every event is held at C, not only their mean.

    Arguments as for `with_capacity`.
    """
    gap = jnp.mean(jnp.abs(parts.kl - at_least_zero("capacity", capacity)))
    return _with_capacity("with_capacity_per_sample", parts, gap, gamma)


def _with_capacity(name: str, parts: ElboParts, gap: Array, gamma: Any) -> ElboParts:
    check_sum(name, parts)
    return with_loss(parts, mean_reconstruction(parts) + at_least_zero("gamma", gamma) * gap)


def with_free_bits(
    parts: ElboParts, nats: Any, *, groups: Sequence[int] | None = None, beta: Any = 1.0
) -> ElboParts:
    """R + beta sum_g max(nats, mean KL of group g): no reward for less KL than that.

    The threshold comes before the weight, so annealing beta does not move it.

    Args:
        parts: of `closed_form`, with `LatentTerms`.
        nats: >= 0, for each group.
        groups: the group 0, 1, ... of every latent; without it each latent is its own.
        beta: >= 0.

    Returns:
        The parts with another loss.

    Raises:
        ValueError: if an argument is invalid or parts have no terms per latent.
    """
    by_group = _kl_by_group("with_free_bits", parts, groups)
    least = at_least_zero("nats", nats)
    means = jnp.mean(by_group.reshape(-1, by_group.shape[-1]), axis=0)
    return with_loss(
        parts, mean_reconstruction(parts) + _beta(beta) * jnp.sum(jnp.maximum(means, least))
    )


def with_free_bits_per_sample(
    parts: ElboParts, nats: Any, *, groups: Sequence[int] | None = None, beta: Any = 1.0
) -> ElboParts:
    """R + beta mean sum_g max(nats, KL of group g): the threshold of every event by itself.

    Arguments and errors as for `with_free_bits`.
    """
    by_group = _kl_by_group("with_free_bits_per_sample", parts, groups)
    least = at_least_zero("nats", nats)
    shaped = jnp.sum(jnp.maximum(by_group, least), axis=-1)
    return with_loss(parts, mean_reconstruction(parts) + _beta(beta) * jnp.mean(shaped))


def _kl_by_group(name: str, parts: ElboParts, groups: Sequence[int] | None) -> Array:
    """The KL of every event and group, shape (*batch, groups)."""
    _check_closed(name, parts)
    if not isinstance(parts.terms, LatentTerms):
        raise ValueError(
            f"{name} needs the KL of every latent, which there is for MultivariateNormalDiag "
            "and MultivariateNormal alone."
        )
    kl = parts.terms.total
    if groups is None:
        return kl
    index = np.asarray(groups)
    latents = kl.shape[-1]
    count = int(index.max(initial=-1)) + 1 if index.dtype.kind in "iu" else 0
    if index.shape != (latents,) or set(index.tolist()) != set(range(count)) or not count:
        raise ValueError(
            f"groups must be the group of each of {latents} latents, whole numbers 0, 1, ... "
            f"without a gap; got {groups}."
        )
    summed = jax.ops.segment_sum(jnp.moveaxis(kl, -1, 0), jnp.asarray(index), count)
    return jnp.moveaxis(summed, 0, -1)


# ---- posteriors that cannot be the prior ----------------------------------------------------


def delta_vae_log_variance(x: Any, rate: float) -> Array:
    """A log-variance at which every latent has KL(q ‖ N(0, 1)) >= rate, whatever its mean.

    l_max - softplus(x), where (e^l_max - 1 - l_max) / 2 = rate and l_max < 0.

    Args:
        x: any real numbers, such as the output of an encoder.
        rate: nats that each latent is committed to, >= 0.

    Returns:
        Array of the shape of x.
    """
    least = at_least_zero("rate", rate)
    if not isinstance(least, float) or not math.isfinite(least):
        raise ValueError(f"rate must be a finite number that is known; got {rate}.")
    return _narrowest(least) - jax.nn.softplus(as_array("x", x))


def _narrowest(rate: float) -> float:
    """The negative l with (e^l - 1 - l) / 2 = rate, by Newton's method from below."""
    l = -2 * (rate + math.sqrt(rate))
    for _ in range(60):
        slope = math.expm1(l)
        if slope == 0:
            break
        l -= (slope - l - 2 * rate) / slope
    return l


def delta_vae_rate(correlation: float, steps: int) -> float:
    """The least KL of independent Gaussians to an autoregression of unit variance, in nats.

    ((steps - 2) log(1 + a^2) - log(1 - a^2)) / 2 for the prior z_t = a z_{t-1} + noise of
    variance 1 - a^2: what a delta-VAE with this prior is committed to, for each dimension of
    z_t.

    Args:
        correlation: a, between -1 and 1.
        steps: length of the sequence, at least 2.
    """
    a, steps = number("correlation", correlation), whole("steps", steps, least=2)
    if not isinstance(a, float) or not -1 < a < 1:
        raise ValueError(f"correlation must be between -1 and 1; got {correlation}.")
    return 0.5 * ((steps - 2) * math.log1p(a * a) - math.log1p(-a * a))


# ---- what they share ------------------------------------------------------------------------


def mean_reconstruction(parts: ElboParts) -> Array:
    """R, the mean over the batch."""
    return jnp.mean(parts.reconstruction)


def _beta(beta: Any) -> Number:
    return at_least_zero("beta", beta)


def with_loss(parts: ElboParts, loss: Array) -> ElboParts:
    return dataclasses.replace(parts, loss=loss)


def check_sum(name: str, parts: ElboParts) -> None:
    """Refuses parts whose loss is no sum of reconstruction and KL."""
    if not isinstance(parts, ElboParts):
        raise TypeError(
            f"{name} needs the ElboParts of an estimator; got {type(parts).__name__}."
        )
    if parts.estimator in ("iwae", "dreg"):
        raise ValueError(
            f"{name} needs a loss that is reconstruction + KL; that of {parts.estimator} is "
            "not, and weights would end its being a bound."
        )


def _check_closed(name: str, parts: ElboParts) -> None:
    check_sum(name, parts)
    if parts.estimator != "closed_form":
        raise ValueError(
            f"{name} needs the terms of the KL, which {parts.estimator} samples as a whole; "
            "use closed_form."
        )
