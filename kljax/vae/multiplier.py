"""A reconstruction that is asked for: the least KL within a tolerance, by a multiplier.

    minimize KL subject to R <= tolerance:   KL + lambda (R - tolerance),
    log lambda <- log lambda + rate times the running mean of R - tolerance

(GECO, Rezende & Viola 2018). Up to a factor of lambda this is the ELBO with beta = 1 / lambda,
a beta that is found and not chosen.

    state = kljax.vae.constraint()
    parts = kljax.vae.with_constraint(parts, state, tolerance)
    state = kljax.vae.update_constraint(state, parts, tolerance)
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from kljax._record import Parameter, param, record
from kljax.vae._inputs import at_least_zero, number, positive
from kljax.vae.estimators import ElboParts
from kljax.vae.shaping import check_sum, mean_reconstruction, with_loss

# The multiplier stays between e^-14 and e^14, about 1e-6 and 1e6.
_MOST_LOG_MULTIPLIER = 14.0


@record
class ConstraintState:
    """The multiplier of a constraint and what it follows; see `constraint`.

    Attributes:
        log_multiplier: log lambda.
        average: running mean of reconstruction - tolerance, in nats.
        steps: updates so far.
    """

    log_multiplier: Parameter = param()
    average: Parameter = param()
    steps: Parameter = param()

    @property
    def beta(self) -> Array:
        """1 / lambda, the beta that the loss amounts to at this step."""
        return jnp.exp(-jnp.asarray(self.log_multiplier))


def constraint(multiplier: float = 1.0) -> ConstraintState:
    """The state before the first step, with lambda = multiplier > 0."""
    start = jnp.log(jnp.asarray(positive("multiplier", multiplier)))
    return ConstraintState(start, jnp.zeros_like(start), jnp.zeros((), jnp.int32))


def with_constraint(parts: ElboParts, state: ConstraintState, tolerance: Any) -> ElboParts:
    """KL + lambda (R - tolerance): the least KL whose reconstruction is within the tolerance.

    Args:
        parts: of `closed_form`, `monte_carlo` or `sticking_the_landing`.
        state: of `constraint`, followed up by `update_constraint` after every step.
        tolerance: the reconstruction -E_q log p(x | z) that is asked for, in nats an event; any
            real number, since densities exceed 1.

    Returns:
        The parts with another loss; lambda is a constant in it.
    """
    check_sum("with_constraint", parts)
    multiplier = jnp.exp(jax.lax.stop_gradient(jnp.asarray(state.log_multiplier)))
    violation = mean_reconstruction(parts) - number("tolerance", tolerance)
    return with_loss(parts, jnp.mean(parts.kl) + multiplier * violation)


def update_constraint(
    state: ConstraintState,
    parts: ElboParts,
    tolerance: Any,
    *,
    rate: Any = 1e-3,
    decay: Any = 0.99,
) -> ConstraintState:
    """Log lambda + rate times the running mean of R - tolerance, after one step.

    Args:
        state: before the step.
        parts: of the step.
        tolerance: as in `with_constraint`.
        rate: > 0, for each nat of violation.
        decay: of the running mean, from 0 to below 1; the first value is taken as it is.
    """
    keep = at_least_zero("decay", decay)
    if isinstance(keep, float) and keep >= 1:
        raise ValueError(f"decay must be below 1; got {keep:g}.")
    violation = jax.lax.stop_gradient(mean_reconstruction(parts)) - number(
        "tolerance", tolerance
    )
    running = keep * state.average + (1 - keep) * violation
    average = jnp.where(jnp.asarray(state.steps) == 0, violation, running)
    moved = state.log_multiplier + positive("rate", rate) * average
    bounded = jnp.clip(moved, -_MOST_LOG_MULTIPLIER, _MOST_LOG_MULTIPLIER)
    return ConstraintState(bounded, average, state.steps + 1)
