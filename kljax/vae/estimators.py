"""Estimators of the objective: the same call, the same record, and its unweighted parts.

    parts = kljax.vae.closed_form(q, p, log_likelihood, key)
    parts.loss            # what to minimize; beta, free bits, ... change it alone
    parts.elbo            # of every event, at weights one, whatever the loss is

`log_likelihood(z)` is log p(x | z) with the event axes of x summed; z has the shape
(samples, *batch, latents), and what it returns (samples, *batch). Everything is in nats; losses
are means over the batch.

| estimator | loss | source |
|---|---|---|
| `closed_form` | -E_q log p(x|z) + KL by its formula | Kingma & Welling 2014 |
| `monte_carlo` | -E_q [log p(x|z) + log p(z) - log q(z)] by samples | the same |
| `sticking_the_landing` | the same value, no score of q in its gradient | Roeder et al. 2017 |
| `iwae` | -log (1/K) sum_k w_k, w = p(x, z) / q(z) | Burda et al. 2016 |
| `dreg` | the same value, its gradient by q reparametrized twice | Tucker et al. 2019 |
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import logsumexp

from kljax import _pytree, _record, distribution, divergence
from kljax.families.gaussian import GaussianTerms
from kljax.vae._inputs import whole
from kljax.vae.terms import LatentTerms, has_latent_terms, latent_terms

LogLikelihood = Callable[[Array], Array]


@dataclass(frozen=True, eq=False)
class ElboParts:
    """A loss and the unweighted parts of the objective, in nats.

    Attributes:
        loss: a scalar, the mean over the batch of what is minimized.
        bound: the lower bound on log p(x) that the estimator estimates, shape (*batch).
        reconstruction: -E_q log p(x | z), shape (*batch).
        kl: KL(q ‖ p) as estimated, shape (*batch).
        terms: the terms of the KL in closed form: `LatentTerms` for `MultivariateNormalDiag`
            and `MultivariateNormal`, `kljax.GaussianTerms` for other Gaussian pairs, else
            None.
        estimator: the name of the estimator.
    """

    loss: Array
    bound: Array
    reconstruction: Array
    kl: Array
    terms: LatentTerms | GaussianTerms | None
    estimator: str

    @property
    def elbo(self) -> Array:
        """-(reconstruction + kl), at weights one, shape (*batch)."""
        return -(self.reconstruction + self.kl)


_pytree.register(
    ElboParts,
    data_fields=["loss", "bound", "reconstruction", "kl", "terms"],
    meta_fields=["estimator"],
)


def closed_form(
    q: Any, p: Any, log_likelihood: LogLikelihood, key: Array, *, samples: int = 1
) -> ElboParts:
    """-E_q log p(x | z) + KL(q ‖ p): samples for the first, a formula for the second.

    Args:
        q: the posterior, whose KL to p has a closed form. Its batch shape is that of x.
        p: the prior, with the batch shape of q or none.
        log_likelihood: function of latents (samples, *batch, latents) to log p(x | z), of
            shape (samples, *batch), event axes summed.
        key: a `jax.random.key`.
        samples: latents drawn for every event.

    Returns:
        `ElboParts`; its loss is the mean of -bound over the batch.

    Raises:
        TypeError: if q or p is no distribution, or has no closed form.
        ValueError: if log_likelihood returns another shape, or shapes do not fit.
    """
    divergence.closed_form("closed_form", q, p)
    z, shape = _draw(q, p, key, samples)
    reconstruction = -jnp.mean(_evaluate(log_likelihood, z, shape), axis=0)
    kl = jnp.broadcast_to(divergence.kl_divergence(q, p), shape[1:])
    return _sum_of("closed_form", q, p, reconstruction, kl)


def monte_carlo(
    q: Any, p: Any, log_likelihood: LogLikelihood, key: Array, *, samples: int = 1
) -> ElboParts:
    """-E_q [log p(x | z) + log p(z) - log q(z)], all of it by the same samples.

    For pairs without a closed form. Where the posterior is nearly exact its value varies less
    than that of `closed_form`, its gradient does not. Arguments and errors as for
    `closed_form`; p needs a `log_prob` and no closed form.
    """
    z, shape = _draw(q, p, key, samples)
    found = _evaluate(log_likelihood, z, shape)
    kl = jnp.mean(_log_ratio(q, p, z), axis=0)
    return _sum_of("monte_carlo", q, p, -jnp.mean(found, axis=0), kl)


def sticking_the_landing(
    q: Any, p: Any, log_likelihood: LogLikelihood, key: Array, *, samples: int = 1
) -> ElboParts:
    """`monte_carlo` whose gradient leaves out the score of q, whose mean is 0.

    With the same mean, and a variance that goes to 0 as q becomes the exact posterior. Values
    are those of `monte_carlo`. Arguments and errors as there.
    """
    z, shape = _draw(q, p, key, samples)
    found = _evaluate(log_likelihood, z, shape)
    kl = jnp.mean(_log_ratio(_constant(q), p, z), axis=0)
    return _sum_of("sticking_the_landing", q, p, -jnp.mean(found, axis=0), kl)


def iwae(
    q: Any, p: Any, log_likelihood: LogLikelihood, key: Array, *, samples: int = 8
) -> ElboParts:
    """-log (1/K) sum_k p(x, z_k) / q(z_k) of K samples, a bound that rises with K.

    It is no sum of reconstruction and KL: both are reported, by the same samples, and cannot
    be weighted. Arguments and errors as for `monte_carlo`.
    """
    z, shape = _draw(q, p, key, samples)
    found, log_ratio = _evaluate(log_likelihood, z, shape), _log_ratio(q, p, z)
    bound = _log_mean_exp(found - log_ratio)
    return _importance_weighted("iwae", q, p, found, log_ratio, -jnp.mean(bound))


def dreg(
    q: Any, p: Any, log_likelihood: LogLikelihood, key: Array, *, samples: int = 8
) -> ElboParts:
    """`iwae` whose gradient by q is reparametrized twice: the same mean, less variance.

    With normalized weights w_k held fixed, the gradient by q is that of sum_k w_k^2 log w_k
    through z alone, and by everything else that of sum_k w_k log w_k. Values are those of
    `iwae`; second derivatives are not those of the bound. It decodes once and differentiates
    that by z. Arguments and errors as for `monte_carlo`; log_likelihood must treat every
    sample by itself.
    """
    z, shape = _draw(q, p, key, samples)
    fixed = _constant(q)

    def log_weights(z: Array) -> tuple[Array, tuple[Array, Array]]:
        found, log_ratio = _evaluate(log_likelihood, z, shape), _log_ratio(fixed, p, z)
        return found - log_ratio, (found, log_ratio)

    log_w, by_z, (found, log_ratio) = jax.vjp(
        log_weights, jax.lax.stop_gradient(z), has_aux=True
    )
    share = jax.lax.stop_gradient(jax.nn.softmax(log_w, axis=0))
    slope = jax.lax.stop_gradient(by_z(share * share)[0])
    surrogate = jnp.sum(share * log_w) + jnp.sum(slope * z)
    mean = -jnp.mean(_log_mean_exp(log_w))
    loss = _with_slope_of(mean, -surrogate / max(log_w[0].size, 1))
    return _importance_weighted("dreg", q, p, found, log_ratio, loss)


# By name, for flags.
ESTIMATORS = {
    estimator.__name__: estimator
    for estimator in (closed_form, monte_carlo, sticking_the_landing, iwae, dreg)
}


# ---- what they share ------------------------------------------------------------------------


def _draw(q: Any, p: Any, key: Array, samples: int) -> tuple[Array, tuple[int, ...]]:
    """Latents (samples, *batch, *event), and the shape (samples, *batch)."""
    for name, x in (("q", q), ("p", p)):
        if not _record.is_record(x):
            raise TypeError(
                f"an estimator needs two distributions, q first; {name} is "
                f"{_record.describe(x)}."
            )
    samples = whole("samples", samples)
    batch = _batch(q, "q")
    both = _record.broadcast_batch_shapes(
        [*_record.arguments_of("q", q), *_record.arguments_of("p", p)]
    )
    if both != batch:
        raise ValueError(
            f"p has the batch shape {_batch(p, 'p')} and q {batch}; an event needs a posterior "
            "of its own, so q must have every batch axis."
        )
    return distribution.sample(q, key, samples), (samples, *batch)


def _batch(x: Any, name: str) -> tuple[int, ...]:
    return _record.broadcast_batch_shapes(_record.arguments_of(name, x))


def _evaluate(log_likelihood: LogLikelihood, z: Array, shape: tuple[int, ...]) -> Array:
    """Log p(x | z) of every sample, or a sentence about its shape."""
    if not callable(log_likelihood):
        raise TypeError(
            "log_likelihood must be a function of the latents; got "
            f"{_record.describe(log_likelihood)}."
        )
    found = _record.as_array("log_likelihood(z)", log_likelihood(z))
    if found.shape != shape:
        raise ValueError(
            f"log_likelihood(z) has shape {found.shape}; for z of shape {z.shape} it must be "
            f"(samples, *batch) = {shape}, with the event axes of x summed."
        )
    return found.astype(jnp.promote_types(found.dtype, jnp.float32))


def _log_ratio(q: Any, p: Any, z: Array) -> Array:
    """Log q(z) - log p(z), of shape (samples, *batch)."""
    return distribution.log_prob(q, z) - distribution.log_prob(p, z)


def _constant(q: Any) -> Any:
    return jax.tree.map(jax.lax.stop_gradient, q)


def _log_mean_exp(log_w: Array) -> Array:
    return logsumexp(log_w, axis=0) - math.log(log_w.shape[0])


def _with_slope_of(value: Array, carrier: Array) -> Array:
    """A value with the first derivative of another."""
    return jax.lax.stop_gradient(value) + (carrier - jax.lax.stop_gradient(carrier))


def _sum_of(name: str, q: Any, p: Any, reconstruction: Array, kl: Array) -> ElboParts:
    loss = jnp.mean(reconstruction) + jnp.mean(kl)
    return ElboParts(loss, -(reconstruction + kl), reconstruction, kl, _terms(q, p), name)


def _importance_weighted(
    name: str, q: Any, p: Any, found: Array, log_ratio: Array, loss: Array
) -> ElboParts:
    bound = _log_mean_exp(found - log_ratio)
    reconstruction, kl = -jnp.mean(found, axis=0), jnp.mean(log_ratio, axis=0)
    return ElboParts(loss, bound, reconstruction, kl, _terms(q, p), name)


def _terms(q: Any, p: Any) -> LatentTerms | GaussianTerms | None:
    if has_latent_terms(q, p):
        return latent_terms(q, p)
    known = {(form.q, form.p) for form in divergence.closed_forms() if form.terms is not None}
    if (type(q), type(p)) not in known:
        return None
    terms = divergence.kl_terms(q, p)
    return terms if isinstance(terms, GaussianTerms) else None
