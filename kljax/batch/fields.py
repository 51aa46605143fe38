"""A parameter of many distributions, and how a step of them is read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class Field:
    """A parameter and how it is read.

    Attributes:
        label: for messages, such as `q.loc`.
        value: an array, or anything with `shape`, `dtype` and slices.
        split: whether it is read block by block.
        event_shape: shape of one event.
        dtype: as JAX will hold it.
    """

    label: str
    value: Any
    split: bool
    event_shape: tuple[int, ...]
    dtype: Any

    @property
    def event_bytes(self) -> int:
        return math.prod(self.event_shape) * np.dtype(self.dtype).itemsize

    def read(self, first: int, last: int, size: int) -> np.ndarray:
        """The rows from first to last, the last one repeated up to the size of a step."""
        rows = np.asarray(self.value[first:last]).astype(self.dtype, copy=False)
        if len(rows) == size:
            return rows
        last_row = np.broadcast_to(rows[-1:], (size - len(rows), *rows.shape[1:]))
        return np.concatenate([rows, last_row])

    def read_all(self) -> np.ndarray:
        value = self.value[:] if len(self.value.shape) else self.value
        return np.asarray(value).astype(self.dtype, copy=False)


def fields_of(name: str, x: Any, whole: bool) -> list[Field]:
    found = []
    for field in dataclasses.fields(x):
        value = getattr(x, field.name)
        if value is None:
            continue
        if not hasattr(value, "shape") or not hasattr(value, "dtype"):
            value = np.asarray(value)
        label, rank = f"{name}.{field.name}", len(field.metadata["event"])
        batch = tuple(value.shape[: len(value.shape) - rank])
        event_shape = tuple(value.shape[len(batch) :])
        if len(batch) > 1:
            raise ValueError(
                f"{label} has shape {tuple(value.shape)}; it may have one axis before its "
                f"event of shape {event_shape}."
            )
        split = not whole and bool(batch) and batch[0] != 1
        found.append(Field(label, value, split, event_shape, _dtype(label, value.dtype)))
    return found


def length(x: Any) -> int:
    """How many distributions a record of arrays holds."""
    sizes = [
        value.shape[0]
        for field in dataclasses.fields(x)
        if (value := getattr(x, field.name)) is not None
        and len(value.shape) > len(field.metadata["event"])
    ]
    return max(sizes, default=1)


def _dtype(label: str, dtype: Any) -> Any:
    """As JAX will hold it; integers count as floats, what is no number is refused there."""
    try:
        given = np.dtype(dtype).newbyteorder("=")
        if jnp.issubdtype(given, jnp.integer) and given.kind != "m":  # to NumPy a time is one
            return jnp.result_type(float)
        return jnp.zeros((0,), jax.dtypes.canonicalize_dtype(given)).dtype
    except TypeError:
        raise TypeError(
            f"{label} has dtype {dtype}; parameters are real numbers, so give floating-point "
            "values or integers."
        ) from None


def split_somewhere(fields: list[Field]) -> list[Field]:
    """A single pair is a batch of one."""
    if any(f.split for f in fields):
        return fields
    first = fields[0]
    value = first.read_all().reshape(1, *first.event_shape)
    return [dataclasses.replace(first, value=value, split=True), *fields[1:]]


def common_length(fields: Sequence[Field]) -> int:
    """The number of pairs, which every field that is read block by block has."""
    split = [f for f in fields if f.split]
    first = split[0]
    for other in split[1:]:
        if other.value.shape[0] != first.value.shape[0]:
            raise ValueError(
                f"{first.label} has {first.value.shape[0]:,} entries and {other.label} has "
                f"{other.value.shape[0]:,}; they must be as many, or one."
            )
    return first.value.shape[0]
