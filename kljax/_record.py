"""Frozen parameter records, and the one place where a one-event rule meets batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from kljax.constraints import CONSTRAINTS, Constraint

_T = TypeVar("_T")


def param(
    event: str = "",
    *,
    constraint: str = "real",
    one_of: str | None = None,
    keyword: bool = False,
) -> Any:
    """Declares a parameter field of a record.

    Args:
        event: names of the axes that one event needs, separated by spaces: `""` for a
            scalar, `"d"` for a vector, `"d d"` for a square matrix. Axes of one name
            have one size, within a record and between q and p.
        constraint: what a valid value satisfies, a key of `kljax.constraints.CONSTRAINTS`.
        one_of: name of a group of alternatives; exactly one field of it is given.
        keyword: whether the field is given by keyword only.
    """
    if constraint not in CONSTRAINTS:
        raise ValueError(
            f"param got constraint={constraint!r}; it must be one of {sorted(CONSTRAINTS)}."
        )
    metadata = {
        "event": tuple(event.split()),
        "constraint": CONSTRAINTS[constraint],
        "one_of": one_of,
    }
    if one_of is None:
        return dataclasses.field(metadata=metadata, kw_only=keyword)
    return dataclasses.field(default=None, metadata=metadata, kw_only=keyword)


@dataclass_transform(frozen_default=True, field_specifiers=(param,))
def record(cls: type[_T]) -> type[_T]:
    """Makes a class with `param` fields a frozen pytree of parameters.

    The constructor neither converts nor checks: JAX calls it with tracers, axis numbers
    and placeholders. Shapes and dtypes are checked where a function is applied, values
    by `kljax.check`.
    """
    cls = dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
    if "__repr__" not in cls.__dict__:
        cls.__repr__ = _repr
    names = [field.name for field in dataclasses.fields(cls)]  # pyright: ignore[reportArgumentType]
    return jax.tree_util.register_dataclass(cls, data_fields=names, meta_fields=[])


def _repr(self: Any) -> str:
    given = [(f.name, getattr(self, f.name)) for f in dataclasses.fields(self)]
    inside = ", ".join(f"{name}={value}" for name, value in given if value is not None)
    return f"{type(self).__name__}({inside})"


def is_family(cls: Any) -> bool:
    """Whether cls was made by `record` from `param` fields."""
    fields = getattr(cls, "__dataclass_fields__", None)
    return (
        isinstance(cls, type)
        and bool(fields)
        and all("event" in field.metadata for field in fields.values())
    )


def is_record(x: Any) -> bool:
    """Whether x is an instance of a family."""
    return is_family(type(x))


class Argument(NamedTuple):
    """One array of a call: its name for messages, its value and its event axes."""

    name: str
    value: Array
    event: tuple[str, ...]
    constraint: Constraint = CONSTRAINTS["real"]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return self.value.shape[: self.value.ndim - len(self.event)]


def _as_array(name: str, value: Any) -> Array:
    """Converts numbers, lists and integers; refuses what is not a real number."""
    try:
        array = jnp.asarray(value)
    except TypeError as error:
        raise TypeError(
            f"{name} must be a number or an array of numbers; got {type(value).__name__}."
        ) from error
    if not jnp.issubdtype(array.dtype, jnp.floating) and not _is_key(array):
        if not jnp.issubdtype(array.dtype, jnp.integer):
            raise TypeError(
                f"{name} has dtype {array.dtype}; parameters are real numbers, so give "
                "floating-point values or integers."
            )
        array = array.astype(jnp.result_type(float))
    return array


def arguments_of(name: str, x: Any) -> list[Argument]:
    """The given parameters of a record, with structure, dtypes and ranks checked."""
    fields = dataclasses.fields(x)
    family = type(x).__name__
    groups: dict[str, list[str]] = {}
    for field in fields:
        group = field.metadata["one_of"]
        if group is not None:
            groups.setdefault(group, []).append(field.name)
        elif getattr(x, field.name) is None:
            raise ValueError(f"{family} {name} has no {field.name}; give one.")
    for names in groups.values():
        given = [n for n in names if getattr(x, n) is not None]
        if len(given) != 1:
            got = " and ".join(given) if given else "none of them"
            raise ValueError(
                f"{family} {name} needs exactly one of {', '.join(names)}; got {got}."
            )
    arguments = []
    for field in fields:
        value = getattr(x, field.name)
        if value is None:
            continue
        label = f"{name}.{field.name}"
        event = field.metadata["event"]
        arguments.append(
            Argument(label, _as_array(label, value), event, field.metadata["constraint"])
        )
    for argument in arguments:
        _check_rank(argument)
    return arguments


def _check_rank(argument: Argument) -> None:
    name, value, event, _ = argument
    if value.ndim < len(event):
        raise ValueError(
            f"{name} has shape {value.shape}; it needs at least {len(event)} "
            f"{'axis' if len(event) == 1 else 'axes'}, {_axes(event)} last."
        )
    sizes = value.shape[value.ndim - len(event) :]
    if len(event) == 2 and event[0] == event[1] and sizes[0] != sizes[1]:
        raise ValueError(
            f"{name} has shape {value.shape}; its last two axes must form a square matrix."
        )


def _axes(event: tuple[str, ...]) -> str:
    return "(" + ", ".join(event) + ("," if len(event) == 1 else "") + ")"


def _check_event_sizes(arguments: Sequence[Argument]) -> None:
    """Axes of one name have one size; an event axis is never broadcast in silence."""
    seen: dict[str, Argument] = {}
    for argument in arguments:
        sizes = argument.value.shape[len(argument.batch_shape) :]
        for axis, size in zip(argument.event, sizes, strict=True):
            first = seen.setdefault(axis, argument)
            expected = first.value.shape[
                len(first.batch_shape) + first.event.index(axis)
            ]
            if size != expected:
                raise ValueError(
                    f"{argument.name} has event size {size} (shape {argument.value.shape}) "
                    f"but {first.name} has event size {expected} (shape "
                    f"{first.value.shape}); event sizes must be equal, they are never "
                    "broadcast."
                )


def broadcast_batch_shapes(arguments: Sequence[Argument]) -> tuple[int, ...]:
    """The common batch shape, or an error that names every argument's own."""
    try:
        return jnp.broadcast_shapes(*(a.batch_shape for a in arguments))
    except ValueError as error:
        shapes = ", ".join(f"{a.name} {a.batch_shape}" for a in arguments)
        raise ValueError(
            f"the batch shapes do not broadcast together: {shapes}."
        ) from error


