"""Names for parts of a formula, so that a block that comes back does not swamp a line.

W = named("W", K_inverse @ S @ K_inverse.T)     prints as W, with its definition told once
A = named("A", log_partition, eta)              prints as A(η), defined for any argument

A name changes no number. Mutants are made of `bare` trees, which have no names, so that they
reach inside; `spelled` puts the names back wherever nothing was altered.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kljax.derivations import expression as ex
from kljax.derivations import layout
from kljax.derivations.expression import Constant, Expr, Op, Symbol
from kljax.derivations.layout import APPLICATION, ATOM, RELATION, SUM, Box


@dataclass(frozen=True, eq=False)
class NameOp(Op):
    """A symbol that stands for its argument.

    Attributes:
        left: the left-hand side of its definition, such as A(η).
        right: the right-hand side.
        letters: what the definition holds for any value of.
    """

    left: Box
    right: Expr
    letters: tuple[Symbol, ...] = ()

    def equation(self) -> Box:
        """The definition."""
        return layout.row(RELATION, self.left, layout.operator("="), ex.box(self.right))


def named(text: str, value: Any, *arguments: Any) -> Any:
    """A part of a formula under a name.

    Args:
        text: the name, such as W, η_q or log q̄.
        value: what it stands for; with arguments, a function of them.
        arguments: what the function is applied to.

    Returns:
        The value; in a formula it prints as the name.
    """
    body = value(*arguments) if arguments else value
    if not isinstance(body, Expr):
        return body
    words = [layout.word(word) for word in text.split()[:-1]]
    sign = layout.name(text.split()[-1])
    level = APPLICATION if words else ATOM

    def show(*inside: Expr) -> Box:
        if not inside:
            return layout.row(level, *words, sign) if words else sign
        separated: list[Box] = []
        for x in inside:
            separated += [layout.operator(","), ex.box(x)] if separated else [ex.box(x)]
        return layout.row(level, *words, sign, layout.fence(layout.row(SUM, *separated)))

    letters = tuple(ex.symbol(name) for name in ex.variable_names(value)[: len(arguments)])
    right = value(*letters) if arguments else body
    shown = show(*map(ex.as_expr, arguments))
    op = NameOp(text, lambda x: x, lambda _: shown, show(*letters), ex.as_expr(right), letters)
    return Expr(op, (body,))


def definitions(trees: Iterable[Expr]) -> list[NameOp]:
    """Every name once, after those that its definition uses.

    Raises:
        ValueError: if a name stands for two formulas.
    """
    found: dict[str, NameOp] = {}

    def visit(x: Expr) -> None:
        for arg in x.args:
            visit(arg)
        if isinstance(x.op, NameOp):
            visit(x.op.right)
            known = found.setdefault(x.op.name, x.op)
            if layout.plain(known.equation()) != layout.plain(x.op.equation()):
                raise ValueError(
                    f"the name {x.op.name!r} stands for two formulas: "
                    f"{layout.plain(known.equation())} and {layout.plain(x.op.equation())}."
                )

    for tree in trees:
        visit(tree)
    return list(found.values())


def bare(root: Expr) -> tuple[Expr, dict[Expr, Expr]]:
    """A tree without names, and which of its parts had which name."""
    memory: dict[Expr, Expr] = {}
    names: dict[Expr, Expr] = {}

    def strip(x: Expr) -> Expr:
        if x not in memory:
            memory[x] = without(x)
        return memory[x]

    def without(x: Expr) -> Expr:
        args = tuple(map(strip, x.args))
        if isinstance(x.op, NameOp):
            if not isinstance(args[0], Symbol | Constant):
                names[args[0]] = x
            return args[0]
        if x.op is ex.item and args[0].op is ex.stack:
            # The entry of a written-out vector is what was written.
            return args[0].args[int(args[1].value)]  # pyright: ignore
        return x if all(map(_is, args, x.args)) else Expr(x.op, args, x.bound)

    return strip(root), names


def spelled(x: Expr, names: dict[Expr, Expr]) -> Expr:
    """A bare tree with its names back, where the named part is still what it was."""
    if x in names:
        return names[x]
    args = tuple(spelled(a, names) for a in x.args)
    return x if all(map(_is, args, x.args)) else Expr(x.op, args, x.bound)


def _is(a: Expr, b: Expr) -> bool:
    return a is b
