"""Functions of the library as words of a derivation."""

from __future__ import annotations

import functools
from typing import Any

import jax.numpy as jnp

import kljax
from kljax.derivations import expression as ex
from kljax.derivations import layout
from kljax.derivations.layout import Box
from kljax.derivations.shipping import shipped

NORMAL = kljax.Normal
DIAG = kljax.MultivariateNormalDiag
MVN = kljax.MultivariateNormal
ISOTROPIC = kljax.IsotropicNormal
LOW_RANK = kljax.LowRankMultivariateNormal
BLOCKS = kljax.BlockDiagonalNormal
CIRCULANT = kljax.CirculantNormal

# A family, or one each for q and p.
_Family = type | tuple[type, type]
_Fields = dict[str, Any]


def kl(family: _Family, q: _Fields, p: _Fields) -> Any:
    """kljax.kl_divergence of two records, given by their fields.

    Args:
        family: class of both records, or one each for q and p.
        q: values of the fields of the first, by name.
        p: values of the fields of the second.
    """
    return _of_two("kl_divergence", family, q, p)


def cross_entropy(family: _Family, q: _Fields, p: _Fields) -> Any:
    """kljax.cross_entropy of two records, given by their fields."""
    return _of_two("cross_entropy", family, q, p)


def entropy(family: type, q: _Fields) -> Any:
    """kljax.entropy of a record, given by its fields."""
    return _op("entropy", ((family, tuple(q)),))(*q.values())


# What these are called where nothing says that they are the library's.
shipped_kl, shipped_cross_entropy, shipped_entropy = kl, cross_entropy, entropy


def _of_two(name: str, family: _Family, q: _Fields, p: _Fields) -> Any:
    left, right = family if isinstance(family, tuple) else (family, family)
    return _op(name, ((left, tuple(q)), (right, tuple(p))))(*q.values(), *p.values())


_SIGNS = {"kl_divergence": ("KL", "‖"), "cross_entropy": ("H", ","), "entropy": ("H", ",")}


@functools.cache
def _op(name: str, records: tuple[tuple[type, tuple[str, ...]], ...]) -> ex.Op:
    """A function of records as an operation on their fields' values."""
    # Looked up at every call, so that a function replaced in the library is the one checked.
    sign, between = _SIGNS[name]

    def split(values: tuple[Any, ...]) -> list[dict[str, Any]]:
        rest, out = list(values), []
        for _, fields in records:
            out.append({field: rest.pop(0) for field in fields})
        return out

    def compute(*values: Any) -> Any:
        pairs = zip(records, split(values), strict=True)
        return getattr(kljax, name)(*(family(**fields) for (family, _), fields in pairs))

    def show(*values: Box) -> Box:
        pairs = zip(records, split(values), strict=True)
        shown = [_show_record(family, fields) for (family, _), fields in pairs]
        inside = shown[:1]
        for box in shown[1:]:
            inside += [layout.operator(between), box]
        return layout.row(
            layout.APPLICATION, layout.word(sign), layout.fence(layout.row(layout.SUM, *inside))
        )

    text = ", ".join(f"{family.__name__}({', '.join(fields)})" for family, fields in records)
    return shipped(f"{name}({text})", compute, show)


def _show_record(family: type, fields: dict[str, Box]) -> Box:
    named: list[Box] = []
    for field, value in fields.items():
        separator = [layout.operator(",")] if named else []
        named += [*separator, layout.word(field), layout.operator("="), value]
    inside = layout.fence(layout.row(layout.RELATION, *named))
    return layout.row(layout.APPLICATION, layout.word(family.__name__), inside)


def of_numbers(family: type, **fixed: Any) -> Any:
    """A family whose parameters are given as numbers: axes of size 1 are put behind them.

    Args:
        family: class of a record.
        fixed: values of fields that are no parameters of the derivation.
    """
    fields = family.__dataclass_fields__

    def make(**given: Any) -> Any:
        shaped = {}
        for name, value in given.items():
            value, rank = jnp.asarray(value), len(fields[name].metadata["event"])
            shaped[name] = value.reshape((1,) * (rank - value.ndim) + value.shape)
        return family(**shaped, **fixed)

    make.__name__ = family.__name__
    return make
