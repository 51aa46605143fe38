"""Altered formulas: what every check must be able to see.

Each line's tree is altered at one place at a time. A mutant lives if no check can tell it from
the original; then the check is blind there, unless both are the same formula.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from kljax.derivations import expression as ex
from kljax.derivations import layout
from kljax.derivations.expectation import ExpectationOp
from kljax.derivations.expression import Constant, Expr, Op, Symbol
from kljax.derivations.series import Series
from kljax.derivations.shipping import Shipped

Path = tuple[int, ...]


class Mutant(NamedTuple):
    """A formula with one mistake.

    Attributes:
        kind: the kind of mistake.
        tree: the altered formula.
        was: the part that was altered, as text.
        now: what stands there instead.
        inside: the smallest expectation, sum, gradient or function of the library around it,
            or the line, as text.
    """

    kind: str
    tree: Expr
    was: str
    now: str
    inside: str

    def __repr__(self) -> str:
        return f"{self.kind}: {self.was} → {self.now} inside {self.inside}"


# ---- operations that only mutants use -------------------------------------------------------


def _clamp(x: Any) -> Any:
    if not isinstance(x, Series):
        return x
    # Half of the smallest size: active everywhere, so also where an expectation has its mass.
    sizes = np.abs(x.parts[0])
    bound = 0.5 * np.min(sizes[sizes > 0], initial=1.0)
    return _clip(x, -bound, bound)


def _clip(x: Series, low: float, high: float) -> Series:
    inside = (low <= x.parts[0]) & (x.parts[0] <= high)
    parts = x.parts * inside
    parts[0] = np.clip(x.parts[0], low, high)
    return Series(parts, x.depth)


def _round_to_bfloat16(x: Any) -> Any:
    if not isinstance(x, Series):
        return float(np.asarray(x, jnp.bfloat16))
    parts = x.parts.copy()
    parts[0] = parts[0].astype(jnp.bfloat16)
    return Series(parts, x.depth)


def _bend(x: Any) -> Any:
    """The right value and slope with a wrong second derivative."""
    change = x - x.constant() if isinstance(x, Series) else 0.0
    return x + 0.5 * (change * change)


def _mean(x: Any) -> Any:
    return ex.SUM.compute(x) / x.shape[0]


CLAMP = Op("clamp", _clamp, lambda a: layout.call(layout.word("clamp"), a))
ROUND = Op("bfloat16", _round_to_bfloat16, lambda a: layout.call(layout.word("bfloat16"), a))
BEND = Op("bend", _bend, lambda a: layout.call(layout.word("bend"), a))
CLAMP_ONE = Op(
    "clamp_one",
    lambda x: _clip(x, -1.0, 1.0),
    lambda a: layout.call(layout.word("clip"), a, layout.number(-1), layout.number(1)),
)
FLOOR = Op(
    "floor",
    lambda x: _clip(x, 0.5, np.inf),
    lambda a: layout.call(layout.word("max"), a, layout.number(0.5)),
)
LOSE_LAST = Op(
    "lose_last",
    lambda a: a.shape[0] - 1.0,
    lambda _: layout.row(layout.SUM, layout.name("k"), layout.operator("−"), layout.number(1)),
)


# ---- trees ----------------------------------------------------------------------------------


def places(root: Expr) -> Iterator[tuple[Path, Expr]]:
    """Every place of a tree, the root first."""
    yield (), root
    for i, child in enumerate(root.args):
        for path, node in places(child):
            yield (i, *path), node


def substitute(x: Expr, mapping: dict[Symbol, Expr]) -> Expr:
    """The formula with symbols replaced; what has none of them is shared with the original."""
    if isinstance(x, Symbol):
        return mapping.get(x, x)
    args = tuple(substitute(a, mapping) for a in x.args)
    return x if all(a is b for a, b in zip(args, x.args, strict=True)) else _with(x, args)


def _with(x: Expr, args: tuple[Expr, ...]) -> Expr:
    """The node with other arguments; a binder whose range changes gets a symbol of its own."""
    if x.bound is None or all(a is b for a, b in zip(args[:-1], x.args[:-1], strict=True)):
        return Expr(x.op, args, x.bound)
    fresh = ex.symbol(x.bound.name)
    return Expr(x.op, (*args[:-1], substitute(args[-1], {x.bound: fresh})), fresh)


def replace(root: Expr, path: Path, new: Expr) -> Expr:
    """The tree with another node at a place."""
    if not path:
        return new
    args = list(root.args)
    args[path[0]] = replace(args[path[0]], path[1:], new)
    return _with(root, tuple(args))


def same(a: Expr, b: Expr) -> bool:
    """Whether two formulas are written alike."""
    if a is b:
        return True
    if isinstance(a, Symbol) or isinstance(b, Symbol):
        return False
    if isinstance(a, Constant) or isinstance(b, Constant):
        return isinstance(a, Constant) and isinstance(b, Constant) and a.value == b.value
    alike = a.op is b.op and len(a.args) == len(b.args) and a.bound is None and b.bound is None
    return alike and all(map(same, a.args, b.args))


def is_symmetric(x: Expr, shapes: dict[Expr, tuple[int, ...]]) -> bool:
    """Whether a matrix is symmetric by the way it is written."""
    if shapes.get(x, ()) == ():
        return True
    if isinstance(x, Symbol):
        return x.symmetric
    match x.op.name:
        case "inv" | "transpose" | "stop_gradient" | "negative":
            return is_symmetric(x.args[0], shapes)
        case "add" | "subtract" | "multiply" | "divide" | "kronecker":
            return all(is_symmetric(a, shapes) for a in x.args)
        case "outer":
            return same(*x.args)
        case "matmul":
            return _is_palindrome(list(_factors(x)), shapes)
        case "diagonal_matrix" | "identity":
            return True
        case "expectation" | "sum_over":
            return is_symmetric(x.args[-1], shapes)
        case _:
            return False


def _factors(x: Expr) -> Iterator[Expr]:
    """The factors of a matrix product, transposes of products taken apart."""
    if x.op is ex.matmul:
        for a in x.args:
            yield from _factors(a)
    elif x.op is ex.transpose and x.args[0].op is ex.matmul:
        yield from (ex.transpose(a) for a in reversed(list(_factors(x.args[0]))))
    else:
        yield x


def _is_palindrome(factors: list[Expr], shapes: dict[Expr, tuple[int, ...]]) -> bool:
    """Whether a product reads A ... S ... Aᵀ with a symmetric middle."""
    while len(factors) > 1:
        first, *factors, last = factors
        one = last.op is ex.transpose and same(first, last.args[0])
        one = one or (same(first, last) and is_symmetric(first, shapes))
        if not one and not (first.op is ex.transpose and same(last, first.args[0])):
            return False
    return not factors or is_symmetric(factors[0], {**shapes, factors[0]: (0, 0)})


# ---- kinds ----------------------------------------------------------------------------------


class Context(NamedTuple):
    """What a kind may ask about a place."""

    shape: tuple[int, ...]
    parents: tuple[Expr, ...]
    shapes: dict[Expr, tuple[int, ...]]
    alternatives: dict[Symbol, list[Symbol]]

    def shape_of(self, x: Expr) -> tuple[int, ...]:
        return self.shapes.get(x, ())

    def inside(self, *names: str) -> bool:
        return bool(self.parents) and self.parents[-1].op.name in names


_Kind = Callable[[Expr, Context], Iterator[Expr]]
KINDS: dict[str, _Kind] = {}


def _kind(name: str) -> Callable[[_Kind], _Kind]:
    def add(function: _Kind) -> _Kind:
        KINDS[name] = function
        return function

    return add


def _in_determinant(context: Context) -> bool:
    """Whether this is a factor inside |...|: order and transposes do not matter there."""
    for parent in reversed(context.parents):
        if parent.op is ex.logdet:
            return True
        if parent.op not in (ex.matmul, ex.transpose, ex.inv):
            return False
    return False


_LINEAR = ("add", "subtract", "negative", "expectation", "sum_over")


def _only_adds_a_constant(kind: str, x: Expr, new: Expr, context: Context) -> bool:
    """Whether a mistake shifts what is differentiated by a constant, which no gradient sees.

    So does a mistake in a term without the variable, rounding a term, and a factor inside a
    logarithm: log 1.01 a = log a + c.
    """
    parents = list(reversed(context.parents))
    binder = next((p for p in parents if p.op is ex.GRADIENT), None)
    if binder is None:
        return False
    altered = _altered(kind, x, new)
    if all(binder.bound not in _moving(a) for a in altered):
        # Climb to the largest part without the variable.
        while parents and not any(binder.bound in _moving(a) for a in (parents[0], x)):
            x = parents.pop(0)
    elif kind == "factor 1 % off":
        while parents and _scales(parents[0], x):
            x = parents.pop(0)
        if not parents or parents[0].op is not ex.log:
            return False
        x = parents.pop(0)
    elif kind != "rounded to bfloat16":
        return False
    for parent in parents:
        if parent is binder:
            return x is parent.args[-1]
        if parent.op.name not in _LINEAR and not _scales(parent, x):
            return False
        x = parent
    return False


def _altered(kind: str, x: Expr, new: Expr) -> tuple[Expr, ...]:
    """What a mistake at a node changes: of a sum, one of its terms."""
    if kind in ("sign", "term dropped") and x.op in (ex.add, ex.subtract):
        return x.args[1:] if kind == "sign" or new is x.args[0] else x.args[:1]
    return (x,)


def _scales(parent: Expr, x: Expr) -> bool:
    """Whether a node is a constant times x."""
    if parent.op is ex.item:
        return x is parent.args[0]
    others = [a for a in parent.args if a is not x]
    by_constants = len(others) == 1 and isinstance(others[0], Constant)
    return parent.op in (ex.multiply, ex.divide, ex.negative) and (not others or by_constants)


def _is_number(x: Expr, value: float) -> bool:
    return isinstance(x, Constant) and x.value == value


def _even(context: Context) -> bool:
    """Whether the sign of this place cannot matter: it is a factor of something squared."""
    for parent in reversed(context.parents):
        if parent.op is ex.square_norm:
            return True
        if parent.op is ex.raise_to:
            return isinstance(parent.args[1], Constant) and parent.args[1].value % 2 == 0
        if parent.op not in (ex.multiply, ex.divide, ex.matmul, ex.negative, ex.transpose):
            return False
    return False


@_kind("sign")
def _sign(x: Expr, context: Context) -> Iterator[Expr]:
    if x.op is ex.add:
        yield ex.subtract(*x.args)
    if x.op is ex.subtract:
        yield ex.add(*x.args)
    if x.op is ex.negative and not _even(context):
        yield x.args[0]
    if not context.parents:
        yield ex.negative(x)


@_kind("factor 1 % off")
def _off(x: Expr, _: Context) -> Iterator[Expr]:
    if not isinstance(x, Constant) and x.op not in (ex.zeros, ex.zero_like):
        yield 1.01 * x


@_kind("constant dropped")
def _constant(x: Expr, context: Context) -> Iterator[Expr]:
    if (
        isinstance(x, Constant)
        and not _is_number(x, 1)
        and context.inside("multiply", "divide")
    ):
        yield ex.as_expr(1.0)
    if x.op is ex.negative and isinstance(x.args[0], Constant):
        yield ex.as_expr(0.0)


@_kind("term dropped")
def _term(x: Expr, context: Context) -> Iterator[Expr]:
    if x.op is ex.add:
        yield from x.args
    if x.op is ex.subtract:
        yield x.args[0]
        yield ex.negative(x.args[1]) if not _even(context) else x.args[1]


@_kind("factor dropped")
def _factor(x: Expr, context: Context) -> Iterator[Expr]:
    fits = [a for a in x.args if context.shape_of(a) == context.shape]
    if x.op in (ex.multiply, ex.matmul):
        yield from (a for a in fits if not isinstance(a, Constant))
    if x.op is ex.divide and not isinstance(x.args[1], Constant) and x.args[0] in fits:
        yield x.args[0]


@_kind("operands swapped")
def _swap(x: Expr, context: Context) -> Iterator[Expr]:
    if x.op is ex.subtract and not _even(context):
        yield ex.subtract(x.args[1], x.args[0])
    square = len(set(map(context.shape_of, x.args))) == 1
    if x.op is ex.divide and square and not _is_number(x.args[0], 1):
        yield ex.divide(x.args[1], x.args[0])
    # AB and BA have the same trace, determinant and eigenvalues.
    if x.op is ex.matmul and len(context.shape) == 2 and square:
        free = context.inside("tr", "eigenvalues") or _in_determinant(context)
        if not free and not same(*x.args):
            yield ex.matmul(x.args[1], x.args[0])


@_kind("wrong symbol")
def _symbol(x: Expr, context: Context) -> Iterator[Expr]:
    if isinstance(x, Symbol):
        yield from context.alternatives.get(x, [])


@_kind("transpose")
def _transpose(x: Expr, context: Context) -> Iterator[Expr]:
    square = len(context.shape) == 2 and context.shape[0] == context.shape[1]
    free = context.inside("tr", "square_norm", "diagonal", "eigenvalues") or _in_determinant(
        context
    )
    if not square or free or is_symmetric(x, context.shapes):
        return
    if x.op is ex.transpose:
        yield x.args[0]
    elif not context.inside("transpose"):
        yield x.T


@_kind("mean for sum")
def _average(x: Expr, _: Context) -> Iterator[Expr]:
    if x.op in (ex.SUM_OVER, ex.SUM, ex.tr):
        yield x / ex.dimension(x.args[0])


@_kind("dimension dropped")
def _dimension(x: Expr, _: Context) -> Iterator[Expr]:
    if x.op is ex.dimension:
        yield LOSE_LAST(x.args[0])
    if x.op is ex.SUM_OVER:
        yield Expr(ex.SUM_BUT_LAST, x.args, x.bound)
    if x.op is ex.tr:
        a = x.args[0]
        yield x - a[-1][-1]


@_kind("standard deviation for variance")
def _power(x: Expr, context: Context) -> Iterator[Expr]:
    if x.op is ex.raise_to and isinstance(x.args[1], Constant) and x.args[1].value == 2:
        yield x.args[0]
    if x.op is ex.sqrt:
        yield x.args[0]
    if x.op is ex.exp:
        yield ex.exp(2 * x.args[0])
        yield ex.exp(x.args[0] / 2)
    if x.op is ex.square_norm and context.shape_of(x.args[0]) == ():
        yield x.args[0]


@_kind("logarithm dropped")
def _no_log(x: Expr, _: Context) -> Iterator[Expr]:
    if x.op in (ex.log, ex.log1p, ex.exp, ex.expm1):
        yield x.args[0]


@_kind("logarithm to base 2")
def _base(x: Expr, _: Context) -> Iterator[Expr]:
    if x.op in (ex.log, ex.logdet, ex.log1p):
        yield x / float(np.log(2))


@_kind("epsilon")
def _epsilon(x: Expr, _: Context) -> Iterator[Expr]:
    if x.op is ex.log:
        yield ex.log(x.args[0] + 1e-6)
    if x.op is ex.divide and not isinstance(x.args[1], Constant):
        yield x.args[0] / (x.args[1] + 1e-6)


@_kind("clamp")
def _clamped(x: Expr, context: Context) -> Iterator[Expr]:
    if x.args and context.shape == () and x.op not in ex.OF_LENGTH:
        yield CLAMP(x)


@_kind("stop_gradient")
def _stopped(x: Expr, _: Context) -> Iterator[Expr]:
    if not isinstance(x, Constant):
        yield ex.STOP(x)


@_kind("wrong second-order rule")
def _bent(x: Expr, _: Context) -> Iterator[Expr]:
    if x.args:
        yield BEND(x)


@_kind("rounded to bfloat16")
def _rounded(x: Expr, _: Context) -> Iterator[Expr]:
    if not isinstance(x, Constant):
        yield ROUND(x)


# Mistakes that a number that no parameter moves cannot have.
STANDING = ("stop_gradient", "wrong second-order rule", "rounded to bfloat16", "clamp")


def of_line(
    root: Expr,
    shapes: dict[Expr, tuple[int, ...]],
    partners: dict[Symbol, Symbol],
    parameter_shapes: dict[Symbol, tuple[int, ...]],
    fixed_nodes: bool = False,
) -> Iterator[Mutant]:
    """Every mutant of a line.

    Args:
        root: the line.
        shapes: of every node's value.
        partners: q's symbols to p's and back.
        parameter_shapes: of every parameter.
        fixed_nodes: whether expectations are sums over nodes that do not move.
    """
    alternatives = {
        s: [o for o, other in parameter_shapes.items() if o is not s and other == shape]
        for s, shape in parameter_shapes.items()
    }
    if partners:
        swapped = substitute(root, dict(partners))
        if swapped is not root:
            yield Mutant("q and p swapped", swapped, "q, p", "p, q", repr(root))
    for path, node in places(root):
        if _silent(root, path):
            continue
        parents = tuple(_along(root, path))
        context = Context(shapes.get(node, ()), parents, shapes, alternatives)
        inside = _around(root, path)
        constant = _is_constant(root, path, fixed_nodes)
        for kind, alter in KINDS.items():
            if constant and kind in STANDING:
                continue
            for new in alter(node, context):
                if _only_adds_a_constant(kind, node, new, context):
                    continue
                tree = replace(root, path, new)
                yield Mutant(kind, tree, repr(node), repr(new), inside)


def _around(root: Expr, path: Path) -> str:
    """The smallest thing around a place that one can point at."""
    found = repr(root)
    for i in path:
        if root.bound is not None:
            law = isinstance(root.op, ExpectationOp) and i < len(root.args) - 1
            found = f"the law of {root!r}" if law else repr(root)
        if isinstance(root.op.compute, Shipped):
            found = repr(root)
        root = root.args[i]
    return found


def _along(root: Expr, path: Path) -> Iterator[Expr]:
    for i in path:
        yield root
        root = root.args[i]


def _is_constant(root: Expr, path: Path, fixed_nodes: bool) -> bool:
    """Whether nothing at this place moves with a parameter: the x of an integral dx."""
    fixed: set[Expr] = set()
    for i in path:
        if isinstance(root.op, ExpectationOp) and root.bound is not None:
            integral = root.op.integral or root.op.base == "line"
            if integral or fixed_nodes:
                fixed.add(root.bound)
        if root.op in ex.OVER_PLACES and root.bound is not None:
            fixed.add(root.bound)
        root = root.args[i]
    return _moving(root) <= fixed


def _moving(x: Expr) -> set[Expr]:
    """The symbols that a value depends on."""
    if x.op in ex.OF_LENGTH:
        return set()
    own: set[Expr] = {x} if isinstance(x, Symbol) else set()
    return own.union(*map(_moving, x.args))


def _silent(root: Expr, path: Path) -> bool:
    """Places without a value of their own: exponents, indices, what only lends its length."""
    for i in path:
        length_only = root.op in (*ex.OVER_PLACES, *ex.OF_LENGTH) and i == 0
        if length_only or (root.op in (ex.raise_to, ex.item) and i == 1):
            return True
        if isinstance(root.op, ExpectationOp) and root.op.base == "exponential" and i == 0:
            return True
        root = root.args[i]
    return False
