"""Log-likelihoods of a decoder, log p(x | z) in nats with the event axes summed.

    log_likelihood = kljax.vae.likelihoods.bernoulli(logits, x)

Parameters and x have the shape (*batch, *event); the last `event_ndim` axes are an event and
are summed, never averaged. Batch axes broadcast, event sizes never do. Values and gradients are
finite for logits of any finite size; x outside of what the law can give is nan.

Whether a law is a probability or a density decides what its numbers mean: -ELBO bounds
-log p(x) of the data as they are only for a probability (`bernoulli` of 0 and 1, `categorical`,
`binomial`, the discretized laws). A density of whole-number data can grow without bound.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kljax import coordinates
from kljax._record import Argument, as_array, broadcast_batch_shapes, computing_dtype
from kljax.special import LOG_2PI
from kljax.structure import LogVariance, Variance
from kljax.vae import intervals
from kljax.vae._inputs import whole


def bernoulli(logits: Any, x: Any, *, event_ndim: int = 1) -> Array:
    """Sum x log sigmoid(logits) + (1 - x) log sigmoid(-logits).

    Args:
        logits: log-odds of 1, shape (*batch, *event).
        x: 0 or 1. Between them this is a cross-entropy and no log-probability of x: use
            `continuous_bernoulli` for intensities.
        event_ndim: how many axes an event has.

    Returns:
        Array of shape batch, a log-probability.
    """
    logits, x = _events(event_ndim, logits=logits, x=x)
    size, missed = _away(logits, x)
    each = -(jnp.log1p(jnp.exp(-size)) + size * missed)
    return _total(each, (x >= 0) & (x <= 1), event_ndim)


def continuous_bernoulli(logits: Any, x: Any, *, event_ndim: int = 1) -> Array:
    """Sum log(l e^(l x) / (e^l - 1)), the density on [0, 1] that Bernoulli's formula needs.

    The normalizer 2 atanh(1 - 2 lambda) / (1 - 2 lambda) of Loaiza-Ganem & Cunningham (2019) is
    l / tanh(l / 2) for the logit l of lambda, without a hole at lambda = 1/2.

    Args:
        logits: l, shape (*batch, *event).
        x: intensities from 0 to 1.
        event_ndim: how many axes an event has.

    Returns:
        Array of shape batch, a log-density.
    """
    logits, x = _events(event_ndim, logits=logits, x=x)
    size, missed = _away(logits, x)
    each = intervals.log_mean_decay(size) - size * missed
    return _total(each, (x >= 0) & (x <= 1), event_ndim)


def binomial(logits: Any, x: Any, *, count: int, event_ndim: int = 1) -> Array:
    """Sum log C(count, x) + x log sigmoid(logits) + (count - x) log sigmoid(-logits).

    Args:
        logits: log-odds of each of `count` trials, shape (*batch, *event).
        x: whole numbers 0..count.
        count: trials, such as the brightest value of a pixel.
        event_ndim: how many axes an event has.

    Returns:
        Array of shape batch, a log-probability.
    """
    count = whole("count", count)
    logits, x = _events(event_ndim, logits=logits, x=x)
    ways = np.cumsum(np.log(np.arange(count, 0, -1.0)) - np.log(np.arange(1.0, count + 1)))
    table = jnp.asarray(np.concatenate([[0.0], ways]), x.dtype)
    valid = _is_level(x, count)
    chosen = table[jnp.where(valid, x, 0).astype(int)]
    size, missed = _away(logits, x / count)
    each = chosen - count * (jnp.log1p(jnp.exp(-size)) + size * missed)
    return _total(each, valid, event_ndim)


def categorical(logits: Any, x: Any, *, event_ndim: int = 1) -> Array:
    """Sum log softmax(logits)[x].

    Args:
        logits: shape (*batch, *event, classes).
        x: classes 0..classes - 1, shape (*batch, *event).
        event_ndim: how many axes an event of x has.

    Returns:
        Array of shape batch, a log-probability.
    """
    logits = as_array("logits", logits)
    if not logits.ndim:
        raise ValueError("logits has shape (); its last axis must be the classes.")
    classes = logits.shape[-1]
    by_class = jnp.moveaxis(logits, -1, 0)
    log_p = jax.nn.log_softmax(by_class.astype(_computing(logits)), axis=0)
    x = as_array("x", x)
    _check_events(event_ndim, logits=by_class[0], x=x)
    batch = _batch_shape(event_ndim, logits=by_class[0], x=x)
    shape = batch + x.shape[x.ndim - event_ndim :]
    x, log_p = jnp.broadcast_to(x, shape), jnp.broadcast_to(log_p, (classes, *shape))
    valid = _is_level(x, classes - 1)
    index = jnp.where(valid, x, 0).astype(int)[None]
    return _total(jnp.take_along_axis(log_p, index, axis=0)[0], valid, event_ndim)


def gaussian(
    loc: Any,
    x: Any,
    *,
    variance: Any = None,
    log_variance: Any = None,
    event_ndim: int = 1,
) -> Array:
    """-sum ((x - loc)^2 / variance + log variance + log 2 pi) / 2.

    Args:
        loc: shape (*batch, *event).
        x: real numbers.
        variance: > 0, one number, one an event's coordinate or one of everything; fixed.
        log_variance: its logarithm instead, for a variance that is learned.
        event_ndim: how many axes an event has.

    Returns:
        Array of shape batch, a log-density.
    """
    if (variance is None) == (log_variance is None):
        raise ValueError("gaussian needs exactly one of variance and log_variance.")
    given = {"variance": variance} if log_variance is None else {"log_variance": log_variance}
    loc, x, (spread,) = _events_with_scales(event_ndim, loc, x, given)
    if log_variance is None:
        valid, log_v = spread > 0, jnp.log(spread)
        structure = Variance(spread)
    else:
        valid, log_v, structure = jnp.ones_like(spread, bool), spread, LogVariance(spread)
    each = -(coordinates.location(x - loc, structure) + 0.5 * (log_v + LOG_2PI))
    return _total(each, valid, event_ndim)


def optimal_variance(loc: Any, x: Any) -> Array:
    """The mean of (x - loc)^2 over everything: the variance that makes x likeliest.

    As the one variance of a Gaussian decoder it balances reconstruction and KL by itself
    (Rybkin et al. 2021).
    """
    loc, x = _events(0, loc=loc, x=x)
    return jnp.mean((x - loc) ** 2)


def gaussian_optimal(loc: Any, x: Any, *, event_ndim: int = 1) -> Array:
    """`gaussian` with the variance that is optimal for these events, all sharing it.

    Its mean over the batch is -(d / 2) (log(2 pi mean (x - loc)^2) + 1) for d numbers an
    event: unbounded where x is reproduced exactly, and a function of the whole batch.

    Args:
        loc: shape (*batch, *event).
        x: real numbers.
        event_ndim: how many axes an event has.

    Returns:
        Array of shape batch, a log-density.
    """
    loc, x = _events(event_ndim, loc=loc, x=x)
    return gaussian(loc, x, variance=optimal_variance(loc, x), event_ndim=event_ndim)


def discretized_gaussian(
    loc: Any, x: Any, *, log_scale: Any, levels: int, event_ndim: int = 1
) -> Array:
    """The probability of whole numbers 0..levels under a rounded and clipped normal law.

    x / levels is N(loc, scale^2), rounded to the next multiple of 1 / levels; what lies
    below 0 or above 1 counts as 0 or 1.

    Args:
        loc: means, where 0 is black and 1 is white, shape (*batch, *event).
        x: whole numbers 0..levels.
        log_scale: log of the standard deviation in the units of loc; one number, one an
            event's coordinate or one of everything.
        levels: the largest value.
        event_ndim: how many axes an event has.

    Returns:
        Array of shape batch, a log-probability.
    """
    levels = whole("levels", levels)
    loc, x, (log_scale,) = _events_with_scales(event_ndim, loc, x, {"log_scale": log_scale})
    middle, log_h = (x / levels - loc), -log_scale - math.log(2 * levels)
    upper, lower = (_scaled(middle + s * 0.5 / levels, log_scale) for s in (1, -1))
    inside = intervals.log_normal_interval(_scaled(middle, log_scale), log_h)
    below, above = intervals.log_upper_normal(-upper), intervals.log_upper_normal(lower)
    each = jnp.where(x == 0, below, jnp.where(x == levels, above, inside))
    return _total(each, _is_level(x, levels), event_ndim)


def discretized_logistic(
    loc: Any, x: Any, *, log_scale: Any, levels: int, event_ndim: int = 1
) -> Array:
    """The probability of whole numbers 0..levels under a rounded and clipped logistic law.

    As `discretized_gaussian`, with the logistic function for Phi (Kingma et al. 2016; Salimans
    et al. 2017), by P(X = x) = P(X <= x) P(X >= x) (1 - e^-w) for bins of w scales.

    Args:
        loc: centers, where 0 is black and 1 is white, shape (*batch, *event).
        x: whole numbers 0..levels.
        log_scale: log of the scale in the units of loc; one number, one an event's coordinate
            or one of everything.
        levels: the largest value.
        event_ndim: how many axes an event has.

    Returns:
        Array of shape batch, a log-probability.
    """
    levels = whole("levels", levels)
    loc, x, (log_scale,) = _events_with_scales(event_ndim, loc, x, {"log_scale": log_scale})
    upper, lower = (_scaled(x / levels - loc + s * 0.5 / levels, log_scale) for s in (1, -1))
    bottom, top = x == 0, x == levels
    at_most = jnp.where(top, 0, jax.nn.log_sigmoid(upper))
    at_least = jnp.where(bottom, 0, jax.nn.log_sigmoid(-lower))
    width = intervals.log_logistic_width(-log_scale - math.log(levels))
    each = at_most + at_least + jnp.where(top | bottom, 0, width)
    return _total(each, _is_level(x, levels), event_ndim)


# ---- shapes and values ----------------------------------------------------------------------


def _away(logits: Array, x: Array) -> tuple[Array, Array]:
    """|logits|, and what x lacks of the end that they point to.

    By one condition, so that the slopes of both at logit 0 are those of the same side.
    """
    up = logits >= 0
    return jnp.where(up, logits, -logits), jnp.where(up, 1 - x, x)


def _is_level(x: Array, most: int) -> Array:
    return (x >= 0) & (x <= most) & (x == jnp.round(x))


def _scaled(difference: Array, log_scale: Array) -> Array:
    return difference * jnp.exp(-log_scale)


def _total(each: Array, valid: Array, event_ndim: int) -> Array:
    """The sum over event axes; nan, and a gradient of nan, where x is impossible."""
    marked = each * jnp.where(valid, 1.0, jnp.nan).astype(each.dtype)
    return jnp.sum(marked, axis=tuple(range(each.ndim - event_ndim, each.ndim)))


def _computing(*arrays: Array) -> Any:
    return computing_dtype([Argument("", array, ()) for array in arrays])


def _check_events(event_ndim: int, **arrays: Array) -> None:
    whole("event_ndim", event_ndim, least=0)
    for name, array in arrays.items():
        if array.ndim < event_ndim:
            raise ValueError(
                f"{name} has shape {array.shape}; event_ndim={event_ndim} needs as many axes."
            )
    (name, first), *others = arrays.items()
    for other, array in others:
        sizes = [a.shape[a.ndim - event_ndim :] for a in (first, array)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"{other} has events of shape {sizes[1]} but {name} of {sizes[0]}; event "
                "sizes must be equal, they are never broadcast."
            )


def _batch_shape(event_ndim: int, **arrays: Array) -> tuple[int, ...]:
    event = ("",) * event_ndim
    return broadcast_batch_shapes([Argument(n, a, event) for n, a in arrays.items()])


def _events(event_ndim: int, **given: Any) -> list[Array]:
    """Arrays of one shape and dtype, at least float32."""
    arrays = {name: as_array(name, value) for name, value in given.items()}
    _check_events(event_ndim, **arrays)
    first = next(iter(arrays.values()))
    shape = _batch_shape(event_ndim, **arrays) + first.shape[first.ndim - event_ndim :]
    dtype = _computing(*arrays.values())
    return [jnp.broadcast_to(a.astype(dtype), shape) for a in arrays.values()]


def _events_with_scales(
    event_ndim: int, loc: Any, x: Any, scales: dict[str, Any]
) -> tuple[Array, Array, list[Array]]:
    """Loc and x of one shape, and scales that are one number or have whole events."""
    arrays = {"loc": as_array("loc", loc)}
    event = arrays["loc"].shape[arrays["loc"].ndim - whole("event_ndim", event_ndim, 0) :]
    for name, value in scales.items():
        scale = as_array(name, value)
        arrays[name] = jnp.broadcast_to(scale, event) if not scale.ndim else scale
    loc, x, *rest = _events(event_ndim, loc=arrays.pop("loc"), x=x, **arrays)
    return loc, x, rest
