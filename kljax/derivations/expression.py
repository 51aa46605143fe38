"""The words that formulas are written in: each reads as numbers, as a series and as notation.

`log(x)` of an array is an array; of a `Series` it is a series; of a symbol it is an `Expr`, a
node of a tree that prints itself and that mutants are made of. So a step of a derivation is
written once, as a plain function, and every reading of it is that function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kljax.derivations import layout, smallmatrix
from kljax.derivations.layout import APPLICATION, ATOM, POWER, PRODUCT, Box
from kljax.derivations.series import Series


@dataclass(frozen=True, eq=False)
class Op:
    """An operation.

    Attributes:
        name: what mutants and messages call it.
        compute: function of arrays or series.
        show: function of the boxes of its arguments.
    """

    name: str
    compute: Callable[..., Any]
    show: Callable[..., Box]

    def __call__(self, *args: Any) -> Any:
        if any(isinstance(x, Expr) for x in args):
            return Expr(self, tuple(as_expr(x) for x in args))
        return self.compute(*args)


@dataclass(frozen=True, eq=False)
class Expr:
    """A node of a formula.

    Attributes:
        op: the operation.
        args: its arguments.
        bound: the symbol that the operation binds in its last argument, if it binds one.
    """

    op: Op
    args: tuple[Expr, ...]
    bound: Symbol | None = None

    # Arrays leave mixed expressions to the methods below.
    __array_priority__ = 1000

    def __add__(self, other: Any) -> Expr:
        return add(self, other)

    def __radd__(self, other: Any) -> Expr:
        return add(other, self)

    def __sub__(self, other: Any) -> Expr:
        return subtract(self, other)

    def __rsub__(self, other: Any) -> Expr:
        return subtract(other, self)

    def __mul__(self, other: Any) -> Expr:
        return multiply(self, other)

    def __rmul__(self, other: Any) -> Expr:
        return multiply(other, self)

    def __truediv__(self, other: Any) -> Expr:
        return divide(self, other)

    def __rtruediv__(self, other: Any) -> Expr:
        return divide(other, self)

    def __matmul__(self, other: Any) -> Expr:
        return matmul(self, other)

    def __rmatmul__(self, other: Any) -> Expr:
        return matmul(other, self)

    def __neg__(self) -> Expr:
        return negative(self)

    def __pow__(self, exponent: Any) -> Expr:
        return raise_to(self, exponent)

    def __getitem__(self, index: Any) -> Expr:
        # The entry of a written-out vector is what was written.
        if self.op is stack and isinstance(index, int):
            return self.args[index]
        return item(self, index)

    @property
    def T(self) -> Expr:
        return transpose(self)

    def __repr__(self) -> str:
        return layout.plain(box(self))


@dataclass(frozen=True, eq=False, repr=False)
class Symbol(Expr):
    """A name: a parameter of the derivation, or what an expectation runs over."""

    name: str = ""
    symmetric: bool = False


@dataclass(frozen=True, eq=False, repr=False)
class Constant(Expr):
    """A number that stands in a formula."""

    value: Any = 0.0
    text: str = ""


class Named(float):
    """A number with a name, such as log 2π."""

    text: str

    def __new__(cls, value: float, text: str) -> Named:
        named = super().__new__(cls, value)
        named.text = text
        return named


def _leaf(*_: Any) -> Any:
    raise AssertionError("a leaf has a value of its own")


LEAF = Op("leaf", _leaf, _leaf)


def symbol(name: str, *, symmetric: bool = False) -> Symbol:
    return Symbol(LEAF, (), name=name, symmetric=symmetric)


def as_expr(x: Any) -> Expr:
    if isinstance(x, Expr):
        return x
    return Constant(LEAF, (), value=x, text=getattr(x, "text", ""))


def box(x: Expr) -> Box:
    """The notation of a formula."""
    if isinstance(x, Symbol):
        return layout.name(x.name)
    if isinstance(x, Constant):
        return layout.word(x.text) if x.text else layout.number(x.value)
    arguments = [box(a) for a in x.args]
    if x.bound is not None:
        arguments.append(box(x.bound))
    return x.op.show(*arguments)


def read(function: Callable[..., Any], *symbols: Any) -> Expr:
    """The tree of a function."""
    return as_expr(function(*symbols))


# ---- arithmetic -----------------------------------------------------------------------------


def _infix(sign: str, level: int, right: int) -> Callable[[Box, Box], Box]:
    def show(a: Box, b: Box) -> Box:
        joined = layout.hold(a, level), layout.operator(sign), layout.hold(b, right)
        return layout.row(level, *joined)

    return show


def _show_sum_of_two(a: Box, b: Box) -> Box:
    # Not a + −b.
    right = layout.fence(b) if layout.leads_with_minus(b) else b
    return _infix("+", layout.SUM, layout.SUM)(a, right)


def _show_product(a: Box, b: Box) -> Box:
    if layout.leads_with_minus(a) and a.parts[1].kind == "number":
        # −2 x for (−2) x.
        return layout.row(layout.SUM, layout.operator("−"), _show_product(a.parts[1], b))
    sign = [layout.operator("·")] if b.kind == "number" or _leads_with_number(b) else []
    return layout.row(
        PRODUCT, layout.hold(a, PRODUCT), *sign, layout.hold(b, max(PRODUCT, _tight(b)))
    )


def _leads_with_number(b: Box) -> bool:
    if b.kind == "row" and b.level >= PRODUCT:
        return _leads_with_number(b.parts[0])
    return b.kind == "number" or (b.kind in ("power", "index") and b.parts[0].kind == "number")


def _tight(b: Box) -> int:
    """A product inside a product needs no parentheses, a sign sum_i does."""
    return PRODUCT if b.kind != "big" else APPLICATION


def _show_negative(a: Box) -> Box:
    return layout.row(layout.SUM, layout.operator("−"), layout.hold(a, PRODUCT))


def _matmul(a: Any, b: Any) -> Any:
    if isinstance(a, Series) or isinstance(b, Series):
        return a @ b if isinstance(a, Series) else b.__rmatmul__(a)
    return jnp.matmul(a, b, precision="highest")


def _transpose(a: Any) -> Any:
    return a.T


add = Op("add", lambda a, b: a + b, _show_sum_of_two)
subtract = Op("subtract", lambda a, b: a - b, _infix("−", layout.SUM, PRODUCT))
multiply = Op("multiply", lambda a, b: a * b, _show_product)
divide = Op("divide", lambda a, b: a / b, layout.fraction)
negative = Op("negative", lambda a: -a, _show_negative)
raise_to = Op("power", lambda a, b: a**b, layout.power)
matmul = Op("matmul", _matmul, _show_product)
transpose = Op("transpose", _transpose, lambda a: layout.power(a, layout.operator("ᵀ")))


class Index:
    """The running index of a sum, among series: the node axis that it lives on."""

    def __init__(self, depth: int):
        self.depth = depth


def _item(a: Any, index: Any) -> Any:
    if not isinstance(a, Series):
        return a[index]
    if isinstance(index, Index):
        # The event axis moves to where the sum's node axis, of size 1 so far, is.
        axis = 1 + a.rank + index.depth - 1
        parts = np.squeeze(a.parts, axis) if a.parts.shape[axis] == 1 else None
        if parts is None:
            return Series(_paired(a.parts, axis), a.depth)
        return Series(np.moveaxis(parts, 1, axis - 1), a.depth)
    return a[int(np.asarray(index))]


def _paired(parts: np.ndarray, axis: int) -> np.ndarray:
    """Entry i of node i, where the array runs along the node axis already."""
    return np.moveaxis(np.diagonal(parts, axis1=1, axis2=axis), -1, axis - 1)


item = Op("item", _item, layout.index)


# ---- functions ------------------------------------------------------------------------------


def _dual(name: str, plain: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A function of arrays that calls the method of a series."""

    def compute(x: Any) -> Any:
        return getattr(x, name)() if isinstance(x, Series) else plain(jnp.asarray(x))

    return compute


