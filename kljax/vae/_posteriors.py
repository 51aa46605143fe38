"""The posteriors of a data set and their prior, as decomposition and report take them."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from kljax import _record, distribution
from kljax.families.gaussian import (
    MultivariateNormal,
    MultivariateNormalDiag,
    Normal,
    standard_normal,
)

Posteriors = MultivariateNormalDiag | MultivariateNormal


def checked(function: str, q: Any) -> tuple[int, int]:
    """How many posteriors there are, and of how many latents."""
    if not isinstance(q, Posteriors):
        raise TypeError(
            f"{function} needs q of MultivariateNormalDiag or MultivariateNormal, with one "
            f"posterior a data point; got {_record.describe(q)}."
        )
    arguments = _record.arguments_of("q", q)
    _record.check_event_sizes(arguments)
    batch = _record.broadcast_batch_shapes(arguments)
    if len(batch) != 1 or not batch[0]:
        raise ValueError(
            f"{function} needs q with one axis of data points, so a mean of shape (data, "
            f"latents); got batch shape {batch}."
        )
    return batch[0], jnp.shape(q.loc)[-1]


def expanded(q: Posteriors, data: int) -> Posteriors:
    """Every parameter with the axis of data points, also one that all of them share."""
    shaped = {a.name.removeprefix("q."): a for a in _record.arguments_of("q", q)}
    return type(q)(
        **{
            name: jnp.broadcast_to(a.value, (data, *a.value.shape[len(a.batch_shape) :]))
            for name, a in shaped.items()
        }
    )


def factorized_prior(function: str, prior: Any, q: Posteriors) -> MultivariateNormalDiag:
    """The prior whose latents are independent and the same for all data; N(0, I) by default."""
    latents = jnp.shape(q.loc)[-1]
    if prior is None:
        dtype = jnp.promote_types(jnp.result_type(q.loc), jnp.float32)
        return standard_normal(latents, dtype)
    if not isinstance(prior, MultivariateNormalDiag):
        raise TypeError(
            f"{function} needs a prior of independent latents, a MultivariateNormalDiag; got "
            f"{_record.describe(prior)}."
        )
    arguments = _record.arguments_of("prior", prior)
    _record.check_event_sizes(arguments)
    batch, size = _record.broadcast_batch_shapes(arguments), jnp.shape(prior.loc)[-1]
    if batch or size != latents:
        raise ValueError(
            f"{function} needs one prior of {latents} latents for all data; got batch shape "
            f"{batch} and {size} latents."
        )
    return prior


def marginals(x: Any) -> Normal:
    """Every latent by itself, with the axis of latents as the last batch axis."""
    if isinstance(x, MultivariateNormalDiag):
        # As given, so that the divergence of a latent keeps its digits.
        return Normal(x.loc, x.scale_diag, log_variance=x.log_variance, variance=x.variance)
    return Normal(x.loc, variance=distribution.variance(x))
