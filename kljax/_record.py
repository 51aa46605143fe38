"""Frozen parameter records, and the one place where a one-event rule meets batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from kljax import _pytree
from kljax.constraints import CONSTRAINTS, Constraint

_T = TypeVar("_T")

# What a field holds: an array in every rule, anything that becomes one when constructed.
Parameter = Array | Any


def param(
    event: str = "",
    *,
    constraint: str = "real",
    one_of: str | None = None,
    unit: float | None = None,
    default: Any = dataclasses.MISSING,
    kw_only: bool = False,
) -> Any:
    """Declares a parameter field of a record.

    Args:
        event: names of the axes that one event needs, separated by spaces: `""` for a
            scalar, `"d"` for a vector, `"d d"` for a square matrix. Axes of one name
            have one size, within a record and between q and p; a name that begins with
            `*` is the record's own, so q and p may differ in it: `"d *r"`.
        constraint: what a valid value satisfies: `"real"`, `"positive"`,
            `"lower_triangular"`, `"positive_definite"` or `"circulant"`. Matrices are the
            last two axes, so `"T d d"` is a matrix each time step.
        one_of: name of a group of alternatives; exactly one field of it is given, so
            these fields have the default None.
        unit: the value of a spread that stands for the identity covariance.
        default: as for a dataclass field.
        kw_only: as for a dataclass field.
    """
    if constraint not in CONSTRAINTS:
        raise ValueError(
            f"param got constraint={constraint!r}; it must be one of {', '.join(CONSTRAINTS)}."
        )
    metadata = {
        "event": tuple(event.split()),
        "constraint": CONSTRAINTS[constraint],
        "one_of": one_of,
        "unit": unit,
    }
    return dataclasses.field(default=default, metadata=metadata, kw_only=kw_only)


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
    return _pytree.register(cls, names)


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


def describe(x: Any) -> str:
    """What was given in place of a distribution."""
    if isinstance(x, type):
        return f"the class {x.__name__} (call it with its parameters)"
    if isinstance(x, jax.Array):
        return f"an array of shape {x.shape}"
    return f"a {type(x).__name__}"


class Argument(NamedTuple):
    """One array of a call: its name for messages, its value and its event axes."""

    name: str
    value: Array
    event: tuple[str, ...]
    constraint: Constraint = CONSTRAINTS["real"]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return self.value.shape[: self.value.ndim - len(self.event)]


def as_array(name: str, value: Any) -> Array:
    """Converts numbers, lists and integers; refuses what is not a real number."""
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError) as error:
        kind = f" of dtype {value.dtype}" if hasattr(value, "dtype") else ""
        raise TypeError(
            f"{name} must be a number or an array of numbers; got a "
            f"{type(value).__name__}{kind}."
        ) from error
    if not jnp.issubdtype(array.dtype, jnp.floating) and not is_key(array):
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
        arguments.append(argument_of(name, field, value))
    for argument in arguments:
        check_rank(argument)
    check_sizes = getattr(type(x), "check_sizes", None)
    if check_sizes is not None:
        # What axes of one name cannot say: a family's static method of its event shapes.
        shapes = {a.name.removeprefix(f"{name}."): _event_shape(a) for a in arguments}
        check_sizes(name, **shapes)
    return arguments


def _event_shape(argument: Argument) -> tuple[int, ...]:
    return argument.value.shape[len(argument.batch_shape) :]


def argument_of(name: str, field: dataclasses.Field[Any], value: Any) -> Argument:
    """A given parameter of the record that messages call by this name."""
    label, data = f"{name}.{field.name}", field.metadata
    return Argument(label, as_array(label, value), data["event"], data["constraint"])


def has_unit_spread(x: Any) -> bool:
    """Whether the covariance of x is known, while a program is traced, to be the identity.

    So if its spread is a number or a NumPy array with the shape of loc and no dtype of its own;
    to look into a JAX array would make the program wait for it.
    """
    spreads = [f for f in dataclasses.fields(x) if f.metadata["one_of"] == "spread"]
    given = [f for f in spreads if getattr(x, f.name) is not None]
    if len(given) != 1 or not isinstance(x.loc, (int, float, np.generic, np.ndarray, Array)):
        return False
    spread, unit = getattr(x, given[0].name), given[0].metadata["unit"]
    if isinstance(spread, (np.generic, np.ndarray)):
        like_loc = hasattr(x.loc, "dtype") and jnp.result_type(spread) == jnp.result_type(x.loc)
    else:
        # A float takes the dtype of others, an int does not.
        like_loc = type(spread) is float or type(spread) is type(x.loc) is int
    return like_loc and np.shape(spread) == np.shape(x.loc) and bool(np.all(spread == unit))


def check_rank(argument: Argument) -> None:
    name, value, event, _ = argument
    if value.ndim < len(event):
        raise ValueError(
            f"{name} has shape {value.shape}; it needs at least {len(event)} "
            f"{'axis' if len(event) == 1 else 'axes'}, {_axes(event)} last."
        )
    sizes = value.shape[value.ndim - len(event) :]
    if len(event) >= 2 and event[-1] == event[-2] and sizes[-1] != sizes[-2]:
        raise ValueError(
            f"{name} has shape {value.shape}; its last two axes must form a square matrix."
        )


def _axes(event: tuple[str, ...]) -> str:
    names = ", ".join(axis.removeprefix("*") for axis in event)
    return f"({names},)" if len(event) == 1 else f"({names})"


def check_event_sizes(arguments: Sequence[Argument]) -> None:
    """Axes of one name have one size; an event axis is never broadcast in silence."""
    seen: dict[str, Argument] = {}
    for argument in arguments:
        sizes = argument.value.shape[len(argument.batch_shape) :]
        for axis, size in zip(argument.event, sizes, strict=True):
            owner = argument.name.partition(".")[0] if axis.startswith("*") else ""
            first = seen.setdefault(owner + axis, argument)
            expected = first.value.shape[len(first.batch_shape) + first.event.index(axis)]
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
        raise ValueError(f"the batch shapes do not broadcast together: {shapes}.") from error


def computing_dtype(arguments: Sequence[Argument]) -> Any:
    """At least float32: half precision inputs are accumulated in single precision."""
    numbers = [a.value for a in arguments if not is_key(a.value)]
    return jnp.promote_types(jnp.result_type(*numbers), jnp.float32)


def is_key(x: Array) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def check_values(x: Any) -> None:
    """Raises, or under checkify records, the first invalid parameter of a record."""
    arguments = arguments_of(type(x).__name__, x)
    check_event_sizes(arguments)
    broadcast_batch_shapes(arguments)
    for argument in arguments:
        _check_value(argument)


def _check_value(argument: Argument) -> None:
    violated = argument.constraint.violated
    values = argument.value.astype(computing_dtype([argument]))
    for _ in argument.batch_shape:
        violated = jax.vmap(violated)
    sentence = f"{argument.name} must {argument.constraint.requirement}"
    refuse_where(violated(values), sentence, argument.value)


def refuse_where(found: Array, sentence: str, value: Any = None) -> None:
    """Raises, or under checkify records, the sentence where an entry of found is true."""
    if isinstance(found, Tracer):
        # Here, since importing checkify costs time that most users never need.
        from jax.experimental import checkify

        checkify.check(~jnp.any(found), sentence + ".")
        return
    where = np.argwhere(np.asarray(found))
    if (not where.size and found.ndim) or (not found.ndim and not found):
        return
    index = tuple(int(i) for i in where[0])
    at = f" at index {index}" if index else ""
    if value is None:
        raise ValueError(f"{sentence}, which it does not{at}.")
    got = " ".join(np.array2string(np.asarray(value)[index], threshold=20).split())
    raise ValueError(f"{sentence}; got {got}{at}.")
