"""Functions of the library as words of a derivation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import kljax
from kljax.derivations import expression as ex
from kljax.derivations import layout
from kljax.derivations.layout import Box


@functools.cache
def _kl_op(q: type, q_fields: tuple[str, ...], p: type, p_fields: tuple[str, ...]) -> ex.Op:
    def compute(*values: Any) -> Any:
        left, right = values[: len(q_fields)], values[len(q_fields) :]
        return kljax.kl_divergence(
            q(**dict(zip(q_fields, left, strict=True))),
            p(**dict(zip(p_fields, right, strict=True))),
        )

    def show(*values: Box) -> Box:
        left, right = values[: len(q_fields)], values[len(q_fields) :]
        inside = layout.row(
            layout.SUM,
            _show_record(q, q_fields, left),
            layout.operator("‖"),
            _show_record(p, p_fields, right),
        )
        return layout.row(layout.APPLICATION, layout.word("KL"), layout.fence(inside))

    def text(family: type, fields: tuple[str, ...]) -> str:
        return f"{family.__name__}({', '.join(fields)})"

    return ex.shipped(f"kl_divergence({text(q, q_fields)}, {text(p, p_fields)})", compute, show)


def _show_record(family: type, fields: tuple[str, ...], values: tuple[Box, ...]) -> Box:
    named: list[Box] = []
    for field, value in zip(fields, values, strict=True):
        separator = [layout.operator(",")] if named else []
        named += [*separator, layout.word(field), layout.operator("="), value]
    return layout.row(
        layout.APPLICATION, layout.word(family.__name__), layout.fence(layout.row(0, *named))
    )


def kl(family: type | tuple[type, type], q: dict[str, Any], p: dict[str, Any]) -> Any:
    """kljax.kl_divergence of two records, given by their fields."""
    left, right = family if isinstance(family, tuple) else (family, family)
    op = _kl_op(left, tuple(q), right, tuple(p))
    return op(*q.values(), *p.values())


Function = Callable[..., Any]
