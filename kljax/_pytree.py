"""How a class of this package becomes a pytree whose type is a part of its structure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any, TypeVar

import jax

_T = TypeVar("_T")


def register(
    cls: type[_T], data_fields: Sequence[str], meta_fields: Sequence[str] = ()
) -> type[_T]:
    """As `jax.tree_util.register_dataclass`, where classes with equal fields differ.

    Two structures that `register_dataclass` makes compare as equal whatever their classes are
    (jaxlib 0.10.2), so where their hashes share a bucket a jitted function would run for one
    class the program that it compiled for the other.
    """
    keys = [jax.tree_util.GetAttrKey(name) for name in data_fields]
    data = _reader(data_fields)
    meta = _reader(meta_fields)

    def flatten(x: _T) -> tuple[Any, Any]:
        return data(x), (cls, meta(x))

    def flatten_with_keys(x: _T) -> tuple[Any, Any]:
        return list(zip(keys, data(x), strict=True)), (cls, meta(x))

    def unflatten(aux: tuple[Any, Any], values: Iterable[Any]) -> _T:
        given = zip(data_fields, values, strict=True)
        return cls(**dict(given), **dict(zip(meta_fields, aux[1], strict=True)))

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def _reader(names: Sequence[str]) -> Callable[[Any], tuple[Any, ...]]:
    """The attributes of these names; attrgetter, since every eager call flattens."""
    if not names:
        return lambda _: ()
    if len(names) > 1:
        return attrgetter(*names)
    return lambda x: tuple([getattr(x, name) for name in names])
