"""-log p(x) by importance sampling from the posterior, and whether to believe it.

    -log p(x) ~ -log (1/S) sum_s w_s,   w_s = p(x, z_s) / q(z_s),   z_s from q

The mean of the weights is only as good as their tail. Beside each estimate stand

    effective samples  (sum w)^2 / sum w^2,
    standard error     of log mean w to first order, that of mean w relative to it,
    Pareto k-hat       the shape of a generalized Pareto law fitted to the largest weights by
                       Zhang & Stephens (2009), drawn a little towards 1/2 as in Vehtari et al.
                       (2024): weights have finite moments up to the order 1 / k.

An estimate is trusted where k-hat is below min(1 - 1 / log10 S, 0.7), the limit of Vehtari et
al. (2024) for S samples, and 10 samples or more are effective (own choice).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.core import Tracer
from jax.scipy.special import logsumexp

from kljax import _pytree, _record, distribution
from kljax.special import as_float
from kljax.vae._inputs import at_least_zero, whole

# Fewer weights than these have no tail of five to fit a law to.
_LEAST_SAMPLES = 25
_LEAST_EFFECTIVE = 10.0
# Log-weights this close are equal up to rounding, as those of an exact posterior are.
_EQUAL = 1e-3


class ImportanceWarning(UserWarning):
    """An importance-sampling estimate that is not to be trusted."""


@dataclass(frozen=True, eq=False)
class ImportanceNLL:
    """Estimates of -log p(x) of every event, in nats, and how far to trust them.

    Attributes:
        nll: -log p(x), shape (events,).
        standard_error: of nll by the samples, shape (events,).
        effective_samples: from 1 to samples, shape (events,).
        pareto_k: k-hat, shape (events,); -inf where the largest weights are equal.
        trusted: whether k-hat and the effective samples are good, shape (events,).
        samples: drawn for every event.
    """

    nll: Array
    standard_error: Array
    effective_samples: Array
    pareto_k: Array
    trusted: Array
    samples: int

    @property
    def mean(self) -> Array:
        """The mean of nll over events."""
        return jnp.mean(self.nll)

    @property
    def mean_standard_error(self) -> Array:
        """The standard error of that mean: events and samples together."""
        return jnp.std(self.nll, ddof=1) / math.sqrt(self.nll.shape[0])

    def verdict(self) -> str:
        """In words, whether to trust the estimates."""
        count, bad = self.nll.shape[0], int(jnp.sum(~self.trusted))
        found = (
            f"Pareto k-hat up to {float(jnp.max(self.pareto_k)):.2f} (limit "
            f"{k_limit(self.samples):.2f}), effective samples down to "
            f"{float(jnp.min(self.effective_samples)):.1f} of {self.samples}"
        )
        if not bad:
            return f"all {count} estimates of -log p(x) are good: {found}."
        return (
            f"{bad} of {count} estimates of -log p(x) are not to be trusted, and probably too "
            f"high: {found}. Draw more samples, or more of them from the prior (defensive=0.5)."
        )


_pytree.register(
    ImportanceNLL,
    data_fields=["nll", "standard_error", "effective_samples", "pareto_k", "trusted"],
    meta_fields=["samples"],
)


def importance_nll(
    posterior: Callable[[Any], Any],
    p: Any,
    log_likelihood: Callable[[Array, Any], Array],
    x: Any,
    key: Array,
    *,
    samples: int = 512,
    sample_chunk: int = 128,
    event_chunk: int = 64,
    defensive: Any = 0.0,
) -> ImportanceNLL:
    """-log p(x) of every event by importance sampling, in bounded memory.

    The functions are asked about one event and vectorized. Results do not depend on the
    chunks but for rounding. Call it under `jax.jit` where it is called more than once.

    Args:
        posterior: function of one event to q(z | x), without a batch.
        p: the prior without a batch, or a function of one event to it.
        log_likelihood: function of latents (n, latents) and one event to log p(x | z) of shape
            (n,), its event axes summed.
        x: events, an array or a pytree of arrays whose first axis are the events.
        key: a `jax.random.key`; each event and sample has a key of its own.
        samples: drawn for every event, at least 25.
        sample_chunk: samples decoded at a time.
        event_chunk: events treated at a time.
        defensive: the share of samples drawn from the prior, from 0 to below 1. They bound
            the weights by p(x | z) / defensive, so that a posterior that is too narrow cannot
            hide a part of p(x); their density is that of the mixture.

    Returns:
        `ImportanceNLL`.

    Raises:
        TypeError: if posterior or p gives no distribution.
        ValueError: if shapes or arguments are invalid.

    Warns:
        ImportanceWarning: if an estimate is not to be trusted (not under jit: ask `verdict`).
    """
    samples = whole("samples", samples, least=_LEAST_SAMPLES)
    sample_chunk = min(whole("sample_chunk", sample_chunk), samples)
    event_chunk = whole("event_chunk", event_chunk)
    share = at_least_zero("defensive", defensive)
    if isinstance(share, float) and share >= 1:
        raise ValueError(f"defensive must be from 0 to below 1; got {share:g}.")
    x = jax.tree.map(jnp.asarray, x)
    sizes = {leaf.shape[:1] for leaf in jax.tree.leaves(x)}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        raise ValueError(
            "x must be events along the first axis of every array, at least one; got shapes "
            f"{', '.join(str(leaf.shape) for leaf in jax.tree.leaves(x)) or 'none'}."
        )
    (count,) = sizes.pop()

    def one(event: tuple[Any, Array]) -> dict[str, Array]:
        data, key = event
        q, prior = posterior(data), p(data) if callable(p) else p
        _check_one(q, "posterior(x)")
        _check_one(prior, "p")
        keys = jax.random.split(key, samples)
        chunks = math.ceil(samples / sample_chunk)
        # Whole chunks only: a shorter last one would be compiled a second time.
        keys = keys[jnp.arange(chunks * sample_chunk) % samples].reshape(chunks, sample_chunk)

        def log_weights(keys: Array) -> Array:
            z = jax.vmap(lambda k: _draw(q, prior, share, k))(keys)
            found = _record.as_array("log_likelihood(z, x)", log_likelihood(z, data))
            if found.shape != keys.shape:
                raise ValueError(
                    f"log_likelihood(z, x) has shape {found.shape}; for latents of shape "
                    f"{z.shape} it must be {keys.shape}, with the event axes of x summed."
                )
            log_prior = distribution.log_prob(prior, z)
            return found + log_prior - _log_proposal(q, log_prior, share, z)

        return summarize(lax.map(log_weights, keys).reshape(-1)[:samples])

    keys = jax.random.split(key, count)
    found = ImportanceNLL(
        **lax.map(one, (x, keys), batch_size=min(event_chunk, count)), samples=samples
    )
    if not isinstance(found.trusted, Tracer) and not bool(jnp.all(found.trusted)):
        warnings.warn(found.verdict(), ImportanceWarning, stacklevel=2)
    return found


def _check_one(x: Any, name: str) -> None:
    if not _record.is_record(x):
        raise TypeError(f"{name} must be a distribution; got {_record.describe(x)}.")
    batch = _record.broadcast_batch_shapes(_record.arguments_of(name, x))
    if batch:
        raise ValueError(
            f"{name} has the batch shape {batch}; importance_nll asks about one event at a "
            "time, whose distribution has none."
        )


def _draw(q: Any, p: Any, share: Any, key: Array) -> Array:
    """A latent from q, or from p as often as `share` says."""
    if isinstance(share, float) and share == 0:
        return distribution.sample(q, key)
    which, key = jax.random.split(key)
    from_prior = jax.random.uniform(which) < share
    return jnp.where(from_prior, distribution.sample(p, key), distribution.sample(q, key))


def _log_proposal(q: Any, log_prior: Array, share: Any, z: Array) -> Array:
    """log((1 - share) q(z) + share p(z))."""
    log_q = distribution.log_prob(q, z)
    if isinstance(share, float) and share == 0:
        return log_q
    return jnp.logaddexp(jnp.log1p(-share) + log_q, jnp.log(share) + log_prior)


# ---- what weights say about themselves ------------------------------------------------------


def summarize(log_weights: Array) -> dict[str, Array]:
    """The fields of `ImportanceNLL` of one event, from its log-weights of shape (samples,)."""
    samples = log_weights.shape[0]
    total = logsumexp(log_weights)
    effective = jnp.exp(2 * total - logsumexp(2 * log_weights))
    # Of weights relative to their mean, which are exactly 1 where all are equal.
    relative = samples * jnp.exp(log_weights - total)
    spread = jnp.sum((relative - 1) ** 2) / (samples * (samples - 1))
    k = pareto_k(log_weights)
    return {
        "nll": math.log(samples) - total,
        "standard_error": jnp.sqrt(spread),
        "effective_samples": effective,
        "pareto_k": k,
        "trusted": (k < k_limit(samples)) & (effective >= _LEAST_EFFECTIVE),
    }


def k_limit(samples: int) -> float:
    """The k-hat up to which a mean of so many weights is good: min(1 - 1 / log10 S, 0.7)."""
    return min(1 - 1 / math.log10(samples), 0.7)


def pareto_k(log_weights: Any) -> Array:
    """Pareto k-hat of the largest weights, from log-weights of shape (samples,).

    The tail are the min(S / 5, 3 sqrt S) largest of S weights, as in Vehtari et al. (2024).

    Returns:
        A scalar: below 0 for a bounded tail, -inf if all of the tail is equal to 1e-3, inf
        where it is too long for the floating-point numbers, nan if a weight is nan.

    Raises:
        ValueError: if there is another axis or fewer than 25 weights.
    """
    log_w = _record.as_array("log_weights", log_weights)
    if log_w.ndim != 1 or log_w.shape[0] < _LEAST_SAMPLES:
        raise ValueError(
            f"log_weights must have shape (samples,) with at least {_LEAST_SAMPLES} samples; "
            f"got {log_w.shape}."
        )
    size = log_w.shape[0]
    tail = math.ceil(min(0.2 * size, 3 * math.sqrt(size)))
    ordered = jnp.sort(lax.stop_gradient(as_float(log_w)))
    cut, top, largest = ordered[-tail - 1], ordered[-tail:], ordered[-1]
    # Weights above the cut, relative to the largest, without a difference of equal numbers.
    excess = jnp.exp(top - largest) * -jnp.expm1(cut - top)
    k = _generalized_pareto_shape(excess)
    k = jnp.where(excess[_quartile(tail)] > 0, k, jnp.inf)
    k = jnp.where(largest - cut < _EQUAL, -jnp.inf, k)
    return jnp.where(jnp.any(jnp.isnan(log_w)), jnp.nan, k)


def _quartile(size: int) -> int:
    return math.floor(size / 4 + 0.5) - 1


def _generalized_pareto_shape(x: Array) -> Array:
    """The shape k of a generalized Pareto law, from excesses in rising order.

    Zhang & Stephens (2009): the profile likelihood of theta = -k / sigma, averaged over a grid.
    """
    size = x.shape[0]
    grid = 30 + math.floor(math.sqrt(size))
    steps = jnp.arange(1, grid + 1, dtype=x.dtype) - 0.5
    theta = 1 / x[-1] + (1 - jnp.sqrt(grid / steps)) / (3 * x[_quartile(size)])
    shapes = jnp.mean(jnp.log1p(-theta[:, None] * x[None, :]), axis=1)
    log_likelihood = size * (jnp.log(-theta / shapes) - shapes - 1)
    best = jnp.sum(theta * jax.nn.softmax(log_likelihood))
    k = jnp.mean(jnp.log1p(-best * x))
    return (size * k + 10 * 0.5) / (size + 10)