def _computing_dtype(arguments: Sequence[Argument]) -> Any:
    """At least float32: half precision inputs are accumulated in single precision."""
    numbers = [a.value for a in arguments if not _is_key(a.value)]
    return jnp.promote_types(jnp.result_type(*numbers), jnp.float32)


def _is_key(x: Array) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _poison(argument: Argument) -> Array:
    """nan in place of an invalid value, in the value and in its gradient.

    A product, since `where(valid, x, nan)` would give an invalid value a gradient of 0.
    """
    invalid = argument.constraint.invalid
    if invalid is None:
        return argument.value
    mark = jnp.where(invalid(argument.value), jnp.nan, 1.0).astype(argument.value.dtype)
    return argument.value * mark


def over_batches(
    rule: Callable[..., Any],
    records: dict[str, Any],
    arrays: Sequence[Argument] = (),
    *,
    precision: str = "default",
) -> Any:
    """Applies a rule that sees one event to records and arrays with batch axes.

    Args:
        rule: function of one-event records (in the order of `records`) and of one-event
            arrays (in the order of `arrays`), returning a pytree of arrays.
        records: records by the names that messages use.
        arrays: further arguments, such as the point at which a density is asked.
        precision: `"high"` evaluates the rule and its derivatives in float64.

    Returns:
        What `rule` returns, with the broadcast batch shape in front of every array.
    """
    arguments: list[Argument] = []
    owners: list[str | None] = []
    for name, x in records.items():
        own = arguments_of(name, x)
        arguments += own
        owners += [name] * len(own)
    for array in arrays:
        array = array._replace(value=_as_array(array.name, array.value))
        _check_rank(array)
        arguments.append(array)
        owners.append(None)
    _check_event_sizes(arguments)
    batch = broadcast_batch_shapes(arguments)
    dtype = _computing_dtype(arguments)

    def one_event(*values: Array) -> Any:
        rebuilt: dict[str, dict[str, Array]] = {name: {} for name in records}
        rest: list[Array] = []
        for argument, owner, value in zip(arguments, owners, values, strict=True):
            value = _poison(argument._replace(value=value))
            if owner is None:
                rest.append(value)
            else:
                rebuilt[owner][argument.name.removeprefix(f"{owner}.")] = value
        events = [type(x)(**rebuilt[name]) for name, x in records.items()]
        return rule(*events, *rest)

    values = [a.value if _is_key(a.value) else a.value.astype(dtype) for a in arguments]
    if precision == "high":
        one_event = in_float64(one_event)
    return _vectorize(one_event, values, [a.batch_shape for a in arguments], batch)


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
    mapped = [
        i for i in range(len(batch)) if any(shape[i] != 1 for shape in padded)
    ]
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
