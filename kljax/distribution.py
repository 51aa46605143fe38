"""What one asks of a single distribution: density, samples, entropy and moments.

A family brings one-event rules in `register_distribution`; the functions here lift them over
batches. The parameters of a record are its fields (`q.loc`); everything computed from them
is a function (`kljax.variance(q)`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from kljax import _batches, _record, divergence

_Rules = dict[str, Callable[..., Array] | None]
_TABLE: dict[type, _Rules] = {}
_EVENTS: dict[type, tuple[str, ...]] = {}


def register_distribution(
    family: type,
    *,
    log_prob: Callable[[Any, Array], Array] | None = None,
    sample: Callable[[Any, Array], Array] | None = None,
    entropy: Callable[[Any], Array] | None = None,
    mean: Callable[[Any], Array] | None = None,
    variance: Callable[[Any], Array] | None = None,
    covariance: Callable[[Any], Array] | None = None,
    event: str | None = None,
) -> None:
    """Tells the functions of this module how to treat a family.

    Every rule sees one event: a record whose fields have no batch axes.

    Args:
        family: a class made by `kljax.record`; without `event` its first field, such as
            `loc`, has the shape of an event.
        log_prob: (record, point) to the log-density there.
        sample: (record, key) to one draw.
        entropy: record to its differential entropy in nats.
        mean: record to its mean.
        variance: record to its variance, of each coordinate.
        covariance: record to its covariance matrix.
        event: names of the axes of an event, where no field has its shape.

    Raises:
        TypeError: if the family was not made by `kljax.record`.
        ValueError: if the family is registered already.
    """
    if not _record.is_family(family):
        raise TypeError(
            f"register_distribution needs a class made by kljax.record; got {family!r}."
        )
    if family in _TABLE:
        raise ValueError(f"{family.__name__} is registered already.")
    _TABLE[family] = {
        "log_prob": log_prob,
        "sample": sample,
        "entropy": entropy,
        "mean": mean,
        "variance": variance,
        "covariance": covariance,
    }
    if event is not None:
        _EVENTS[family] = tuple(event.split())


def _rule(name: str, x: Any) -> Callable[..., Array]:
    if not _record.is_record(x):
        raise TypeError(f"{name} needs a distribution; got {_record.describe(x)}.")
    rules = _TABLE.get(type(x), {})
    rule = rules.get(name)
    if rule is None:
        known = [key for key, value in rules.items() if value is not None]
        raise TypeError(
            f"{type(x).__name__} has no {name}; it has {', '.join(known) or 'no rules'}."
        )
    return rule


def log_prob(q: Any, x: Any, /) -> Array:
    """Log q(x) in nats.

    Args:
        q: a distribution.
        x: points, whose last axes are an event; the axes before broadcast with the batch.

    Returns:
        Array of the broadcast batch shape.
    """
    _rule("log_prob", q)
    return _batches.call(_log_prob, q, x)


@jax.jit
def _log_prob(q: Any, x: Any) -> Array:
    event = _EVENTS.get(type(q)) or _record.arguments_of("q", q)[0].event
    point = _record.Argument("x", jnp.asarray(x), event)
    return _batches.over_batches(_rule("log_prob", q), {"q": q}, [point])


def sample(q: Any, key: Array, shape: int | Sequence[int] = ()) -> Array:
    """Independent draws from q, differentiable by its parameters.

    Args:
        q: a distribution.
        key: a `jax.random.key`.
        shape: how many draws, in front of the batch shape.

    Returns:
        Array of shape (*shape, *batch, *event).
    """
    _rule("sample", q)
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    return _batches.call(_sample, q, key, shape=shape)


@jax.jit(static_argnames="shape")
def _sample(q: Any, key: Array, shape: tuple[int, ...]) -> Array:
    batch = _record.broadcast_batch_shapes(_record.arguments_of("q", q))
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.wrap_key_data(key)
    keys = jax.random.split(key, (*shape, *batch))
    draw = _rule("sample", q)
    by_key = _record.Argument("key", keys, ())
    return _batches.over_batches(draw, {"q": q}, [by_key])


def entropy(q: Any, /) -> Array:
    """-E_q log q in nats, of the batch shape."""
    return _ask("entropy", q)


def mean(q: Any, /) -> Array:
    """E_q x, of shape (*batch, *event)."""
    return _ask("mean", q)


def variance(q: Any, /) -> Array:
    """The variance of every coordinate, of shape (*batch, *event)."""
    return _ask("variance", q)


def covariance(q: Any, /) -> Array:
    """The covariance matrix, of shape (*batch, d, d)."""
    return _ask("covariance", q)


def _ask(name: str, q: Any) -> Array:
    _rule(name, q)
    return _batches.call(_lifted, q, name=name)


@jax.jit(static_argnames="name")
def _lifted(q: Any, *, name: str) -> Array:
    return _batches.over_batches(_rule(name, q), {"q": q})


def cross_entropy(q: Any, p: Any, /) -> Array:
    """-E_q log p = entropy(q) + KL(q ‖ p) in nats, of the broadcast batch shape."""
    divergence.closed_form("cross_entropy", q, p)
    return _batches.call(_cross_entropy, q, p)


@jax.jit
def _cross_entropy(q: Any, p: Any) -> Array:
    form = divergence.closed_form("cross_entropy", q, p)

    def rule(q: Any, p: Any) -> Array:
        if form.cross_entropy is not None:
            return form.cross_entropy(q, p)
        return _rule("entropy", q)(q) + form.kl(q, p)

    return divergence.over_batches(form, rule, q, p, precision="default")


def check(*distributions: Any) -> None:
    """Says which parameter of a distribution is invalid, and why.

    In eager mode an error is raised at once. Inside `jax.experimental.checkify.checkify`
    the same sentence becomes a checkify error; a function that is jitted without checkify
    cannot raise on values (there an invalid parameter gives nan).

    Args:
        *distributions: records to check.

    Raises:
        TypeError: if an argument is no distribution.
        ValueError: if a shape, a dtype or a value is invalid.
    """
    for x in distributions:
        if not _record.is_record(x):
            raise TypeError(f"check needs distributions; got {_record.describe(x)}.")
        _record.check_values(x)
        # What no parameter says alone, a family says in `together`; there is an entropy only
        # where it holds.
        requirement = getattr(type(x), "together", None)
        if requirement is not None:
            sentence = f"{type(x).__name__} must {requirement}"
            _record.refuse_where(jnp.isnan(entropy(x)), sentence)
