"""Weights that change during training, as functions of the step (optax schedules).

    beta = kljax.vae.schedules.linear(0.0, 1.0, steps=1000)
    kljax.vae.check_schedule(beta, run_steps=5000)

A schedule is called with the step and returns a number; every optax schedule serves as well.
One that is still moving when training ends leaves a model that was never trained on the
objective it is judged by; `check_schedule` says so.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kljax.vae._inputs import number, whole

_Step = int | Array
# What a schedule of unknown length is compared with: its value long after the run.
_LATE = 2**30


class ScheduleWarning(UserWarning):
    """A schedule that is still moving at the end of the run."""


@dataclass(frozen=True)
class Schedule:
    """A function of the step that stays where it is from the step `steps` on.

    Attributes:
        way: fraction of the way, 0 to 1, at a step from 0 to `steps`.
        start: value at step 0.
        end: value from `steps` on.
        steps: length.
        name: for messages.
    """

    way: Callable[[Array], Array]
    start: float
    end: float
    steps: int
    name: str

    def __call__(self, step: _Step) -> Array:
        """The value at a step, of its shape; steps before 0 count as 0."""
        done = jnp.clip(jnp.asarray(step), 0, self.steps)
        between = self.start + (self.end - self.start) * self.way(done)
        return jnp.where(done >= self.steps, self.end, between).astype(jnp.result_type(float))


def constant(value: float) -> Schedule:
    """The same value at every step."""
    value = _fixed("value", value)
    return Schedule(jnp.ones_like, value, value, 0, "constant")


def linear(start: float, end: float, steps: int) -> Schedule:
    """A straight line from start to end in so many steps (Bowman et al. 2016)."""
    return _ramp("linear", lambda part: part, start, end, steps)


def cosine(start: float, end: float, steps: int) -> Schedule:
    """Half a cosine, level at both ends: the way is (1 - cos(pi step / steps)) / 2."""
    return _ramp("cosine", lambda part: jnp.sin(0.5 * math.pi * part) ** 2, start, end, steps)


def sigmoid(start: float, end: float, steps: int, *, steepness: float = 12.0) -> Schedule:
    """A logistic curve around the middle, stretched so that it meets start and end.

    Args:
        start: value at step 0.
        end: value from `steps` on.
        steps: length.
        steepness: > 0, how many units of the logistic function the length is: its argument
            runs from -steepness / 2 to steepness / 2.
    """
    steepness = _fixed("steepness", steepness)
    if not steepness > 0:
        raise ValueError(f"steepness must be a number > 0; got {steepness:g}.")
    edge = math.tanh(0.25 * steepness)

    def way(part: Array) -> Array:
        return 0.5 + 0.5 * jnp.tanh(0.5 * steepness * (part - 0.5)) / edge

    return _ramp("sigmoid", way, start, end, steps)


def cyclical(
    start: float, end: float, steps: int, *, cycles: int = 4, ramp: float = 0.5
) -> Schedule:
    """Linear ramps from start to end, each followed by a hold (Fu et al. 2019).

    Args:
        start: value at the beginning of every cycle.
        end: value during every hold, and from `steps` on.
        steps: length of all cycles together.
        cycles: how many.
        ramp: the part of a cycle that its ramp takes, above 0 and at most 1.
    """
    cycles = whole("cycles", cycles)
    ramp = _fixed("ramp", ramp)
    if not 0 < ramp <= 1:
        raise ValueError(f"ramp must be above 0 and at most 1; got {ramp:g}.")
    steps = whole("steps", steps)
    if steps < cycles:
        raise ValueError(f"{cycles} cycles need at least as many steps; got {steps}.")

    def way(step: Array) -> Array:
        # In whole numbers: rounding would put a step into the cycle before its own.
        return jnp.minimum((step * cycles % steps) / (steps * ramp), 1)

    return Schedule(way, _fixed("start", start), _fixed("end", end), steps, "cyclical")


def _ramp(
    name: str, way: Callable[[Array], Array], start: float, end: float, steps: int
) -> Schedule:
    """A schedule whose way is a function of the fraction of its length."""
    start, end, steps = _fixed("start", start), _fixed("end", end), whole("steps", steps)
    return Schedule(lambda step: way(step / steps), start, end, steps, name)


def _fixed(name: str, value: Any) -> float:
    x = number(name, value)
    if not isinstance(x, float) or not math.isfinite(x):
        raise ValueError(f"{name} must be a finite number that is known; got {value}.")
    return x


def check_schedule(schedule: Callable[[Any], Any], run_steps: int) -> None:
    """Warns if a schedule is still moving when training ends.

    Args:
        schedule: of this module, of optax, or any function of the step.
        run_steps: how many steps training takes.

    Raises:
        TypeError: if the schedule is no function.
        ValueError: if run_steps is not a whole number > 0.

    Warns:
        ScheduleWarning: if it ends after the run, or is elsewhere at the last step than long
            after it.
    """
    run_steps = whole("run_steps", run_steps)
    if not callable(schedule):
        raise TypeError(
            f"schedule must be a function of the step; got a {type(schedule).__name__}."
        )
    with jax.ensure_compile_time_eval():
        last, late = (np.asarray(schedule(step)) for step in (run_steps - 1, _LATE))
    if isinstance(schedule, Schedule):
        what = f"the {schedule.name} schedule takes {schedule.steps:,} steps, more"
        outlasts = schedule.steps > run_steps
    else:
        what = "the schedule takes more steps"
        outlasts = not np.allclose(last, late, rtol=1e-3, atol=1e-6)
    if outlasts:
        warnings.warn(
            f"{what} than the run, {run_steps:,}: training ends at {float(last):g}, not at "
            f"{float(late):g}; shorten the schedule or train longer.",
            ScheduleWarning,
            stacklevel=2,
        )
