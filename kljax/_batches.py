"""The one place where a rule for one event meets batches, dtypes and invalid values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from kljax import linalg
from kljax._record import (
    Argument,
    arguments_of,
    as_array,
    broadcast_batch_shapes,
    check_event_sizes,
    check_rank,
    computing_dtype,
    is_key,
    is_record,
)

_T = TypeVar("_T")


def call(function: Callable[..., _T], *records: Any, **static: Any) -> _T:
    """A jitted function of records, with our own words for what jit refuses to take."""
    try:
        return function(*records, **static)
    except TypeError:
        for name, x in zip("qp", records, strict=False):
            if is_record(x):
                arguments_of(name, x)
        raise


def _nan_with_gradient(x: Array) -> Array:
    """A result that is nan has a gradient of nan by every parameter, not only by some."""
    # Settled: or where only the gradient is asked for, every number of it evaluates x anew.
    return x * linalg.settled(_mark(jnp.isnan(x), x.dtype))


def _poison(argument: Argument) -> Array:
    """Nan in place of an invalid value of a coordinate, in the value and in its gradient.

    A product, since `where(valid, x, nan)` would give an invalid value a gradient of 0.
    """
    invalid = argument.constraint.invalid
    if invalid is None or argument.constraint.of_event:
        return argument.value
    return argument.value * _mark(invalid(argument.value), argument.value.dtype)


def _mark(invalid: Array, dtype: Any) -> Array:
    return jnp.where(invalid, jnp.nan, 1.0).astype(dtype)


def _poison_event(out: Any, arguments: Sequence[Argument]) -> Any:
    """Nan everywhere if a parameter that is judged as a whole is invalid.

    On the result, which is smaller than a matrix, and so on every gradient by it.
    """
    for argument in arguments:
        if argument.constraint.of_event and argument.constraint.invalid is not None:
            invalid = argument.constraint.invalid(argument.value)
            mark = linalg.settled(_mark(invalid, argument.value.dtype))
            out = jax.tree.map(lambda x, mark=mark: x * mark, out)
    return out


def over_batches(
    rule: Callable[..., Any],
    records: dict[str, Any],
    arrays: Sequence[Argument] = (),
    *,
    precision: str = "default",
    own_axes: bool = False,
) -> Any:
    """Applies a rule that sees one event to records and arrays with batch axes.

    Args:
        rule: function of one-event records (in the order of `records`) and of one-event
            arrays (in the order of `arrays`), returning a pytree of arrays.
        records: records by the names that messages use.
        arrays: further arguments, such as the point at which a density is asked.
        precision: `"high"` evaluates the rule and its derivatives in float64.
        own_axes: whether event axes of one name may differ between two records.

    Returns:
        What `rule` returns, with the broadcast batch shape in front of every array.
    """
    arguments: list[Argument] = []
    owners: list[str | None] = []
    for name, x in records.items():
        own = arguments_of(name, x)
        if own_axes:
            check_event_sizes(own)
        arguments += own
        owners += [name] * len(own)
    for array in arrays:
        array = array._replace(value=as_array(array.name, array.value))
        check_rank(array)
        arguments.append(array)
        owners.append(None)
    if not own_axes:
        check_event_sizes(arguments)
    batch = broadcast_batch_shapes(arguments)
    dtype = computing_dtype(arguments)

    def one_event(*values: Array) -> Any:
        rebuilt: dict[str, dict[str, Array]] = {name: {} for name in records}
        rest: list[Array] = []
        event = [a._replace(value=v) for a, v in zip(arguments, values, strict=True)]
        for argument, owner in zip(event, owners, strict=True):
            value = _poison(argument)
            if owner is None:
                rest.append(value)
            else:
                rebuilt[owner][argument.name.removeprefix(f"{owner}.")] = value
        events = [type(x)(**rebuilt[name]) for name, x in records.items()]
        out = _poison_event(rule(*events, *rest), event)
        return jax.tree.map(_nan_with_gradient, out)

    values = [a.value if is_key(a.value) else a.value.astype(dtype) for a in arguments]
    if precision == "high":
        one_event = in_float64(one_event)
    return _vectorize(one_event, values, [a.batch_shape for a in arguments], batch)


@jax.custom_batching.custom_vmap
def _in_any_event(x: Array) -> Array:
    """X itself for one event; under `vmap`, one answer for the whole batch."""
    return x


@_in_any_event.def_vmap
def _in_any_event_of_batch(_axis_size: int, _in_batched: list[bool], x: Array):
    return _in_any_event(jnp.any(x)), False


def where_needed(needed: Array, compute: Callable[[], Array], otherwise: Array) -> Array:
    """`jnp.where(needed, compute(), otherwise)`, computed only if some event needs it.

    A `lax.cond` on each event would become a select under `vmap`, which runs both branches.
    Not differentiable: for use inside a function with a derivative rule of its own.
    """
    return lax.cond(
        _in_any_event(needed),
        lambda: jnp.where(needed, compute(), otherwise),
        lambda: otherwise,
    )


def _vectorize(
    function: Callable[..., Any],
    values: Sequence[Array],
    batch_shapes: Sequence[tuple[int, ...]],
    batch: tuple[int, ...],
) -> Any:
    """`vmap` once an axis; what lacks an axis, or has size 1 there, stays unbatched.

    So a single p against many q is factorized once, not once a q.
    """
    padded = [(1,) * (len(batch) - len(s)) + s for s in batch_shapes]
    mapped = [i for i in range(len(batch)) if any(shape[i] != 1 for shape in padded)]
    squeezed = []
    for value, own, shape in zip(values, batch_shapes, padded, strict=True):
        kept = tuple(shape[i] for i in mapped if shape[i] != 1)
        squeezed.append(value.reshape(kept + value.shape[len(own) :]))
    for axis in reversed(mapped):
        in_axes = tuple(0 if shape[axis] != 1 else None for shape in padded)
        function = jax.vmap(function, in_axes=in_axes)
    out = function(*squeezed)
    return jax.tree.map(lambda x: x.reshape(batch + x.shape[len(mapped) :]), out)


def in_float64(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function and all its derivatives computed in float64, results rounded once.

    A rule with whole Jacobians, because a transposed program would be traced outside of the
    float64 context and fall back to single precision.
    """

    @jax.custom_jvp
    def wrapped(*values: Array) -> Any:
        dtype = values[0].dtype
        with jax.enable_x64(True):
            out = function(*(lax.convert_element_type(v, np.float64) for v in values))
            return jax.tree.map(lambda x: lax.convert_element_type(x, dtype), out)

    @wrapped.defjvp
    def _jvp(primals, tangents):
        jacobian = in_float64(jax.jacrev(function, argnums=tuple(range(len(primals)))))
        rows = jacobian(*primals)
        out = wrapped(*primals)

        def directional(row: tuple[Array, ...]) -> Array:
            parts = [
                jnp.tensordot(j, t, t.ndim, precision=lax.Precision.HIGHEST)
                for j, t in zip(row, tangents, strict=True)
            ]
            return sum(parts[1:], start=parts[0])

        leaves, structure = jax.tree.flatten(out)
        row_leaves = structure.flatten_up_to(rows)
        changes = [directional(row) for row in row_leaves]
        return out, jax.tree.unflatten(structure, changes[: len(leaves)])

    return wrapped