def _named(text: str) -> Callable[[Box], Box]:
    return lambda a: layout.prefix(layout.word(text), a)


def _called(text: str) -> Callable[..., Box]:
    return lambda *args: layout.call(layout.word(text), *args)


def _show_exp(a: Box) -> Box:
    if a.kind == "row" and a.level == APPLICATION and a.parts[0] == layout.word("log"):
        # The exponential of a logarithm is what the logarithm is of.
        return (
            layout.bare(a.parts[1])
            if len(a.parts) == 2
            else layout.row(APPLICATION, *a.parts[1:])
        )
    return layout.power(layout.name("e"), a)


def _show_sqrt(a: Box) -> Box:
    return layout.power(a, layout.fraction(layout.number(1), layout.number(2)))


log = Op("log", _dual("log", jnp.log), _named("log"))
exp = Op("exp", _dual("exp", jnp.exp), _show_exp)
expm1 = Op("expm1", _dual("expm1", jnp.expm1), _called("expm1"))
log1p = Op("log1p", _dual("log1p", jnp.log1p), _called("log1p"))
sin = Op("sin", _dual("sin", jnp.sin), _named("sin"))
sqrt = Op(
    "sqrt", lambda x: x**0.5 if isinstance(x, Series) else jnp.sqrt(jnp.asarray(x)), _show_sqrt
)


# ---- vectors and matrices -------------------------------------------------------------------


def _trace(a: Any) -> Any:
    return a.contract("ii...->...") if isinstance(a, Series) else jnp.trace(a)


def _sum(a: Any) -> Any:
    return a.contract("i...->...") if isinstance(a, Series) else jnp.sum(a)


def _square_norm(a: Any) -> Any:
    square = a * a
    while isinstance(square, Series) and square.rank:
        square = square.contract("i...->...")
    return square if isinstance(square, Series) else jnp.sum(square)


def _outer(a: Any, b: Any) -> Any:
    if isinstance(a, Series):
        return a.product(b, lambda x, y: np.einsum("i...,j...->ij...", x, y))
    return jnp.outer(a, b)


def _kronecker(a: Any, b: Any) -> Any:
    if not isinstance(a, Series):
        return jnp.kron(a, b)

    def times(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        blocks = np.einsum("ij...,kl...->ikjl...", x, y)
        rows, inner, columns, within = blocks.shape[:4]
        return blocks.reshape(rows * inner, columns * within, *blocks.shape[4:])

    return a.product(b, times)


def _diagonal(a: Any) -> Any:
    return a.contract("ii...->i...") if isinstance(a, Series) else jnp.diagonal(a)


def _diagonal_matrix(a: Any) -> Any:
    if isinstance(a, Series):
        eye = np.eye(a.shape[0])
        return a.map(lambda x: np.einsum("ij,i...->ij...", eye, x))
    return jnp.diag(a)


def _lower(a: Any) -> Any:
    if isinstance(a, Series):
        mask = np.tril(np.ones(a.shape))
        return a.map(lambda x: np.einsum("ij,ij...->ij...", mask, x))
    return jnp.tril(a)


def _stack(*numbers: Any) -> Any:
    first = next((x for x in numbers if isinstance(x, Series)), None)
    if first is None:
        return jnp.stack([jnp.asarray(x) for x in numbers])
    parts = [first._like(x).parts for x in numbers]
    shape = np.broadcast_shapes(*(x.shape for x in parts))
    return Series(np.stack([np.broadcast_to(x, shape) for x in parts], axis=1), first.depth)


def _show_stack(*entries: Box) -> Box:
    separated: list[Box] = []
    for entry in entries:
        separated += [layout.operator(","), entry] if separated else [entry]
    return layout.fence(layout.row(layout.SUM, *separated))


def _eigenvalues(a: Any) -> Any:
    """Of a symmetric 2 by 2 matrix, the larger first."""
    middle, gap = (a[0, 0] + a[1, 1]) / 2, (a[0, 0] - a[1, 1]) / 2
    radius = (gap * gap + a[0, 1] * a[1, 0]) ** 0.5
    return _stack(middle + radius, middle - radius)


def _show_transposed_product(a: Box, b: Box) -> Box:
    return layout.row(
        PRODUCT,
        layout.hold(a, PRODUCT),
        layout.power(layout.hold(b, ATOM), layout.operator("ᵀ")),
    )


def _show_dot(a: Box, b: Box) -> Box:
    transposed = layout.power(layout.hold(a, ATOM), layout.operator("ᵀ"))
    return layout.row(PRODUCT, transposed, layout.hold(b, PRODUCT))


def _show_inverse(a: Box) -> Box:
    return layout.power(a, Box("row", (layout.operator("−"), layout.number(1)), layout.SUM))


def _show_log_det(a: Box) -> Box:
    return layout.row(APPLICATION, layout.word("log"), layout.fence(a, "|", "|"))


def _show_square_norm(a: Box) -> Box:
    return Box("power", (layout.fence(a, "‖", "‖"), layout.number(2)), POWER)


tr = Op("tr", _trace, lambda a: layout.call(layout.word("tr"), a))
inv = Op("inv", _dual("inv", smallmatrix.inv), _show_inverse)
logdet = Op("logdet", _dual("logdet", smallmatrix.logdet), _show_log_det)
cholesky = Op("cholesky", _dual("cholesky", smallmatrix.cholesky), _called("chol"))
kronecker = Op("kronecker", _kronecker, _infix("⊗", layout.PRODUCT, layout.ATOM))
outer = Op("outer", _outer, _show_transposed_product)
dot = Op("dot", _matmul, _show_dot)
diagonal = Op("diagonal", _diagonal, _called("diag"))
diagonal_matrix = Op("diagonal_matrix", _diagonal_matrix, _called("Diag"))
eigenvalues = Op("eigenvalues", _eigenvalues, _called("eig"))
lower = Op("lower", _lower, _called("tril"))
square_norm = Op("square_norm", _square_norm, _show_square_norm)
zero_like = Op("zero_like", lambda a: 0 * a, lambda _: layout.number(0))
# The identity, zeros and ones of the size of a vector.
identity = Op("identity", lambda a: np.eye(a.shape[0]), lambda _: layout.name("I"))
zeros = Op("zeros", lambda a: np.zeros(a.shape[0]), lambda _: layout.number(0))
ones = Op("ones", lambda a: np.ones(a.shape[0]), lambda _: layout.number(1))
stack = Op("stack", _stack, _show_stack)
dimension = Op("dimension", lambda a: float(a.shape[0]), lambda _: layout.name("k"))


def quad(a: Any, matrix: Any) -> Any:
    """a^T M a."""
    return dot(a, matrix @ a)


# What they compute depends on the shape of their argument alone.
OF_LENGTH = (dimension, identity, zeros, ones, zero_like)


# ---- operations that bind a symbol ----------------------------------------------------------


_GREEK = {"eta": "η", "mu": "μ", "nu": "ν", "sigma": "σ", "tau": "τ"}


def binder(op: Op, args: tuple[Any, ...], function: Callable[[Any], Any], name: str) -> Expr:
    """An operation over all values of a symbol of a function's body."""
    bound = symbol(name)
    return Expr(op, (*(as_expr(a) for a in args), as_expr(function(bound))), bound)


def variable_names(function: Any) -> list[str]:
    """The names that the author gave to a function's arguments."""
    code = getattr(function, "__code__", None)
    names: tuple[str, ...] = code.co_varnames[: code.co_argcount] if code is not None else ()
    return [_GREEK.get(name, name) for name in names]


def variable_name(function: Callable[..., Any], default: str = "x") -> str:
    """The name that the author gave: E(lambda z: ...) runs over z."""
    return next(iter(variable_names(function)), default)


def _show_sum(_: Box, body: Box, bound: Box) -> Box:
    return layout.big("Σ", bound, body)


def occurs(symbol: Symbol, x: Expr) -> bool:
    """Whether a formula contains a symbol."""
    return x is symbol or any(occurs(symbol, a) for a in x.args)


def _show_gradient(at: Box, body: Box, bound: Box) -> Box:
    nabla = Box("index", (layout.operator("∇"), bound))
    if at == bound:
        return layout.row(APPLICATION, nabla, layout.hold(body, ATOM))
    place = layout.row(layout.RELATION, bound, layout.operator("="), at)
    where = Box("index", (layout.fence(body, "[", "]"), place))
    return layout.row(APPLICATION, nabla, where)


SUM = Op("sum", _sum, lambda a: layout.call(layout.word("sum"), a))
SUM_OVER = Op("sum_over", _leaf, _show_sum)
# The last place forgotten: what mutants do.
SUM_BUT_LAST = Op("sum_but_last", _leaf, _show_sum)
GRADIENT = Op("gradient", _leaf, _show_gradient)


def _show_log_mean_exp(_: Box, body: Box, bound: Box) -> Box:
    mean = layout.big("Σ", bound, _show_exp(body))
    over = layout.fraction(layout.number(1), layout.name("k"))
    inside = layout.fence(layout.row(layout.PRODUCT, over, mean))
    return layout.row(layout.APPLICATION, layout.word("log"), inside)


LOG_MEAN_EXP = Op("log_mean_exp", _leaf, _show_log_mean_exp)
OVER_PLACES = (SUM_OVER, SUM_BUT_LAST, LOG_MEAN_EXP)


def log_mean_exp(values: Any, function: Callable[[Any], Any]) -> Any:
    """The logarithm of the mean of exp(function(i)) over the places of a vector.

    The largest exponent is taken out, so that nothing underflows far from everything.
    """
    if isinstance(values, Expr):
        return binder(LOG_MEAN_EXP, (values,), function, variable_name(function, "i"))
    exponents = jax.vmap(function)(jnp.arange(values.shape[0]))
    return jax.nn.logsumexp(exponents, axis=0) - np.log(values.shape[0])


def sum_over(values: Any, function: Callable[[Any], Any]) -> Any:
    """The sum of function(i) over the places of a vector."""
    if isinstance(values, Expr):
        return binder(SUM_OVER, (values,), function, variable_name(function, "i"))
    return jnp.sum(jax.vmap(function)(jnp.arange(values.shape[0])), axis=0)


def gradient(function: Callable[[Any], Any], at: Any) -> Any:
    """The gradient of a function by its argument, there."""
    if isinstance(at, Expr):
        found = binder(GRADIENT, (at,), function, variable_name(function))
        # ∇_μ f(μ) needs no other letter, unless μ is in f as something that stays.
        if isinstance(at, Symbol) and not occurs(at, found.args[-1]):
            return binder(GRADIENT, (at,), function, at.name)
        return found
    return jax.grad(lambda x: jnp.sum(function(x)))(jnp.asarray(at))


def stop_gradient(x: Any) -> Any:
    """The value as a constant."""
    return STOP(x)


STOP = Op(
    "stop_gradient",
    lambda x: x.constant() if isinstance(x, Series) else jax.lax.stop_gradient(x),
    lambda a: layout.call(layout.word("sg"), a),
)
